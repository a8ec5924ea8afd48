"""Files as sources of rows, without ever holding a whole file in memory.

A `Source` knows its shape and dtype before the first row is read, and `read(count)` hands out the
next rows along its block axis. Two kinds suffice:

- `MappedSource` slices an array: `.npy`, `.safetensors` and members that an `.npz` stores
  uncompressed are mapped into memory. Rows that follow each other in the file may be read into a
  buffer that stays in the processor's cache, which takes half the time of the map's page faults.
- `StreamedSource` cuts an iterator of chunks to size: compressed `.npz` members, Parquet, Arrow
  IPC.

`open_source` looks at a file's first bytes, not at its name, to choose the reader.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
import threading
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError

Array = NDArray[Any]

# What is read of a compressed or columnar file at a time; mapped files are sliced as the scorer
# asks.
CHUNK_BYTES = 8 << 20


# What the parsers of NumPy, zipfile, json and pyarrow raise where bytes make no sense.
_DAMAGE = (
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class Buffer(threading.local):
    """Memory that each thread has of its own, and uses again and again."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """So many bytes, with whatever was in them."""
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]


class Source(ABC):
    """Rows of one array of a file, handed out in order.

    ``shape`` and ``dtype`` are the whole array's; ``axis`` is the one that `read` walks along.
    """

    def __init__(self, label: str, shape: Sequence[int], dtype: np.dtype[Any], axis: int = 0):
        self.label = label
        self.shape = tuple(shape)
        self.dtype = dtype
        self.axis = axis

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one position along the block axis."""
        return self.dtype.itemsize * math.prod(
            n for axis, n in enumerate(self.shape) if axis != self.axis
        )

    @abstractmethod
    def read(self, count: int) -> Array:
        """The next rows: at most ``count``, none only at the end."""

    def read_exactly(self, count: int) -> Array:
        """The next ``count`` rows, joined if they come in pieces."""
        pieces = [self.read(count)]
        missing = count - pieces[0].shape[self.axis]
        while missing:
            piece = self.read(missing)
            if piece.shape[self.axis] == 0:
                raise InputError(f"{self.label} ends {missing} rows early")
            pieces.append(piece)
            missing -= piece.shape[self.axis]
        return _aligned(pieces[0]) if len(pieces) == 1 else np.concatenate(pieces, self.axis)

    def load(self, block: Array, first_row: int, buffer: Buffer) -> Array:
        """What `read` gave out, ready to be worked on; safe to call from several threads."""
        return block

    def release(self, rows: int) -> None:
        """Forget the first ``rows`` rows, which are done with, where that frees something."""
        return

    def close(self) -> None:
        """Let go of the file, if one is held."""
        return


class MappedSource(Source):
    """Slices of an array that lies in memory or is mapped into it.

    ``path`` and ``offset`` say which file is mapped, and where in it the array starts.
    """

    def __init__(
        self, label: str, array: Array, axis: int = 0, path: Path | None = None, offset: int = 0
    ):
        super().__init__(label, array.shape, array.dtype, axis)
        self._array = array
        self._path, self._offset = path, offset
        self._position = 0
        self._released = 0
        # Rows that lie one behind the other are read once, in order: the system may read ahead, and
        # the pages that are done with can go.
        in_order = axis == 0 and array.flags.c_contiguous
        self._map = _memory_map_of(array) if in_order else None
        self._file: IO[bytes] | None = None
        if self._map is not None:
            self._start = _address(array) - _address(np.frombuffer(self._map, np.uint8))
            _advise(self._map, "MADV_SEQUENTIAL", 0, len(self._map))
            if path is not None and hasattr(os, "preadv"):
                self._file = path.open("rb", buffering=0)

    def along(self, axis: int) -> MappedSource:
        """The same array, walked along another axis."""
        return MappedSource(self.label, self._array, axis, self._path, self._offset)

    def reshaped(self, shape: tuple[int, ...]) -> MappedSource:
        """The same values in another shape."""
        return MappedSource(self.label, self._array.reshape(shape), 0, self._path, self._offset)

    def read(self, count: int) -> Array:
        start = self._position
        stop = min(start + count, self.shape[self.axis])
        self._position = stop
        return self._array[(slice(None),) * self.axis + (slice(start, stop),)]

    def load(self, block: Array, first_row: int, buffer: Buffer) -> Array:
        # A row of any size can be mapped, but not held.
        if self._file is None or block.nbytes > 4 * CHUNK_BYTES:
            return _aligned(block)
        data = buffer.take(block.nbytes)
        done, at = 0, self._offset + first_row * self.row_bytes
        while done < block.nbytes:
            count = os.preadv(self._file.fileno(), [data[done:].data], at + done)
            if count == 0:
                raise InputError(f"{self.label} was cut off while it was read")
            done += count
        return data.view(block.dtype).reshape(block.shape)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def release(self, rows: int) -> None:
        """Drop the pages of the first rows from this process; the page cache keeps them."""
        if self._map is None:
            return
        done = self._start + rows * self.row_bytes
        done -= done % mmap.PAGESIZE
        if done > self._released:
            _advise(self._map, "MADV_DONTNEED", self._released, done - self._released)
            self._released = done


