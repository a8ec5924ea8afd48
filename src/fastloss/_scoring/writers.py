"""Results into files that appear whole or not at all.

`atomic` gives a temporary file beside the one that is wanted and renames it at the end; whatever
ends the run before that, Ctrl-C included, removes it. `open_writer` writes a table, block by block,
whose columns are the same in every format; `open_array` an array.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError
from fastloss._scoring.readers.arrow_files import import_arrow
from fastloss._scoring.readers.files import no_file

Columns = Mapping[str, NDArray[Any]]
Write = Callable[[Columns], None]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when all went well the file there becomes ``path``."""
    if (kind := _in_the_way(path)) is not None:
        raise InputError(f"cannot write {path}: it is {kind}")
    # The name is known before the file is made, so that nothing can come between the two and leave
    # a file that nobody knows of.
    part = path.with_name(f".fastloss-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb"):
            pass
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash soon after could leave an empty file
        part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _in_the_way(path: Path) -> str | None:
    """What is at a path already, if it is something that a result must not replace."""
    try:
        return no_file(path.stat().st_mode)
    except OSError:
        return None


def open_writer(path: Path, row: np.dtype[Any], samples: int) -> AbstractContextManager[Write]:
    """A context whose value takes the columns of each block and writes them to ``path``.

    Parameters
    ----------
    path : Path
        Its suffix tells the format.
    row : numpy.dtype
        The names of the columns and their types.
    samples : int
        How many rows there will be.

    Raises
    ------
    InputError
        If the name ends in none of .npy, .csv and .parquet.
    ImportError
        If it ends in .parquet and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _npy_writer(path, row, samples)
    if suffix == ".csv":
        return _csv_writer(path, row)
    if suffix == ".parquet":
        import_arrow(f"writing {path}")
        return _parquet_writer(path, row)
    raise InputError(f"--output {path}: expected a name that ends in .npy, .csv or .parquet")


def index_columns(shape: tuple[int, ...]) -> list[tuple[str, type]]:
    """The columns that tell a sample: its number, and its index on each of several axes."""
    axes = [(f"index_{axis}", np.int64) for axis in range(len(shape))] if len(shape) > 1 else []
    return [("sample", np.int64), *axes]


def indices(number: NDArray[Any], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """The values of `index_columns`."""
    found = {"sample": number}
    if len(shape) > 1:
        for axis, index in enumerate(np.unravel_index(number, shape)):
            found[f"index_{axis}"] = index
    return found


def _typed(columns: Columns, row: np.dtype[Any]) -> dict[str, NDArray[Any]]:
    assert row.names is not None
    return {name: columns[name].astype(row[name], copy=False) for name in row.names}


@contextmanager
def _npy_writer(path: Path, row: np.dtype[Any], samples: int) -> Iterator[Write]:
    """A structured array with a field for each column."""
    with atomic(path) as part, part.open("wb") as file:
        _write_header(file, row, (samples,))

        def write(columns: Columns) -> None:
            typed = _typed(columns, row)
            records = np.empty(len(typed["sample"]), row)
            for name, column in typed.items():
                records[name] = column
            file.write(records.data)

        yield write


def _write_header(
    file: Any, dtype: np.dtype[Any], shape: Sequence[int], fortran_order: bool = False
) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": fortran_order,
        "shape": tuple(shape),
    }
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def open_array(
    path: Path, dtype: np.dtype[Any], shape: Sequence[int], fortran_order: bool = False
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """A context whose value takes the rows of an array, in order, and writes them to a .npy.

    In Fortran order, rows are positions along the last axis of two.
    """
    if path.suffix.lower() != ".npy":
        raise InputError(f"--output {path}: expected a name that ends in .npy")
    with atomic(path) as part, part.open("wb") as file:
        _write_header(file, dtype, shape, fortran_order)

        def write(rows: NDArray[Any]) -> None:
            file.write(np.ascontiguousarray(rows, dtype).data)

        yield write


@contextmanager
def _csv_writer(path: Path, row: np.dtype[Any]) -> Iterator[Write]:
    """A header line, then a line for each sample, numbers in as few digits as name them exactly."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(row.names or ())

        def write(columns: Columns) -> None:
            # float32 as text is shorter than the float64 that Python would make of it.
            cells = [column.astype(str).tolist() for column in _typed(columns, row).values()]
            writer.writerows(zip(*cells, strict=True))

        yield write


@contextmanager
def _parquet_writer(path: Path, row: np.dtype[Any]) -> Iterator[Write]:
    """A row group for each block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.from_numpy_dtype(row[name])) for name in row.names or ()])
    with atomic(path) as part, pq.ParquetWriter(part, schema) as writer:

        def write(columns: Columns) -> None:
            writer.write_table(pa.table(_typed(columns, row), schema=schema))

        yield write


def check_table_name(option: str, path: Path) -> None:
    """Refuse a name that no table of groups can have."""
    if path.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"{option} {path}: expected a name that ends in .csv or .json")


def write_table(path: Path, part: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of one kind to ``part``, as the suffix of ``path`` says; None is left empty."""
    if path.suffix.lower() == ".json":
        text = json.dumps(list(rows), allow_nan=False, ensure_ascii=False, indent=1)
        part.write_text(text + "\n", encoding="utf-8")
        return
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if rows:
            writer.writerow(rows[0])
            writer.writerows(row.values() for row in rows)
