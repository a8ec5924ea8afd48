"""The command line: ``fastloss score LOGITS TARGETS`` (needs the extra ``cli``: typer and rich).

Only what faces the user is here: options, messages, the progress bar, the report. The work is in
`fastloss._scoring`. Results go to standard output, all else to standard error; the exit status is
0, 2 for anything wrong with the input (after one line that says what), or 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np

import fastloss
from fastloss._config import config
from fastloss._scoring import InputError
from fastloss._scoring.plot import check_plot_name, draw, import_matplotlib
from fastloss._scoring.readers import (
    MappedSource,
    Request,
    Source,
    is_container,
    open_source,
)
from fastloss._scoring.scorer import Job, Loss, Options, Scores, Summary, plan
from fastloss._scoring.writers import atomic, open_writer
from fastloss.data import load_digits_logits

try:
    import typer
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Table
except ModuleNotFoundError as error:
    raise ImportError(
        "the fastloss command needs typer and rich: pip install 'fastloss[cli]'"
    ) from error

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def bare(context: typer.Context) -> None:
    """Classification losses of saved logits: exact, and as fast as they can be read."""
    if context.invoked_subcommand is None:
        fastloss.show_config()


def _option(text: str, panel: str, metavar: str = "FILE") -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=panel)


_INPUT, _LOSS, _RESULT = "What is read", "The loss", "What comes out"


@app.command()
def score(
    logits: Annotated[
        Path | None,
        typer.Argument(
            help="Logits: .npy, .npz, .safetensors, Parquet or Arrow IPC.", metavar="LOGITS"
        ),
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Argument(
            help="Targets, in a file of any of these kinds; by default in LOGITS, too.",
            metavar="TARGETS",
        ),
    ] = None,
    *,
    logits_name: Annotated[
        str | None, _option("Array, tensor or column that holds the logits.", _INPUT, "NAME")
    ] = None,
    targets_name: Annotated[
        str | None, _option("Array, tensor or column that holds the targets.", _INPUT, "NAME")
    ] = None,
    loss: Annotated[
        Loss, _option("cross-entropy, bce-with-logits or nll.", _LOSS, "NAME")
    ] = "cross-entropy",
    weight: Annotated[
        Path | None,
        _option("A weight for each class; for bce-with-logits one that broadcasts.", _LOSS),
    ] = None,
    sample_weight: Annotated[Path | None, _option("A weight for each sample.", _LOSS)] = None,
    pos_weight: Annotated[
        str | None,
        _option("Weight of the positive term of bce-with-logits.", _LOSS, "NUMBER|FILE"),
    ] = None,
    ignore_index: Annotated[
        int | None, _option("Target of samples to leave out; -100 if not given.", _LOSS, "N")
    ] = None,
    label_smoothing: Annotated[
        float | None, _option("From 0, which is none, to 1.", _LOSS, "SHARE")
    ] = None,
    axis: Annotated[
        int | None, _option("Class axis of the logits; 1 if not given.", _LOSS, "N")
    ] = None,
    output: Annotated[
        Path | None,
        _option("Write each sample's result to a .npy, .csv or .parquet file.", _RESULT),
    ] = None,
    plot: Annotated[
        Path | None,
        _option("Draw the spread of the losses, loss by class and calibration (.png).", _RESULT),
    ] = None,
    top: Annotated[int, _option("How many of the hardest samples to show.", _RESULT, "N")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_RESULT)
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads; all cores if not given.", metavar="N")
    ] = None,
) -> None:
    """Score LOGITS against TARGETS, files larger than memory included.

    Without arguments it scores the handwritten digits that come with fastloss.
    """
    with _errors_in_one_line():
        if top < 0:
            raise InputError(f"--top {top}: expected 0 or more")
        if threads is not None:
            if threads < 1:
                raise InputError(f"--threads {threads}: expected 1 or more")
            fastloss.set_num_threads(threads)
        options = _options(
            loss, weight, sample_weight, pos_weight, ignore_index, label_smoothing, axis
        )
        inputs = (logits, targets, weight, sample_weight, Path(pos_weight or ""))
        _check_outputs((output, plot), inputs)
        job = plan(*_open_inputs(logits, targets, logits_name, targets_name), options)
        summary, seconds = _run(job, top, output, plot)
        if as_json:
            print(json.dumps(_as_json(summary, seconds), allow_nan=False))
        else:
            _print_report(summary, seconds)


# Inputs -------------------------------------------------------------------------------------------


def _options(
    loss: Loss,
    weight: Path | None,
    sample_weight: Path | None,
    pos_weight: str | None,
    ignore_index: int | None,
    label_smoothing: float | None,
    axis: int | None,
) -> Options:
    """The loss's options; one that the loss doesn't have is an error, never ignored."""
    binary = loss == "bce-with-logits"
    for given, option, known in (
        (sample_weight, "--sample-weight", not binary),
        (ignore_index, "--ignore-index", not binary),
        (axis, "--axis", not binary),
        (label_smoothing, "--label-smoothing", loss == "cross-entropy"),
        (pos_weight, "--pos-weight", binary),
    ):
        if given is not None and not known:
            raise InputError(f"--loss {loss} has no {option}")
    return Options(
        loss=loss,
        weight=_open_weight("--weight", weight),
        sample_weight=_open_weight("--sample-weight", sample_weight),
        pos_weight=_number_or_file("--pos-weight", pos_weight),
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing or 0.0,
        axis=axis,
    )


def _open_weight(option: str, path: Path | None) -> Source | None:
    if path is None:
        return None
    return open_source(path, Request("weight", option, None, ("weight", "weights")))


def _number_or_file(option: str, text: str | None) -> Source | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return _open_weight(option, Path(text))


def _open_inputs(
    logits: Path | None, targets: Path | None, logits_name: str | None, targets_name: str | None
) -> tuple[Source, Source]:
    """The sources of the files named, or of the embedded digits where none is."""
    if logits is None:
        if logits_name is not None or targets_name is not None:
            raise InputError("--logits-name and --targets-name need a file: LOGITS is missing")
        scores, labels = load_digits_logits()
        return MappedSource("handwritten digits", scores), MappedSource("their labels", labels)
    if targets is None and not is_container(logits) and logits.is_file():
        raise InputError(f"TARGETS is missing: {logits} is a .npy, which holds one array")
    first = open_source(
        logits, Request("logits", "--logits-name", logits_name, ("logits", "log_probs"))
    )
    second = open_source(
        targets or logits,
        Request(
            "targets",
            "--targets-name",
            targets_name,
            ("targets", "target", "labels", "label"),
        ),
    )
    if first.label == second.label:
        raise InputError(f"{first.label} can't be both the logits and the targets")
    return first, second


def _check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Refuse to replace an input by a result."""
    files = [path for path in inputs if path is not None and path.is_file()]
    for output in outputs:
        for path in files:
            if output is not None and output.exists() and output.samefile(path):
                raise InputError(f"cannot write {output}: it is an input")


