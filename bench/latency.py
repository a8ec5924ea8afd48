"""What a small call costs, and which layer of fastloss it goes to.

Two calls whose arithmetic is next to nothing, cross-entropy of 32 × 10 and BCE with logits of 100
elements, beside NumPy's primitives and the other libraries, and split into layers: argument
checks, thread count, kernel, reduction (or these at once), and the rest (the public function
itself). A layer is timed alone with exactly the arguments that one public call hands to it:
``recorded`` listens in.

1. ``recorded`` and the layers;
2. the groups of calls;
3. the tables and the command line.
"""

from __future__ import annotations

import importlib
import pkgutil
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
    median,
    own,
    pin,
    progress_bar,
    save,
    seconds,
    summarise,
)
from limits import latency_limits

Call = Callable[[], object]
LAYERS = ("argument checks", "thread count", "kernel", "reduction")
#: Checks, kernel and reduction of a small call in one function of a kernel: such a call has no
#: other layer.
AT_ONCE = "checks, kernel and reduction at once"
CASES = {
    "cross-entropy 32 × 10": ("cross_entropy", (32, 10)),
    "BCE with logits 100": ("binary_cross_entropy_with_logits", (100,)),
}


def _layer_of(function: Any) -> str | None:
    """The layer that a function of fastloss belongs to, by the module that defines it."""
    home = getattr(function, "__module__", None) or ""
    if home.endswith("_arrays"):
        return "argument checks"
    if home.endswith("_threads"):
        return "thread count"
    if home.endswith("_reduction"):
        return "reduction"
    return None


