"""Several files as one array: a folder, a pattern, a list, a data set of Hugging Face.

Files whose names differ by one number are shards, in the order of that number; of a folder of
`.safetensors` with a `*.index.json` the index tells the order. Every shard's header is read first,
so that the whole shape is known and what does not fit is named; the shard itself is opened when the
reading comes to it, and closed behind it.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastloss._scoring import InputError
from fastloss._scoring.layout import along
from fastloss._scoring.readers import open_source
from fastloss._scoring.readers.files import NoRows, Request, listing, read_json
from fastloss._scoring.readers.foreign import FOREIGN_SUFFIXES
from fastloss._scoring.sources import Array, Piece, Source

SUFFIXES = frozenset(
    (".npy", ".npz", ".safetensors", ".parquet", ".arrow", ".arrows", ".feather", ".ipc")
    + (".csv", ".tsv")
)

Axis = Callable[[int], int]
"""The axis along which arrays of so many dimensions are joined."""


def open_input(paths: Sequence[Path], request: Request, axis: Axis = lambda ndim: 0) -> Source:
    """Open one array of a file, or of several files as one.

    Raises
    ------
    InputError
        If a file can't be read or has no such array, if a shard is missing from a numbered
        sequence, or if the shape or type of one does not fit the first.
    """
    shards, label = _find(paths, request)
    if len(shards) == 1:
        source = _open_shard(shards[0], request)
        source.files = (shards[0].path,)
        return source
    parts: list[_Part] = []
    for shard in shards:
        try:
            part = _open_shard(shard, request)
        except NoRows:
            continue
        part.close()
        parts.append(_Part(shard, request, stamp(shard.path), part))
    if not parts:
        raise InputError(f"{label} has no rows")
    return Shards(label, parts, axis(len(parts[0].shape)))


# Which files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    path: Path
    name: str | None = None
    """The array in it, where an index names it."""


def _open_shard(shard: _Shard, request: Request) -> Source:
    if shard.name is not None:
        try:
            return open_source(shard.path, replace(request, name=shard.name))
        except InputError as error:
            if "has no " not in str(error):
                raise
    return open_source(shard.path, request)


def _find(paths: Sequence[Path], request: Request) -> tuple[list[_Shard], str]:
    """The files of an input in order, and a name for all of them."""
    if len(paths) == 1:
        return _expand(paths[0], request)
    found: list[_Shard] = []
    for path in paths:
        found += _expand(path, request)[0]
    numbered = len({_skeleton(shard.path) for shard in found}) == 1
    if numbered:
        found.sort(key=lambda shard: _natural(shard.path))
        _check_complete([shard.path for shard in found], from_start=False)
    for at, shard in enumerate(found):
        if shard in found[:at]:
            raise InputError(f"{shard.path} is given twice")
    return found, _pattern([shard.path for shard in found])


def _expand(path: Path, request: Request) -> tuple[list[_Shard], str]:
    text = str(path)
    if path.is_dir():
        return _folder(path, request)
    if path.name.endswith(".index.json") and path.is_file():
        return _index(path, request), text
    if not path.exists() and glob.has_magic(text):
        matches = [Path(match) for match in glob.glob(text, recursive=True)]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise InputError(f"{text} matches no file")
        return _sequence(text, files, request, from_start=False)
    return [_Shard(path)], text


def _folder(folder: Path, request: Request) -> tuple[list[_Shard], str]:
    entries = sorted(os.listdir(folder))
    if "dataset_dict.json" in entries:
        splits = [name for name in entries if (folder / name / "state.json").exists()]
        raise InputError(f"{folder} has splits: name the folder of one of them: {listing(splits)}")
    if "state.json" in entries and "dataset_info.json" in entries:
        return _hugging_face(folder), str(folder)
    indices = [name for name in entries if name.endswith(".index.json")]
    if len(indices) == 1:
        return _index(folder / indices[0], request), str(folder)
    visible = [folder / name for name in entries if not name.startswith((".", "_"))]
    files = [file for file in visible if file.is_file()]
    data = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not data:
        # A Parquet data set may have a folder for each value of a column.
        data = [
            file
            for file in folder.rglob("*.parquet")
            if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
        ]
        if data:
            data.sort(key=_natural)
            # A writer numbers its files over all folders, and may write a number into several.
            _check_complete([*{file.name: file for file in data}.values()], from_start=False)
            return [_Shard(file) for file in data], str(folder)
    if not data:
        if any(name in entries for name in (".zarray", ".zgroup", "zarr.json")):
            raise InputError(
                f"{folder} is a Zarr store: save the array with numpy.save(NAME, array[:])"
            )
        for file in files:
            if file.suffix.lower() in FOREIGN_SUFFIXES:
                open_source(file, request)  # says what it is
        raise InputError(
            f"{folder} is a directory without .npy, .npz, .safetensors, .parquet, .arrow or .csv "
            "files"
        )
    return _sequence(str(folder), data, request, from_start=True)


def _sequence(
    text: str, files: list[Path], request: Request, from_start: bool
) -> tuple[list[_Shard], str]:
    """The files of one array, out of those of a folder or pattern, in natural order."""
    if len({_skeleton(file) for file in files}) > 1:
        usual = [file for file in files if file.name.lower().startswith(request.usual)]
        files = usual or files
    kinds: dict[str, list[Path]] = {}
    for file in sorted(files, key=_natural):
        kinds.setdefault(_skeleton(file), []).append(file)
    if len(kinds) > 1 and (
        any(len(group) > 1 for group in kinds.values())
        or len({file.suffix.lower() for file in files}) > 1
    ):
        patterns = [_pattern(group) for group in kinds.values()]
        raise InputError(
            f"{text} has files of several kinds: {listing(patterns)}; name those of the "
            f"{request.what} by a quoted pattern"
        )
    files = [file for group in kinds.values() for file in group]
    if len(kinds) == 1:
        _check_complete(files, from_start)
    return [_Shard(file) for file in files], _pattern(files)


def _index(path: Path, request: Request) -> list[_Shard]:
    """The tensors and files that the index of a sharded .safetensors lists, in order."""
    content = read_json(path)
    entries = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
        raise InputError(f"{path} has no weight_map from tensors to files")
    bases: dict[str, list[str]] = {}
    for name in entries:
        bases.setdefault(re.sub(r"[._\-]?\d+$", "", name), []).append(name)
    names: list[str] = []
    if request.name is not None and request.name in entries:
        names = [request.name]
    elif bases:
        names = bases[request.choose(path, list(bases))]
    if names == sorted(names):  # as JSON is often written: 10 stands before 2
        names.sort(key=_natural_text)
    shards = []
    for name in names:
        file = path.parent / entries[name]
        if not file.is_file():
            raise InputError(f"{path} lists {entries[name]}, which is missing")
        shards.append(_Shard(file, name))
    return shards


def _hugging_face(folder: Path) -> list[_Shard]:
    """The Arrow files of a data set that `datasets` saved, in the order of its state."""
    state = read_json(folder / "state.json")
    if isinstance(state, dict) and (
        state.get("_indices_files") or state.get("_indices_data_files")
    ):
        raise InputError(
            f"{folder} has rows in an order of their own: save it after dataset.flatten_indices()"
        )
    files = state.get("_data_files") if isinstance(state, dict) else None
    found = [file.get("filename") for file in files or () if isinstance(file, dict)]
    names = [name for name in found if isinstance(name, str)]
    if not names or len(names) < len(found):
        raise InputError(f"{folder / 'state.json'} lists no data files")
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks {name}, which its state.json lists")
    return [_Shard(folder / name) for name in names]


# Names and numbers --------------------------------------------------------------------------------


_DIGITS = re.compile(r"(\d+)")


def _natural_text(text: str) -> list[tuple[int, int, str]]:
    """A key that orders numbers in a text by their value."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in _DIGITS.split(text)
        if part
    ]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [*_natural_text(str(path.parent)), (0, 0, "/"), *_natural_text(path.stem)]


