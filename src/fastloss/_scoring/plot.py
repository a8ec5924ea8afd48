"""The picture of a finished run: spread of the losses, loss by class, calibration.

Three panels, each with its reading in its title and its labels on the data instead of in a legend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastloss._scoring import InputError
from fastloss._scoring.scorer import Distributions, Summary

FORMATS = (".png", ".svg", ".pdf")

# More bars than this can't be read: of more classes, those with the highest mean loss are shown.
MOST_CLASSES = 20

BLUE, ORANGE, GREY = "#2b6ca3", "#d9722b", "#6b6b6b"


def import_matplotlib() -> Any:
    """Import matplotlib's figure, or say which extra brings it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("--plot needs matplotlib: pip install 'fastloss[plot]'") from error
    return Figure


def check_plot_name(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: expected a name that ends in {', '.join(FORMATS)}")


def draw(summary: Summary, path: Path, kind: str) -> None:
    """Draw the distributions of a summary to ``path`` as a ``kind`` ("png", "svg" or "pdf")."""
    assert summary.distributions is not None
    # A figure of its own, without pyplot: no window system, no state left behind.
    figure = import_matplotlib()(figsize=(15, 5), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1), height_ratios=(4, 1))
    _draw_losses(figure.add_subplot(grid[:, 0]), summary, summary.distributions)
    _draw_classes(figure.add_subplot(grid[:, 1]), summary.distributions)
    calibration = figure.add_subplot(grid[0, 2])
    _draw_calibration(calibration, summary.distributions)
    _draw_confidence(figure.add_subplot(grid[1, 2], sharex=calibration), summary.distributions)
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    counted = summary.samples - summary.ignored
    figure.suptitle(
        f"{summary.job.logits.label}: {counted:,} samples, {summary.job.classes:,} classes, "
        f"mean loss {summary.mean_loss:.4g}, {summary.accuracy:.1%} right"
    )
    figure.savefig(path, format=kind, dpi=130)


def _draw_losses(panel: Any, summary: Summary, data: Distributions) -> None:
    """Share of the samples over the loss, on a logarithmic axis."""
    counts = data.log_loss_counts
    panel.set(xlabel="loss of a sample (nats)", ylabel="share of the samples")
    used = np.flatnonzero(counts)
    if not used.size:
        panel.set_title("No finite losses")
        return
    edges = 10.0 ** (data.DECADES[0] + np.arange(len(counts) + 1) / data.BINS_PER_DECADE)
    # A handful of losses far below the rest would squeeze the picture: cut at the lowest 0.1 %.
    total = counts.sum()
    first = int(np.searchsorted(np.cumsum(counts), 0.001 * total, side="right"))
    last = int(used[-1])
    shares = counts[first : last + 1] / total
    panel.bar(
        edges[first : last + 1], shares, np.diff(edges[first : last + 2]), align="edge", color=BLUE
    )
    panel.set_xscale("log")
    panel.yaxis.set_major_formatter(_percent_formatter())
    top = shares.max() * 1.25
    panel.set_ylim(0, top)
    # Never less than a decade, so that the axis has numbers one can read.
    low, high = edges[first], edges[last + 1]
    panel.set_xlim(min(low, high / 10**0.5 / 3), max(high, low * 10**0.5 * 3))
    # The median lies in the bin where the running count passes one half; between its edges the
    # samples count as spread evenly over the logarithm.
    below = np.cumsum(counts) / total
    at = int(np.searchsorted(below, 0.5))
    part = 1 - (below[at] - 0.5) * total / counts[at]
    median = float(edges[at] * (edges[at + 1] / edges[at]) ** part)
    mean = summary.mean_loss
    for value, text, colour in (
        (median, f"half of the samples\nlie below {median:.2g}", GREY),
        (mean, f"mean\n{mean:.3g}", ORANGE),
    ):
        if np.isfinite(value) and value > 0:
            # Each text on the side of its line that the other line is not.
            right = value > median or (value == median > mean)
            panel.axvline(value, color=colour, linewidth=1.5)
            panel.annotate(
                text,
                (value, top),
                xytext=(5 if right else -5, -3),
                textcoords="offset points",
                ha="left" if right else "right",
                va="top",
                color=colour,
            )
    panel.set_title("How the losses spread")


def _draw_classes(panel: Any, data: Distributions) -> None:
    """The mean loss of the samples of each class, the hardest at the top."""
    present = np.flatnonzero(data.class_counts)
    means = data.class_losses[present] / data.class_counts[present]
    order = np.argsort(-means, kind="stable")[:MOST_CLASSES]
    shown, means = present[order], means[order]
    rows = np.arange(len(shown))
    panel.barh(rows, means, color=BLUE)
    for row, label, mean in zip(rows, shown, means, strict=True):
        panel.annotate(
            f"{mean:.3g}  ({data.class_counts[label]:,})",
            (mean, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREY,
        )
    panel.set_yticks(rows, [str(label) for label in shown])
    panel.invert_yaxis()
    panel.set(xlabel="mean loss (number of samples in brackets)", ylabel="class of the target")
    panel.margins(x=0.3)
    panel.locator_params(axis="x", nbins=6)
    some = "" if len(present) == len(shown) else f" {len(shown)} of {len(present):,},"
    panel.set_title(f"Loss by class,{some} hardest first")


def _draw_calibration(panel: Any, data: Distributions) -> None:
    """Share of right predictions over the probability that they were given."""
    # A point made of a few samples says nothing; it is drawn only where there is no better one.
    filled = data.bin_counts >= min(10, data.bin_counts.max())
    filled &= data.bin_counts > 0
    counts = data.bin_counts[filled]
    confidence = data.bin_confidence[filled] / counts
    right = data.bin_correct[filled] / counts
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    # A bin's standard error: how far off a few samples may be by chance.
    error = np.sqrt(right * (1 - right) / counts)
    panel.errorbar(confidence, right, error, color=BLUE, marker="o", markersize=4, capsize=2)
    for place, text, align in (
        ((0.03, 0.95), "above the line:\nright more often\nthan it believes", "left"),
        ((0.97, 0.05), "below the line:\noverconfident", "right"),
    ):
        panel.text(*place, text, color=GREY, ha=align, va="top" if align == "left" else "bottom")
    panel.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share of right predictions")
    panel.tick_params(labelbottom=False)
    panel.yaxis.set_major_formatter(_percent_formatter())
    panel.set_title(f"Calibration, expected error {data.calibration_error:.2%}")


def _draw_confidence(panel: Any, data: Distributions) -> None:
    """How many predictions had which probability."""
    bins = data.CONFIDENCE_BINS
    share = data.bin_counts / max(1, data.bin_counts.sum())
    panel.bar(np.arange(bins) / bins, share, 1 / bins, align="edge", color=BLUE, alpha=0.5)
    panel.set(
        ylim=(0, 1), xlabel="probability of the predicted class", ylabel="share of\nthe samples"
    )
    panel.xaxis.set_major_formatter(_percent_formatter())
    panel.yaxis.set_major_formatter(_percent_formatter())


def _percent_formatter() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)
