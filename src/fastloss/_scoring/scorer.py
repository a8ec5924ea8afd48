"""Scores: from logits and targets to what every sample got, one block of rows at a time.

`plan` checks the shapes before a row is read and makes a `Job`; `Job.blocks` yields the scores of
each block, which a `fastloss._scoring.totals.Summary` adds up.

A *sample* is what has a loss of its own: a row of logits, a token, a pixel of a segmentation map,
or one logit of a binary loss. Its number is its position in the flattened target.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

import fastloss
from fastloss._scoring import InputError
from fastloss._scoring.blocks import Block, Whole, walk_results, with_shape
from fastloss._scoring.groups import check_groups, groups_of
from fastloss._scoring.layout import Layout, lay_out
from fastloss._scoring.sources import Array, Source
from fastloss._scoring.writers import index_columns, indices
from fastloss.evaluation.score import scores as kernel_scores

Loss = Literal["cross-entropy", "bce-with-logits", "nll"]
Digest = TypeVar("Digest")

# The prediction, or the rank, where there is none.
NONE = -1

_WANTED = ("log_prob", "rank", "predicted", "predicted_log_prob")


@dataclass
class Options:
    """The options of the loss; the names are those of the functions."""

    loss: Loss = "cross-entropy"
    weight: Source | None = None
    sample_weight: Source | None = None
    pos_weight: Source | float | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    axis: int | None = None
    shift: int = 0
    groups: Source | None = None
    entropy: bool = False
    """Whether the entropy is wanted, which takes time."""


@dataclass
class Scores:
    """What a block's samples got; flat arrays of one length."""

    number: Array
    """The numbers of the samples."""
    loss: Array
    log_prob: Array
    """Log-probability of the target; NaN where ignored."""
    target: Array
    label: Array
    """The class that counts as right."""
    predicted: Array
    """Likeliest class; `NONE` where a logit is NaN or +inf, or all are -inf."""
    predicted_log_prob: Array
    rank: Array | None
    """How many classes are as likely as the target or likelier; `NONE` where that is not known."""
    entropy: Array | None
    """None where it was not asked for."""
    brier: Array | None
    """Σ (p − y)² over the classes; None for class probabilities."""
    counted: Array | None
    """False where ignored; None when nothing is."""
    weight: Array | None
    """What each sample adds to the denominator of the mean; None for 1."""
    groups: Array | None
    logits_bytes: int

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self.loss.size

    @property
    def finite(self) -> Array:
        """Where loss, log-probability and prediction are numbers; False also where ignored."""
        # An ignored sample's log-probability is NaN.
        return np.isfinite(self.loss) & np.isfinite(self.log_prob) & (self.predicted != NONE)

    @property
    def weight_sum(self) -> float:
        """What the block adds to the denominator of the mean."""
        if self.weight is None:
            return float(self.loss.size if self.counted is None else self.counted.sum())
        weight = self.weight if self.counted is None else self.weight[self.counted]
        return float(np.sum(weight, dtype=np.float64))


