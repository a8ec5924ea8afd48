"""The picture of a finished run: spread of the losses, loss by class, calibration.

Three panels. What explains one stands between its title and its frame, where nothing is drawn, so
that no text ever lies on the data or on another text.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError
from fastloss._scoring.scorer import Distributions, Summary

FORMATS = (".png", ".svg", ".pdf")

# More bars than this can't be read: of more classes, those with the highest mean loss are shown.
MOST_CLASSES = 20
# The mean of fewer samples says more about them than about their class.
LEAST_SAMPLES = 10

BLUE, ORANGE, GREY = "#2b6ca3", "#d9722b", "#6b6b6b"


def import_matplotlib() -> Any:
    """Import matplotlib's figure, or say which extra brings it."""
    # Its remarks about a font cache are no lines for standard error.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            "--plot needs matplotlib: pip install 'fastloss[plot]', or matplotlib"
        ) from error
    return Figure


def check_plot_name(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: expected a name that ends in {', '.join(FORMATS)}")


def draw(summary: Summary, path: Path, kind: str) -> None:
    """Draw the distributions of a summary to ``path`` as a ``kind`` ("png", "svg" or "pdf")."""
    figure = make_figure(summary)
    # Not into the file itself: where a disk is full, matplotlib fails in ways of its own.
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters in a file's name that the font lacks
        figure.savefig(picture, format=kind, dpi=130)
    path.write_bytes(picture.getbuffer())


def make_figure(summary: Summary) -> Any:
    """The figure that `draw` saves."""
    assert summary.distributions is not None
    # A figure of its own, without pyplot: no window system, no state left behind.
    figure = import_matplotlib()(figsize=(15, 5.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    grid = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1), height_ratios=(4, 1))
    _draw_losses(figure.add_subplot(grid[:, 0]), summary, summary.distributions)
    _draw_classes(figure.add_subplot(grid[:, 1]), summary.distributions)
    _draw_calibration(
        figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2]), summary.distributions
    )
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    counted = summary.samples - summary.ignored
    label = summary.job.logits.label
    facts = [
        f"{label if len(label) <= 60 else '…' + label[-59:]}: {counted:,} samples",
        f"{summary.job.classes:,} classes",
        f"mean loss {summary.mean_loss:.4g}",
        f"{summary.accuracy:.1%} right",
    ]
    if summary.non_finite:
        facts.append(f"{summary.non_finite:,} not finite and not drawn")
    figure.suptitle(", ".join(facts), parse_math=False)
    return figure


def _caption(panel: Any, title: str, text: str) -> None:
    """A title, and below it a line that explains the panel."""
    panel.set_title(title, loc="left", pad=24)
    panel.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )


def _nothing(panel: Any, title: str, text: str) -> None:
    """A panel that has nothing to show, and why."""
    _caption(panel, title, text)
    panel.spines[:].set_visible(False)
    panel.set(xticks=[], yticks=[])


# Losses -------------------------------------------------------------------------------------------


def _draw_losses(panel: Any, summary: Summary, data: Distributions) -> None:
    """Share of the samples over the loss, on a logarithmic axis."""
    title = "How the losses spread"
    total = int(data.log_loss_counts.sum()) + data.not_positive
    if total == data.not_positive:
        _nothing(panel, title, "all losses are 0" if total else "no finite losses")
        return
    counts, edges = _loss_bars(data)
    low, high = edges[0], edges[-1]
    panel.bar(edges[:-1], counts / total, np.diff(edges), align="edge", color=BLUE)
    median, mean = _median(data, total), summary.mean_loss
    lines = [
        (median, f"median {median:.2g}", GREY, "--"),
        (mean, f"mean {mean:.3g}", ORANGE, "-"),
    ]
    for value, text, colour, style in lines:
        if math.isfinite(value) and value > 0:
            panel.axvline(value, color=colour, linestyle=style, linewidth=1.5, label=text)
            low, high = min(low, value), max(high, value)
    # Never less than a decade, so that the axis has numbers one can read.
    room = max(0.0, 1 - math.log10(high / low)) / 2 + 0.02 * math.log10(high / low)
    low, high = low / 10**room, high * 10**room
    panel.set(xscale="log", xlim=(low, high))
    _set_log_ticks(panel.xaxis, low, high)
    panel.yaxis.set_major_formatter(_percent_formatter())
    panel.set(xlabel="loss of a sample (nats)", ylabel="share of the samples")
    _caption(panel, title, "")
    if data.not_positive:
        panel.plot([], [], " ", label=f"{data.not_positive / total:.1%} are 0")
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=9,
        borderpad=0.2,
        borderaxespad=0.1,
        columnspacing=1.2,
    )


