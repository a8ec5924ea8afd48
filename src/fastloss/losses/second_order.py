"""Gradients with second derivatives, for gradient boosting and Newton steps.

`cross_entropy_grad_and_hess`, `softmax_focal_loss_grad_and_hess`,
`binary_cross_entropy_with_logits_grad_and_hess` and `sigmoid_focal_loss_grad_and_hess` return the
derivatives of each loss, without a reduction, from one pass.
"""

from __future__ import annotations

from typing import Never

from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss._names import signed, unknown
from fastloss.losses._specification import (
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    CROSS_ENTROPY,
    SIGMOID_FOCAL_LOSS,
    SOFTMAX_FOCAL_LOSS,
)

__all__ = [
    "binary_cross_entropy_with_logits_grad_and_hess",
    "cross_entropy_grad_and_hess",
    "sigmoid_focal_loss_grad_and_hess",
    "softmax_focal_loss_grad_and_hess",
]


def __dir__() -> list[str]:
    return __all__


@signed
def cross_entropy_grad_and_hess(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: tuple[Array, Array] | None = None, **others: Never,
) -> tuple[Array, Array]:  # fmt: skip
    r"""Gradient of the cross-entropy of each sample, and the diagonal of its Hessian.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, weight, sample_weight, ignore_index : see `cross_entropy`
    label_smoothing, temperature, softcap, z_loss, axis : see `cross_entropy`
    out : pair of ndarray, optional
        Arrays for both results, with the shape, dtype and memory layout of the logits.

    Returns
    -------
    grad : ndarray
        Derivative of each sample's loss, including class weight and sample weight, with respect to
        its logits.  It has the shape and dtype of the logits.
    hess : ndarray
        Second derivative with respect to the same logit.

    See Also
    --------
    cross_entropy : the loss alone; describes the arguments.
    cross_entropy_value_and_grad : the loss and its gradient in one pass.

    Notes
    -----
    Let :math:`p` be the softmax, :math:`a_c` the target of a class times its weight, and :math:`A`
    the sum of the :math:`a_c`.  The gradient is :math:`A p_c - a_c` and the second derivative is
    :math:`A\, p_c (1 - p_c)`, computed as a product of positive numbers.  For class indices the
    gradient is within 4 ulp of the exact value and the second derivative within 6.

    Logits of shape (N, C) in column-major order, as in gradient boosting libraries, are read in
    place, and the results have the same order.

    Examples
    --------
    >>> import fastloss
    >>> grad, hess = fastloss.cross_entropy_grad_and_hess([[1.0, 2.0]], [0])
    >>> grad.round(4), hess.round(4)
    (array([[-0.7311,  0.7311]]), array([[0.1966, 0.1966]]))
    """
    if others:
        unknown(cross_entropy_grad_and_hess, others)
    return CROSS_ENTROPY.grad_and_hess(
        logits, target, out, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        axis=axis,
    )  # fmt: skip


@signed
def softmax_focal_loss_grad_and_hess(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, axis: int | None = None,
    out: tuple[Array, Array] | None = None, **others: Never,
) -> tuple[Array, Array]:  # fmt: skip
    r"""Gradient of the focal loss of each sample, and the diagonal of its Hessian.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, alpha, gamma : see `softmax_focal_loss`
    sample_weight, ignore_index, axis : see `softmax_focal_loss`
    out : pair of ndarray, optional
        Arrays for both results, with the shape, dtype and memory layout of the logits.

    Returns
    -------
    grad : ndarray
        Derivative of each sample's loss, including `alpha` and sample weight, with respect to its
        logits.  It has the shape and dtype of the logits.
    hess : ndarray
        Second derivative with respect to the same logit.  It is exact, and so it is negative where
        the loss is concave.

    See Also
    --------
    softmax_focal_loss : the loss alone; describes the arguments.
    softmax_focal_loss_value_and_grad : the loss and its gradient in one pass.

    Notes
    -----
    The loss :math:`F = u^\gamma L` is a function of the cross-entropy :math:`L` alone, since
    :math:`p_t = e^{-L}` and :math:`u = 1 - p_t`.  Let :math:`p` be the softmax,
    :math:`d_t = p_t - 1` and, for all other classes, :math:`d_c = p_c`.  The gradient is
    :math:`F' d_c` and the second derivative is :math:`F' p_c (1 - p_c) + F'' d_c^2`, where

    .. math::

        F' &= u^\gamma + \gamma u^{\gamma-1} p_t L \\
        F'' &= \gamma u^{\gamma-2} p_t \left(u (2 - L) + (\gamma - 1)\, p_t L\right)

    Examples
    --------
    >>> import fastloss
    >>> grad, hess = fastloss.softmax_focal_loss_grad_and_hess([[1.0, 2.0]], [0])
    >>> grad.round(4), hess.round(4)
    (array([[-0.7682,  0.7682]]), array([[0.4525, 0.4525]]))
    """
    if others:
        unknown(softmax_focal_loss_grad_and_hess, others)
    return SOFTMAX_FOCAL_LOSS.grad_and_hess(
        logits, target, out, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, axis=axis,
    )  # fmt: skip


