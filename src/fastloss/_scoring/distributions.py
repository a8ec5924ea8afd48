"""What a plot and a report show of many samples, in bins that need no second pass."""

from __future__ import annotations

import math

import numpy as np

from fastloss._scoring.sources import Array

# Bins of the calibration error, as most papers have them.
EQUAL_BINS = 15
# The mean of fewer samples says more about them than about their class.
LEAST_SAMPLES = 10
# More bars than this can't be read: of more classes, those with the highest mean loss are shown.
MOST_CLASSES = 20


def counts_of(places: Array, bins: int, weights: Array | None = None) -> Array:
    """How many places, or what sum of weights, each bin has."""
    return np.bincount(places, weights, bins)


class LogHistogram:
    """Positive numbers in equal bins of their decimal logarithm, a hundred to a decade.

    Losses reach from 1e-45, the least float32, to overflow; what lies outside counts in the first
    bin or the last.
    """

    DECADES = (-46, 40)
    BINS_PER_DECADE = 100
    BINS = (DECADES[1] - DECADES[0]) * BINS_PER_DECADE

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)
        self.not_positive = 0
        """Numbers of 0; a sum of wrong log-probabilities may also be less."""

    @classmethod
    def places(cls, positive: Array) -> Array:
        """The bins of positive numbers."""
        place = (np.log10(positive) - cls.DECADES[0]) * cls.BINS_PER_DECADE
        return place.clip(0, cls.BINS - 1).astype(np.intp)

    def add(self, values: Array) -> None:
        """Take numbers."""
        positive = values[values > 0]
        self.not_positive += values.size - positive.size
        self.counts += counts_of(self.places(positive), self.BINS)

    def merge(self, other: LogHistogram) -> None:
        """Add what another histogram has counted."""
        self.counts += other.counts
        self.not_positive += other.not_positive

    def bars(self) -> tuple[Array, Array]:
        """Counts and edges of bars: as many as the number of samples is good for."""
        counts = self.counts
        total = int(counts.sum())
        if not total:
            return np.zeros(0, np.int64), np.zeros(0)
        # A handful of losses far below the rest would squeeze the picture: cut at the lowest 0.1 %.
        first = int(np.searchsorted(np.cumsum(counts), 0.001 * total, side="right"))
        span = int(np.flatnonzero(counts)[-1]) + 1 - first
        width = max(2, -(-span // min(60, 2 * math.isqrt(total))))
        bars = -(-span // width)
        counts = np.pad(counts[first:], (0, bars * width))[: bars * width]
        exponents = self.DECADES[0] + (first + width * np.arange(bars + 1)) / self.BINS_PER_DECADE
        return counts.reshape(bars, width).sum(axis=1), 10.0**exponents


class Calibration:
    """How often predictions are right, over the probability that they were given.

    Two sets of bins: `EQUAL_BINS` of equal width, for the calibration error that papers report; and
    many of equal width in log(p / (1 − p)), fine enough at both ends, where confidences crowd, to
    be joined to bins of equal counts.
    """

    BINS = 1024
    MOST_LOGIT = 32

    def __init__(self) -> None:
        self.bin_counts = np.zeros(self.BINS, np.int64)
        self.bin_confidence: Array = np.zeros(self.BINS)
        self.bin_correct = np.zeros(self.BINS, np.int64)
        self.equal: Array = np.zeros((3, EQUAL_BINS))
        """Counts, sums of confidence, and right predictions in bins of equal width."""

    def add(self, log_prob: Array, right: Array) -> None:
        """Take predictions: their log-probabilities, and whether they were right."""
        log_prob = np.minimum(log_prob.astype(np.float64), 0)
        confidence = np.exp(log_prob)
        logit = log_prob - np.log(-np.expm1(log_prob))
        place = (logit + self.MOST_LOGIT) * (self.BINS / 2 / self.MOST_LOGIT)
        place = place.clip(0, self.BINS - 1).astype(np.intp)
        self.bin_counts += counts_of(place, self.BINS)
        self.bin_confidence += counts_of(place, self.BINS, confidence)
        self.bin_correct += counts_of(place[right], self.BINS)
        # Bins (0, 1/15], (1/15, 2/15] …, as in Guo et al.
        bins = EQUAL_BINS
        place = (np.ceil(confidence * bins) - 1).clip(0, bins - 1).astype(np.intp)
        for row, weights in enumerate((None, confidence, right.astype(float))):
            self.equal[row] += counts_of(place, bins, weights)

    def merge(self, other: Calibration) -> None:
        """Add what was taken of a block."""
        self.bin_counts += other.bin_counts
        self.bin_confidence += other.bin_confidence
        self.bin_correct += other.bin_correct
        self.equal += other.equal

    def bins(self, most: int = 15, least: int = LEAST_SAMPLES) -> tuple[Array, Array, Array]:
        """Counts, mean confidence and share of right predictions, in bins of about equal counts.

        There are at most ``most`` of them, and each has at least ``least`` samples where there are
        so many.
        """
        filled = np.flatnonzero(self.bin_counts)
        total = int(self.bin_counts.sum())
        share = max(least, total / most)
        starts: list[int] = []
        gathered, left = 0, total
        for at, count in zip(filled.tolist(), self.bin_counts[filled].tolist(), strict=True):
            # The last bin takes what would not fill one of its own.
            if not starts or (gathered >= share and left >= least):
                starts.append(at)
                gathered = 0
            gathered += count
            left -= count
        if not starts:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        counts = np.add.reduceat(self.bin_counts, starts)
        confidence = np.add.reduceat(self.bin_confidence, starts) / counts
        right = np.add.reduceat(self.bin_correct, starts) / counts
        return counts, confidence, right

    @property
    def error(self) -> float:
        """The expected calibration error: mean |right − confidence| over the bins, by their counts.

        Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3, with bins of
        equal width, as `fastloss.calibration_error` has it.
        """
        counts, confidence, right = self.equal
        total = counts.sum()
        return float(np.abs(right - confidence).sum() / total) if total else float("nan")

    @property
    def equal_mass_error(self) -> float:
        """The same with bins of equal counts.

        Where there are many classes, bins of equal width are empty but for one or two.
        """
        counts, confidence, right = self.bins()
        total = counts.sum()
        return float((np.abs(right - confidence) * counts).sum() / total) if total else float("nan")

    @property
    def mean_confidence(self) -> float:
        total = self.bin_counts.sum()
        return float(self.bin_confidence.sum() / total) if total else float("nan")


class ByClass:
    """How many samples each class has, and what their values add up to."""

    def __init__(self, classes: int):
        self.classes = classes
        # The classes that were met, all of them or those of a block, and what adds up for each.
        self._classes: Array | slice = slice(None)
        self._counts: Array | None = None
        self._sums: Array | None = None

    @property
    def counts(self) -> Array:
        return np.zeros(self.classes, np.int64) if self._counts is None else self._counts

    @property
    def sums(self) -> Array:
        return np.zeros(self.classes) if self._sums is None else self._sums

    def add(self, label: Array, values: Array) -> None:
        """Take the samples of a block, once."""
        # A block may have far fewer samples than there are classes.
        if label.size < self.classes:
            self._classes, label = np.unique(label, return_inverse=True)
        classes = self.classes if isinstance(self._classes, slice) else len(self._classes)
        self._counts = counts_of(label, classes)
        self._sums = counts_of(label, classes, values)

    def merge(self, other: ByClass) -> None:
        """Add what was taken of a block."""
        if other._counts is None or other._sums is None:
            return
        if self._counts is None or self._sums is None:
            self._counts, self._sums = self.counts, self.sums
        self._counts[other._classes] += other._counts
        self._sums[other._classes] += other._sums

    def means(self, least: int = LEAST_SAMPLES) -> tuple[Array, Array]:
        """The classes of at least so many samples and their means, the highest first."""
        enough = np.flatnonzero(self.counts >= least)
        means = self.sums[enough] / self.counts[enough]
        order = np.argsort(-means, kind="stable")
        return enough[order], means[order]


class Ranks:
    """How often the target has each rank among the classes; 0 is the likeliest."""

    def __init__(self, classes: int):
        self.classes = classes
        self.counts: Array = np.zeros(0, np.int64)
        self._places: Array | None = None

    def add(self, ranks: Array) -> None:
        """Take the ranks of a block, once."""
        if ranks.size < self.classes:
            self._places = ranks
        else:
            self.counts = counts_of(ranks, self.classes)

    def merge(self, other: Ranks) -> None:
        """Add what was taken of a block."""
        if not self.counts.size:
            self.counts = np.zeros(self.classes, np.int64)
        if other._places is not None:
            np.add.at(self.counts, other._places, 1)
        elif other.counts.size:
            self.counts += other.counts

    def quantile(self, share: float) -> int | None:
        """The rank that this share of the targets has, or a better one."""
        total = int(self.counts.sum())
        if not total:
            return None
        return int(np.searchsorted(np.cumsum(self.counts), share * total, side="left"))

    def share_within(self, ranks: int) -> float:
        """The share of the targets among the likeliest ``ranks`` classes."""
        total = int(self.counts.sum())
        return float(self.counts[:ranks].sum() / total) if total else float("nan")

    @property
    def mean(self) -> float:
        total = int(self.counts.sum())
        return float(np.arange(len(self.counts)) @ self.counts / total) if total else float("nan")

    @property
    def mean_reciprocal(self) -> float:
        """The mean of 1 / (rank + 1)."""
        total = int(self.counts.sum())
        places = np.arange(1, len(self.counts) + 1)
        return float((self.counts / places).sum() / total) if total else float("nan")
