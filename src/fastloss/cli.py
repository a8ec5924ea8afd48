"""The command line: ``fastloss score | compare | calibrate`` (extra ``cli``: typer and rich).

This file has only the user interface: options, their messages, and the order of the steps, which
are in `fastloss._scoring`. Results go to standard output, everything else to standard error. The
exit status is 0; 1 if ``--strict`` finds a loss that is not finite or ``--fail-above`` a result
that is too large; 2 for any problem with the input, after one line that describes it; or 128 plus
the number of a signal, which is 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import fastloss
from fastloss._scoring import InputError, comparison, plural, scorer, tempering
from fastloss._scoring.layout import Layout, lay_out
from fastloss._scoring.plots import calibrate as calibrate_plot
from fastloss._scoring.plots import compare as compare_plot
from fastloss._scoring.plots import score as score_plot
from fastloss._scoring.plots.common import check_plot_name, import_matplotlib, save
from fastloss._scoring.scorer import Loss, Options
from fastloss._scoring.totals import Summary
from fastloss._scoring.writers import (
    Columns,
    atomic,
    check_table_name,
    open_array,
    open_writer,
    write_table,
)

try:
    import typer

    from fastloss._scoring.inputs import Inputs
    from fastloss._scoring.reports import calibrate as calibrate_report
    from fastloss._scoring.reports import compare as compare_report
    from fastloss._scoring.reports import score as score_report
    from fastloss._scoring.terminal import (
        end_cleanly,
        errors_in_one_line,
        fail,
        open_standard_streams,
        print_results,
        progress,
    )
except ModuleNotFoundError as error:
    if error.name is not None and error.name.partition(".")[0] not in ("typer", "rich"):
        raise
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
    """Classification losses of saved logits, exact and fast."""
    if context.invoked_subcommand is None:
        fastloss.show_config()


class _Command(typer.core.TyperCommand):
    """A command that explains where too many arguments may come from."""

    # The type of the context is typer's own, and not the same in all its versions.
    def invoke(self, ctx: Any) -> Any:
        if ctx.args:
            names = [str(p.metavar) for p in self.params if p.param_type_name == "argument"]
            fail(
                f"{plural(len(ctx.args), 'argument')} too many, from {ctx.args[0]} on (expected "
                f"{', '.join(names)}): put a pattern in quotes, as in 'shards/*.npy', or the shell "
                "replaces it by its files",
                2,
            )
        return super().invoke(ctx)


# Options ------------------------------------------------------------------------------------------


_INPUT, _LOSS, _RESULT = "Input", "Loss", "Output"


def _option(text: str, panel: str, metavar: str = "FILE") -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel=panel)


def _named(name: str, text: str, panel: str, metavar: str = "FILE") -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=panel)


def _argument(text: str, metavar: str) -> Any:
    return typer.Argument(help=text, metavar=metavar)


_LOGITS_HELP = (
    "Logits: a .npy, .npz, .safetensors, Parquet, Arrow IPC or .csv file, or several files as one "
    "array: a folder, or a pattern in quotes."
)
_TARGETS_HELP = "Targets, in the same kinds of files; by default they are in LOGITS."

_Logits = Annotated[Path | None, _argument(_LOGITS_HELP, "LOGITS")]
_Targets = Annotated[Path | None, _argument(_TARGETS_HELP, "TARGETS")]
_MoreLogits = Annotated[
    list[Path] | None,
    _named("--logits", "Instead of LOGITS; may be repeated for several files.", _INPUT),
]
_MoreTargets = Annotated[
    list[Path] | None,
    _named("--targets", "Instead of TARGETS; may be repeated for several files.", _INPUT),
]
_LogitsName = Annotated[
    str | None,
    _option(
        "Array, tensor or column with the logits; or columns A,B,C, one for each class.",
        _INPUT,
        "NAME",
    ),
]
_TargetsName = Annotated[
    str | None, _option("Array, tensor or column with the targets.", _INPUT, "NAME")
]
_IgnoreIndex = Annotated[
    int | None, _option("Target of samples to leave out; -100 by default.", _LOSS, "N")
]
_Axis = Annotated[
    int | None,
    _option("Class axis of the logits; by default the axis that TARGETS lack, or 1.", _LOSS, "N"),
]
_Shift = Annotated[
    int,
    _option(
        "Number of positions to move the targets: 1 if logits predict the next token.", _INPUT, "N"
    ),
]
_GroupBy = Annotated[
    str | None,
    _option(
        "Report by group: a file (or FILE:COLUMN) with a group for each sample or row, or a column "
        "of the inputs.",
        _RESULT,
        "FILE|COLUMN",
    ),
]
_OutputGroups = Annotated[
    Path | None, _option("Write the groups to a .csv or .json file.", _RESULT)
]
_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_RESULT)
]
_Threads = Annotated[
    int | None, typer.Option(help="Number of threads; all cores by default.", metavar="N")
]


# Commands -----------------------------------------------------------------------------------------


@app.command(cls=_Command, context_settings={"allow_extra_args": True})
def score(
    logits: _Logits = None,
    targets: _Targets = None,
    *,
    more_logits: _MoreLogits = None,
    more_targets: _MoreTargets = None,
    logits_name: _LogitsName = None,
    targets_name: _TargetsName = None,
    shift: _Shift = 0,
    loss: Annotated[
        Loss, _option("cross-entropy, bce-with-logits or nll.", _LOSS, "NAME")
    ] = "cross-entropy",
    weight: Annotated[
        Path | None,
        _option("Weight of each class; for bce-with-logits any shape that broadcasts.", _LOSS),
    ] = None,
    sample_weight: Annotated[Path | None, _option("Weight of each sample.", _LOSS)] = None,
    pos_weight: Annotated[
        str | None,
        _option("Weight of the positive term of bce-with-logits.", _LOSS, "NUMBER|FILE"),
    ] = None,
    ignore_index: _IgnoreIndex = None,
    label_smoothing: Annotated[
        float | None, _option("Label smoothing, from 0 to 1; 0 by default.", _LOSS, "NUMBER")
    ] = None,
    axis: _Axis = None,
    group_by: _GroupBy = None,
    output: Annotated[
        Path | None,
        _option("Write each sample's result to a .npy, .csv or .parquet file.", _RESULT),
    ] = None,
    output_groups: _OutputGroups = None,
    plot: Annotated[
        Path | None,
        _option(
            "Plot the distribution of losses, loss by class and calibration to a .png, .svg or "
            ".pdf file.",
            _RESULT,
        ),
    ] = None,
    top: Annotated[
        int, _option("Number of hardest samples, groups and classes to show.", _RESULT, "N")
    ] = 5,
    as_json: _Json = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit status 1 if any sample's loss is not finite.",
            rich_help_panel=_RESULT,
        ),
    ] = False,
    threads: _Threads = None,
) -> None:
    """Score LOGITS against TARGETS. Files may be larger than memory.

    Without arguments, score the handwritten digits that come with fastloss.
    """
    with _command(top, threads) as inputs:
        binary = loss == "bce-with-logits"
        for given, option, known in (
            (sample_weight, "--sample-weight", not binary),
            (ignore_index, "--ignore-index", not binary),
            (axis, "--axis", not binary),
            (shift or None, "--shift", not binary),
            (label_smoothing, "--label-smoothing", loss == "cross-entropy"),
            (pos_weight, "--pos-weight", binary),
        ):
            if given is not None and not known:
                raise InputError(f"--loss {loss} has no {option}")
        logits_paths = _either("LOGITS", logits, "--logits", more_logits)
        targets_paths = _either("TARGETS", targets, "--targets", more_targets)
        sources = inputs.logits_and_targets(
            logits_paths, targets_paths, logits_name, targets_name, axis
        )
        options = Options(
            loss=loss,
            weight=inputs.weight("--weight", _paths(weight)),
            sample_weight=inputs.weight("--sample-weight", _paths(sample_weight)),
            pos_weight=inputs.number_or_file("--pos-weight", pos_weight),
            ignore_index=-100 if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing or 0.0,
            axis=axis,
            shift=shift,
            groups=inputs.groups(group_by, (targets_paths, logits_paths)),
            entropy=output is not None,
        )
        inputs.check_outputs((output, output_groups, plot))
        if output_groups is not None and group_by is None:
            raise InputError("--output-groups needs --group-by")
        job = scorer.plan(*sources, options)
        summary = Summary(job, top)
        seconds = _run(
            "scoring", scorer, job, summary, (output, output_groups, plot),
            lambda: [score_report.group_json(group) for group in summary.group_scores()],
            lambda: score_plot.make_figure(summary),
        )  # fmt: skip
        if as_json:
            _print_json(score_report.as_json(summary, seconds))
        else:
            print_results(score_report.as_text(summary, seconds))
        if strict and summary.non_finite:
            fail(f"{plural(summary.non_finite, 'sample')} not finite", 1)


@app.command(cls=_Command, context_settings={"allow_extra_args": True})
def compare(
    a: Annotated[Path | None, _argument("Logits of the first model, as for score.", "A")] = None,
    b: Annotated[
        Path | None, _argument("Logits of the second model for the same samples.", "B")
    ] = None,
    targets: Annotated[
        Path | None, _argument("Targets; without them only divergences are computed.", "TARGETS")
    ] = None,
    *,
    more_a: Annotated[
        list[Path] | None, _named("--a", "Instead of A; may be repeated for several files.", _INPUT)
    ] = None,
    more_b: Annotated[
        list[Path] | None, _named("--b", "Instead of B; may be repeated for several files.", _INPUT)
    ] = None,
    more_targets: _MoreTargets = None,
    a_name: Annotated[
        str | None, _option("Array, tensor or column of A's logits.", _INPUT, "NAME")
    ] = None,
    b_name: Annotated[
        str | None, _option("Array, tensor or column of B's logits.", _INPUT, "NAME")
    ] = None,
    targets_name: _TargetsName = None,
    shift: _Shift = 0,
    ignore_index: _IgnoreIndex = None,
    axis: _Axis = None,
    group_by: _GroupBy = None,
    output: Annotated[
        Path | None,
        _option("Write each sample's result to a .npy, .csv or .parquet file.", _RESULT),
    ] = None,
    output_groups: _OutputGroups = None,
    plot: Annotated[
        Path | None,
        _option(
            "Plot A's loss against B's, their difference, and where B is worse, to a .png, .svg "
            "or .pdf file.",
            _RESULT,
        ),
    ] = None,
    top: Annotated[
        int, _option("Number of samples with the largest change to show.", _RESULT, "N")
    ] = 5,
    as_json: _Json = False,
    fail_above: Annotated[
        list[str] | None,
        _option(
            "Exit status 1 if a result is above a limit, such as kl=0.01, kl.p99=0.1, "
            "different=0.02 or mean_loss_difference=0.001; may be repeated.",
            _RESULT,
            "NAME=NUMBER",
        ),
    ] = None,
    threads: _Threads = None,
) -> None:
    """Compare the logits of two models, quantisations or checkpoints on the same samples."""
    with _command(top, threads) as inputs:
        a_paths, b_paths = _either("A", a, "--a", more_a), _either("B", b, "--b", more_b)
        targets_paths = _either("TARGETS", targets, "--targets", more_targets)
        for name, paths in (("A", a_paths), ("B", b_paths)):
            if not paths:
                raise InputError(f"{name} is missing: compare needs the logits of two models")
        first = inputs.logits(a_paths, a_name, axis, "--a-name")
        second = inputs.logits(b_paths, b_name, axis, "--b-name")
        if first.label == second.label:
            raise InputError(f"{first.label} can't be both A and B")
        labels = None
        if targets_paths or targets_name is not None:
            labels = inputs.targets(targets_paths or a_paths, targets_name, axis, first.ndim)
        limits = compare_report.parse_limits(fail_above or [], labels is not None)
        places = (targets_paths, a_paths, b_paths)
        groups = inputs.groups(group_by, places)
        inputs.check_outputs((output, output_groups, plot))
        if output_groups is not None and group_by is None:
            raise InputError("--output-groups needs --group-by")
        ignored = -100 if ignore_index is None else ignore_index
        job = comparison.plan(first, second, labels, axis, shift, ignored, groups)
        found = comparison.Comparison(job, top)
        seconds = _run(
            "comparing", comparison, job, found, (output, output_groups, plot),
            lambda: [compare_report.group_json(group) for group in found.group_comparisons()],
            lambda: compare_plot.make_figure(found),
        )  # fmt: skip
        if as_json:
            _print_json(compare_report.as_json(found, seconds))
        else:
            print_results(compare_report.as_text(found, seconds))
        if too_much := compare_report.above(found, limits):
            fail("; ".join(too_much), 1)


@app.command(cls=_Command, context_settings={"allow_extra_args": True})
def calibrate(
    logits: _Logits = None,
    targets: _Targets = None,
    *,
    more_logits: _MoreLogits = None,
    more_targets: _MoreTargets = None,
    logits_name: _LogitsName = None,
    targets_name: _TargetsName = None,
    shift: _Shift = 0,
    ignore_index: _IgnoreIndex = None,
    axis: _Axis = None,
    output: Annotated[
        Path | None,
        _option("Write the log-probabilities at the temperature found to a .npy file.", _RESULT),
    ] = None,
    plot: Annotated[
        Path | None,
        _option("Plot the calibration before and after to a .png, .svg or .pdf file.", _RESULT),
    ] = None,
    as_json: _Json = False,
    threads: _Threads = None,
) -> None:
    """Find the temperature that minimises the loss of LOGITS.

    The files are read several times. Without arguments, use the handwritten digits that come with
    fastloss.
    """
    with _command(0, threads) as inputs:
        logits_paths = _either("LOGITS", logits, "--logits", more_logits)
        targets_paths = _either("TARGETS", targets, "--targets", more_targets)
        ignored = -100 if ignore_index is None else ignore_index
        scorer.check_ignore_index(ignored)

        def open_job() -> tempering.Job:
            sources = inputs.logits_and_targets(
                logits_paths, targets_paths, logits_name, targets_name, axis
            )
            inputs.check_outputs((output, plot))
            soft = "calibrate takes no class probabilities"
            return tempering.Job(lay_out(*sources, axis, shift, soft), ignored)

        fit, layout, seconds = _run_calibrate(open_job, inputs, output, plot)
        if as_json:
            _print_json(calibrate_report.as_json(fit, layout, ignored, seconds))
        else:
            print_results(calibrate_report.as_text(fit, layout, seconds))


# What the commands share --------------------------------------------------------------------------


@contextlib.contextmanager
def _command(top: int, threads: int | None) -> Iterator[Inputs]:
    """Handle the errors, the open files and the threads of a command."""
    with errors_in_one_line(), contextlib.ExitStack() as stack:
        if sys.stdout is None:
            raise InputError("standard output is closed")
        if top < 0:
            raise InputError(f"--top {top}: expected 0 or more")
        if threads is not None:
            try:
                fastloss.set_num_threads(threads)
            except ValueError as error:
                raise InputError(f"--threads {threads}: {error}") from error
        yield Inputs(stack)


def _paths(path: Path | None) -> list[Path]:
    return [] if path is None else [path]


def _either(
    argument: str, path: Path | None, option: str, more: Sequence[Path] | None
) -> list[Path]:
    """Return the files of an argument, or of the option that replaces it."""
    if path is not None and more:
        raise InputError(f"{argument} is given twice: as {path} and by {option}")
    return list(more or ()) or _paths(path)


def _print_json(report: dict[str, Any]) -> None:
    print_results(json.dumps(report, allow_nan=False) + "\n")


def _run(
    title: str,
    steps: Any,
    job: Any,
    found: Any,
    results: tuple[Path | None, Path | None, Path | None],
    list_groups: Callable[[], list[dict[str, Any]]],
    draw: Callable[[], Any],
) -> float:
    """Add all blocks of a job to its totals, and write the result files, which appear at the end.

    Problems with the files are found first, not after an hour's work. Returns the time in seconds.

    Parameters
    ----------
    title : str
        Title of the progress bar.
    steps : module
        `scorer` or `comparison`: what a row of the output holds.
    job, found
        What they are to do, and the totals of it.
    results : tuple of paths
        The files for a row for each sample, the groups and the plot.
    list_groups, draw : callable
        Make the contents of the latter two.
    """
    output, groups, plot = results
    if groups is not None:
        check_table_name("--output-groups", groups)
    if plot is not None:
        check_plot_name(plot)
        import_matplotlib()
    with contextlib.ExitStack() as stack:
        table, picture = (
            None if path is None else stack.enter_context(atomic(path)) for path in (groups, plot)
        )
        write: Callable[[Columns], None] | None = None
        if output is not None:
            row, rows = steps.row_type(job), job.layout.samples
            write = stack.enter_context(open_writer(output, row, rows))
        with progress(title, job.logits_bytes) as advance:
            start = time.perf_counter()
            with contextlib.closing(job.blocks(found.of)) as blocks:
                for block, part in blocks:
                    found.merge(part)
                    if write is not None:
                        write(steps.columns(job, block))
                    advance(block.logits_bytes)
            seconds = time.perf_counter() - start
        if table is not None and groups is not None:
            write_table(groups, table, list_groups())
        if picture is not None and plot is not None:
            save(draw(), picture, plot.suffix.lower()[1:])
    return seconds


def _run_calibrate(
    open_job: Callable[[], tempering.Job], inputs: Inputs, output: Path | None, plot: Path | None
) -> tuple[tempering.Fit, Layout, float]:
    """Find the temperature; return the fit and the time in seconds. Files appear at the end."""
    job: tempering.Job | None = open_job()
    assert job is not None
    layout = job.layout
    if plot is not None:
        check_plot_name(plot)
        import_matplotlib()
    with contextlib.ExitStack() as files:
        picture = None if plot is None else files.enter_context(atomic(plot))
        write = None
        if output is not None:
            turned = layout.class_axis == 0 or layout.logits.axis == 1
            if turned and layout.logits.ndim != 2:
                raise InputError(f"--output {output}: the class axis can't be the first of several")
            array = open_array(output, tempering.output_type(layout), layout.logits.shape, turned)
            write = files.enter_context(array)
        start = time.perf_counter()
        done = 0

        def run(temperature: float, write: Callable[[Any], None] | None = None) -> tempering.Pass:
            nonlocal job, done
            current, job = job or open_job(), None
            done += 1
            with progress(f"calibrating, pass {done}", current.layout.logits_bytes) as advance:
                found = tempering.run_pass(current, temperature, advance, write)
            inputs.close()
            return found

        temperature, steps, before = tempering.fit(run, layout.classes)
        fit = tempering.Fit(temperature, steps, before, run(temperature, write))
        seconds = time.perf_counter() - start
        if picture is not None and plot is not None:
            figure = calibrate_plot.make_figure(fit, layout.logits.label)
            save(figure, picture, plot.suffix.lower()[1:])
    return fit, layout, seconds


def main() -> None:
    """Run the command; a signal ends it without leaving half a file."""
    open_standard_streams()
    end_cleanly()
    app(prog_name="fastloss")


if __name__ == "__main__":
    main()
