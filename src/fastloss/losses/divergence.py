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
    r"""Kullback-Leibler divergence between targets and log-probabilities, element by element.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    log_probs : array_like, any shape
        Log-probabilities, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    target : array_like, shape of `log_probs`
        Probabilities of any real type; with `log_target`, their logarithms.
    sample_weight : array_like, optional
        Multiplies each loss; the mean divides by the sum of these weights.  Broadcasts to
        `log_probs`.

        .. versionadded:: 0.2.0
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements, or by the sum of the sample weights; "batchmean"
        divides by the length of the first axis.  For rows of probabilities, "batchmean" is the mean
        divergence of a row.
    log_target : bool, default False
        Whether `target` holds log-probabilities.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `log_probs`.  float64 for
        float64 `log_probs`, float32 for all others.  The mean of no elements is NaN.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.

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
    :math:`e^t (t - x)` with `log_target`.  A negative target gives NaN.

    References
    ----------
    S. Kullback and R. A. Leibler, On information and sufficiency, The Annals of Mathematical
    Statistics 22 (1951).

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
    The gradient is :math:`-t`, or :math:`-e^t` with `log_target`.

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
