"""Losses over dask arrays: lazy, chunk by chunk, on one machine or a cluster.

`cross_entropy`, `nll_loss` and `binary_cross_entropy_with_logits`, each with `_value_and_grad`,
take dask arrays where fastloss itself takes NumPy arrays, and return dask arrays.  Every chunk is
one fused pass of the NumPy function.  A mean needs two numbers of a chunk, the sum of its losses
and the sum of its weights; those are added up as a tree, and divided once.  The denominator depends
on target and weights alone, so a gradient of the mean knows it before the logits are touched.

Layout: a) the public functions, b) arguments: dask arrays whose chunks fit, c) graphs, d) what runs
in a chunk.

Arrays that are no dask arrays are cut into chunks like the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss.losses import categorical
from fastloss.losses._elementwise import Kind
from fastloss.losses._elementwise import evaluate as _elementwise
from fastloss.losses._reduction import Totals, reduced
from fastloss.losses.categorical import Reduction

try:
    import dask.array as da
except ImportError as error:
    raise ImportError(
        "fastloss.dask needs dask, which is not installed: pip install 'fastloss[dask]'"
    ) from error

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "nll_loss",
    "nll_loss_value_and_grad",
]

DaskArray = Any  # dask.array.Array, which carries no types


# ---- a) the public functions -----------------------------------------------------------------


def cross_entropy(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    axis: int | None = None,
) -> DaskArray:
    """Cross-entropy of dask arrays: `fastloss.cross_entropy`, lazily and chunk by chunk.

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores.  Any chunks along the sample axes, one along the class axis.
    target : dask array or array_like
        Class indices, of the logits' shape without the class axis, or class probabilities of the
        logits' shape.  Chunks that differ from the logits' are unified with them.
    weight : dask array or array_like, shape (C,), optional
        Weight of each class; every chunk gets the whole of it.
    sample_weight : dask array or array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights over all chunks.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : dask array
        0-d, or for "none" of the logits' shape without the class axis, in their chunks; float32,
        or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError
        At once, for what types, shapes, chunks and options tell.
    IndexError
        On computing, for a class index outside [0, C); says which chunk held it.

    See Also
    --------
    fastloss.cross_entropy : formula and options.

    Notes
    -----
    Dask runs chunks side by side, so a chunk uses one thread unless `fastloss.set_num_threads` or
    ``OMP_NUM_THREADS`` says otherwise on the worker.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0]], chunks=(2, 2))
    >>> loss = fastloss.dask.cross_entropy(logits, [0, 1, 1], weight=[1, 2])
    >>> print(loss.compute().round(4))
    0.3642
    """
    return _over_classes(
        logits, target, weight, sample_weight, ignore_index, reduction, label_smoothing, axis
    )


def cross_entropy_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Cross-entropy of dask arrays and the gradient of its sum, in one pass over each chunk.

    Parameters
    ----------
    logits, target, weight, sample_weight, ignore_index, reduction, label_smoothing, axis
        As `cross_entropy` takes them.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.
    grad : dask array
        Gradient with respect to the logits, of their shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    Notes
    -----
    Compute both in one call, ``dask.compute(loss, grad)``: computed one after the other, each makes
    the whole pass.  For "mean" a pass over targets and weights alone comes first, since every
    chunk's gradient is divided by the sum of the weights of all.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0]], chunks=(1, 2))
    >>> loss, grad = dask.compute(*fastloss.dask.cross_entropy_value_and_grad(logits, [0, 1]))
    >>> print(loss.round(4))
    0.7201
    >>> grad.round(4)
    array([[-0.3655,  0.3655],
           [ 0.0596, -0.0596]])
    """
    return _over_classes(
        logits, target, weight, sample_weight, ignore_index, reduction, label_smoothing, axis,
        gradient=True,
    )  # fmt: skip


