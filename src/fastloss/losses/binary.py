"""Losses of yes and no: binary cross-entropy on probabilities and on logits, and focal loss.

Each loss has ``NAME``, ``NAME_value_and_grad`` and ``NAME_backward``; ``NAME_totals`` (not public)
returns the two sums of which a mean is made, for losses that are gathered batch by batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses._elementwise import Kind, evaluate
from fastloss.losses._reduction import Totals

Reduction = Literal["mean", "sum", "none"]

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_value_and_grad",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_value_and_grad",
]


def focal_parameters(alpha: Any, gamma: Any) -> tuple[Any, float]:
    """Check alpha and gamma."""
    gamma = _arrays.number(gamma, "gamma")
    if not 0 <= gamma < np.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {gamma}")
    if alpha is None:
        return None, gamma
    if np.ndim(alpha) == 0:
        return _arrays.fraction(alpha, "alpha"), gamma
    alpha = _arrays.as_float64(alpha, "alpha")
    outside = ~((alpha >= 0) & (alpha <= 1))
    if outside.any():
        raise ValueError(f"alpha must lie in [0, 1] or be None, got {float(alpha[outside][0])}")
    return alpha, gamma


def binary_cross_entropy(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> np.floating[Any] | Array:
    r"""Binary cross-entropy between probabilities and targets.

    Parameters
    ----------
    probs : array_like, any shape
        Probabilities in [0, 1], float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `probs`
        Targets in [0, 1], any real type or bool.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `probs`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `probs`.  float32; float64 for float64
        `probs`.  The mean over no element is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, options out of range, or a probability or target outside [0, 1]
        or NaN.

    See Also
    --------
    binary_cross_entropy_with_logits : the same on logits, without loss of digits.

    Notes
    -----
    The loss of an element is :math:`-w\,(t \log p + (1 - t) \log(1 - p))`, both logarithms clamped
    at -100, as ``torch.nn.functional.binary_cross_entropy`` has it.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.binary_cross_entropy([0.9, 0.2], [1, 0]).round(4))
    0.1643
    """
    return evaluate(
        Kind.BCE,
        probs,
        target,
        reduction,
        name="probs",
        weight=weight,
        sample_weight=sample_weight,
        in_unit=True,
    )[0]


def binary_cross_entropy_value_and_grad(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    r"""Binary cross-entropy and the gradient of its sum with respect to `probs`, in one pass.

    Parameters
    ----------
    probs : array_like, any shape
        Probabilities in [0, 1], float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `probs`
        Targets in [0, 1], any real type or bool.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `probs`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `probs`, which is
        itself allowed.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_cross_entropy` returns it.
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of `probs`;
        `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, options out of range, or a probability or target outside [0, 1]
        or NaN.

    Notes
    -----
    The gradient is :math:`w\,(p - t) / \max(p (1 - p), 10^{-12})`.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.binary_cross_entropy_value_and_grad([0.9, 0.2], [1, 0])
    >>> grad.round(4)
    array([-0.5556,  0.625 ])
    """
    return evaluate(
        Kind.BCE,
        probs,
        target,
        reduction,
        name="probs",
        weight=weight,
        sample_weight=sample_weight,
        in_unit=True,
        gradient=True,
        out=out,
    )[:2]


def binary_cross_entropy_backward(
    grad_output: ArrayLike,
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> Array:
    r"""Gradient of `binary_cross_entropy` with respect to `probs`, for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number unless the reduction is
        "none".
    probs : array_like, any shape
        Probabilities in [0, 1], float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `probs`
        Targets in [0, 1], any real type or bool.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `probs`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `probs`, which is
        itself allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of `probs`; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, options out of range, or a probability or target outside [0, 1]
        or NaN.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.binary_cross_entropy_backward(2.0, [0.9, 0.2], [1, 0], reduction="sum").round(4)
    array([-2.2222,  2.5   ])
    """
    return evaluate(
        Kind.BCE,
        probs,
        target,
        reduction,
        name="probs",
        weight=weight,
        sample_weight=sample_weight,
        in_unit=True,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def binary_cross_entropy_totals(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Totals:
    """Return the sum of the losses and their number: what the mean is the quotient of."""
    return evaluate(
        Kind.BCE,
        probs,
        target,
        "sum",
        name="probs",
        weight=weight,
        sample_weight=sample_weight,
        in_unit=True,
    )[2]


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> np.floating[Any] | Array:
    r"""Binary cross-entropy between logits and targets.

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually in [0, 1], which is not checked.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `logits`.  float32; float64 for float64
        `logits`.  The mean over no element is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    With :math:`s(x) = \log(1 + e^x)` the loss of an element is
    :math:`w\,(t\,q\,s(-x) + (1 - t)\,s(x))`, where :math:`q` is `pos_weight`.  Targets of 0 and 1
    leave one term out, so that the loss is within 4 ulp of the exact value however small it is, and
    logits of :math:`\pm\infty` give the limit.

    Examples
    --------
    >>> import fastloss
    >>> logits = [[1, 2], [2, 2], [3, 4], [4, 5]]
    >>> target = [[1, 0], [1, 0], [0, 1], [0, 1]]
    >>> print(fastloss.binary_cross_entropy_with_logits(logits, target).round(4))
    1.4732
    >>> print(fastloss.binary_cross_entropy_with_logits(logits, target, pos_weight=3).round(4))
    1.5895
    """
    return evaluate(
        Kind.BCE_WITH_LOGITS,
        logits,
        target,
        reduction,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )[0]


def binary_cross_entropy_with_logits_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    r"""Binary cross-entropy on logits and the gradient of its sum, in one pass.

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually in [0, 1], which is not checked.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `logits`, which is
        itself allowed.

    Returns
    -------
    loss : scalar or ndarray
        As `binary_cross_entropy_with_logits` returns it.
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of `logits`;
        `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    The gradient is :math:`w\,((1 - t)\,\sigma(x) - t\,q\,\sigma(-x))`.  Where a target is neither 0
    nor 1 the two terms may be close to each other; they are then computed in float64.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.binary_cross_entropy_with_logits_value_and_grad([2.0, -1.0], [1, 1])
    >>> grad.round(4)
    array([-0.0596, -0.3655])
    """
    return evaluate(
        Kind.BCE_WITH_LOGITS,
        logits,
        target,
        reduction,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        gradient=True,
        out=out,
    )[:2]


def binary_cross_entropy_with_logits_backward(
    grad_output: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> Array:
    r"""Gradient of `binary_cross_entropy_with_logits` for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number unless the reduction is
        "none".
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually in [0, 1], which is not checked.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `logits`, which is
        itself allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of `logits`; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.binary_cross_entropy_with_logits_backward(
    ...     [1, 10], [2.0, -1.0], [1, 1], reduction="none"
    ... ).round(4)
    array([-0.1192, -7.3106])
    """
    return evaluate(
        Kind.BCE_WITH_LOGITS,
        logits,
        target,
        reduction,
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def binary_cross_entropy_with_logits_totals(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> Totals:
    """Return the sum of the losses and their number: what the mean is the quotient of."""
    return evaluate(
        Kind.BCE_WITH_LOGITS,
        logits,
        target,
        "sum",
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )[2]


def sigmoid_focal_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> np.floating[Any] | Array:
    r"""Focal loss of sigmoid probabilities.

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually 0 and 1.
    alpha : float or None, default 0.25
        Weight, in [0, 1], of positive targets; negative ones get ``1 - alpha``.  None or a negative
        number leaves both at 1.
    gamma : float, default 2.0
        How strongly well-classified elements are played down; at least 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `logits`.  float32; float64 for float64
        `logits`.  The mean over no element is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    With :math:`p = \sigma(x)` and :math:`p_t = p t + (1 - p)(1 - t)` the loss of an element is
    :math:`\alpha_t (1 - p_t)^\gamma` times its binary cross-entropy, with
    :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`.  Computed in float64.

    Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.sigmoid_focal_loss([2.0, -1.0], [1, 1]).round(4))
    0.088
    """
    alpha, gamma = focal_parameters(alpha, gamma)
    return evaluate(
        Kind.FOCAL,
        logits,
        target,
        reduction,
        alpha=alpha,
        gamma=gamma,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )[0]


def sigmoid_focal_loss_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    r"""Focal loss and the gradient of its sum with respect to `logits`, in one pass.

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually 0 and 1.
    alpha : float or None, default 0.25
        Weight, in [0, 1], of positive targets; negative ones get ``1 - alpha``.  None or a negative
        number leaves both at 1.
    gamma : float, default 2.0
        How strongly well-classified elements are played down; at least 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `logits`, which is
        itself allowed.

    Returns
    -------
    loss : scalar or ndarray
        As `sigmoid_focal_loss` returns it.
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of `logits`;
        `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Notes
    -----
    The gradient includes that of the modulating factor.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.sigmoid_focal_loss_value_and_grad([2.0, -1.0], [1, 1])
    >>> grad.round(4)
    array([-0.0006, -0.096 ])
    """
    alpha, gamma = focal_parameters(alpha, gamma)
    return evaluate(
        Kind.FOCAL,
        logits,
        target,
        reduction,
        alpha=alpha,
        gamma=gamma,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        gradient=True,
        out=out,
    )[:2]


def sigmoid_focal_loss_backward(
    grad_output: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    out: Array | None = None,
) -> Array:
    r"""Gradient of `sigmoid_focal_loss` with respect to `logits`, for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number unless the reduction is
        "none".
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `logits`
        Targets, any real type or bool; usually 0 and 1.
    alpha : float or None, default 0.25
        Weight, in [0, 1], of positive targets; negative ones get ``1 - alpha``.  None or a negative
        number leaves both at 1.
    gamma : float, default 2.0
        How strongly well-classified elements are played down; at least 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `logits`, which is
        itself allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of `logits`; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.sigmoid_focal_loss_backward(2.0, [2.0, -1.0], [1, 1], reduction="sum").round(4)
    array([-0.0024, -0.3841])
    """
    alpha, gamma = focal_parameters(alpha, gamma)
    return evaluate(
        Kind.FOCAL,
        logits,
        target,
        reduction,
        alpha=alpha,
        gamma=gamma,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def sigmoid_focal_loss_totals(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> Totals:
    """Return the sum of the losses and their number: what the mean is the quotient of."""
    alpha, gamma = focal_parameters(alpha, gamma)
    return evaluate(
        Kind.FOCAL,
        logits,
        target,
        "sum",
        alpha=alpha,
        gamma=gamma,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )[2]
