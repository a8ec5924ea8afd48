"""Binary losses: binary cross-entropy of probabilities and of logits, and focal loss.

The types are in the stub beside this file.
"""

from fastloss._names import signed, unknown
from fastloss.losses._specification import (
    BINARY_CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY_WITH_LOGITS,
    SIGMOID_FOCAL_LOSS,
)

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


def __dir__() -> list[str]:
    return __all__


@signed
def binary_cross_entropy(
    probs, target, *, weight=None, sample_weight=None, reduction="mean", **others
):
    r"""Binary cross-entropy between probabilities and targets.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    probs : array_like, any shape
        Probabilities in [0, 1], float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like, shape of `probs`
        Targets in [0, 1], of any real type or bool.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `probs`.
    sample_weight : array_like, optional
        Multiplies each loss; the mean divides by the sum of these weights.  Broadcasts to `probs`.

        .. versionadded:: 0.2.0
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, or by the sum of the sample weights.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `probs`.  float64 for
        float64 `probs`, float32 for all others.  The mean of no elements is NaN.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match, an option is out of range, or a probability or target is NaN or
        outside [0, 1].

    See Also
    --------
    binary_cross_entropy_value_and_grad : the loss and its gradient in one pass.
    binary_cross_entropy_backward : the gradient for an upstream gradient.
    BCELoss : the same as a class that holds the options.
    binary_cross_entropy_with_logits : the same for logits, without loss of digits.

    Notes
    -----
    The loss of an element is :math:`-w\,(t \log p + (1 - t) \log(1 - p))`.  Both logarithms are
    clamped to at least -100, as in ``torch.nn.functional.binary_cross_entropy``.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.binary_cross_entropy([0.9, 0.2], [1, 0]).round(4))
    0.1643
    """
    if others:
        unknown(binary_cross_entropy, others)
    return BINARY_CROSS_ENTROPY.evaluate(
        probs, target, weight=weight, sample_weight=sample_weight, reduction=reduction
    )[0]


@signed
def binary_cross_entropy_value_and_grad(
    probs, target, *, weight=None, sample_weight=None, reduction="mean", out=None, **others
):
    r"""Binary cross-entropy and the gradient of its sum with respect to `probs`, in one pass.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    probs, target, weight, sample_weight, reduction : see `binary_cross_entropy`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    binary_cross_entropy : the loss alone; describes the arguments.

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
    if others:
        unknown(binary_cross_entropy_value_and_grad, others)
    return BINARY_CROSS_ENTROPY.evaluate(
        probs, target, weight=weight, sample_weight=sample_weight, reduction=reduction,
        gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def binary_cross_entropy_backward(
    grad_output,
    probs,
    target,
    *,
    weight=None,
    sample_weight=None,
    reduction="mean",
    out=None,
    **others,
):
    r"""Gradient of `binary_cross_entropy` with respect to `probs`, for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    probs, target, weight, sample_weight, reduction : see `binary_cross_entropy`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    binary_cross_entropy : the loss alone; describes the arguments.
    binary_cross_entropy_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.binary_cross_entropy_backward(2.0, [0.9, 0.2], [1, 0], reduction="sum").round(4)
    array([-2.2222,  2.5   ])
    """
    if others:
        unknown(binary_cross_entropy_backward, others)
    return BINARY_CROSS_ENTROPY.evaluate(
        probs, target, weight=weight, sample_weight=sample_weight, reduction=reduction,
        value=False, gradient=True, upstream=grad_output, out=out,
    )[1]  # fmt: skip


@signed
def binary_cross_entropy_with_logits(
    logits, target, *, weight=None, pos_weight=None, sample_weight=None, ignore_index=None,
    reduction="mean", **others,
):  # fmt: skip
    r"""Binary cross-entropy between logits and targets.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like, shape of `logits`
        Targets of any real type or bool, usually in [0, 1].  Floating-point targets are not
        checked.
    weight : array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    sample_weight : array_like, optional
        Multiplies each loss; the mean divides by the sum of these weights.  Broadcasts to `logits`.

        .. versionadded:: 0.2.0
    ignore_index : int, optional
        Elements with this target have loss 0 and gradient 0, whatever their logits are, and do not
        count in the mean.

        .. versionadded:: 0.2.0
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements that are not ignored, or by the sum of their
        sample weights.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `logits`.  float64 for
        float64 logits, float32 for all others.  The mean of no elements is NaN.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match, an option is out of range, or an integer target is not 0, 1 or
        `ignore_index`.

    See Also
    --------
    binary_cross_entropy_with_logits_value_and_grad : the loss and its gradient in one pass.
    binary_cross_entropy_with_logits_backward : the gradient for an upstream gradient.
    binary_cross_entropy_with_logits_grad_and_hess : first and second derivatives of each element.
    BCEWithLogitsLoss : the same as a class that holds the options.
    binary_cross_entropy : the same for probabilities.
    sigmoid_focal_loss : with less weight for easy elements.

    Notes
    -----
    With :math:`s(x) = \log(1 + e^x)` the loss of an element is
    :math:`w\,(t\,q\,s(-x) + (1 - t)\,s(x))`, where :math:`q` is `pos_weight`.  Targets of 0 and 1
    leave only one term, so the loss is within 4 ulp of the exact value however small it is, and
    infinite logits give the limit.

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
    if others:
        unknown(binary_cross_entropy_with_logits, others)
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.evaluate(
        logits, target, weight=weight, pos_weight=pos_weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction,
    )[0]  # fmt: skip


