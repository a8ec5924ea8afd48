"""Quantiles of a stream of numbers in constant memory, with a bound on their error.

Up to `MOST_KEPT` numbers are kept as they are, and quantiles are those of `numpy.quantile`. Beyond
that they are counted in bins, 1,024 to a power of two, in the manner of DDSketch (Masson, Rim and
Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB
2019): a quantile is then within `RELATIVE_ERROR` of a number of that rank.
"""

from __future__ import annotations

import math

import numpy as np

from fastloss._scoring.sources import Array

MOST_KEPT = 1 << 20
# The number of bins to a power of two, and the powers that have bins: what is nearer to 0 counts as
# 0, what is larger as infinite.
_BITS = 10
_LEAST, _MOST = -100, 100
_BINS = (_MOST - _LEAST) << _BITS
RELATIVE_ERROR = 2.0 ** -(_BITS + 1)
_SHIFT = 52 - _BITS
_OFFSET = (1023 + _LEAST) << _BITS


class Quantiles:
    """Numbers of any sign, without NaN."""

    def __init__(self) -> None:
        self.count = 0
        self.least, self.most = math.inf, -math.inf
        self._kept: list[Array] = []
        self._bins: Array | None = None

    @property
    def exact(self) -> bool:
        """Whether all numbers are kept."""
        return self._bins is None

    def add(self, values: Array) -> None:
        """Take numbers."""
        if not values.size:
            return
        values = values.astype(np.float64)
        self.count += values.size
        self.least = min(self.least, float(values.min()))
        self.most = max(self.most, float(values.max()))
        if self._bins is None and self.count <= MOST_KEPT:
            self._kept.append(values)
            return
        if self._bins is None:
            self._bins = np.zeros(2 * _BINS + 1, np.int64)
            for kept in self._kept:
                self._bin(kept)
            self._kept = []
        self._bin(values)

    def _bin(self, values: Array) -> None:
        assert self._bins is not None
        place = (np.abs(values).view(np.int64) >> _SHIFT) - _OFFSET + 1
        place = np.clip(place, 0, _BINS)
        at = _BINS + np.where(values < 0, -place, place)
        if at.size > _BINS:
            self._bins += np.bincount(at, minlength=len(self._bins))
        else:
            np.add.at(self._bins, at, 1)

    def quantile(self, share: float) -> float:
        """The number below which this share lies; NaN where there are none."""
        if not self.count:
            return math.nan
        if self._bins is None:
            kept = self._kept = [np.sort(np.concatenate(self._kept))]
            place = share * (self.count - 1)
            low, high = float(kept[0][math.floor(place)]), float(kept[0][math.ceil(place)])
            return low if low == high else low + (place - math.floor(place)) * (high - low)
        if share in (0, 1):
            return self.most if share else self.least
        ends = np.cumsum(self._bins)
        rank = math.floor(share * (self.count - 1))
        at = int(np.searchsorted(ends, rank, side="right")) - _BINS
        return min(max(_middle(at), self.least), self.most)

    def histogram(self, edges: Array) -> Array:
        """How many numbers lie between each two edges; a bin counts where its middle is."""
        if self._bins is None:
            kept = np.concatenate(self._kept) if self._kept else np.zeros(0)
            return np.histogram(kept, edges)[0]
        filled = np.flatnonzero(self._bins)
        middles = np.array([_middle(at - _BINS) for at in filled.tolist()])
        return np.histogram(middles, edges, weights=self._bins[filled])[0].astype(np.int64)


def _middle(at: int) -> float:
    """The middle of a bin."""
    if at == 0:
        return 0.0
    if abs(at) == _BINS:
        return math.copysign(math.inf, at)
    bits = np.array([abs(at) - 1 + _OFFSET, abs(at) + _OFFSET], np.int64) << _SHIFT
    low, high = bits.view(np.float64).tolist()
    return math.copysign((low + high) / 2, at)
