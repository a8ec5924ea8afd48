"""How close cross-entropy is to the memory's speed, and what an element costs where.

fastloss alone, no other library: share of copy and read bandwidth, ns per element over numbers of
elements, classes, threads, types and instruction-set levels, and the memory that a call takes.

1. ``worker``: a process that makes one input and times calls on request; each instruction-set level
   and each memory reading needs a process of its own;
2. a function for each section of the results;
3. the tables and the chart;
4. the command line.
"""

from __future__ import annotations

import json as json_format
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from _common import (
    ACCENT,
    INK,
    MUTED,
    available_memory,
    console,
    describe,
    load,
    machine,
    measure,
    median,
    own,
    pin,
    progress_bar,
    pyplot,
    save,
    seconds,
    size_name,
    summarise,
)
from limits import roofline_limits

Row = dict[str, Any]
Shape = tuple[int, ...]
Advance = Callable[[float], None]
BIG = (8_192, 8_192)
LEVELS = ("avx512", "avx2", "baseline")
MODES = ("forward", "value_and_grad")
READS = ("sum", "max")


def logits(shape: Shape, dtype: str = "float32") -> tuple[Any, Any]:
    """Logits of scale 3 and class indices; made in slices, so that a big one needs no copy."""
    import numpy as np

    random = np.random.default_rng(sum(shape))
    if dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(dtype)
    x = np.empty(shape, dtype=kind)
    flat = x.reshape(-1)
    pattern = (3 * random.standard_normal(min(flat.size, 2**22 + 1), dtype="float32")).astype(kind)
    for start in range(0, flat.size, pattern.size):
        flat[start : start + pattern.size] = pattern[: flat.size - start]
    return x, random.integers(shape[1], size=(shape[0], *shape[2:]))


def calls(x: Any, target: Any, out: Any) -> dict[str, Callable[[], object]]:
    """The two calls that every section times."""
    import fastloss

    return {
        "forward": lambda: fastloss.cross_entropy(x, target),
        "value_and_grad": lambda: fastloss.cross_entropy_value_and_grad(x, target, out=out),
    }


def worker() -> None:
    """Answer requests, a JSON object a line on standard input, until it ends.

    ``{"make": [shape, dtype]}`` makes the input, ``{"time": [mode, repeats]}`` answers seconds per
    call, ``{"memory": mode}`` answers by how many bytes one call enlarged the process.
    """
    import numpy as np

    x = target = out = None
    for line in sys.stdin:
        ((verb, argument),) = json_format.loads(line).items()
        answer: Any = None
        if verb == "make":
            shape, dtype = argument
            x, target = logits(tuple(shape), dtype)
            out = np.zeros_like(x)
        elif verb == "time":
            mode, repeats = argument
            call = calls(x, target, out)[mode]
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            answer = (time.perf_counter() - started) / repeats
        elif verb == "memory":
            import fastloss

            shape, dtype, mode = argument
            function = (
                fastloss.cross_entropy
                if mode == "forward"
                else fastloss.cross_entropy_value_and_grad
            )
            function(*logits((64, shape[1]), dtype))  # loads whatever the first call loads
            x, target = logits(tuple(shape), dtype)
            before = _peak(reset=True)
            function(x, target)
            answer = _peak() - before
        print(json_format.dumps(answer), flush=True)


def _peak(reset: bool = False) -> int:
    """The most bytes that this process has held, on Linux since the last reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found.group(1)) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def started(level: str | None = None) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A worker at an instruction-set level; the context is a function that asks it."""
    environment = dict(os.environ)
    if level is not None:
        environment["FASTLOSS_ISA"] = level
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(request: dict[str, Any]) -> Any:
        requests.write(json_format.dumps(request) + "\n")
        requests.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the worker{f' at {level}' if level else ''} ended early")
        return json_format.loads(line)

    try:
        yield ask
    finally:
        requests.close()
        process.wait()


def floor(shape: Shape, rounds: int, budget: float, advance: Advance) -> list[Row]:
    """Copy, read, forward and value_and_grad of the same logits, in the same rounds.

    The read is the faster of NumPy's sum and maximum.
    """
    import numpy as np

    x, target = logits(shape)
    out = np.zeros_like(x)
    timings = measure(
        {
            "copy": lambda: np.copyto(out, x),
            "sum": lambda: x.sum(),
            "max": lambda: x.max(),
            **calls(x, target, out),
        },
        rounds=rounds,
        budget=budget,
        advance=advance,
    )
    timings["read"] = min((timings[name] for name in READS), key=lambda timing: timing.median)
    moved = {"copy": 2, "value_and_grad": 2}
    return [
        {"what": what, "shape": list(shape), "bytes": moved.get(what, 1) * x.nbytes, "timing": took}
        for what, took in timings.items()
    ]


