"""Evaluation: what every sample got, and a mean over more batches than memory holds.

- `score_samples`: one pass over the logits gives each sample's log-probability, prediction and
  entropy.
- `StreamingLoss`: a criterion's mean or sum over any number of batches, on any number of workers.
  Its state is two compensated sums (Σ loss and the denominator of the mean) and two counts, so that
  it merges, pickles and costs nothing to carry.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays, _threads
from fastloss._kernels import classes as _kernels

__all__ = ["SampleScores", "StreamingLoss", "score_samples"]


class SampleScores(NamedTuple):
    """What `score_samples` returns; every array has the shape of the target."""

    log_prob: NDArray[Any]
    predicted: NDArray[np.intp]
    predicted_log_prob: NDArray[Any]
    entropy: NDArray[Any]


_EVALUATE = {name: _kernels.evaluate[name] for name in _kernels.evaluate.__signatures__}


def score_samples(logits: ArrayLike, target: ArrayLike, *, axis: int | None = None) -> SampleScores:
    r"""Score each sample in one pass: its target, the prediction, and how sure that is.

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    SampleScores
        A named tuple of arrays of the shape of `target`: ``log_prob`` (of the target, the negative
        of its cross-entropy), ``predicted`` (first class with the largest logit, NaNs passed over),
        ``predicted_log_prob`` and ``entropy`` of the softmax, in nats.  float32; float64 for
        float64 logits.

    Raises
    ------
    TypeError
        For arrays of the wrong type.
    ValueError
        For shapes that do not fit.
    IndexError
        For a class index outside [0, C).

    Notes
    -----
    With the softmax :math:`p`, the entropy is :math:`-\sum_c p_c \log p_c`, summed as
    :math:`\log \sum_k e^{x_k - m} + \sum_c p_c (m - x_c)` with the largest logit :math:`m`:
    terms of one sign.

    Examples
    --------
    >>> import fastloss
    >>> scores = fastloss.score_samples([[1.0, 3.0], [2.0, 2.0]], [1, 1])
    >>> scores.log_prob.round(4)
    array([-0.1269, -0.6931])
    >>> scores.predicted
    array([1, 0])
    >>> scores.entropy.round(4)
    array([0.3653, 0.6931])
    """
    a = _arrays.over_classes(logits, target, None, None, axis, "logits", False)
    shape = a.shape
    storage = _arrays.STORAGE[a.logits.dtype]
    numbers = np.full((3, shape[0], shape[2]), np.nan)
    predicted = np.zeros((shape[0], shape[2]), np.int64)
    what, where, _, _ = _EVALUATE[storage.kernel](
        _kernels.KINDS["score"],
        _arrays.seen_by_kernel(a.logits, shape),
        a.target,
        numbers=numbers,
        predicted=predicted,
        threads=_threads.for_work(a.logits.size),
    )
    assert a.target is not None
    if what:
        _arrays.wrong_index(a.target.reshape(a.samples), where, shape[1])
    log_prob, predicted_log_prob, entropy = numbers.astype(storage.loss).reshape(3, *a.samples)
    return SampleScores(log_prob, predicted.reshape(a.samples), predicted_log_prob, entropy)


class _CompensatedSum:
    """A float64 sum that carries its rounding error: about 106 bits, whatever the order.

    ``high + low`` is the sum, ``high`` its nearest float64. An addition is Knuth's two-sum ("The
    Art of Computer Programming", volume 2, 4.2.2, theorem B), renormalised so that ``low`` stays a
    correction.
    """

    __slots__ = ("high", "low")

    def __init__(self, high: float = 0.0, low: float = 0.0):
        self.high = high
        self.low = low

    def add(self, high: float, low: float = 0.0) -> None:
        total = self.high + high
        if not math.isfinite(total):
            # Infinity or NaN stays what it is; its "rounding error" would turn infinity into NaN.
            self.high, self.low = total, 0.0
            return
        part = total - self.high
        error = (self.high - (total - part)) + (high - part) + self.low + low
        self.high = total + error
        self.low = error - (self.high - total)


class StreamingLoss:
    """The loss of a stream of batches, as if all of them had been one call.

    Parameters
    ----------
    criterion : criterion
        A fastloss criterion, such as ``CrossEntropyLoss(label_smoothing=0.1)``. Its ``reduction``
        says what `compute` returns, and can't be ``"none"``.

    Attributes
    ----------
    sum : float
        Σ of the losses so far.
    weight : float
        What the mean divides by: Σ of the weights of the samples not ignored, without weights their
        number.
    mean : float
        ``sum / weight``; NaN when nothing has been counted.
    perplexity : float
        ``exp(mean)``.
    samples : int
        Losses seen, ignored ones included: as many as ``reduction="none"`` would have returned.
    batches : int
        Calls of `update`, those of merged accumulators included.

    Raises
    ------
    ValueError
        If the criterion's reduction is ``"none"``.

    Notes
    -----
    Batches of different sizes, and batches where more is ignored, count for what they hold: the
    mean is Σ loss / Σ weight, never a mean of means. Both sums carry their rounding error, so
    updates and merges in any order give the same value as one call over all the batches, to within
    the rounding of each batch's own sum (1 ulp of float64 for a batch).

    Examples
    --------
    >>> import numpy as np
    >>> from fastloss import CrossEntropyLoss, StreamingLoss
    >>> logits = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    >>> target = np.arange(100) % 10
    >>> first, second = StreamingLoss(CrossEntropyLoss()), StreamingLoss(CrossEntropyLoss())
    >>> first.update(logits[:70], target[:70]).update(logits[70:90], target[70:90]).batches
    2
    >>> second.update(logits[90:], target[90:]).samples    # on another worker, say
    10
    >>> loss = first.merge(second).compute()
    >>> bool(np.isclose(loss, CrossEntropyLoss()(logits, target)))
    True
    """

    __slots__ = ("_criterion", "_sum", "_weight", "_samples", "_batches")

    def __init__(self, criterion: Any):
        reduction = getattr(criterion, "reduction", None)
        if reduction is None or not hasattr(criterion, "_totals"):
            raise TypeError(f"criterion must be a fastloss criterion, got {criterion!r}")
        if reduction == "none":
            raise ValueError(
                "StreamingLoss sums or averages; the criterion's reduction is 'none', "
                "expected 'mean' or 'sum'"
            )
        self._criterion = criterion
        self.reset()

    def reset(self) -> StreamingLoss:
        """Forget every batch. Returns the accumulator itself."""
        self._sum = _CompensatedSum()
        self._weight = _CompensatedSum()
        self._samples = 0
        self._batches = 0
        return self

    def update(self, x: ArrayLike, t: ArrayLike) -> StreamingLoss:
        """Add one batch; the arguments are those of the criterion. Returns the accumulator itself.

        A batch that the criterion rejects raises its error and changes nothing here.
        """
        x = np.asarray(x)
        loss, weight = self._criterion._totals(x, t)
        if self._criterion.reduction == "batchmean":
            # Its mean divides by the length of the batch, not by the number of elements.
            weight = float(x.shape[0])
        self._sum.add(loss)
        self._weight.add(weight)
        self._samples += _count_losses(self._criterion, x)
        self._batches += 1
        return self

    def merge(self, other: StreamingLoss) -> StreamingLoss:
        """Add everything that another accumulator has seen. Returns the accumulator itself.

        Raises
        ------
        TypeError
            If ``other`` is no `StreamingLoss`.
        ValueError
            If its criterion has other options: their sums don't belong together.
        """
        if not isinstance(other, StreamingLoss):
            raise TypeError(f"merge expects a StreamingLoss, got {type(other).__name__}")
        if self._criterion != other._criterion:
            raise ValueError(
                f"cannot merge the loss of {other._criterion!r} into that of {self._criterion!r}"
            )
        self._sum.add(other._sum.high, other._sum.low)
        self._weight.add(other._weight.high, other._weight.low)
        self._samples += other._samples
        self._batches += other._batches
        return self

    def compute(self) -> float:
        """The loss so far under the criterion's reduction: `mean` or `sum`."""
        return self.sum if self._criterion.reduction == "sum" else self.mean

    @property
    def criterion(self) -> Any:
        return self._criterion

    @property
    def sum(self) -> float:
        return self._sum.high

    @property
    def weight(self) -> float:
        return self._weight.high

    @property
    def mean(self) -> float:
        return self.sum / self.weight if self.weight else math.nan

    @property
    def perplexity(self) -> float:
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def batches(self) -> int:
        return self._batches

    def __repr__(self) -> str:
        return (
            f"StreamingLoss({self._criterion!r}): mean {self.mean:.6g} "
            f"over {self._samples} samples in {self._batches} batches"
        )


def _count_losses(criterion: Any, x: NDArray[Any]) -> int:
    """How many losses a batch has: one for each element, or for each row of classes."""
    if not hasattr(criterion, "ignore_index"):
        return x.size
    axis = min(1, x.ndim - 1)
    return math.prod(x.shape[:axis] + x.shape[axis + 1 :])