@dataclass
class Job:
    """Checked inputs, ready to be scored."""

    options: Options
    layout: Layout

    @property
    def logits(self) -> Source:
        return self.layout.logits

    @property
    def targets(self) -> Source:
        assert self.layout.targets is not None
        return self.layout.targets

    @property
    def classes(self) -> int:
        return self.layout.classes

    @property
    def class_axis(self) -> int | None:
        return self.layout.class_axis

    @property
    def samples(self) -> int:
        return self.layout.samples

    @property
    def logits_bytes(self) -> int:
        return self.layout.logits_bytes

    @property
    def has_perplexity(self) -> bool:
        """Whether the targets are class indices, whose log-probabilities make a perplexity."""
        return self.class_axis is not None and not self.layout.probabilities

    def blocks(
        self, digest: Callable[[Scores], Digest]
    ) -> Generator[tuple[Scores, Digest], None, None]:
        """Score the rows, and yield each block's scores and their digest, in order.

        Raises
        ------
        InputError
            If the library rejects a block; a class index outside the classes is shown with its
            place in the whole target.
        """
        options, layout = self.options, self.layout
        sources = {
            "logits": layout.logits,
            "targets": layout.targets,
            "weight": options.weight,
            "sample_weight": options.sample_weight,
            "pos_weight": options.pos_weight,
            "groups": options.groups,
        }
        yield from walk_results(sources, layout.samples_per_row, self._score, digest)

    def _score(self, block: Block) -> Scores:
        layout = self.layout
        target = block["targets"]
        # The scores keep the targets, whose memory is used again, but not their probabilities.
        target = target if layout.probabilities else layout.aligned(target.copy(), 0)
        try:
            if self.class_axis is None:
                return self._score_binary(block, target)
            return self._score_classes(block, target, self.class_axis)
        except IndexError as error:
            raise wrong_index(layout, block, self.options.ignore_index, error) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(str(error)) from error

    def _score_classes(self, block: Block, target: Array, axis: int) -> Scores:
        options, layout, logits = self.options, self.layout, block["logits"]
        weight, sample_weight = block["weight"], block["sample_weight"]
        if sample_weight is not None:
            sample_weight = layout.aligned(sample_weight, 0)
        label = np.argmax(target, axis=axis) if layout.probabilities else target
        counted = None
        if not layout.probabilities:
            if layout.ahead:
                target[..., -layout.ahead :] = options.ignore_index
            counted = target != options.ignore_index
            if counted.all():
                counted = None
        ignored = -100 if layout.probabilities else options.ignore_index
        wanted = [*_WANTED, *(["entropy"] if options.entropy else [])]
        if not layout.probabilities:
            wanted.append("brier")
        got = kernel_scores(logits, label, tuple(wanted), ignore_index=ignored, axis=axis)
        plain = not (options.label_smoothing or layout.probabilities)
        plain &= weight is None and sample_weight is None
        log_prob, predicted_log_prob = got["log_prob"], got["predicted_log_prob"]
        # A NaN or +inf makes all log-probabilities of a sample NaN, and so do -inf alone. It shows
        # in the prediction's, which an ignored sample has, too.
        predicted = np.where(np.isnan(predicted_log_prob), NONE, got["predicted"])
        if options.loss == "nll":
            plain_loss = fastloss.nll_loss(
                logits, label, ignore_index=options.ignore_index, reduction="none", axis=axis
            )
            log_prob = 0 - plain_loss
            if counted is not None:
                log_prob = np.where(counted, log_prob, np.nan)
            at = np.expand_dims(np.maximum(predicted, 0), axis)
            chosen = np.take_along_axis(logits, at, axis).squeeze(axis)
            predicted_log_prob = np.where(predicted == NONE, np.nan, chosen)
        if plain:
            loss = 0 - log_prob if counted is None else np.where(counted, 0 - log_prob, 0)
        else:
            loss_of: Callable[..., Any] = fastloss.nll_loss
            keywords: dict[str, Any] = {}
            if options.loss == "cross-entropy":
                loss_of, keywords = fastloss.cross_entropy, {}
                keywords["label_smoothing"] = options.label_smoothing
            loss = loss_of(
                logits,
                target,
                weight=weight,
                sample_weight=sample_weight,
                ignore_index=options.ignore_index,
                reduction="none",
                axis=axis,
                **keywords,
            )
        weights = self._weights(label, counted, weight, sample_weight)
        groups = block["groups"]
        return Scores(
            layout.numbers(block),
            layout.kept(loss),
            layout.kept(log_prob),
            layout.kept(label),
            layout.kept(label),
            layout.kept(predicted),
            layout.kept(predicted_log_prob),
            layout.kept(got["rank"]),
            layout.kept(got["entropy"]) if options.entropy else None,
            None if layout.probabilities else layout.kept(got["brier"]),
            None if counted is None else layout.kept(counted),
            None if weights is None else layout.kept(weights),
            None if groups is None else groups_of(layout, groups),
            logits.nbytes,
        )

    def _score_binary(self, block: Block, target: Array) -> Scores:
        options, logits = self.options, block["logits"]
        if target.dtype.kind in "iu" and (wrong := (target != 0) & (target != 1)).any():
            place = _first(self.layout, block, wrong)
            raise InputError(f"{self.targets.label}: target {place} is not 0 or 1")
        loss = fastloss.binary_cross_entropy_with_logits(
            logits,
            target,
            weight=block["weight"],
            pos_weight=block["pos_weight"],
            reduction="none",
        )
        log_prob = 0 - loss
        if options.weight is not None or options.pos_weight is not None:
            log_prob = 0 - fastloss.binary_cross_entropy_with_logits(
                logits, target, reduction="none"
            )
        positive = np.where(np.isnan(logits), NONE, logits > 0).astype(np.int8).ravel()
        real = loss.dtype
        prob = np.asarray(fastloss.sigmoid(logits.astype(real))).ravel()
        size = np.abs(logits.astype(real)).ravel()
        # H = softplus(-|x|) + |x|·σ(-|x|)
        entropy = fastloss.softplus(-size) + np.where(
            np.isinf(size), 0, size * fastloss.sigmoid(-size)
        )
        flat = target.ravel()
        groups = block["groups"]
        return Scores(
            self.layout.numbers(block),
            loss.ravel(),
            log_prob.ravel(),
            flat,
            flat if flat.dtype.kind in "iu" else (flat >= 0.5).astype(np.int8),
            positive,
            np.asarray(fastloss.log_sigmoid(size)),
            None,
            entropy,
            2 * np.square(prob - flat),
            None,
            None,
            None if groups is None else groups_of(self.layout, groups),
            logits.nbytes,
        )

    def _weights(
        self, label: Array, counted: Array | None, weight: Array | None, sample_weight: Array | None
    ) -> Array | None:
        """w[t]·sample_weight of each sample; probabilities have no w[t]."""
        weights = None
        if weight is not None and not self.layout.probabilities:
            index = label if counted is None else np.where(counted, label, 0)
            weights = np.asarray(weight)[index].astype(np.float64)
        if sample_weight is not None:
            weights = sample_weight if weights is None else weights * sample_weight
        # A copy: the memory of what was read is used again.
        return None if weights is None else np.array(weights, np.float64)


