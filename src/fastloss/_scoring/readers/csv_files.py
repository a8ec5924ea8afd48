"""`.csv` and `.tsv`: a column of numbers or of names, or one column for each class.

A file is read twice: the first pass counts its rows and sees whether a column holds integers alone,
since both have to be known before the first row is handed out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastloss._scoring import InputError, limits
from fastloss._scoring.readers.files import Request, check_shape, label_of, listing, short
from fastloss._scoring.sources import Array, Source, StreamedSource

# Names that no class has: a file with one of these columns doesn't hold logits alone.
_NO_CLASSES = frozenset(
    (
        *("target", "targets", "label", "labels", "class", "id", "index", "sample", "row"),
        *("group", "document", "weight"),
    )
)


def open_csv(path: Path, file: io.BufferedReader, request: Request) -> Source:
    rows = _Rows(path, file)
    names = rows.names
    if names is None:  # numbers from the first line on
        names = [str(i) for i in range(rows.width)]
    # A column without a name numbers the rows, as pandas writes it.
    named = [name for name in names if name]
    chosen = _choose(path, named, rows, request)
    if chosen is None:
        name, columns = "", [i for i, name in enumerate(names) if name]
    else:
        name, wanted = chosen
        columns = [names.index(column) for column in wanted]
    label = label_of(path, name) if name else str(path)
    one = len(columns) == 1
    count, integers = _survey(label, rows, columns, one)
    dtype: np.dtype[Any] = np.dtype(np.int64 if integers else np.float64)
    if request.text and not integers:
        dtype = np.dtype(object)
    shape = (count,) if one else (count, len(columns))
    check_shape(label, shape, dtype)
    if not count:
        raise InputError(f"{label} has no rows")
    at_a_time = max(1, min(limits.CHUNK_ROWS, limits.CHUNK_BYTES // (64 * rows.width)))
    chunks = _chunks(label, rows, columns, dtype, one, at_a_time)
    source = StreamedSource(label, shape, dtype, chunks, file.close)
    source.unnamed = not name
    return source


def _choose(
    path: Path, names: Sequence[str], rows: _Rows, request: Request
) -> tuple[str, list[str]] | None:
    """The columns to read and a name for them; None for all columns, which are the classes."""
    if request.name is None and request.classes:
        usual = any(name in names for name in request.usual)
        if not usual and rows.names is None:
            return None
        strange = {name.lower() for name in names} & _NO_CLASSES
        if not usual and not strange and not _has_family(path, names, request):
            return None
    if request.name is None and rows.names is None and rows.width > 1:
        raise InputError(
            f"{path} has {rows.width} columns and no line of names, expected one column of the "
            f"{request.what}"
        )
    try:
        return request.choose_columns(path, names)
    except InputError as error:
        if request.classes and request.name is None:
            raise InputError(
                f"{path} has {listing(names)}: name the columns of the {request.what} with "
                f"{request.option} A,B,C, one for each class"
            ) from error
        raise


def _has_family(path: Path, names: Sequence[str], request: Request) -> bool:
    try:
        return len(request.choose_columns(path, names)[1]) > 1
    except InputError:
        return False


class _Rows:
    """The rows of a file, as often as they are wanted."""

    def __init__(self, path: Path, file: io.BufferedReader):
        self.path, self._file = path, file
        start = self._line(0)
        counts = {mark: start.count(mark) for mark in "\t;,"}
        # Where several occur, the most frequent parts the cells.
        self._mark = max(counts, key=lambda mark: counts[mark])
        if not counts[self._mark]:
            self._mark = ","
        _, first = next(self._parsed(), (0, []))
        self.width = len(first)
        if not self.width:
            raise InputError(f"{path} has no rows")
        self.names: list[str] | None = [name.strip() for name in first]
        numbers = [_number(cell) for cell in first]
        counted = [float(i) for i in range(self.width)]
        # A table of numbers without names; numbers from 0 on, as pandas writes them, are names.
        if None not in numbers and (numbers != counted or self.width == 1):
            self.names = None

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Each row of values, with the number of its line."""
        rows = self._parsed()
        if self.names is not None:
            next(rows, None)
        for line, row in rows:
            if len(row) != self.width:
                raise InputError(
                    f"{self.path} has {len(row)} cells in line {line}, the first has {self.width}"
                )
            yield line, row

    def _parsed(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self._lines(), delimiter=self._mark)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise InputError(
                f"{self.path} is damaged in line {reader.line_num}: {error}"
            ) from error

    def _lines(self) -> Iterator[str]:
        at = 0
        while line := self._line(at):
            yield line
            at = self._file.tell()

    def _line(self, at: int) -> str:
        if self._file.tell() != at:
            self._file.seek(at)
        data = self._file.readline(limits.MOST_LINE_BYTES + 1)
        if len(data) > limits.MOST_LINE_BYTES:
            raise InputError(
                f"{self.path} has a line of more than {limits.MOST_LINE_BYTES} bytes at byte {at}"
            )
        try:
            return data.decode("utf-8-sig" if at == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8 at byte {at + error.start}") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _survey(label: str, rows: _Rows, columns: list[int], one: bool) -> tuple[int, bool]:
    """The number of rows, and whether the one column holds integers alone."""
    count, integers = 0, one
    for _, row in rows:
        count += 1
        if integers:
            try:
                integers = -(2**63) <= int(row[columns[0]]) < 2**63
            except ValueError:
                integers = False
    return count, integers


def _chunks(
    label: str, rows: _Rows, columns: list[int], dtype: np.dtype[Any], one: bool, at_a_time: int
) -> Iterator[Array]:
    gathered: list[list[str]] = []
    lines: list[int] = []

    def array() -> Array:
        if dtype.kind == "O":
            return np.array([row[columns[0]] for row in gathered], dtype)
        convert = int if dtype.kind == "i" else float
        values = []
        for line, row in zip(lines, gathered, strict=True):
            for column in columns:
                try:
                    values.append(convert(row[column]))
                except ValueError as error:
                    raise InputError(
                        f"{label} has {short(row[column])} in line {line}, expected a number"
                    ) from error
        made = np.array(values, dtype)
        return made if one else made.reshape(len(gathered), len(columns))

    for line, row in rows:
        gathered.append(row)
        lines.append(line)
        if len(gathered) == at_a_time:
            yield array()
            gathered.clear()
            lines.clear()
    if gathered:
        yield array()
