"""Metrics of a classifier over any number of batches: `StreamingMetrics`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss.evaluation._sums import ExactSum
from fastloss.evaluation.calibration import (
    CalibrationError,
    binned,
    calibration_of,
    counting,
    number_of_bins,
    total_of,
    uniform_edges,
    weighted_sum,
)
from fastloss.evaluation.score import scores

__all__ = ["Metrics", "StreamingMetrics"]


def __dir__() -> list[str]:
    return __all__


class Metrics(NamedTuple):
    """The result of `StreamingMetrics.compute`; numbers are NaN if no sample counted.

    .. versionadded:: 0.2.0
    """

    #: Number of samples that counted, without those that are ignored or have weight 0.
    samples: int
    #: Mean cross-entropy, in nats.
    loss: float
    #: ``exp(loss)``.
    perplexity: float
    #: Share of samples whose target is predicted.
    accuracy: float
    #: Share of samples whose target is among the `top_k` most likely classes.
    top_k_accuracy: float
    #: Expected calibration error.
    calibration_error: float
    #: Mean Brier score, from 0 to 2.
    brier_score: float


_WANTED = ("log_prob", "rank", "predicted", "predicted_log_prob", "brier")
#: Sums over the samples, each of a weight times something.
_SUMS = ("_surprise", "_brier", "_right", "_near", "_weight")
#: Sums of each bin.
_BINNED = ("_mass", "_sure", "_hits")


class StreamingMetrics:
    """Loss, perplexity, accuracy, calibration and Brier score of a stream of batches.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    top_k : int, default 5
        Number of most likely classes in which ``top_k_accuracy`` looks for the target.
    n_bins : int, default 15
        Number of bins of equal width for the calibration error.
    ignore_index : int, default -100
        Samples with this target are left out.
    temperature, softcap, axis : see `score_samples`

    Attributes
    ----------
    samples : int
        Number of samples that counted.
    non_finite : int
        Number of these samples that have no softmax: with a logit of NaN or +inf, or with all
        logits -inf.  They count as wrong predictions, and make everything but the accuracies NaN.
    batches : int
        Number of calls of `update`, including those of merged accumulators.

    Raises
    ------
    TypeError
        If an option has the wrong type.
    ValueError
        If an option is out of range.

    See Also
    --------
    StreamingLoss : any loss, with its own options.
    score_samples : scores of each sample.

    Notes
    -----
    Each batch takes one pass.  All sums are exact and are rounded once, when they are read.  The
    results are therefore the same to the last bit however the samples are split into batches, and
    in whatever order updates and merges happen.  An accumulator pickles to a few kilobytes.

    Sample weights count in every metric: shares are shares of the sum of the weights.

    Ties count against the target.  If an earlier class has the same largest logit, the prediction
    is wrong; for ``top_k_accuracy`` the target comes last among classes with the same logit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastloss import StreamingMetrics
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(1000, 10)).astype(np.float32)
    >>> target = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    >>> first, second = StreamingMetrics(top_k=3), StreamingMetrics(top_k=3)
    >>> first.update(logits[:600], target[:600]).samples
    600
    >>> second.update(logits[600:], target[600:]).samples    # on another worker, say
    400
    >>> metrics = first.merge(second).compute()
    >>> print(f"{metrics.accuracy:.3f} {metrics.top_k_accuracy:.3f}")
    0.323 0.636
    >>> metrics == StreamingMetrics(top_k=3).update(logits, target).compute()
    True
    """

    _surprise: ExactSum
    _brier: ExactSum
    _right: ExactSum
    _near: ExactSum
    _weight: ExactSum
    _mass: list[ExactSum]
    _sure: list[ExactSum]
    _hits: list[ExactSum]

    __slots__ = ("_options", "_top_k", "_bins", *_SUMS, *_BINNED, "_samples", "_lost", "_batches")

    def __init__(
        self,
        *,
        top_k: int = 5,
        n_bins: int = 15,
        ignore_index: int = -100,
        temperature: float = 1.0,
        softcap: float | None = None,
        axis: int | None = None,
    ):
        self._top_k = _arrays.integer(top_k, "top_k")
        if self._top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self._bins = number_of_bins(n_bins)
        self._options: dict[str, Any] = {
            "ignore_index": _arrays.integer(ignore_index, "ignore_index"),
            "temperature": _arrays.positive(temperature, "temperature"),
            "softcap": None if softcap is None else _arrays.positive(softcap, "softcap"),
            "axis": None if axis is None else _arrays.integer(axis, "axis"),
        }
        self.reset()

    def reset(self) -> StreamingMetrics:
        """Forget all batches.  Returns the accumulator itself."""
        for name in _SUMS:
            setattr(self, name, ExactSum())
        for name in _BINNED:
            setattr(self, name, [ExactSum() for _ in range(self._bins)])
        self._samples = self._lost = self._batches = 0
        return self

    def update(
        self, logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> StreamingMetrics:
        """Add one batch.  Returns the accumulator itself.

        A batch that raises an error leaves the accumulator unchanged.

        Parameters
        ----------
        logits, target : see `score_samples`
        sample_weight : array_like, optional
            Weight of each sample, not negative; broadcasts to the samples.
        """
        t = _arrays.as_array(target, "target")
        found = scores(logits, t, _WANTED, **self._options)
        kept, weight = counting(t, self._options["ignore_index"], sample_weight)
        log_prob, rank, predicted, best, brier = (found[name].ravel()[kept] for name in _WANTED)
        known = ~np.isnan(log_prob)
        right = (predicted == t.ravel()[kept]) & known
        sums = (
            weighted_sum(-log_prob, weight),
            weighted_sum(brier, weight),
            weighted_sum(right, weight),
            weighted_sum(known & (rank < self._top_k), weight),
            total_of(log_prob, weight),
        )
        bins = binned(
            np.exp(best[known].astype(np.float64)),
            right[known],
            None if weight is None else weight[known],
            uniform_edges(self._bins),
        )
        # Nothing raises from here on.
        self._add(sums, bins)
        self._samples += log_prob.size
        self._lost += int(log_prob.size - np.count_nonzero(known))
        self._batches += 1
        return self

    def _add(self, sums: Any, bins: Any) -> None:
        for name, more in zip(_SUMS, sums, strict=True):
            getattr(self, name).merge(more)
        for name, each in zip(_BINNED, bins, strict=True):
            for one, more in zip(getattr(self, name), each, strict=True):
                one.merge(more)

    def merge(self, other: StreamingMetrics) -> StreamingMetrics:
        """Add all batches of another accumulator.  Returns the accumulator itself.

        Raises
        ------
        TypeError
            If ``other`` is not a `StreamingMetrics`.
        ValueError
            If its options differ, so that the sums do not belong together.
        """
        if not isinstance(other, StreamingMetrics):
            raise TypeError(f"merge expects a StreamingMetrics, got {type(other).__name__}")
        if self._signature() != other._signature():
            raise ValueError(f"cannot merge {other._signature()} into {self._signature()}")
        self._add(
            [getattr(other, name) for name in _SUMS], [getattr(other, name) for name in _BINNED]
        )
        self._samples += other._samples
        self._lost += other._lost
        self._batches += other._batches
        return self

    def compute(self) -> Metrics:
        """Return the metrics of all batches so far."""
        loss = self._surprise.over(self._weight)
        try:
            perplexity = math.exp(loss)
        except OverflowError:
            perplexity = math.inf
        return Metrics(
            self._samples,
            loss,
            perplexity,
            self._right.over(self._weight),
            self._near.over(self._weight),
            self.calibration().expected,
            self._brier.over(self._weight),
        )

    def calibration(self) -> CalibrationError:
        """Return the calibration error of all batches so far, with its bins."""
        return calibration_of(
            uniform_edges(self._bins), self._mass, self._sure, self._hits, not self._lost
        )

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def non_finite(self) -> int:
        return self._lost

    @property
    def batches(self) -> int:
        return self._batches

    def _signature(self) -> str:
        options = {"top_k": self._top_k, "n_bins": self._bins, **self._options}
        return f"StreamingMetrics({', '.join(f'{k}={v!r}' for k, v in options.items())})"

    def __repr__(self) -> str:
        return f"{self._signature()}: {self._samples} samples in {self._batches} batches"