@signed
def binary_cross_entropy_with_logits_value_and_grad(
    logits, target, *, weight=None, pos_weight=None, sample_weight=None, ignore_index=None,
    reduction="mean", out=None, **others,
):  # fmt: skip
    r"""Binary cross-entropy of logits and the gradient of its sum, in one pass.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits, target, weight, pos_weight : see `binary_cross_entropy_with_logits`
    sample_weight, ignore_index, reduction : see `binary_cross_entropy_with_logits`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    binary_cross_entropy_with_logits : the loss alone; describes the arguments.
    binary_cross_entropy_with_logits_grad_and_hess : first and second derivatives of each element.

    Notes
    -----
    The gradient is :math:`w\,((1 - t)\,\sigma(x) - t\,q\,\sigma(-x))`.  Where a target is neither
    0 nor 1, the two terms may almost cancel: the gradient is then exact to 4 ulp of the larger one.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.binary_cross_entropy_with_logits_value_and_grad([2.0, -1.0], [1, 1])
    >>> grad.round(4)
    array([-0.0596, -0.3655])
    """
    if others:
        unknown(binary_cross_entropy_with_logits_value_and_grad, others)
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.evaluate(
        logits, target, weight=weight, pos_weight=pos_weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def binary_cross_entropy_with_logits_backward(
    grad_output, logits, target, *, weight=None, pos_weight=None, sample_weight=None,
    ignore_index=None, reduction="mean", out=None, **others,
):  # fmt: skip
    r"""Gradient of `binary_cross_entropy_with_logits` for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    logits, target, weight, pos_weight : see `binary_cross_entropy_with_logits`
    sample_weight, ignore_index, reduction : see `binary_cross_entropy_with_logits`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    binary_cross_entropy_with_logits : the loss alone; describes the arguments.
    binary_cross_entropy_with_logits_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.binary_cross_entropy_with_logits_backward(
    ...     [1, 10], [2.0, -1.0], [1, 1], reduction="none"
    ... ).round(4)
    array([-0.1192, -7.3106])
    """
    if others:
        unknown(binary_cross_entropy_with_logits_backward, others)
    return BINARY_CROSS_ENTROPY_WITH_LOGITS.evaluate(
        logits, target, weight=weight, pos_weight=pos_weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, value=False, gradient=True,
        upstream=grad_output, out=out,
    )[1]  # fmt: skip


@signed
def sigmoid_focal_loss(
    logits, target, *, alpha=0.25, gamma=2.0, sample_weight=None, ignore_index=None,
    reduction="mean", **others,
):  # fmt: skip
    r"""Focal loss of yes-or-no questions: BCE with less weight for easy elements.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : array_like, any shape
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like, shape of `logits`
        Targets of any real type or bool, usually 0 and 1.
    alpha : float, array_like or None, default 0.25
        Weight, in [0, 1], of positive targets; negative targets have the weight ``1 - alpha``.  An
        array broadcasts to `logits`.  With None, or -1 as in torchvision, both weights are 1.
    gamma : float, default 2.0
        How strongly well-classified elements are down-weighted; must not be negative.
    sample_weight, ignore_index, reduction : see `binary_cross_entropy_with_logits`

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `logits`.  float64 for
        float64 logits, float32 for all others.  The mean of no elements is NaN.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match, an option is out of range, or an integer target is not 0, 1 or
        `ignore_index`.

    See Also
    --------
    sigmoid_focal_loss_value_and_grad : the loss and its gradient in one pass.
    sigmoid_focal_loss_backward : the gradient for an upstream gradient.
    sigmoid_focal_loss_grad_and_hess : first and second derivatives of each element.
    SigmoidFocalLoss : the same as a class that holds the options.
    softmax_focal_loss : for one class out of several.

    Notes
    -----
    With :math:`p = \sigma(x)` and :math:`p_t = p t + (1 - p)(1 - t)` the loss of an element is
    :math:`\alpha_t (1 - p_t)^\gamma` times its binary cross-entropy, with
    :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`.

    References
    ----------
    T.-Y. Lin et al., Focal loss for dense object detection, ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.sigmoid_focal_loss([2.0, -1.0], [1, 1]).round(4))
    0.088
    """
    if others:
        unknown(sigmoid_focal_loss, others)
    return SIGMOID_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction,
    )[0]  # fmt: skip


