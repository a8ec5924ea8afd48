"""One temperature for all logits: the one that makes the mean loss smallest.

Files larger than memory are read once for each step of Newton's method, which is that of
`fastloss.fit_temperature`, and once more at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastloss
from fastloss._scoring import InputError
from fastloss._scoring.blocks import Block, walk
from fastloss._scoring.distributions import Calibration
from fastloss._scoring.groups import ratio
from fastloss._scoring.layout import Layout
from fastloss._scoring.scorer import real_type, wrong_index
from fastloss._scoring.sources import Array
from fastloss.evaluation.score import scores as kernel_scores
from fastloss.evaluation.temperature import apart, minimise


@dataclass
class Job:
    """Checked inputs, to be read once."""

    layout: Layout
    ignore_index: int


class Pass:
    """What one pass over the files adds up to, or one block of it: as `minimise` needs it."""

    def __init__(self) -> None:
        self.samples = 0
        self.ignored = 0
        self.non_finite = 0
        self.correct = 0
        self.behind = 0
        self.apart = 0
        self.loss_sum = 0.0
        self.slope_sum = 0.0
        self.variance_sum = 0.0
        self.gap_sum = 0.0
        self.calibration = Calibration()

    def merge(self, other: Pass) -> None:
        """Add what a block has counted."""
        for name in (
            *("samples", "ignored", "non_finite", "correct", "behind", "apart"),
            *("loss_sum", "slope_sum", "variance_sum", "gap_sum"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.calibration.merge(other.calibration)

    @property
    def counted(self) -> int:
        return self.samples - self.ignored - self.non_finite

    @property
    def loss(self) -> float:
        return ratio(self.loss_sum, self.counted)

    @property
    def slope(self) -> float:
        return ratio(self.slope_sum, self.counted)

    @property
    def curvature(self) -> float:
        return ratio(self.variance_sum, self.counted)

    @property
    def gap(self) -> float:
        return ratio(self.gap_sum, self.counted)


def run_pass(
    job: Job,
    temperature: float,
    advance: Callable[[int], None],
    write: Callable[[Array], None] | None = None,
) -> Pass:
    """Read all rows once, with a temperature; what is written are their log-probabilities."""
    layout = job.layout
    sources = {"logits": layout.logits, "targets": layout.targets}
    total = Pass()

    def work(block: Block) -> tuple[Pass, int, Array | None]:
        logits = block["logits"]
        found = _score(job, block, temperature)
        scaled = None if write is None else scaled_log_probs(logits, temperature, layout)
        return found, logits.nbytes, scaled

    with contextlib.closing(walk(sources, layout.samples_per_row, work)) as blocks:
        for found, count, scaled in blocks:
            total.merge(found)
            if write is not None and scaled is not None:
                write(scaled)
            advance(count)
    return total


def _score(job: Job, block: Block, temperature: float) -> Pass:
    layout, logits = job.layout, block["logits"]
    axis = layout.class_axis
    assert axis is not None
    target = layout.aligned(block["targets"].copy(), job.ignore_index)
    try:
        got = kernel_scores(
            logits,
            target,
            ("log_prob", "predicted", "predicted_log_prob", "entropy", "variance", "margin"),
            ignore_index=job.ignore_index,
            temperature=temperature,
            axis=axis,
            wide=True,
        )
    except IndexError as error:
        raise wrong_index(layout, block, job.ignore_index, error) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(str(error)) from error
    counted = layout.kept(target != job.ignore_index)
    log_prob, entropy = layout.kept(got["log_prob"]), layout.kept(got["entropy"])
    known = counted & np.isfinite(log_prob) & np.isfinite(entropy)
    right = layout.kept(got["predicted"] == target) & known
    found = Pass()
    found.samples = counted.size
    found.ignored = counted.size - int(np.count_nonzero(counted))
    found.non_finite = int(np.count_nonzero(counted)) - int(np.count_nonzero(known))
    found.correct = int(np.count_nonzero(right))
    found.loss_sum = -float(np.sum(log_prob[known], dtype=np.float64))
    found.slope_sum = found.loss_sum - float(np.sum(entropy[known], dtype=np.float64))
    found.variance_sum = float(np.sum(layout.kept(got["variance"])[known], dtype=np.float64))
    best, margin = (layout.kept(got[name])[known] for name in ("predicted_log_prob", "margin"))
    found.gap_sum = float(np.sum(best, dtype=np.float64)) + found.loss_sum
    found.behind = int(np.count_nonzero(margin < 0))
    found.apart = apart(margin)
    found.calibration.add(best, right[known])
    return found


def output_type(layout: Layout) -> np.dtype[Any]:
    """The type of the log-probabilities that are written."""
    return np.dtype(real_type(layout.logits.dtype))


def scaled_log_probs(logits: Array, temperature: float, layout: Layout) -> Array:
    """The log-probabilities of a block at a temperature, its rows first."""
    scaled = np.asarray(logits, output_type(layout)) / output_type(layout).type(temperature)
    found = np.asarray(fastloss.log_softmax(scaled, axis=layout.class_axis))
    return np.moveaxis(found, layout.logits.axis, 0)


@dataclass
class Fit:
    """The temperature that was found, and the passes at 1 and at it."""

    temperature: float
    steps: int
    before: Pass
    after: Pass


def fit(passes: Callable[[float], Pass], classes: int) -> tuple[float, int, Pass]:
    """Find the temperature: it, the number of steps, and the pass at temperature 1.

    Raises
    ------
    InputError
        If nothing can be scored, or no temperature minimises the loss.
    """

    def take(temperature: float) -> Pass:
        found = passes(temperature)
        if not found.counted:
            raise InputError("no sample has a finite loss: no temperature is better than another")
        return found

    try:
        best, steps, before, _ = minimise(take, classes)
    except ValueError as error:
        raise InputError(str(error)) from error
    return best, steps, before
