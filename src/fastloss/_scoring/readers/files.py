"""What the readers of all kinds of files share: requests, messages, and the opening of a file."""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastloss._scoring import InputError, limits
from fastloss._scoring.sources import ArraySource, FileSource, Source

# What the parsers of zipfile, json and pyarrow raise where bytes make no sense. Arrow's out-of-
# memory error is here since sizes in a damaged file are numbers like any other.
DAMAGE = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,  # of zipfile: a compression that it does not know
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


@dataclass
class Request:
    """Which array of a file is wanted: its name, or the names to try where none was given."""

    what: str
    """"logits", "targets" …: for messages."""
    option: str
    """The option that names it."""
    name: str | None
    usual: tuple[str, ...]
    text: bool = False
    """Whether the values may be text, as names of groups are."""
    classes: bool = False
    """Whether columns of numbers may make up the array, one for each class."""

    def choose(self, path: Path, names: Sequence[str]) -> str:
        """The name to read, out of those that the file has."""
        if self.name is not None:
            if self.name in names:
                return self.name
            raise InputError(f"{path} has no {self.name!r}; it has {listing(names)}")
        found = [name for name in self.usual if name in names]
        if found:
            return found[0]
        if len(names) == 1:
            return names[0]
        raise InputError(
            f"{path} has {listing(names)}: say with {self.option} which of them is the {self.what}"
        )

    def choose_columns(self, path: Path, names: Sequence[str]) -> tuple[str, list[str]]:
        """A name for the array, and the columns that make it up: one, or one for each class."""
        families = _families(names) if self.classes else {}
        if self.name is not None:
            parts = [part.strip() for part in self.name.split(",")]
            if self.name in names:
                return self.name, [self.name]
            if self.name in families:
                return self.name, families[self.name]
            if self.classes and len(parts) > 1 and all(part in names for part in parts):
                return self.name, parts
        elif not any(name in names for name in self.usual):
            found = [name for name in self.usual if name in families]
            if not found and len(names) > 1 and len(families) == 1:
                found = list(families)
            if found:
                return found[0] or "…".join((names[0], names[-1])), families[found[0]]
        name = self.choose(path, names)
        return name, [name]


# A column of a class: logits_0, logits.0, logits[0], logits0, 0.
_NUMBERED = re.compile(r"(?P<base>.*?)[._\- ]?\[?(?P<number>\d{1,9})\]?")


def _families(names: Sequence[str]) -> dict[str, list[str]]:
    """Columns that differ by a number alone, from 0 or 1 on without a gap, in that order."""
    numbered: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            numbered.setdefault(match["base"], {})[int(match["number"])] = name
    return {
        base: [columns[number] for number in sorted(columns)]
        for base, columns in numbered.items()
        if len(columns) > 1
        and min(columns) in (0, 1)
        and max(columns) - min(columns) == len(columns) - 1
    }


def listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(short(name) for name in names[:most])
    return (shown or "nothing") + (f" and {len(names) - most} more" if len(names) > most else "")


def short(value: object, most: int = 80) -> str:
    """What a file holds, quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def label_of(path: Path, name: str, most: int = 80) -> str:
    """An array of a file, for messages."""
    return f"{path}:{name if len(name) <= most else name[: most // 2] + '…' + name[-most // 2 :]}"


def reason(error: BaseException) -> str:
    """An error in words, where it may have come without any."""
    if isinstance(error, MemoryError):
        return f"it asks for more memory than there is ({error})"
    text = str(error) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


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


def open_file(path: Path) -> io.BufferedReader:
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


def size_of(file: io.BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def check_shape(label: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a shape that no array can have, zeros in it or not."""
    if len(shape) > limits.MOST_DIMENSIONS:
        raise InputError(
            f"{label} has {len(shape)} dimensions, expected {limits.MOST_DIMENSIONS} at most"
        )
    if min(shape, default=0) < 0:
        raise InputError(f"{label} has a broken header: shape {shape}")
    if dtype.itemsize * math.prod(n for n in shape if n) >= 2**63:
        raise InputError(f"{label} has shape {shape}, which is too large for an array")


class NoRows(InputError):
    """A file of a columnar format that has no rows, and so no shape."""


def read_json(path: Path) -> Any:
    """The content of a JSON file of no absurd size."""
    with open_file(path) as file:
        data = file.read(limits.MOST_HEADER_BYTES + 1)
    if len(data) > limits.MOST_HEADER_BYTES:
        raise InputError(f"{path} has more than {limits.MOST_HEADER_BYTES} bytes")
    try:
        return json.loads(data)
    except DAMAGE as error:
        raise InputError(f"{path} is no JSON: {reason(error)}") from error


def array_at(
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