def nll_loss(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> DaskArray:
    """Negative log-likelihood of dask arrays: `fastloss.nll_loss`, lazily and chunk by chunk.

    Parameters
    ----------
    log_probs : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities.  Any chunks along the sample axes, one along the class axis.
    target : dask array or array_like
        Class indices, of the shape of `log_probs` without the class axis, in any chunks.
    weight, sample_weight, ignore_index, reduction, axis
        As `cross_entropy` takes them.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.nll_loss : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
    >>> print(fastloss.dask.nll_loss(log_probs, [0, 1]).compute())
    1.45
    """
    return _over_classes(
        log_probs, target, weight, sample_weight, ignore_index, reduction, 0.0, axis,
        log_probs=True,
    )  # fmt: skip


def nll_loss_value_and_grad(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Negative log-likelihood of dask arrays and the gradient of its sum.

    Parameters
    ----------
    log_probs, target, weight, sample_weight, ignore_index, reduction, axis
        As `nll_loss` takes them.

    Returns
    -------
    loss : dask array
        As `nll_loss` returns it.
    grad : dask array
        Gradient with respect to `log_probs`, of its shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    Notes
    -----
    See `cross_entropy_value_and_grad` on computing both at once.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
    >>> loss, grad = fastloss.dask.nll_loss_value_and_grad(log_probs, [0, 1])
    >>> grad.compute()
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """
    return _over_classes(
        log_probs, target, weight, sample_weight, ignore_index, reduction, 0.0, axis,
        log_probs=True, gradient=True,
    )  # fmt: skip


def binary_cross_entropy_with_logits(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> DaskArray:
    """Binary cross-entropy on logits in dask arrays, lazily and chunk by chunk.

    Parameters
    ----------
    logits : dask array, any shape and chunks
        Unnormalised scores.
    target : dask array or array_like, shape of `logits`
        Targets, usually in [0, 1].  Chunks that differ from the logits' are unified with them.
    weight : dask array or array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : dask array or array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    loss : dask array
        0-d, or for "none" of the logits' shape, in their chunks; float32, or float64 for float64
        logits.

    Raises
    ------
    TypeError, ValueError
        At once, for what types, shapes and options tell.

    See Also
    --------
    fastloss.binary_cross_entropy_with_logits : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1, 2], [2, 2], [3, 4], [4, 5]], chunks=1)
    >>> target = [[1, 0], [1, 0], [0, 1], [0, 1]]
    >>> loss = fastloss.dask.binary_cross_entropy_with_logits(logits, target, pos_weight=3)
    >>> print(loss.compute().round(4))
    1.5895
    """
    return _with_logits(logits, target, weight, pos_weight, reduction, gradient=False)


def binary_cross_entropy_with_logits_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]:
    """Binary cross-entropy on logits in dask arrays, and the gradient of its sum.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction
        As `binary_cross_entropy_with_logits` takes them.

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy_with_logits` returns it.
    grad : dask array
        Gradient with respect to the logits, of their shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits` raises them.

    Notes
    -----
    See `cross_entropy_value_and_grad` on computing both at once.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([2.0, -1.0], chunks=1)
    >>> both = fastloss.dask.binary_cross_entropy_with_logits_value_and_grad(logits, [1, 1])
    >>> both[1].compute().round(4)
    array([-0.0596, -0.3655])
    """
    return _with_logits(logits, target, weight, pos_weight, reduction, gradient=True)


# ---- b) arguments ----------------------------------------------------------------------------


def _over_classes(
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    axis: Any,
    *,
    log_probs: bool = False,
    gradient: bool = False,
) -> Any:
    """Check the arguments of a loss over classes and build its graph."""
    name = "log_probs" if log_probs else "logits"
    if not isinstance(logits, da.Array):
        logits = np.asarray(logits)
    axis = _arrays.class_axis(axis, logits.ndim, name)
    if not isinstance(logits, da.Array):
        logits = da.from_array(
            logits, chunks=dict.fromkeys(range(logits.ndim), "auto") | {axis: -1}
        )
    _one_class_chunk(logits, axis, name)
    classes = logits.shape[axis]
    samples = logits.shape[:axis] + logits.shape[axis + 1 :]
    sample_chunks = logits.chunks[:axis] + logits.chunks[axis + 1 :]
    if not isinstance(target, da.Array):
        target = np.asarray(target)
    indices = target.dtype.kind in "iu"
    if not _same_shape(target.shape, samples if indices else logits.shape):
        _arrays._wrong_target(target, logits, samples, axis, name, not log_probs)
    target = _in_chunks(target, sample_chunks if indices else logits.chunks)
    if not indices:
        _one_class_chunk(target, axis, "target")
    if sample_weight is not None:
        sample_weight = _broadcasting(
            sample_weight, "sample_weight", samples, sample_chunks, "the samples"
        )
    if weight is not None and not isinstance(weight, da.Array):
        weight = np.asarray(weight)
    chunk = partial(
        _categorical_chunk,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        log_probs=log_probs,
    )
    # Everything that types and options tell is told by a call without samples.
    chunk(
        np.empty((0, classes), logits.dtype),
        np.empty((0,) if indices else (0, classes), target.dtype),
        sample_weight=None if sample_weight is None else np.empty((), sample_weight.dtype),
        weight=None if weight is None else np.empty(weight.shape, weight.dtype),
        reduction=reduction,
        axis=1,
        gradient=False,
    )
    operands = {"target": _expanded(target, axis) if indices else target}
    if sample_weight is not None:
        missing = len(samples) - sample_weight.ndim
        sample_weight = sample_weight.reshape((1,) * missing + sample_weight.shape)
        operands["sample_weight"] = _expanded(sample_weight, axis)
    scale = None
    if gradient and reduction == "mean":
        if indices:
            scale = _inverse_of_sum(
                _weights_in_chunk, target, sample_weight,
                weight=weight, ignore_index=ignore_index, classes=classes,
            )  # fmt: skip
        else:
            scale = _inverse_of_weights(target, operands.get("sample_weight"), axis)
    chunk = partial(chunk, axis=axis)
    return _graph(chunk, logits, operands, {"weight": weight}, scale, reduction, axis, gradient)


def _with_logits(
    logits: Any, target: Any, weight: Any, pos_weight: Any, reduction: Any, *, gradient: bool
) -> Any:
    """Check the arguments of binary cross-entropy on logits and build its graph."""
    logits = da.asarray(logits)
    if not isinstance(target, da.Array):
        target = np.asarray(target)
    if not _same_shape(target.shape, logits.shape):
        raise ValueError(
            f"target must have the shape of logits, {logits.shape}, got {target.shape}"
        )
    operands = {"target": _in_chunks(target, logits.chunks)}
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is not None:
            operands[name] = _broadcasting(value, name, logits.shape, logits.chunks, "logits")
    _binary_chunk(
        np.empty(0, logits.dtype),
        reduction=reduction,
        gradient=False,
        **{
            name: np.empty(0 if name == "target" else (), value.dtype)
            for name, value in operands.items()
        },
    )
    scale = None
    if gradient and reduction == "mean":
        scale = _inverse_of_weights(operands["target"], None, None)
    return _graph(_binary_chunk, logits, operands, {}, scale, reduction, None, gradient)


def _one_class_chunk(x: DaskArray, axis: int, name: str) -> None:
    if x.numblocks[axis] != 1:
        raise ValueError(
            f"{name} must have one chunk along the class axis {axis}, got chunks"
            f" {x.chunks[axis]}: call {name}.rechunk({{{axis}: -1}}) first"
        )
    if math.isnan(x.shape[axis]):
        raise ValueError(
            f"{name} must have a known number of classes: call {name}.compute_chunk_sizes() first"
        )


def _same_shape(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether shapes agree where both are known; dask writes NaN for an unknown extent."""
    return len(a) == len(b) and all(
        m == n or math.isnan(m) or math.isnan(n) for m, n in zip(a, b, strict=True)
    )