def _skeleton(path: Path) -> str:
    """A path with a mark for each number of its name."""
    return str(path.with_name(_DIGITS.sub("#", path.stem) + path.suffix))


def _pattern(files: Sequence[Path]) -> str:
    """What stands for several files in a report: where their names differ, a star."""
    texts = [str(file) for file in files]
    if len(texts) == 1:
        return texts[0]
    start = _common_start(texts)
    end = _common_start([text[len(start) :][::-1] for text in texts])[::-1]
    start = start.rstrip("0123456789")
    end = end.lstrip("0123456789")
    return f"{start}*{end} ({len(texts)} files)"


def _common_start(texts: Sequence[str]) -> str:
    least, most = min(texts), max(texts)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(least, most, strict=False))
    return "".join(char for char, _ in same)


def _check_complete(files: Sequence[Path], from_start: bool) -> None:
    """Name the shards that a sequence of numbers lacks."""
    if len(files) < 2 and "-of-" not in files[0].name:
        return
    parts = [_DIGITS.split(file.stem) for file in files]
    if len({len(part) for part in parts}) > 1:
        return
    differ = [at for at in range(1, len(parts[0]), 2) if len({part[at] for part in parts}) > 1]
    total = None
    places = [
        at for at in range(1, len(parts[0]) - 2, 2) if parts[0][at + 1].strip("-_.").lower() == "of"
    ]
    if places and differ in ([], [places[0]]):
        differ, total = [places[0]], int(parts[0][places[0] + 2])
    if len(differ) != 1:
        return
    at = differ[0]
    present = {int(part[at]) for part in parts}
    if len(present) < len(files):
        return
    expected = _expected(present, total, from_start)
    missing = sorted(expected - present)
    if not missing:
        return
    first = parts[0][at]
    width = len(first) if all(len(part[at]) == len(first) for part in parts) else 0

    def name_of(number: int) -> str:
        pieces = [*parts[0]]
        pieces[at] = str(number).zfill(width)
        return "".join(pieces) + files[0].suffix

    names = ", ".join(name_of(number) for number in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise InputError(f"{files[0].parent} lacks {names}{more} of a sequence of numbered files")


def _expected(present: set[int], total: int | None, from_start: bool) -> set[int]:
    """The numbers that a sequence has when nothing is missing."""
    least, most = min(present), max(present)
    if total is not None:
        if 0 < total < 10**7:
            first = 1 if 0 not in present and total in present else 0
            return set(range(first, first + total))
        return present
    numbers = sorted(present)
    step = math.gcd(*(b - a for a, b in itertools.pairwise(numbers)))
    # Names such as step-1000 and step-2000 count something else than shards, and so do numbers
    # with more gaps than files.
    if step >= 10 or most - least + 1 > 2 * len(present):
        return present
    if from_start and 1 < least <= len(present):
        least = 1
    return set(range(least, most + 1))


# Reading ------------------------------------------------------------------------------------------


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Part:
    """A shard of an array: its header at once, its rows when they are wanted."""

    def __init__(self, shard: _Shard, request: Request, stamp: tuple[int, ...], source: Source):
        self.shard, self._request, self._stamp_before = shard, request, stamp
        self.label, self.shape, self.dtype = source.label, source.shape, source.dtype
        self.least_rows, self.unnamed = source.least_rows, source.unnamed
        self._source: Source | None = None
        self._lock = threading.Lock()
        self._pending = 0
        self._finished = False

    def open(self, axis: int) -> Source:
        if stamp(self.shard.path) != self._stamp_before:
            raise InputError(f"{self.shard.path} changed while the files before it were read")
        source = _open_shard(self.shard, self._request)
        self._source = along(source, axis)
        return self._source

    def piece(self, piece: Piece) -> Piece:
        """A piece of this shard, which holds its file open until it is loaded."""
        with self._lock:
            self._pending += 1
        return Piece(piece.rows, lambda: self._load(piece))

    def _load(self, piece: Piece) -> Array:
        array = piece.load()
        with self._lock:
            self._pending -= 1
            done = self._finished and not self._pending
        if done:
            self.close()
        return array

    def finish(self) -> None:
        """No more pieces will be asked for."""
        with self._lock:
            self._finished = True
            done = not self._pending
        if done:
            self.close()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


class Shards(Source):
    """Arrays of several files, one behind the other along an axis."""

    def __init__(self, label: str, parts: list[_Part], axis: int):
        first = parts[0]
        for part in parts:
            fits = len(part.shape) == len(first.shape) > 0 and all(
                a == b or at == axis
                for at, (a, b) in enumerate(zip(part.shape, first.shape, strict=True))
            )
            if not fits:
                raise InputError(
                    f"{part.label} has shape {part.shape}, which does not fit {first.shape} of "
                    f"{first.label}"
                )
            if part.dtype != first.dtype:
                raise InputError(
                    f"{part.label} has dtype {part.dtype}, and {first.label} has {first.dtype}"
                )
        rows = sum(part.shape[axis] for part in parts)
        shape = (*first.shape[:axis], rows, *first.shape[axis + 1 :])
        name = first.label.removeprefix(str(first.shard.path))
        super().__init__(label + name, shape, first.dtype, axis)
        self.unnamed = first.unnamed
        self.files = tuple(dict.fromkeys(part.shard.path for part in parts))
        self._parts = parts
        self._at = -1
        self._source: Source | None = None
        self._left = 0

    @property
    def least_rows(self) -> int:
        return max(part.least_rows for part in self._parts)

    def along(self, axis: int) -> Shards:
        """The same array, walked along another axis."""
        return self if axis == self.axis else Shards(self.label, self._parts, axis)

    def read(self, count: int) -> Piece:
        while not self._left:
            if self._source is not None:
                self._parts[self._at].finish()
                self._source = None
            if self._at + 1 == len(self._parts):
                return Piece(0, lambda: np.empty(0, self.dtype))
            self._at += 1
            part = self._parts[self._at]
            self._source = part.open(self.axis)
            if (self._source.shape, self._source.dtype) != (part.shape, part.dtype):
                raise InputError(f"{part.shard.path} changed while the files before it were read")
            self._left = part.shape[self.axis]
        assert self._source is not None
        piece = self._source.read(min(count, self._left))
        if not piece.rows:
            raise InputError(f"{self._parts[self._at].label} ends {self._left} rows early")
        self._left -= piece.rows
        return self._parts[self._at].piece(piece)

    def close(self) -> None:
        for part in self._parts:
            part.close()
