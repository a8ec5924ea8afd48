"""Files as sources of rows, without ever holding a whole file in memory.

A `Source` knows its shape and dtype before the first row is read, and `read(count)` hands out the
next rows along its block axis, as a `Piece` that any thread can load. There are three kinds:

- `FileSource`: an array that lies in a file as it would lie in memory: `.npy`, `.safetensors` and
  members that an `.npz` stores uncompressed. It is read at positions, never mapped: when a file
  shrinks meanwhile, a read comes back short, where touching a map would end the process.
- `StreamedSource` cuts an iterator of chunks to size: compressed `.npz` members, Parquet, Arrow
  IPC.
- `ArraySource`: an array in memory.

`open_source` looks at a file's first bytes, not at its name, to choose the reader. The headers of
`.npy` and `.safetensors` are parsed here, with a bound on whatever they claim; nothing in a file is
ever evaluated or unpickled.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError

Array = NDArray[Any]

# What is read of a compressed or columnar file at a time.
CHUNK_BYTES = 8 << 20
# Rows of an Arrow column that are looked at together, however short the first one is.
CHUNK_ROWS = 1 << 16
# A row of a compressed file is inflated as a whole: a longer one is refused.
MOST_ROW_BYTES = 1 << 30
# A .safetensors header of 100,000 tensors takes about 10 MB; parsed it takes several times that.
MOST_HEADER_BYTES = 16 << 20
# A zip's directory of 100,000 members takes that much, and Arrow's footer of 300,000 batches.
MOST_DIRECTORY_BYTES = 8 << 20
# NumPy 1 has no more dimensions.
MOST_DIMENSIONS = 32
# Stretches of a file that are shorter than a page cost more to ask for than to read.
PAGE_BYTES = 4096


# What the parsers of zipfile, json and pyarrow raise where bytes make no sense. Arrow's out-of-
# memory error is here since sizes in a damaged file are numbers like any other.
_DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


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
        return 1 if self._outer == 1 else -(-PAGE_BYTES // self._inner)

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
    shown = ", ".join(_short(name) for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(value: object, most: int = 80) -> str:
    """What a file holds, quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _label(path: Path, name: str, most: int = 80) -> str:
    """An array of a file, for messages."""
    return f"{path}:{name if len(name) <= most else name[: most // 2] + '…' + name[-most // 2 :]}"


def open_source(path: Path, request: Request) -> Source:
    """Open one array of a file.

    Raises
    ------
    InputError
        If the file can't be read, is of no known kind, or has no such array.
    ImportError
        If its kind needs an extra that is not installed.
    """
    file = _open(path)
    try:
        head = file.read(9)
        for matches, reader in _KINDS:
            if matches(head):
                return reader(path, file, request)
        raise InputError(
            f"{path} is {'empty' if not head else 'of no known kind'}: expected .npy, .npz, "
            ".safetensors, Parquet or Arrow IPC"
        )
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        raise


_NO_FILES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def no_file(mode: int) -> str | None:
    """What something is that is no regular file; None for a file."""
    return None if stat.S_ISREG(mode) else _NO_FILES.get(stat.S_IFMT(mode), "no regular file")


def _open(path: Path) -> io.BufferedReader:
    """Open a regular file, without waiting for whoever would write into a pipe."""
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        kind = no_file(path.stat().st_mode)
        if kind is None:
            handle = os.open(path, flags)
            kind = no_file(os.fstat(handle).st_mode)
            if kind is None:
                return os.fdopen(handle, "rb")
            os.close(handle)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    raise InputError(f"{path} is {kind}, expected a file")


