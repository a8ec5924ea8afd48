"""How arrays belong together: which axis holds the classes, which target goes with which logits.

`lay_out` checks shapes and types before a row is read. What it returns is common to all commands: a
*sample* is what has a class of its own, a row of logits, a pixel of a segmentation map or a token;
its number is its place in the flattened targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastloss._scoring import InputError
from fastloss._scoring.blocks import Block, Window, with_shape
from fastloss._scoring.sources import Array, ArraySource, FileSource, Source


@dataclass
class Layout:
    """Shapes that fit, and the sources as they will be read."""

    logits: Source
    targets: Source | None
    classes: int
    target_shape: tuple[int, ...]
    """The shape of the targets in their file, whose places name the samples."""
    read_shape: tuple[int, ...]
    """The shape of the samples that are read."""
    class_axis: int | None
    """None for a binary loss."""
    probabilities: bool = False
    """Whether the targets are class probabilities."""
    shift: int = 0
    """How many tokens the targets are ahead of the logits."""

    @property
    def ahead(self) -> int:
        """Tokens that are read and stay without a target, at the end of each row."""
        return self.shift if len(self.read_shape) > 1 else 0

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of the samples that count."""
        return (*self.read_shape[:-1], max(0, self.read_shape[-1] - self.ahead))

    @property
    def samples(self) -> int:
        return math.prod(self.sample_shape)

    @property
    def rows(self) -> int:
        return self.logits.shape[self.logits.axis]

    @property
    def samples_per_row(self) -> int:
        return math.prod(self.read_shape[1:])

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.logits.row_bytes

    def aligned(self, values: Array, filler: Any) -> Array:
        """What lies in a block like the targets, moved to the logits it belongs to."""
        if not self.ahead:
            return values
        moved = np.full_like(values, filler)
        moved[..., : -self.ahead] = values[..., self.ahead :]
        return moved

    def kept(self, values: Array) -> Array:
        """The results of a block's samples, without those that have no target, in one row."""
        return (values[..., : -self.ahead] if self.ahead else values).ravel()

    def numbers(self, block: Block) -> Array:
        """The numbers of a block's samples, in the order of `kept`."""
        per_row = math.prod(self.target_shape[1:])
        first = (block.first_row + (self.shift - self.ahead)) * per_row
        numbers = np.arange(first, first + block.rows * per_row)
        if self.ahead:
            numbers = numbers.reshape(-1, self.target_shape[-1])[:, self.ahead :].ravel()
        return numbers

    def beside(self, source: Source) -> Source:
        """What lies like the logits, without the last rows, which have no target."""
        if not self.shift or self.ahead:
            return source
        return Window(source, 0, source.shape[source.axis] - self.shift)

    def window(self, source: Source) -> Source:
        """What lies like the targets, from the first row on that goes with a row of logits."""
        if not self.shift or self.ahead:
            return source
        return Window(source, self.shift, source.shape[source.axis])


def lay_out(
    logits: Source,
    targets: Source | None,
    axis: int | None = None,
    shift: int = 0,
    soft_targets: str | None = None,
) -> Layout:
    """Check that logits and targets belong together, and find the class axis.

    Parameters
    ----------
    logits, targets : Source
        Without targets, samples are numbered by the logits.
    axis : int, optional
        The class axis; if it is not given, the one that the targets don't have; where that leaves a
        choice, 1.
    shift : int
        How many tokens the targets are ahead.
    soft_targets : str, optional
        Why class probabilities are not taken here; None where they are.

    Raises
    ------
    InputError
        If a shape or dtype doesn't fit; the text shows both shapes.
    """
    ndim = logits.ndim
    if ndim == 0:
        raise InputError(f"{logits.label} has shape (), expected one with a class axis")
    axis = _class_axis(logits, targets, axis)
    classes = logits.shape[axis]
    sample_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if classes == 0:
        raise InputError(f"{logits.label} has shape {logits.shape}: there are no classes")
    probabilities = False
    if targets is not None:
        probabilities = _check_targets(logits, targets, sample_shape, soft_targets)
    if shift:
        _check_shift(logits, sample_shape, shift, probabilities)
    if ndim == 1:
        # An unbatched sample: a batch of one.
        logits = with_shape(logits, (1, classes))
        if targets is not None:
            targets = with_shape(targets, (1, classes) if probabilities else (1,))
        axis, sample_shape = 1, (1,)
    elif axis == 0:
        logits = along(logits, 1)
        if probabilities and targets is not None:
            targets = along(targets, 1)
    layout = Layout(
        logits, targets, classes, sample_shape, sample_shape, axis, probabilities, shift
    )
    if shift and len(sample_shape) == 1:
        layout.logits = Window(logits, 0, sample_shape[0] - shift)
        layout.read_shape = (sample_shape[0] - shift,)
        if targets is not None:
            layout.targets = layout.window(targets)
    return layout


