"""Learning from a teacher's logits: `distillation_loss`, with its gradient.

The types are in the stub beside this file.
"""

from fastloss._names import signed, unknown
from fastloss.losses._specification import DISTILLATION_LOSS

__all__ = [
    "distillation_loss",
    "distillation_loss_backward",
    "distillation_loss_value_and_grad",
]


def __dir__() -> list[str]:
    return __all__


@signed
def distillation_loss(
    logits, teacher_logits, *, sample_weight=None, temperature=1.0, direction="forward",
    reduction="mean", axis=None, **others,
):  # fmt: skip
    r"""Kullback-Leibler divergence between the softmaxes of a student's and a teacher's logits.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        The student's unnormalised scores, float16, bfloat16, float32 or float64; integers and
        booleans are treated as float64.  C-contiguous arrays are read in place.
    teacher_logits : array_like, shape of `logits`
        The teacher's unnormalised scores, of any of these types.  The two types may differ.
    sample_weight : array_like, optional
        Multiplies each sample's loss; the mean divides by the sum of these weights.  Broadcasts to
        the shape of `logits` without the class axis.
    temperature : float, default 1.0
        Divides both arrays of logits; must be positive.  The loss is multiplied by its square, so
        that gradients keep their size.
    direction : {"forward", "reverse"}, default "forward"
        "forward" is KL(teacher ‖ student): the student has to cover everything that the teacher
        considers possible.  "reverse" is KL(student ‖ teacher): the student has to keep to what the
        teacher considers likely.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of samples, or by the sum of the sample weights.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of `logits` without the class
        axis.  float64 if either array is float64, otherwise float32.  The mean of no samples is
        NaN.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.

    See Also
    --------
    distillation_loss_value_and_grad : the loss and its gradient in one pass.
    distillation_loss_backward : the gradient for an upstream gradient.
    DistillationLoss : the same as a class that holds the options.
    kl_div : the same for log-probabilities, element by element.
    compare_logits : both directions for each sample.

    Notes
    -----
    Let :math:`p` be the softmax of the student's logits divided by the temperature :math:`T`, and
    :math:`q` that of the teacher's.  The loss of a sample is

    .. math:: T^2 \sum_c q_c (\log q_c - \log p_c), \qquad
              T^2 \sum_c p_c (\log p_c - \log q_c) \text{ in reverse.}

    The forward sum is computed as :math:`\sum_c q_c\,h(\log p_c - \log q_c)` with
    :math:`h(x) = e^x - 1 - x`, and the reverse sum alike.  All terms have the same sign, so the
    loss keeps its digits however close the student is to the teacher.

    A class whose logits are -inf in both arrays contributes 0.  If only the student masks a class,
    the forward loss is infinite; if only the teacher masks it, the reverse loss is.  A sample with
    a logit of NaN or +inf, or with all logits -inf, has the loss NaN; other samples are not
    affected.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, Distilling the knowledge in a neural network, 2015,
    arXiv:1503.02531.

    Examples
    --------
    >>> import fastloss
    >>> student = [[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]]
    >>> teacher = [[2.0, 2.5, -1.0], [0.0, 0.0, 2.0]]
    >>> print(fastloss.distillation_loss(student, teacher, temperature=2.0).round(4))
    0.1269
    >>> fastloss.distillation_loss(student, teacher, direction="reverse", reduction="none").round(4)
    array([0.0978, 0.0354])
    """
    if others:
        unknown(distillation_loss, others)
    return DISTILLATION_LOSS.evaluate(
        logits, teacher_logits, sample_weight=sample_weight, temperature=temperature,
        direction=direction, reduction=reduction, axis=axis,
    )[0]  # fmt: skip


@signed
def distillation_loss_value_and_grad(
    logits, teacher_logits, *, sample_weight=None, temperature=1.0, direction="forward",
    reduction="mean", axis=None, out=None, **others,
):  # fmt: skip
    r"""Distillation loss and the gradient of its sum with respect to the student's logits.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, teacher_logits, sample_weight : see `distillation_loss`
    temperature, direction, reduction, axis : see `distillation_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    loss, grad : see `cross_entropy_value_and_grad`

    See Also
    --------
    distillation_loss : the loss alone; describes the arguments.

    Notes
    -----
    The gradient of a sample's loss is :math:`T (p_c - q_c)`, or in reverse
    :math:`T p_c (\log p_c - \log q_c - \mathrm{KL}(p \| q))`.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.distillation_loss_value_and_grad([[1.0, 2.0]], [[3.0, 2.0]])
    >>> print(loss.round(4))
    0.4621
    >>> grad.round(4)
    array([[-0.4621,  0.4621]])
    """
    if others:
        unknown(distillation_loss_value_and_grad, others)
    return DISTILLATION_LOSS.evaluate(
        logits, teacher_logits, sample_weight=sample_weight, temperature=temperature,
        direction=direction, reduction=reduction, axis=axis, gradient=True, out=out,
    )[:2]  # fmt: skip


@signed
def distillation_loss_backward(
    grad_output, logits, teacher_logits, *, sample_weight=None, temperature=1.0,
    direction="forward", reduction="mean", axis=None, out=None, **others,
):  # fmt: skip
    r"""Gradient of `distillation_loss` with respect to `logits`, for an upstream gradient.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    logits, teacher_logits, sample_weight : see `distillation_loss`
    temperature, direction, reduction, axis : see `distillation_loss`
    out : see `cross_entropy_value_and_grad`

    Returns
    -------
    grad : see `cross_entropy_backward`

    See Also
    --------
    distillation_loss : the loss alone; describes the arguments.
    distillation_loss_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.distillation_loss_backward(2.0, [[1.0, 2.0]], [[3.0, 2.0]]).round(4)
    array([[-0.9242,  0.9242]])
    """
    if others:
        unknown(distillation_loss_backward, others)
    return DISTILLATION_LOSS.evaluate(
        logits, teacher_logits, sample_weight=sample_weight, temperature=temperature,
        direction=direction, reduction=reduction, axis=axis, value=False, gradient=True,
        upstream=grad_output, out=out,
    )[1]  # fmt: skip
