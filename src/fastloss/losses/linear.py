"""Cross-entropy of a linear layer's outputs, without ever holding all of them.

The logits ``input @ linear_weight.T + linear_bias`` of a large vocabulary are the largest array of
a language model's last step.  `_layer` makes them a block of rows at a time.

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
    """Gradients of `linear_cross_entropy`, each of the shape and dtype of what it belongs to.

    .. versionadded:: 0.1.0
    """

    input: Array
    linear_weight: Array
    #: None where there is no bias.
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
    r"""Cross-entropy of the logits ``input @ linear_weight.T + linear_bias``, block by block.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    input : array_like, shape (..., features)
        Inputs of the layer, one row per sample.  float16, bfloat16, float32 or float64; integers
        and bool count as float64.
    linear_weight : array_like, shape (classes, features) or (classes, d1, ..., dK, features)
        Weight of the layer.  float16 and bfloat16 ones are converted some classes at a time.
    target : array_like
        Class indices: any integer type, shape of `input` without its last axis, followed by
        d1, ..., dK.  Or class probabilities: floating, that shape with the classes before d1.
    linear_bias : array_like, shape (classes,) or (classes, d1, ..., dK), optional
        Bias of the layer.
    weight : array_like, shape (classes,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape that class indices have.

        .. versionadded:: 0.2.0
    ignore_index, reduction, label_smoothing : see `cross_entropy`
    temperature, softcap, z_loss : see `cross_entropy`

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape that class indices have; float32, or
        float64 if `input` or `linear_weight` is.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.
    IndexError
        For a class index outside [0, classes) that is not `ignore_index`.

    See Also
    --------
    linear_cross_entropy_value_and_grad : the loss and its gradient in one pass.
    linear_cross_entropy_backward : the gradient for an upstream gradient.
    cross_entropy : the same on logits that are there already.

    Notes
    -----
    The logits exist for a block of samples at a time.  Beside its results, a call takes 64 MiB, or
    half the size of the weight if that is more.  Samples that are ignored, or weigh nothing, cost
    nothing.

    Products are formed in float32, in float64 if `input` or `linear_weight` is float64, and have
    the rounding and the threads of NumPy's matrix product.  The gradient of a float16 or bfloat16
    weight is rounded once; where its sum in float32 does not fit into that memory, it takes one
    product more.

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
    r"""Cross-entropy of a linear layer's outputs, and its gradients, block by block.

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
        Gradients of the loss, for "none" of the sum of the losses: ``input``, ``linear_weight`` and
        ``linear_bias`` (None without a bias), each of the shape and dtype of its argument.

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
        ``input``, ``linear_weight`` and ``linear_bias`` (None without a bias), each of the shape
        and dtype of its argument.

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
