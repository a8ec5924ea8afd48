"""Two models on the same samples: which is better, where, and how far apart they are.

`plan` checks that both hold logits of the same samples and classes, `Comparison` adds up blocks.
The difference of the losses is B's minus A's, so that it is positive where B is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

import fastloss
from fastloss._scoring import InputError
from fastloss._scoring.blocks import Block, walk_results, with_shape
from fastloss._scoring.distributions import LEAST_SAMPLES, ByClass
from fastloss._scoring.groups import Groups, Part, add_up, check_groups, groups_of, ratio
from fastloss._scoring.layout import Layout, along, lay_out
from fastloss._scoring.quantiles import Quantiles
from fastloss._scoring.scorer import check_ignore_index, real_type, wrong_index
from fastloss._scoring.sources import Array, Source
from fastloss._scoring.statistics import Moments, student_quantile
from fastloss._scoring.writers import index_columns, indices

Digest = TypeVar("Digest")


@dataclass
class Pairs:
    """What a block's samples got from both models; flat arrays of one length."""

    number: Array
    kl: Array
    """KL(A ‖ B): NaN where a logit of either is NaN or +inf."""
    reverse_kl: Array
    same: Array
    """Whether both have the same likeliest class."""
    target: Array | None
    log_prob_a: Array | None
    """Log-probability of the target by A; NaN where ignored."""
    log_prob_b: Array | None
    right_a: Array | None
    right_b: Array | None
    counted: Array | None
    """False where ignored; None when nothing is."""
    groups: Array | None
    logits_bytes: int

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self.kl.size


@dataclass
class Job:
    """Checked inputs, ready to be compared."""

    layout: Layout
    other: Source
    groups: Source | None
    ignore_index: int
    temperature: float = 1.0

    @property
    def logits_bytes(self) -> int:
        rows = self.other.shape[self.other.axis]
        return self.layout.logits_bytes + rows * self.other.row_bytes

    @property
    def has_targets(self) -> bool:
        return self.layout.targets is not None

    def blocks(
        self, digest: Callable[[Pairs], Digest]
    ) -> Generator[tuple[Pairs, Digest], None, None]:
        """Compare the rows, and yield what each block got and its digest, in order."""
        layout = self.layout
        sources = {
            "logits": layout.logits,
            "other": self.other,
            "targets": layout.targets,
            "groups": self.groups,
        }
        yield from walk_results(sources, layout.samples_per_row, self._compare, digest)

    def _compare(self, block: Block) -> Pairs:
        layout, a, b = self.layout, block["logits"], block["other"]
        axis = layout.class_axis
        assert axis is not None
        target = block["targets"]
        counted = None
        if target is not None:
            target = layout.aligned(target.copy(), self.ignore_index)
            counted = target != self.ignore_index
        try:
            got = fastloss.compare_logits(
                a,
                b,
                target,
                ignore_index=self.ignore_index,
                temperature=self.temperature,
                axis=axis,
            )
        except IndexError as error:
            raise wrong_index(layout, block, self.ignore_index, error) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(str(error)) from error
        groups = block["groups"]

        def kept(values: Any) -> Array:
            return layout.kept(np.asarray(values))

        right_a = right_b = None
        if target is not None:
            right_a, right_b = got.predicted == target, got.other_predicted == target
        return Pairs(
            layout.numbers(block),
            kept(got.kl),
            kept(got.reverse_kl),
            kept(got.same_prediction),
            None if target is None else kept(target),
            None if target is None else kept(got.log_prob),
            None if target is None else kept(got.other_log_prob),
            None if right_a is None else kept(right_a),
            None if right_b is None else kept(right_b),
            None if counted is None or counted.all() else kept(counted),
            None if groups is None else groups_of(layout, groups),
            a.nbytes + b.nbytes,
        )


def plan(
    logits: Source,
    other: Source,
    targets: Source | None,
    axis: int | None,
    shift: int,
    ignore_index: int,
    groups: Source | None,
) -> Job:
    """Check that the logits of both models, targets and groups belong together.

    Raises
    ------
    InputError
        If a shape or dtype doesn't fit; the text shows both shapes.
    """
    if logits.shape != other.shape:
        _refuse(logits, other)
    check_ignore_index(ignore_index)
    layout = lay_out(logits, targets, axis, shift, "compare takes no class probabilities")
    if logits.ndim == 1:
        other = with_shape(other, (1, layout.classes))
    elif layout.class_axis == 0:
        other = along(other, 1)
    other = layout.beside(other)
    if groups is not None:
        groups = check_groups(layout, groups)
    return Job(layout, other, groups, ignore_index)


