"""Divergences between distributions: `kl_div`, with its gradient.

The types are in the stub beside this file.
"""

from fastloss._names import signed, unknown
from fastloss.losses._specification import KL_DIV

__all__ = ["kl_div", "kl_div_backward", "kl_div_value_and_grad"]


def __dir__() -> list[str]:
    return __all__


@signed
def kl_div(log_probs, target, *, sample_weight=None, reduction="mean", log_target=False, **others):
    r"""Kullback-Leibler divergence of the target from log-probabilities.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    log_probs : array_like, any shape
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like, shape of `log_probs`
        Probabilities, or their logarithms with `log_target`; any real type.
    sample_weight : array_like, optional
        Multiplies each loss, and counts in the mean; broadcasts to `log_probs`.

        .. versionadded:: 0.2.0
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, or by the sum of the sample weights; "batchmean"
        by the first dimension.  The divergence of distributions is what "batchmean" gives.
    log_target : bool, default False
        Whether `target` holds log-probabilities.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `log_probs`.  float32; float64 for float64
        `log_probs`.  The mean over no element is NaN.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.

    See Also
    --------
    kl_div_value_and_grad : the loss and its gradient in one pass.
    kl_div_backward : the gradient for an upstream gradient.
    KLDivLoss : the same as a class that holds the options.
    distillation_loss : the divergence between two softmaxes, from logits.
    cross_entropy : the divergence up to a constant, with class probabilities.

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
    if others:
        unknown(kl_div, others)
    return KL_DIV.evaluate(
        log_probs, target, sample_weight=sample_weight, reduction=reduction, log_target=log_target
    )[0]


@signed
def kl_div_value_and_grad(
    log_probs, target, *, sample_weight=None, reduction="mean", log_target=False, out=None, **others
):
    r"""Kullback-Leibler divergence and the gradient of its sum, in one pass.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    log_probs, target, sample_weight, reduction, log_target : see `kl_div`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    kl_div : the loss alone; describes the arguments.

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
    if others:
        unknown(kl_div_value_and_grad, others)
    return KL_DIV.evaluate(
        log_probs, target, sample_weight=sample_weight, reduction=reduction, log_target=log_target,
        gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def kl_div_backward(
    grad_output, log_probs, target, *, sample_weight=None, reduction="mean", log_target=False,
    out=None, **others,
):  # fmt: skip
    r"""Gradient of `kl_div` with respect to `log_probs`, for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    log_probs, target, sample_weight, reduction, log_target : see `kl_div`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    kl_div : the loss alone; describes the arguments.
    kl_div_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> fastloss.kl_div_backward(2.0, np.log([[0.5, 0.5]]), [[0.25, 0.75]], reduction="sum")
    array([[-0.5, -1.5]])
    """
    if others:
        unknown(kl_div_backward, others)
    return KL_DIV.evaluate(
        log_probs, target, sample_weight=sample_weight, reduction=reduction, log_target=log_target,
        value=False, gradient=True, upstream=grad_output, out=out,
    )[1]  # fmt: skip
