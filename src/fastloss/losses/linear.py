"""Cross-entropy of a linear layer's outputs, without ever holding all of them.

The logits ``input @ linear_weight.T + linear_bias`` of a large vocabulary are the largest array of
a language model's last step.  Here they exist for a block of rows at a time: NumPy multiplies, the
cross-entropy kernel turns the block of logits into its gradient in place, and NumPy multiplies that
back to the gradients of input, weight and bias.

The public functions' types are in the stub beside this file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses._reduction import Totals, reduced
from fastloss.losses._specification import CROSS_ENTROPY

__all__ = [
    "LinearGradients",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_value_and_grad",
]

#: Bytes of logits that exist at a time, about: what stays in a processor's cache pays off twice.
BLOCK_BYTES = 8 << 20


class LinearGradients(NamedTuple):
    """Gradients of `linear_cross_entropy`, each of the shape and dtype of what it belongs to."""

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
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    options = CROSS_ENTROPY.checked(options)
    a = _arrays.layer(
        input, linear_weight, target, linear_bias, weight, sample_weight, options["ignore_index"]
    )
    x, w = a.input, a.linear_weight
    none = reduction == "none"
    scale: Any = 1.0 if upstream is None else _arrays.upstream(upstream, a.samples if none else ())
    if reduction == "mean":
        scale = scale / a.weights if a.weights else 0.0
    if none:
        scale = np.broadcast_to(scale, a.samples).reshape(-1)
    rows, classes = len(x), len(w)
    losses = np.zeros(rows, x.dtype) if none else None
    total = 0.0
    grads = None
    if gradient:
        bias = None if a.linear_bias is None else np.zeros(classes)
        grads = LinearGradients(np.empty_like(x), np.zeros_like(w), bias)
    # 2. Block by block.
    block = max(1, BLOCK_BYTES // max(classes * x.itemsize, 1))
    buffer = np.empty((min(block, rows), classes), x.dtype)
    for start in range(0, rows, block):
        part = slice(start, start + block)
        logits = np.matmul(x[part], w.T, out=buffer[: len(x[part])])
        if a.linear_bias is not None:
            logits += a.linear_bias
        loss, g, totals = CROSS_ENTROPY.evaluate(
            logits,
            a.target[part],
            weight=a.weight,
            sample_weight=None if a.factor is None else a.factor[part],
            reduction="none" if none else "sum",
            gradient=gradient,
            out=logits if gradient else None,
            upstream=scale[part] if none else scale,
            value=upstream is None or not none,
            **options,
        )
        total += totals.loss
        if losses is not None and loss is not None:
            losses[part] = loss
        if grads is not None:
            np.matmul(g, w, out=grads.input[part])
            grads.linear_weight[...] += g.T @ x[part]
            if grads.linear_bias is not None:
                grads.linear_bias[...] += g.sum(axis=0, dtype=np.float64)
    # 3. Reduction.
    loss = reduced(reduction, Totals(total, a.weights), losses, x.dtype, a.samples)
    if grads is not None:
        if a.dead is not None:
            grads.input[a.dead] = 0.0
        grads = LinearGradients(
            _like(grads.input.reshape((*a.samples, x.shape[-1])), input),
            _like(grads.linear_weight, linear_weight),
            None if grads.linear_bias is None else _like(grads.linear_bias, linear_bias),
        )
    return loss, grads


def _like(gradient: Array, original: Any) -> Array:
    """Return a gradient in the type of what it belongs to; integers have float64 ones."""
    dtype = _arrays.floating(original, "").dtype
    return gradient.astype(dtype, copy=False)


def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, weight=None, sample_weight=None,
    ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0, softcap=None,
    z_loss=0.0,
):  # fmt: skip
    r"""Cross-entropy of the logits ``input @ linear_weight.T + linear_bias``, block by block.

    Parameters
    ----------
    input : array_like, shape (..., features)
        Inputs of the layer, one row per sample.  float16, bfloat16, float32 or float64; integers
        and bool count as float64.
    linear_weight : array_like, shape (classes, features)
        Weight of the layer.
    target : array_like
        Class indices: any integer type, shape of `input` without its last axis.  Or class
        probabilities: floating, that shape with the classes as last axis.
    linear_bias : array_like, shape (classes,), optional
        Bias of the layer.
    weight : array_like, shape (classes,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape of `input` without its last axis.
    ignore_index, reduction, label_smoothing : see `cross_entropy`
    temperature, softcap, z_loss : see `cross_entropy`

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `input` without its last axis;
        float32, or float64.

    Raises
    ------
    TypeError, ValueError
        For arrays, shapes and options that do not fit, or options out of range.
    IndexError
        For a class index outside [0, classes) that is not `ignore_index`.

    See Also
    --------
    cross_entropy : the same on logits that are there already.

    Notes
    -----
    Rows are worked on in blocks of about 8 MiB of logits: memory does not grow with rows times
    classes.  Products are formed in float32, in float64 if `input` or `linear_weight` is float64,
    and have the rounding of NumPy's matrix product.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.linear_cross_entropy([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0]).round(4))
    1.3133
    """
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
    )[0]  # fmt: skip


def linear_cross_entropy_value_and_grad(
    input, linear_weight, target, *, linear_bias=None, weight=None, sample_weight=None,
    ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0, softcap=None,
    z_loss=0.0,
):  # fmt: skip
    r"""Cross-entropy of a linear layer's outputs, and its gradients, block by block.

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

    Examples
    --------
    >>> import fastloss
    >>> loss, grads = fastloss.linear_cross_entropy_value_and_grad(
    ...     [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0]
    ... )
    >>> grads.input.round(4)
    array([[-0.7311,  0.7311]])
    """
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        gradient=True,
    )  # fmt: skip


def linear_cross_entropy_backward(
    grad_output, input, linear_weight, target, *, linear_bias=None, weight=None,
    sample_weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, temperature=1.0,
    softcap=None, z_loss=0.0,
):  # fmt: skip
    r"""Gradients of `linear_cross_entropy` for an upstream gradient.

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

    Examples
    --------
    >>> import fastloss
    >>> fastloss.linear_cross_entropy_backward(
    ...     2.0, [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0], reduction="sum"
    ... ).input.round(4)
    array([[-1.4621,  1.4621]])
    """
    return _evaluate(
        input, linear_weight, target, linear_bias=linear_bias, weight=weight,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        gradient=True, upstream=grad_output,
    )[1]  # fmt: skip
