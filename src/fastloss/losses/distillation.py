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
        The student's unnormalised scores, float16, bfloat16, float32 or float64; integers and bool
        count as float64.  C-contiguous ones are read where they lie.
    teacher_logits : array_like, shape of `logits`
        The teacher's, of any of these types: it need not be that of `logits`.
    sample_weight : array_like, optional
        Multiplies each sample's loss, and counts in the mean; broadcasts to the shape of `logits`
        without the class axis.
    temperature : float, default 1.0
        Both softmaxes are taken of logits over this.  The loss is multiplied by its square, so
        that gradients keep their size.
    direction : {"forward", "reverse"}, default "forward"
        "forward" is the divergence of the student from the teacher, KL(teacher ‖ student), which
        makes the student cover all that the teacher holds possible; "reverse" the other,
        KL(student ‖ teacher), which makes it keep to what the teacher holds likely.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of samples, or by the sum of the sample weights.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `logits` without the class axis.  float32;
        float64 where one of the arrays is float64.  The mean over no sample is NaN.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.

    See Also
    --------
    distillation_loss_value_and_grad : the loss and its gradient in one pass.
    distillation_loss_backward : the gradient for an upstream gradient.
    DistillationLoss : the same as a class that holds the options.
    kl_div : the same of log-probabilities, element by element.
    compare_logits : both directions, for each sample.

    Notes
    -----
    With :math:`p` the softmax of the student's logits over the temperature :math:`T`, and :math:`q`
    the teacher's, the loss of a sample is

    .. math:: T^2 \sum_c q_c (\log q_c - \log p_c), \qquad
              T^2 \sum_c p_c (\log p_c - \log q_c) \text{ in reverse.}

    It is summed as :math:`\sum_c q_c\,h(\log p_c - \log q_c)` with :math:`h(x) = e^x - 1 - x`:
    terms of one sign, which keep their digits however close the student is to the teacher.

    A class that has probability 0 in both, its logits -inf, adds nothing; one that has it where it
    is divided by, and not in the other, makes the loss infinite.  A NaN or +inf logit, or a row
    that is all -inf, gives NaN in that sample alone.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.

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
    The gradient of a sample's loss is :math:`T (p_c - q_c)`, in reverse
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
