"""Time fastloss beside NumPy, SciPy, scikit-learn, PyTorch, JAX, ONNX Runtime, Numba and NumExpr.

Every loss, forward and with its gradient, whatever of these is installed, in interleaved rounds in
one process. ``python bench/compare.py --help`` lists the options; ``peers.py`` has the calls.

1. the cells (loss and shape) of a full and of a quick run;
2. ``run``, which measures them;
3. the tables and the charts;
4. the command line.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from _common import (
    ACCENT,
    INK,
    MUTED,
    Cell,
    console,
    describe,
    geometric_mean,
    load,
    machine,
    measure,
    medians,
    merge,
    own,
    pin,
    progress_bar,
    pyplot,
    save,
    seconds,
    size_name,
    spreads,
    times,
)
from limits import LARGE, against_fastest, bridge_losing, compare_limits, losing
from steps import steps

# The sizes of the design's speed table, then small calls, then every other loss.
TABLE: list[Cell] = [
    ("cross_entropy", (1_000_000, 10)),
    ("cross_entropy", (65_536, 128)),
    ("cross_entropy", (65_536, 1_000)),
    ("cross_entropy", (8_192, 8_192)),
    ("cross_entropy", (1_024, 128_256)),
    ("cross_entropy", (8, 21, 512, 512)),
    ("binary_cross_entropy_with_logits", (10_000_000,)),
    ("binary_cross_entropy", (10_000_000,)),
]
SMALL: list[Cell] = [
    ("cross_entropy", (32, 10)),
    ("binary_cross_entropy_with_logits", (100,)),
    ("binary_cross_entropy", (100,)),
]
ROWS = (65_536, 1_000)
FEW = (200_000, 21)
OTHERS: list[Cell] = [
    ("cross_entropy", FEW),
    ("cross_entropy_weight", ROWS),
    ("cross_entropy_sample_weight", ROWS),
    ("cross_entropy_smoothing", ROWS),
    ("cross_entropy_smoothing", FEW),
    ("cross_entropy_probabilities", ROWS),
    ("cross_entropy_probabilities", FEW),
    ("cross_entropy_temperature", ROWS),
    ("cross_entropy_softcap", ROWS),
    ("cross_entropy_z_loss", ROWS),
    ("nll_loss", ROWS),
    ("nll_loss", FEW),
    ("kl_div", ROWS),
    ("binary_cross_entropy_with_logits_soft", (10_000_000,)),
    ("binary_cross_entropy_with_logits_weight", (10_000_000,)),
    ("binary_cross_entropy_with_logits_pos_weight", (100_000, 100)),
    ("binary_cross_entropy_soft", (10_000_000,)),
    ("sigmoid_focal_loss", (10_000_000,)),
    ("softmax_focal_loss", ROWS),
    ("softmax_focal_loss", FEW),
    ("distillation_loss", ROWS),
    ("logsumexp", ROWS),
    ("softmax", ROWS),
    ("log_softmax", ROWS),
    ("score_samples", ROWS),
    ("score_samples", FEW),
    # Samples, features, classes.
    ("linear_cross_entropy", (512, 1_024, 64_000)),
    ("linear_cross_entropy", (4_096, 256, 64_000)),
    ("linear_cross_entropy", (2_048, 2_048, 8_000)),
]
QUICK: list[Cell] = [
    ("cross_entropy", (32, 10)),
    ("cross_entropy", (100_000, 10)),
    ("cross_entropy", (4_096, 1_000)),
    ("cross_entropy", (64, 32_000)),
    ("cross_entropy", (2, 21, 256, 256)),
    *[(loss, (4_096, 1_000)) for loss, shape in OTHERS if shape == ROWS],
    ("binary_cross_entropy_with_logits", (100,)),
    ("binary_cross_entropy_with_logits", (1_000_000,)),
    ("binary_cross_entropy_with_logits_soft", (1_000_000,)),
    ("binary_cross_entropy_with_logits_weight", (1_000_000,)),
    ("binary_cross_entropy_with_logits_pos_weight", (10_000, 100)),
    ("binary_cross_entropy", (1_000_000,)),
    ("binary_cross_entropy_soft", (1_000_000,)),
    ("sigmoid_focal_loss", (1_000_000,)),
    ("linear_cross_entropy", (256, 128, 4_000)),
]
MODES = ("forward", "value_and_grad")
# Of a whole training step in PyTorch.
STEP = "training step"
TOLERANCE = 1e-3


def run(
    cells: list[Cell], threads: int, wanted: list[str] | None, rounds: int, budget: float
) -> list[dict[str, Any]]:
    """Measure every cell; a row for each cell, mode and peer, as they go into the JSON file."""
    import peers
    from problems import LOSSES, problem

    def missing(title: str, why: str) -> None:
        console.print(f"[yellow]skipped {title}:[/] {why}")

    field = peers.available(threads, wanted, missing)
    rows: list[dict[str, Any]] = []
    for title, shape, calls in (
        steps(threads) if wanted is None or "fastloss-torch" in wanted else ()
    ):
        timings = measure(calls, rounds=rounds, budget=budget)
        rows += [
            {"loss": title, "shape": list(shape), "mode": STEP, "peer": key, "timing": timing}
            for key, timing in timings.items()
        ]
    with progress_bar() as bar:
        task = bar.add_task("", total=len(cells) * len(MODES))
        for loss, shape in cells:
            bar.update(task, description=f"{LOSSES[loss].title} {size_name(shape)}")
            case = problem(loss, shape)
            calls = {}
            for peer in field:
                found = peer.calls(case)
                if found is not None:
                    calls[peer.key] = found
            if not any(key.startswith("fastloss") for key in calls):
                console.print(f"[yellow]skipped {loss} {size_name(shape)}:[/] fastloss has none")
                bar.advance(task, len(MODES))
                continue
            agree = _agreement(calls, peers)
            for index, mode in enumerate(MODES):
                timed = {key: pair[index] for key, pair in calls.items() if pair[index]}
                if not timed:
                    bar.advance(task)
                    continue
                if mode == "value_and_grad" and case.x.size >= LARGE:
                    timed["fastloss-fresh-pages"] = partial(_touch, case.x)
                timings = measure(
                    timed,
                    rounds=rounds,
                    budget=budget,
                    advance=lambda share: bar.advance(task, share),
                )
                rows += [
                    {
                        "loss": loss,
                        "shape": list(shape),
                        "mode": mode,
                        "peer": key,
                        "agrees": agree.get(key, True),
                        "timing": timing,
                    }
                    for key, timing in timings.items()
                ]
    return rows


def _touch(like: Any) -> Any:
    """A new array with every page written once: what a gradient costs before it is computed."""
    import numpy as np

    made = np.empty_like(like)
    made.reshape(-1).view(np.uint8)[::4096] = 0
    return made


def _agreement(calls: dict[str, Any], peers: Any) -> dict[str, bool]:
    """Whether each peer answers what NumPy (else the first of them) does: same task, same answer.

    Loose, and about the benchmark alone: ``accuracy.py`` counts the digits. A peer that fails is
    taken out of ``calls``.
    """
    agree: dict[str, bool] = {}
    base, reference = "", None
    for key in sorted(calls, key=lambda key: key != "numpy"):
        forward, both = calls[key]
        try:
            answers = [forward()] + ([both()] if both else [])
        except Exception as error:  # whatever a library raises: the others are still timed
            why = str(error).partition("\n")[0]
            console.print(
                f"[yellow]left out {peers.TITLES[key]}:[/] {type(error).__name__}: {why}",
                soft_wrap=True,
            )
            del calls[key]
            continue
        if reference is None:
            base, reference = key, answers
        far = max(map(peers.disagreement, answers, reference))
        agree[key] = far < TOLERANCE
        if not agree[key]:
            console.print(
                f"[red]{peers.TITLES[key]} answers something else than {base}[/] ({far:.1e})"
            )
    return agree


def tables(document: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """For each mode: a title, heads and rows; a peer's column is its time over fastloss's."""
    from peers import TITLES
    from problems import LOSSES

    rows = document["results"]
    found = medians(rows)
    spread = spreads(rows)
    cells = list(
        dict.fromkeys((row["loss"], tuple(row["shape"])) for row in rows if row["mode"] in MODES)
    )
    present = {row["peer"] for row in rows}
    base = next(key for key in TITLES if key in present)
    others = [key for key in TITLES if key in present and key != base]
    fastest = against_fastest(document)
    answer = []
    for mode in MODES:
        heads = ["loss", "input", TITLES[base], "IQR", "fastest other"]
        heads += [TITLES[key] for key in others]
        body = []
        # What loses comes first, the worst of it on top.
        for loss, shape in sorted(
            cells, key=lambda cell: min(1.0, fastest.get((cell, mode), (1.0, ""))[0])
        ):
            mine = found.get((loss, shape, mode, base))
            if mine is None:
                continue
            ratio, peer = fastest.get(((loss, shape), mode), (None, ""))
            line = [
                LOSSES[loss].title,
                size_name(shape),
                seconds(mine),
                f"{spread[loss, shape, mode, base]:.0%}",
                "–" if ratio is None else f"{'LOSES: ' * (ratio < 1)}{ratio:.2f}× {TITLES[peer]}",
            ]
            for key in others:
                theirs = found.get((loss, shape, mode, key))
                line.append("–" if theirs is None else times(theirs / mine))
            body.append(line)
        answer.append((f"{mode}: median, and the others' time over it", heads, body))
    body = []
    for (loss, shape, mode, peer), theirs in found.items():
        ours = found.get((loss, shape, mode, "fastloss-torch"))
        if (mode, peer) == (STEP, "torch") and ours is not None:
            line = [loss, size_name(shape), seconds(theirs), seconds(ours)]
            body.append([*line, f"{'LOSES: ' * (ours > theirs)}{theirs / ours:.2f}×"])
    if body:
        heads = ["model", "logits", "PyTorch", "fastloss.torch", "PyTorch / fastloss.torch"]
        answer.append((f"{STEP}: forward, loss, backward and update", heads, body))
    return answer


def show(document: dict[str, Any]) -> None:
    """Print what loses, then the tables."""
    for lost, what in (
        (losing(document), "Cells that lose to another library"),
        (bridge_losing(document), "Calls and steps of fastloss.torch that lose to PyTorch"),
    ):
        console.print(f"[bold]{what}: {len(lost)}[/]")
        for line in lost:
            console.print(f"[red]{line}[/]", highlight=False, soft_wrap=True)
    for title, heads, body in tables(document):
        table = Table(title=title, caption=describe(document["machine"]), title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number < 2 else "right", no_wrap=number == 1)
        for line in body:
            table.add_row(*line)
        console.print(table)


def plot(document: dict[str, Any], path: Path) -> None:
    """Bars of how many times faster than PyTorch each library is, a panel for each input.

    Writes ``path`` (cross-entropy and BCE with gradient), and beside it ``-forward`` (the same,
    loss alone) and ``-losses`` (the other losses with gradient).
    """
    found = medians(document["results"])
    fastest = against_fastest(document)
    cells = list(dict.fromkeys(key[:2] for key in found if key[2] in MODES))
    main = [
        (loss, shape)
        for loss, shape in cells
        if loss == "cross_entropy"
        or (loss == "binary_cross_entropy_with_logits" and shape[0] > 1_000)
    ]
    rest = [cell for cell in cells if cell not in main and cell[0] != "linear_cross_entropy"]
    cores = "one core" if document["machine"]["threads"] == 1 else "two cores"
    if document["machine"]["threads"] > 2:
        cores = f"{document['machine']['threads']} cores"
    foot = describe(document["machine"]).split(",")[0]
    version = document["machine"]["versions"].get("torch", "")
    charts = [
        ("", main, "value_and_grad", f"Loss and gradient on {cores}"),
        ("-forward", main, "forward", f"The loss alone on {cores}"),
        ("-losses", rest, "value_and_grad", f"Other losses, with gradient, on {cores}"),
    ]
    for suffix, chosen, mode, subject in charts:
        chosen = [cell for cell in chosen if (*cell, mode, "torch") in found]
        behind = {
            cell: (ratio, peer)
            for cell in chosen
            if (best := fastest.get((cell, mode))) and (ratio := best[0]) < 1
            for peer in [best[1]]
        }
        chosen.sort(key=lambda cell: behind.get(cell, (1.0, ""))[0])
        if chosen:
            lost = "no panel" if not behind else f"{len(behind)} of {len(chosen)} panels"
            title = (
                f"{subject}: how many times faster than PyTorch\n"
                f"Another library is faster than fastloss in {lost}"
            )
            note = (
                f"{foot}. float32, medians of interleaved rounds in one process; "
                f"PyTorch {version.split('+')[0]} eager is 1×."
            )
            where = path.with_name(f"{path.stem}{suffix}{path.suffix}")
            _panels(found, chosen, mode, title, note, where, behind)


def _panels(
    found: dict[Any, float], cells: list[Cell], mode: str, title: str, note: str, path: Path,
    behind: dict[Cell, tuple[float, str]],
) -> None:  # fmt: skip
    from peers import TITLES
    from problems import LOSSES

    plt = pyplot()
    order = [
        "fastloss", "fastloss-torch", "optax", "torch-compile", "torch", "onnxruntime", "numba",
        "numexpr", "scikit-learn", "scipy", "numpy",
    ]  # fmt: skip
    order = [key for key in order if any((*cell, mode, key) in found for cell in cells)]
    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 + 2.35 * columns, 1.05 + (0.75 + 0.27 * len(order)) * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    longest = max(
        found[*cell, mode, "torch"] / found[*cell, mode, key]
        for cell in cells
        for key in order
        if (*cell, mode, key) in found
    )
    for axis, cell in zip(axes.flat, cells, strict=False):
        theirs = found[*cell, mode, "torch"]
        for height, key in enumerate(reversed(order)):
            mine = found.get((*cell, mode, key))
            if mine is None:
                axis.text(0.01 * longest, height, "–", va="center", color=MUTED)
                continue
            ratio = theirs / mine
            axis.barh(height, ratio, height=0.72, color=ACCENT if key == "fastloss" else MUTED)
            bold = "bold" if key == "fastloss" else "normal"
            axis.text(
                ratio + 0.02 * longest,
                height,
                times(ratio),
                va="center",
                weight=bold,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )
            if key in ("fastloss", "torch"):
                axis.text(
                    1.6 * longest,
                    height,
                    seconds(mine),
                    va="center",
                    ha="right",
                    fontsize=8,
                    color=INK,
                    alpha=0.65,
                )
        axis.axvline(1, color=INK, linewidth=0.8, linestyle=":")
        name = f"{LOSSES[cell[0]].title}\n{size_name(cell[1])}"
        if cell in behind:
            name = f"{TITLES[behind[cell][1]]} is faster\n{name}"
        weight = "bold" if cell in behind else "normal"
        axis.set_title(name, fontsize=10, loc="left", weight=weight)
        axis.set_yticks(range(len(order)), [TITLES[key] for key in reversed(order)])
        for label in axis.get_yticklabels():
            if label.get_text() == "fastloss":
                label.set_color(ACCENT)
                label.set_weight("bold")
        axis.tick_params(length=0)
        axis.set_xlim(0, longest * 1.62)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, weight="bold")
    figure.text(0.01, 0.012, note, fontsize=8, color=INK, alpha=0.75)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99), h_pad=1.6)
    figure.savefig(path)
    plt.close(figure)
    console.print(f"wrote {path.name}")


def summary(document: dict[str, Any]) -> None:
    """Print the limits that this run decides, and the means."""
    table = Table(title="limits", title_justify="left")
    for head in ("limit", "asked", "measured", "where", "met"):
        table.add_column(head)
    for row in compare_limits(document):
        mark = {True: "[green]yes[/]", False: "[red]no[/]", None: "–"}[row.met]
        table.add_row(row.limit, row.asked, row.measured, row.where, mark)
    if table.row_count:
        console.print(table)
    found = medians(document["results"])
    for mode in MODES:
        ratios = [
            found[loss, shape, mode, "torch"] / mine
            for (loss, shape, which, peer), mine in found.items()
            if (which, peer) == (mode, "fastloss") and (loss, shape, mode, "torch") in found
        ]
        if ratios:
            console.print(
                f"{mode} against PyTorch, geometric mean of {len(ratios)} cells: "
                f"{times(geometric_mean(ratios))}"
            )


def main(
    quick: Annotated[bool, typer.Option(help="Small inputs, a minute, no torch.compile.")] = False,
    threads: Annotated[int, typer.Option(help="Processors and threads for everybody.")] = 1,
    only: Annotated[
        str, typer.Option(help="Cells whose 'LOSS SHAPE', as nll_loss 200000x21, matches this.")
    ] = "",
    loss: Annotated[list[str] | None, typer.Option(help="Only this loss (may repeat).")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="These shapes instead, such as 4096x1000.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only this library (may repeat).")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds at most (15; quick: 7).")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds a cell and mode at most (40; quick: 1.5).")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write results and charts to this processor's folder.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="Write charts to this PNG and beside it.")
    ] = None,
    load_from: Annotated[
        Path | None, typer.Option("--load", help="Show and draw this JSON file, measure nothing.")
    ] = None,
) -> None:
    """Time fastloss beside the other libraries that are installed."""
    if load_from is not None:
        document = load(load_from)
    else:
        from problems import LOSSES

        for item in loss or []:
            if item not in LOSSES:
                raise typer.BadParameter(f"{item!r}: choose from {', '.join(LOSSES)}")
        # Before any library comes in: each takes its number of threads from the processors.
        pin(threads)
        import peers

        for item in peer or []:
            if item not in peers.TITLES:
                raise typer.BadParameter(f"{item!r}: choose from {', '.join(peers.TITLES)}")
        cells = QUICK if quick else TABLE + SMALL + OTHERS
        if shape:
            shapes = [tuple(int(extent) for extent in text.split("x")) for text in shape]
            cells = [(name, found) for name in loss or ["cross_entropy"] for found in shapes]
        cells = [
            (name, extents)
            for name, extents in cells
            if (not loss or name in loss)
            and re.search(only, f"{name} {'x'.join(map(str, extents))}")
        ]
        if not cells:
            raise typer.BadParameter("these options leave no loss and shape to time")
        wanted = peer or (
            [key for key in peers.TITLES if key != "torch-compile"] if quick else None
        )
        rounds = rounds or (7 if quick else 15)
        budget = budget or (1.5 if quick else 40.0)
        if keep:
            if quick or peer:
                raise typer.BadParameter("--keep is for full sizes and all libraries")
            name = f"compare-{threads}-thread{'s' if threads > 1 else ''}"
            json = own(name, partial=cells != TABLE + SMALL + OTHERS)
            plot_to = plot_to or json.with_suffix(".png")
        rows = run(cells, threads, wanted, rounds, budget)
        settings = {"quick": quick, "rounds": rounds, "budget_seconds": budget}
        document = {"machine": machine(threads), "settings": settings, "results": rows}
        if keep:
            assert json is not None
            # A group of cells may be run by itself; the other cells' results stay.
            document["results"] = merge(json, rows, ("loss", "shape", "mode"))
        if json is not None:
            save(
                json,
                "compare",
                document["machine"],
                settings=settings,
                results=document["results"],
            )
    show(document)
    summary(document)
    if plot_to is not None:
        plot(document, plot_to)


if __name__ == "__main__":
    typer.run(main)
