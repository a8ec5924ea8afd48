"""Count the instructions of a few fixed calls, to notice a regression without timing.

valgrind's callgrind counts the same number for the same binary whatever else the machine does. The
calls run in one process under it: a function of the C library that nothing else calls marks where
each stretch of calls begins and ends, and callgrind writes its counts out there. valgrind has no
AVX-512, so the baseline and AVX2 levels are counted; the AVX-512 level is the same source.

``python bench/instructions.py`` compares with the instructions.json of this processor and fails
where a count has grown by more than a tolerance; ``--update`` writes that file. Counts depend on
the compiler and on the versions of Python and NumPy: the file names them, and a comparison across
others is a hint.

1. the calls, and the process that makes them (``--worker``);
2. the counting and reading of callgrind's files;
3. the comparison and the command line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from _common import console, load, machine, processor_key, results, save
from limits import COUNT_GROWTH

# Counts are those of the code that is chosen on a processor; each has a file of its own.
FILE = results(processor_key()) / "instructions.json"
LEVELS = ("avx2", "baseline")
MARK = "ctermid"  # what os.ctermid calls, and nobody else
# Few calls of the large inputs and more of the small ones, where the count of one is less steady.
CASES: dict[str, tuple[str, tuple[int, ...], str, int]] = {
    "cross_entropy 32 × 10": ("cross_entropy", (32, 10), "float32", 20),
    "cross_entropy 10,000 × 10": ("cross_entropy", (10_000, 10), "float32", 2),
    "cross_entropy 256 × 1,000": ("cross_entropy", (256, 1_000), "float32", 2),
    "cross_entropy 8 × 32,000": ("cross_entropy", (8, 32_000), "float32", 2),
    "cross_entropy 256 × 1,000 float64": ("cross_entropy", (256, 1_000), "float64", 2),
    "cross_entropy 256 × 1,000 float16": ("cross_entropy", (256, 1_000), "float16", 2),
    "cross_entropy 2 × 21 × 64 × 64": ("cross_entropy", (2, 21, 64, 64), "float32", 2),
    "cross_entropy_probabilities 256 × 1,000": (
        "cross_entropy_probabilities",
        (256, 1_000),
        "float32",
        2,
    ),
    "BCE with logits 100": ("binary_cross_entropy_with_logits", (100,), "float32", 20),
    "BCE with logits 100,000": ("binary_cross_entropy_with_logits", (100_000,), "float32", 2),
    "BCE 100,000": ("binary_cross_entropy", (100_000,), "float32", 2),
    "kl_div 256 × 1,000": ("kl_div", (256, 1_000), "float32", 2),
    "sigmoid_focal_loss 100,000": ("sigmoid_focal_loss", (100_000,), "float32", 2),
}
MODES = ("forward", "value_and_grad")


def worker() -> None:
    """Make every call between marks; a case that fastloss lacks leaves an empty stretch."""
    import gc

    from peers import Fastloss
    from problems import problem

    mark: Callable[[], str] = getattr(os, MARK)
    peer = Fastloss()
    peer.load()
    nothing = (lambda: None, lambda: None)
    prepared = []
    for loss, shape, dtype, repeats in CASES.values():
        try:
            found = peer.calls(problem(loss, shape, dtype))
            pair = (found[0], found[1] or nothing[1]) if found else nothing
            for call in pair:
                call()  # pays for what only a first call does
        except (TypeError, ValueError):
            pair = nothing
        prepared.append((pair, repeats))
    gc.disable()
    mark()
    for pair, repeats in prepared:
        for call in pair:
            for _ in range(repeats):
                call()
            mark()


def count(level: str) -> dict[str, int]:
    """Instructions per call of each case and mode at a level; a missing one is left out."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "FASTLOSS_ISA": level,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--dump-before={MARK}",
            f"--callgrind-out-file={folder}/out",
            sys.executable,
            __file__,
            "--worker",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the counted process failed:\n{done.stderr[-2000:]}")
        # out.1 ends where the first mark begins; every later file is one stretch of calls.
        files = sorted(
            (path for path in Path(folder).glob("out.*") if path.suffix[1:].isdigit()),
            key=lambda path: int(path.suffix[1:]),
        )
        totals = [_total(path) for path in files[1:]]
    names = [
        (f"{name}, {mode}", repeats) for name, (_, _, _, repeats) in CASES.items() for mode in MODES
    ]
    if len(totals) < len(names):
        raise SystemExit(f"callgrind wrote {len(totals)} stretches, expected {len(names)}")
    counted = {
        name: round(total / repeats) for (name, repeats), total in zip(names, totals, strict=False)
    }
    # An empty stretch holds the mark and a loop of nothing.
    return {name: number for name, number in counted.items() if number > 2_000}


def _total(path: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Instructions per call, a column for each level."""
    counts = document["results"]
    names = list(dict.fromkeys(name for found in counts.values() for name in found))
    body = [
        [name, *(f"{counts[level][name]:,}" if name in counts[level] else "–" for level in counts)]
        for name in names
    ]
    return [("Instructions per call (callgrind)", ["call", *counts], body)]


def main(
    update: Annotated[bool, typer.Option(help="Write this processor's file.")] = False,
    tolerance: Annotated[float, typer.Option(help="Growth that is let pass.")] = COUNT_GROWTH,
    as_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Count instructions per call and compare them with the committed counts."""
    if as_worker:
        worker()
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed (a package of that name on most systems)")
    counts = {}
    for level in LEVELS:
        with console.status(f"counting at {level}, about a minute"):
            counts[level] = count(level)
    if update:
        where = machine(1)
        where["level"] = ", ".join(LEVELS)
        save(FILE, "instructions", where, results=counts)
    before = load(FILE)["results"] if FILE.exists() else {}
    table = Table(title="instructions per call", title_justify="left")
    for number, head in enumerate(("level", "call", "now", "committed", "change")):
        table.add_column(head, justify="left" if number < 2 else "right")
    grown = []
    for level, found in counts.items():
        for name, number in found.items():
            old = before.get(level, {}).get(name)
            change = number / old - 1 if old else 0.0
            if change > tolerance:
                grown.append(f"{name} at {level}: {change:+.1%}")
            table.add_row(level, name, f"{number:,}", f"{old:,}" if old else "–", f"{change:+.1%}")
    console.print(table)
    lost = [
        f"{name} at {level}: not counted any more"
        for level, found in before.items()
        for name in found
        if name not in counts.get(level, {})
    ]
    for line in grown + lost:
        console.print(f"[red]{line}[/]")
    if grown or lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
