"""Means with their errors: moments that merge, and Student's distribution."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from fastloss._scoring.sources import Array


class Moments:
    """Count, mean and sum of squared deviations of numbers that come in blocks.

    Merged as in Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 1983.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, math.nan, 0.0

    def add(self, values: Array) -> None:
        """Take numbers."""
        if values.size:
            other = Moments()
            other.count, other.mean = values.size, float(np.mean(values))
            other._squares = float(np.sum(np.square(values - other.mean)))
            self.merge(other)

    def merge(self, other: Moments) -> None:
        """Add what others have taken."""
        if not self.count or not other.count:
            if other.count:
                self.count, self.mean, self._squares = other.count, other.mean, other._squares
            return
        count = self.count + other.count
        step = other.mean - self.mean
        self._squares += other._squares + step * step * self.count * other.count / count
        self.mean += step * other.count / count
        self.count = count

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for fewer than two numbers."""
        if self.count < 2:
            return math.nan
        return math.sqrt(self._squares / (self.count - 1) / self.count)


def student_quantile(freedom: int, share: float = 0.975) -> float:
    """The quantile of Student's distribution, to 1e-9.

    Up to 300 degrees of freedom it is found in the finite series of its distribution (Abramowitz
    and Stegun, 26.7.3 and 26.7.4), beyond by Fisher's expansion (26.7.5).
    """
    z = NormalDist().inv_cdf(share)
    if freedom > 300:
        v = float(freedom)
        return (
            z
            + (z**3 + z) / (4 * v)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
            + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
        )
    low, high = z, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * share - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """The probability that Student's variable lies between -t and t."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total
