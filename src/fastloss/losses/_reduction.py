"""The last step of every loss: from sums to results."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from fastloss._arrays import Array

Reduction = Literal["mean", "sum", "none"]
KLReduction = Literal["mean", "batchmean", "sum", "none"]
#: A scalar, or with reduction "none" an array.
Loss = np.floating[Any] | Array

#: The largest float32.  Asking NumPy for it would take a large part of the import's time.
LARGEST = (2.0 - 2.0**-23) * 2.0**127


class Totals(NamedTuple):
    """The contribution of a batch to a mean: float64 sums that can be added up over batches."""

    #: Sum of the losses.
    loss: float
    #: Denominator of the mean: the sum of the weights, or the number of elements.
    weight: float


def reduced(
    reduction: str, totals: Totals, losses: Array | None, dtype: np.dtype, shape: tuple[int, ...]
) -> np.generic | Array:
    """Return the loss after its `reduction`, in its own type."""
    if reduction != "none":
        loss, weight = totals
        if reduction != "sum":
            # A mean with denominator 0 is NaN, even if smoothing leaves a positive sum of losses.
            loss = loss / weight if weight else np.nan
        if loss > LARGEST or loss < -LARGEST:
            # Infinite in float32, without a warning, as a kernel would write it.
            with np.errstate(over="ignore"):
                return dtype.type(loss)
        return dtype.type(loss)
    assert losses is not None
    return losses.reshape(shape) if shape else losses.reshape(())[()]
