"""Turn the committed JSON results into the results section of ``bench/README.md``.

Numbers in the README are never typed by hand: ``python bench/report.py`` prints the section,
``--write`` puts it between the markers of README.md, ``--check`` fails when it is out of date.
Every folder of ``results/`` is a processor. What can be compared stands side by side, a column for
each; then comes a part for each processor.

1. the cells that lose to another library, and the limits (``limits.py``), of all processors;
2. a section for each kind of result;
3. the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from _common import (
    RESULTS,
    console,
    geometric_mean,
    load,
    medians,
    seconds,
    size_name,
    times,
)
from limits import (
    EAGER_LOSSES,
    LARGE,
    Limit,
    against_fastest,
    bridge_losing,
    compare_limits,
    latency_limits,
    losing,
    roofline_limits,
)

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# A results file of each kind by name, of one processor.
Documents = dict[str, dict[str, Any]]


def _table(heads: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table, the first ``left`` columns aligned left."""
    rule = ["---" if number < left else "---:" for number in range(len(heads))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *rows])


def _where(document: dict[str, Any]) -> str:
    """The machine and the versions, as a sentence."""
    machine = document["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    family = "".join(
        f"{key} {machine['processor'][key]}, "
        for key in ("family", "model")
        if key in machine.get("processor", {})
    )
    return (
        f"{machine['cpu']} ({family}{machine['architecture']}, {machine['cores']} cores; {caches}; "
        f"{machine['memory_gib']} GiB), {machine['system']}, Python {machine['python']}; "
        f"{versions}; instruction set {machine['level']}; threads: {machine['threads']}."
    )


def _picture(path: Path, text: str) -> str:
    if not path.exists():
        return ""
    return f"![{text}]({path.relative_to(README.parent).as_posix()})"


def losing_section(processors: dict[str, Documents]) -> str:
    """The cells in which another library is faster, of each processor and number of threads."""
    parts = ["### Where another library is faster"]
    for processor, documents in processors.items():
        for name, document in documents.items():
            if not name.startswith("compare"):
                continue
            cells = len(against_fastest(document))
            lost = losing(document)
            what = f"**{processor}, {name.removeprefix('compare-').replace('-', ' ')}**"
            if lost:
                parts.append(f"{what}: {len(lost)} of {cells} cells")
                parts.append("\n".join(f"- {line}" for line in lost))
            else:
                parts.append(f"{what}: none of {cells} cells")
            if behind := bridge_losing(document):
                parts.append("fastloss.torch against PyTorch:")
                parts.append("\n".join(f"- {line}" for line in behind))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def limits_section(processors: dict[str, Documents]) -> str:
    """Every limit, a column for each processor that has a run which decides it."""
    found: dict[str, dict[str, Limit]] = {}
    deciding: tuple[tuple[str, Callable[[dict[str, Any]], list[Limit]]], ...] = (
        ("compare-1-thread", compare_limits),
        ("roofline", roofline_limits),
        ("threads-16-cores", roofline_limits),
        ("latency", latency_limits),
    )
    for name, decide in deciding:
        for processor, documents in processors.items():
            if name in documents:
                for row in decide(documents[name]):
                    found.setdefault(row.limit, {})[processor] = row
    if not found:
        return ""
    columns = [one for one in processors if any(one in rows for rows in found.values())]
    body = []
    for limit, rows in found.items():
        asked = " / ".join(dict.fromkeys(row.asked for row in rows.values()))
        line = [limit, asked]
        for processor in columns:
            if (row := rows.get(processor)) is None:
                line.append("–")
                continue
            mark = "" if row.met else "**no:** "
            line.append(f"{mark}{row.measured}{f' ({row.where})' if row.where else ''}")
        body.append(line)
    parts = []
    for processor in columns:
        here = [rows[processor] for rows in found.values() if processor in rows]
        met = sum(bool(row.met) for row in here)
        parts.append(f"{processor}: {met} of {len(here)} limits are met.")
    table = _table(["limit", "asked", *columns], body, left=2 + len(columns))
    return "\n\n".join(["### Limits", "\n".join(parts), table])


