"""Losses over classes: `cross_entropy`, `nll_loss` and `softmax_focal_loss`, with their gradients.

The types are in the stub beside this file.
"""

from fastloss._names import signed, unknown
from fastloss.losses._specification import CROSS_ENTROPY, NLL_LOSS, SOFTMAX_FOCAL_LOSS

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_value_and_grad",
    "nll_loss",
    "nll_loss_backward",
    "nll_loss_value_and_grad",
    "softmax_focal_loss",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_value_and_grad",
]


def __dir__() -> list[str]:
    return __all__


@signed
def cross_entropy(
    logits, target, *, weight=None, sample_weight=None, ignore_index=-100, reduction="mean",
    label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, axis=None, **others,
):  # fmt: skip
    r"""Cross-entropy between logits and class indices or class probabilities.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like
        Class indices of any integer type, with the shape of the logits without the class axis;
        or class probabilities of a floating type, with the shape of the logits.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape of the logits without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their logits are.
        May be outside [0, C).  With class probabilities it has no effect and must be negative.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored; with probabilities by the sum of the sample weights.
    label_smoothing : float, default 0.0
        Fraction, in [0, 1], of the target that is spread evenly over all classes.
    temperature : float, default 1.0
        Divides the logits; must be positive.

        .. versionadded:: 0.2.0
    softcap : float, optional
        Limits the logits to the range from -softcap to softcap, by
        ``softcap * tanh(logits / softcap)``, before the temperature divides them; must be
        positive.

        .. versionadded:: 0.2.0
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(z)**2``, times the class weight and the sample weight, to each
        sample's loss; must not be negative.

        .. versionadded:: 0.2.0
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of the logits without the class
        axis.  float64 for float64 logits, float32 for all others.  The mean of no samples is NaN.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    cross_entropy_backward : the gradient for an upstream gradient.
    cross_entropy_grad_and_hess : first and second derivatives of each sample.
    CrossEntropyLoss : the same as a class that holds the options.
    cross_entropy_value_and_grad : the loss and its gradient in one pass.
    linear_cross_entropy : the same for ``input @ weight.T``, without storing all logits.
    nll_loss : the same for log-probabilities.
    binary_cross_entropy_with_logits : for yes-or-no questions.

    Notes
    -----
    For class indices, with :math:`\ell_c = z_c - \log \sum_k e^{z_k}`, the loss of a sample is
    :math:`-w_t \ell_t`.  Label smoothing :math:`\varepsilon` makes it
    :math:`-(1-\varepsilon) w_t \ell_t - \frac{\varepsilon}{C} \sum_c w_c \ell_c`.
    For probabilities :math:`p` it is :math:`-\sum_c w_c q_c \ell_c` with
    :math:`q = (1-\varepsilon) p + \varepsilon / C`.  Here :math:`z` denotes the logits after
    `softcap` and `temperature` have been applied.

    The exponential of the target's logit is left out of the sum, so the loss of a confident sample
    keeps all its digits: it is ``log1p(rest)``, not the logarithm of a number close to 1.  Losses
    are within 4 ulp of the exact value.  A logit of -inf masks its class.  A sample with a logit of
    NaN or +inf has the loss NaN; other samples are not affected.

    Weights and reductions have the semantics of ``torch.nn.functional.cross_entropy``.

    References
    ----------
    C. Szegedy et al., Rethinking the Inception architecture for computer vision, CVPR 2016,
    arXiv:1512.00567 (label smoothing).

    A. Chowdhery et al., PaLM: Scaling language modeling with Pathways, 2022, arXiv:2204.02311
    (z-loss).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3], [1, 3]], dtype=np.float32)
    >>> fastloss.cross_entropy(logits, [0, 1, 1], reduction="none").round(4)
    array([1.3133, 0.1269, 0.1269], dtype=float32)
    >>> print(fastloss.cross_entropy(logits, [0, 1, 1], weight=[1, 2]).round(4))
    0.3642
    >>> print(f"{fastloss.cross_entropy(np.float32([20, 0, -1]), 0):.5e}")
    2.81941e-09
    """
    if others:
        unknown(cross_entropy, others)
    return CROSS_ENTROPY.evaluate(
        logits, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, temperature=temperature,
        softcap=softcap, z_loss=z_loss, axis=axis,
    )[0]  # fmt: skip