def wrong_index(layout: Layout, block: Block, ignore_index: int, error: IndexError) -> InputError:
    """An IndexError about a block, told of the whole target."""
    assert layout.targets is not None
    target = layout.aligned(block["targets"], 0)
    wrong = ((target < 0) | (target >= layout.classes)) & (target != ignore_index)
    if not wrong.any():
        return InputError(str(error))
    first = _first(layout, block, wrong)
    hint = ": classes are numbered from 0" if first.startswith(f"{layout.classes} ") else ""
    return InputError(
        f"{layout.targets.label}: class index {first} is outside [0, {layout.classes}) and is not "
        f"the ignore_index {ignore_index}{hint}"
    )


def _first(layout: Layout, block: Block, wrong: Array) -> str:
    """The first target that is wrong, and its place in the whole array."""
    at = int(np.argmax(layout.kept(wrong)))
    value = layout.kept(layout.aligned(block["targets"], 0))[at]
    number = int(layout.numbers(block)[at])
    place = tuple(int(i) for i in np.unravel_index(number, layout.target_shape))
    return f"{value} at position {place}"


# Planning -----------------------------------------------------------------------------------------


def plan(logits: Source, targets: Source, options: Options) -> Job:
    """Check that sources and options belong together.

    Raises
    ------
    InputError
        If a shape or dtype doesn't fit; the text shows both shapes.
    """
    job = (_plan_binary if options.loss == "bce-with-logits" else _plan_classes)(
        logits, targets, options
    )
    if options.groups is not None:
        options.groups = check_groups(job.layout, options.groups)
    return job


