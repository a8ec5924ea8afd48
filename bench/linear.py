"""What the cross-entropy of a linear layer costs: time and memory, beside the ways by hand.

``linear_cross_entropy_value_and_grad`` stands beside the three lines around our own loss (a
product, ``cross_entropy_value_and_grad`` in place, two products) and, where it is installed,
PyTorch's ``linear_cross_entropy`` with ``backward``. Half-precision weights are converted as a
whole in the three lines. Times are of interleaved rounds; memory is what a process of its own
grows by at most, its results not counted.

1. the calls, and ``run``, which times them and starts the processes that measure memory;
2. the table and the command line.
"""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from collections.abc import Callable, Sequence
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
    merge,
    own,
    pin,
    progress_bar,
    save,
    seconds,
    size_name,
    times,
)
from problems import Problem, problem

# Samples, features, classes.
SHAPES = ((512, 1_024, 64_000), (4_096, 256, 64_000), (2_048, 2_048, 8_000))
QUICK = ((256, 128, 8_000),)
DTYPES = ("float32", "float16", "bfloat16")
TITLES = {"fastloss": "fastloss", "three-lines": "three lines", "torch": "PyTorch"}
LEAST_MEMORY = 64 << 20


def calls(case: Problem, threads: int) -> dict[str, Callable[[], Any]]:
    """The ways that are installed; each returns the loss, and the gradients of input and weight."""
    import fastloss

    fastloss.set_num_threads(threads)
    x, layer, target = case.arguments

    def ours() -> Any:
        loss, grads = fastloss.linear_cross_entropy_value_and_grad(x, layer, target)
        return loss, grads.input, grads.linear_weight

    def three_lines() -> Any:
        wide_x = x.astype(np.float32, copy=False)
        wide = layer.astype(np.float32, copy=False)
        logits = wide_x @ wide.T
        loss, grad = fastloss.cross_entropy_value_and_grad(logits, target, out=logits)
        grad_w = grad.T @ wide_x
        return loss, (grad @ wide).astype(x.dtype, copy=False), grad_w.astype(x.dtype, copy=False)

    found: dict[str, Callable[[], Any]] = {"fastloss": ours, "three-lines": three_lines}
    try:
        import torch
    except ImportError:
        return found
    fused = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if fused is None:
        return found
    torch.set_num_threads(threads)

    def tensor(array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    leaves = [tensor(x).requires_grad_(), tensor(layer).requires_grad_()]
    goal = torch.from_numpy(target)

    def theirs() -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss = fused(*leaves, goal)
        loss.backward()
        return loss.detach(), *(leaf.grad for leaf in leaves)

    found["torch"] = theirs
    return found


def _memory(field: str) -> int:
    """A field of the process's status in bytes."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def grown(shape: tuple[int, ...], dtype: str, peer: str, threads: int) -> int:
    """Bytes that this process grows by at most in one call, beside the results."""
    # Whatever a library sets up at its first call is not the call's.
    calls(problem("linear_cross_entropy", (8, shape[1], 16), dtype), threads)[peer]()
    call = calls(problem("linear_cross_entropy", shape, dtype), threads)[peer]
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    answer = call()
    results = sum(getattr(part, "nbytes", 0) for part in answer[1:])
    return max(0, _memory("VmHWM") - before - results)


def run(
    shapes: tuple[tuple[int, ...], ...],
    dtypes: Sequence[str],
    threads: int,
    rounds: int,
    budget: float,
) -> list[dict[str, Any]]:
    """Measure; a row for each shape, type and way."""
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("", total=len(shapes) * len(dtypes))
        for shape in shapes:
            for dtype in dtypes:
                bar.update(task, description=f"{size_name(shape)} {dtype}")
                try:
                    case = problem("linear_cross_entropy", shape, dtype)
                except ImportError:  # no ml_dtypes: no bfloat16
                    bar.advance(task)
                    continue
                timings = measure(calls(case, threads), rounds=rounds, budget=budget)
                for peer, timing in timings.items():
                    command = [sys.executable, __file__, "--grown"]
                    command.append(jsonlib.dumps([shape, dtype, peer, threads]))
                    told = subprocess.run(command, capture_output=True, text=True)
                    memory = int(told.stdout) if told.returncode == 0 else None
                    rows.append(
                        {
                            "shape": list(shape),
                            "dtype": dtype,
                            "peer": peer,
                            "memory_bytes": memory,
                            "timing": timing,
                        }
                    )
                bar.advance(task)
    return rows


def allowed(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that a call may take beside its results."""
    weights = shape[1] * shape[2] * (4 if dtype == "float32" else 2)
    return max(LEAST_MEMORY, weights // 2)


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows: times over fastloss's, and memory."""
    rows = document["results"]
    heads = ["samples × features × classes", "type"]
    present = [peer for peer in TITLES if any(row["peer"] == peer for row in rows)]
    heads += [TITLES["fastloss"], *(f"{TITLES[p]} / fastloss" for p in present[1:])]
    heads += ["memory allowed", *(f"memory, {TITLES[p]}" for p in present)]
    body = []
    for shape, dtype in dict.fromkeys((tuple(row["shape"]), row["dtype"]) for row in rows):
        here = {
            row["peer"]: row
            for row in rows
            if (tuple(row["shape"]), row["dtype"]) == (shape, dtype)
        }
        mine = median(here["fastloss"])
        line = [size_name(shape), dtype, seconds(mine)]
        line += [times(median(here[p]) / mine) if p in here else "–" for p in present[1:]]
        line.append(f"{allowed(shape, dtype) / 2**20:.0f} MiB")
        for peer in present:
            memory = here.get(peer, {}).get("memory_bytes")
            line.append("–" if memory is None else f"{memory / 2**20:.0f} MiB")
        body.append(line)
    count = document["machine"]["threads"]
    return [(f"value_and_grad, {count} thread{'s' if count > 1 else ''}", heads, body)]


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
    quick: Annotated[bool, typer.Option(help="A small layer, some seconds.")] = False,
    threads: Annotated[int, typer.Option(help="Processors and threads for everybody.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="This shape alone, as 512x1024x64000 (may repeat).")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="This type alone, as float32 (may repeat).")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds at most.")] = 7,
    budget: Annotated[float, typer.Option(help="Seconds a row at most.")] = 60.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show this JSON file, measure nothing.")
    ] = None,
    grown_by: Annotated[str | None, typer.Option("--grown", hidden=True)] = None,
) -> None:
    """Time linear_cross_entropy, and say what memory it takes."""
    if load_from is not None:
        show(load(load_from))
        return
    if grown_by is not None:
        shape, kind, peer, count = jsonlib.loads(grown_by)
        pin(count)
        print(grown(tuple(shape), kind, peer, count))
        return
    shapes = QUICK if quick else SHAPES
    if only:
        shapes = tuple(tuple(int(n) for n in text.split("x")) for text in only)
    for name in dtype or ():
        if name not in DTYPES:
            raise typer.BadParameter(f"{name!r}: choose from {', '.join(DTYPES)}")
    if keep:
        if quick:
            raise typer.BadParameter("--keep is for full runs")
        name = f"linear-{threads}-thread{'s' if threads > 1 else ''}"
        json = own(name, partial=bool(only or dtype))
    pin(threads)
    rows = run(shapes, dtype or DTYPES, threads, rounds, budget)
    where = machine(threads)
    if keep:
        assert json is not None
        rows = merge(json, rows, ("shape", "dtype"))
    if json is not None:
        save(json, "linear", where, settings={"rounds": rounds}, results=rows)
    show({"machine": where, "results": rows})


if __name__ == "__main__":
    typer.run(main)