def _refuse(logits: Source, other: Source) -> None:
    both = f"{logits.label} has shape {logits.shape} and {other.label} has shape {other.shape}"
    if len(logits.shape) == len(other.shape):
        differ = [
            at for at, (a, b) in enumerate(zip(logits.shape, other.shape, strict=True)) if a != b
        ]
        if differ == [0] and logits.ndim > 1:
            raise InputError(f"{both}: A and B must hold logits of the same samples")
        if differ == [logits.ndim - 1]:
            raise InputError(f"{both}: A and B must hold logits of the same classes")
    raise InputError(f"{both}: A and B must have logits of the same samples and classes")


# Adding up ----------------------------------------------------------------------------------------


@dataclass
class Changed:
    """One of the samples that changed most."""

    sample: int
    kl: float
    target: int | None
    log_prob_a: float
    log_prob_b: float


class Interval(NamedTuple):
    """A mean and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


class GroupComparison(NamedTuple):
    """What a group of samples adds up to; ignored samples are not counted."""

    group: int | str
    samples: int
    mean_loss_a: float
    mean_loss_b: float
    mean_loss_difference: float
    mean_kl: float
    same_prediction: float


class Comparison:
    """The sums over all blocks, or over one."""

    # Equal bins of the losses' decimal logarithm: the picture of A's loss against B's.
    DECADES = (-8, 3)
    BINS_PER_DECADE = 12
    BINS = (DECADES[1] - DECADES[0]) * BINS_PER_DECADE

    def __init__(self, job: Job, top: int = 5):
        self.job, self.top = job, top
        self.samples = 0
        self.ignored = 0
        self.non_finite = 0
        self.same = 0
        self.right_a = 0
        self.right_b = 0
        self.right_both = 0
        self.loss_a = 0.0
        self.loss_b = 0.0
        self.worse = 0
        self.better = 0
        self.kl_sum = 0.0
        self.reverse_kl_sum = 0.0
        self.square_sum = 0.0
        self.difference = Moments()
        self.kl = Quantiles()
        self.differences = Quantiles()
        self.probability_change = Quantiles()
        self.probability_change_sum = 0.0
        self.losses: Array = np.zeros((self.BINS, self.BINS), np.int64)
        """How many samples have A's loss in a bin of the rows and B's in one of the columns."""
        self.by_class = ByClass(job.layout.classes)
        self.changed: list[Changed] = []
        self.groups = Groups()
        self._part: Part | None = None
        self._values: tuple[Array, Array, Array] = (np.zeros(0),) * 3
        self._places: tuple[Array, Array] | None = None

    def of(self, pairs: Pairs) -> Comparison:
        """The sums of one block, to be merged into these."""
        part = Comparison(self.job, self.top)
        least = self.changed[-1].kl if len(self.changed) == self.top > 0 else -math.inf
        part._add(pairs, least)
        return part

    def merge(self, other: Comparison) -> None:
        """Add what a block has counted."""
        for name in (
            *("samples", "ignored", "non_finite", "same", "right_a", "right_b", "right_both"),
            *("loss_a", "loss_b", "worse", "better", "kl_sum", "reverse_kl_sum", "square_sum"),
            "probability_change_sum",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.difference.merge(other.difference)
        kl, difference, change = other._values
        self.kl.add(kl)
        self.differences.add(difference)
        self.probability_change.add(change)
        if other._places is not None:
            np.add.at(self.losses, other._places, 1)
        self.by_class.merge(other.by_class)
        self.changed = _most(self.changed + other.changed, self.top)
        self.groups.merge(other._part)

    def _add(self, pairs: Pairs, least: float) -> None:
        size = pairs.kl.size
        self.samples = size
        counted = np.ones(size, bool) if pairs.counted is None else pairs.counted
        self.ignored = size - int(np.count_nonzero(counted))
        known = ~np.isnan(pairs.kl) & counted
        if pairs.log_prob_a is not None and pairs.log_prob_b is not None:
            known &= np.isfinite(pairs.log_prob_a) & np.isfinite(pairs.log_prob_b)
        self.non_finite = int(np.count_nonzero(counted)) - int(np.count_nonzero(known))
        kl: Array = pairs.kl[known].astype(np.float64)
        same = pairs.same & known
        self.same = int(np.count_nonzero(same))
        self.kl_sum = float(kl.sum())
        self.reverse_kl_sum = float(np.sum(pairs.reverse_kl[known], dtype=np.float64))
        difference = np.zeros(0)
        if pairs.log_prob_a is not None and pairs.log_prob_b is not None:
            difference = self._add_losses(pairs, known, kl)
        else:
            self._values = kl, difference, difference
        self._keep_changed(pairs, known, least)
        if pairs.groups is not None:
            self._add_groups(pairs, known, difference)

    def _add_losses(self, pairs: Pairs, known: Array, kl: Array) -> Array:
        assert pairs.log_prob_a is not None and pairs.log_prob_b is not None
        assert pairs.right_a is not None and pairs.right_b is not None
        assert pairs.target is not None
        a: Array = pairs.log_prob_a[known].astype(np.float64)
        b: Array = pairs.log_prob_b[known].astype(np.float64)
        difference = a - b  # B's loss minus A's
        change = np.exp(b) - np.exp(a)
        self.loss_a, self.loss_b = float(-a.sum()), float(-b.sum())
        self.worse = int(np.count_nonzero(difference > 0))
        self.better = int(np.count_nonzero(difference < 0))
        right_a, right_b = pairs.right_a[known], pairs.right_b[known]
        self.right_a = int(np.count_nonzero(right_a))
        self.right_b = int(np.count_nonzero(right_b))
        self.right_both = int(np.count_nonzero(right_a & right_b))
        self.difference.add(difference)
        self.square_sum = float(np.square(change).sum())
        self.probability_change_sum = float(change.sum())
        self._values = kl, difference, change
        self._places = self.places(-a), self.places(-b)
        self.by_class.add(pairs.target[known].astype(np.intp), difference)
        return difference

    @classmethod
    def places(cls, losses: Array) -> Array:
        """The bins of losses; what lies outside counts in the first or the last."""
        with np.errstate(divide="ignore", invalid="ignore"):
            place = (np.log10(losses) - cls.DECADES[0]) * cls.BINS_PER_DECADE
        return np.nan_to_num(place, nan=0.0).clip(0, cls.BINS - 1).astype(np.intp)

    def _add_groups(self, pairs: Pairs, known: Array, difference: Array) -> None:
        assert pairs.groups is not None
        quantities = [known.astype(float), np.where(known, pairs.kl, 0), pairs.same & known]
        if difference.size or pairs.log_prob_a is not None:
            assert pairs.log_prob_a is not None and pairs.log_prob_b is not None
            quantities += [
                np.where(known, -pairs.log_prob_a.astype(np.float64), 0),
                np.where(known, -pairs.log_prob_b.astype(np.float64), 0),
            ]
        self._part = add_up(pairs.groups, quantities)

    def _keep_changed(self, pairs: Pairs, known: Array, least: float) -> None:
        change = np.where(known, pairs.kl, -np.inf)
        if not self.top or not change.size or change.max() <= least:
            return
        at = np.argpartition(-change, min(self.top, change.size) - 1)[: self.top]
        for i in at[change[at] > -np.inf].tolist():
            a = b = math.nan
            if pairs.log_prob_a is not None and pairs.log_prob_b is not None:
                a, b = float(pairs.log_prob_a[i]), float(pairs.log_prob_b[i])
            target = None if pairs.target is None else int(pairs.target[i])
            changed = Changed(int(pairs.number[i]), float(pairs.kl[i]), target, a, b)
            self.changed.append(changed)
        self.changed = _most(self.changed, self.top)

    # ---- what a report says ----------------------------------------------------------------------

    @property
    def compared(self) -> int:
        """Samples whose divergence is known, and whose losses are finite."""
        return self.samples - self.ignored - self.non_finite

    @property
    def mean_kl(self) -> float:
        return ratio(self.kl_sum, self.compared)

    @property
    def mean_reverse_kl(self) -> float:
        return ratio(self.reverse_kl_sum, self.compared)

    @property
    def same_prediction(self) -> float:
        """The share of samples of which both have the same likeliest class."""
        return ratio(self.same, self.compared)

    @property
    def unit(self) -> str:
        """What the confidence interval takes for independent of each other."""
        return "group" if self.job.groups is not None else "sample"

    @property
    def mean_loss_difference(self) -> Interval:
        """The mean of B's loss minus A's, and its paired confidence interval.

        With groups, whose samples are not independent of each other, the groups are the unit: the
        variance is that of the ratio of the groups' sums, as for a cluster sample (Cochran,
        Sampling Techniques, 3rd edition, 1977, section 9A; Miller, "Adding error bars to evals",
        2024).
        """
        n = self.compared
        if not self.job.has_targets or not n:
            return Interval(math.nan, math.nan, math.nan)
        value = self.difference.mean
        if self.job.groups is None:
            units, error = n, self.difference.standard_error
        else:
            sums = np.array([(s[0], s[4] - s[3]) for _, s in self.groups if s[0]])
            units = len(sums)
            rest = sums[:, 1] - value * sums[:, 0]
            error = math.inf
            if units > 1:
                error = math.sqrt(float(rest @ rest) * units / (units - 1)) / n
        if units < 2 or not math.isfinite(error):
            return Interval(value, math.nan, math.nan)
        half = student_quantile(units - 1) * error
        return Interval(value, value - half, value + half)

    def group_comparisons(self) -> list[GroupComparison]:
        """The comparison of each group, in the order in which groups were met."""
        found = []
        for name, sums in self.groups:
            n, kl, same = sums[:3]
            a, b = sums[3:] if len(sums) > 3 else (math.nan, math.nan)
            found.append(
                GroupComparison(
                    name,
                    int(n),
                    ratio(a, n),
                    ratio(b, n),
                    ratio(b - a, n),
                    ratio(kl, n),
                    ratio(same, n),
                )
            )
        return found

    def where_worse(self) -> tuple[str, list[tuple[str, int, float]]]:
        """What the samples are told apart by, and names, counts and differences of the parts.

        The parts are groups where there are any, else classes; those of too few samples are left
        out, and those where B is worst come first.
        """
        if self.job.groups is not None:
            parts = [
                (str(group.group), group.samples, group.mean_loss_difference)
                for group in self.group_comparisons()
                if group.samples >= min(LEAST_SAMPLES, self.compared)
            ]
            parts.sort(key=lambda part: -part[2])
            return "group", parts
        classes, means = self.by_class.means()
        counts = self.by_class.counts
        return "class", [
            (str(label), int(counts[label]), mean)
            for label, mean in zip(classes.tolist(), means.tolist(), strict=True)
        ]


def _most(samples: list[Changed], top: int) -> list[Changed]:
    return sorted(samples, key=lambda changed: (-changed.kl, changed.sample))[:top]


# Columns ------------------------------------------------------------------------------------------


def row_type(job: Job) -> np.dtype[Any]:
    """The columns of a table of pairs and their types."""
    real = np.result_type(real_type(job.layout.logits.dtype), real_type(job.other.dtype)).type
    columns = [
        *index_columns(job.layout.target_shape),
        ("kl", real),
        ("reverse_kl", real),
        ("same_prediction", np.bool_),
    ]
    if job.has_targets:
        columns += [("target", np.int64), ("log_prob_a", real), ("log_prob_b", real)]
    return np.dtype(columns)


def columns(job: Job, pairs: Pairs) -> dict[str, Array]:
    """The columns of `row_type`."""
    found = indices(pairs.number, job.layout.target_shape)
    found |= {"kl": pairs.kl, "reverse_kl": pairs.reverse_kl, "same_prediction": pairs.same}
    if pairs.target is not None and pairs.log_prob_a is not None and pairs.log_prob_b is not None:
        found |= {
            "target": pairs.target,
            "log_prob_a": pairs.log_prob_a,
            "log_prob_b": pairs.log_prob_b,
        }
    return found
