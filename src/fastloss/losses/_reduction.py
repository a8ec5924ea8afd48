"""The last step of every loss: sums to results."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from fastloss._arrays import Array

Reduction = Literal["mean", "sum", "none"]
KLReduction = Literal["mean", "batchmean", "sum", "none"]
#: A scalar, or with reduction "none" an array.
Loss = np.floating[Any] | Array

#: The largest float32; to ask NumPy for it would take a good part of the import.
LARGEST = (2.0 - 2.0**-23) * 2.0**127


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
    if reduction != "none":
        loss, weight = totals
        if reduction != "sum":
            # A mean that divides by nothing is NaN, even where smoothing leaves a loss above it.
            loss = loss / weight if weight else np.nan
        if loss > LARGEST or loss < -LARGEST:
            # Infinite in float32, as a kernel would write it: without a warning.
            with np.errstate(over="ignore"):
                return dtype.type(loss)
        return dtype.type(loss)
    assert losses is not None
    return losses.reshape(shape) if shape else losses.reshape(())[()]
