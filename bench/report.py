"""Turn the committed JSON results into the results section of ``bench/README.md``.

Numbers in the README are never typed by hand: ``python bench/report.py`` prints the section,
``--write`` puts it between the markers of README.md, ``--check`` fails when it is out of date.

1. ``limits``: the project's speed limits against what the runs measured;
2. a section for each kind of result;
3. the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from _common import RESULTS, console, geometric_mean, load, seconds, size_name

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


class Limit(NamedTuple):
    """A limit, what it asks, what was measured, in which cell, and whether it is met."""

    limit: str
    asked: str
    measured: str
    where: str
    met: bool | None


def limits(
    compare: dict[str, Any] | None = None,
    roofline: dict[str, Any] | None = None,
) -> list[Limit]:
    """The limits that these results decide; a limit without its cells is left out."""
    rows: list[Limit] = []
    if compare is not None:
        rows += _compare_limits(compare)
    if roofline is not None:
        rows += _roofline_limits(roofline)
    return rows


def _compare_limits(document: dict[str, Any]) -> list[Limit]:
    from compare import SMALL, TABLE, medians

    found = medians(document["results"])

    def ratios(cells: list[Any], mode: str, rivals: list[str]) -> dict[str, float]:
        """Each cell's name to the fastest rival's time over fastloss's."""
        answer = {}
        for cell in cells:
            theirs = [found[key] for rival in rivals if (key := (*cell, mode, rival)) in found]
            mine = found.get((*cell, mode, "fastloss"))
            if theirs and mine:
                answer[f"{cell[0]} {size_name(cell[1])}"] = min(theirs) / mine
        return answer

    rows: list[Limit] = []

    def least(limit: str, asked: float, values: dict[str, float]) -> None:
        if values:
            where = min(values, key=lambda cell: values[cell])
            worst = values[where]
            rows.append(
                Limit(limit, f"≥ {asked:g}×", f"{worst:.2f}×", f"worst: {where}", worst >= asked)
            )

    everybody = ["numpy", "scipy", "scikit-learn", "torch", "torch-compile", "optax"]
    eager = ratios(TABLE, "value_and_grad", ["torch"])
    least("value_and_grad / PyTorch eager, large", 8, eager)
    least("value_and_grad / PyTorch eager, small", 5, ratios(SMALL, "value_and_grad", ["torch"]))
    if eager:
        mean = geometric_mean(eager.values())
        rows.append(
            Limit(
                "value_and_grad / PyTorch eager, mean",
                "≥ 15×",
                f"{mean:.2f}×",
                f"geometric mean of {len(eager)} large cells",
                mean >= 15,
            )
        )
    least(
        "value_and_grad / fastest compiler",
        4,
        ratios(TABLE, "value_and_grad", ["torch-compile", "optax"]),
    )
    least("forward / fastest peer", 1.5, ratios(TABLE, "forward", everybody))
    small = found.get(("cross_entropy", (32, 10), "value_and_grad", "fastloss"))
    if small is not None:
        rows.append(
            Limit("small value_and_grad", "≤ 5 µs", seconds(small), "32 × 10", small <= 5e-6)
        )
    return rows


def _roofline_limits(document: dict[str, Any]) -> list[Limit]:
    rows = []
    floor = {row["what"]: _median(row) for row in document.get("floor", [])}
    sizes = {
        name: size_name(document[name][0]["shape"])
        for name in document
        if name in ("floor", "dtypes") and document[name]
    }
    if {"copy", "read", "value_and_grad", "forward"} <= floor.keys():
        for mode, base, asked in (("value_and_grad", "copy", 0.8), ("forward", "read", 0.45)):
            share = floor[base] / floor[mode]
            rows.append(
                Limit(
                    f"{mode}, share of the {base}'s speed",
                    f"≥ {asked:g}",
                    f"{share:.2f}",
                    sizes["floor"],
                    share >= asked,
                )
            )
    kinds = {
        row["dtype"]: _median(row)
        for row in document.get("dtypes", [])
        if row["mode"] == "value_and_grad"
    }
    for dtype in ("float16", "bfloat16"):
        if {dtype, "float32"} <= kinds.keys():
            ratio = kinds[dtype] / kinds["float32"]
            rows.append(
                Limit(
                    f"{dtype} value_and_grad, time over float32's",
                    "≤ 1",
                    f"{ratio:.2f}",
                    sizes["dtypes"],
                    ratio < 1.005,
                )
            )
    for section, span in (("growth", "elements"), ("classes", "classes")):
        for mode in ("forward", "value_and_grad"):
            points = [row for row in document.get(section, []) if row["mode"] == mode]
            if section == "classes":
                points = [row for row in points if row["classes"] >= 100]
            if len(points) > 1:
                costs = {row[span]: _median(row) / row["elements"] for row in points}
                ratio = max(costs.values()) / min(costs.values())
                slow, fast = (end(costs, key=lambda n: costs[n]) for end in (max, min))
                rows.append(
                    Limit(
                        f"{mode}, most over least ns/element, {span}",
                        "≤ 1.6",
                        f"{ratio:.2f}",
                        f"{min(costs):,} to {max(costs):,}; most at {slow:,}, least at {fast:,}",
                        ratio <= 1.6,
                    )
                )
    for mode in ("forward", "value_and_grad"):
        taken = [row for row in document.get("memory", []) if row["mode"] == mode]
        if taken:
            row = max(taken, key=_beyond)
            rows.append(
                Limit(
                    f"{mode}, memory beyond the gradient",
                    "constant",
                    f"{_beyond(row) / 2**20:.1f} MiB",
                    f"worst: {row['dtype']}, {row['logits_bytes'] / 2**30:.2g} GiB of logits",
                    _beyond(row) < 32 * 2**20,
                )
            )
    costs = {
        (row["level"], tuple(row["shape"]), row["mode"]): _median(row)
        for row in document.get("levels", [])
    }
    for level, asked in (("avx2", 0.35), ("baseline", 0.12)):
        for mode in ("forward", "value_and_grad"):
            shares = {
                shape: best / costs[level, shape, mode]
                for (which, shape, kind), best in costs.items()
                if which == "avx512" and kind == mode and (level, shape, mode) in costs
            }
            if shares:
                worst = min(shares, key=lambda shape: shares[shape])
                rows.append(
                    Limit(
                        f"{level} {mode}, share of avx512's speed",
                        f"≥ {asked:g}",
                        f"{shares[worst]:.2f}",
                        f"worst: {size_name(worst)}",
                        shares[worst] >= asked,
                    )
                )
    return rows