def sweep(
    shapes: Sequence[Shape],
    rounds: int,
    budget: float,
    advance: Advance,
    *,
    together: bool = False,
) -> list[Row]:
    """Both calls over shapes; a shape that doesn't fit into memory is left out, with a line.

    With ``together`` all shapes are timed in the same rounds, else each by itself: inputs of
    10^9 numbers can't lie side by side.
    """
    import numpy as np

    rows = []
    for batch in [list(shapes)] if together else [[shape] for shape in shapes]:
        part = len(batch) / len(shapes)
        if 2 * 4 * sum(int(np.prod(shape)) for shape in batch) * 1.15 > available_memory():
            names = ", ".join(size_name(shape) for shape in batch)
            console.print(f"[yellow]left out {names}:[/] not enough memory")
            advance(part)
            continue
        named: dict[tuple[Shape, str], Callable[[], object]] = {}
        for shape in batch:
            x, target = logits(shape)
            for mode, call in calls(x, target, np.zeros_like(x)).items():
                named[shape, mode] = call
        timings = measure(
            {f"{size_name(shape)} {mode}": call for (shape, mode), call in named.items()},
            rounds=rounds,
            budget=budget * len(batch),
            advance=lambda share, part=part: advance(share * part),
        )
        rows += [
            {
                "elements": int(np.prod(shape)),
                "classes": shape[1],
                "shape": list(shape),
                "mode": mode,
                "timing": timings[f"{size_name(shape)} {mode}"],
            }
            for shape, mode in named
        ]
    return rows


def threads_section(
    most: int, shapes: Sequence[Shape], rounds: int, budget: float, advance: Advance
) -> list[Row]:
    """Both calls with 1, 2, 4 … threads, the numbers of threads interleaved."""
    import numpy as np

    import fastloss

    counts = [count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count < most] + [most]

    rows = []
    for shape in shapes:
        x, target = logits(shape)
        both = calls(x, target, np.zeros_like(x))

        def start_threads(name: str, both: dict[str, Callable[[], object]] = both) -> None:
            # OpenMP makes and ends threads when their number changes: not in the timed call.
            mode, count = name.split()
            fastloss.set_num_threads(int(count))
            both[mode]()

        timings = measure(
            {f"{mode} {count}": call for mode, call in both.items() for count in counts},
            rounds=rounds,
            budget=budget,
            before=start_threads,
            advance=lambda share: advance(share / len(shapes)),
        )
        for name, timing in timings.items():
            mode, count = name.split()
            rows.append(
                {
                    "threads": int(count),
                    "shape": list(shape),
                    "elements": x.size,
                    "mode": mode,
                    "timing": timing,
                }
            )
    return rows


def dtypes_section(shape: Shape, rounds: int, budget: float, advance: Advance) -> list[Row]:
    """Both calls on the same numbers of the four types, interleaved."""
    import numpy as np

    named: dict[str, Callable[[], object]] = {}
    size = int(np.prod(shape))
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        try:
            x, target = logits(shape, dtype)
            both = calls(x, target, np.zeros_like(x))
            both["forward"]()
        except (ImportError, TypeError) as error:
            console.print(f"[yellow]left out {dtype}:[/] {error}")
            continue
        named |= {f"{mode} {dtype}": call for mode, call in both.items()}
    timings = measure(named, rounds=rounds, budget=budget, advance=advance)
    rows = []
    for name, timing in timings.items():
        mode, dtype = name.split()
        rows.append(
            {
                "dtype": dtype,
                "shape": list(shape),
                "elements": size,
                "mode": mode,
                "timing": timing,
            }
        )
    return rows


def levels_section(
    shapes: Sequence[Shape], rounds: int, budget: float, advance: Advance
) -> list[Row]:
    """Both calls at every level that this processor has: a process each, asked in turn."""
    rows = []
    for shape in shapes:
        rows += _levels_at(shape, rounds, budget, lambda share: advance(share / len(shapes)))
    return rows


