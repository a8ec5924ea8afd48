"""Calibration as a picture: accuracy over confidence, the probability of the prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss._scoring.distributions import Calibration
from fastloss._scoring.plots.common import (
    BLUE,
    GREY,
    caption,
    interval,
    locator,
    nothing,
    percent_formatter,
)
from fastloss._scoring.sources import Array


def limits(data: Calibration) -> tuple[float, float]:
    """The stretch of probabilities to show: what all points reach to, and nearly all samples."""
    counts, _, right = data.bins()
    if not counts.size:
        return 0.0, 1.0
    low_end, high_end = interval(right, counts)
    share, believed = _believed(data)
    first, last = np.searchsorted(np.cumsum(share), (0.0005, 0.9995)).clip(0, len(share) - 1)
    low = min(believed[first], low_end.min())
    high = max(believed[last], high_end.max())
    room = max(0.05 * (high - low), 0.01)
    return max(0.0, low - room), min(1.0, high + room)


def _believed(data: Calibration) -> tuple[Array, Array]:
    """Of each bin that has samples, its share of all, and their mean confidence."""
    filled = np.flatnonzero(data.bin_counts)
    share = data.bin_counts[filled] / data.bin_counts.sum()
    return share, data.bin_confidence[filled] / data.bin_counts[filled]


def draw_calibration(
    panel: Any,
    below: Any,
    data: Calibration,
    title: str = "Calibration",
    ends: tuple[float, float] | None = None,
) -> None:
    """Accuracy over confidence; below, how many predictions had that confidence.

    Both axes show the same stretch, `limits` or the ends that are given, so that the line of
    perfect calibration is the diagonal.
    """
    counts, confidence, right = data.bins()
    if not counts.size:
        nothing(panel, title, "no predictions")
        nothing(below, "", "")
        return
    low_end, high_end = interval(right, counts)
    share, believed = _believed(data)
    low, high = ends or limits(data)
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
    panel.set(xlim=(low, high), ylim=(low, high), ylabel="accuracy")
    panel.tick_params(labelbottom=False)
    caption(
        panel,
        f"{title}, expected error {data.equal_mass_error:.2%}",
        "above the dashed line: underconfident; below: overconfident",
    )
    heights, edges = np.histogram(believed.clip(low, high), 20, (low, high), weights=share)
    below.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE, alpha=0.5)
    below.set(
        xlim=(low, high), ylim=(0, None), xlabel="confidence (probability of the predicted class)"
    )
    below.set_ylabel("share of\nthe samples")
    for axis, most in ((panel.xaxis, 4), (panel.yaxis, 6), (below.xaxis, 4), (below.yaxis, 2)):
        axis.set_major_formatter(percent_formatter())
        axis.set_major_locator(locator(most))