def _beyond(row: dict[str, Any]) -> int:
    """Bytes that a call took beside its gradient."""
    return max(0, int(row["growth_bytes"] - row["gradient_bytes"]))


def _median(row: dict[str, Any]) -> float:
    timing = row["timing"]
    return float(timing["median"] if isinstance(timing, dict) else timing.median)


def _table(heads: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table, the first ``left`` columns aligned left."""
    rule = ["---" if number < left else "---:" for number in range(len(heads))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *rows])


def _where(document: dict[str, Any]) -> str:
    """The machine and the versions, as a sentence."""
    machine = document["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return (
        f"{machine['cpu']} ({machine['architecture']}, {machine['cores']} cores; {caches}; "
        f"{machine['memory_gib']} GiB), {machine['system']}, Python {machine['python']}; "
        f"{versions}; instruction set {machine['level']}; threads: {machine['threads']}."
    )


def _picture(name: str, text: str) -> str:
    return f"![{text}](results/{name})" if (RESULTS / name).exists() else ""


def compare_section(document: dict[str, Any], name: str) -> str:
    """Both tables of ``compare.py`` and its charts."""
    from compare import tables

    threads = document["machine"]["threads"]
    parts = [f"### Beside other libraries, {threads} thread{'s' if threads > 1 else ''}"]
    parts.append(_where(document))
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body, left=2)]
    for suffix, text in (
        ("", "Loss and gradient: speed-up over PyTorch"),
        ("-forward", "The loss alone: speed-up over PyTorch"),
        ("-losses", "Other losses: speed-up over PyTorch"),
    ):
        parts.append(_picture(f"{name}{suffix}.png", text))
    return "\n\n".join(part for part in parts if part)


def roofline_section(document: dict[str, Any], name: str) -> str:
    """Tables of ``roofline.py``."""
    from roofline import tables

    parts = ["### Against the memory, by size, type, threads and instruction set"]
    parts.append(_where(document))
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    parts.append(_picture(f"{name}.png", "ns per element over sizes, types, threads and levels"))
    return "\n\n".join(part for part in parts if part)


def scaling_section(document: dict[str, Any], name: str) -> str:
    """The threads section of ``roofline.py`` on a machine with more processors."""
    from roofline import tables

    parts = [f"### Number of threads on {document['machine']['cores']} processors"]
    parts.append(_where(document))
    parts += [_table(heads, body) for _, heads, body in tables(document)]
    return "\n\n".join(parts)


def latency_section(document: dict[str, Any], name: str) -> str:
    """Table of ``latency.py``."""
    from latency import tables

    parts = ["### Small calls", _where(document)]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    return "\n\n".join(parts)


def accuracy_section(document: dict[str, Any], name: str) -> str:
    """Table of ``accuracy.py`` and its picture."""
    from accuracy import tables

    parts = ["### Accuracy"]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    parts.append(_picture(f"{name}.png", "Error in ulp over the size of the loss"))
    return "\n\n".join(part for part in parts if part)


def instructions_section(document: dict[str, Any], name: str) -> str:
    """Table of ``instructions.py``."""
    from instructions import tables

    parts = ["### Instruction counts"]
    for title, heads, body in tables(document):
        parts += [f"**{title}**", _table(heads, body)]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "compare-1-thread": compare_section,
    "compare-2-threads": compare_section,
    "roofline": roofline_section,
    "threads-16-cores": scaling_section,
    "latency": latency_section,
    "accuracy": accuracy_section,
    "instructions": instructions_section,
}


def section() -> str:
    """The results section: the limits, then what each results file says."""
    documents = {
        name: load(path) for name in SECTIONS if (path := RESULTS / f"{name}.json").exists()
    }
    parts = []
    rows = limits(documents.get("compare-1-thread"), documents.get("roofline"))
    if rows:
        marks = {True: "yes", False: "**no**", None: "–"}
        body = [[row.limit, row.asked, row.measured, row.where, marks[row.met]] for row in rows]
        parts += [
            "### Limits",
            _table(["limit", "asked", "measured", "where", "met"], body),
        ]
    parts += [SECTIONS[name](document, name) for name, document in documents.items()]
    return "\n\n".join(parts)


def main(
    write: Annotated[bool, typer.Option(help="Put it into README.md.")] = False,
    check: Annotated[bool, typer.Option(help="Fail if README.md is out of date.")] = False,
) -> None:
    """Print the results section of bench/README.md from the committed JSON files."""
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
