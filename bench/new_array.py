"""What a gradient without ``out=`` costs: fresh memory, which the system zeroes page by page.

For each input three calls in the same rounds: value_and_grad into an array that is kept, the same
without ``out=``, and a new array of that size whose pages are touched, once each. The limit of
``limits.py`` is on the second over the sum of the others; ``compare.py`` holds every loss to it.

1. the inputs, and ``run``, which measures them;
2. the table and the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from _common import (
    console,
    describe,
    load,
    machine,
    measure,
    median,
    own,
    pin,
    progress_bar,
    save,
    seconds,
    size_name,
)
from limits import NEW_ARRAY
from problems import own_calls, problem

CASES = (
    ("cross_entropy", (8_192, 8_192)),
    ("cross_entropy", (65_536, 1_000)),
    ("cross_entropy", (65_536, 128)),
    ("cross_entropy", (1_000_000, 10)),
    ("cross_entropy", (8, 21, 512, 512)),
    ("binary_cross_entropy_with_logits", (10_000_000,)),
    # Below 4 MiB the C library keeps memory that is given back, and gives it out again.
    ("cross_entropy", (1_000, 500)),
)
CALLS = ("with out=", "without out=", "fresh pages")


def touched(like: np.ndarray) -> np.ndarray:
    """A new array with every page written once: what a gradient costs before it is computed."""
    made = np.empty_like(like)
    made.reshape(-1).view(np.uint8)[::4096] = 0
    return made


def run(rounds: int, budget: float) -> list[dict[str, Any]]:
    """Measure every case; a row for each case and call."""
    import fastloss

    fastloss.set_num_threads(1)
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("", total=len(CASES))
        for loss, shape in CASES:
            bar.update(task, description=f"{loss} {size_name(shape)}")
            case = problem(loss, shape)
            out = np.zeros_like(case.x)
            out.fill(0)  # faults the pages in
            calls: dict[str, Callable[[], object]] = {
                "with out=": own_calls(fastloss, case, out)[1] or (lambda: None),
                "without out=": own_calls(fastloss, case)[1] or (lambda: None),
                "fresh pages": partial(touched, case.x),
            }
            timings = measure(calls, rounds=rounds, budget=budget)
            rows += [
                {"loss": loss, "shape": list(shape), "call": name, "timing": timing}
                for name, timing in timings.items()
            ]
            bar.advance(task)
    return rows


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows: the three times, what ``out=`` saves, and what the limit is on."""
    found = {
        (row["loss"], tuple(row["shape"]), row["call"]): median(row) for row in document["results"]
    }
    heads = ["loss", "input", *CALLS, "out= saves", "without / (with + fresh)"]
    body = []
    for loss, shape in dict.fromkeys(key[:2] for key in found):
        into, new, fresh = (found[loss, shape, call] for call in CALLS)
        body.append(
            [
                loss,
                size_name(shape),
                *map(seconds, (into, new, fresh)),
                f"{1 - into / new:.0%}",
                f"{new / (into + fresh):.2f}",
            ]
        )
    return [(f"value_and_grad without out= (limit of the last column: {NEW_ARRAY})", heads, body)]


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    for title, heads, body in tables(document):
        table = Table(title=title, title_justify="left", caption=describe(document["machine"]))
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number < 2 else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rounds, some seconds.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show this JSON file, measure nothing.")
    ] = None,
) -> None:
    """Time gradients into a kept array and into a new one, on one core."""
    if load_from is not None:
        show(load(load_from))
        return
    if keep:
        if quick:
            raise typer.BadParameter("--keep is for full runs")
        json = own("new-array", partial=False)
    pin(1)
    rows = run(5 if quick else 21, 2.0 if quick else 10.0)
    where = machine(1)
    if json is not None:
        save(json, "new_array", where, settings={"quick": quick}, results=rows)
    show({"machine": where, "results": rows})


if __name__ == "__main__":
    typer.run(main)