def _plan_binary(logits: Source, targets: Source, options: Options) -> Job:
    if logits.shape != targets.shape:
        raise InputError(
            f"{logits.label} has shape {logits.shape} and {targets.label} has shape "
            f"{targets.shape}: bce-with-logits expects one target for each logit"
        )
    if not logits.ndim:
        logits, targets = with_shape(logits, (1,)), with_shape(targets, (1,))
    options.weight = _weights(options.weight, logits.shape)
    if isinstance(options.pos_weight, Source):
        options.pos_weight = _weights(options.pos_weight, logits.shape)
    return Job(options, Layout(logits, targets, 2, logits.shape, logits.shape, None))


def _plan_classes(logits: Source, targets: Source, options: Options) -> Job:
    soft = "nll takes no class probabilities" if options.loss == "nll" else None
    layout = lay_out(logits, targets, options.axis, options.shift, soft)
    check_ignore_index(options.ignore_index)
    if options.label_smoothing and not 0 <= options.label_smoothing <= 1:
        raise InputError(f"--label-smoothing {options.label_smoothing} is outside [0, 1]")
    if options.weight is not None:
        if options.weight.shape != (layout.classes,):
            raise InputError(
                f"{options.weight.label} has shape {options.weight.shape}, expected "
                f"({layout.classes},): a weight for each class"
            )
        options.weight = Whole(options.weight)
    given = options.sample_weight
    if given is not None:
        expected = targets.shape if not layout.probabilities else _samples_of(logits, layout)
        if given.shape != expected:
            raise InputError(
                f"{given.label} has shape {given.shape}, expected {expected}: a weight for each "
                "sample"
            )
        given = with_shape(given, (1,)) if logits.ndim == 1 else given
        options.sample_weight = layout.window(given)
    return Job(options, layout)


def _samples_of(logits: Source, layout: Layout) -> tuple[int, ...]:
    return () if logits.ndim == 1 else layout.target_shape


def check_ignore_index(ignore_index: int) -> None:
    """Refuse what no target can be."""
    if not -(2**63) <= ignore_index < 2**63:
        raise InputError(f"--ignore-index {ignore_index} is no 64-bit integer")


def _weights(weight: Source | None, shape: tuple[int, ...]) -> Source | None:
    """A weight that broadcasts to the logits; read along with them if it has as many rows."""
    if weight is None or (weight.shape == shape):
        return weight
    try:
        fits = np.broadcast_shapes(weight.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"{weight.label} has shape {weight.shape}, "
            f"which doesn't broadcast to the logits' {shape}"
        )
    if weight.ndim == len(shape) and weight.shape[0] == shape[0] > 1:
        return weight
    return Whole(weight)


# Columns ------------------------------------------------------------------------------------------


def row_type(job: Job) -> np.dtype[Any]:
    """The columns of a table of scores and their types, known before the first block."""
    real = real_type(job.logits.dtype)
    target = np.float64 if job.class_axis is None else np.int64
    columns = [
        *index_columns(job.layout.target_shape),
        ("target", target),
        ("predicted", np.int64),
        ("loss", real),
        ("log_prob", real),
        ("confidence", real),
        ("entropy", real),
    ]
    if job.class_axis is not None:
        columns.append(("rank", np.int64))
    return np.dtype(columns)


def real_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The type of the losses of logits."""
    half_or_single = dtype.kind not in "iub" and dtype.itemsize < 8
    return np.float32 if half_or_single else np.float64


def columns(job: Job, scores: Scores) -> dict[str, Array]:
    """The columns of `row_type`."""
    found = indices(scores.number, job.layout.target_shape)
    assert scores.entropy is not None
    with np.errstate(all="ignore"):  # of log-probabilities that are none
        found |= {
            "target": scores.target,
            "predicted": scores.predicted,
            "loss": scores.loss,
            "log_prob": scores.log_prob,
            "confidence": np.exp(scores.predicted_log_prob),
            "entropy": scores.entropy,
        }
    if scores.rank is not None:
        found["rank"] = scores.rank
    return found
