"""What a call with a thread per processor costs when another process keeps one of them busy.

A call that gives each thread a fixed half of the work waits for the half on the busy processor.
This times calls with one and with two threads on two processors, first in quiet, then beside a
process that spins on the last of them, and prints how much slower the second thread makes a call.

1. ``busy``: the other process;
2. the calls and the table;
3. the command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from _common import (
    Timing,
    console,
    describe,
    load,
    machine,
    measure,
    own,
    pin,
    progress_bar,
    save,
    seconds,
    size_name,
)
from limits import BUSY

THREADS = 2
SHAPE = (65_536, 128)

SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy(processor: int) -> Iterator[None]:
    """Keep a processor busy with another process."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(processor)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def calls(shape: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """Forward and gradient with one and with two threads."""
    import numpy as np

    import fastloss

    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    target = rng.integers(0, shape[1], shape[0])
    out = np.zeros_like(x)

    def with_threads(number: int, call: Callable[[], object]) -> object:
        fastloss.set_num_threads(number)
        return call()

    both = partial(fastloss.cross_entropy_value_and_grad, x, target, out=out)
    forward = partial(fastloss.cross_entropy, x, target)
    return {
        f"{name}, {number}": partial(with_threads, number, call)
        for name, call in (("forward", forward), ("value_and_grad", both))
        for number in (1, THREADS)
    }


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    rows = {
        (row["other"], row["call"]): (_of(row["timing"], "median"), _of(row["timing"], "q3"))
        for row in document["results"]
    }
    shape = document["settings"]["shape"]
    table = Table(
        title=f"cross-entropy of {size_name(shape)}: two threads beside a busy process",
        title_justify="left",
        caption=describe(document["machine"]),
    )
    for head in (
        "call", "other processor", "1 thread: median", "third quartile",
        f"{THREADS} threads: median", "third quartile", "ratio of medians",
    ):  # fmt: skip
        table.add_column(head, justify="left" if head == "call" else "right")
    for name in ("forward", "value_and_grad"):
        for state in ("quiet", "busy"):
            one, two = rows[state, f"{name}, 1"], rows[state, f"{name}, {THREADS}"]
            limit = "" if state == "quiet" else f" (limit {BUSY:.0f})"
            ratio = f"{two[0] / one[0]:.2f}{limit}"
            table.add_row(name, state, *map(seconds, (*one, *two)), ratio)
    console.print(table)


def _of(timing: Timing | dict[str, Any], name: str) -> float:
    return float(timing[name] if isinstance(timing, dict) else getattr(timing, name))


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rounds, some seconds.")] = False,
    rounds: Annotated[int | None, typer.Option(help="Rounds (101; quick: 15).")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show this JSON file, measure nothing.")
    ] = None,
) -> None:
    """Time calls on two processors of which another process holds one."""
    if load_from is not None:
        show(load(load_from))
        return
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this system has no processor affinity")
    if keep:
        if quick:
            raise typer.BadParameter("--keep is for full runs")
        json = own("busy-core", partial=False)
    rounds = rounds or (15 if quick else 101)
    pin(THREADS)
    results: list[dict[str, Any]] = []
    competitors = calls(SHAPE)
    with progress_bar() as bar:
        task = bar.add_task("quiet", total=2)

        def phase(state: str) -> None:
            bar.update(task, description=state)
            timings = measure(
                competitors,
                rounds=rounds,
                budget=60,
                advance=lambda share: bar.advance(task, share),
            )
            results.extend(
                {"other": state, "call": name, "timing": timing} for name, timing in timings.items()
            )

        phase("quiet")
        with busy(max(os.sched_getaffinity(0))):
            phase("busy")
    where = machine(THREADS)
    settings = {"quick": quick, "rounds": rounds, "shape": list(SHAPE)}
    if json is not None:
        save(json, "busy_core", where, settings=settings, results=results)
    show({"machine": where, "settings": settings, "results": results})


if __name__ == "__main__":
    typer.run(main)