def _in_chunks(x: Any, chunks: tuple[tuple[int, ...], ...]) -> DaskArray:
    return x if isinstance(x, da.Array) else da.from_array(x, chunks=chunks)


def _broadcasting(
    value: Any,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[tuple[int, ...], ...],
    like: str,
) -> DaskArray:
    """Return an operand that broadcasts to `shape`, as a dask array."""
    if not isinstance(value, da.Array):
        value = np.asarray(value)
    missing = len(shape) - value.ndim
    if missing < 0 or not all(
        m == 1 or m == n or math.isnan(m) or math.isnan(n)
        for m, n in zip(value.shape, shape[missing:], strict=True)
    ):
        raise ValueError(f"{name} must broadcast to {like}, shape {shape}, got {value.shape}")
    if isinstance(value, da.Array):
        # Dask repeats an extent of 1 only where it is one chunk, without empty ones beside it.
        return value.rechunk({i: -1 for i, n in enumerate(value.shape) if n == 1})
    return _in_chunks(
        value,
        tuple((1,) if m == 1 else n for m, n in zip(value.shape, chunks[missing:], strict=True)),
    )


def _aligned(x: DaskArray, *operands: DaskArray) -> tuple[DaskArray, ...]:
    """Return the arrays with the same chunks, where the operands do not just repeat."""
    pairs = [(a, tuple(range(x.ndim - a.ndim, x.ndim))) for a in (x, *operands)]
    return tuple(da.unify_chunks(*(part for pair in pairs for part in pair))[1])