# Work ---------------------------------------------------------------------------------------------


def _run(job: Job, top: int, output: Path | None, plot: Path | None) -> tuple[Summary, float]:
    """Score the job: the summary, and the seconds that it took. Files appear at the end."""
    summary = Summary(job, top, distributions=plot is not None)
    with contextlib.ExitStack() as files:
        files.callback(job.logits.close)
        files.callback(job.targets.close)
        # What could go wrong with the files does so here, not after an hour's scoring.
        picture = None
        if plot is not None:
            check_plot_name(plot)
            import_matplotlib()
            picture = files.enter_context(atomic(plot))
        write = files.enter_context(open_writer(output, job)) if output is not None else _discard
        advance = files.enter_context(_progress(job))
        start = time.perf_counter()
        blocks = files.enter_context(contextlib.closing(job.blocks(summary.of)))
        for scores, part in blocks:
            summary.merge(part)
            write(scores)
            advance(scores.logits_bytes)
        seconds = time.perf_counter() - start
        if picture is not None and plot is not None:
            draw(summary, picture, plot.suffix.lower()[1:])
    return summary, seconds


def _discard(scores: Scores) -> None:
    """What `_run` writes to without ``--output``."""


@contextlib.contextmanager
def _progress(job: Job) -> Iterator[Any]:
    """A bar with rate and time left on standard error, where that is a terminal."""
    columns = (
        TextColumn("scoring"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    silent = not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        task = progress.add_task("", total=job.logits_bytes)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turn the errors that a user can cause into one line and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted, nothing written", 130)
    except (InputError, ImportError, OSError) as error:
        _fail(" ".join(str(error).split()), 2)


def _fail(message: str, status: int) -> NoReturn:
    print(f"fastloss: {message}", file=sys.stderr)
    raise typer.Exit(status)


# Results ------------------------------------------------------------------------------------------


def _as_json(summary: Summary, seconds: float) -> dict[str, Any]:
    """The report as JSON types; what is NaN or infinite becomes null."""
    job = summary.job
    options = job.options

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def label(source: Source | float | None) -> str | float | None:
        if isinstance(source, Source):
            return source.label
        return None if source is None else number(source)

    binary = job.class_axis is None
    return {
        "samples": summary.samples,
        "ignored": summary.ignored,
        "classes": job.classes,
        "mean_loss": number(summary.mean_loss),
        "perplexity": number(summary.perplexity),
        "accuracy": number(summary.accuracy),
        "seconds": seconds,
        "hardest": [
            {
                "sample": hard.sample,
                "loss": number(hard.loss),
                "target": number(hard.target),
                "predicted": hard.predicted,
                "log_prob": number(hard.log_prob),
            }
            for hard in summary.hardest
        ],
        "settings": {
            "logits": job.logits.label,
            "targets": job.targets.label,
            "shape": list(job.logits.shape),
            "dtype": str(job.logits.dtype),
            "loss": options.loss,
            "weight": label(options.weight),
            "sample_weight": label(options.sample_weight),
            "pos_weight": label(options.pos_weight),
            "ignore_index": None if binary else options.ignore_index,
            "label_smoothing": options.label_smoothing,
            "axis": job.class_axis,
            "threads": fastloss.get_num_threads(),
            "instruction_set": config()["instruction_set"],
            "version": fastloss.__version__,
        },
    }


def _print_report(summary: Summary, seconds: float) -> None:
    job = summary.job
    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    ignored = f" ({summary.ignored:,} ignored)" if summary.ignored else ""
    for name, value in (
        ("logits", f"{job.logits.label}, {_shape(job.logits)}"),
        ("targets", f"{job.targets.label}, {_shape(job.targets)}"),
        ("loss", job.options.loss),
        ("samples", f"{summary.samples:,}{ignored}"),
        ("classes", f"{job.classes:,}"),
        ("mean loss", f"{summary.mean_loss:.6g}"),
        ("perplexity", f"{summary.perplexity:.6g}"),
        ("accuracy", f"{summary.accuracy:.2%}"),
        ("throughput", _throughput(summary, seconds)),
        (
            "runs on",
            f"{config()['instruction_set']}, {_plural(fastloss.get_num_threads(), 'thread')}",
        ),
    ):
        facts.add_row(name, value)
    if summary.non_finite:
        facts.add_row("warning", f"{_plural(summary.non_finite, 'loss')} not finite", style="red")
    console.print(facts)
    if summary.hardest:
        console.print(_hardest_table(summary))


def _hardest_table(summary: Summary) -> Table:
    table = Table(title="hardest samples", title_justify="left", title_style="bold")
    for name in ("sample", "loss", "target", "its probability", "predicted", "its probability"):
        table.add_column(name, justify="right")
    for hard in summary.hardest:
        place = np.unravel_index(hard.sample, summary.job.sample_shape)
        table.add_row(
            ", ".join(map(str, place)),
            f"{hard.loss:.5g}",
            f"{hard.target:g}",
            f"{math.exp(hard.log_prob):.3g}",
            str(hard.predicted),
            f"{math.exp(hard.predicted_log_prob):.3g}",
        )
    return table


def _shape(source: Source) -> str:
    return f"{source.dtype} {' × '.join(f'{n:,}' for n in source.shape)}"


def _throughput(summary: Summary, seconds: float) -> str:
    samples, data = summary.samples / seconds, summary.job.logits_bytes / seconds
    return f"{samples:,.0f} samples/s, {data / 1e9:.2f} GB/s ({seconds:.3g} s)"


def _plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def main() -> None:
    """The entry point: ends cleanly, without half a file, when told to."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app(prog_name="fastloss")


if __name__ == "__main__":
    main()