def _levels_at(shape: Shape, rounds: int, budget: float, advance: Advance) -> list[Row]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        asks = {}
        for level in LEVELS:
            ask = stack.enter_context(started(level))
            try:
                ask({"make": [shape, "float32"]})
                ask({"time": ["forward", 1]})
            except RuntimeError:
                console.print(f"[yellow]left out {level}:[/] not on this processor or not built")
                continue
            asks[level] = ask
        samples: dict[tuple[str, str], list[float]] = {}
        repeats = {}
        for level, ask in asks.items():
            for mode in MODES:
                ask({"time": [mode, 1]})
                once = ask({"time": [mode, 1]})
                repeats[level, mode] = max(1, round(0.02 / once))
                samples[level, mode] = []
        deadline = time.perf_counter() + budget
        for number in range(rounds):
            if number < 3 or time.perf_counter() < deadline:
                for (level, mode), taken in samples.items():
                    taken.append(asks[level]({"time": [mode, repeats[level, mode]]}))
            advance(1 / rounds)
    elements = 1
    for extent in shape:
        elements *= extent
    return [
        {
            "level": level,
            "shape": list(shape),
            "elements": elements,
            "mode": mode,
            "timing": summarise(taken, repeats[level, mode]),
        }
        for (level, mode), taken in samples.items()
    ]


def memory_section(shapes: dict[str, Shape], advance: Advance) -> list[Row]:
    """By how much one call enlarges a process, for each type; value_and_grad makes its gradient."""
    rows = []
    for dtype, shape in shapes.items():
        size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
        nbytes = size * shape[0] * shape[1]
        for mode in MODES:
            advance(1 / (len(shapes) * len(MODES)))
            if 2.3 * nbytes > available_memory():
                console.print(f"[yellow]left out memory of {dtype}:[/] not enough of it")
                continue
            with started() as ask:
                try:
                    growth = ask({"memory": [shape, dtype, mode]})
                except RuntimeError:
                    console.print(f"[yellow]left out memory of {dtype}:[/] the call failed")
                    continue
            rows.append(
                {
                    "mode": mode,
                    "dtype": dtype,
                    "shape": list(shape),
                    "logits_bytes": nbytes,
                    "gradient_bytes": nbytes if mode == "value_and_grad" else 0,
                    "growth_bytes": growth,
                }
            )
    return rows


def sections(document: dict[str, Any]) -> dict[str, list[Row]]:
    """The measured sections of a document by name."""
    return {name: rows for name, rows in document.items() if isinstance(rows, list)}


def _cost(row: Row) -> str:
    return f"{median(row) / row['elements'] * 1e9:.3f}"


def _pivot(rows: list[Row], key: Callable[[Row], str], head: str) -> tuple[list[str], list[Any]]:
    """ns per element, a line for each ``key`` and a column for each mode."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(key(row), {})[row["mode"]] = _cost(row)
    body = [[name, *(found.get(mode, "–") for mode in MODES)] for name, found in lines.items()]
    return [head, *(f"{mode}, ns/element" for mode in MODES)], body


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of every section that was measured."""
    answer = []
    for shape in dict.fromkeys(tuple(row["shape"]) for row in document.get("floor", [])):
        rows = [row for row in document["floor"] if tuple(row["shape"]) == shape]
        took = {row["what"]: row for row in rows}
        body = []
        for row in rows:
            base = took.get({"forward": "read", "value_and_grad": "copy"}.get(row["what"], ""))
            body.append(
                [
                    row["what"],
                    seconds(median(row)),
                    f"{row['bytes'] / median(row) / 1e9:.1f}",
                    f"{median(base) / median(row):.0%} of the {base['what']}" if base else "",
                ]
            )
        title = f"{size_name(shape)} float32 beside a copy and a read of it"
        answer.append((title, ["call", "median", "GB/s", "speed"], body))
    for name, title, head, key in (
        ("growth", "Number of elements, 1,000 classes", "elements", lambda r: f"{r['elements']:,}"),
        ("classes", "Number of classes, equal elements", "input", lambda r: size_name(r["shape"])),
        (
            "threads",
            "Number of threads",
            "input, threads",
            lambda r: f"{size_name(r['shape'])}, {r['threads']}",
        ),
        (
            "dtypes",
            "Types",
            "input, type",
            lambda r: f"{size_name(r['shape'])}, {r['dtype']}",
        ),
        (
            "levels",
            "Instruction sets",
            "input, level",
            lambda r: f"{size_name(r['shape'])}, {r['level']}",
        ),
    ):
        if rows := document.get(name):
            heads, body = _pivot(rows, key, head)
            answer.append((title, heads, body))
    if rows := document.get("memory"):
        body = [
            [
                f"{row['mode']}, {row['dtype']}",
                f"{row['logits_bytes'] / 2**20:,.0f}",
                f"{row['gradient_bytes'] / 2**20:,.0f}",
                f"{row['growth_bytes'] / 2**20:,.1f}",
            ]
            for row in rows
        ]
        heads = ["call", "logits, MiB", "gradient, MiB", "process grew by, MiB"]
        answer.append(("Memory", heads, body))
    return answer