class StreamedSource(Source):
    """Chunks of rows cut to the size that is asked for; only axis 0 can be walked."""

    def __init__(
        self,
        label: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        chunks: Iterator[Array],
        close: Callable[[], None] = lambda: None,
    ):
        super().__init__(label, shape, dtype)
        self._chunks = chunks
        self._rest = np.empty((0, *self.shape[1:]), dtype)
        self._close = close

    def read(self, count: int) -> Array:
        while len(self._rest) == 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest = chunk
        block, self._rest = self._rest[:count], self._rest[count:]
        return block

    def close(self) -> None:
        self._chunks = iter(())
        self._close()


def _aligned(array: Array) -> Array:
    """The array, or a copy if its items aren't aligned: a zip file's member starts at any byte."""
    return np.require(array, requirements=["ALIGNED"])


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _memory_map_of(array: Array) -> mmap.mmap | None:
    """The map that an array's memory belongs to, or None."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _advise(map_: mmap.mmap, advice: str, start: int, length: int) -> None:
    """Tell the system how pages are used, where it takes such advice."""
    if hasattr(mmap, advice) and length > 0:
        with contextlib.suppress(OSError):
            map_.madvise(getattr(mmap, advice), start, length)


# Opening ------------------------------------------------------------------------------------------


@dataclass
class Request:
    """Which array of a file is wanted: its name, or the names to try where none was given."""

    what: str
    """"logits", "targets" …: for messages."""
    option: str
    """The option that names it."""
    name: str | None
    usual: tuple[str, ...]

    def choose(self, path: Path, names: Sequence[str]) -> str:
        """The name to read, out of those that the file has."""
        if self.name is not None:
            if self.name in names:
                return self.name
            raise InputError(f"{path} has no {self.name!r}; it has {_listing(names)}")
        found = [name for name in self.usual if name in names]
        if found:
            return found[0]
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"{path} has {_listing(names)}: say with {self.option} which of them is the {self.what}"
        )


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def open_source(path: Path, request: Request) -> Source:
    """Open one array of a file.

    Raises
    ------
    InputError
        If the file can't be read, is of no known kind, or has no such array.
    ImportError
        If its kind needs an extra that is not installed.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a directory, expected a file")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    for matches, reader in _KINDS:
        if matches(head):
            return reader(path, request)
    raise InputError(
        f"{path} is {'empty' if not head else 'of no known kind'}: expected .npy, .npz, "
        ".safetensors, Parquet or Arrow IPC"
    )