def _size(file: io.BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def _check_shape(label: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a shape that no array can have, zeros in it or not."""
    if len(shape) > MOST_DIMENSIONS:
        raise InputError(f"{label} has {len(shape)} dimensions, expected {MOST_DIMENSIONS} at most")
    if min(shape, default=0) < 0:
        raise InputError(f"{label} has a broken header: shape {shape}")
    if dtype.itemsize * math.prod(n for n in shape if n) >= 2**63:
        raise InputError(f"{label} has shape {shape}, which is too large for an array")


def _array_at(
    label: str,
    file: io.BufferedReader,
    offset: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    fortran_order: bool = False,
) -> Source:
    """The source of an array that starts at a byte of a file and ends within the file."""
    if math.prod(shape) == 0:
        file.close()
        return ArraySource(label, np.empty(shape, dtype))
    return FileSource(label, file, offset, dtype, shape, fortran_order and len(shape) > 1)


# NumPy --------------------------------------------------------------------------------------------


def _open_npy(path: Path, file: io.BufferedReader, request: Request) -> Source:
    if request.name is not None:
        raise InputError(f"{path} is a .npy, which has no names: leave {request.option} out")
    return _npy_at(str(path), file, 0, _size(file))


def _npy_at(label: str, file: io.BufferedReader, start: int, end: int) -> Source:
    """The .npy data that lies in ``file`` from byte ``start`` to byte ``end``."""
    file.seek(start)
    shape, fortran_order, dtype = _read_npy_header(label, file)
    offset = file.tell()
    size = dtype.itemsize * math.prod(shape)
    end = min(end, _size(file))
    if offset + size > end:
        raise InputError(
            f"{label} is cut off: its header promises {size} bytes of data, "
            f"it has {max(0, end - offset)}"
        )
    return _array_at(label, file, offset, dtype, shape, fortran_order)


# The header of an array of numbers is a Python dictionary of these three, in any order. What else
# it may hold (records, subarrays) is not wanted, and so no parser of Python runs.
_NPY_ENTRY = re.compile(
    r"""\s*(["'])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?:(["'])(?P<descr>[^"'\\]*)\3|(?P<order>True|False)|\((?P<shape>[\d\sL,]*)\))\s*(?:,|$)""",
    re.VERBOSE,
)
# NumPy warns of "a", which it once took for "S".
_NPY_DTYPE = re.compile(r"[<>|=]?[?bBhHiIlLqQefdgFDGcuOSUVMm]\d{0,9}")


def _read_npy_header(label: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header: shape, whether in Fortran order, dtype.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; an array of Python
    objects (a pickle) is refused.
    """
    start = file.read(8)
    if len(start) < 8 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise InputError(f"{label} has a broken .npy header: it starts with {start!r}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > 0xFFFF:
        raise InputError(f"{label} has a .npy header of {length} bytes, expected fewer than 65,536")
    data = file.read(length)
    if len(data) < length:
        raise InputError(f"{label} has a broken .npy header: it is cut off")
    text = data.decode("latin-1").strip()
    entries: dict[str, str | None] = {}
    body, at = (text[1:-1].rstrip() if text[:1] == "{" and text[-1:] == "}" else ""), 0
    while at < len(body) and (match := _NPY_ENTRY.match(body, at)):
        key = match["key"]
        entries[key] = match[{"descr": "descr", "fortran_order": "order", "shape": "shape"}[key]]
        at = match.end()
    descr, order, shape_text = map(entries.get, ("descr", "fortran_order", "shape"))
    if at < len(body) or descr is None or order is None or shape_text is None:
        raise InputError(f"{label} has a .npy header of no array of numbers: {_short(text)}")
    return _npy_shape(label, shape_text, dtype := _npy_dtype(label, descr)), order == "True", dtype


def _npy_shape(label: str, text: str, dtype: np.dtype[Any]) -> tuple[int, ...]:
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":
        items.pop()
    elif len(items) == 1:
        items = [""]  # "(3)" is a number, no tuple
    # Python 2 wrote large numbers as 3L.
    digits = [item.removesuffix("L") for item in items]
    if not all(re.fullmatch("[0-9]{1,20}", item) for item in digits):
        raise InputError(f"{label} has a broken .npy header: shape {_short(f'({text})')}")
    shape = tuple(map(int, digits))
    _check_shape(label, shape, dtype)
    return shape


def _npy_dtype(label: str, descr: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr) if _NPY_DTYPE.fullmatch(descr) else None
    except (TypeError, ValueError, OverflowError):
        dtype = None
    if dtype is None:
        raise InputError(f"{label} has dtype {_short(descr)}, expected numbers")
    if dtype.hasobject:
        raise InputError(f"{label} holds pickled Python objects, which are never loaded")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"{label} has dtype {dtype}, expected integers or real numbers")
    return dtype


class _BoundedReads(io.RawIOBase):
    """A file of which nobody reads a lot at a time: a zip's directory may claim any size."""

    def __init__(self, file: io.BufferedReader):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        most = MOST_DIRECTORY_BYTES
        data = self._file.read(size if 0 <= size <= most else most + 1)
        if len(data) > most:
            raise ValueError(f"its directory takes more than {most} bytes")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _open_npz(path: Path, file: io.BufferedReader, request: Request) -> Source:
    try:
        # IO is what the parameter is annotated with; reads and seeks are what it needs.
        archive = zipfile.ZipFile(_BoundedReads(file))  # type: ignore[arg-type]
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = request.choose(path, list(members))
        label, info = _label(path, name), members[name]
        if info.flag_bits & 0x1:
            raise InputError(f"{label} is encrypted")
        if info.compress_type == zipfile.ZIP_STORED:
            start = _member_start(label, file, info)
            return _npy_at(label, file, start, start + info.file_size)
        # Python's readers of the other methods inflate without a bound, and NumPy writes none.
        if info.compress_type != zipfile.ZIP_DEFLATED:
            raise InputError(f"{label} has compression {info.compress_type}, expected deflate")
        member = archive.open(info)
        shape, fortran_order, dtype = _read_npy_header(label, member)
    except _DAMAGE as error:
        raise InputError(f"{path} is a broken .npz: {_reason(error)}") from error
    if fortran_order and len(shape) > 1:
        raise InputError(f"{label} is compressed in Fortran order; save it with np.savez")
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    if row_bytes > MOST_ROW_BYTES:
        raise InputError(
            f"{label} is compressed and has rows of {row_bytes} bytes, expected at most "
            f"{MOST_ROW_BYTES}; save it with np.savez"
        )
    chunks = _inflate(label, member, shape or (1,), dtype)
    if not shape:
        array = next(chunks).reshape(())
        file.close()
        return ArraySource(label, array)
    return StreamedSource(label, shape, dtype, chunks, file.close)


def _reason(error: BaseException) -> str:
    """An error in words, where it may have come without any."""
    if isinstance(error, MemoryError):
        return f"it asks for more memory than there is ({error})"
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def _member_start(label: str, file: io.BufferedReader, info: zipfile.ZipInfo) -> int:
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
        # The memory is touched only as far as there is data for it.
        data = np.empty(rows * row_bytes, np.uint8)
        done = 0
        while done < data.size:
            try:
                part = member.read(min(data.size - done, 1 << 20))
            except _DAMAGE as error:
                raise InputError(f"{label} is damaged: {_reason(error)}") from error
            if not part:
                raise InputError(f"{label} is cut off: {rows_left} of {shape[0]} rows are missing")
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        yield data.view(dtype).reshape(rows, *shape[1:])
        rows_left -= rows


# safetensors --------------------------------------------------------------------------------------

# The header is a length and a JSON object, and reading it here lets a tensor be read in blocks,
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


def _open_safetensors(path: Path, file: io.BufferedReader, request: Request) -> Source:
    size = _size(file)
    file.seek(0)
    (header_bytes,) = struct.unpack("<Q", file.read(8))
    if header_bytes > size - 8:
        raise InputError(f"{path} is no .safetensors: its header would end behind the file")
    if header_bytes > MOST_HEADER_BYTES:
        raise InputError(
            f"{path} has a header of {header_bytes} bytes, expected at most {MOST_HEADER_BYTES}"
        )
    try:
        header = json.loads(file.read(header_bytes))
        tensors = {name: header[name] for name in header if name != "__metadata__"}
    except _DAMAGE as error:
        raise InputError(f"{path} has a broken .safetensors header: {_reason(error)}") from error
    name = request.choose(path, list(tensors))
    label, tensor = _label(path, name), tensors[name]
    values = tensor if isinstance(tensor, dict) else {}
    kind, shape, offsets = map(values.get, ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or not _integers(shape) or not _integers(offsets, 2):
        raise InputError(f"{label} has a broken .safetensors header: {_short(tensor)}")
    shape, (begin, end) = tuple(shape), offsets
    dtype = _safetensors_dtype(label, kind)
    _check_shape(label, shape, dtype)
    if begin < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise InputError(
            f"{label} has {end - begin} bytes, which don't make {kind} of shape {shape}"
        )
    start = 8 + header_bytes + begin
    if start + end - begin > size:
        raise InputError(
            f"{label} is cut off: it should end at byte {start + end - begin} of {size}"
        )
    return _array_at(label, file, start, dtype, shape)


def _integers(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of integers, none of them absurd."""
    return (
        isinstance(value, list)
        and count in (None, len(value))
        and all(type(n) is int and abs(n) < 2**64 for n in value)
    )


def _safetensors_dtype(label: str, kind: str) -> np.dtype[Any]:
    if kind == "BF16":
        try:
            import ml_dtypes
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{label} is bfloat16, which needs ml_dtypes:"
                " pip install 'fastloss[safetensors]', or ml_dtypes"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if kind not in _SAFETENSORS_DTYPES:
        raise InputError(
            f"{label} has dtype {_short(kind)}, expected BF16, {', '.join(_SAFETENSORS_DTYPES)}"
        )
    return np.dtype(_SAFETENSORS_DTYPES[kind])


# Parquet and Arrow IPC ----------------------------------------------------------------------------


def import_arrow(what: str) -> Any:
    """Import pyarrow, or say which extra brings it."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs pyarrow: pip install 'fastloss[arrow]', or pyarrow"
        ) from error
    return pyarrow


def _open_parquet(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Parquet file {path}")
    import pyarrow.parquet as pq

    file.close()
    try:
        # A buffered stream keeps a few megabytes of a column chunk in memory, not the whole chunk.
        parquet = pq.ParquetFile(str(path), buffer_size=1 << 20, pre_buffer=False)
        names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Parquet file: {_reason(error)}") from error
    name = request.choose(path, names)

    def columns(batch_rows: int) -> Iterator[Any]:
        for batch in parquet.iter_batches(batch_rows, columns=[name], use_threads=False):
            yield batch.column(0)

    # The first row tells the length of a list, and so how many rows make a chunk of some megabytes.
    return _from_columns(pa, _label(path, name), rows, columns, parquet.close)


def _open_arrow_file(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC file {path}")
    try:
        rows = sum(_record_batch_rows(_message(file, block)) for block in _record_batches(file))
        # Not `pa.memory_map`: a file that shrinks under a map ends the process.
        source = pa.OSFile(str(path))
        name, column = _arrow_column(path, pa.ipc.open_file(source).schema, request)
        options = pa.ipc.IpcReadOptions(included_fields=[column], use_threads=False)
        reader = pa.ipc.open_file(source, options=options)
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC file: {_reason(error)}") from error
    file.close()

    def columns(batch_rows: int) -> Iterator[Any]:
        for i in range(reader.num_record_batches):
            yield from _slices(reader.get_batch(i).column(0), batch_rows)

    return _from_columns(pa, _label(path, name), rows, columns, source.close)


def _open_arrow_stream(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC stream {path}")
    try:
        rows = sum(map(_record_batch_rows, _messages(file)))
        source = pa.OSFile(str(path))
        name, column = _arrow_column(path, pa.ipc.open_stream(source).schema, request)
        options = pa.ipc.IpcReadOptions(included_fields=[column], use_threads=False)
    except (*_DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC stream: {_reason(error)}") from error
    file.close()

    def columns(batch_rows: int) -> Iterator[Any]:
        source.seek(0)
        for batch in pa.ipc.open_stream(source, options=options):
            yield from _slices(batch.column(0), batch_rows)

    return _from_columns(pa, _label(path, name), rows, columns, source.close)


def _arrow_column(path: Path, schema: Any, request: Request) -> tuple[str, int]:
    name = request.choose(path, schema.names)
    return name, schema.names.index(name)


# How many rows there are stands in the metadata of each record batch, and pyarrow reads no metadata
# without the batch's data. So the few fields that tell are read here:
# https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
# and format/Message.fbs, format/File.fbs in Arrow's sources.


def _message(file: io.BufferedReader, at: int) -> bytes:
    """The metadata of the message at a byte; nothing at the end of the stream.

    Leaves the file at the end of the metadata, where the message's body starts.
    """
    file.seek(at)
    start = file.read(4)
    if start == b"\xff\xff\xff\xff":  # which Arrow before 0.15 left out
        start = file.read(4)
    length = int.from_bytes(start, "little")
    if length > MOST_DIRECTORY_BYTES:
        raise ValueError(f"the message at byte {at} has {length} bytes of metadata")
    return file.read(length)


def _messages(file: io.BufferedReader) -> Iterator[bytes]:
    """The metadata of all messages of a stream."""
    at = 0
    while message := _message(file, at):
        yield message
        body = _field(message, _root(message), 3)
        length = struct.unpack_from("<q", message, body)[0] if body else 0
        if length < 0:
            raise ValueError(f"the message at byte {at} has a body of {length} bytes")
        at = file.tell() + length


def _record_batches(file: io.BufferedReader) -> list[int]:
    """Where in a file its record batches are, by its footer."""
    end = _size(file) - 10
    file.seek(max(0, end))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(end, MOST_DIRECTORY_BYTES) or file.read(6) != b"ARROW1":
        raise ValueError("it has no footer")
    file.seek(end - length)
    footer = file.read(length)
    vector = _field(footer, _root(footer), 3)
    if not vector:
        return []
    vector += struct.unpack_from("<I", footer, vector)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    if count > length // 24:
        raise ValueError(f"its footer of {length} bytes promises {count} batches")
    return [struct.unpack_from("<q", footer, vector + 4 + 24 * i)[0] for i in range(count)]


def _record_batch_rows(message: bytes) -> int:
    """The rows of a record batch; 0 for any other message."""
    root = _root(message)
    kind, batch = _field(message, root, 1), _field(message, root, 2)
    if not kind or message[kind] != 3 or not batch:
        return 0
    batch += struct.unpack_from("<I", message, batch)[0]
    rows = _field(message, batch, 0)
    return struct.unpack_from("<q", message, rows)[0] if rows else 0


def _root(buffer: bytes) -> int:
    """Where the root table of a flatbuffer is."""
    return int(struct.unpack_from("<I", buffer)[0])


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is; 0 if the table doesn't have it."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, vtable)
    if 6 + 2 * number > size:
        return 0
    (offset,) = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)
    return table + offset if offset else 0


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
                if len(column):
                    yield _column_to_array(pa, label, position, column)
                    position += len(column)
        except (*_DAMAGE, pa.ArrowException) as error:
            raise InputError(f"{label} is damaged at row {position}: {_reason(error)}") from error

    try:
        first = next(arrays(1), None)
        if first is None or rows < 1:
            raise InputError(f"{label} has no rows")
        shape = (rows, *first.shape[1:])
        _check_shape(label, shape, first.dtype)
    except InputError:
        close()
        raise
    at_a_time = min(CHUNK_ROWS, max(1, CHUNK_BYTES // max(1, first.nbytes)))

    def checked() -> Iterator[Array]:
        position = 0
        for array in arrays(at_a_time):
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
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


_Reader = Callable[[Path, io.BufferedReader, Request], Source]
_KINDS: list[tuple[Callable[[bytes], bool], _Reader]] = [
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
