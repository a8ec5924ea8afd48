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
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.  Or class
        probabilities: floating, shape of the logits.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their logits hold.
        May lie outside [0, C).  With probabilities it must be negative, and does nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored; with probabilities by the sum of the sample weights.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    temperature : float, default 1.0
        The logits are divided by it; above 0.

        .. versionadded:: 0.2.0
    softcap : float, optional
        Keeps the logits between -softcap and softcap: ``softcap * tanh(logits / softcap)``, before
        the temperature; above 0.

        .. versionadded:: 0.2.0
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(z)**2`` to a sample's loss, times its class and sample weight; at
        least 0.

        .. versionadded:: 0.2.0
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the logits' shape without the class axis.  float32;
        float64 for float64 logits.  The mean over no sample is NaN.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    cross_entropy_backward : the gradient for an upstream gradient.
    cross_entropy_grad_and_hess : first and second derivatives of each sample.
    CrossEntropyLoss : the same as a class that holds the options.
    cross_entropy_value_and_grad : the loss and its gradient in one pass.
    linear_cross_entropy : the same on ``input @ weight.T`` without the whole logits.

    Notes
    -----
    For class indices, with :math:`\ell_c = z_c - \log \sum_k e^{z_k}`, the loss of a sample is
    :math:`-w_t \ell_t`.  Label smoothing :math:`\varepsilon` makes it
    :math:`-(1-\varepsilon) w_t \ell_t - \frac{\varepsilon}{C} \sum_c w_c \ell_c`.
    For probabilities :math:`p` it is :math:`-\sum_c w_c q_c \ell_c` with
    :math:`q = (1-\varepsilon) p + \varepsilon / C`.  :math:`z` are the logits, after `softcap` and
    `temperature` where they are given.

    The target's exponential is kept out of the sum, so that a confident sample's loss has all its
    digits: ``log1p(rest)`` instead of a logarithm near 1.  Losses are within 4 ulp of the exact
    value.  A logit of -inf masks its class.  A NaN or +inf makes its own sample NaN.

    Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
    2016.  `z_loss`: Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022.
    Semantics of weights and reductions follow ``torch.nn.functional.cross_entropy``.

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
        Where the gradient is written: C-contiguous, of the logits' shape and dtype; the logits
        themselves are allowed.  A new array of that size costs as much time as the kernel.

    Returns
    -------
    loss : see `cross_entropy`
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of the logits;
        `out` if given.

    See Also
    --------
    cross_entropy : the loss alone; describes the arguments.
    cross_entropy_grad_and_hess : first and second derivatives of each sample.

    Notes
    -----
    For class indices the gradient is :math:`w_t (p_c - [c = t])` with the softmax :math:`p`, over
    the mean's denominator.  At the target it is formed as ``-rest / sum`` and not as ``p - 1``,
    so that it has all its digits there, too.

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
        Gradient with respect to the loss, of the loss's shape: a number for "mean" and "sum".
    logits, target, weight, sample_weight, ignore_index, reduction : see `cross_entropy`
    label_smoothing, temperature, softcap, z_loss, axis : see `cross_entropy`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : ndarray
        Shape and dtype of the logits; `out` if given.

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
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of `log_probs` without the class axis.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever else they hold.
        May lie outside [0, C).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D input.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape without the class axis.  float32; float64
        for float64 log-probabilities.  The mean over no sample is NaN.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    nll_loss_value_and_grad : the loss and its gradient in one pass.
    nll_loss_backward : the gradient for an upstream gradient.
    NLLLoss : the same as a class that holds the options.
    cross_entropy : the same on logits, in one pass and without loss of digits.

    Notes
    -----
    The loss of a sample is :math:`-w_t x_t`: what `cross_entropy` makes of logits, for
    log-probabilities that are there already.  Nothing checks that they are normalised.

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
        :math:`-w_t` at the target, over the mean's denominator, and 0 elsewhere.

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
    r"""Focal loss of softmax probabilities: cross-entropy that plays down what is easy.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.
    alpha : array_like, shape (C,), optional
        Weight of each class.
    gamma : float, default 2.0
        How strongly well-classified samples are played down; at least 0.
    sample_weight, ignore_index : see `cross_entropy`
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``alpha[target] * sample_weight`` over the samples that are
        not ignored: without weights, by their number.
    axis : see `cross_entropy`

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the logits' shape without the class axis.  float32;
        float64 for float64 logits.  The mean over no sample is NaN.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    softmax_focal_loss_value_and_grad : the loss and its gradient in one pass.
    softmax_focal_loss_backward : the gradient for an upstream gradient.
    softmax_focal_loss_grad_and_hess : first and second derivatives of each sample.
    SoftmaxFocalLoss : the same as a class that holds the options.
    cross_entropy : the same with `gamma` 0, and with more options.
    sigmoid_focal_loss : for binary questions.

    Notes
    -----
    With the softmax :math:`p` the loss of a sample is
    :math:`\alpha_t (1 - p_t)^\gamma (-\log p_t)`.

    Lin et al., "Focal Loss for Dense Object Detection", 2017.

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
    The gradient includes that of the modulating factor:
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
