"""The last step of every loss: sums to results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastloss._arrays import Array


class Totals(NamedTuple):
    """What a batch adds to a mean: float64 sums that can be added up over batches."""

    #: Sum of the losses.
    loss: float
    #: What the mean divides by: the sum of the weights, or the number of elements.
    weight: float


def reduced(
    reduction: str, totals: Totals, losses: Array | None, dtype: np.dtype, shape: tuple[int, ...]
) -> np.generic | Array:
    """Return the loss as its `reduction` wants it, in its own type."""
    if reduction == "mean":
        if totals.weight == 0:
            # 0 / 0 is NaN; a loss without a weight, as smoothing can make it, is infinite.
            return dtype.type(totals.loss * np.inf)
        return dtype.type(totals.loss / totals.weight)
    if reduction == "sum":
        return dtype.type(totals.loss)
    assert losses is not None
    return losses.reshape(shape) if shape else losses.reshape(())[()]
