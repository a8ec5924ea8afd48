"""Quality of predicted probabilities: `brier_score` and `calibration_error`.

Layout: a) samples that count, b) the Brier score, c) calibration.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Never, cast, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays
from fastloss._names import signed, unknown
from fastloss.evaluation._sums import ExactSum, exact_sums
from fastloss.evaluation.score import scores
from fastloss.losses._reduction import Loss, Reduction, Totals, reduced

__all__ = [
    "CalibrationBins",
    "CalibrationError",
    "brier_score",
    "calibration_error",
]


def __dir__() -> list[str]:
    return __all__


Array = NDArray[Any]

# ---- a) samples that count -------------------------------------------------------------------


def counting(target: Any, ignore_index: int, sample_weight: Any) -> tuple[Array, Array | None]:
    """Return a flat mask of the samples that count, and their weights, None without weights.

    A sample counts unless it is ignored or has weight 0.
    """
    target = np.asarray(target)
    kept = (target != ignore_index).ravel()
    if sample_weight is None:
        return kept, None
    weight = _arrays.broadcast_weights(sample_weight, target.shape).ravel()
    wrong = kept & ~((weight >= 0) & (weight < math.inf))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"sample_weight must be finite and at least 0, got {weight[at]} for sample {at}"
        )
    kept = kept & (weight > 0)
    return kept, weight[kept]


def weighted_sum(values: Array, weight: Array | None) -> ExactSum:
    """Return the exact sum of numbers, each rounded once after its weight multiplied it."""
    values = values.astype(np.float64, copy=False)
    return exact_sums(values if weight is None else values * weight)[0]


def total_of(values: Array, weight: Array | None) -> ExactSum:
    """Return the sum of the weights, or the number of `values` without weights."""
    if weight is not None:
        return exact_sums(weight)[0]
    count = ExactSum()
    count.add(float(values.size))
    return count


# ---- b) the Brier score ----------------------------------------------------------------------


@overload
def brier_score(
    logits: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = ...,
    ignore_index: int = ..., reduction: Literal["mean", "sum"] = ..., temperature: float = ...,
    softcap: float | None = ..., axis: int | None = ...,
) -> np.floating[Any]: ...  # fmt: skip
@overload
def brier_score(
    logits: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = ...,
    ignore_index: int = ..., reduction: Reduction, temperature: float = ...,
    softcap: float | None = ..., axis: int | None = ...,
) -> Loss: ...  # fmt: skip
@signed
def brier_score(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int | None = None,
    **others: Never,
) -> Loss:
    r"""Brier score of logits: the squared error of the probabilities, summed over classes.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target : see `score_samples`
    sample_weight : array_like, optional
        Weight of each sample, not negative; broadcasts to the samples.  The mean divides by the sum
        of these weights.
    ignore_index : int, default -100
        Samples with this target are left out.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' scores, their sum or all of them.
    temperature, softcap, axis : see `score_samples`

    Returns
    -------
    scalar or ndarray
        The score, from 0 to 2 for each sample: float64 for float64 logits, float32 for all others.
        With ``reduction="none"``, an array with the shape of `target`, 0 for ignored samples.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match, a weight is negative or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    calibration_error : the distance between confidence and accuracy.
    fit_temperature : the temperature with the least cross-entropy.

    Notes
    -----
    With the softmax :math:`p`, the score of a sample is

    .. math:: (1 - p_t)^2 + \sum_{c \ne t} p_c^2

    The first term is computed from the exponentials of the other classes, so the score of a
    confident sample keeps its digits.  For two classes the score is twice that of
    ``sklearn.metrics.brier_score_loss``, or equal to it with ``scale_by_half=False``.

    References
    ----------
    G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review
    78 (1950).

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.brier_score([[0.0, 0.0], [0.0, 0.0]], [0, 1]))
    0.5
    >>> print(f"{fastloss.brier_score([[20.0, 0.0]], [0]):.4e}")
    8.4967e-18
    """
    if others:
        unknown(brier_score, others)
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    found = scores(
        logits, target, ("brier",), ignore_index=ignore_index, temperature=temperature,
        softcap=softcap, axis=axis,
    )["brier"]  # fmt: skip
    kept, weight = counting(target, ignore_index, sample_weight)
    counted = found.ravel()[kept]
    if reduction == "none":
        each = np.zeros(kept.shape, found.dtype)
        each[kept] = counted if weight is None else counted * weight
        return cast("Loss", reduced("none", Totals(0.0, 0.0), each, found.dtype, found.shape))
    totals = Totals(float(weighted_sum(counted, weight)), float(total_of(counted, weight)))
    return cast("Loss", reduced(reduction, totals, None, found.dtype, found.shape))


# ---- c) calibration --------------------------------------------------------------------------


class CalibrationBins(NamedTuple):
    """A reliability diagram as numbers: arrays with an entry for each bin of confidence.

    .. versionadded:: 0.2.0
    """

    #: Lower edge of the bin, which belongs to the first bin only.
    lower: NDArray[np.float64]
    #: Upper edge of the bin, which belongs to the bin.
    upper: NDArray[np.float64]
    #: Number of samples in the bin, or the sum of their weights.
    samples: NDArray[np.float64]
    #: Mean confidence of these samples; NaN for an empty bin.
    confidence: NDArray[np.float64]
    #: Share of these samples whose target is predicted; NaN for an empty bin.
    accuracy: NDArray[np.float64]


class CalibrationError(NamedTuple):
    """The result of `calibration_error`.

    .. versionadded:: 0.2.0
    """

    #: Expected calibration error (ECE), the mean distance between confidence and accuracy.
    expected: float
    #: Maximum calibration error (MCE), the largest distance of any bin.
    maximum: float
    #: The bins that both errors are computed from.
    bins: CalibrationBins


def uniform_edges(bins: int) -> Array:
    """Return the inner edges of bins of equal width."""
    return np.arange(1, bins) / bins


def quantile_edges(confidence: Array, weight: Array | None, bins: int) -> Array:
    """Return the inner edges of bins of equal mass.  Each edge is one of the confidences."""
    if not confidence.size:
        return uniform_edges(bins)
    order = np.argsort(confidence, kind="stable")
    mass = np.arange(1.0, confidence.size + 1) if weight is None else np.cumsum(weight[order])
    wanted = np.arange(1, bins) * mass[-1] / bins
    at = np.minimum(np.searchsorted(mass, wanted), confidence.size - 1)
    return confidence[order[at]]


def bin_of(confidence: Array, edges: Array) -> Array:
    """Return the bin of each confidence.  A bin includes its upper edge, not its lower edge."""
    return np.searchsorted(edges, confidence, side="left")


def calibration_of(
    edges: Array,
    mass: list[ExactSum],
    confidence: list[ExactSum],
    right: list[ExactSum],
    known: bool,
) -> CalibrationError:
    """Return the calibration errors from the sums of each bin; NaN unless all samples are known."""
    sure = np.array([s.over(m) for s, m in zip(confidence, mass, strict=True)])
    accuracy = np.array([s.over(m) for s, m in zip(right, mass, strict=True)])
    count = np.array([float(m) for m in mass])
    apart, total = np.abs(sure - accuracy), ExactSum()
    for m in mass:
        total.merge(m)
    expected = maximum = math.nan
    if known and total.units:
        used = count > 0
        expected = math.fsum(apart[used] * count[used]) / float(total)
        maximum = float(apart[used].max())
    table = CalibrationBins(
        np.concatenate([[0.0], edges]), np.concatenate([edges, [1.0]]), count, sure, accuracy
    )
    return CalibrationError(expected, maximum, table)


def binned(
    confidence: Array, right: Array, weight: Array | None, edges: Array
) -> tuple[list[ExactSum], list[ExactSum], list[ExactSum]]:
    """Return for each bin the sums of weights, confidences and right predictions."""
    group, bins = bin_of(confidence, edges), len(edges) + 1
    each = np.ones(confidence.shape) if weight is None else weight
    return (
        exact_sums(each, group, bins),
        exact_sums(confidence * each, group, bins),
        exact_sums(right * each, group, bins),
    )


def number_of_bins(n_bins: Any) -> int:
    bins = _arrays.integer(n_bins, "n_bins")
    if not 1 <= bins <= 10**6:
        raise ValueError(f"n_bins must be at least 1 and at most a million, got {bins}")
    return bins


def errors_of(
    predicted_log_prob: Array, right: Array, weight: Array | None, bins: int, strategy: str
) -> CalibrationError:
    """Return the calibration errors of predictions; NaN if one has no probability."""
    confidence = np.exp(predicted_log_prob.astype(np.float64))
    known = ~np.isnan(confidence)
    whole = bool(known.all())
    if not whole:
        confidence, right = confidence[known], right[known]
        weight = None if weight is None else weight[known]
    if strategy == "uniform":
        edges = uniform_edges(bins)
    else:
        edges = quantile_edges(confidence, weight, bins)
    return calibration_of(edges, *binned(confidence, right, weight, edges), whole)


STRATEGIES = ("uniform", "quantile")


@signed
def calibration_error(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int | None = None,
    **others: Never,
) -> CalibrationError:
    r"""Expected and maximum calibration error of logits, with a reliability diagram.

    Samples are sorted into bins by confidence, the probability of the predicted class.  In a
    calibrated model, the share of correct predictions in each bin equals its mean confidence.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target : see `score_samples`
    n_bins : int, default 15
        Number of bins.
    strategy : {"uniform", "quantile"}, default "uniform"
        Bins of equal width from 0 to 1, or bins of equal mass.  Samples with the same confidence go
        to the same bin, so the masses differ if many samples are alike.
    sample_weight : array_like, optional
        Weight of each sample, not negative; broadcasts to the samples.
    ignore_index : int, default -100
        Samples with this target are left out.
    temperature, softcap, axis : see `score_samples`

    Returns
    -------
    CalibrationError
        A named tuple of the floats ``expected`` and ``maximum``, and of ``bins``: the reliability
        diagram as a `CalibrationBins`.  Both errors are NaN if no sample counts, or if a sample has
        no softmax because a logit is NaN or +inf or all logits are -inf.  The bins leave such
        samples out.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match, a weight is negative or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    fit_temperature : calibrates a model by a temperature.
    brier_score : a score that does not depend on bins.

    Notes
    -----
    With the weight :math:`w_b` of bin :math:`b`, its mean confidence :math:`p_b` and its accuracy
    :math:`a_b`,

    .. math:: \mathrm{expected} = \sum_b \frac{w_b}{\sum_k w_k} |p_b - a_b|, \qquad
        \mathrm{maximum} = \max_b |p_b - a_b|.

    A bin includes its upper edge but not its lower edge.  All sums are exact, so the result does
    not depend on the order of the samples.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017, arXiv:1706.04599.

    Examples
    --------
    Three predictions, all 80 % sure, of which two are right:

    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8]])
    >>> error = fastloss.calibration_error(logits, [0, 1, 1], n_bins=10)
    >>> round(error.expected, 4)
    0.1333
    >>> error.bins.samples
    array([0., 0., 0., 0., 0., 0., 0., 3., 0., 0.])
    """
    if others:
        unknown(calibration_error, others)
    bins = number_of_bins(n_bins)
    if strategy not in STRATEGIES:
        _arrays.one_of(strategy, STRATEGIES, "strategy")
    found = scores(
        logits, target, ("predicted", "predicted_log_prob"), ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, axis=axis,
    )  # fmt: skip
    kept, weight = counting(target, ignore_index, sample_weight)
    right = (found["predicted"] == np.asarray(target)).ravel()[kept]
    return errors_of(found["predicted_log_prob"].ravel()[kept], right, weight, bins, strategy)