def quote(processors: dict[str, Documents]) -> str:
    """The sentence for the front page: the range over all processors and cells, and its worst.

    Value and gradient of cross-entropy and BCE on one core, over PyTorch eager, inputs of a million
    numbers and more.
    """
    ratios: dict[tuple[str, str, str], float] = {}
    names: dict[str, str] = {}
    for processor, documents in processors.items():
        if (document := documents.get("compare-1-thread")) is None:
            continue
        names[processor] = f"{document['machine']['cpu']} ({document['machine']['level']})"
        found = medians(document["results"])
        for (loss, shape, mode, peer), took in found.items():
            mine = found.get((loss, shape, mode, "fastloss"))
            if (
                (mode, peer) == ("value_and_grad", "torch")
                and mine
                and loss in EAGER_LOSSES
                and math.prod(shape) >= LARGE
            ):
                ratios[processor, loss, size_name(shape)] = took / mine
    if not ratios:
        return ""
    worst, best = min(ratios, key=lambda k: ratios[k]), max(ratios, key=lambda k: ratios[k])
    each = [
        f"{processor}, {name}: "
        f"{times(geometric_mean(r for (p, *_), r in ratios.items() if p == processor))}"
        for processor, name in names.items()
    ]
    return (
        f"On one core, value and gradient of cross-entropy and BCE are {times(ratios[worst])} to "
        f"{times(ratios[best])} as fast as PyTorch eager, over {len(names)} "
        f"processor{'s' if len(names) > 1 else ''} and {len(ratios)} inputs of a million numbers "
        f"and more; the worst is {worst[1]} of {worst[2]} on {worst[0]}. Geometric means: "
        f"{'; '.join(each)}."
    )


def overview_section(processors: dict[str, Documents]) -> str:
    """fastloss and the fastest other library in every cell, the processors side by side."""
    parts = []
    for name in ("compare-1-thread", "compare-2-threads"):
        documents = {one: found[name] for one, found in processors.items() if name in found}
        if not documents:
            continue
        times = {one: medians(document["results"]) for one, document in documents.items()}
        ratios = {one: against_fastest(document) for one, document in documents.items()}
        cells = dict.fromkeys(key for found in ratios.values() for key in found)
        for mode in ("forward", "value_and_grad"):
            body = []
            for cell, which in cells:
                if which != mode:
                    continue
                line = [cell[0], size_name(cell[1])]
                for one in documents:
                    if (cell, mode) not in ratios[one]:
                        line += ["–", "–"]
                        continue
                    ratio, peer = ratios[one][cell, mode]
                    lost = "**" if ratio < 1 else ""
                    line.append(seconds(times[one][*cell, mode, "fastloss"]))
                    line.append(f"{lost}{ratio:.2f}×{lost} {peer}")
                body.append(line)
            heads = ["loss", "input"]
            for one in documents:
                heads += [one, "fastest other / fastloss"]
            parts.append(f"**{mode}, {name.removeprefix('compare-').replace('-', ' ')}**")
            parts.append(_table(heads, body, left=2))
    return "\n\n".join(["### fastloss and the fastest other library", *parts]) if parts else ""


def compare_section(document: dict[str, Any], path: Path) -> str:
    """Both tables of ``compare.py`` and its charts."""
    from compare import tables

    threads = document["machine"]["threads"]
    parts = [f"#### Beside other libraries, {threads} thread{'s' if threads > 1 else ''}"]
    parts.append(_where(document))
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body, left=2)]
    for suffix, text in (
        ("", "Loss and gradient: speed-up over PyTorch"),
        ("-forward", "The loss alone: speed-up over PyTorch"),
        ("-losses", "Other losses: speed-up over PyTorch"),
    ):
        parts.append(_picture(path.with_name(f"{path.stem}{suffix}.png"), text))
    return "\n\n".join(part for part in parts if part)