def is_container(path: Path) -> bool:
    """Whether a file can hold both logits and targets: any kind but `.npy`."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return not file.read(6).startswith(b"\x93NUMPY")
    return False


# NumPy --------------------------------------------------------------------------------------------


def _open_npy(path: Path, request: Request) -> Source:
    if request.name is not None:
        raise InputError(f"{path} is a .npy, which has no names: leave {request.option} out")
    with path.open("rb") as file:
        return _map_npy(str(path), path, file, 0, path.stat().st_size)


def _map_npy(label: str, path: Path, file: IO[bytes], start: int, end: int) -> MappedSource:
    """Map the .npy data that lies in ``file`` from byte ``start`` to byte ``end``."""
    file.seek(start)
    shape, fortran_order, dtype = _read_npy_header(label, file)
    offset = file.tell()
    size = dtype.itemsize * math.prod(shape)
    if offset + size > end:
        raise InputError(
            f"{label} is cut off: its header promises {size} bytes of data, it has {end - offset}"
        )
    return _map(label, path, dtype, offset, shape, fortran_order)


def _map(
    label: str,
    path: Path,
    dtype: np.dtype[Any],
    offset: int,
    shape: tuple[int, ...],
    fortran_order: bool = False,
) -> MappedSource:
    if math.prod(shape) == 0:
        return MappedSource(label, np.empty(shape, dtype))
    try:
        mapped = np.memmap(path, dtype, "r", offset, shape, "F" if fortran_order else "C")
    except _DAMAGE as error:
        raise InputError(f"cannot map {label} into memory: {error}") from error
    return MappedSource(label, np.asarray(mapped), 0, path, offset)


def _read_npy_header(label: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header; an array of Python objects (a pickle) is refused."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        else:
            header = np.lib.format.read_array_header_2_0(file)
    except (*_DAMAGE, SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{label} has a broken .npy header: {error}") from error
    shape, fortran_order, dtype = header
    if min(shape, default=0) < 0:
        raise InputError(f"{label} has a broken .npy header: shape {shape}")
    if dtype.hasobject:
        raise InputError(f"{label} holds pickled Python objects, which are never loaded")
    return shape, fortran_order, dtype


def _open_npz(path: Path, request: Request) -> Source:
    try:
        archive = zipfile.ZipFile(path)
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = request.choose(path, list(members))
        label, info = f"{path}:{name}", members[name]
        if info.compress_type == zipfile.ZIP_STORED:
            with archive, path.open("rb") as file:
                start = _member_start(label, file, info)
                return _map_npy(label, path, file, start, start + info.file_size)
        member = archive.open(info)
        shape, fortran_order, dtype = _read_npy_header(label, member)
    except (*_DAMAGE, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is a broken .npz: {error}") from error
    if fortran_order and len(shape) > 1:
        raise InputError(f"{label} is compressed in Fortran order; save it with np.savez")
    if not shape:
        return MappedSource(label, np.frombuffer(member.read(), dtype, 1).reshape(()))
    return StreamedSource(label, shape, dtype, _inflate(label, member, shape, dtype), archive.close)


def _member_start(label: str, file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """The byte at which a stored member's data starts: behind its local header.

    APPNOTE.TXT 6.3.10, section 4.3.7; the local header's extra field may differ from the central
    one's.
    """
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise InputError(f"{label} has no local header where the archive says it is")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + 30 + name_length + extra_length)


def _inflate(
    label: str, member: IO[bytes], shape: Sequence[int], dtype: np.dtype[Any]
) -> Iterator[Array]:
    """The rows of a compressed .npy, some megabytes at a time."""
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    rows_left = shape[0] if row_bytes else 0
    while rows_left:
        rows = min(rows_left, max(1, CHUNK_BYTES // row_bytes))
        try:
            data = member.read(rows * row_bytes)
        except _DAMAGE as error:
            raise InputError(f"{label} is damaged: {error}") from error
        if len(data) < rows * row_bytes:
            raise InputError(f"{label} is cut off: {rows_left} of {shape[0]} rows are missing")
        yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
        rows_left -= rows


# safetensors
# ---------------------------------------------------------------------------------------

# The header is a length and a JSON object, and reading it here lets a tensor be mapped in place,
# whatever its dtype; the safetensors package would copy every slice.
_SAFETENSORS_DTYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "?",
}


def _open_safetensors(path: Path, request: Request) -> Source:
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(size - 8, 100_000_000):
            raise InputError(f"{path} is no .safetensors: its header would end behind the file")
        try:
            header = json.loads(file.read(header_bytes))
            tensors = {name: header[name] for name in header if name != "__metadata__"}
            name = request.choose(path, list(tensors))
            kind, shape = tensors[name]["dtype"], tuple(map(int, tensors[name]["shape"]))
            begin, end = map(int, tensors[name]["data_offsets"])
        except (*_DAMAGE, AttributeError) as error:
            raise InputError(f"{path} has a broken .safetensors header: {error!r}") from error
    label = f"{path}:{name}"
    dtype = _safetensors_dtype(label, kind)
    if min(shape, default=0) < 0 or begin < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise InputError(
            f"{label} has {end - begin} bytes, which don't make {kind} of shape {shape}"
        )
    start = 8 + header_bytes + begin
    if start + end - begin > size:
        raise InputError(
            f"{label} is cut off: it should end at byte {start + end - begin} of {size}"
        )
    return _map(label, path, dtype, start, shape)


def _safetensors_dtype(label: str, kind: str) -> np.dtype[Any]:
    if kind == "BF16":
        try:
            import ml_dtypes
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{label} is bfloat16, which needs ml_dtypes: pip install 'fastloss[safetensors]'"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if kind not in _SAFETENSORS_DTYPES:
        raise InputError(
            f"{label} has dtype {kind}, expected BF16, {', '.join(_SAFETENSORS_DTYPES)}"
        )
    return np.dtype(_SAFETENSORS_DTYPES[kind])


# Parquet and Arrow IPC ----------------------------------------------------------------------------


def import_arrow(what: str) -> Any:
    """Import pyarrow, or say which extra brings it."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError(f"{what} needs pyarrow: pip install 'fastloss[arrow]'") from error
    return pyarrow


