"""Per-sample results into a file that appears whole or not at all.

`atomic` gives a temporary file beside the one that is wanted and renames it at the end; whatever
ends the run before that, Ctrl-C included, removes it. The columns are the same in every format:
sample, target, predicted, loss, log_prob.
"""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._scoring import InputError
from fastloss._scoring.readers import import_arrow, no_file
from fastloss._scoring.scorer import Job, Scores

Write = Callable[[Scores], None]

COLUMNS = ("sample", "target", "predicted", "loss", "log_prob")


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


def open_writer(path: Path, job: Job) -> AbstractContextManager[Write]:
    """A context whose value takes the scores of each block and writes them to ``path``.

    Raises
    ------
    InputError
        If the name ends in none of .npy, .csv and .parquet.
    ImportError
        If it ends in .parquet and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    row = _row_dtype(job)
    if suffix == ".npy":
        return _npy_writer(path, row, job.samples)
    if suffix == ".csv":
        return _csv_writer(path, row)
    if suffix == ".parquet":
        import_arrow(f"writing {path}")
        return _parquet_writer(path, row)
    raise InputError(f"--output {path}: expected a name that ends in .npy, .csv or .parquet")


def _row_dtype(job: Job) -> np.dtype[Any]:
    """The columns and their types, known before the first block."""
    half_or_single = job.logits.dtype.kind not in "iub" and job.logits.dtype.itemsize < 8
    real = np.float32 if half_or_single else np.float64
    target = np.float64 if job.class_axis is None else np.int64
    types = (np.int64, target, np.int64, real, real)
    return np.dtype(list(zip(COLUMNS, types, strict=True)))


def _columns(scores: Scores, row: np.dtype[Any]) -> dict[str, NDArray[Any]]:
    sample = np.arange(scores.first, scores.first + scores.loss.size)
    values = (sample, scores.target, scores.predicted, scores.loss, scores.log_prob)
    return {
        name: value.astype(row[name], copy=False)
        for name, value in zip(COLUMNS, values, strict=True)
    }


@contextmanager
def _npy_writer(path: Path, row: np.dtype[Any], samples: int) -> Iterator[Write]:
    """A structured array with a field for each column."""
    with atomic(path) as part, part.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(row),
            "fortran_order": False,
            "shape": (samples,),
        }
        np.lib.format.write_array_header_1_0(file, header)

        def write(scores: Scores) -> None:
            records = np.empty(scores.loss.size, row)
            for name, column in _columns(scores, row).items():
                records[name] = column
            file.write(records.data)

        yield write


@contextmanager
def _csv_writer(path: Path, row: np.dtype[Any]) -> Iterator[Write]:
    """A header line, then a line for each sample, numbers in as few digits as name them exactly."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)

        def write(scores: Scores) -> None:
            # float32 as text is shorter than the float64 that Python would make of it.
            cells = [column.astype(str).tolist() for column in _columns(scores, row).values()]
            writer.writerows(zip(*cells, strict=True))

        yield write


@contextmanager
def _parquet_writer(path: Path, row: np.dtype[Any]) -> Iterator[Write]:
    """A row group for each block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.from_numpy_dtype(row[name])) for name in COLUMNS])
    with atomic(path) as part, pq.ParquetWriter(part, schema) as writer:

        def write(scores: Scores) -> None:
            writer.write_table(pa.table(_columns(scores, row), schema=schema))

        yield write
