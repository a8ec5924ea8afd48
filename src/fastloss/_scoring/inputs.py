"""What the words of a command line stand for: files, folders, patterns and columns as sources."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastloss._scoring import InputError
from fastloss._scoring.readers.files import Request
from fastloss._scoring.readers.shards import open_input, stamp
from fastloss._scoring.sources import ArraySource, Source
from fastloss.data import load_digits_logits

LOGITS = ("logits", "log_probs")
TARGETS = ("targets", "target", "labels", "label")
WEIGHTS = ("weight", "weights")
GROUPS = ("groups", "group", "documents", "document", "doc", "domain")


@dataclass
class Inputs:
    """Opens sources, and closes them all at the end."""

    stack: contextlib.ExitStack
    opened: list[Source] = field(default_factory=list)
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    """Of every file as it was when it was opened first."""

    def close(self) -> None:
        """Let go of all files, which may then be opened again."""
        for source in self.opened:
            source.close()
        self.opened.clear()

    def open(self, paths: Sequence[Path], request: Request, axis: int | None = None) -> Source:
        """One array of some files; shards are joined along the first axis that has no classes."""

        def joined(ndim: int) -> int:
            return 1 if axis is not None and ndim > 1 and axis in (0, -ndim) else 0

        return self._kept(open_input(paths, request, joined))

    def _kept(self, source: Source) -> Source:
        self.stack.callback(source.close)
        self.opened.append(source)
        for file in source.files:
            now = stamp(file)
            if self.stamps.setdefault(file, now) != now:
                raise InputError(f"{file} changed while it was read")
        return source

    def weight(
        self, option: str, paths: Sequence[Path] | None, axis: int | None = None
    ) -> Source | None:
        """A weight, where one is given."""
        if not paths:
            return None
        return self.open(paths, Request("weight", option, None, WEIGHTS), axis)

    def number_or_file(self, option: str, text: str | None) -> Source | float | None:
        """A number, or the file that holds several."""
        if text is None:
            return None
        try:
            return float(text)
        except ValueError:
            return self.weight(option, [Path(text)])

    def logits_and_targets(
        self,
        logits: Sequence[Path],
        targets: Sequence[Path],
        logits_name: str | None,
        targets_name: str | None,
        axis: int | None,
    ) -> tuple[Source, Source]:
        """The sources of the files named, or of the embedded digits where none is."""
        if not logits:
            if targets:
                raise InputError("LOGITS is missing")
            if logits_name is not None or targets_name is not None:
                raise InputError("--logits-name and --targets-name need a file: LOGITS is missing")
            scores, labels = load_digits_logits()
            return ArraySource("handwritten digits", scores), ArraySource("their labels", labels)
        first = self.logits(logits, logits_name, axis)
        if not targets and first.unnamed and len(first.files) == 1:
            kind = first.files[0].suffix or "file"
            raise InputError(
                f"TARGETS is missing: {first.label} is a {kind}, which holds one array"
            )
        second = self.targets(targets or logits, targets_name, axis, first.ndim)
        if first.label == second.label:
            if not targets and first.unnamed:
                raise InputError(f"TARGETS is missing: {first.label} hold one array each")
            raise InputError(f"{first.label} can't be both the logits and the targets")
        return first, second

    def logits(
        self,
        paths: Sequence[Path],
        name: str | None,
        axis: int | None,
        option: str = "--logits-name",
    ) -> Source:
        """The logits; a table may have a column for each class."""
        request = Request("logits", option, name, LOGITS, classes=True)
        return self.open(paths, request, axis)

    def targets(
        self, paths: Sequence[Path], name: str | None, axis: int | None, ndim: int
    ) -> Source:
        """The targets; class probabilities have as many dimensions as the logits."""
        request = Request("targets", "--targets-name", name, TARGETS)
        return self._kept(
            open_input(paths, request, lambda n: int(n == ndim > 1 and axis in (0, -n)))
        )

    def groups(self, text: str | None, places: Sequence[Sequence[Path]]) -> Source | None:
        """What --group-by names: a file, FILE:COLUMN, or a column of one of the inputs."""
        if text is None:
            return None
        file, _, column = text.rpartition(":")
        request = Request("groups", f"--group-by {text}:COLUMN", None, GROUPS, text=True)
        if Path(text).exists() or (glob.has_magic(text) and glob.glob(text)):
            return self.open([Path(text)], request)
        if file and Path(file).exists():
            request.name, request.option = column, "--group-by"
            return self.open([Path(file)], request)
        request.name, request.option = text, "--group-by"
        problems = []
        for paths in places:
            if not paths:
                continue
            try:
                return self.open(paths, request)
            except InputError as error:
                problems.append(str(error))
        raise InputError(
            f"--group-by {text} is neither a file nor a column"
            + "".join(f"; {problem}" for problem in problems)
        )

    def check_outputs(self, outputs: Sequence[Path | None]) -> None:
        """Refuse to replace an input by a result, or one result by another."""
        files = [file for source in self.opened for file in source.files]
        given = [output for output in outputs if output is not None]
        for at, output in enumerate(given):
            if output in given[:at]:
                raise InputError(f"{output} can't be two results")
            if output.exists() and any(output.samefile(file) for file in files if file.exists()):
                raise InputError(f"cannot write {output}: it is an input")