def _open_parquet(path: Path, request: Request) -> Source:
    pa = import_arrow(f"the Parquet file {path}")
    import pyarrow.parquet as pq

    try:
        # A buffered stream keeps a few megabytes of a column chunk in memory, not the whole chunk.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Parquet file: {error}") from error
    name = request.choose(path, file.schema_arrow.names)
    rows = file.metadata.num_rows

    def columns(batch_rows: int) -> Iterator[Any]:
        for batch in file.iter_batches(batch_rows, columns=[name], use_threads=False):
            yield batch.column(0)

    # The first row tells the length of a list, and so how many rows make a chunk of some megabytes.
    return _from_columns(pa, f"{path}:{name}", rows, columns, file.close)


def _open_arrow_file(path: Path, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC file {path}")
    try:
        mapped = pa.memory_map(str(path))
        file = pa.ipc.open_file(mapped)
        name = request.choose(path, file.schema.names)
        column = file.schema.names.index(name)
        rows = sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC file: {error}") from error

    def columns(batch_rows: int) -> Iterator[Any]:
        for i in range(file.num_record_batches):
            yield from _slices(file.get_batch(i).column(column), batch_rows)

    return _from_columns(pa, f"{path}:{name}", rows, columns, mapped.close)


def _open_arrow_stream(path: Path, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC stream {path}")
    try:
        mapped = pa.memory_map(str(path))
        reader = pa.ipc.open_stream(mapped)
        name = request.choose(path, reader.schema.names)
        column = reader.schema.names.index(name)
        # A stream doesn't say how long it is; the map makes counting cheap, since no column is
        # touched.
        rows = sum(batch.num_rows for batch in reader)
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC stream: {error}") from error

    def columns(batch_rows: int) -> Iterator[Any]:
        mapped.seek(0)
        for batch in pa.ipc.open_stream(mapped):
            yield from _slices(batch.column(column), batch_rows)

    return _from_columns(pa, f"{path}:{name}", rows, columns, mapped.close)


def _slices(column: Any, rows: int) -> Iterator[Any]:
    for start in range(0, len(column), rows):
        yield column.slice(start, rows)


def _from_columns(
    pa: Any,
    label: str,
    rows: int,
    columns: Callable[[int], Iterator[Any]],
    close: Callable[[], None],
) -> Source:
    """A source over the chunks of an Arrow column; the first row tells the shape and dtype."""

    def arrays(batch_rows: int) -> Iterator[Array]:
        position = 0
        try:
            for column in columns(batch_rows):
                yield _column_to_array(pa, label, position, column)
                position += len(column)
        except (*_DAMAGE, pa.ArrowException) as error:
            raise InputError(f"{label} is damaged at row {position}: {error}") from error

    first = next(arrays(1), None)
    if first is None:
        raise InputError(f"{label} has no rows")
    shape = (rows, *first.shape[1:])
    row_bytes = max(1, first.nbytes)

    def checked() -> Iterator[Array]:
        position = 0
        for array in arrays(max(1, CHUNK_BYTES // row_bytes)):
            if array.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{label}: rows from {position} on have shape {array.shape[1:]}, "
                    f"the first has {first.shape[1:]}"
                )
            yield array
            position += len(array)

    return StreamedSource(label, shape, first.dtype, checked(), close)


def _column_to_array(pa: Any, label: str, position: int, column: Any) -> Array:
    """An Arrow array, lists included, as a NumPy array of shape (rows, …)."""
    column.validate(full=True)  # offsets that point outside would be followed
    shape = [len(column)]
    if isinstance(column, pa.FixedShapeTensorArray) and not column.null_count:
        return np.asarray(column.to_numpy_ndarray())
    while True:
        if column.null_count:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            row = position + int(np.argmax(nulls)) // math.prod(shape[1:])
            raise InputError(f"{label} has a null in row {row}")
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = np.diff(column.offsets.to_numpy())
            length = int(lengths[0]) if len(lengths) else 0
            if (lengths != length).any():
                row = position + int(np.argmax(lengths != length)) // math.prod(shape[1:])
                raise InputError(
                    f"{label}: the list in row {row} has another length than the {length} before it"
                )
            shape.append(length)
        else:
            break
        column = column.flatten()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"{label} has the Arrow type {kind}, expected numbers or lists of numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


_KINDS: list[tuple[Callable[[bytes], bool], Callable[[Path, Request], Source]]] = [
    (lambda head: head.startswith(b"\x93NUMPY"), _open_npy),
    (lambda head: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), _open_npz),
    (lambda head: head.startswith(b"PAR1"), _open_parquet),
    (lambda head: head.startswith(b"ARROW1"), _open_arrow_file),
    (lambda head: head.startswith(b"\xff\xff\xff\xff"), _open_arrow_stream),
    # Last, since it has no magic number: a length of less than 2^32, then a JSON object.
    (
        lambda head: len(head) == 9 and head[4:8] == b"\0\0\0\0" and head[8:] == b"{",
        _open_safetensors,
    ),
]
