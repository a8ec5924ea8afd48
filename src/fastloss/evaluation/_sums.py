"""Sums without any rounding, which are the same in whatever order numbers come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExactSum", "exact_sums"]


class ExactSum:
    """A sum of float64 numbers without any rounding.

    Every finite float64 is a whole number of the smallest, 2**-1074: Python's integers add those
    up.  The sum of the numbers that are not finite stands beside it.  Both are the same in whatever
    order numbers come.
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
        """Add everything that another sum holds."""
        self.units += other.units
        self.special += other.special

    def __float__(self) -> float:
        """Return the float64 nearest to the sum."""
        return self.special or _quotient(self.units, 1 << 1074)

    def over(self, other: ExactSum) -> float:
        """Return the float64 nearest to the quotient of two sums, NaN where both are nothing."""
        if self.special or other.special or not other.units:
            bottom = float(other)
            return float(self) / bottom if bottom else math.nan
        return _quotient(self.units, other.units)


def _quotient(numerator: int, denominator: int) -> float:
    """Return the nearest float64, infinity beyond the largest: Python rounds once."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if (numerator < 0) == (denominator < 0) else -math.inf


#: Exponents of float64 numbers as `frexp` gives them: from LEAST up, so many.
_LEAST, _EXPONENTS = -1073, 2098
#: Numbers that are added up at a time: a sum of as many halves of mantissas is exact in float64.
_AT_A_TIME = 1 << 20


def exact_sums(
    values: NDArray[Any], groups: NDArray[Any] | None = None, number: int = 1
) -> list[ExactSum]:
    """Return the exact sum of float64 numbers, or those of `number` groups of them.

    The numbers of one exponent are added up as integers, the halves of their mantissas each.

    Parameters
    ----------
    values : ndarray
        Float64 numbers, 1-D.
    groups : ndarray, optional
        To which group each belongs, integers.
    number : int, optional
        How many groups there are.
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
            # Small numbers end in as many zeros as are cut off.
            sums[i // _EXPONENTS].units += total << shift if shift >= 0 else total >> -shift
    return sums