def _expanded(x: DaskArray, axis: int) -> DaskArray:
    """Return the array with the class axis that it lacks, of extent 1."""
    return x[(slice(None),) * axis + (None,)]


# ---- c) graphs -------------------------------------------------------------------------------


def _meta(ndim: int, dtype: Any) -> Array:
    return np.empty((0,) * ndim, dtype)


def _inverse_of_weights(
    target: DaskArray, sample_weight: DaskArray | None, axis: int | None
) -> DaskArray | float:
    """Return 1 / Σ of the sample weights; without weights, 1 / the number of samples."""
    count = math.prod(n for i, n in enumerate(target.shape) if i != axis)
    if sample_weight is None and not math.isnan(count):
        return 1.0 / count if count else 0.0
    return _inverse_of_sum(_sample_weights_in_chunk, target, sample_weight, axis=axis)


def _inverse_of_sum(
    chunk: Callable[..., Array], target: DaskArray, sample_weight: DaskArray | None, **options: Any
) -> DaskArray:
    """Return 1 / Σ of what `chunk` returns for each chunk of the target."""
    shares = da.map_blocks(
        chunk, *_aligned(target, *([] if sample_weight is None else [sample_weight])),
        chunks=(1,) * target.ndim, dtype=np.float64, meta=_meta(target.ndim, np.float64), **options,
    )  # fmt: skip
    return shares.sum().map_blocks(_inverse, dtype=np.float64, meta=_meta(0, np.float64))


def _graph(
    chunk: Callable[..., Any],
    x: DaskArray,
    operands: dict[str, DaskArray],
    constants: dict[str, Any],
    scale: Any,
    reduction: str,
    axis: int | None,
    gradient: bool,
) -> Any:
    """Build the graph of a loss, and of its gradient.

    Parameters
    ----------
    chunk : function
        What runs in a chunk of the logits, see d).
    x : dask array
        The logits.
    operands : dict of dask arrays
        Named arguments of `chunk` that are cut into chunks; they have the logits' shape or
        broadcast to it.
    constants : dict
        Named arguments of `chunk` that every chunk gets whole.
    scale : float, 0-d dask array or None
        What each chunk's gradient is multiplied by.
    reduction : str
        Of the whole loss.
    axis : int or None
        Axis of the logits that the losses lack.
    gradient : bool
        Whether it is wanted.
    """
    grad_dtype = _arrays.floating(_meta(1, x.dtype), "logits").dtype
    storage = _arrays.STORAGE[grad_dtype]
    none = reduction == "none"
    if scale is not None:
        operands = operands | {"scale": da.asarray(scale)}
    x, *aligned = _aligned(x, *operands.values())
    # One task makes both the losses and the gradient of a chunk, so its array holds pairs.
    losses_meta = _meta(x.ndim, storage.loss) if none else _meta(x.ndim + 1, np.float64)
    if none:
        layout = {"chunks": tuple((1,) if i == axis else c for i, c in enumerate(x.chunks))}
    else:
        layout = {"chunks": (1,) * x.ndim + (2,), "new_axis": x.ndim}
    made = da.map_blocks(
        partial(_in_chunk, chunk),
        x,
        *aligned,
        names=tuple(operands),
        reduction=reduction,
        axis=axis,
        gradient=gradient,
        dtype=grad_dtype if gradient else losses_meta.dtype,
        meta=_meta(x.ndim, grad_dtype) if gradient else losses_meta,
        **({} if gradient else layout),
        **constants,
    )
    grad = None
    losses = made
    if gradient:
        grad = made.map_blocks(_item, number=1, dtype=grad_dtype, meta=_meta(x.ndim, grad_dtype))
        losses = made.map_blocks(
            _item, number=0, dtype=losses_meta.dtype, meta=losses_meta, **layout
        )
    if none:
        loss = losses if axis is None else losses.squeeze(axis)
    else:
        totals = losses.sum(axis=tuple(range(x.ndim))) if x.ndim else losses
        loss = totals.map_blocks(
            _reduced, reduction=reduction, loss_dtype=storage.loss, drop_axis=0,
            dtype=storage.loss, meta=_meta(0, storage.loss),
        )  # fmt: skip
    return (loss, grad) if gradient else loss