@signed
def cross_entropy_value_and_grad(
    logits, target, *, weight=None, sample_weight=None, ignore_index=-100, reduction="mean",
    label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, axis=None, out=None, **others,
):  # fmt: skip
    """Cross-entropy and the gradient of its sum with respect to the logits, in one pass.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits, target, weight, sample_weight, ignore_index, reduction : see `cross_entropy`
    label_smoothing, temperature, softcap, z_loss, axis : see `cross_entropy`
    out : ndarray, optional
        Array for the gradient: C-contiguous, with the shape and dtype of the logits.  It may be the
        array of logits itself.  A large new array can take as much time as the computation.

    Returns
    -------
    loss : see `cross_entropy`
    grad : ndarray
        Gradient of the loss, or of the sum of the losses with ``reduction="none"``.  It has the
        shape and dtype of the logits, and is `out` if that is given.

    See Also
    --------
    cross_entropy : the loss alone; describes the arguments.
    cross_entropy_grad_and_hess : first and second derivatives of each sample.

    Notes
    -----
    For class indices the gradient is :math:`w_t (p_c - [c = t])`, where :math:`p` is the softmax;
    with ``reduction="mean"`` it is divided by the denominator of the mean.  At the target it is
    computed as ``-rest / sum``, not as ``p - 1``, and so keeps all its digits.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3]], dtype=np.float32)
    >>> loss, grad = fastloss.cross_entropy_value_and_grad(logits, [0, 1])
    >>> print(loss.round(4))
    0.7201
    >>> grad.round(4)
    array([[-0.3655,  0.3655],
           [ 0.0596, -0.0596]], dtype=float32)
    """
    if others:
        unknown(cross_entropy_value_and_grad, others)
    return CROSS_ENTROPY.evaluate(
        logits, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, temperature=temperature,
        softcap=softcap, z_loss=z_loss, axis=axis, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def cross_entropy_backward(
    grad_output, logits, target, *, weight=None, sample_weight=None, ignore_index=-100,
    reduction="mean", label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, axis=None,
    out=None, **others,
):  # fmt: skip
    """Gradient of `cross_entropy` with respect to the logits, for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, with the shape of the loss: a number for "mean" and
        "sum".
    logits, target, weight, sample_weight, ignore_index, reduction : see `cross_entropy`
    label_smoothing, temperature, softcap, z_loss, axis : see `cross_entropy`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : ndarray
        Gradient with the shape and dtype of the logits; `out` if that is given.

    See Also
    --------
    cross_entropy : the loss alone; describes the arguments.
    cross_entropy_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3]], dtype=np.float32)
    >>> fastloss.cross_entropy_backward([1, 2], logits, [0, 1], reduction="none").round(4)
    array([[-0.7311,  0.7311],
           [ 0.2384, -0.2384]], dtype=float32)
    """
    if others:
        unknown(cross_entropy_backward, others)
    return CROSS_ENTROPY.evaluate(
        logits, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, temperature=temperature,
        softcap=softcap, z_loss=z_loss, axis=axis, value=False, gradient=True,
        upstream=grad_output, out=out,
    )[1]  # fmt: skip


@signed
def nll_loss(
    log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100, reduction="mean",
    axis=None, **others,
):  # fmt: skip
    """Negative log-likelihood of class indices under log-probabilities.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    log_probs : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like
        Class indices of any integer type, with the shape of `log_probs` without the class axis.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape of `log_probs` without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their log-probabilities
        are.  May be outside [0, C).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D input.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `log_probs` without the
        class axis.  float64 for float64 log-probabilities, float32 for all others.  The mean of no
        samples is NaN.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    nll_loss_value_and_grad : the loss and its gradient in one pass.
    nll_loss_backward : the gradient for an upstream gradient.
    NLLLoss : the same as a class that holds the options.
    cross_entropy : the same for logits, in one pass and without loss of digits.

    Notes
    -----
    The loss of a sample is :math:`-w_t x_t`.  This is `cross_entropy` for a model that already
    returns log-probabilities.  The function does not check that they are normalised.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.nll_loss([[1, 2], [1, 3], [1, 3]], [0, 1, 1], reduction="sum"))
    -7.0
    """
    if others:
        unknown(nll_loss, others)
    return NLL_LOSS.evaluate(
        log_probs, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, axis=axis,
    )[0]  # fmt: skip


@signed
def nll_loss_value_and_grad(
    log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100, reduction="mean",
    axis=None, out=None, **others,
):  # fmt: skip
    """Negative log-likelihood and the gradient of its sum, with respect to the log-probabilities.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    log_probs, target, weight, sample_weight, ignore_index, reduction, axis : see `nll_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss : see `nll_loss`
    grad : ndarray
        :math:`-w_t` at the target and 0 elsewhere; with ``reduction="mean"``, divided by the
        denominator of the mean.

    See Also
    --------
    nll_loss : the loss alone; describes the arguments.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.nll_loss_value_and_grad([[-0.5, -0.9], [-0.1, -2.4]], [0, 1])
    >>> print(loss)
    1.45
    >>> grad
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """
    if others:
        unknown(nll_loss_value_and_grad, others)
    return NLL_LOSS.evaluate(
        log_probs, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, axis=axis, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def nll_loss_backward(
    grad_output, log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100,
    reduction="mean", axis=None, out=None, **others,
):  # fmt: skip
    """Gradient of `nll_loss` with respect to the log-probabilities, for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    log_probs, target, weight, sample_weight, ignore_index, reduction, axis : see `nll_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    nll_loss : the loss alone; describes the arguments.
    nll_loss_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.nll_loss_backward(2.0, [[-0.5, -0.9]], [1], reduction="sum")
    array([[ 0., -2.]])
    """
    if others:
        unknown(nll_loss_backward, others)
    return NLL_LOSS.evaluate(
        log_probs, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, axis=axis, value=False, gradient=True, upstream=grad_output, out=out,
    )[1]  # fmt: skip


@signed
def softmax_focal_loss(
    logits, target, *, alpha=None, gamma=2.0, sample_weight=None, ignore_index=-100,
    reduction="mean", axis=None, **others,
):  # fmt: skip
    r"""Focal loss over classes: cross-entropy with less weight for easy samples.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like
        Class indices of any integer type, with the shape of the logits without the class axis.
    alpha : array_like, shape (C,), optional
        Weight of each class.
    gamma : float, default 2.0
        How strongly well-classified samples are down-weighted; must not be negative.
    sample_weight, ignore_index : see `cross_entropy`
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``alpha[target] * sample_weight`` over the samples that are
        not ignored; without weights, by the number of these samples.
    axis : see `cross_entropy`

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of the logits without the class
        axis.  float64 for float64 logits, float32 for all others.  The mean of no samples is NaN.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    softmax_focal_loss_value_and_grad : the loss and its gradient in one pass.
    softmax_focal_loss_backward : the gradient for an upstream gradient.
    softmax_focal_loss_grad_and_hess : first and second derivatives of each sample.
    SoftmaxFocalLoss : the same as a class that holds the options.
    cross_entropy : the same as ``gamma=0``, with more options.
    sigmoid_focal_loss : for yes-or-no questions.

    Notes
    -----
    With the softmax :math:`p`, the loss of a sample is
    :math:`\alpha_t (1 - p_t)^\gamma (-\log p_t)`.

    References
    ----------
    T.-Y. Lin et al., Focal loss for dense object detection, ICCV 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import fastloss
    >>> logits = [[1.0, 2.0], [1.0, 3.0]]
    >>> fastloss.softmax_focal_loss(logits, [0, 1], reduction="none").round(4)
    array([0.7019, 0.0018])
    """
    if others:
        unknown(softmax_focal_loss, others)
    return SOFTMAX_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, axis=axis,
    )[0]  # fmt: skip


@signed
def softmax_focal_loss_value_and_grad(
    logits, target, *, alpha=None, gamma=2.0, sample_weight=None, ignore_index=-100,
    reduction="mean", axis=None, out=None, **others,
):  # fmt: skip
    r"""Focal loss over classes and the gradient of its sum with respect to the logits, in one pass.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, alpha, gamma, sample_weight, ignore_index : see `softmax_focal_loss`
    reduction, axis : see `softmax_focal_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    softmax_focal_loss : the loss alone; describes the arguments.
    softmax_focal_loss_grad_and_hess : first and second derivatives of each sample.

    Notes
    -----
    The gradient includes the derivative of the modulating factor:
    :math:`\alpha_t ((1 - p_t)^\gamma - \gamma (1 - p_t)^{\gamma - 1} p_t \log p_t)
    (p_c - [c = t])`.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.softmax_focal_loss_value_and_grad([[1.0, 2.0]], [0])
    >>> grad.round(4)
    array([[-0.7682,  0.7682]])
    """
    if others:
        unknown(softmax_focal_loss_value_and_grad, others)
    return SOFTMAX_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, axis=axis, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def softmax_focal_loss_backward(
    grad_output, logits, target, *, alpha=None, gamma=2.0, sample_weight=None, ignore_index=-100,
    reduction="mean", axis=None, out=None, **others,
):  # fmt: skip
    """Gradient of `softmax_focal_loss` with respect to the logits, for an upstream gradient.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    logits, target, alpha, gamma, sample_weight, ignore_index : see `softmax_focal_loss`
    reduction, axis : see `softmax_focal_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    softmax_focal_loss : the loss alone; describes the arguments.
    softmax_focal_loss_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.softmax_focal_loss_backward(2.0, [[1.0, 2.0]], [0]).round(4)
    array([[-1.5365,  1.5365]])
    """
    if others:
        unknown(softmax_focal_loss_backward, others)
    return SOFTMAX_FOCAL_LOSS.evaluate(
        logits, target, alpha=alpha, gamma=gamma, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, axis=axis, value=False, gradient=True,
        upstream=grad_output, out=out,
    )[1]  # fmt: skip
