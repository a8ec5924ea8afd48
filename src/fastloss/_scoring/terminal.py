"""The terminal: progress, results, errors in one line, and ends by signals.

Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fastloss._scoring import InputError


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on standard error, where that is a terminal."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True)
    silent = not is_terminal(sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn the errors that a user can cause into one line and an exit status."""
    try:
        yield
    except (InputError, ImportError) as error:
        fail(str(error), 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        fail(f"{name}{error.strerror or error}", 2)
    except MemoryError as error:
        fail(f"not enough memory: {error}", 2)


def fail(message: str, status: int) -> NoReturn:
    say(message)
    raise typer.Exit(status)


def say(message: str) -> None:
    """Print one line on standard error, where there is one."""
    if sys.stderr is not None:  # else print would take standard output
        with contextlib.suppress(OSError):
            print(f"fastloss: {one_line(message)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Text as it can be shown: what a file's name may hold to confuse a terminal is escaped."""
    line = " ".join(text.split())
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
    )


def print_results(text: str) -> None:
    """Print on standard output, and notice a full disk or a closed pipe."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        # What the terminal has no letters for is shown as question marks.
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"cannot write to standard output: {error.strerror or error}") from error


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a standard stream, which may be closed, is a terminal."""
    return stream is not None and stream.isatty()


# What ends a run, and Ctrl-C. SIGHUP comes when a terminal is closed; Windows has none.
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End the run by an exception, so that its files are removed on the way out."""
    for other in _SIGNALS:  # a second signal must not cut that short
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        say("interrupted")
    sys.exit(128 + number)


def open_standard_streams() -> None:
    """Give a closed standard stream's number to nothing, or a result's file would get it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def end_cleanly() -> None:
    """Have the signals that end a run remove its files."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