def _class_axis(logits: Source, targets: Source | None, axis: int | None) -> int:
    ndim = logits.ndim
    if axis is not None:
        if not -ndim <= axis < ndim:
            raise InputError(
                f"--axis {axis} is outside the {ndim} dimensions of {logits.label} {logits.shape}"
            )
        return axis % ndim
    usual = min(1, ndim - 1)
    if ndim < 3:
        return usual
    if targets is None:
        raise InputError(
            f"{logits.label} has shape {logits.shape}: say with --axis which axis holds the "
            "classes (1 as PyTorch has it, -1 for tokens)"
        )
    without = logits.shape[:usual] + logits.shape[usual + 1 :]
    last = targets.shape == logits.shape[:-1] and targets.shape != without
    return ndim - 1 if last else usual


def _check_targets(
    logits: Source, targets: Source, sample_shape: tuple[int, ...], soft_targets: str | None
) -> bool:
    """Whether the targets are class probabilities; refuse what is neither these nor indices."""
    probabilities = targets.shape == logits.shape and targets.shape != sample_shape
    integers = targets.dtype.kind in "iu"
    if targets.shape != sample_shape and not probabilities:
        both = (
            f"{logits.label} has shape {logits.shape} and {targets.label} has shape {targets.shape}"
        )
        if logits.dtype.kind in "iu" and any(
            logits.shape == targets.shape[:i] + targets.shape[i + 1 :] for i in range(targets.ndim)
        ):
            raise InputError(f"{both}: LOGITS come first, then TARGETS")
        raise InputError(
            f"{both}: expected {sample_shape} (class indices)"
            + ("" if soft_targets else f" or {logits.shape} (class probabilities)")
        )
    if probabilities and (integers or soft_targets):
        raise InputError(
            f"{targets.label} has the logits' shape {logits.shape} and dtype {targets.dtype}: "
            f"expected class indices of shape {sample_shape}"
            + (f"; {soft_targets}" if soft_targets else " or floating class probabilities")
        )
    if not probabilities and not integers:
        raise InputError(
            f"{targets.label} has dtype {targets.dtype}: class indices must be integers"
        )
    return probabilities


def _check_shift(
    logits: Source, sample_shape: tuple[int, ...], shift: int, probabilities: bool
) -> None:
    if probabilities:
        raise InputError("--shift needs class indices, not class probabilities")
    tokens = sample_shape[-1] if sample_shape else 0
    if not 0 < shift < tokens:
        raise InputError(
            f"--shift {shift}: expected 0 or more, and less than the {tokens} tokens of a row of "
            f"{logits.label}"
        )


def along(source: Source, axis: int) -> Source:
    """The same source, walked along another axis, where that can be done."""
    if source.axis == axis:
        return source
    if isinstance(source, ArraySource | FileSource):
        return source.along(axis)
    raise InputError(
        f"{source.label} can only be read row by row, so its class axis can't be 0; "
        "save it as .npy, .safetensors or uncompressed .npz"
    )
