"""Exact sums, which do not depend on the order of the numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExactSum", "exact_sums"]


class ExactSum:
    """An exact sum of float64 numbers.

    Every finite float64 is a multiple of the smallest one, 2**-1074, and Python's integers add up
    these multiples.  Numbers that are not finite are added up separately.  Neither sum depends on
    the order of the numbers.
    """

    __slots__ = ("units", "special")

    def __init__(self) -> None:
        self.units = 0
        self.special = 0.0

    def add(self, value: float) -> None:
        """Add a number."""
        if math.isfinite(value):
            numerator, denominator = value.as_integer_ratio()
            self.units += numerator << (1075 - denominator.bit_length())
        else:
            self.special += value

    def merge(self, other: ExactSum) -> None:
        """Add another sum."""
        self.units += other.units
        self.special += other.special

    def __float__(self) -> float:
        """Return the float64 nearest to the sum."""
        return self.special or _quotient(self.units, 1 << 1074)

    def over(self, other: ExactSum) -> float:
        """Return the float64 nearest to the quotient of two sums; NaN if both are 0."""
        if self.special or other.special or not other.units:
            bottom = float(other)
            return float(self) / bottom if bottom else math.nan
        return _quotient(self.units, other.units)


def _quotient(numerator: int, denominator: int) -> float:
    """Return the float64 nearest to the quotient, or infinity if that is too large."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if (numerator < 0) == (denominator < 0) else -math.inf


#: Exponents of float64 numbers as `frexp` returns them: the smallest, and their number.
_LEAST, _EXPONENTS = -1073, 2098
#: Block of numbers that are added up at a time.  A sum of this many half mantissas is exact.
_AT_A_TIME = 1 << 20


def exact_sums(
    values: NDArray[Any], groups: NDArray[Any] | None = None, number: int = 1
) -> list[ExactSum]:
    """Return the exact sum of float64 numbers, or of each of `number` groups of them.

    The mantissas of numbers with the same exponent are split into halves and added up as integers.

    Parameters
    ----------
    values : ndarray
        Float64 numbers, 1-D.
    groups : ndarray, optional
        Group of each number, as integers.
    number : int, optional
        Number of groups.
    """
    sums = [ExactSum() for _ in range(number)]
    for first in range(0, values.size, _AT_A_TIME):
        part = values[first : first + _AT_A_TIME]
        group = np.zeros(1, np.intp) if groups is None else groups[first : first + _AT_A_TIME]
        finite = np.isfinite(part)
        if not finite.all():
            group = np.broadcast_to(group, part.shape)
            for i in np.flatnonzero(~finite):
                sums[group[i]].special += float(part[i])
            part, group = part[finite], group[finite]
        mantissa, exponent = np.frexp(part)
        mantissa *= 1 << 27
        high = np.trunc(mantissa)
        low = (mantissa - high) * (1 << 26)
        place = group * _EXPONENTS + (exponent - _LEAST)
        highs = np.bincount(place, high, number * _EXPONENTS)
        lows = np.bincount(place, low, number * _EXPONENTS)
        for i in np.flatnonzero((highs != 0) | (lows != 0)):
            shift = int(i % _EXPONENTS) + _LEAST + 1074 - 53
            total = (int(highs[i]) << 26) + int(lows[i])
            # The bits that are cut off from small numbers are zeros.
            sums[i // _EXPONENTS].units += total << shift if shift >= 0 else total >> -shift
    return sums