def show(document: dict[str, Any]) -> None:
    """Print the tables and the limits that they decide."""
    for title, heads, body in tables(document):
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number == 0 else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)
    table = Table(title="limits", title_justify="left", caption=describe(document["machine"]))
    for head in ("limit", "asked", "measured", "where", "met"):
        table.add_column(head)
    for row in roofline_limits(document):
        table.add_row(
            row.limit,
            row.asked,
            row.measured,
            row.where,
            "[green]yes[/]" if row.met else "[red]no[/]",
        )
    console.print(table)


def plot(document: dict[str, Any], path: Path) -> None:
    """Six panels: share of the floor, then ns per element over everything that was varied.

    The panel of a section that was not measured stays empty.
    """
    plt = pyplot()
    colours = {"forward": MUTED, "value_and_grad": ACCENT}
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.8))
    (floor_axis, growth, classes), (threads, dtypes, levels) = axes

    sections = ("floor", "growth", "classes", "threads", "dtypes", "levels")
    for axis, section in zip(axes.flat, sections, strict=True):
        axis.set_visible(section in document)
    first = [
        row for row in document.get("floor", []) if row["shape"] == document["floor"][0]["shape"]
    ]
    rows = {row["what"]: row for row in first}
    names = [name for name in ("copy", "value_and_grad", "read", "forward") if name in rows]
    for height, name in enumerate(reversed(names)):
        rate = rows[name]["bytes"] / median(rows[name]) / 1e9
        floor_axis.barh(
            height, rate, color=colours.get(name, INK), alpha=1 if name in MODES else 0.3
        )
        floor_axis.text(rate, height, f" {rate:.0f}", va="center")
    floor_axis.set_yticks(
        range(len(names)), [name.replace("_and_", "\nand ") for name in reversed(names)]
    )
    if names:
        where = size_name(rows[names[0]]["shape"])
        floor_axis.set_title(f"GB/s at {where}", loc="left")
    floor_axis.set_xticks([])

    for axis, section, key, label in (
        (growth, "growth", "elements", "elements (1,000 classes)"),
        (classes, "classes", "classes", "classes (equal elements)"),
    ):
        most = 1.0
        for mode in MODES:
            points = [row for row in document.get(section, []) if row["mode"] == mode]
            if points:
                xs = [row[key] for row in points]
                ys = [median(row) / row["elements"] * 1e9 for row in points]
                axis.plot(xs, ys, "o-", color=colours[mode], linewidth=2, markersize=4)
                most = max(ys)
            side = 0.03 if section == "growth" else 0.97
            axis.text(
                side,
                0.97 if mode == "value_and_grad" else 0.88,
                mode.replace("_and_", " and "),
                transform=axis.transAxes,
                ha="left" if side < 0.5 else "right",
                va="top",
                color=colours[mode],
                weight="bold",
            )
        axis.set_xscale("log")
        axis.set_ylim(0, 1.3 * most)
        axis.set_xlabel(label)
        axis.set_title(f"ns per element over {key}", loc="left")

    for axis, section, key, title in (
        (threads, "threads", "threads", "threads"),
        (dtypes, "dtypes", "dtype", "types"),
        (levels, "levels", "level", "instruction sets"),
    ):
        bars = [row for row in document.get(section, []) if row["mode"] == "value_and_grad"]
        shapes = {tuple(row["shape"]) for row in bars}
        names = [
            (f"{size_name(row['shape'])},  " if len(shapes) > 1 else "") + f"{row[key]}"
            for row in bars
        ]
        for height, row in enumerate(reversed(bars)):
            cost = median(row) / row["elements"] * 1e9
            axis.barh(height, cost, color=ACCENT)
            axis.text(cost, height, f" {cost:.2f}", va="center", fontsize=8)
        axis.set_yticks(
            range(len(bars)), list(reversed(names)), fontsize=9 if len(bars) < 9 else 7.5
        )
        axis.set_title(f"ns per element, {title}\nvalue and gradient", loc="left")
        axis.set_xticks([])
    figure.suptitle(
        "Cross-entropy against the memory's speed", x=0.01, ha="left", fontsize=14, weight="bold"
    )
    figure.text(0.01, 0.01, describe(document["machine"]), fontsize=8, alpha=0.75)
    figure.tight_layout(rect=(0, 0.025, 1, 0.98), h_pad=2)
    figure.savefig(path)
    plt.close(figure)
    console.print(f"wrote {path.name}")


