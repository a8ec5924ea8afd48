"""The picture of `fastloss compare`: A's loss against B's, their difference, where B is worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastloss._scoring import plural
from fastloss._scoring.comparison import Comparison
from fastloss._scoring.distributions import MOST_CLASSES
from fastloss._scoring.plots.common import (
    BLUE,
    GREY,
    ORANGE,
    caption,
    locator,
    new_figure,
    nothing,
    percent_formatter,
    set_log_ticks,
    short_label,
)
from fastloss._scoring.quantiles import Quantiles


def make_figure(comparison: Comparison) -> Any:
    """The picture of a comparison; without targets, of the divergence alone."""
    job = comparison.job
    if job.has_targets:
        by, parts_of = comparison.where_worse()
        figure = new_figure(15 if parts_of else 10.5, 5.6)
        widths = (1.05, 1, 1) if parts_of else (1.05, 1)
        losses, spread, *rest = figure.subplots(1, len(widths), width_ratios=widths)
        _draw_losses(losses, comparison)
        _draw_difference(spread, comparison.differences)
        for parts in rest:
            _draw_parts(parts, by, parts_of)
    elif job.groups is not None:
        figure = new_figure(11, 5.2)
        spread, parts = figure.subplots(1, 2)
        _draw_divergence(spread, comparison)
        groups = [(str(g.group), g.samples, g.mean_kl) for g in comparison.group_comparisons()]
        groups.sort(key=lambda group: -group[2])
        _draw_bars(parts, groups[:MOST_CLASSES], "mean KL(A ‖ B) (nats)")
        parts.set_ylabel("group (number of samples)")
        text = f"{min(len(groups), MOST_CLASSES)} of {len(groups):,} groups"
        caption(parts, "Groups that changed most", text)
    else:
        figure = new_figure(8, 5.2)
        _draw_divergence(figure.subplots(), comparison)
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    names = f"A {short_label(job.layout.logits.label)}, B {short_label(job.other.label)}"
    facts = [plural(comparison.compared, "sample")]
    if job.has_targets:
        value, low, high = comparison.mean_loss_difference
        interval = "" if math.isnan(low) else f" ({low:+.3g} to {high:+.3g})"
        facts.append(f"loss of B minus A {value:+.3g}{interval}")
    facts += [
        f"mean KL {comparison.mean_kl:.3g}",
        f"{comparison.same_prediction:.2%} same predictions",
    ]
    if comparison.non_finite:
        facts.append(f"{comparison.non_finite:,} not finite and not drawn")
    figure.suptitle(f"{names}\n{', '.join(facts)}", parse_math=False, fontsize=11)
    return figure


def _draw_losses(panel: Any, comparison: Comparison) -> None:
    """How many samples have each pair of losses, on logarithmic axes."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    counts, title = comparison.losses, "Loss of A against loss of B"
    rows, cols = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    if not rows.size:
        nothing(panel, title, "no finite losses")
        return
    # At least two decades, so that the axes have numbers one can read.
    first = min(rows[0], cols[0])
    last = max(rows[-1], cols[-1]) + 1
    room = max(0, 2 * comparison.BINS_PER_DECADE - (last - first))
    first, last = max(0, first - room // 2), min(comparison.BINS, last + (room + 1) // 2)
    exponents = comparison.DECADES[0] + np.arange(first, last + 1) / comparison.BINS_PER_DECADE
    edges = 10.0**exponents
    shown = np.ma.masked_equal(counts[first:last, first:last].T, 0)
    colours = LinearSegmentedColormap.from_list("counts", ["#c9dcec", BLUE, "#0b2a45"])
    mesh = panel.pcolormesh(
        edges, edges, shown, norm=LogNorm(1, max(10, int(shown.max()))), cmap=colours
    )
    low, high = edges[0], edges[-1]
    panel.plot([low, high], [low, high], color=ORANGE, linewidth=1, linestyle="--")
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    set_log_ticks(panel.xaxis, low, high)
    set_log_ticks(panel.yaxis, low, high)
    panel.set(xlabel="loss of A (nats)", ylabel="loss of B (nats)")
    bar = panel.figure.colorbar(mesh, ax=panel, label="samples", fraction=0.05, pad=0.02)
    set_log_ticks(bar.ax.yaxis, *mesh.get_clim())
    caption(panel, title, "above the dashed line: B is worse")


# Samples of which a hundredth may be left out.
MANY = 200


def _draw_difference(panel: Any, differences: Quantiles) -> None:
    """Share of the samples over B's loss minus A's."""
    title = "Distribution of the difference"
    if not differences.count:
        nothing(panel, title, "no finite losses")
        return
    # All of few samples; of many, some far out would squeeze the picture.
    reach = max(abs(differences.least), abs(differences.most))
    if differences.count >= MANY and math.isfinite(reach):
        reach = max(abs(differences.quantile(share)) for share in (0.01, 0.99)) or reach
    if not reach or not math.isfinite(reach):
        nothing(panel, title, "all differences are 0" if not reach else "no finite differences")
        return
    bars = min(61, 2 * math.isqrt(differences.count) | 1)
    edges = np.linspace(-reach, reach, bars + 1)
    counts = differences.histogram(edges)
    share = counts / differences.count
    middle = (edges[:-1] + edges[1:]) / 2
    # The bar in the middle holds differences of both signs.
    near = np.abs(middle) < reach / bars / 2
    colours = np.where(near, GREY, np.where(middle > 0, ORANGE, BLUE))
    panel.bar(edges[:-1], share, np.diff(edges), align="edge", color=colours)
    panel.set_xlim(-reach, reach)
    panel.xaxis.set_major_locator(locator(5))
    panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    panel.yaxis.set_major_formatter(percent_formatter())
    panel.set(xlabel="loss of B minus loss of A (nats)", ylabel="share of the samples")
    outside = differences.count - int(counts.sum())
    text = "orange: B is worse"
    if outside:
        text += f"; {outside / differences.count:.1%} of the samples are not shown"
    caption(panel, title, text)


def _draw_parts(panel: Any, by: str, parts: list[tuple[str, int, float]]) -> None:
    title = f"Where B is worse, by {by}"
    half = MOST_CLASSES // 2
    many = len(parts) > MOST_CLASSES
    shown = parts[:half] + parts[-half:] if many else parts
    _draw_bars(panel, shown, "mean loss of B minus A (nats)")
    panel.set_ylabel(f"{by} (number of samples)")
    noun = plural(2, by).removeprefix("2 ")
    caption(
        panel,
        title,
        f"the {half} worst and the {half} best of {len(parts):,} {noun}" if many else f"all {noun}",
    )


def _draw_bars(panel: Any, parts: list[tuple[str, int, float]], label: str) -> None:
    values = np.array([value for _, _, value in parts])
    rows = np.arange(len(parts))
    panel.barh(rows, values, color=np.where(values > 0, ORANGE, BLUE))
    panel.axvline(0, color=GREY, linewidth=0.8)
    names = [f"{short_label(name, 24)} ({samples:,})" for name, samples, _ in parts]
    panel.set_yticks(rows, names, fontsize=8, parse_math=False)
    # A bar stays a bar where there are few.
    panel.set_ylim(max(len(rows), 8) - 0.5, -0.5)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    room = 0.05 * (high - low) or 1.0
    panel.set_xlim(low - room if low else 0, high + room if high else (0 if low else 1))
    panel.xaxis.set_major_locator(locator(4))
    panel.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    panel.set_xlabel(label)


def _draw_divergence(panel: Any, comparison: Comparison) -> None:
    """Share of the samples over the KL divergence, on a logarithmic axis."""
    title, kl = "Distribution of the divergence", comparison.kl
    low, high = max(kl.quantile(0.01), 1e-12), kl.quantile(1)
    if not kl.count or not high or not math.isfinite(high):
        nothing(panel, title, "no finite divergence" if kl.count and high else "all are 0")
        return
    if high / low < 10:
        low, high = low / 3, high * 3
    edges = np.geomspace(low, high * 1.0001, min(41, 2 * math.isqrt(kl.count) + 2))
    counts = kl.histogram(edges)
    panel.bar(edges[:-1], counts / kl.count, np.diff(edges), align="edge", color=BLUE)
    panel.set(xscale="log", xlim=(low, high * 1.0001))
    set_log_ticks(panel.xaxis, low, high)
    panel.yaxis.set_major_formatter(percent_formatter())
    panel.set(xlabel="KL(A ‖ B) of a sample (nats)", ylabel="share of the samples")
    below = kl.count - int(counts.sum())
    caption(panel, title, f"{below / kl.count:.1%} of the samples are smaller" if below else "")
