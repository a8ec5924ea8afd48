"""Cross-entropy of a linear layer's outputs, without storing all of them.

With a large vocabulary, the logits ``input @ linear_weight.T + linear_bias`` are the largest array
in the last step of a language model.  `_layer` computes them one block of rows at a time.

The public functions' types are in the stub beside this file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss._names import signed, unknown
from fastloss.losses import _layer
from fastloss.losses._specification import CROSS_ENTROPY

__all__ = [
    "LinearGradients",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_value_and_grad",
]


def __dir__() -> list[str]:
    return __all__


class LinearGradients(NamedTuple):
    """Gradients of `linear_cross_entropy`, each with the shape and dtype of its argument.

    .. versionadded:: 0.1.0
    """

    #: Gradient with respect to `input`.
    input: Array
    #: Gradient with respect to `linear_weight`.
    linear_weight: Array
    #: Gradient with respect to `linear_bias`; None without a bias.
    linear_bias: Array | None


def _evaluate(
    input: Any, linear_weight: Any, target: Any, *, linear_bias: Any, weight: Any,
    sample_weight: Any, reduction: Any, gradient: bool = False, upstream: Any = None,
    **options: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Return (loss, gradients); the loss is None for an array of upstream gradients."""
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    options = CROSS_ENTROPY.checked(options)
    a = _arrays.layer(
        input, linear_weight, target, linear_bias, weight, sample_weight, options["ignore_index"]
    )
    scale: Any = 1.0
    if upstream is not None:
        scale = _arrays.upstream(upstream, a.samples if reduction == "none" else ())
    wanted = gradient, gradient, gradient and a.linear_bias is not None
    loss, (grad_x, grad_w, grad_b) = _layer.evaluate(
        a, _layer.Products, reduction=reduction, wanted=wanted, upstream=scale,
        value=upstream is None, **options,
    )  # fmt: skip
    if grad_x is None or grad_w is None:
        return loss, None
    outputs = (a.classes, *a.extents)
    features = a.input.shape[-1]
    if grad_b is not None:
        grad_b = grad_b.reshape(outputs).astype(_arrays.floating(linear_bias, "").dtype, copy=False)
    before = a.samples[: len(a.samples) - len(a.extents)]
    return loss, LinearGradients(
        grad_x.reshape(*before, features), grad_w.reshape(*outputs, features), grad_b
    )


@signed
def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, weight=None, sample_weight=None,
    ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0, softcap=None,
    z_loss=0.0, **others,
):  # fmt: skip
    r"""Cross-entropy of ``input @ linear_weight.T + linear_bias``, without storing all logits.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    input : array_like, shape (..., features)
        Inputs of the layer, one row per sample: float16, bfloat16, float32 or float64; integers and
        booleans are treated as float64.
    linear_weight : array_like, shape (classes, features) or (classes, d1, ..., dK, features)
        Weight of the layer.  float16 and bfloat16 weights are converted a few classes at a time.
    target : array_like
        Class indices of any integer type, with the shape of `input` without its last axis, followed
        by d1, ..., dK; or class probabilities of a floating type, with that shape and the class
        axis before d1.
    linear_bias : array_like, shape (classes,) or (classes, d1, ..., dK), optional
        Bias of the layer.
    weight : array_like, shape (classes,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape of class indices.

        .. versionadded:: 0.2.0
    ignore_index, reduction, label_smoothing : see `cross_entropy`
    temperature, softcap, z_loss : see `cross_entropy`

    Returns
    -------
    loss : scalar or ndarray
        A scalar; with ``reduction="none"``, an array with the shape of class indices.  float64 if
        `input` or `linear_weight` is float64, otherwise float32.

    Raises
    ------
    TypeError, ValueError
        If an array or option has the wrong type or shape, or an option is out of range.
    IndexError
        If a class index is outside [0, classes) and is not `ignore_index`.

    See Also
    --------
    linear_cross_entropy_value_and_grad : the loss and its gradient in one pass.
    linear_cross_entropy_backward : the gradient for an upstream gradient.
    cross_entropy : the same for logits that are already in memory.

    Notes
    -----
    The logits are computed one block of samples at a time.  Apart from its results, a call needs
    64 MiB of memory, or half the size of the weight if that is more.  Samples that are ignored or
    have weight 0 are skipped.

    Matrix products are computed in float64 if `input` or `linear_weight` is float64, otherwise in
    float32.  They have the rounding and the threads of NumPy's matrix product.  The gradient of a
    float16 or bfloat16 weight is rounded once.  If its float32 sum does not fit into the memory
    above, the call takes one more matrix product.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.linear_cross_entropy([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0]).round(4))
    1.3133
    """
    if others:
        unknown(linear_cross_entropy, others)
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
    )[0]  # fmt: skip


@signed
def linear_cross_entropy_value_and_grad(
    input, linear_weight, target, *, linear_bias=None, weight=None, sample_weight=None,
    ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0, softcap=None,
    z_loss=0.0, **others,
):  # fmt: skip
    r"""Cross-entropy of a linear layer's outputs, and its gradients.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    input, linear_weight, target, linear_bias : see `linear_cross_entropy`
    weight, sample_weight : see `linear_cross_entropy`
    ignore_index, reduction, label_smoothing : see `cross_entropy`
    temperature, softcap, z_loss : see `cross_entropy`

    Returns
    -------
    loss : see `linear_cross_entropy`
    grads : LinearGradients
        Gradients of the loss, or of the sum of the losses with ``reduction="none"``: a named tuple
        with the fields ``input``, ``linear_weight`` and ``linear_bias`` (None without a bias), each
        with the shape and dtype of its argument.

    See Also
    --------
    linear_cross_entropy : the loss alone; describes the arguments.

    Examples
    --------
    >>> import fastloss
    >>> loss, grads = fastloss.linear_cross_entropy_value_and_grad(
    ...     [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0]
    ... )
    >>> grads.input.round(4)
    array([[-0.7311,  0.7311]])
    """
    if others:
        unknown(linear_cross_entropy_value_and_grad, others)
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        gradient=True,
    )  # fmt: skip


@signed
def linear_cross_entropy_backward(
    grad_output, input, linear_weight, target, *, linear_bias=None, weight=None,
    sample_weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0,
    softcap=None, z_loss=0.0, **others,
):  # fmt: skip
    r"""Gradients of `linear_cross_entropy` for an upstream gradient.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    grad_output : see `cross_entropy_backward`
    input, linear_weight, target, linear_bias : see `linear_cross_entropy`
    weight, sample_weight : see `linear_cross_entropy`
    ignore_index, reduction, label_smoothing : see `cross_entropy`
    temperature, softcap, z_loss : see `cross_entropy`

    Returns
    -------
    grads : LinearGradients
        A named tuple with the fields ``input``, ``linear_weight`` and ``linear_bias`` (None without
        a bias), each with the shape and dtype of its argument.

    See Also
    --------
    linear_cross_entropy : the loss alone; describes the arguments.
    linear_cross_entropy_value_and_grad : the loss and its gradient in one pass.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.linear_cross_entropy_backward(
    ...     2.0, [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0], reduction="sum"
    ... ).input.round(4)
    array([[-1.4621,  1.4621]])
    """
    if others:
        unknown(linear_cross_entropy_backward, others)
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        gradient=True, upstream=grad_output,
    )[1]  # fmt: skip
