"""Groups of samples, such as documents, domains or languages: what each of them adds up to.

A group is named by a number or a text for each sample, or for each row of samples (a document of
tokens). What is kept grows with the number of groups, and with nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastloss._scoring import InputError
from fastloss._scoring.layout import Layout
from fastloss._scoring.sources import Array, Source


def check_groups(layout: Layout, groups: Source) -> Source:
    """The groups as they will be read, if there is one for each sample or each row of samples.

    Raises
    ------
    InputError
        If there are more or fewer of them.
    """
    shape = layout.target_shape
    if not groups.ndim or groups.shape != shape[: groups.ndim]:
        wanted = [str(shape[:n]) for n in range(1, len(shape) + 1)]
        raise InputError(
            f"{groups.label} has shape {groups.shape}, expected {' or '.join(wanted)}: a group for "
            + ("each sample" if len(shape) == 1 else "each sample or each row of them")
        )
    if groups.dtype.kind == "f":
        raise InputError(
            f"{groups.label} has dtype {groups.dtype}: groups are integers or names, not reals"
        )
    return layout.window(groups)


def groups_of(layout: Layout, groups: Array) -> Array:
    """The group of each sample of a block."""
    groups = groups.copy()  # the memory of what was read is used again
    missing = len(layout.read_shape) - groups.ndim
    if missing:
        groups = groups.reshape(groups.shape + (1,) * missing)
        return layout.kept(np.broadcast_to(groups, (len(groups), *layout.read_shape[1:])))
    return layout.kept(layout.aligned(groups, groups.flat[0]))


@dataclass
class Part:
    """The sums of each group that a block has."""

    names: list[int | str]
    """In the order in which the groups come."""
    sums: Array
    """Of shape (quantities, groups)."""


def add_up(groups: Array, quantities: list[Array]) -> Part:
    """Sum each quantity of the samples by group."""
    names, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    sums = np.array(
        [np.bincount(inverse.ravel(), values, len(names)) for values in quantities], np.float64
    ).reshape(len(quantities), len(names))
    order = np.argsort(first)
    return Part([_plain(name) for name in names[order].tolist()], sums[:, order])


def _plain(name: object) -> int | str:
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    return name if isinstance(name, int) else str(name)


class Groups:
    """The sums of all groups, in the order in which they were met."""

    def __init__(self) -> None:
        self._sums: dict[int | str, Array] = {}

    def merge(self, part: Part | None) -> None:
        """Add the sums of a block."""
        for at, name in enumerate(part.names if part is not None else ()):
            assert part is not None
            if (sums := self._sums.get(name)) is not None:
                sums += part.sums[:, at]
            else:
                self._sums[name] = part.sums[:, at].copy()

    def __len__(self) -> int:
        return len(self._sums)

    def __iter__(self) -> Iterator[tuple[int | str, Array]]:
        return iter(self._sums.items())


def ratio(above: float, below: float) -> float:
    """A quotient, NaN where there is nothing to divide by."""
    return above / below if below else math.nan


def exp(value: float) -> float:
    """The exponential, infinity where it overflows."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
