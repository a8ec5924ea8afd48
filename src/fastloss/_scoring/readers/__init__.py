"""Files as sources of rows, without ever holding a whole file in memory.

- `files`: what the readers share: requests, messages, the opening of a file.
- `numpy_files`, `safetensors_files`, `arrow_files`, `csv_files`: a reader for each family.
- `foreign`: names of the kinds that are not read, and what to do instead.
- `shards`: folders, patterns and lists of files as one array.

`open_source` looks at a file's first bytes, not at its name, to choose the reader; a `.csv` alone
goes by its name. The headers of `.npy` and `.safetensors` are parsed here, with a bound on whatever
they claim; nothing in a file is ever evaluated or unpickled.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from fastloss._scoring import InputError
from fastloss._scoring.readers.arrow_files import (
    open_arrow_file,
    open_arrow_stream,
    open_parquet,
)
from fastloss._scoring.readers.csv_files import open_csv
from fastloss._scoring.readers.files import Request, open_file
from fastloss._scoring.readers.foreign import foreign_kind
from fastloss._scoring.readers.numpy_files import open_npy, open_npz
from fastloss._scoring.readers.safetensors_files import open_safetensors
from fastloss._scoring.sources import Source

__all__ = ["Request", "open_source"]


def open_source(path: Path, request: Request) -> Source:
    """Open one array of a file.

    Raises
    ------
    InputError
        If the file can't be read, is of no known kind, or has no such array.
    ImportError
        If its kind needs an extra that is not installed.
    """
    file = open_file(path)
    try:
        head = file.read(512)
        for matches, reader in _KINDS:
            if matches(head):
                return reader(path, file, request)
        if head and path.suffix.lower() in (".csv", ".tsv"):
            return open_csv(path, file, request)
        if (kind := foreign_kind(path, head)) is not None:
            raise InputError(f"{path} is {kind}")
        raise InputError(
            f"{path} is {'empty' if not head else 'of no known kind'}: expected .npy, .npz, "
            ".safetensors, Parquet, Arrow IPC or .csv"
        )
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        raise


_Reader = Callable[[Path, io.BufferedReader, Request], Source]
_KINDS: list[tuple[Callable[[bytes], bool], _Reader]] = [
    (lambda head: head.startswith(b"\x93NUMPY"), open_npy),
    (lambda head: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), open_npz),
    (lambda head: head.startswith(b"PAR1"), open_parquet),
    (lambda head: head.startswith(b"ARROW1"), open_arrow_file),
    (lambda head: head.startswith(b"\xff\xff\xff\xff"), open_arrow_stream),
    # Last, since it has no magic number: a length of less than 2^32, then a JSON object.
    (lambda head: head[4:8] == b"\0\0\0\0" and head[8:9] == b"{", open_safetensors),
]
