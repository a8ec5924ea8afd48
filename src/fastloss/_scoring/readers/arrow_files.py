"""Parquet and Arrow IPC: a column of numbers, or of lists of one length."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastloss._scoring import InputError, limits
from fastloss._scoring.readers.files import (
    DAMAGE,
    NoRows,
    Request,
    check_shape,
    label_of,
    reason,
    size_of,
)
from fastloss._scoring.sources import Array, Source, StreamedSource


def import_arrow(what: str) -> Any:
    """Import pyarrow, or say which extra brings it."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs pyarrow: pip install 'fastloss[arrow]', or pyarrow"
        ) from error
    return pyarrow


def open_parquet(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Parquet file {path}")
    import pyarrow.parquet as pq

    file.close()
    try:
        # A buffered stream keeps a few megabytes of a column chunk in memory, not the whole chunk.
        parquet = pq.ParquetFile(str(path), buffer_size=1 << 20, pre_buffer=False)
        names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
    except (*DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Parquet file: {reason(error)}") from error
    name, chosen = request.choose_columns(path, names)

    def columns(batch_rows: int) -> Iterator[Any]:
        for batch in parquet.iter_batches(batch_rows, columns=chosen, use_threads=False):
            yield [batch.column(column) for column in chosen]

    # The first row tells the length of a list, and so how many rows make a chunk of some megabytes.
    return _from_columns(pa, label_of(path, name), request.text, rows, columns, parquet.close)


def open_arrow_file(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC file {path}")
    try:
        rows = sum(_record_batch_rows(_message(file, block)) for block in _record_batches(file))
        # Not `pa.memory_map`: a file that shrinks under a map ends the process.
        source = pa.OSFile(str(path))
        name, chosen, fields = _arrow_columns(path, pa.ipc.open_file(source).schema, request)
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        reader = pa.ipc.open_file(source, options=options)
    except (*DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC file: {reason(error)}") from error
    file.close()

    def columns(batch_rows: int) -> Iterator[Any]:
        for i in range(reader.num_record_batches):
            yield from _slices(reader.get_batch(i), chosen, batch_rows)

    return _from_columns(pa, label_of(path, name), request.text, rows, columns, source.close)


def open_arrow_stream(path: Path, file: io.BufferedReader, request: Request) -> Source:
    pa = import_arrow(f"the Arrow IPC stream {path}")
    try:
        rows = sum(map(_record_batch_rows, _messages(file)))
        source = pa.OSFile(str(path))
        name, chosen, fields = _arrow_columns(path, pa.ipc.open_stream(source).schema, request)
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    except (*DAMAGE, pa.ArrowException) as error:
        raise InputError(f"{path} is a broken Arrow IPC stream: {reason(error)}") from error
    file.close()

    def columns(batch_rows: int) -> Iterator[Any]:
        source.seek(0)
        for batch in pa.ipc.open_stream(source, options=options):
            yield from _slices(batch, chosen, batch_rows)

    return _from_columns(pa, label_of(path, name), request.text, rows, columns, source.close)


def _arrow_columns(path: Path, schema: Any, request: Request) -> tuple[str, list[str], list[int]]:
    name, chosen = request.choose_columns(path, schema.names)
    return name, chosen, [schema.names.index(column) for column in chosen]


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
    if length > limits.MOST_DIRECTORY_BYTES:
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
    end = size_of(file) - 10
    file.seek(max(0, end))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(end, limits.MOST_DIRECTORY_BYTES) or file.read(6) != b"ARROW1":
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


def _slices(batch: Any, names: list[str], rows: int) -> Iterator[Any]:
    columns = [batch.column(name) for name in names]
    for start in range(0, batch.num_rows, rows):
        yield [column.slice(start, rows) for column in columns]


def _from_columns(
    pa: Any,
    label: str,
    text: bool,
    rows: int,
    columns: Callable[[int], Iterator[Any]],
    close: Callable[[], None],
) -> Source:
    """A source over chunks of Arrow columns; the first row tells the shape and dtype.

    Of several columns each is a class.
    """

    def arrays(batch_rows: int) -> Iterator[Array]:
        position = 0
        try:
            for parts in columns(batch_rows):
                if len(parts[0]):
                    found = [_column_to_array(pa, label, position, text, part) for part in parts]
                    yield found[0] if len(found) == 1 else np.stack(found, axis=1)
                    position += len(parts[0])
        except (*DAMAGE, pa.ArrowException) as error:
            raise InputError(f"{label} is damaged at row {position}: {reason(error)}") from error

    try:
        first = next(arrays(1), None)
        if first is None or rows < 1:
            raise NoRows(f"{label} has no rows")
        shape = (rows, *first.shape[1:])
        check_shape(label, shape, first.dtype)
    except InputError:
        close()
        raise
    at_a_time = min(limits.CHUNK_ROWS, max(1, limits.CHUNK_BYTES // max(1, first.nbytes)))

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


def _column_to_array(pa: Any, label: str, position: int, text: bool, column: Any) -> Array:
    """An Arrow array, lists included, as a NumPy array of shape (rows, …)."""
    column.validate(full=True)  # offsets that point outside would be followed
    if text and pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
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
    if text and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return np.asarray(column.to_numpy(zero_copy_only=False), object).reshape(shape)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"{label} has the Arrow type {kind}, expected numbers or lists of numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)