# ---- d) what runs in a chunk -----------------------------------------------------------------


def _one_thread() -> AbstractContextManager[None]:
    """Use one thread, unless this process was told how many: the other chunks use the others."""
    return nullcontext() if _threads.chosen() else _threads.at_most(1)


def _in_chunk(
    chunk: Callable[..., tuple[Any, Any, Totals]],
    x: Array,
    *operands: Array,
    names: tuple[str, ...],
    reduction: str,
    axis: int | None,
    gradient: bool,
    block_id: tuple[int, ...],
    **constants: Any,
) -> Any:
    """Return what `reduction` needs of a chunk, and where it is wanted its gradient with it.

    That is the losses, with extent 1 on the class axis, or an array of the two totals.
    """
    arguments = dict(zip(names, operands, strict=True))
    for name in ("target", "sample_weight"):
        if name in arguments and axis is not None and _lacks_classes(name, arguments[name]):
            arguments[name] = np.squeeze(arguments[name], axis)
    upstream = {}
    if "scale" in arguments:
        upstream["upstream"] = float(arguments.pop("scale"))
    if reduction == "mean":
        reduction = "sum"
    try:
        with _one_thread():
            loss, grad, totals = chunk(
                x, reduction=reduction, gradient=gradient, **arguments, **constants, **upstream
            )
    except IndexError as error:
        raise IndexError(f"in chunk {block_id} of the logits: {error}") from None
    if reduction == "none":
        losses = np.asarray(loss if axis is None else np.expand_dims(loss, axis))
    else:
        losses = np.array(totals).reshape((1,) * x.ndim + (2,))
    return (losses, grad) if gradient else losses


def _lacks_classes(name: str, operand: Array) -> bool:
    return name == "sample_weight" or operand.dtype.kind in "iu"


def _categorical_chunk(
    x: Array,
    target: Array,
    *,
    sample_weight: Array | None = None,
    weight: Array | None = None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    axis: int,
    **options: Any,
) -> tuple[Any, Any, Totals]:
    return categorical.evaluate(
        x, target, weight, sample_weight, ignore_index, reduction, label_smoothing, axis, **options
    )


def _binary_chunk(x: Array, target: Array, *, reduction: str, **options: Any) -> Any:
    return _elementwise(Kind.BCE_WITH_LOGITS, x, target, reduction, **options)


def _weights_in_chunk(
    target: Array,
    sample_weight: Array | None = None,
    *,
    weight: Array | None,
    ignore_index: int,
    classes: int,
    block_id: tuple[int, ...],
) -> Array:
    """Return the denominator's share of a chunk of class indices, without its logits."""
    kept = np.asarray(target != ignore_index)
    wrong = kept & ((target < 0) | (target >= classes))
    if wrong.any():
        try:
            _arrays.wrong_index(target, int(np.flatnonzero(wrong)[0]), classes)
        except IndexError as error:
            raise IndexError(f"in chunk {block_id} of the target: {error}") from None
    weights = np.array(kept, np.float64)
    if weight is not None:
        weights[kept] = np.asarray(weight, np.float64)[target[kept]]
    if sample_weight is not None:
        weights *= np.asarray(sample_weight, np.float64)
        # An ignored sample weighs nothing, whatever its weight: 0 times infinity included.
        weights[~kept] = 0.0
    return weights.sum(keepdims=True)


def _sample_weights_in_chunk(
    target: Array, sample_weight: Array | None = None, *, axis: int | None
) -> Array:
    """Return the denominator's share of a chunk whose target does not matter to it."""
    shape = tuple(1 if i == axis else n for i, n in enumerate(target.shape))
    weights = np.broadcast_to(1.0 if sample_weight is None else sample_weight, shape)
    return weights.sum(dtype=np.float64, keepdims=True)


def _inverse(total: Any) -> Any:
    # Where the weights sum to 0, the gradient is 0.
    return np.divide(1.0, total) if total != 0 else np.float64(0.0)


def _item(pair: tuple[Any, Any], *, number: int) -> Any:
    return pair[number]


def _reduced(totals: Array, *, reduction: str, loss_dtype: Any) -> Any:
    return reduced(reduction, Totals(*totals.tolist()), None, np.dtype(loss_dtype), ())
