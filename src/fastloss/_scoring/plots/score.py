"""The picture of `fastloss score`: distribution of losses, loss by class, calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastloss._scoring import plural
from fastloss._scoring.distributions import LEAST_SAMPLES, MOST_CLASSES, ByClass
from fastloss._scoring.plots.common import (
    BLUE,
    GREY,
    ORANGE,
    caption,
    new_figure,
    nothing,
    percent_formatter,
    set_log_ticks,
    short_label,
)
from fastloss._scoring.plots.reliability import draw_calibration
from fastloss._scoring.totals import Summary


def make_figure(summary: Summary) -> Any:
    """The picture of a summary."""
    # With a large vocabulary, or few samples, hardly a class has enough samples to be shown.
    has_classes = summary.by_class.means()[0].size > 0
    widths = (1.15, 1, 1) if has_classes else (1.15, 1)
    figure = new_figure(15 if has_classes else 10.5, 5.4)
    grid = figure.add_gridspec(2, len(widths), width_ratios=widths, height_ratios=(4, 1))
    _draw_losses(figure.add_subplot(grid[:, 0]), summary)
    if has_classes:
        draw_classes(figure.add_subplot(grid[:, 1]), summary.by_class)
    draw_calibration(
        figure.add_subplot(grid[0, -1]), figure.add_subplot(grid[1, -1]), summary.calibration
    )
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    counted = summary.samples - summary.ignored
    facts = [
        f"{short_label(summary.job.logits.label)}: {plural(counted, 'sample')}",
        plural(summary.job.classes, "class"),
        f"mean loss {summary.mean_loss:.4g}",
        f"accuracy {summary.accuracy:.1%}",
    ]
    if summary.non_finite:
        facts.append(f"{summary.non_finite:,} not finite and not drawn")
    figure.suptitle(", ".join(facts), parse_math=False)
    return figure


# Losses -------------------------------------------------------------------------------------------


def _draw_losses(panel: Any, summary: Summary) -> None:
    """Share of the samples over the loss, on a logarithmic axis."""
    title, data = "Distribution of losses", summary.losses
    total = int(data.counts.sum()) + data.not_positive
    if total == data.not_positive:
        nothing(panel, title, "all losses are 0" if total else "no finite losses")
        return
    counts, edges = data.bars()
    low, high = edges[0], edges[-1]
    panel.bar(edges[:-1], counts / total, np.diff(edges), align="edge", color=BLUE)
    median, mean = summary.quantiles.quantile(0.5), summary.mean_loss
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
    set_log_ticks(panel.xaxis, low, high)
    panel.yaxis.set_major_formatter(percent_formatter())
    panel.set(xlabel="loss of a sample (nats)", ylabel="share of the samples")
    caption(panel, title, "")
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


# Classes ------------------------------------------------------------------------------------------


def draw_classes(panel: Any, data: ByClass) -> None:
    """The mean loss of the samples of each class, the hardest at the top."""
    title = "Loss by class, hardest first"
    counts = data.counts
    enough, means = data.means()
    shown, means = enough[:MOST_CLASSES], means[:MOST_CLASSES]
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
    caption(panel, title, ", ".join(parts) or "all classes")
