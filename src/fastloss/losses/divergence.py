"""Divergences between distributions: `kl_div`, with its gradient.

``kl_div_totals`` (not public) returns the two sums of which a mean is made, for losses that are
gathered batch by batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss.losses._elementwise import Kind, evaluate
from fastloss.losses._reduction import Totals

KLReduction = Literal["mean", "batchmean", "sum", "none"]

__all__ = [
    "kl_div",
    "kl_div_backward",
    "kl_div_value_and_grad",
]


def _kind(log_target: bool) -> int:
    return Kind.KL_LOG_TARGET if log_target else Kind.KL


def kl_div(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: KLReduction = "mean",
    log_target: bool = False,
) -> np.floating[Any] | Array:
    r"""Kullback-Leibler divergence of the target from log-probabilities.

    Parameters
    ----------
    log_probs : array_like, any shape
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `log_probs`
        Probabilities, or their logarithms with `log_target`; any real type.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, "batchmean" by the first dimension.  The
        divergence of distributions is what "batchmean" gives.
    log_target : bool, default False
        Whether `target` holds log-probabilities.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `log_probs`.  float32; float64 for float64
        `log_probs`.  The mean over no element is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    The loss of an element is :math:`t\,(\log t - x)`, 0 where :math:`t` is 0, and
    :math:`e^t (t - x)` with `log_target`.  A negative target gives NaN.  Computed in float64.

    Kullback and Leibler, "On Information and Sufficiency", 1951.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> log_probs = np.log([[0.5, 0.5], [0.9, 0.1]])
    >>> target = [[0.25, 0.75], [0.9, 0.1]]
    >>> print(fastloss.kl_div(log_probs, target, reduction="batchmean").round(4))
    0.0654
    """
    return evaluate(
        _kind(log_target),
        log_probs,
        target,
        reduction,
        name="log_probs",
        sample_weight=sample_weight,
        batchmean=True,
    )[0]


def kl_div_value_and_grad(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: KLReduction = "mean",
    log_target: bool = False,
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    r"""Kullback-Leibler divergence and the gradient of its sum, in one pass.

    Parameters
    ----------
    log_probs : array_like, any shape
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `log_probs`
        Probabilities, or their logarithms with `log_target`; any real type.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, "batchmean" by the first dimension.  The
        divergence of distributions is what "batchmean" gives.
    log_target : bool, default False
        Whether `target` holds log-probabilities.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `log_probs`, which is
        itself allowed.

    Returns
    -------
    loss : scalar or ndarray
        As `kl_div` returns it.
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of `log_probs`;
        `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    The gradient is :math:`-t`, with `log_target` :math:`-e^t`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> log_probs = np.log([[0.5, 0.5]])
    >>> loss, grad = fastloss.kl_div_value_and_grad(log_probs, [[0.25, 0.75]], reduction="sum")
    >>> grad
    array([[-0.25, -0.75]])
    """
    return evaluate(
        _kind(log_target),
        log_probs,
        target,
        reduction,
        name="log_probs",
        sample_weight=sample_weight,
        batchmean=True,
        gradient=True,
        out=out,
    )[:2]


def kl_div_backward(
    grad_output: ArrayLike,
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: KLReduction = "mean",
    log_target: bool = False,
    out: Array | None = None,
) -> Array:
    r"""Gradient of `kl_div` with respect to `log_probs`, for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number unless the reduction is
        "none".
    log_probs : array_like, any shape
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `log_probs`
        Probabilities, or their logarithms with `log_target`; any real type.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, "batchmean" by the first dimension.  The
        divergence of distributions is what "batchmean" gives.
    log_target : bool, default False
        Whether `target` holds log-probabilities.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `log_probs`, which is
        itself allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of `log_probs`; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.kl_div_backward(2.0, np.log([[0.5, 0.5]]), [[0.25, 0.75]], reduction="sum")
    array([[-0.5, -1.5]])
    """
    return evaluate(
        _kind(log_target),
        log_probs,
        target,
        reduction,
        name="log_probs",
        sample_weight=sample_weight,
        batchmean=True,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def kl_div_totals(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    log_target: bool = False,
) -> Totals:
    """Return the sum of the losses and their number: what the mean is the quotient of."""
    return evaluate(
        _kind(log_target), log_probs, target, "sum", name="log_probs", sample_weight=sample_weight
    )[2]