def run(quick: bool, threads: int, rounds: int, budget: float, only: list[str]) -> dict[str, Any]:
    """Measure the sections; the one over threads last, since it needs all processors."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    pin(threads)
    import fastloss

    fastloss.set_num_threads(threads)
    per_size = 10**6 if quick else 10**7
    powers = range(5, 8 if quick else 10)
    grown = [(10**power // 1_000, 1_000) for power in powers]
    counts = [2, 3, 5, 10, 21, 50, 100, 200, 500, 1_000, 4_096, 10_000, 32_000, 100_000]
    by_class = [(max(per_size // count, 1), count) for count in counts]
    big = (1_024, 8_192) if quick else BIG
    floors = [big] if quick else [BIG, (65_536, 1_000), (1_024, 128_256)]
    by_level = (
        [(100_000, 10), (1_000, 1_000)]
        if quick
        else [(1_000_000, 10), (65_536, 128), (65_536, 1_000), (1_000, 1_000), BIG]
    )
    gigabyte = 2**27 if quick else 2**30
    halves = (gigabyte // 32_768, 32_768)
    most = max(len(available), 1)

    def all_threads(advance: Advance) -> list[Row]:
        if available:
            os.sched_setaffinity(0, available)
        shapes = [(65_536, 128), big]
        return threads_section(most, shapes, rounds, budget, advance)

    steps: dict[str, Callable[[Advance], list[Row]]] = {
        "floor": lambda advance: [
            row
            for shape in floors
            for row in floor(
                shape, max(rounds, 9), 4 * budget, lambda share: advance(share / len(floors))
            )
        ],
        "growth": lambda advance: sweep(grown, rounds, budget, advance),
        "classes": lambda advance: sweep(by_class, rounds, budget, advance, together=True),
        "dtypes": lambda advance: dtypes_section(big, rounds, 2 * budget, advance),
        "levels": lambda advance: levels_section(by_level, rounds, budget, advance),
        "memory": lambda advance: memory_section(
            {
                "float16": halves,
                "bfloat16": halves,
                "float32": (halves[0] // 2, halves[1]),
                "float64": (halves[0] // 4, halves[1]),
            },
            advance,
        ),
        "threads": all_threads,
    }
    found: dict[str, Any] = {}
    with progress_bar() as bar:
        chosen = [name for name in steps if not only or name in only]
        task = bar.add_task("", total=len(chosen))
        for name in chosen:
            bar.update(task, description=name)
            found[name] = steps[name](lambda share: bar.advance(task, share))
    return found


def main(
    quick: Annotated[bool, typer.Option(help="Small inputs, less than a minute.")] = False,
    threads: Annotated[int, typer.Option(help="Processors for all but the threads section.")] = 1,
    section: Annotated[
        list[str] | None,
        typer.Option(help="floor, growth, classes, dtypes, levels, memory, threads (may repeat)."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds at most (15; quick: 5).")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds a point at most (10; quick: 0.5).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="Write the chart to this PNG.")
    ] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show and draw this JSON file, measure nothing.")
    ] = None,
    as_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Measure fastloss's cross-entropy against the memory and over sizes, types and levels."""
    if as_worker:
        try:
            worker()
        except ImportError:  # a level that this processor lacks, which the parent says
            raise typer.Exit(1) from None
        return
    if load_from is not None:
        document = load(load_from)
    else:
        if keep:
            if quick:
                raise typer.BadParameter("--keep is for full sizes")
            json = own("roofline", partial=bool(section))
        rounds = rounds or (5 if quick else 15)
        budget = budget or (0.5 if quick else 10.0)
        found = run(quick, threads, rounds, budget, section or [])
        where = machine(threads)
        if keep and json is not None and json.exists():
            # Sections that were not measured now stay.
            found = {
                name: found.get(name, rows) for name, rows in sections(load(json)).items()
            } | found
        document = {"machine": where, **found}
        if json is not None:
            settings = {"quick": quick, "rounds": rounds, "budget_seconds": budget}
            save(json, "roofline", where, settings=settings, **found)
    show(document)
    if plot_to is not None:
        plot(document, plot_to)


if __name__ == "__main__":
    typer.run(main)