@signed
def binary_cross_entropy_with_logits_grad_and_hess(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, out: tuple[Array, Array] | None = None, **others: Never,
) -> tuple[Array, Array]:  # fmt: skip
    r"""Gradient of the binary cross-entropy of each element, and its second derivative.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, weight : see `binary_cross_entropy_with_logits`
    pos_weight, sample_weight, ignore_index : see `binary_cross_entropy_with_logits`
    out : pair of ndarray, optional
        Arrays for both results: C-contiguous, with the shape and dtype of the logits.

    Returns
    -------
    grad, hess : ndarray
        First and second derivative of each loss, including its weights, with the shape and dtype of
        the logits.

    See Also
    --------
    binary_cross_entropy_with_logits : the loss alone; describes the arguments.
    binary_cross_entropy_with_logits_value_and_grad : the loss and its gradient in one pass.

    Notes
    -----
    With :math:`p = \sigma(x)`, the second derivative is
    :math:`w\,(t\,q + 1 - t)\, p (1 - p)`, where :math:`q` is `pos_weight`.

    Examples
    --------
    >>> import fastloss
    >>> grad, hess = fastloss.binary_cross_entropy_with_logits_grad_and_hess([0.0, 2.0], [1, 0])
    >>> grad.round(4), hess.round(4)
    (array([-0.5   ,  0.8808]), array([0.25 , 0.105]))
    """
    if others:
        unknown(binary_cross_entropy_with_logits_grad_and_hess, others)
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.grad_and_hess(
        logits, target, out, weight=weight, pos_weight=pos_weight, sample_weight=sample_weight,
        ignore_index=ignore_index,
    )  # fmt: skip


@signed
def sigmoid_focal_loss_grad_and_hess(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    out: tuple[Array, Array] | None = None, **others: Never,
) -> tuple[Array, Array]:  # fmt: skip
    """Gradient of the focal loss of each element, and its second derivative.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, alpha : see `sigmoid_focal_loss`
    gamma, sample_weight, ignore_index : see `sigmoid_focal_loss`
    out : pair of ndarray, optional
        Arrays for both results: C-contiguous, with the shape and dtype of the logits.

    Returns
    -------
    grad, hess : ndarray
        First and second derivative of each loss, including its weights, with the shape and dtype of
        the logits.  The second derivative is exact, and so it is negative where the loss is
        concave.

    See Also
    --------
    sigmoid_focal_loss : the loss alone; describes the arguments.
    sigmoid_focal_loss_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> grad, hess = fastloss.sigmoid_focal_loss_grad_and_hess([0.0, 3.0], [1, 0])
    >>> (grad < 0).tolist(), (hess > 0).tolist()
    ([True, False], [True, False])
    """
    if others:
        unknown(sigmoid_focal_loss_grad_and_hess, others)
    return SIGMOID_FOCAL_LOSS.grad_and_hess(
        logits, target, out, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index,
    )  # fmt: skip
