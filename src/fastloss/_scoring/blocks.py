"""Rows of several sources that belong together, a block at a time, on several threads.

`walk` is the engine under all commands: it reads what a block needs, hands it to one thread, and
yields the results in the order of the rows. Between blocks, nothing is kept but by the caller.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np

import fastloss
from fastloss._scoring import InputError
from fastloss._scoring.sources import ArraySource, FileSource, Piece, Source

Result = TypeVar("Result")

# Logits of one array worked on at a time by a thread: few enough to stay in a cache between passes.
BLOCK_BYTES = 4 << 20
# Samples at a time, where each has few logits: bounds the arrays of results.
BLOCK_SAMPLES = 1 << 18
# Results of fewer samples are gathered before they are added up: to look at an array costs about as
# much as to look at a thousand of its elements.
GATHERED_SAMPLES = 1 << 12
# Threads that work on blocks at most: memory holds a block for each, and few outrun any disk.
MOST_THREADS = 16
# Logits that all threads hold at a time: fewer threads work on rows that are very long.
MOST_BYTES = 256 << 20


class Results(Protocol):
    """What a block's samples got: a dataclass of flat arrays of one length.

    None stands for what nobody asked for, or for what is true of all.
    """

    logits_bytes: int

    @property
    def size(self) -> int: ...


Several = TypeVar("Several", bound=Results)


@dataclass
class Block:
    """Some rows of all sources."""

    first_row: int
    rows: int
    arrays: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]


def rows_at_a_time(lead: Source, samples_per_row: int) -> int:
    """How many rows of the logits make a block."""
    row_bytes = max(1, lead.row_bytes)
    rows = min(BLOCK_BYTES // row_bytes, BLOCK_SAMPLES // max(1, samples_per_row))
    # Across the file's order, only a long stretch of it is worth a read.
    return max(1, rows, min(lead.least_rows, MOST_BYTES // 4 // row_bytes))


def walk(
    sources: Mapping[str, Source | float | None],
    samples_per_row: int,
    work: Callable[[Block], Result],
) -> Generator[Result, None, None]:
    """Do ``work`` on every block of the sources, and yield the results in order.

    The first source is the one that decides how long a block is. Several blocks are worked on at a
    time, each by one thread: threads that never wait for each other lose little where another
    process holds a core, and one thread's page faults are another's arithmetic. A single block is
    left to the threads of the kernel.

    Raises
    ------
    InputError
        If a source can't be read to its end.
    """
    lead, *others = (source for source in sources.values() if isinstance(source, Source))
    rows = lead.shape[lead.axis]
    most = rows_at_a_time(lead, samples_per_row)

    def worked(pieces: _Pieces) -> Result:
        # What isn't finite is counted, so NumPy needn't warn of it. The setting is a thread's.
        with np.errstate(all="ignore"):
            return work(pieces.load())

    nothing = not rows * samples_per_row
    pieces = iter(()) if nothing else _read(sources, lead, rows, most)
    like_lead = 1 + sum(other.shape == lead.shape for other in others)
    block_bytes = most * lead.row_bytes * like_lead
    threads = fastloss.get_num_threads()
    workers = min(threads, MOST_THREADS, MOST_BYTES // max(1, block_bytes))
    if workers <= 1 or rows <= most:
        yield from map(worked, pieces)
        return
    fastloss.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, "fastloss-score")
    running: deque[Future[Result]] = deque()
    try:
        for some in pieces:
            running.append(pool.submit(worked, some))
            if len(running) > workers + 1:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        fastloss.set_num_threads(threads)


def walk_results(
    sources: Mapping[str, Source | float | None],
    samples_per_row: int,
    work: Callable[[Block], Several],
    digest: Callable[[Several], Result],
) -> Generator[tuple[Several, Result], None, None]:
    """`walk`, with the results of short blocks joined, and a digest of each."""
    lead = next(source for source in sources.values() if isinstance(source, Source))
    if rows_at_a_time(lead, samples_per_row) * samples_per_row >= GATHERED_SAMPLES:

        def both(block: Block) -> tuple[Several, Result]:
            results = work(block)
            return results, digest(results)

        yield from walk(sources, samples_per_row, both)
        return
    gathered: list[Several] = []

    def joined() -> tuple[Several, Result]:
        with np.errstate(all="ignore"):
            results = join(gathered)
            gathered.clear()
            return results, digest(results)

    with contextlib.closing(walk(sources, samples_per_row, work)) as blocks:
        for results in blocks:
            gathered.append(results)
            if sum(part.size for part in gathered) >= GATHERED_SAMPLES:
                yield joined()
    if gathered:
        yield joined()


def join(parts: Sequence[Several]) -> Several:
    """The results of several blocks as those of one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[str, Any] = {"logits_bytes": sum(part.logits_bytes for part in parts)}
    # Several is a protocol, and all that meet it are dataclasses.
    for name in (field.name for field in fields(parts[0])):  # type: ignore[arg-type]
        values = [getattr(part, name) for part in parts]
        if name not in found:
            found[name] = None
            if any(value is not None for value in values):
                # A block of which nothing is ignored has no array that says so.
                found[name] = np.concatenate(
                    [
                        np.ones(part.size, bool) if value is None else value
                        for part, value in zip(parts, values, strict=True)
                    ]
                )
    return type(parts[0])(**found)


