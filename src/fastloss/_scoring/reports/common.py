"""What all reports share: numbers in words and in JSON, facts and tables."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fastloss
from fastloss._config import config
from fastloss._scoring import plural
from fastloss._scoring.sources import Source
from fastloss._scoring.terminal import is_terminal, one_line


def number(value: float) -> float | None:
    """A number as JSON has it: what is NaN or infinite becomes null."""
    return value if math.isfinite(value) else None


def source_label(source: Source | float | None) -> str | float | None:
    """What a setting is in JSON."""
    if isinstance(source, Source):
        return source.label
    return None if source is None else number(source)


def run_time() -> dict[str, Any]:
    """The settings that all commands have."""
    return {
        "threads": fastloss.get_num_threads(),
        "instruction_set": config()["instruction_set"],
        "version": fastloss.__version__,
    }


class Report:
    """A report for people, as wide and as colourful as standard output can show it."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._console = Console(
            file=self._text,
            force_terminal=is_terminal(sys.stdout) or None,
            highlight=False,
            # A file's name is shown as it is, brackets and colons included.
            markup=False,
            emoji=False,
        )

    def facts(self, rows: Iterable[tuple[str, str | None]], warning: str | None = None) -> None:
        """Names and values, one a line; what is None is left out."""
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for name, value in rows:
            if value is not None:
                facts.add_row(name, value)
        if warning is not None:
            facts.add_row("warning", warning, style="red")
        self._console.print(facts)

    def table(
        self,
        title: str,
        names: Sequence[str],
        rows: Sequence[Sequence[str]],
        left: Sequence[int] = (),
    ) -> None:
        """A table with numbers to the right; nothing where it has no rows."""
        if not rows:
            return
        # Not the table's own title, which is broken to the width of the table.
        self._console.print(title, style="bold")
        table = Table()
        for at, name in enumerate(names):
            table.add_column(name, justify="left" if at in left else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def __str__(self) -> str:
        return self._text.getvalue()


def described(source: Source) -> str:
    """A source's name, type and shape."""
    shape = " × ".join(f"{n:,}" for n in source.shape)
    return f"{one_line(source.label)}, {source.dtype} {shape}"


def place(number: int, shape: tuple[int, ...]) -> str:
    """The index of a sample on each axis."""
    return ", ".join(map(str, np.unravel_index(number, shape)))


def probability(log_prob: float) -> str:
    """A probability; what was passed for its logarithm may be any number."""
    try:
        return f"{math.exp(log_prob):.3g}"
    except OverflowError:
        return "inf"


def percent(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.2%}"


def digits(value: float, precision: int = 6) -> str | None:
    return None if math.isnan(value) else f"{value:.{precision}g}"


def throughput(samples: int, data: int, seconds: float) -> str:
    return f"{samples / seconds:,.0f} samples/s, {data / seconds / 1e9:.2f} GB/s ({seconds:.3g} s)"


def runs_on() -> str:
    return f"{config()['instruction_set']}, {plural(fastloss.get_num_threads(), 'thread')}"


def group_name(name: int | str) -> str:
    return one_line(str(name))
