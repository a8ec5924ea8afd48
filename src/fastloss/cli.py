"""The command line: ``fastloss score LOGITS TARGETS`` (needs the extra ``cli``: typer and rich).

Only what faces the user is here: options, messages, the progress bar, the report. The work is in
`fastloss._scoring`. Results go to standard output, all else to standard error. The exit status is
0; 1 if ``--strict`` finds what isn't finite; 2 for anything wrong with the input, after one line
that says what; or 128 and the signal's number, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, NoReturn

import numpy as np

import fastloss
from fastloss._config import config
from fastloss._scoring import InputError
from fastloss._scoring.plot import check_plot_name, draw, import_matplotlib
from fastloss._scoring.readers import (
    ArraySource,
    Request,
    Source,
    open_source,
)
from fastloss._scoring.scorer import NONE, Job, Loss, Options, Scores, Summary, plan
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
        "the fastloss command needs typer and rich: pip install 'fastloss[cli]', or typer and rich"
    ) from error

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(fastloss.__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def bare(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
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
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit status 1 if any sample's loss is not finite.",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads; all cores if not given.", metavar="N")
    ] = None,
) -> None:
    """Score LOGITS against TARGETS, files larger than memory included.

    Without arguments it scores the handwritten digits that come with fastloss.
    """
    with _errors_in_one_line(), contextlib.ExitStack() as files:
        if sys.stdout is None:
            raise InputError("standard output is closed")
        if top < 0:
            raise InputError(f"--top {top}: expected 0 or more")
        if threads is not None:
            try:
                fastloss.set_num_threads(threads)
            except ValueError as error:
                raise InputError(f"--threads {threads}: {error}") from error

        def open_one(path: Path, request: Request) -> Source:
            source = open_source(path, request)
            files.callback(source.close)
            return source

        inputs = (logits, targets, weight, sample_weight, Path(pos_weight or ""))
        _check_outputs((output, plot), inputs)
        options = _options(
            open_one, loss, weight, sample_weight, pos_weight, ignore_index, label_smoothing, axis
        )
        job = plan(*_open_inputs(open_one, logits, targets, logits_name, targets_name), options)
        summary, seconds = _run(job, top, output, plot)
        if as_json:
            _print_results(json.dumps(_as_json(summary, seconds), allow_nan=False) + "\n")
        else:
            _print_results(_report(summary, seconds))
        if strict and summary.non_finite:
            _fail(f"{_plural(summary.non_finite, 'sample')} not finite", 1)


# Inputs -------------------------------------------------------------------------------------------


_Open = Callable[[Path, Request], Source]


def _options(
    open_one: _Open,
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
        weight=_open_weight(open_one, "--weight", weight),
        sample_weight=_open_weight(open_one, "--sample-weight", sample_weight),
        pos_weight=_number_or_file(open_one, "--pos-weight", pos_weight),
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing or 0.0,
        axis=axis,
    )


def _open_weight(open_one: _Open, option: str, path: Path | None) -> Source | None:
    if path is None:
        return None
    return open_one(path, Request("weight", option, None, ("weight", "weights")))


def _number_or_file(open_one: _Open, option: str, text: str | None) -> Source | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return _open_weight(open_one, option, Path(text))


def _open_inputs(
    open_one: _Open,
    logits: Path | None,
    targets: Path | None,
    logits_name: str | None,
    targets_name: str | None,
) -> tuple[Source, Source]:
    """The sources of the files named, or of the embedded digits where none is."""
    if logits is None:
        if logits_name is not None or targets_name is not None:
            raise InputError("--logits-name and --targets-name need a file: LOGITS is missing")
        scores, labels = load_digits_logits()
        return ArraySource("handwritten digits", scores), ArraySource("their labels", labels)
    first = open_one(
        logits, Request("logits", "--logits-name", logits_name, ("logits", "log_probs"))
    )
    if targets is None and first.label == str(logits):
        raise InputError(f"TARGETS is missing: {logits} is a .npy, which holds one array")
    second = open_one(
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
    silent = not _is_terminal(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        task = progress.add_task("", total=job.logits_bytes)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turn the errors that a user can cause into one line and an exit status."""
    try:
        yield
    except (InputError, ImportError) as error:
        _fail(str(error), 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{name}{error.strerror or error}", 2)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", 2)


def _fail(message: str, status: int) -> NoReturn:
    _say(message)
    raise typer.Exit(status)


def _say(message: str) -> None:
    """Print one line on standard error, where there is one."""
    if sys.stderr is not None:  # else print would take standard output
        with contextlib.suppress(OSError):
            print(f"fastloss: {_one_line(message)}", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    """Text as it can be shown: what a file's name may hold to confuse a terminal is escaped."""
    line = " ".join(text.split())
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
    )


def _print_results(text: str) -> None:
    """Print on standard output, and notice a full disk or a closed pipe."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        # What the terminal has no letters for is shown as question marks.
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"cannot write to standard output: {error.strerror or error}") from error


def _is_terminal(stream: IO[str] | None) -> bool:
    """Whether a standard stream, which may be closed, is a terminal."""
    return stream is not None and stream.isatty()


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
        "non_finite": summary.non_finite,
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
                "predicted": None if hard.predicted == NONE else hard.predicted,
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


def _report(summary: Summary, seconds: float) -> str:
    """The report for people, as wide and as colourful as standard output can show it."""
    job = summary.job
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=_is_terminal(sys.stdout) or None,
        highlight=False,
        # A file's name is shown as it is, brackets and colons included.
        markup=False,
        emoji=False,
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    ignored = f" ({summary.ignored:,} ignored)" if summary.ignored else ""
    for name, value in (
        ("logits", f"{_one_line(job.logits.label)}, {_shape(job.logits)}"),
        ("targets", f"{_one_line(job.targets.label)}, {_shape(job.targets)}"),
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
        facts.add_row("warning", f"{_plural(summary.non_finite, 'sample')} not finite", style="red")
    console.print(facts)
    if summary.hardest:
        console.print(_hardest_table(summary))
    return text.getvalue()


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
            _probability(hard.log_prob),
            "none" if hard.predicted == NONE else str(hard.predicted),
            _probability(hard.predicted_log_prob),
        )
    return table


def _probability(log_prob: float) -> str:
    """A probability; what was passed for its logarithm may be any number."""
    try:
        return f"{math.exp(log_prob):.3g}"
    except OverflowError:
        return "inf"


def _shape(source: Source) -> str:
    return f"{source.dtype} {' × '.join(f'{n:,}' for n in source.shape)}"


def _throughput(summary: Summary, seconds: float) -> str:
    samples, data = summary.samples / seconds, summary.job.logits_bytes / seconds
    return f"{samples:,.0f} samples/s, {data / 1e9:.2f} GB/s ({seconds:.3g} s)"


def _plural(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


# What ends a run, and Ctrl-C. SIGHUP comes when a terminal is closed; Windows has none.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End the run by an exception, so that its files are removed on the way out."""
    for other in _SIGNALS:  # a second signal must not cut that short
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        _say("interrupted")
    sys.exit(128 + number)


def _open_standard_streams() -> None:
    """Give a closed standard stream's number to nothing, or a result's file would get it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main() -> None:
    """The entry point: ends cleanly, without half a file, when told to."""
    _open_standard_streams()
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    app(prog_name="fastloss")


if __name__ == "__main__":
    main()
