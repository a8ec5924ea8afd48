"""Saved logits in dask arrays: `score_samples`, `compare_logits` and `streaming_metrics`.

Layout: a) public functions, b) graphs, c) functions that run in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import ArrayLike

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
    one_thread,
    same_shape,
    without,
)
from fastloss.evaluation.compare import LogitsComparison
from fastloss.evaluation.compare import compare_logits as _compare_logits
from fastloss.evaluation.metrics import StreamingMetrics
from fastloss.evaluation.score import SampleScores
from fastloss.evaluation.score import score_samples as _score_samples

#: Chunks whose metrics are merged at a time.
TREE = 8


# ---- a) public functions ---------------------------------------------------------------------


def score_samples(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    axis: int | None = None,
) -> SampleScores:
    """Scores of the samples of dask arrays: `fastloss.score_samples`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, in any chunks along the sample axes and one chunk along the class axis.
    target : dask array or array_like
        Class indices, with the shape of the logits without the class axis, in any chunks.
    ignore_index, temperature, softcap, top_k, axis
        As `fastloss.score_samples` takes them.

    Returns
    -------
    SampleScores
        The named tuple that `fastloss.score_samples` returns, with dask arrays in the chunks of the
        logits.

    Raises
    ------
    TypeError, ValueError
        Immediately, if types, shapes, chunks or options are not valid.
    IndexError
        When the result is computed, if a class index is outside [0, C).  The message names the
        chunk.

    See Also
    --------
    fastloss.score_samples : the function over NumPy arrays.

    Notes
    -----
    All scores of a chunk come from one pass over its logits.  So compute those that you need in one
    call: ``dask.compute(scores.log_prob, scores.rank)``.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.0]], chunks=(1, 2))
    >>> scores = fastloss.dask.score_samples(logits, [1, 1])
    >>> log_prob, entropy = dask.compute(scores.log_prob, scores.entropy)
    >>> log_prob.round(4)
    array([-0.1269, -0.6931])
    """
    options: dict[str, Any] = {
        "ignore_index": ignore_index, "temperature": temperature, "softcap": softcap,
        "top_k": top_k,
    }  # fmt: skip
    return SampleScores(*_by_sample(_score_samples, logits, {"target": target}, options, axis))


def compare_logits(
    logits: DaskArray,
    other: DaskArray | ArrayLike,
    target: DaskArray | ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int | None = None,
) -> LogitsComparison:
    """Two models' logits in dask arrays: `fastloss.compare_logits`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : see `score_samples`
    other : dask array or array_like, shape of `logits`
        The other model's unnormalised scores, of any type and in any chunks along the sample axes.
    target : dask array or array_like, optional
        Class indices, with the shape of the logits without the class axis, in any chunks.
    ignore_index, temperature, axis
        As `fastloss.compare_logits` takes them.

    Returns
    -------
    LogitsComparison
        The named tuple that `fastloss.compare_logits` returns, with dask arrays in the chunks of
        the logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `score_samples` raises them.

    See Also
    --------
    fastloss.compare_logits : the function over NumPy arrays.

    Notes
    -----
    Compute the arrays that you need in one call: those of a chunk come from one pass.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.0]], chunks=(1, 2))
    >>> found = fastloss.dask.compare_logits(logits, [[1.0, 2.5], [2.0, 2.1]])
    >>> found.kl.compute().round(5)
    array([0.01488, 0.00125])
    """
    operands = {"other": other} if target is None else {"other": other, "target": target}
    options = {"ignore_index": ignore_index, "temperature": temperature}
    return LogitsComparison(*_by_sample(_compare_logits, logits, operands, options, axis))


def streaming_metrics(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    group: DaskArray | ArrayLike | None = None,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    top_k: int = 5,
    n_bins: int = 15,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int | None = None,
) -> Any:
    """Loss, perplexity, accuracy and calibration of dask arrays, as a whole or by group.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target : see `score_samples`
    group : dask array or array_like, optional
        The group of each sample, such as a document, a domain or a language: numbers or strings
        that broadcast to the samples.
    sample_weight : dask array or array_like, optional
        Weight of each sample; broadcasts to the samples.
    top_k, n_bins, ignore_index, temperature, softcap
        Options of `fastloss.StreamingMetrics`.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    dask.delayed.Delayed
        Computes to a `fastloss.StreamingMetrics`; with `group`, to a dictionary that has one for
        each group, sorted by group.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `score_samples` raises them.

    See Also
    --------
    fastloss.StreamingMetrics : the accumulator that this returns.

    Notes
    -----
    Each chunk takes one pass, and a worker sends a few kilobytes for each of its groups.  The
    metrics of the chunks are merged exactly, as a tree.  The results are therefore the same to the
    last bit for any chunks and any order in which workers finish.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.5], [0.0, 1.0]], chunks=(2, 2))
    >>> domains = ["code", "prose", "code"]
    >>> found = fastloss.dask.streaming_metrics(logits, [1, 0, 1], domains).compute()
    >>> for domain, metrics in found.items():
    ...     print(domain, metrics.samples, round(metrics.compute().loss, 4))
    code 2 0.2201
    prose 1 0.9741
    """
    options: dict[str, Any] = {
        "top_k": top_k, "n_bins": n_bins, "ignore_index": ignore_index,
        "temperature": temperature, "softcap": softcap,
    }  # fmt: skip
    x, axis = _logits(logits, axis)
    samples, chunks = without(axis, x.shape), without(axis, x.chunks)
    operands = {"target": _target(target, x, axis)}
    for name, value in (("group", group), ("sample_weight", sample_weight)):
        if value is not None:
            operands[name] = broadcasting(value, name, samples, chunks, "the samples")
    # A batch without samples raises every error that types and options can cause.
    StreamingMetrics(**options, axis=1).update(
        np.zeros((0, x.shape[axis]), x.dtype), np.zeros((0,), operands["target"].dtype)
    )
    x, *parts = aligned(x, *(expanded(value, axis) for value in operands.values()))
    made = da.map_blocks(
        _metrics_in_chunk, x, *parts, names=tuple(operands), axis=axis, options=options,
        dtype=object, meta=meta(x.ndim, object),
    )  # fmt: skip
    parts = list(made.to_delayed().ravel())
    merge = dask.delayed(_merged, pure=True)
    while len(parts) > 1:
        parts = [merge(parts[i : i + TREE]) for i in range(0, len(parts), TREE)]
    return dask.delayed(_ordered, pure=True)(parts[0], group is not None)


# ---- b) graphs -------------------------------------------------------------------------------


def _logits(x: Any, axis: Any) -> tuple[DaskArray, int]:
    """Return logits as a dask array with one chunk along the class axis, and that axis."""
    x = as_array(x, "logits")
    axis = _arrays.class_axis(axis, x.ndim, "logits")
    return first(x, "logits", axis), axis


def _target(t: Any, x: DaskArray, axis: int) -> DaskArray:
    """Return class indices, one per sample, as a dask array."""
    t, samples = as_array(t, "target"), without(axis, x.shape)
    if not same_shape(t.shape, samples):
        _arrays.wrong_target(t, x, samples, axis, "logits", False)
    if t.dtype.kind == "f":
        # The check by a batch without samples would accept this type as class indices.
        _arrays.no_indices(t.dtype)
    return in_chunks(t, without(axis, x.chunks))


def _by_sample(
    function: Callable[..., Any],
    logits: Any,
    operands: dict[str, Any],
    options: dict[str, Any],
    axis: Any,
) -> list[Any]:
    """Return the arrays of the named tuple that a function of logits returns for each chunk."""
    x, axis = _logits(logits, axis)
    arrays: dict[str, DaskArray] = {}
    for name, value in operands.items():
        if name == "target":
            arrays[name] = expanded(_target(value, x, axis), axis)
        else:
            arrays[name] = like(value, name, x, "logits", axis)
    # A call without samples raises every error that types and options can cause, and shows the
    # types of the results.
    classes = x.shape[axis]
    empty = function(
        np.zeros((0, classes), x.dtype),
        **{
            name: np.zeros((0,) if name == "target" else (0, classes), value.dtype)
            for name, value in arrays.items()
        },
        **options,
        axis=1,
    )
    x, *parts = aligned(x, *arrays.values())
    made = da.map_blocks(
        _scores_in_chunk, x, *parts, function=function, names=tuple(arrays), axis=axis,
        options=options, dtype=object, meta=meta(x.ndim, object),
    )  # fmt: skip
    found: list[Any] = []
    for number, part in enumerate(empty):
        if part is None:
            found.append(None)
            continue
        # The class axis is replaced by the number of values per sample: one, or top_k.
        each = 1 if part.ndim == 1 else part.shape[1]
        lazy = made.map_blocks(
            item, number=number, dtype=part.dtype, meta=meta(x.ndim, part.dtype),
            chunks=tuple((each,) if i == axis else c for i, c in enumerate(x.chunks)),
        )  # fmt: skip
        found.append(lazy.squeeze(axis) if part.ndim == 1 else da.moveaxis(lazy, axis, -1))
    return found


# ---- c) functions that run in a chunk --------------------------------------------------------


def _scores_in_chunk(
    x: Array,
    *operands: Array,
    function: Callable[..., Any],
    names: tuple[str, ...],
    axis: int,
    options: dict[str, Any],
    block_id: tuple[int, ...],
) -> tuple[Array | None, ...]:
    """Return what a function makes of a chunk, each with an axis in the place of the classes."""
    arguments = dict(zip(names, operands, strict=True))
    if "target" in arguments:
        arguments["target"] = np.squeeze(arguments["target"], axis)
    samples = x.ndim - 1
    with one_thread(), naming(block_id, "logits"):
        found = function(x, **arguments, **options, axis=axis)
    return tuple(
        None
        if part is None
        else np.expand_dims(part, axis)
        if part.ndim == samples
        else np.moveaxis(part, -1, axis)
        for part in found
    )


def _metrics_in_chunk(
    x: Array,
    *operands: Array,
    names: tuple[str, ...],
    axis: int,
    options: dict[str, Any],
    block_id: tuple[int, ...],
) -> dict[Any, StreamingMetrics]:
    """Return the metrics of each group of a chunk; of all samples where there are no groups."""
    arguments = {name: np.squeeze(value, axis) for name, value in zip(names, operands, strict=True)}
    target, weight = arguments["target"], arguments.get("sample_weight")
    with one_thread(), naming(block_id, "logits"):
        if "group" not in arguments:
            return {None: StreamingMetrics(**options, axis=axis).update(x, target, weight)}
        if target.size == 0:
            return {}
        groups, index = np.unique(
            np.broadcast_to(arguments["group"], target.shape), return_inverse=True
        )
        # Samples of a group side by side: one copy of the chunk.
        order = np.argsort(index.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(index.ravel()))
        rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])[order]
        target = target.ravel()[order]
        if weight is not None:
            weight = np.broadcast_to(weight, np.shape(arguments["target"])).ravel()[order]
        found, start = {}, 0
        for name, end in zip(groups.tolist(), ends.tolist(), strict=True):
            part = slice(start, end)
            found[name] = StreamingMetrics(**options, axis=1).update(
                rows[part], target[part], None if weight is None else weight[part]
            )
            start = end
        return found


def _merged(parts: list[dict[Any, StreamingMetrics]]) -> dict[Any, StreamingMetrics]:
    """Return the metrics of several chunks, which stay as they are: dask may use them again."""
    found: dict[Any, StreamingMetrics] = {}
    for part in parts:
        for name, metrics in part.items():
            if name in found:
                found[name].merge(metrics)
            else:
                found[name] = deepcopy(metrics)
    return found


def _ordered(found: dict[Any, StreamingMetrics], grouped: bool) -> Any:
    return dict(sorted(found.items())) if grouped else found[None]
