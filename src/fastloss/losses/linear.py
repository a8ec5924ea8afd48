"""Cross-entropy of a linear layer's outputs, without ever holding all of them.

The logits ``input @ linear_weight.T + linear_bias`` of a large vocabulary are the largest array of
a language model's last step.  Here they exist for a block of rows at a time: NumPy multiplies, the
cross-entropy kernel turns the block of logits into its gradient in place, and NumPy multiplies that
back to the gradients of input, weight and bias.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses import categorical
from fastloss.losses._reduction import Totals, reduced

Reduction = Literal["mean", "sum", "none"]

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


class _Layer(NamedTuple):
    """Checked arguments, in float32 or float64."""

    input: Array  # (rows, features)
    linear_weight: Array  # (classes, features)
    linear_bias: Array | None  # (classes,)
    target: Array  # (rows,) int64, or (rows, classes) probabilities
    weight: Array | None  # (classes,)
    samples: tuple[int, ...]
    #: Sum of the targets' weights: what the mean divides by.
    weights: float


def _layer(
    input: Any, linear_weight: Any, target: Any, linear_bias: Any, weight: Any, ignore_index: int
) -> _Layer:
    x = _arrays.floating(input, "input")
    w = _arrays.floating(linear_weight, "linear_weight")
    if x.ndim == 0 or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            "input must have shape (..., features) and linear_weight (classes, features),"
            f" got {x.shape} and {w.shape}"
        )
    classes = w.shape[0]
    kind = np.dtype(np.float64 if np.float64 in (x.dtype, w.dtype) else np.float32)
    bias = None
    if linear_bias is not None:
        bias = _arrays.floating(linear_bias, "linear_bias")
        if bias.shape != (classes,):
            raise ValueError(f"linear_bias must have shape ({classes},), got {bias.shape}")
        bias = bias.astype(kind, copy=False)
    samples = x.shape[:-1]
    rows = math.prod(samples)
    t = np.asarray(target)
    if weight is not None:
        weight = _arrays.class_weights(weight, classes)
    if t.dtype.kind in "iu" or t.shape == samples:
        t, weights = _indices(t, x, samples, classes, weight, ignore_index)
    else:
        t = _arrays.floating(t, "target")
        if t.shape != (*samples, classes):
            raise ValueError(
                f"target of shape {t.shape} does not fit input of shape {x.shape}: class indices"
                f" need shape {samples}, class probabilities (floating) {(*samples, classes)}"
            )
        if ignore_index >= 0:
            raise ValueError(
                f"ignore_index={ignore_index} has no meaning for class probabilities: it must be"
                " negative"
            )
        t, weights = t.reshape(rows, classes), float(rows)
    return _Layer(
        x.reshape(rows, x.shape[-1]).astype(kind, copy=False),
        w.astype(kind, copy=False),
        bias,
        t,
        weight,
        samples,
        weights,
    )


def _indices(
    t: Array, x: Array, samples: tuple[int, ...], classes: int, weight: Array | None, ignored: int
) -> tuple[Array, float]:
    """Check class indices; return them as int64, and the sum of their weights."""
    if t.dtype.kind not in "iu" and t.size:
        raise TypeError(
            "target must be integers (class indices) or floating of the logits' shape (class"
            f" probabilities), got dtype {t.dtype} and shape {t.shape}"
        )
    if t.shape != samples:
        raise ValueError(
            f"target of shape {t.shape} does not fit input of shape {x.shape}:"
            f" class indices need shape {samples}"
        )
    kept = t != ignored
    bad = np.flatnonzero(kept & ((t < 0) | (t >= classes)))
    if bad.size:
        _arrays.wrong_index(t, int(bad[0]), classes)
    weights = np.count_nonzero(kept) if weight is None else weight[t[kept]].sum()
    return t.reshape(-1).astype(np.int64, copy=False), float(weights)


def _evaluate(
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    *,
    gradient: bool = False,
    upstream: Any = None,
) -> tuple[Any, Any]:
    """Return (loss, gradients); the loss is None for an array of upstream gradients."""
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    ignore_index = _arrays.integer(ignore_index, "ignore_index")
    smoothing = _arrays.fraction(label_smoothing, "label_smoothing")
    a = _layer(input, linear_weight, target, linear_bias, weight, ignore_index)
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
        loss, g, totals = categorical.evaluate(
            logits,
            a.target[part],
            a.weight,
            None,
            ignore_index,
            "none" if none else "sum",
            smoothing,
            None,
            gradient=gradient,
            out=logits if gradient else None,
            upstream=scale[part] if none else scale,
            value=upstream is None or not none,
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
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> np.floating[Any] | Array:
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
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target]`` over the samples that are not ignored; with
        probabilities by their number.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape of `input` without its last axis;
        float32, or float64.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
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
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
    )[0]


def linear_cross_entropy_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> tuple[np.floating[Any] | Array, LinearGradients]:
    r"""Cross-entropy of a linear layer's outputs, and its gradients, block by block.

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
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target]`` over the samples that are not ignored; with
        probabilities by their number.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.

    Returns
    -------
    loss : scalar or ndarray
        As `linear_cross_entropy` returns it.
    grads : LinearGradients
        Gradients of the loss, for "none" of the sum of the losses: ``input``, ``linear_weight`` and
        ``linear_bias`` (None without a bias), each of the shape and dtype of its argument.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, classes) that is not `ignore_index`.

    Notes
    -----
    Rows are worked on in blocks of about 8 MiB of logits: memory does not grow with rows times
    classes.  Products are formed in float32, in float64 if `input` or `linear_weight` is float64,
    and have the rounding of NumPy's matrix product.

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
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        gradient=True,
    )


def linear_cross_entropy_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> LinearGradients:
    r"""Gradients of `linear_cross_entropy` for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number for "mean" and "sum".
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
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target]`` over the samples that are not ignored; with
        probabilities by their number.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.

    Returns
    -------
    grads : LinearGradients
        ``input``, ``linear_weight`` and ``linear_bias`` (None without a bias), each of the shape
        and dtype of its argument.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, classes) that is not `ignore_index`.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.linear_cross_entropy_backward(
    ...     2.0, [[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [0], reduction="sum"
    ... ).input.round(4)
    array([[-1.4621,  1.4621]])
    """
    return _evaluate(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        gradient=True,
        upstream=grad_output,
    )[1]
