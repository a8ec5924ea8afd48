"""Rows of an array, handed out in order.

A `Source` knows its shape and dtype before the first row is read, and `read(count)` hands out the
next rows along its block axis, as a `Piece` that any thread can load. There are three kinds here:

- `FileSource`: an array that lies in a file as it would lie in memory. It is read at positions,
  never mapped: when a file shrinks meanwhile, a read comes back short, where touching a map would
  end the process.
- `StreamedSource` cuts an iterator of chunks to size.
- `ArraySource`: an array in memory.
"""

from __future__ import annotations

import io
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError, limits

Array = NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """Some rows of a source, which may be in its file still."""

    rows: int
    load: Callable[[], Array]
    """Get the rows. Any thread may call it; the memory may be used again for that thread's next
    piece."""


class Source(ABC):
    """Rows of one array of a file, handed out in order.

    ``shape`` and ``dtype`` are the whole array's; ``axis`` is the one that `read` walks along.
    """

    def __init__(self, label: str, shape: Sequence[int], dtype: np.dtype[Any], axis: int = 0):
        self.label = label
        self.shape = tuple(shape)
        self.dtype = dtype
        self.axis = axis
        self.unnamed = False
        """Whether its files hold one array each, without a name."""
        self.files: tuple[Path, ...] = ()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one position along the block axis."""
        return self.dtype.itemsize * math.prod(
            n for axis, n in enumerate(self.shape) if axis != self.axis
        )

    @property
    def least_rows(self) -> int:
        """How many rows are worth a read."""
        return 1

    @abstractmethod
    def read(self, count: int) -> Piece:
        """The next rows: at most ``count``, none only at the end."""

    def read_exactly(self, count: int) -> Piece:
        """The next ``count`` rows, joined if they come in pieces."""
        pieces = [self.read(count)]
        missing = count - pieces[0].rows
        while missing:
            piece = self.read(missing)
            if piece.rows == 0:
                raise InputError(f"{self.label} ends {missing} rows early")
            pieces.append(piece)
            missing -= piece.rows
        if len(pieces) == 1:
            return pieces[0]
        return Piece(count, lambda: np.concatenate([piece.load() for piece in pieces], self.axis))

    def read_all(self) -> Array:
        """The whole array."""
        return self.read_exactly(self.shape[self.axis]).load()

    def close(self) -> None:
        """Let go of the file, if one is held."""
        return


class ArraySource(Source):
    """Slices of an array in memory."""

    def __init__(self, label: str, array: Array, axis: int = 0):
        super().__init__(label, array.shape, array.dtype, axis)
        self._array = array
        self._position = 0

    def along(self, axis: int) -> ArraySource:
        """The same array, walked along another axis."""
        return ArraySource(self.label, self._array, axis)

    def reshaped(self, shape: tuple[int, ...]) -> ArraySource:
        """The same values in another shape."""
        return ArraySource(self.label, self._array.reshape(shape))

    def read(self, count: int) -> Piece:
        start = self._position
        stop = self._position = min(start + count, self.shape[self.axis])
        block = self._array[(slice(None),) * self.axis + (slice(start, stop),)]
        return Piece(stop - start, lambda: block)


class FileSource(Source):
    """Reads at positions of an array that lies in a file, in C or in Fortran order."""

    def __init__(
        self,
        label: str,
        file: io.BufferedReader,
        offset: int,
        dtype: np.dtype[Any],
        shape: Sequence[int],
        fortran_order: bool = False,
        axis: int = 0,
    ):
        super().__init__(label, shape, dtype, axis)
        self._file, self._offset, self._fortran = file, offset, fortran_order
        self._position = 0
        self._memory = threading.local()
        self._lock = threading.Lock()
        # The axes from the slowest to the fastest. Along the block axis, rows are `outer` stretches
        # of the file, each of `inner` bytes for a row.
        order = range(self.ndim)[::-1] if fortran_order else range(self.ndim)
        self._order = tuple(order)
        place = self._order.index(axis) if self.ndim else 0
        self._outer = math.prod(self.shape[i] for i in self._order[:place])
        self._inner = dtype.itemsize * math.prod(self.shape[i] for i in self._order[place + 1 :])
        if self._outer == 1 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), offset, 0, os.POSIX_FADV_SEQUENTIAL)

    def along(self, axis: int) -> FileSource:
        """The same array, walked along another axis."""
        return FileSource(
            self.label, self._file, self._offset, self.dtype, self.shape, self._fortran, axis
        )

    def reshaped(self, shape: tuple[int, ...]) -> FileSource:
        """The same values in another shape, which differs by axes of length 1 alone."""
        return FileSource(self.label, self._file, self._offset, self.dtype, shape, self._fortran)

    @property
    def least_rows(self) -> int:
        return 1 if self._outer == 1 else -(-limits.PAGE_BYTES // self._inner)

    def read(self, count: int) -> Piece:
        start = self._position
        stop = self._position = min(start + count, self.shape[self.axis])
        return Piece(stop - start, lambda: self._load(start, stop))

    def _load(self, start: int, stop: int) -> Array:
        lengths = [stop - start if i == self.axis else self.shape[i] for i in self._order]
        stretch = (stop - start) * self._inner
        data = self._take(self._outer * stretch)
        view = data.data
        step = self._inner * self.shape[self.axis]
        at = self._offset + start * self._inner
        for begin in range(0, len(view), stretch):
            self._fill(view[begin : begin + stretch], at)
            at += step
        block = data.view(self.dtype).reshape(lengths)
        return block if not self._fortran else block.transpose()

    def _take(self, size: int) -> NDArray[np.uint8]:
        """Memory that each thread has of its own, and uses again and again."""
        memory: NDArray[np.uint8] | None = getattr(self._memory, "bytes", None)
        if memory is None or memory.size < size:
            memory = self._memory.bytes = np.empty(size, np.uint8)
        return memory[:size]

    def _fill(self, view: memoryview, at: int) -> None:
        try:
            while view:
                if hasattr(os, "preadv"):
                    count = os.preadv(self._file.fileno(), [view], at)
                else:
                    with self._lock:
                        self._file.seek(at)
                        count = self._file.readinto(view)
                if count == 0:
                    raise InputError(f"{self.label} was cut off while it was read")
                view = view[count:]
                at += count
        except OSError as error:
            raise InputError(f"cannot read {self.label}: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()


class StreamedSource(Source):
    """Chunks of rows cut to the size that is asked for; only axis 0 can be walked."""

    def __init__(
        self,
        label: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        chunks: Iterator[Array],
        close: Callable[[], None],
    ):
        super().__init__(label, shape, dtype)
        self._chunks = chunks
        self._rest = np.empty((0, *self.shape[1:]), dtype)
        self._left = self.shape[0]
        self._close = close

    def read(self, count: int) -> Piece:
        while len(self._rest) == 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left -= len(chunk)
            if self._left < 0:
                raise InputError(f"{self.label} has more rows than the {self.shape[0]} it promises")
            self._rest = chunk
        # A zip file's member starts at any byte, and so may its items.
        block, self._rest = np.require(self._rest[:count], None, ["A"]), self._rest[count:]
        return Piece(len(block), lambda: block)

    def close(self) -> None:
        self._chunks = iter(())
        self._close()