@dataclass
class _Pieces:
    """A block on its way: of an array in a file nothing is read yet."""

    first_row: int
    rows: int
    pieces: Mapping[str, Piece | float | None]

    def load(self) -> Block:
        arrays = {
            name: piece.load() if isinstance(piece, Piece) else piece
            for name, piece in self.pieces.items()
        }
        return Block(self.first_row, self.rows, arrays)


def _read(
    sources: Mapping[str, Source | float | None], lead: Source, rows: int, most: int
) -> Iterator[_Pieces]:
    first = 0
    while first < rows:
        logits = lead.read(most)
        if logits.rows == 0:
            raise InputError(f"{lead.label} ends {rows - first} rows early")
        pieces: dict[str, Piece | float | None] = {}
        for name, source in sources.items():
            if source is lead:
                pieces[name] = logits
            elif isinstance(source, Source):
                pieces[name] = source.read_exactly(logits.rows)
            else:
                pieces[name] = source
        yield _Pieces(first, logits.rows, pieces)
        first += logits.rows


class Whole(Source):
    """A weight that applies to every block alike."""

    def __init__(self, source: Source):
        super().__init__(source.label, source.shape, source.dtype)
        if not source.ndim:
            source = with_shape(source, (1,))
        # What has no rows can't be read.
        array = np.empty(source.shape, source.dtype)
        if array.size:
            array = source.read_all()
        self._piece = Piece(len(array), lambda: array)

    def read(self, count: int) -> Piece:
        """All of it, whatever the count."""
        return self._piece

    read_exactly = read


class Window(Source):
    """Some rows of a source, from one on; they are read where they lie."""

    def __init__(self, source: Source, start: int, stop: int):
        shape = list(source.shape)
        shape[source.axis] = stop - start
        super().__init__(source.label, shape, source.dtype, source.axis)
        self._source, self._skip, self._left = source, start, stop - start

    @property
    def least_rows(self) -> int:
        return self._source.least_rows

    def read(self, count: int) -> Piece:
        if self._skip:
            self._source.read_exactly(self._skip)
            self._skip = 0
        piece = self._source.read(min(count, self._left))
        self._left -= piece.rows
        return piece


def with_shape(source: Source, shape: tuple[int, ...]) -> Source:
    """The same values in a shape that differs by axes of length 1 alone."""
    if isinstance(source, ArraySource | FileSource):
        return source.reshaped(shape)
    return ArraySource(source.label, source.read_all().reshape(shape))


def samples_in(shape: tuple[int, ...]) -> int:
    """How many samples a row has, by the shape of all samples."""
    return math.prod(shape[1:])
