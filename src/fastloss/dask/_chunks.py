"""Dask arrays with matching chunks, and what every function needs inside a chunk.

Layout: a) arguments, b) in a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import dask.array as da
import numpy as np

from fastloss import _arrays, _threads
from fastloss._arrays import Array

DaskArray = Any  # dask.array.Array, which carries no types
Chunks = tuple[tuple[int, ...], ...]

# ---- a) arguments ----------------------------------------------------------------------------


def as_array(x: Any, name: str) -> Any:
    """Return a dask array as it is, and anything else as a NumPy array."""
    return x if isinstance(x, da.Array) else _arrays.as_array(x, name)


def first(x: Any, name: str, axis: int | None) -> DaskArray:
    """Return the array that gives the others its chunks: one chunk along the class axis."""
    if not isinstance(x, da.Array):
        one = {} if axis is None else {axis: -1}
        x = da.from_array(x, chunks=dict.fromkeys(range(x.ndim), "auto") | one)
    if axis is not None:
        one_class_chunk(x, axis, name)
    return x


def one_class_chunk(x: DaskArray, axis: int, name: str) -> None:
    """Raise unless `x` has one chunk along the class axis, of a known length."""
    if x.numblocks[axis] != 1:
        raise ValueError(
            f"{name} must have one chunk along the class axis {axis}, got chunks"
            f" {x.chunks[axis]}: call {name}.rechunk({{{axis}: -1}}) first"
        )
    if math.isnan(x.shape[axis]):
        raise ValueError(
            f"{name} must have a known number of classes: call {name}.compute_chunk_sizes() first"
        )


def without(axis: int | None, extents: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a shape or chunks without those of the class axis."""
    return extents if axis is None else extents[:axis] + extents[axis + 1 :]


def same_shape(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether shapes agree where both are known; dask has NaN for an unknown extent."""
    return len(a) == len(b) and all(
        m == n or math.isnan(m) or math.isnan(n) for m, n in zip(a, b, strict=True)
    )


def in_chunks(x: Any, chunks: Chunks) -> DaskArray:
    """Return a dask array as it is, and a NumPy array in these chunks."""
    return x if isinstance(x, da.Array) else da.from_array(x, chunks=chunks)


def like(value: Any, name: str, x: DaskArray, original: str, axis: int | None) -> DaskArray:
    """Return an array that must have the shape of `x`, whose name is `original`."""
    value = as_array(value, name)
    if not same_shape(value.shape, x.shape):
        raise ValueError(f"{name} must have the shape of {original}, {x.shape}, got {value.shape}")
    value = in_chunks(value, x.chunks)
    if axis is not None:
        one_class_chunk(value, axis, name)
    return value


def broadcasting(
    value: Any, name: str, shape: tuple[int, ...], chunks: Chunks, like: str
) -> DaskArray:
    """Return an operand that broadcasts to `shape`, as a dask array of as many dimensions."""
    value = as_array(value, name)
    missing = len(shape) - value.ndim
    if missing < 0 or not all(
        m == 1 or m == n or math.isnan(m) or math.isnan(n)
        for m, n in zip(value.shape, shape[missing:], strict=True)
    ):
        raise ValueError(f"{name} must broadcast to {like}, shape {shape}, got {value.shape}")
    if missing:
        value = value[(None,) * missing]
    if isinstance(value, da.Array):
        # Dask broadcasts an extent of 1 only if it is a single chunk, without empty chunks.
        return value.rechunk({i: -1 for i, n in enumerate(value.shape) if n == 1})
    return in_chunks(
        value, tuple((1,) if m == 1 else n for m, n in zip(value.shape, chunks, strict=True))
    )


def aligned(x: DaskArray, *operands: DaskArray) -> tuple[DaskArray, ...]:
    """Return the arrays with the same chunks along all axes that are not broadcast."""
    pairs = [(a, tuple(range(x.ndim - a.ndim, x.ndim))) for a in (x, *operands)]
    return tuple(da.unify_chunks(*(part for pair in pairs for part in pair))[1])


def expanded(x: DaskArray, axis: int) -> DaskArray:
    """Return the array with an additional class axis of extent 1."""
    return x[(slice(None),) * axis + (None,)]


def meta(ndim: int, dtype: Any) -> Array:
    """Return the empty array that tells dask the type of a result."""
    return np.empty((0,) * ndim, dtype)


# ---- b) in a chunk ---------------------------------------------------------------------------


def one_thread() -> AbstractContextManager[None]:
    """Use one thread, unless a number is set: other chunks run on the other threads."""
    return nullcontext() if _threads.chosen() else _threads.at_most(1)


@contextmanager
def naming(block_id: tuple[int, ...], name: str) -> Iterator[None]:
    """Say in which chunk of the array with this name an error was found."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise type(error)(f"in chunk {block_id} of the {name}: {error}") from None


def item(results: tuple[Any, ...], *, number: int) -> Any:
    """Return one of the results of a chunk."""
    return results[number]
