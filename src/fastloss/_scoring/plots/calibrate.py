"""The picture of `fastloss calibrate`: two reliability diagrams, before and after."""

from __future__ import annotations

from typing import Any

from fastloss._scoring import plural
from fastloss._scoring.plots.common import new_figure, short_label
from fastloss._scoring.plots.reliability import draw_calibration, limits
from fastloss._scoring.tempering import Fit


def make_figure(fit: Fit, label: str) -> Any:
    """The picture of a fit to the logits of that name."""
    figure = new_figure(11, 5.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    # The same axes, so that the two can be compared.
    lows, highs = zip(
        *(limits(found.calibration) for found in (fit.before, fit.after)), strict=True
    )
    for column, (name, found) in enumerate(
        (("Temperature 1", fit.before), (f"Temperature {fit.temperature:.4g}", fit.after))
    ):
        draw_calibration(
            figure.add_subplot(grid[0, column]),
            figure.add_subplot(grid[1, column]),
            found.calibration,
            name,
            (min(lows), max(highs)),
        )
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{short_label(label)}: {plural(fit.after.counted, 'sample')}, mean loss "
        f"{fit.before.loss:.4g} before and {fit.after.loss:.4g} after",
        parse_math=False,
    )
    return figure
