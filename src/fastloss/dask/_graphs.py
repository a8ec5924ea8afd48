"""The graph of a loss of dask arrays, built from the loss's specification.

A mean needs two numbers from each chunk, the sum of its losses and the sum of its weights.  They
are added up as a tree and divided once.  The denominator depends only on the target and the
weights, so a gradient of the mean has it before the logits are read.

Layout: a) `lazy`: arguments, b) the denominator of the mean, c) the graph, d) functions that run in
a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.dask._chunks import (
    DaskArray,
    aligned,
    as_array,
    broadcasting,
    expanded,
    first,
    in_chunks,
    item,
    like,
    meta,
    naming,
    one_class_chunk,
    one_thread,
    same_shape,
    without,
)
from fastloss.losses._reduction import Totals, reduced
from fastloss.losses._specification import CROSS_ENTROPY, SPECIFICATIONS, Specification

# ---- a) arguments ----------------------------------------------------------------------------


def lazy(
    loss: Specification,
    x: Any,
    target: Any,
    *,
    gradient: bool,
    reduction: Any,
    sample_weight: Any,
    axis: Any = None,
    **options: Any,
) -> Any:
    """Check the arguments of a loss and build its graph, with the gradient if it is wanted."""
    # 1. Logits and target.
    x = as_array(x, loss.input)
    if loss.over_classes:
        axis = _arrays.class_axis(axis, x.ndim, loss.input)
    x = first(x, loss.input, axis)
    target = as_array(target, loss.target)
    indices = False
    if loss.over_classes and not loss.two_logits:
        indices = target.dtype.kind in "iu"
        target = _target(loss, target, x, axis, indices)
    else:
        target = like(target, loss.target, x, loss.input, axis)
    # 2. Each option is passed whole to all chunks, or split into the chunks of the losses.
    shape, chunks = without(axis, x.shape), without(axis, x.chunks)
    samples = "the samples" if loss.over_classes else loss.input
    cut, whole = {}, {}
    for name, value in (options | {"sample_weight": sample_weight}).items():
        dask_array = isinstance(value, da.Array)
        if value is not None and (
            name == "sample_weight" or (name in loss.operands and (dask_array or np.ndim(value)))
        ):
            cut[name] = broadcasting(value, name, shape, chunks, samples)
        else:
            whole[name] = np.asarray(value) if isinstance(value, list) else value
    # 3. A call without samples raises every error that types and options can cause.
    empty = (0,) * x.ndim if axis is None else (0, x.shape[axis])
    loss.evaluate(
        np.zeros(empty, x.dtype),
        np.zeros((0,) if indices else empty, target.dtype),
        reduction=reduction,
        **{name: np.zeros((), value.dtype) for name, value in cut.items()},
        **{
            name: np.zeros(value.shape, value.dtype) if isinstance(value, da.Array) else value
            for name, value in whole.items()
        },
        **({} if axis is None else {"axis": 1}),
    )
    # 4. What each chunk's gradient is multiplied by.
    scale = None
    if reduction == "batchmean":
        if math.isnan(x.shape[0]):
            raise ValueError(
                f"reduction='batchmean' needs a known number of rows: call"
                f" {loss.input}.compute_chunk_sizes() first"
            )
        scale = 1.0 / x.shape[0] if x.shape[0] else 0.0
    elif gradient and reduction == "mean":
        scale = _inverse_of_weights(loss, target, cut.get("sample_weight"), whole, x, axis, indices)
    operands = {"target": target} | cut
    # What has no class axis gets one, so that all arrays have the same axes.
    short = () if axis is None else ("target", "sample_weight") if indices else ("sample_weight",)
    for name in short:
        if name in operands:
            operands[name] = expanded(operands[name], axis)
    return _graph(loss, x, operands, short, whole, scale, reduction, axis, gradient)


def _target(loss: Specification, target: Any, x: DaskArray, axis: int, indices: bool) -> DaskArray:
    """Return class indices or class probabilities as a dask array."""
    samples = without(axis, x.shape)
    if not same_shape(target.shape, samples if indices else x.shape):
        if target.dtype.kind == "f" and same_shape(target.shape, samples):
            _arrays.no_indices(target.dtype)
        _arrays.wrong_target(target, x, samples, axis, loss.input, loss is CROSS_ENTROPY)
    target = in_chunks(target, without(axis, x.chunks) if indices else x.chunks)
    if not indices:
        one_class_chunk(target, axis, loss.target)
    return target


# ---- b) the denominator of the mean ----------------------------------------------------------


def _inverse_of_weights(
    loss: Specification,
    target: DaskArray,
    sample_weight: DaskArray | None,
    options: dict[str, Any],
    x: DaskArray,
    axis: int | None,
    indices: bool,
) -> DaskArray | float:
    """Return 1 / the denominator of the mean, or 0 if that is 0, without reading the logits."""
    ignored = options.get("ignore_index")
    if indices:
        return _inverse_of_sum(
            _class_weights_in_chunk, target, sample_weight, ignore_index=ignored,
            weight=options.get("weight", options.get("alpha")), classes=x.shape[axis],
        )  # fmt: skip
    if loss.over_classes:
        ignored = None
    count = math.prod(without(axis, target.shape))
    if sample_weight is None and ignored is None and not math.isnan(count):
        return 1.0 / count if count else 0.0
    if sample_weight is not None and axis is not None:
        sample_weight = expanded(sample_weight, axis)
    return _inverse_of_sum(
        _weights_in_chunk, target, sample_weight, ignore_index=ignored, axis=axis
    )


def _inverse_of_sum(
    chunk: Callable[..., Array], target: DaskArray, sample_weight: DaskArray | None, **options: Any
) -> DaskArray:
    """Return 1 / the sum of the results of `chunk` over all chunks of the target."""
    shares = da.map_blocks(
        chunk, *aligned(target, *([] if sample_weight is None else [sample_weight])),
        chunks=(1,) * target.ndim, dtype=np.float64, meta=meta(target.ndim, np.float64), **options,
    )  # fmt: skip
    return shares.sum().map_blocks(_inverse, dtype=np.float64, meta=meta(0, np.float64))


# ---- c) the graph ----------------------------------------------------------------------------


def _graph(
    loss: Specification,
    x: DaskArray,
    operands: dict[str, DaskArray],
    short: tuple[str, ...],
    constants: dict[str, Any],
    scale: Any,
    reduction: str,
    axis: int | None,
    gradient: bool,
) -> Any:
    """Build the graph of a loss, and of its gradient.

    Parameters
    ----------
    loss : Specification
        The loss to evaluate in each chunk of the logits.
    x : dask array
        The logits.
    operands : dict of dask arrays
        Named arguments that are split into chunks; they have the shape of the logits or broadcast
        to it.
    short : tuple of str
        Those of them that the loss takes without a class axis.
    constants : dict
        Named arguments that are passed whole to every chunk.
    scale : float, 0-d dask array or None
        Factor of each chunk's gradient.
    reduction : str
        Reduction of the whole loss.
    axis : int or None
        Class axis of the logits, which the losses do not have.
    gradient : bool
        Whether to compute the gradient.
    """
    grad_dtype = _arrays.floating(meta(1, x.dtype), loss.input).dtype
    loss_dtype = _arrays.STORAGE[grad_dtype].loss
    if loss.two_logits:
        teacher = _arrays.floating(meta(1, operands["target"].dtype), loss.target).dtype
        loss_dtype = np.result_type(loss_dtype, _arrays.STORAGE[teacher].loss)
    none = reduction == "none"
    if gradient and scale is not None:
        operands = operands | {"scale": da.asarray(scale)}
    x, *parts = aligned(x, *operands.values())
    # One task computes both the losses and the gradient of a chunk, so its result is a pair.
    losses_meta = meta(x.ndim, loss_dtype) if none else meta(x.ndim + 1, np.float64)
    if none:
        layout = {"chunks": tuple((1,) if i == axis else c for i, c in enumerate(x.chunks))}
    else:
        layout = {"chunks": (1,) * x.ndim + (2,), "new_axis": x.ndim}
    made = da.map_blocks(
        # By name, which pickles and is the same wherever the graph is built.
        partial(_in_chunk, loss.name),
        x,
        *parts,
        names=tuple(operands),
        short=short,
        reduction=reduction,
        axis=axis,
        gradient=gradient,
        dtype=grad_dtype if gradient else losses_meta.dtype,
        meta=meta(x.ndim, grad_dtype) if gradient else losses_meta,
        **({} if gradient else layout),
        **constants,
    )
    grad = None
    values = made
    if gradient:
        grad = made.map_blocks(item, number=1, dtype=grad_dtype, meta=meta(x.ndim, grad_dtype))
        values = made.map_blocks(
            item, number=0, dtype=losses_meta.dtype, meta=losses_meta, **layout
        )
    if none:
        result = values if axis is None else values.squeeze(axis)
    else:
        totals = values.sum(axis=tuple(range(x.ndim))) if x.ndim else values
        result = totals.map_blocks(
            _reduced, reduction=reduction, rows=x.shape[0] if reduction == "batchmean" else None,
            loss_dtype=loss_dtype, drop_axis=0, dtype=loss_dtype, meta=meta(0, loss_dtype),
        )  # fmt: skip
    return (result, grad) if gradient else result


# ---- d) functions that run in a chunk --------------------------------------------------------


def _in_chunk(
    name: str,
    x: Array,
    *operands: Array,
    names: tuple[str, ...],
    short: tuple[str, ...],
    reduction: str,
    axis: int | None,
    gradient: bool,
    block_id: tuple[int, ...],
    **constants: Any,
) -> Any:
    """Return what `reduction` needs from a chunk, with the gradient if it is wanted.

    This is the losses, with extent 1 along the class axis, or an array of the two totals.
    """
    arguments: dict[str, Any] = dict(zip(names, operands, strict=True))
    if axis is not None:
        constants["axis"] = axis
        for operand in short:
            if operand in arguments:
                arguments[operand] = np.squeeze(arguments[operand], axis)
    if "scale" in arguments:
        arguments["upstream"] = float(arguments.pop("scale"))
    if reduction != "none":
        # The loss of all chunks is computed from their sums.
        reduction = "sum"
    loss = SPECIFICATIONS[name]
    # The totals have an axis more than the chunk.
    with one_thread(), naming(block_id[: x.ndim], loss.input):
        values, grad, totals = loss.evaluate(
            x, reduction=reduction, gradient=gradient, **arguments, **constants
        )
    if reduction == "none":
        made = np.asarray(values if axis is None else np.expand_dims(values, axis))
    else:
        made = np.array(totals).reshape((1,) * x.ndim + (2,))
    return (made, grad) if gradient else made


def _class_weights_in_chunk(
    target: Array,
    sample_weight: Array | None = None,
    *,
    weight: Array | None,
    ignore_index: int,
    classes: int,
    block_id: tuple[int, ...],
) -> Array:
    """Return the sum of the weights of a chunk of class indices, without reading the logits."""
    kept = np.asarray(target != ignore_index)
    wrong = kept & ((target < 0) | (target >= classes))
    if wrong.any():
        with naming(block_id, "target"):
            _arrays.wrong_index(target, int(np.flatnonzero(wrong)[0]), classes)
    weights = np.array(kept, np.float64)
    if weight is not None:
        weights[kept] = np.asarray(weight, np.float64)[target[kept]]
    if sample_weight is not None:
        weights *= np.asarray(sample_weight, np.float64)
        # An ignored sample has weight 0, even if its weight is infinite.
        weights[~kept] = 0.0
    return weights.sum(keepdims=True)


def _weights_in_chunk(
    target: Array,
    sample_weight: Array | None = None,
    *,
    ignore_index: int | None,
    axis: int | None,
) -> Array:
    """Return the sum of the weights of a chunk without class indices."""
    shape = tuple(1 if i == axis else n for i, n in enumerate(target.shape))
    weights = np.broadcast_to(1.0 if sample_weight is None else sample_weight, shape)
    if ignore_index is not None:
        weights = np.where(target == ignore_index, 0.0, weights)
    return np.asarray(weights, np.float64).sum(keepdims=True)


def _inverse(total: Any) -> Any:
    # If the weights add up to 0, the gradient is 0.
    return np.divide(1.0, total) if total != 0 else np.float64(0.0)


def _reduced(totals: Array, *, reduction: str, rows: int | None, loss_dtype: Any) -> Any:
    total, weight = totals.tolist()
    if rows is not None:
        weight = float(rows)
    return reduced(reduction, Totals(total, weight), None, np.dtype(loss_dtype), ())