@contextmanager
def _listening(note: Callable[[str, Any, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Put a listener before every function that a loss calls in another layer."""
    from fastloss import _arrays, _kernels, _threads, losses

    kernels = [getattr(_kernels, name) for name in ("classes", "elements")]
    families = [
        importlib.import_module(f"{losses.__name__}.{found.name}")
        for found in pkgutil.iter_modules(losses.__path__)
        if found.name != "_reduction"
    ]
    depth = 0

    def spy(layer: str, function: Any) -> Any:
        def listener(*args: Any, **keywords: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                return function(*args, **keywords)
            finally:
                depth -= 1
                if depth == 0:
                    note(layer, function, args, keywords)

        return listener

    undo: list[tuple[dict[Any, Any], Any, Any]] = []

    def replace(namespace: dict[Any, Any], key: Any, layer: str) -> None:
        undo.append((namespace, key, namespace[key]))
        namespace[key] = spy(layer, namespace[key])

    try:
        for module in kernels:  # looked up in the module at each call
            replace(vars(module), "evaluate", "kernel")
            if hasattr(module, "usual"):
                replace(vars(module), "usual", AT_ONCE)
        for module in (_arrays, _threads, *families):
            for name, value in list(vars(module).items()):
                if isinstance(value, type) or name.startswith("__"):
                    continue
                if isinstance(value, dict) and value and all(map(callable, value.values())):
                    if module in families:  # specialisations of a kernel by dtype
                        for key in value:
                            replace(value, key, "kernel")
                elif callable(value) and (layer := _layer_of(value)):
                    replace(vars(module), name, layer)
        yield
    finally:
        for namespace, key, value in reversed(undo):
            namespace[key] = value


def recorded(call: Call) -> dict[str, Call]:
    """Each layer's part of ``call``, as a function that does that part alone."""
    parts: dict[str, list[Call]] = {layer: [] for layer in (*LAYERS, AT_ONCE)}

    def note(layer: str, function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        parts[layer].append(partial(function, *args, **keywords))

    with _listening(note):
        call()
    missing = [layer for layer in LAYERS if not parts[layer]]
    if missing and not parts[AT_ONCE]:
        raise LookupError(f"no call of {', '.join(missing)} was heard: have names moved?")

    def joined(calls: list[Call]) -> Call:
        if len(calls) == 1:
            return calls[0]

        def run() -> None:
            for part in calls:
                part()

        return run

    return {layer: joined(calls) for layer, calls in parts.items() if calls}


def groups(threads: int, missing: Callable[[str, str], None]) -> dict[str, dict[str, Call]]:
    """Calls by group and name; a group is timed in the same rounds."""
    import numpy as np

    import fastloss
    import peers
    from problems import problem

    field = peers.available(
        threads, [key for key in peers.TITLES if key != "torch-compile"], missing
    )
    criteria: dict[str, Any] = {
        "cross_entropy": getattr(fastloss, "CrossEntropyLoss", None),
        "binary_cross_entropy_with_logits": getattr(fastloss, "BCEWithLogitsLoss", None),
    }
    found: dict[str, dict[str, Call]] = {}
    for title, (loss, shape) in CASES.items():
        if not hasattr(fastloss, loss):
            continue
        case = problem(loss, shape)
        x, target, out = case.x, case.target, np.zeros_like(case.x)
        both = getattr(fastloss, f"{loss}_value_and_grad")
        forward = getattr(fastloss, loss)

        into_out = partial(both, x, target, out=out)
        calls: dict[str, Call] = {
            "value_and_grad, out=": into_out,
            "value_and_grad": partial(both, x, target),
            "forward": partial(forward, x, target),
        }
        if criteria[loss] is not None:
            criterion = criteria[loss]()
            calls["criterion.value_and_grad, out="] = partial(
                criterion.value_and_grad, x, target, out=out
            )
        calls |= {f"layer: {layer}": part for layer, part in recorded(into_out).items()}
        calls |= {
            "an empty call": lambda: None,
            "NumPy: np.empty_like(x)": partial(np.empty_like, x),
            "NumPy: np.exp(x, out=out)": partial(np.exp, x, out=out),
            "NumPy: x.sum()": x.sum,
            "NumPy: x.max(axis=-1)": partial(x.max, axis=-1),
        }
        for peer in field:
            pair = peer.calls(case)
            if pair is not None and pair[1] and not peer.key.startswith("fastloss"):
                calls[f"{peer.title}, value_and_grad"] = pair[1]
        found[title] = calls
    return found


# The whole life of a process that makes one call; arrays and the import are not timed.
FIRST = """
import time
import numpy as np
import fastloss
x = np.zeros({shape}, np.float32)
target = np.zeros({target}, {kind!r})
started = time.perf_counter()
fastloss.{loss}_value_and_grad(x, target)
print(time.perf_counter() - started)
"""


def first_call(loss: str, shape: tuple[int, ...], processes: int) -> Timing:
    """Seconds of the first call after the import, each in a process of its own."""
    classes = loss == "cross_entropy"
    code = FIRST.format(
        shape=shape,
        target=shape[:1] if classes else shape,
        kind="int64" if classes else "float32",
        loss=loss,
    )
    command = [sys.executable, "-c", code]
    taken = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(processes)
    ]
    return summarise(taken, 1)


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each group: the public calls, their layers, and what they compare with."""
    answer = []
    for title in dict.fromkeys(row["group"] for row in document["results"]):
        rows = {row["call"]: median(row) for row in document["results"] if row["group"] == title}
        whole = rows["value_and_grad, out="]
        layers = {name: took for name, took in rows.items() if name.startswith("layer: ")}
        body = []
        for name, took in rows.items():
            share = f"{took / whole:.0%}" if name in layers else ""
            body.append([name, seconds(took), share])
            if layers and name == list(layers)[-1]:
                rest = whole - sum(layers.values())
                body.append(["layer: the rest", seconds(max(rest, 0)), f"{rest / whole:.0%}"])
        answer.append((title, ["call", "median", "share of value_and_grad, out="], body))
    return answer


def show(document: dict[str, Any]) -> None:
    """Print the tables."""
    for title, heads, body in tables(document):
        table = Table(title=title, title_justify="left", caption=describe(document["machine"]))
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number == 0 else "right")
        for line in body:
            table.add_row(*line)
        console.print(table)
    for row in latency_limits(document):
        mark = "[green]yes[/]" if row.met else "[red]no[/]"
        console.print(f"{row.limit}: asked {row.asked}, measured {row.measured}, met: {mark}")


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rounds, some seconds.")] = False,
    threads: Annotated[int, typer.Option(help="Processors and threads for everybody.")] = 1,
    rounds: Annotated[int | None, typer.Option(help="Rounds (101; quick: 11).")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the results to this processor's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show this JSON file, measure nothing.")
    ] = None,
) -> None:
    """Time small calls and the layers that they go through."""
    if load_from is not None:
        show(load(load_from))
        return
    if keep:
        if quick:
            raise typer.BadParameter("--keep is for full runs")
        json = own("latency", partial=False)
    rounds = rounds or (11 if quick else 101)
    pin(threads)

    def missing(title: str, why: str) -> None:
        console.print(f"[yellow]skipped {title}:[/] {why}")

    rows = []
    with progress_bar() as bar:
        found = groups(threads, missing)
        task = bar.add_task("", total=len(found))
        for title, calls in found.items():
            bar.update(task, description=title)
            timings = measure(
                calls, rounds=rounds, budget=60, advance=lambda share: bar.advance(task, share)
            )
            rows += [
                {"group": title, "call": name, "timing": timing} for name, timing in timings.items()
            ]
            first = first_call(*CASES[title], 3 if quick else 15)
            rows.append({"group": title, "call": "the first call of a process", "timing": first})
    where = machine(threads)
    if json is not None:
        settings = {"quick": quick, "rounds": rounds}
        save(json, "latency", where, settings=settings, results=rows)
    show({"machine": where, "results": rows})


if __name__ == "__main__":
    typer.run(main)
