"""Compare two builds of fastloss in one interleaved run, cell by cell.

``python bench/side_by_side.py BEFORE AFTER``, where each is a folder that contains ``fastloss/``,
such as two of ``pip install --target FOLDER .``, says which cells became slower.

How a cell is measured:

1. This process makes the input and room for the gradient, and then forks a worker for each build,
   which imports its own fastloss. So both read and write the same memory: which pages an array
   happens to get can be worth a tenth.
2. The workers time the same call in turn, before-after, after-before, …, one while the other waits.
   A call shorter than 2 ms is repeated. With one thread the clock is the worker's processor time,
   so that other processes on the machine count less.
3. The ratio of a round is the time after over the time before; the answer is the median over all
   rounds of four sittings, each with new workers, of which now this and now that starts. What a
   call allocates for itself lies elsewhere in every sitting and round. The range beside the ratio
   covers the median of the rounds with 95 %.
4. A cell over the limit sits four times more before it is called slower.

Answers are compared too. A build that lacks a loss or an option is said to, and a worker that dies
is reported as such.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import math
import mmap
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from _common import console, geometric_mean, pin, processor_title, seconds, size_name

if TYPE_CHECKING:
    # NumPy comes in after the process has been pinned, which tells its BLAS the threads to use.
    from problems import Problem

# Cells (loss, shape, dtype) and the levels are independent: every level is asked for every cell.
Cell = tuple[str, tuple[int, ...], str]
CELLS: list[Cell] = [
    ("cross_entropy", (32, 10), "float32"),
    ("cross_entropy", (300_000, 10), "float32"),
    ("cross_entropy", (8, 21, 512, 512), "float32"),
    ("cross_entropy", (200_000, 21), "float32"),
    ("cross_entropy", (65_536, 128), "float32"),
    ("cross_entropy", (1_000, 1_000), "float32"),
    ("cross_entropy", (65_536, 1_000), "float32"),
    ("cross_entropy", (4_096, 8_192), "float32"),
    ("cross_entropy", (256, 128_256), "float32"),
    ("cross_entropy", (4_096, 8_192), "float16"),
    ("cross_entropy", (4_096, 8_192), "bfloat16"),
    ("cross_entropy", (200_000, 21), "float16"),
    ("cross_entropy", (200_000, 21), "float64"),
    ("cross_entropy", (16_384, 1_000), "float64"),
    ("cross_entropy_weight", (16_384, 1_000), "float32"),
    ("cross_entropy_sample_weight", (16_384, 1_000), "float32"),
    ("cross_entropy_smoothing", (200_000, 21), "float32"),
    ("cross_entropy_smoothing", (16_384, 1_000), "float32"),
    ("cross_entropy_smoothing", (4, 21, 256, 256), "float32"),
    ("cross_entropy_probabilities", (200_000, 21), "float32"),
    ("cross_entropy_probabilities", (16_384, 1_000), "float32"),
    ("cross_entropy_probabilities", (16_384, 1_000), "float64"),
    ("cross_entropy_probabilities", (4, 21, 256, 256), "float32"),
    ("cross_entropy_temperature", (16_384, 1_000), "float32"),
    ("cross_entropy_softcap", (16_384, 1_000), "float32"),
    ("cross_entropy_z_loss", (16_384, 1_000), "float32"),
    ("nll_loss", (200_000, 21), "float32"),
    ("nll_loss", (16_384, 1_000), "float32"),
    ("binary_cross_entropy_with_logits", (100,), "float32"),
    ("binary_cross_entropy_with_logits", (5_000_000,), "float32"),
    ("binary_cross_entropy_with_logits", (2_000_000,), "float16"),
    ("binary_cross_entropy_with_logits", (2_000_000,), "float64"),
    ("binary_cross_entropy_with_logits_soft", (2_000_000,), "float32"),
    ("binary_cross_entropy_with_logits_weight", (2_000_000,), "float32"),
    ("binary_cross_entropy_with_logits_pos_weight", (20_000, 100), "float32"),
    ("binary_cross_entropy", (5_000_000,), "float32"),
    ("binary_cross_entropy_soft", (2_000_000,), "float32"),
    ("kl_div", (8_192, 1_000), "float32"),
    ("sigmoid_focal_loss", (2_000_000,), "float32"),
    ("softmax_focal_loss", (16_384, 1_000), "float32"),
    ("distillation_loss", (16_384, 1_000), "float32"),
    ("linear_cross_entropy", (512, 256, 8_000), "float32"),
    ("logsumexp", (4_096, 1_000), "float32"),
    ("softmax", (4_096, 1_000), "float32"),
    ("softmax", (200_000, 21), "float32"),
    ("log_softmax", (4_096, 1_000), "float32"),
    ("score_samples", (200_000, 21), "float32"),
    ("score_samples", (16_384, 1_000), "float32"),
]
MODES = ("forward", "value_and_grad")
LEVELS = ("baseline", "avx2", "avx512")
SAMPLE = 0.002  # seconds: a shorter call is repeated
SITTINGS = 4
LEAST_ROUNDS = 3
LEAST_SECONDS = 0.15  # of a sitting and mode: short calls get more rounds
# Threads of OpenMP and BLAS go on looking for work for a while, on the other worker's processors.
PAUSE = 0.01  # seconds between samples with more than one thread
PATIENCE = 300.0  # seconds without an answer after which a worker is given up
AGREEMENT = 1e-4  # relative; the builds may differ in the last digits, not in what they compute


class Lacks(Exception):
    """A build has no such function, option, type or level."""


class Died(Exception):
    """A worker ended without an answer."""


class Build(NamedTuple):
    """A folder that contains ``fastloss/``, and what it is called in tables."""

    name: str
    root: Path


class Ratio(NamedTuple):
    """Time after over time before: the median over the rounds, and a range that covers it."""

    ratio: float
    low: float
    high: float
    before: float
    after: float
    rounds: int


# ---- in the worker ----------------------------------------------------------------------------


def _import(root: Path) -> Any:
    """Import fastloss from ``root`` and from nowhere else."""
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    library = importlib.import_module("fastloss")
    found = Path(str(library.__file__)).resolve().parents[1]
    if found != root:
        raise Lacks(f"Python finds the fastloss of {found} first: is one installed as editable?")
    return library


def _digest(answer: Any) -> list[float]:
    """A few numbers that tell two answers apart: sums and some entries of each array."""
    import numpy as np

    digest: list[float] = []
    for item in answer if isinstance(answer, tuple) else (answer,):
        if isinstance(item, tuple):
            digest += _digest(item)
        elif item is not None:
            flat = np.asarray(item).reshape(-1)
            step = max(1, flat.size // 50)
            digest += [float(np.abs(flat, dtype=np.float64).sum()) if flat.dtype.kind == "f" else 0]
            digest += [float(number) for number in flat[::step][:50]]
    return digest


def _serve(
    talk: multiprocessing.connection.Connection,
    root: Path,
    level: str,
    threads: int,
    case: Problem,
    out: Any,
) -> None:
    """Answer ``(mode, repeats)`` with seconds per call, ``(mode, 0)`` with a digest."""
    from problems import own_calls

    os.environ["FASTLOSS_ISA"] = level
    try:
        library = _import(root)
        library.set_num_threads(threads)
        pair = own_calls(library, case, out)
    except (LookupError, ImportError, Lacks) as error:
        talk.send(("lacks", str(error)))
        return
    calls = dict(zip(MODES, pair, strict=True))
    talk.send(("modes", [mode for mode in MODES if calls[mode] is not None]))
    clock = time.process_time if threads == 1 else time.perf_counter
    gc.collect()
    gc.freeze()
    gc.disable()
    # Where a call's own memory lies is worth a few per cent: other pages in every sitting, another
    # alignment in every round.
    chance = random.Random(os.getpid())
    kept = [bytearray(b"\1") * chance.randrange(2**20, 2**25)]
    while True:
        mode, repeats = talk.recv()
        call = calls[mode]
        kept.append(bytearray(chance.randrange(1_024, 65_536)))
        try:
            if repeats == 0:
                talk.send(("digest", _digest(call())))
                continue
            started = clock()
            for _ in itertools.repeat(None, repeats):
                call()
            talk.send(("time", (clock() - started) / repeats))
        except (TypeError, ValueError, MemoryError) as error:
            talk.send(("lacks", f"{type(error).__name__}: {error}"))
            return


# ---- in the parent ----------------------------------------------------------------------------


class Worker:
    """A forked process that times the calls of one build."""

    def __init__(self, build: Build, level: str, threads: int, case: Problem, out: Any) -> None:
        self.build = build
        self.pause = PAUSE if threads > 1 else 0.0
        fork = multiprocessing.get_context("fork")
        self.talk, theirs = fork.Pipe()
        self.process = fork.Process(
            target=_worker,
            args=(self.talk, theirs, build.root, level, threads, case, out),
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self.modes: list[str] = self._hear()

    def _hear(self) -> Any:
        try:
            if not self.talk.poll(PATIENCE):
                raise Died(f"{self.build.name}: no answer within {PATIENCE:.0f} s")
            kind, content = self.talk.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            raise Died(f"{self.build.name}: exit status {self.process.exitcode}") from None
        if kind == "lacks":
            raise Lacks(f"{self.build.name}: {content}")
        return content

    def ask(self, mode: str, repeats: int) -> Any:
        """Seconds per call, or with no repeats the digest of the answer."""
        time.sleep(self.pause)
        # A worker that died can't be told anything; hearing says how it ended.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.talk.send((mode, repeats))
        return self._hear()

    def stop(self) -> None:
        """End the process; it has nothing to lose."""
        self.talk.close()
        self.process.kill()
        self.process.join()


def _worker(
    parents: multiprocessing.connection.Connection,
    talk: multiprocessing.connection.Connection,
    *rest: Any,
) -> None:
    parents.close()  # else this process would keep its own pipe open
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        _serve(talk, *rest)


def sit(
    builds: tuple[Build, Build],
    level: str,
    threads: int,
    case: Problem,
    out: Any,
    rounds: int,
    budget: float,
    turn: bool,
) -> dict[str, list[tuple[float, float]]]:
    """One sitting: ``(before, after)`` of every round, for each mode. ``turn``: after starts."""
    workers: list[Worker] = []
    try:
        for build in builds[::-1] if turn else builds:
            workers.append(Worker(build, level, threads, case, out))
        before, after = workers[::-1] if turn else workers
        found: dict[str, list[tuple[float, float]]] = {}
        for mode in [mode for mode in before.modes if mode in after.modes]:
            _compare_answers(before.ask(mode, 0), after.ask(mode, 0), case, mode)
            once = min(worker.ask(mode, 1) for worker in workers)
            repeats = max(1, math.ceil(SAMPLE / max(once, 1e-7)))
            pairs: list[tuple[float, float]] = []
            started = time.perf_counter()
            while True:
                spent = time.perf_counter() - started
                enough = len(pairs) >= rounds and spent > LEAST_SECONDS
                if enough or (len(pairs) >= LEAST_ROUNDS and spent > budget):
                    break
                if (len(pairs) + turn) % 2:
                    second = after.ask(mode, repeats)
                    pairs.append((before.ask(mode, repeats), second))
                else:
                    first = before.ask(mode, repeats)
                    pairs.append((first, after.ask(mode, repeats)))
            found[mode] = pairs
        return found
    finally:
        for worker in workers:
            worker.stop()


def _compare_answers(first: list[float], second: list[float], case: Problem, mode: str) -> None:
    scale = max((abs(number) for number in first[1:] or first), default=1.0) or 1.0
    apart = [
        abs(one - two) / max(abs(one), scale * 1e-3)
        for one, two in zip(first, second, strict=False)
        if not (math.isnan(one) and math.isnan(two))
    ]
    # float16 and bfloat16 gradients may round to neighbours.
    allowed = AGREEMENT if case.x.dtype.itemsize > 2 else 1e-2
    if len(first) != len(second) or any(not far <= allowed for far in apart):
        console.print(f"[red]{case.loss} {mode}: the builds answer differently[/]")


def summarise(pairs: list[tuple[float, float]]) -> Ratio:
    """Median of the rounds' ratios, with a 95 % range from order statistics."""
    ratios = sorted(after / before for before, after in pairs)
    count = len(ratios)
    aside = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return Ratio(
        statistics.median(ratios),
        ratios[aside],
        ratios[-1 - aside],
        statistics.median(before for before, _ in pairs),
        statistics.median(after for _, after in pairs),
        count,
    )


