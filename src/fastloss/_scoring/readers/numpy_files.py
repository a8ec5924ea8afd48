"""NumPy's own files: `.npy`, and `.npz` with its members stored or deflated."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastloss._scoring import InputError, limits
from fastloss._scoring.readers.files import (
    DAMAGE,
    Request,
    array_at,
    check_shape,
    label_of,
    reason,
    short,
    size_of,
)
from fastloss._scoring.readers.foreign import foreign_zip
from fastloss._scoring.sources import Array, ArraySource, Source, StreamedSource


def open_npy(path: Path, file: io.BufferedReader, request: Request) -> Source:
    if request.name is not None:
        # Groups may be named in another file.
        advice = "" if request.option == "--group-by" else f": leave {request.option} out"
        raise InputError(f"{path} is a .npy, which has no names{advice}")
    source = _npy_at(str(path), file, 0, size_of(file), request.text)
    source.unnamed = True
    return source


def _npy_at(
    label: str, file: io.BufferedReader, start: int, end: int, text: bool = False
) -> Source:
    """The .npy data that lies in ``file`` from byte ``start`` to byte ``end``."""
    file.seek(start)
    shape, fortran_order, dtype = _read_npy_header(label, file, text)
    offset = file.tell()
    size = dtype.itemsize * math.prod(shape)
    end = min(end, size_of(file))
    if offset + size > end:
        raise InputError(
            f"{label} is cut off: its header promises {size} bytes of data, "
            f"it has {max(0, end - offset)}"
        )
    return array_at(label, file, offset, dtype, shape, fortran_order)


# The header of an array of numbers is a Python dictionary of these three, in any order. What else
# it may hold (records, subarrays) is not wanted, and so no parser of Python runs.
_NPY_ENTRY = re.compile(
    r"""\s*(["'])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?:(["'])(?P<descr>[^"'\\]*)\3|(?P<order>True|False)|\((?P<shape>[\d\sL,]*)\))\s*(?:,|$)""",
    re.VERBOSE,
)
# NumPy warns of "a", which it once took for "S".
_NPY_DTYPE = re.compile(r"[<>|=]?[?bBhHiIlLqQefdgFDGcuOSUVMm]\d{0,9}")


def _read_npy_header(
    label: str, file: IO[bytes], may_be_text: bool = False
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
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
        raise InputError(f"{label} has a .npy header of no array of numbers: {short(text)}")
    return (
        _npy_shape(label, shape_text, dtype := _npy_dtype(label, descr, may_be_text)),
        order == "True",
        dtype,
    )


def _npy_shape(label: str, text: str, dtype: np.dtype[Any]) -> tuple[int, ...]:
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":
        items.pop()
    elif len(items) == 1:
        items = [""]  # "(3)" is a number, no tuple
    # Python 2 wrote large numbers as 3L.
    digits = [item.removesuffix("L") for item in items]
    if not all(re.fullmatch("[0-9]{1,20}", item) for item in digits):
        raise InputError(f"{label} has a broken .npy header: shape {short(f'({text})')}")
    shape = tuple(map(int, digits))
    check_shape(label, shape, dtype)
    return shape


def _npy_dtype(label: str, descr: str, text: bool) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr) if _NPY_DTYPE.fullmatch(descr) else None
    except (TypeError, ValueError, OverflowError):
        dtype = None
    if dtype is None:
        raise InputError(f"{label} has dtype {short(descr)}, expected numbers")
    if dtype.hasobject:
        raise InputError(f"{label} holds pickled Python objects, which are never loaded")
    if text and dtype.kind in "US" and 0 < dtype.itemsize <= limits.MOST_TEXT_BYTES:
        return dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"{label} has dtype {dtype}, expected integers or real numbers")
    return dtype


class _BoundedReads(io.RawIOBase):
    """A file of which nobody reads a lot at a time: a zip's directory may claim any size."""

    def __init__(self, file: io.BufferedReader):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        most = limits.MOST_DIRECTORY_BYTES
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


def open_npz(path: Path, file: io.BufferedReader, request: Request) -> Source:
    try:
        # Annotated as IO, but all that ZipFile needs are the reads and seeks of _BoundedReads.
        archive = zipfile.ZipFile(_BoundedReads(file))  # type: ignore[arg-type]
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if (kind := foreign_zip(members)) is not None:
            raise InputError(f"{path} is {kind}")
        name = request.choose(path, list(members))
        label, info = label_of(path, name), members[name]
        if info.flag_bits & 0x1:
            raise InputError(f"{label} is encrypted")
        if info.compress_type == zipfile.ZIP_STORED:
            start = _member_start(label, file, info)
            return _npy_at(label, file, start, start + info.file_size, request.text)
        # Python's readers of the other methods inflate without a bound, and NumPy writes none.
        if info.compress_type != zipfile.ZIP_DEFLATED:
            raise InputError(f"{label} has compression {info.compress_type}, expected deflate")
        member = archive.open(info)
        shape, fortran_order, dtype = _read_npy_header(label, member, request.text)
    except DAMAGE as error:
        raise InputError(f"{path} is a broken .npz: {reason(error)}") from error
    if fortran_order and len(shape) > 1:
        raise InputError(f"{label} is compressed in Fortran order; save it with np.savez")
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    if row_bytes > limits.MOST_ROW_BYTES:
        raise InputError(
            f"{label} is compressed and has rows of {row_bytes} bytes, expected at most "
            f"{limits.MOST_ROW_BYTES}; save it with np.savez"
        )
    chunks = _inflate(label, member, shape or (1,), dtype)
    if not shape:
        array = next(chunks).reshape(())
        file.close()
        return ArraySource(label, array)
    return StreamedSource(label, shape, dtype, chunks, file.close)


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
        rows = min(rows_left, max(1, limits.CHUNK_BYTES // row_bytes))
        # The memory is touched only as far as there is data for it.
        data = np.empty(rows * row_bytes, np.uint8)
        done = 0
        while done < data.size:
            try:
                part = member.read(min(data.size - done, 1 << 20))
            except DAMAGE as error:
                raise InputError(f"{label} is damaged: {reason(error)}") from error
            if not part:
                raise InputError(f"{label} is cut off: {rows_left} of {shape[0]} rows are missing")
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        yield data.view(dtype).reshape(rows, *shape[1:])
        rows_left -= rows