def _loss_bars(data: Distributions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Counts and edges of the bars: as many as the number of samples is good for."""
    counts = data.log_loss_counts
    total = int(counts.sum())
    # A handful of losses far below the rest would squeeze the picture: cut at the lowest 0.1 %.
    first = int(np.searchsorted(np.cumsum(counts), 0.001 * total, side="right"))
    span = int(np.flatnonzero(counts)[-1]) + 1 - first
    width = max(2, -(-span // min(60, 2 * math.isqrt(total))))
    bars = -(-span // width)
    counts = np.pad(counts[first:], (0, bars * width))[: bars * width]
    exponents = data.DECADES[0] + (first + width * np.arange(bars + 1)) / data.BINS_PER_DECADE
    return counts.reshape(bars, width).sum(axis=1), 10.0**exponents


def _median(data: Distributions, total: int) -> float:
    """The median loss, to a bin; in the bin, samples count as spread evenly over the logarithm."""
    below = np.cumsum(data.log_loss_counts) + data.not_positive
    if data.not_positive >= total / 2:
        return 0.0
    at = int(np.searchsorted(below, total / 2))
    part = 1 - (below[at] - total / 2) / data.log_loss_counts[at]
    return float(10 ** (data.DECADES[0] + (at + part) / data.BINS_PER_DECADE))


def _set_log_ticks(axis: Any, low: float, high: float) -> None:
    """Numbers at powers of ten, few enough to be read; at 1, 2 and 5 on a short axis."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    decades = range(first, last + 1)
    step = -(-len(decades) // 7)
    ticks = [float(f"1e{n}") for n in decades if n % max(1, step) == 0]
    if math.log10(high / low) < 3:
        ticks = [
            tick
            for n in range(first - 1, last + 1)
            for digit in (1, 2, 5)
            if low <= (tick := float(f"{digit}e{n}")) <= high
        ]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([_plain(tick) for tick in ticks]))
    minor = [float(f"{digit}e{n}") for n in range(first - 1, last + 1) for digit in range(2, 10)]
    axis.set_minor_locator(FixedLocator(minor) if len(minor) <= 80 else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """A number as people write it: 0.05, 20, and 10⁻⁷ where that would be long."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digit, exponent = f"{value:.0e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if digit == "1" else rf"${digit}\times{power}$"


# Classes ------------------------------------------------------------------------------------------


def _draw_classes(panel: Any, data: Distributions) -> None:
    """The mean loss of the samples of each class, the hardest at the top."""
    title = "Loss by class, hardest first"
    counts = data.class_counts
    enough = np.flatnonzero(counts >= LEAST_SAMPLES)
    if not enough.size:
        _nothing(panel, title, f"no class has {LEAST_SAMPLES} samples")
        return
    means = data.class_losses[enough] / counts[enough]
    order = np.argsort(-means, kind="stable")[:MOST_CLASSES]
    shown, means = enough[order], means[order]
    rows = np.arange(len(shown))
    panel.barh(rows, means, color=BLUE)
    for row, mean in zip(rows, means, strict=True):
        panel.annotate(
            f"{mean:.3g}",
            (max(mean, 0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREY,
        )
    panel.set_yticks(rows, [f"{label} ({counts[label]:,})" for label in shown], fontsize=8)
    # A bar stays a bar where there are few; and the numbers behind the bars have room.
    panel.set_ylim(max(len(rows), 8) - 0.5, -0.5)
    panel.set_xlim(min(0, means.min()), max(means.max() * 1.2, 0) or 1)
    panel.locator_params(axis="x", nbins=4)
    panel.set(xlabel="mean loss", ylabel="class of the target (number of samples)")
    few = np.count_nonzero(counts) - enough.size
    parts = []
    if enough.size > len(shown):
        parts.append(f"{len(shown)} of {enough.size:,} classes")
    if few:
        parts.append(f"without {few:,} of fewer than {LEAST_SAMPLES} samples")
    _caption(panel, title, ", ".join(parts) or "all classes")


# Calibration --------------------------------------------------------------------------------------


def _draw_calibration(panel: Any, below: Any, data: Distributions) -> None:
    """Right predictions over the probability they were given; below, how many there were."""
    counts, confidence, right = data.calibration()
    if not counts.size:
        _nothing(panel, "Calibration", "no predictions")
        _nothing(below, "", "")
        return
    low_end, high_end = _interval(right, counts)
    filled = np.flatnonzero(data.bin_counts)
    share = data.bin_counts[filled] / data.bin_counts.sum()
    believed = data.bin_confidence[filled] / data.bin_counts[filled]
    # Both axes show the same stretch, so that the line of perfect calibration is the diagonal:
    # what all points reach to, and all samples but for a thousandth.
    first, last = np.searchsorted(np.cumsum(share), (0.0005, 0.9995)).clip(0, len(share) - 1)
    low = min(believed[first], low_end.min())
    high = max(believed[last], high_end.max())
    room = max(0.05 * (high - low), 0.01)
    low, high = max(0.0, low - room), min(1.0, high + room)
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    panel.errorbar(
        confidence,
        right,
        (right - low_end, high_end - right),
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=2,
        clip_on=False,
    )
    panel.set(xlim=(low, high), ylim=(low, high), ylabel="share of right predictions")
    panel.tick_params(labelbottom=False)
    _caption(
        panel,
        f"Calibration, expected error {data.calibration_error:.2%}",
        "above the dashed line: right more often than believed",
    )
    heights, edges = np.histogram(believed.clip(low, high), 20, (low, high), weights=share)
    below.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE, alpha=0.5)
    below.set(xlim=(low, high), ylim=(0, None), xlabel="probability of the predicted class")
    below.set_ylabel("share of\nthe samples")
    for axis, most in ((panel.xaxis, 4), (panel.yaxis, 6), (below.xaxis, 4), (below.yaxis, 2)):
        axis.set_major_formatter(_percent_formatter())
        axis.set_major_locator(_locator(most))


def _interval(share: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How far off a few samples may be by chance: Wilson's interval of one standard error.

    Unlike the standard error itself it isn't empty where all samples are right. Wilson, "Probable
    inference, the law of succession, and statistical inference", JASA 1927.
    """
    centre = (share + 0.5 / counts) / (1 + 1 / counts)
    half = np.sqrt(share * (1 - share) / counts + 0.25 / counts**2) / (1 + 1 / counts)
    return np.minimum(share, centre - half), np.maximum(share, centre + half)


def _locator(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 5, 10])


def _percent_formatter() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, place: f"{100 * share:.4g}%")
