"""A loss over any number of batches and workers: `StreamingLoss`.

The state consists of two exact sums (Σ loss and the denominator of the mean), the same two sums for
the perplexity, and counts.  It therefore does not depend on the order of updates and merges, it
pickles to a few hundred bytes, and merging is cheap.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss.evaluation._sums import ExactSum
from fastloss.losses._reduction import Totals
from fastloss.losses.criteria import Criterion

__all__ = ["StreamingLoss"]


def __dir__() -> list[str]:
    return __all__


#: Options that change the loss but not the model: without them the loss is -log p(target).
_NOT_OF_THE_MODEL = frozenset({"weight", "alpha", "gamma", "label_smoothing", "z_loss"})


class StreamingLoss:
    """The loss of many batches, as if they had been one call.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    criterion : criterion
        A fastloss criterion, such as ``CrossEntropyLoss(label_smoothing=0.1)``.  Its ``reduction``
        determines what `compute` returns, and cannot be ``"none"``.

    Attributes
    ----------
    sum : float
        Sum of the losses so far.
    weight : float
        Denominator of the mean: the sum of the weights of all samples that are not ignored, or
        their number if there are no weights.
    mean : float
        ``sum / weight``; NaN if no sample has been counted.
    perplexity : float
        Perplexity of the model, for losses over classes with class indices: ``exp`` of the mean of
        -log p(target) over all samples that are not ignored.  Weights, smoothing and ``z_loss`` of
        the criterion have no effect on it; ``temperature`` and ``softcap`` are part of the model.
    samples : int
        Number of losses, including ignored ones, that ``reduction="none"`` would have returned.
    batches : int
        Number of calls of `update`, including those of merged accumulators.

    Raises
    ------
    TypeError
        If `criterion` is not a fastloss criterion.
    ValueError
        If the criterion's reduction is ``"none"``.

    See Also
    --------
    StreamingMetrics : perplexity, accuracy and calibration in one pass.

    Notes
    -----
    The mean is Σ loss / Σ weight over all batches, not the mean of the batches' means.  Batches may
    therefore differ in size and in the number of ignored samples.  The sum of one batch is rounded
    to float64.  The sums over batches are exact and are rounded once, when they are read, so the
    same batches give the same bits in any order of updates and merges.

    If the criterion has weights, smoothing, ``z_loss`` or ``gamma``, the perplexity takes a second
    pass over each batch.

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

    __slots__ = (
        "_criterion",
        "_sum",
        "_weight",
        "_surprise",
        "_predicted",
        "_samples",
        "_batches",
        "_soft",
    )

    def __init__(self, criterion: Any):
        if not isinstance(criterion, Criterion):
            raise TypeError(f"criterion must be a fastloss criterion, got {criterion!r}")
        if criterion.reduction == "none":
            raise ValueError(
                "StreamingLoss sums or averages; the criterion's reduction is 'none', "
                "expected 'mean' or 'sum'"
            )
        self._criterion = criterion
        self.reset()

    def reset(self) -> StreamingLoss:
        """Forget all batches.  Returns the accumulator itself."""
        self._sum, self._weight = ExactSum(), ExactSum()
        # Of the unweighted -log p(target), and the number of targets.
        self._surprise, self._predicted = ExactSum(), ExactSum()
        self._samples = 0
        self._batches = 0
        #: Batches of class probabilities, which have no perplexity.
        self._soft = 0
        return self

    def update(
        self, logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> StreamingLoss:
        """Add one batch; the arguments are those of the criterion.  Returns the accumulator itself.

        A batch that raises an error leaves the accumulator unchanged.
        """
        loss = self._criterion._loss
        x = _arrays.floating(logits, loss.input)
        target = _arrays.as_array(target, loss.target)
        totals = self._criterion._evaluate(x, target, sample_weight)[2]
        samples, soft = x.size, False
        if loss.over_classes:
            axis = _arrays.class_axis(self._criterion.axis, x.ndim, loss.input)
            samples = math.prod(x.shape[:axis] + x.shape[axis + 1 :])
            soft = target.shape == x.shape
        model = None
        if loss.likelihood is not None and not soft:
            model = self._likelihood(x, target, sample_weight, totals)
        # Nothing raises from here on.
        self._sum.add(totals.loss)
        self._weight.add(totals.weight)
        if model is not None:
            self._surprise.add(model.loss)
            self._predicted.add(model.weight)
        self._soft += soft
        self._samples += samples
        self._batches += 1
        return self

    def _likelihood(self, x: Any, target: Any, sample_weight: Any, totals: Totals) -> Totals:
        """Return the sum of the unweighted -log p(target) of a batch, and their number."""
        loss, options = self._criterion._loss, self._criterion._options
        if (
            loss.likelihood is loss.evaluate
            and sample_weight is None
            and all(
                loss.is_default(option, options[option])
                for option in _NOT_OF_THE_MODEL & {*options}
            )
        ):
            return totals
        assert loss.likelihood is not None
        kept = {
            option: value
            for option, value in options.items()
            if option not in _NOT_OF_THE_MODEL and option != "reduction"
        }
        return loss.likelihood(x, target, reduction="sum", **kept)[2]

    def merge(self, other: StreamingLoss) -> StreamingLoss:
        """Add all batches of another accumulator.  Returns the accumulator itself.

        Raises
        ------
        TypeError
            If ``other`` is not a `StreamingLoss`.
        ValueError
            If its criterion differs, so that the sums do not belong together.
        """
        if not isinstance(other, StreamingLoss):
            raise TypeError(f"merge expects a StreamingLoss, got {type(other).__name__}")
        if self._criterion != other._criterion:
            raise ValueError(
                f"cannot merge the loss of {other._criterion!r} into that of {self._criterion!r}"
            )
        for name in ("_sum", "_weight", "_surprise", "_predicted"):
            getattr(self, name).merge(getattr(other, name))
        self._samples += other._samples
        self._batches += other._batches
        self._soft += other._soft
        return self

    def compute(self) -> float:
        """Return the loss of all batches so far: the mean, or the sum if that is the reduction."""
        return self.sum if self._criterion.reduction == "sum" else self.mean

    @property
    def criterion(self) -> Any:
        return self._criterion

    @property
    def sum(self) -> float:
        return float(self._sum)

    @property
    def weight(self) -> float:
        return float(self._weight)

    @property
    def mean(self) -> float:
        return self._sum.over(self._weight)

    @property
    def perplexity(self) -> float:
        if self._criterion._loss.likelihood is None:
            raise AttributeError(
                f"{type(self._criterion).__name__} has no perplexity: that is the exponential of"
                " the mean cross-entropy over classes"
            )
        if self._soft:
            raise ValueError(
                f"there is no perplexity of class probabilities, which {self._soft} of"
                f" {self._batches} batches had as target"
            )
        try:
            return math.exp(self._surprise.over(self._predicted))
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