@signed
def sigmoid_focal_loss_value_and_grad(
    logits, target, *, alpha=0.25, gamma=2.0, sample_weight=None, ignore_index=None,
    reduction="mean", out=None, **others,
):  # fmt: skip
    r"""Focal loss and the gradient of its sum with respect to `logits`, in one pass.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits, target, alpha, gamma, sample_weight : see `sigmoid_focal_loss`
    ignore_index, reduction : see `sigmoid_focal_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    sigmoid_focal_loss : the loss alone; describes the arguments.
    sigmoid_focal_loss_grad_and_hess : first and second derivatives of each element.

    Notes
    -----
    The gradient includes the derivative of the modulating factor.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.sigmoid_focal_loss_value_and_grad([2.0, -1.0], [1, 1])
    >>> grad.round(4)
    array([-0.0006, -0.096 ])
    """
    if others:
        unknown(sigmoid_focal_loss_value_and_grad, others)
    return SIGMOID_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def sigmoid_focal_loss_backward(
    grad_output, logits, target, *, alpha=0.25, gamma=2.0, sample_weight=None, ignore_index=None,
    reduction="mean", out=None, **others,
):  # fmt: skip
    r"""Gradient of `sigmoid_focal_loss` with respect to `logits`, for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    logits, target, alpha, gamma, sample_weight : see `sigmoid_focal_loss`
    ignore_index, reduction : see `sigmoid_focal_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    sigmoid_focal_loss : the loss alone; describes the arguments.
    sigmoid_focal_loss_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.sigmoid_focal_loss_backward(2.0, [2.0, -1.0], [1, 1], reduction="sum").round(4)
    array([-0.0024, -0.3841])
    """
    if others:
        unknown(sigmoid_focal_loss_backward, others)
    return SIGMOID_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, value=False, gradient=True,
        upstream=grad_output, out=out,
    )[1]  # fmt: skip