def cell_name(cell: Cell) -> str:
    """``cross_entropy 65536x128 float32``, which ``--only`` is matched with."""
    loss, shape, dtype = cell
    return f"{loss} {'x'.join(map(str, shape))} {dtype}"


def shared_like(x: Any) -> Any:
    """An array like ``x`` of zeros, in memory that forked processes share when they write it."""
    import numpy as np

    room = mmap.mmap(-1, max(x.nbytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            room.madvise(mmap.MADV_HUGEPAGE)
    made = np.frombuffer(room, dtype=x.dtype, count=x.size).reshape(x.shape)
    made.fill(0)
    return made


def measure_cell(
    cell: Cell,
    case: Problem,
    builds: tuple[Build, Build],
    level: str,
    threads: int,
    rounds: int,
    budget: float,
    limit: float,
) -> dict[str, Ratio]:
    """Both modes of a cell: all sittings, and as many more if one is over the limit."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    out = shared_like(case.x)
    for sitting in range(2 * SITTINGS):
        if sitting == SITTINGS and not any(
            summarise(found).ratio > limit for found in pairs.values()
        ):
            break
        for mode, found in sit(
            builds, level, threads, case, out, rounds, budget, turn=bool(sitting % 2)
        ).items():
            pairs.setdefault(mode, []).extend(found)
    return {mode: summarise(found) for mode, found in pairs.items()}


def run(
    builds: tuple[Build, Build],
    cells: list[Cell],
    levels: list[str],
    threads: int,
    rounds: int,
    budget: float,
    limit: float,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Measure every cell at every level; a row for each cell, level and mode."""
    from problems import problem

    rows = []
    for cell in cells:
        loss, shape, dtype = cell
        case: Problem | None = None
        for level in levels:
            common: dict[str, Any] = {
                "loss": loss,
                "shape": list(shape),
                "dtype": dtype,
                "level": level,
            }
            try:
                if case is None:
                    case = problem(loss, shape, dtype)
                found = measure_cell(cell, case, builds, level, threads, rounds, budget, limit)
                made = [
                    {**common, "mode": mode, **ratio._asdict()} for mode, ratio in found.items()
                ]
            except Lacks as error:
                made = [{**common, "skipped": str(error)}]
            except Died as error:
                made = [{**common, "died": str(error)}]
            except ImportError as error:  # ml_dtypes, for bfloat16
                made = [{**common, "skipped": str(error)}]
            for row in made:
                say(row)
            rows += made
    return rows


def line(row: dict[str, Any], limit: float) -> str:
    """A row as a line of text with colours."""
    what = f"{row['loss']} {size_name(row['shape'])} {row['dtype']}"
    start = f"{row['level']:9}{what:66}"
    if "died" in row or "skipped" in row:
        colour = "red" if "died" in row else "yellow"
        return f"{start}[{colour}]{row.get('died') or 'skipped, ' + row['skipped']}[/]"
    colour = "red" if row["ratio"] > limit else "green" if row["ratio"] < 1 / limit else "default"
    return (
        f"{start}{row['mode']:15} {seconds(row['before']):>8} {seconds(row['after']):>8}  "
        f"[{colour}]{row['ratio']:.3f}[/] [{row['low']:.3f} to {row['high']:.3f}]"
    )


def folder(text: str) -> Path:
    """The import root named on the command line, or the ``src`` below it."""
    for root in (Path(text), Path(text) / "src"):
        if (root / "fastloss" / "__init__.py").is_file():
            return root.resolve()
    raise typer.BadParameter(f"{text!r} contains no fastloss/ folder")


def runnable(builds: tuple[Build, Build]) -> list[str]:
    """The levels that both builds have and this processor can run, worst first."""

    def starts(build: Build, level: str) -> bool:
        environment = {**os.environ, "FASTLOSS_ISA": level, "PYTHONPATH": str(build.root)}
        command = [sys.executable, "-P", "-c", "import fastloss"]
        return not subprocess.run(command, env=environment, capture_output=True).returncode

    return [level for level in LEVELS if all(starts(build, level) for build in builds)]


def main(
    before: Annotated[str, typer.Argument(help="Folder that contains the first fastloss/.")],
    after: Annotated[str, typer.Argument(help="Folder that contains the second fastloss/.")],
    only: Annotated[
        str, typer.Option(help="Cells whose 'LOSS SHAPE DTYPE' matches this regular expression.")
    ] = "",
    levels: Annotated[
        str, typer.Option(help="Instruction sets, separated by commas; 'all'; or the 'best'.")
    ] = "best",
    threads: Annotated[int, typer.Option(help="Processors and threads.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of a sitting.")] = 8,
    budget: Annotated[float, typer.Option(help="Seconds of a sitting and mode at most.")] = 0.4,
    limit: Annotated[float, typer.Option(help="What counts as slower.")] = 1.03,
    list_cells: Annotated[bool, typer.Option("--list", help="Print the cells and stop.")] = False,
    json_to: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.")
    ] = None,
) -> None:
    """Say which cells the build AFTER does slower than BEFORE; exit with 1 if any."""
    cells = [cell for cell in CELLS if re.search(only, cell_name(cell))]
    if not cells:
        raise typer.BadParameter(f"no cell matches {only!r}: --list shows them all")
    if list_cells:
        for cell in cells:
            print(cell_name(cell))
        return
    builds = (Build("before", folder(before)), Build("after", folder(after)))
    possible = runnable(builds)
    if not possible:
        raise typer.BadParameter("there is no level that both builds have and that runs here")
    wanted = {"all": possible, "best": possible[-1:]}.get(levels) or levels.split(",")
    for level in wanted:
        if level not in possible:
            raise typer.BadParameter(f"level {level!r}: possible here are {', '.join(possible)}")
    pin(threads)
    if threads > 1 and hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        console.print(
            "[yellow]other processes are running: ratios of several threads need quiet[/]"
        )
    started = time.perf_counter()
    console.print(
        f"{processor_title()}, threads: {threads}; median times before and after, the median "
        "ratio of the rounds, and a range that covers it with 95 %",
        soft_wrap=True,
    )
    rows = run(
        builds,
        cells,
        wanted,
        threads,
        rounds,
        budget,
        limit,
        # Lines for a log file: no marker for a live display, no wrapping.
        say=lambda row: console.print(line(row, limit), soft_wrap=True, highlight=False),
    )
    slower = verdict(rows, limit)
    console.print(f"took {time.perf_counter() - started:.0f} s")
    if json_to is not None:
        write(json_to, rows, threads, limit)
    if slower or any("died" in row for row in rows):
        raise typer.Exit(1)


def verdict(rows: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Print the mean ratios and the cells over the limit; return these."""
    timed = [row for row in rows if "ratio" in row]
    for level in dict.fromkeys(row["level"] for row in timed):
        for mode in MODES:
            ratios = [
                row["ratio"] for row in timed if row["level"] == level and row["mode"] == mode
            ]
            if ratios:
                console.print(
                    f"{level} {mode}: geometric mean {geometric_mean(ratios):.3f} of "
                    f"{len(ratios)} cells, {min(ratios):.3f} to {max(ratios):.3f}",
                    highlight=False,
                )
    slower = sorted(
        (row for row in timed if row["ratio"] > limit), key=lambda row: row["ratio"], reverse=True
    )
    console.print(
        f"[bold]{len(slower)} of {len(timed)} are more than {limit - 1:.1%} slower[/]",
        highlight=False,
    )
    for row in slower:
        console.print(line(row, limit), soft_wrap=True, highlight=False)
    return slower


def write(path: Path, rows: list[dict[str, Any]], threads: int, limit: float) -> None:
    """Write the rows as JSON, one a line."""
    short = [
        {
            key: float(f"{item:.5g}") if isinstance(item, float) else item
            for key, item in row.items()
        }
        for row in rows
    ]
    head = json.dumps({"cpu": processor_title(), "threads": threads, "limit": limit})[1:-1]
    body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in short)
    path.write_text(f'{{"benchmark": "side_by_side", {head}, "results": [\n{body}\n]}}\n')


if __name__ == "__main__":
    typer.run(main)
