"""One temperature for all logits: the one that makes the mean loss smallest.

Files larger than memory are read once for each step of Newton's method, and once more at the end.
With z = x / T, the derivative of a sample's loss with respect to 1 / T is its loss less the entropy
of its softmax, times T, and the second derivative is the variance of z under the softmax, times
T²: one pass over the logits gives both. So at the best temperature the model is on average as sure
as it is right.

Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import contextlib
import math
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

# Temperatures that are looked for; a file whose best one lies outside is said to have none.
LEAST, MOST = 1e-3, 1e3
# Steps are taken until they change the temperature by less than this share.
TOLERANCE = 1e-7
MOST_STEPS = 60


@dataclass
class Job:
    """Checked inputs, to be read once."""

    layout: Layout
    ignore_index: int


class Pass:
    """What one pass over the files adds up to, or one block of it."""

    def __init__(self) -> None:
        self.samples = 0
        self.ignored = 0
        self.non_finite = 0
        self.correct = 0
        self.loss_sum = 0.0
        self.slope_sum = 0.0
        """1 / T times the derivative of the summed loss with respect to 1 / T."""
        self.variance_sum = 0.0
        """The same of the second derivative, times 1 / T squared."""
        self.calibration = Calibration()

    def merge(self, other: Pass) -> None:
        """Add what a block has counted."""
        for name in (
            *("samples", "ignored", "non_finite", "correct"),
            *("loss_sum", "slope_sum", "variance_sum"),
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
    def variance(self) -> float:
        return ratio(self.variance_sum, self.counted)


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
            ("log_prob", "predicted", "predicted_log_prob", "entropy", "variance"),
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
    found.calibration.add(layout.kept(got["predicted_log_prob"])[known], right[known])
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


def fit(passes: Callable[[float], Pass]) -> tuple[float, int, Pass]:
    """Find the temperature: it, the number of steps, and the pass at temperature 1.

    The mean loss is convex in 1 / T. Steps are Newton's, at most to four times 1 / T or a quarter
    of it, and halve the bracket that is known where they would leave it.

    Raises
    ------
    InputError
        If nothing can be scored, or the loss has no smallest value within `LEAST` to `MOST`.
    """
    before = found = passes(1.0)
    if not before.counted:
        raise InputError("no sample has a finite loss, so no temperature is better than another")
    inverse, steps = 1.0, 0
    low, high = 1 / MOST, 1 / LEAST
    while steps < MOST_STEPS:
        if found.slope < 0:
            low = inverse
        else:
            high = inverse
        ratio_of_step = 1 - found.slope / found.variance if found.variance else 0.0
        ahead = inverse * min(max(ratio_of_step, 0.25), 4.0)
        if not low <= ahead <= high:
            ahead = math.sqrt(low * high)
        if abs(math.log(ahead / inverse)) < TOLERANCE:
            break
        inverse, steps = ahead, steps + 1
        found = passes(1 / inverse)
    # A loss that falls all the way falls slower and slower.
    if steps == MOST_STEPS or inverse < 1.01 / MOST or inverse > 0.99 / LEAST:
        raise InputError(
            f"no temperature from {LEAST:g} to {MOST:g} minimises the loss: the "
            + ("lower the better" if inverse > 1 else "higher the better")
        )
    return 1 / inverse, steps, before