def roofline_section(document: dict[str, Any], path: Path) -> str:
    """Tables of ``roofline.py``."""
    from roofline import tables

    parts = ["#### Against the memory, by size, type, threads and instruction set"]
    parts.append(_where(document))
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    parts.append(
        _picture(path.with_suffix(".png"), "ns per element over sizes, types, threads and levels")
    )
    return "\n\n".join(part for part in parts if part)


def scaling_section(document: dict[str, Any], path: Path) -> str:
    """The threads section of ``roofline.py`` on a machine with more processors."""
    from roofline import tables

    parts = [f"#### Number of threads on {document['machine']['cores']} processors"]
    parts.append(_where(document))
    parts += [_table(heads, body) for _, heads, body in tables(document)]
    return "\n\n".join(parts)


def latency_section(document: dict[str, Any], path: Path) -> str:
    """Table of ``latency.py``."""
    from latency import tables

    parts = ["#### Small calls", _where(document)]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    return "\n\n".join(parts)


def linear_section(document: dict[str, Any], path: Path) -> str:
    """Table of ``linear.py``."""
    from linear import tables

    parts = ["#### The cross-entropy of a linear layer: time and memory", _where(document)]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body, left=2)]
    return "\n\n".join(parts)


def new_array_section(document: dict[str, Any], path: Path) -> str:
    """Table of ``new_array.py``."""
    from new_array import tables

    parts = ["#### What out= saves", _where(document)]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body, left=2)]
    return "\n\n".join(parts)


def accuracy_section(document: dict[str, Any], path: Path) -> str:
    """Table of ``accuracy.py`` and its picture."""
    from accuracy import tables

    parts = ["#### Accuracy"]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    parts.append(_picture(path.with_suffix(".png"), "Error in ulp over the size of the loss"))
    return "\n\n".join(part for part in parts if part)


def instructions_section(document: dict[str, Any], path: Path) -> str:
    """Table of ``instructions.py``."""
    from instructions import tables

    parts = ["#### Instruction counts"]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[dict[str, Any], Path], str]] = {
    "compare-1-thread": compare_section,
    "compare-2-threads": compare_section,
    "roofline": roofline_section,
    "threads-16-cores": scaling_section,
    "latency": latency_section,
    "linear-1-thread": linear_section,
    "linear-2-threads": linear_section,
    "new-array": new_array_section,
    "accuracy": accuracy_section,
    "instructions": instructions_section,
}


def measured() -> dict[str, Documents]:
    """What every processor's folder holds."""
    return {
        folder.name: {
            name: load(path) for name in SECTIONS if (path := folder / f"{name}.json").exists()
        }
        for folder in sorted(RESULTS.iterdir())
        if folder.is_dir()
    }


def section() -> str:
    """The results section: what is lost, the limits, all side by side, then every processor."""
    processors = measured()
    parts = [losing_section(processors), limits_section(processors), overview_section(processors)]
    for processor, documents in processors.items():
        parts.append(f"### {processor}")
        parts += [
            SECTIONS[name](document, RESULTS / processor / f"{name}.json")
            for name, document in documents.items()
        ]
    return "\n\n".join(part for part in parts if part)


def main(
    write: Annotated[bool, typer.Option(help="Put it into README.md.")] = False,
    quote_only: Annotated[
        bool, typer.Option("--quote", help="Print the sentence for the front page alone.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Fail if README.md is out of date.")] = False,
) -> None:
    """Print the results section of bench/README.md from the committed JSON files."""
    if quote_only:
        print(quote(measured()))
        return
    made = section()
    if not (write or check):
        print(made)
        return
    before, _, rest = README.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    if check and old.strip() != made.strip():
        console.print("README.md is out of date: run python bench/report.py --write")
        raise typer.Exit(1)
    if write:
        README.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")


if __name__ == "__main__":
    typer.run(main)
