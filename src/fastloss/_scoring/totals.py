"""What the scores of all blocks add up to: means, hardest samples, distributions, groups.

All that is kept has a fixed size, but for the groups and for the hardest samples asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastloss._scoring.distributions import ByClass, Calibration, LogHistogram, Ranks
from fastloss._scoring.groups import Groups, Part, add_up, exp, ratio
from fastloss._scoring.quantiles import Quantiles
from fastloss._scoring.scorer import Job, Scores
from fastloss._scoring.sources import Array


@dataclass
class Hard:
    """One of the hardest samples."""

    sample: int
    loss: float
    target: int | float
    log_prob: float
    predicted: int
    predicted_log_prob: float
    rank: int

    @property
    def hardness(self) -> float:
        """The loss, or infinity where that is NaN."""
        return math.inf if math.isnan(self.loss) else self.loss


def _hardest(samples: list[Hard], top: int) -> list[Hard]:
    return sorted(samples, key=lambda hard: (-hard.hardness, hard.sample))[:top]


class GroupScore(NamedTuple):
    """What a group of samples adds up to; ignored samples are not counted."""

    group: int | str
    samples: int
    mean_loss: float
    perplexity: float
    accuracy: float


class Summary:
    """The sums over all blocks, or over one."""

    def __init__(self, job: Job, top: int = 5):
        self.job = job
        self.top = top
        self.samples = 0
        self.ignored = 0
        self.non_finite = 0
        self.correct = 0
        self.in_top5 = 0
        self.loss_sum = 0.0
        self.weight_sum = 0.0
        self.log_prob_sum = 0.0
        self.brier_sum = 0.0
        self.hardest: list[Hard] = []
        self.losses = LogHistogram()
        self.quantiles = Quantiles()
        self.calibration = Calibration()
        self.by_class = ByClass(job.classes)
        self.ranks = Ranks(job.classes)
        self.groups = Groups()
        self._part: Part | None = None
        self._losses: Array = np.zeros(0)

    def of(self, scores: Scores) -> Summary:
        """The summary of one block, to be merged into this one."""
        part = Summary(self.job, self.top)
        # What is no harder than all that is kept already needn't be looked at. Blocks are merged
        # in order, so that of equals the earlier one stays.
        least = self.hardest[-1].hardness if len(self.hardest) == self.top > 0 else -math.inf
        part._add(scores, least)
        return part

    def merge(self, other: Summary) -> None:
        """Add what the summary of a block has counted."""
        for name in (
            *("samples", "ignored", "non_finite", "correct", "in_top5"),
            *("loss_sum", "weight_sum", "log_prob_sum", "brier_sum"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.hardest = _hardest(self.hardest + other.hardest, self.top)
        self.losses.merge(other.losses)
        self.quantiles.add(other._losses)
        self.calibration.merge(other.calibration)
        self.by_class.merge(other.by_class)
        self.ranks.merge(other.ranks)
        self.groups.merge(other._part)

    def _add(self, scores: Scores, least: float) -> None:
        finite = scores.finite
        places = np.flatnonzero(finite)
        keep: Array | slice = slice(None) if len(places) == finite.size else places
        size = scores.loss.size
        ignored = 0 if scores.counted is None else size - int(np.count_nonzero(scores.counted))
        right = scores.predicted == scores.label
        self.samples = size
        self.ignored = ignored
        self.non_finite = size - ignored - int(np.count_nonzero(finite))
        right &= finite
        self.correct = int(np.count_nonzero(right))
        self.loss_sum = float(np.sum(scores.loss, dtype=np.float64))
        self.weight_sum = scores.weight_sum
        log_prob = scores.log_prob
        if scores.counted is not None:
            log_prob = log_prob[scores.counted]
        self.log_prob_sum = float(np.sum(log_prob, dtype=np.float64))
        if scores.brier is not None:
            self.brier_sum = float(np.sum(scores.brier[keep], dtype=np.float64))
        loss: Array = scores.loss[keep].astype(np.float64)
        label = scores.label[keep].astype(np.intp)
        self._losses = loss
        self.losses.add(loss)
        self.by_class.add(label, loss)
        self.calibration.add(scores.predicted_log_prob[keep], right[keep])
        if scores.rank is not None:
            ranks = scores.rank[keep]
            self.in_top5 = int(np.count_nonzero((ranks >= 0) & (ranks < 5)))
            self.ranks.add(ranks)
        self._keep_hardest(scores, least)
        if scores.groups is not None:
            self._part = self._add_groups(scores, right)

    def _add_groups(self, scores: Scores, right: Array) -> Part:
        assert scores.groups is not None
        counted = np.ones(scores.loss.size) if scores.counted is None else scores.counted
        weight = counted if scores.weight is None else scores.weight * counted
        log_prob = np.where(counted, scores.log_prob, 0)
        return add_up(scores.groups, [counted, scores.loss, weight, log_prob, right])

    def _keep_hardest(self, scores: Scores, least: float) -> None:
        if not self.top or not scores.loss.size:
            return
        if np.max(scores.loss) <= least:  # False where a NaN makes the maximum NaN
            return
        hardness = np.where(np.isnan(scores.loss), np.inf, scores.loss)
        if scores.counted is not None:
            hardness[~scores.counted] = -np.inf
        at = np.argpartition(-hardness, min(self.top, hardness.size) - 1)[: self.top]
        at = at[hardness[at] > -np.inf]
        columns = (
            scores.number[at],
            scores.loss[at],
            scores.target[at],
            scores.log_prob[at],
            scores.predicted[at],
            scores.predicted_log_prob[at],
            np.full(at.size, -1) if scores.rank is None else scores.rank[at],
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self.hardest = _hardest([Hard(*row) for row in rows], self.top)

    # ---- what a report says ----------------------------------------------------------------------

    @property
    def counted(self) -> int:
        """Samples that are not ignored."""
        return self.samples - self.ignored

    @property
    def finite(self) -> int:
        """Samples whose scores are numbers."""
        return self.counted - self.non_finite

    @property
    def mean_loss(self) -> float:
        return ratio(self.loss_sum, self.weight_sum)

    @property
    def perplexity(self) -> float:
        """Of the model: from log-probabilities without weights or smoothing."""
        if not self.job.has_perplexity:
            return math.nan
        return exp(-ratio(self.log_prob_sum, self.counted))

    @property
    def accuracy(self) -> float:
        """The share of samples, ignored ones aside, whose likeliest class is the target."""
        return ratio(self.correct, self.counted)

    @property
    def top5_accuracy(self) -> float:
        """The share of samples whose target is among the five likeliest classes."""
        if self.job.class_axis is None:
            return math.nan
        return ratio(self.in_top5, self.counted)

    @property
    def brier_score(self) -> float:
        return math.nan if self.job.layout.probabilities else ratio(self.brier_sum, self.finite)

    def group_scores(self) -> list[GroupScore]:
        """The scores of each group, in the order in which groups were met."""
        found = []
        for name, (counted, loss, weight, log_prob, right) in self.groups:
            perplexity = exp(-ratio(log_prob, counted)) if self.job.has_perplexity else math.nan
            found.append(
                GroupScore(
                    name, int(counted), ratio(loss, weight), perplexity, ratio(right, counted)
                )
            )
        return found
