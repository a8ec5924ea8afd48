"""From sources of logits and targets to the numbers of a report, one block of rows at a time.

`plan` checks the shapes before a row is read and makes a `Job`; `Job.blocks` yields the scores of
each block; a `Summary` adds them up. All that is kept between blocks has a fixed size: sums, the
hardest samples so far and, for the plot, histograms.

A *sample* is what has a loss of its own: a row of logits, a pixel of a segmentation map, or one
logit of a binary loss. Its number is its position in the flattened target.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

import fastloss
from fastloss._scoring import InputError
from fastloss._scoring.readers import ArraySource, FileSource, Piece, Source

Array = NDArray[Any]
Loss = Literal["cross-entropy", "bce-with-logits", "nll"]
Digest = TypeVar("Digest")

# Logits scored at a time by a thread: few enough to stay in a cache between passes.
BLOCK_BYTES = 4 << 20
# Samples scored at a time, where each has few logits: bounds the arrays of results.
BLOCK_SAMPLES = 1 << 18
# Up to so many classes `score_samples` takes less time than a loss and NumPy's argmax, of which the
# latter is slow in short rows; with more, those two do, while the block is in the cache.
FEW_CLASSES = 64
# Threads that score blocks at most: memory holds a block for each, and few outrun any disk.
MOST_THREADS = 16
# Logits that all threads hold at a time: fewer threads work on rows that are very long.
MOST_BYTES = 256 << 20
# The prediction where there is none.
NONE = -1


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


@dataclass
class Scores:
    """What a block's samples got; flat arrays of one length."""

    first_row: int
    first: int
    """The number of the first sample."""
    loss: Array
    log_prob: Array
    """Log-probability of the target; NaN where ignored."""
    target: Array
    predicted: Array
    """Likeliest class; `NONE` where a logit is NaN or +inf, or all are -inf."""
    predicted_log_prob: Callable[[Any], Array]
    """Log-probability of the prediction, for the samples at an index: few of them are asked for,
    and only while the block is worked on."""
    counted: Array | None
    """False where ignored; None when nothing is."""
    weight_sum: float
    """What the block adds to the denominator of the mean."""
    logits_bytes: int

    @property
    def finite(self) -> Array:
        """Where loss, log-probability and prediction are numbers; False also where ignored."""
        # An ignored sample's log-probability is NaN.
        return np.isfinite(self.loss) & np.isfinite(self.log_prob) & (self.predicted != NONE)


@dataclass
class _Pieces:
    """Rows of all sources that belong together, on their way."""

    first_row: int
    logits: Piece
    target: Piece
    weight: Piece | float | None
    sample_weight: Piece | float | None
    pos_weight: Piece | float | None


@dataclass
class _Block:
    """Rows of all sources that belong together."""

    first_row: int
    logits: Array
    target: Array
    weight: Any
    sample_weight: Any
    pos_weight: Any


@dataclass
class Job:
    """Checked inputs, ready to be scored."""

    options: Options
    logits: Source
    targets: Source
    classes: int
    sample_shape: tuple[int, ...]
    class_axis: int | None
    """None for a binary loss."""
    probabilities: bool
    """Whether the targets are class probabilities."""

    @property
    def rows(self) -> int:
        return self.logits.shape[self.logits.axis]

    @property
    def samples(self) -> int:
        return math.prod(self.sample_shape)

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.logits.row_bytes

    @property
    def rows_at_a_time(self) -> int:
        samples_per_row = max(1, math.prod(self.sample_shape[1:]))
        row_bytes = max(1, self.logits.row_bytes)
        rows = min(BLOCK_BYTES // row_bytes, BLOCK_SAMPLES // samples_per_row)
        # Across the file's order, only a long stretch of it is worth a read.
        rows = max(rows, min(self.logits.least_rows, MOST_BYTES // 4 // row_bytes))
        return max(1, rows)

    def blocks(
        self, digest: Callable[[Scores], Digest]
    ) -> Generator[tuple[Scores, Digest], None, None]:
        """Score the rows, and yield each block's scores and their digest, in order.

        Several blocks are scored at a time, each by one thread: threads that never wait for each
        other lose little where another process holds a core, and one thread's page faults are
        another's arithmetic. A single block is left to the threads of the kernel.

        Raises
        ------
        InputError
            If the library rejects a block; a class index outside the classes is shown with its
            place in the whole target.
        """

        def work(pieces: _Pieces) -> tuple[Scores, Digest]:
            # What isn't finite is counted, so NumPy needn't warn of it. The setting is a thread's.
            with np.errstate(all="ignore"):
                scores = self._score(self._load(pieces))
                return scores, digest(scores)

        block_bytes = self.rows_at_a_time * self.logits.row_bytes
        threads = fastloss.get_num_threads()
        workers = min(threads, MOST_THREADS, MOST_BYTES // max(1, block_bytes))
        if workers <= 1 or self.rows <= self.rows_at_a_time:
            yield from map(work, self._read())
            return
        fastloss.set_num_threads(1)
        pool = ThreadPoolExecutor(workers, "fastloss-score")
        running: deque[Future[tuple[Scores, Digest]]] = deque()
        try:
            for pieces in self._read():
                running.append(pool.submit(work, pieces))
                if len(running) > workers + 1:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            fastloss.set_num_threads(threads)

    def _read(self) -> Iterator[_Pieces]:
        """The rows of all sources, in blocks. Of an array in a file nothing is read yet."""
        options, first = self.options, 0
        while first < self.rows and self.samples:
            logits = self.logits.read(self.rows_at_a_time)
            if logits.rows == 0:
                raise InputError(f"{self.logits.label} ends {self.rows - first} rows early")
            yield _Pieces(
                first,
                logits,
                self.targets.read_exactly(logits.rows),
                weight=_rows_of(options.weight, logits.rows),
                sample_weight=_rows_of(options.sample_weight, logits.rows),
                pos_weight=_rows_of(options.pos_weight, logits.rows),
            )
            first += logits.rows

    def _load(self, pieces: _Pieces) -> _Block:
        target = pieces.target.load()
        return _Block(
            pieces.first_row,
            pieces.logits.load(),
            # The scores keep the targets, but not their probabilities.
            target if self.probabilities else target.copy(),
            _values_of(pieces.weight),
            _values_of(pieces.sample_weight),
            _values_of(pieces.pos_weight),
        )

    def _score(self, block: _Block) -> Scores:
        try:
            if self.class_axis is None:
                return self._score_binary(block)
            return self._score_classes(block, self.class_axis)
        except IndexError as error:
            raise self._wrong_index(block, error) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(str(error)) from error

    def _score_classes(self, block: _Block, axis: int) -> Scores:
        options, logits, target = self.options, block.logits, block.target
        weight, sample_weight = block.weight, block.sample_weight
        keywords: dict[str, Any] = {
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": options.ignore_index,
            "reduction": "none",
            "axis": axis,
        }
        counted = None
        label = target
        if self.probabilities:
            label = np.argmax(target, axis=axis)
        elif (ignored := target == options.ignore_index).any():
            counted = ~ignored
            label = np.where(counted, target, 0)
        loss_of: Callable[..., Any] = fastloss.nll_loss
        if options.loss == "cross-entropy":
            loss_of = fastloss.cross_entropy
            keywords["label_smoothing"] = options.label_smoothing
        weighted = weight is not None or sample_weight is not None
        plain = not (weighted or options.label_smoothing or self.probabilities)
        if plain and options.loss == "cross-entropy" and self.classes <= FEW_CLASSES:
            scores = fastloss.score_samples(logits, label, axis=axis)
            log_prob, predicted = scores.log_prob, scores.predicted
            loss = 0 - log_prob if counted is None else np.where(counted, 0 - log_prob, 0)
            # A NaN or +inf makes all log-probabilities of a sample NaN, and so do -inf alone.
            predicted = np.where(np.isnan(log_prob), NONE, predicted)
        else:
            loss = loss_of(logits, target, **keywords)
            log_prob = 0 - loss
            if not plain:
                log_prob = 0 - loss_of(logits, label, reduction="none", axis=axis)
            predicted = _predicted(logits, axis)

        def predicted_log_prob(at: Any) -> Array:
            places = np.unravel_index(np.arange(predicted.size)[at], predicted.shape)
            rows = np.moveaxis(logits, axis, -1)[places]
            label = predicted[places]
            log_prob = 0 - loss_of(rows, np.maximum(label, 0), reduction="none")
            return np.where(label == NONE, np.nan, log_prob)

        if counted is not None:
            log_prob = np.where(counted, log_prob, np.nan)
        return Scores(
            block.first_row,
            self._sample(block),
            loss.ravel(),
            log_prob.ravel(),
            label.ravel() if counted is None else target.ravel(),
            predicted.ravel(),
            predicted_log_prob,
            None if counted is None else counted.ravel(),
            self._weight_sum(label, counted, weight, sample_weight),
            logits.nbytes,
        )

    def _score_binary(self, block: _Block) -> Scores:
        options, logits, target = self.options, block.logits, block.target
        if target.dtype.kind in "iu" and (wrong := (target != 0) & (target != 1)).any():
            raise InputError(
                f"{self.targets.label}: target {self._first(block, wrong)} is not 0 or 1"
            )
        loss = fastloss.binary_cross_entropy_with_logits(
            logits,
            target,
            weight=block.weight,
            pos_weight=block.pos_weight,
            reduction="none",
        )
        log_prob = 0 - loss
        if options.weight is not None or options.pos_weight is not None:
            log_prob = 0 - fastloss.binary_cross_entropy_with_logits(
                logits, target, reduction="none"
            )
        positive = np.where(np.isnan(logits), NONE, logits > 0).astype(np.int8)

        def predicted_log_prob(at: Any) -> Array:
            return np.asarray(fastloss.log_sigmoid(np.abs(logits.ravel()[at])))

        return Scores(
            block.first_row,
            self._sample(block),
            loss.ravel(),
            log_prob.ravel(),
            target.ravel(),
            positive.ravel(),
            predicted_log_prob,
            None,
            float(loss.size),
            logits.nbytes,
        )

    def _weight_sum(
        self, label: Array, counted: Array | None, weight: Array | None, sample_weight: Array | None
    ) -> float:
        """Σ w[t]·sample_weight over the samples not ignored; probabilities have no w[t]."""
        if self.probabilities:
            weight = None
        if weight is None and sample_weight is None:
            return float(label.size if counted is None else np.count_nonzero(counted))
        weights = np.ones(label.shape) if weight is None else weight[label].astype(np.float64)
        if sample_weight is not None:
            weights = weights * sample_weight
        return float(np.sum(weights if counted is None else weights[counted], dtype=np.float64))

    def _sample(self, block: _Block) -> int:
        """The number of a block's first sample."""
        return block.first_row * math.prod(self.sample_shape[1:])

    def _wrong_index(self, block: _Block, error: IndexError) -> InputError:
        """An IndexError about a block, told of the whole target."""
        target = block.target
        wrong = ((target < 0) | (target >= self.classes)) & (target != self.options.ignore_index)
        if not wrong.any():
            return InputError(str(error))
        return InputError(
            f"{self.targets.label}: class index {self._first(block, wrong)} is outside "
            f"[0, {self.classes}) and is not the ignore_index {self.options.ignore_index}"
        )

    def _first(self, block: _Block, wrong: Array) -> str:
        """The first target that is wrong, and its place in the whole array."""
        at = int(np.argmax(wrong))
        place = tuple(int(i) for i in np.unravel_index(self._sample(block) + at, self.sample_shape))
        return f"{block.target.flat[at]} at position {place}"


def _predicted(logits: Array, axis: int) -> Array:
    """The class of the largest logit; `NONE` where one is NaN or +inf, or all are -inf."""
    ordered, least = logits, None
    if logits.dtype.itemsize == 2 and logits.dtype.kind not in "iu":
        # NumPy compares float16 and bfloat16 one by one. Their bits, those of negative numbers
        # turned over, are integers in the same order, and those it compares many at a time.
        bits = logits.view(np.dtype(np.int16).newbyteorder(logits.dtype.byteorder))
        ordered = bits ^ ((bits >> 15) & 0x7FFF)
        # So ordered, a NaN lies above +inf, or below -inf if it has a sign.
        least = np.array(-np.inf, logits.dtype).view(bits.dtype) ^ 0x7FFF
    predicted = np.argmax(ordered, axis=axis)
    # Elsewhere the first NaN counts as the largest.
    largest = np.take_along_axis(logits, np.expand_dims(predicted, axis), axis).squeeze(axis)
    known = np.isfinite(largest)
    if least is not None:
        known &= np.min(ordered, axis=axis) >= least
    return np.where(known, predicted, NONE)


def _rows_of(values: Source | float | None, count: int) -> Piece | float | None:
    """The part of a weight that belongs to the next ``count`` rows; see `_weights`."""
    return values.read_exactly(count) if isinstance(values, Source) else values


def _values_of(values: Piece | float | None) -> Any:
    return values.load() if isinstance(values, Piece) else values


class _Whole(Source):
    """A weight that applies to every block alike."""

    def __init__(self, source: Source):
        super().__init__(source.label, source.shape, source.dtype)
        if not source.ndim:
            source = _with_shape(source, (1,))
        # What has no rows can't be read.
        array = np.empty(source.shape, source.dtype)
        if array.size:
            array = source.read_all()
        self._piece = Piece(len(array), lambda: array)

    def read(self, count: int) -> Piece:
        """All of it, whatever the count."""
        return self._piece

    read_exactly = read


# Planning -----------------------------------------------------------------------------------------


def plan(logits: Source, targets: Source, options: Options) -> Job:
    """Check that sources and options belong together.

    Raises
    ------
    InputError
        If a shape or dtype doesn't fit; the text shows both shapes.
    """
    if options.loss == "bce-with-logits":
        return _plan_binary(logits, targets, options)
    return _plan_classes(logits, targets, options)


def _plan_binary(logits: Source, targets: Source, options: Options) -> Job:
    if logits.shape != targets.shape:
        raise InputError(
            f"{logits.label} has shape {logits.shape} and {targets.label} has shape "
            f"{targets.shape}: bce-with-logits expects one target for each logit"
        )
    if not logits.ndim:
        logits, targets = _with_shape(logits, (1,)), _with_shape(targets, (1,))
    options.weight = _weights(options.weight, logits.shape)
    if isinstance(options.pos_weight, Source):
        options.pos_weight = _weights(options.pos_weight, logits.shape)
    return Job(options, logits, targets, 2, logits.shape, None, probabilities=False)


def _plan_classes(logits: Source, targets: Source, options: Options) -> Job:
    ndim = logits.ndim
    if ndim == 0:
        raise InputError(f"{logits.label} has shape (), expected one with a class axis")
    axis = options.axis if options.axis is not None else min(1, ndim - 1)
    if not -ndim <= axis < ndim:
        raise InputError(
            f"--axis {axis} is outside the {ndim} dimensions of {logits.label} {logits.shape}"
        )
    axis %= ndim
    classes = logits.shape[axis]
    sample_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if classes == 0:
        raise InputError(f"{logits.label} has shape {logits.shape}: there are no classes")
    probabilities = targets.shape == logits.shape and targets.shape != sample_shape
    integers = targets.dtype.kind in "iu"
    if targets.shape != sample_shape and not probabilities:
        raise InputError(
            f"{logits.label} has shape {logits.shape} and {targets.label} has shape "
            f"{targets.shape}: expected {sample_shape} (class indices) or {logits.shape} "
            "(class probabilities)"
        )
    if probabilities and (integers or options.loss == "nll"):
        raise InputError(
            f"{targets.label} has the logits' shape {logits.shape} and dtype {targets.dtype}: "
            f"expected class indices of shape {sample_shape}"
            + (" or floating class probabilities" if options.loss != "nll" else "")
        )
    if not probabilities and not integers:
        raise InputError(
            f"{targets.label} has dtype {targets.dtype}: class indices must be integers"
        )
    if not -(2**63) <= options.ignore_index < 2**63:
        raise InputError(f"--ignore-index {options.ignore_index} is no 64-bit integer")
    if options.label_smoothing and not 0 <= options.label_smoothing <= 1:
        raise InputError(f"--label-smoothing {options.label_smoothing} is outside [0, 1]")
    if options.weight is not None:
        if options.weight.shape != (classes,):
            raise InputError(
                f"{options.weight.label} has shape {options.weight.shape}, expected ({classes},): "
                "a weight for each class"
            )
        options.weight = _Whole(options.weight)
    if options.sample_weight is not None and options.sample_weight.shape != sample_shape:
        raise InputError(
            f"{options.sample_weight.label} has shape {options.sample_weight.shape}, expected "
            f"{sample_shape}: a weight for each sample"
        )
    if ndim == 1:
        # An unbatched sample: a batch of one.
        logits = _with_shape(logits, (1, classes))
        targets = _with_shape(targets, (1, classes) if probabilities else (1,))
        if options.sample_weight is not None:
            options.sample_weight = _with_shape(options.sample_weight, (1,))
        axis, sample_shape = 1, (1,)
    elif axis == 0:
        logits = _along(logits, 1)
        if probabilities:
            targets = _along(targets, 1)
    return Job(options, logits, targets, classes, sample_shape, axis, probabilities)


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
    return _Whole(weight)


def _with_shape(source: Source, shape: tuple[int, ...]) -> Source:
    if isinstance(source, ArraySource | FileSource):
        return source.reshaped(shape)
    return ArraySource(source.label, source.read_all().reshape(shape))


def _along(source: Source, axis: int) -> Source:
    if isinstance(source, ArraySource | FileSource):
        return source.along(axis)
    raise InputError(
        f"{source.label} can only be read row by row, so its class axis can't be 0; "
        "save it as .npy, .safetensors or uncompressed .npz"
    )


# Adding up ----------------------------------------------------------------------------------------


@dataclass
class Hard:
    """One of the hardest samples."""

    sample: int
    loss: float
    target: int | float
    log_prob: float
    predicted: int
    predicted_log_prob: float

    @property
    def hardness(self) -> float:
        """The loss, or infinity where that is NaN."""
        return math.inf if math.isnan(self.loss) else self.loss


class Distributions:
    """What the plot draws, in bins that need no second pass."""

    # Losses reach from 1e-45, the least float32, to overflow: equal bins of their decimal
    # logarithm, a hundred to a decade; what lies outside counts in the first or the last.
    DECADES = (-46, 40)
    BINS_PER_DECADE = 100
    # Confidences crowd at both ends, so their bins have equal widths in log(p / (1 - p)), from
    # -32 to 32. They are fine enough to be joined to bins of equal counts.
    CONFIDENCE_BINS = 1024
    MOST_LOGIT = 32

    def __init__(self, classes: int):
        low, high = self.DECADES
        self.log_loss_counts = np.zeros((high - low) * self.BINS_PER_DECADE, np.int64)
        self.not_positive = 0
        """Losses of 0; a sum of wrong log-probabilities may also be less."""
        self.bin_counts = np.zeros(self.CONFIDENCE_BINS, np.int64)
        self.bin_confidence: Array = np.zeros(self.CONFIDENCE_BINS)
        self.bin_correct = np.zeros(self.CONFIDENCE_BINS, np.int64)
        self.classes = classes
        # The classes that were met, all of them or those of a block, and what adds up for each.
        self._classes: Array | slice = slice(None)
        self._class_counts: Array | None = None
        self._class_losses: Array | None = None

    @property
    def class_counts(self) -> Array:
        """How many samples each class has."""
        return (
            np.zeros(self.classes, np.int64) if self._class_counts is None else self._class_counts
        )

    @property
    def class_losses(self) -> Array:
        """The sum of the losses of each class."""
        return np.zeros(self.classes) if self._class_losses is None else self._class_losses

    def add(self, scores: Scores) -> None:
        """Take the samples of a block, once."""
        keep = np.flatnonzero(scores.finite)
        loss: Array = scores.loss[keep].astype(np.float64)
        label = _as_labels(scores.target[keep])
        positive = loss[loss > 0]
        self.not_positive = loss.size - positive.size
        last = len(self.log_loss_counts) - 1
        log_place = (np.log10(positive) - self.DECADES[0]) * self.BINS_PER_DECADE
        place = log_place.clip(0, last).astype(np.intp)
        self.log_loss_counts = np.bincount(place, minlength=last + 1)
        # A block may have far fewer samples than there are classes.
        if label.size < self.classes:
            self._classes, label = np.unique(label, return_inverse=True)
        classes = self.classes if isinstance(self._classes, slice) else len(self._classes)
        self._class_counts = np.bincount(label, minlength=classes)
        self._class_losses = np.bincount(label, loss, classes)
        log_prob: Array = np.minimum(scores.predicted_log_prob(keep).astype(np.float64), 0)
        bins = self.CONFIDENCE_BINS
        logit = log_prob - np.log(-np.expm1(log_prob))
        logit_place = (logit + self.MOST_LOGIT) * (bins / 2 / self.MOST_LOGIT)
        place = logit_place.clip(0, bins - 1).astype(np.intp)
        correct = scores.predicted[keep] == _as_labels(scores.target[keep])
        self.bin_counts = np.bincount(place, minlength=bins)
        self.bin_confidence = np.bincount(place, np.exp(log_prob), bins)
        self.bin_correct = np.bincount(place[correct], minlength=bins)

    def merge(self, other: Distributions) -> None:
        """Add what was taken of a block."""
        self.log_loss_counts += other.log_loss_counts
        self.not_positive += other.not_positive
        self.bin_counts += other.bin_counts
        self.bin_confidence += other.bin_confidence
        self.bin_correct += other.bin_correct
        if other._class_counts is not None and other._class_losses is not None:
            if self._class_counts is None or self._class_losses is None:
                self._class_counts, self._class_losses = self.class_counts, self.class_losses
            self._class_counts[other._classes] += other._class_counts
            self._class_losses[other._classes] += other._class_losses

    def calibration(self, most: int = 15, least: int = 10) -> tuple[Array, Array, Array]:
        """Counts, mean confidence and share of right predictions, in bins of about equal counts.

        There are at most ``most`` of them, and each has at least ``least`` samples where there are
        so many.
        """
        filled = np.flatnonzero(self.bin_counts)
        total = int(self.bin_counts.sum())
        share = max(least, total / most)
        starts: list[int] = []
        gathered, left = 0, total
        for at, count in zip(filled.tolist(), self.bin_counts[filled].tolist(), strict=True):
            # The last bin takes what would not fill one of its own.
            if not starts or (gathered >= share and left >= least):
                starts.append(at)
                gathered = 0
            gathered += count
            left -= count
        if not starts:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        counts = np.add.reduceat(self.bin_counts, starts)
        confidence = np.add.reduceat(self.bin_confidence, starts) / counts
        right = np.add.reduceat(self.bin_correct, starts) / counts
        return counts, confidence, right

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: mean |right − confidence| over the bins, by their counts.

        Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3, with bins of
        equal counts: those of equal widths are empty but for one or two where there are many
        classes.
        """
        counts, confidence, right = self.calibration()
        return float((np.abs(right - confidence) * counts).sum() / max(1, counts.sum()))


def _as_labels(target: Array) -> Array:
    """Class indices of a target; a binary one, which may be soft, is 1 from one half on."""
    return (target if target.dtype.kind in "iu" else target >= 0.5).astype(np.intp)


def _hardest(samples: list[Hard], top: int) -> list[Hard]:
    return sorted(samples, key=lambda hard: (-hard.hardness, hard.sample))[:top]


class Summary:
    """The sums over all blocks, the hardest samples, and distributions if asked for."""

    def __init__(self, job: Job, top: int = 5, distributions: bool = False):
        self.job = job
        self.top = top
        self.samples = 0
        self.ignored = 0
        self.non_finite = 0
        self.correct = 0
        self.loss_sum = 0.0
        self.weight_sum = 0.0
        self.hardest: list[Hard] = []
        self.distributions = Distributions(job.classes) if distributions else None

    def of(self, scores: Scores) -> Summary:
        """The summary of one block, to be merged into this one."""
        part = Summary(self.job, self.top, self.distributions is not None)
        # What is no harder than all that is kept already needn't be looked at. Blocks are merged
        # in order, so that of equals the earlier one stays.
        least = self.hardest[-1].hardness if len(self.hardest) == self.top > 0 else -math.inf
        part._add(scores, least)
        return part

    def merge(self, other: Summary) -> None:
        """Add what another summary has counted."""
        self.samples += other.samples
        self.ignored += other.ignored
        self.non_finite += other.non_finite
        self.correct += other.correct
        self.loss_sum += other.loss_sum
        self.weight_sum += other.weight_sum
        self.hardest = _hardest(self.hardest + other.hardest, self.top)
        if self.distributions is not None and other.distributions is not None:
            self.distributions.merge(other.distributions)

    def _add(self, scores: Scores, least: float) -> None:
        finite = scores.finite
        ignored = 0
        if scores.counted is not None:
            ignored = scores.loss.size - int(np.count_nonzero(scores.counted))
        self.samples += scores.loss.size
        self.ignored += ignored
        self.non_finite += scores.loss.size - ignored - int(np.count_nonzero(finite))
        right = (scores.predicted == _as_labels(scores.target)) & finite
        self.correct += int(np.count_nonzero(right))
        self.loss_sum += float(np.sum(scores.loss, dtype=np.float64))
        self.weight_sum += scores.weight_sum
        self._keep_hardest(scores, least)
        if self.distributions is not None:
            self.distributions.add(scores)

    def _keep_hardest(self, scores: Scores, least: float) -> None:
        if not self.top or not scores.loss.size:
            return
        if np.max(scores.loss) <= least:  # False where a NaN makes the maximum NaN
            return
        hardness = np.where(np.isnan(scores.loss), np.inf, scores.loss)
        if scores.counted is not None:
            hardness[~scores.counted] = -np.inf
        at = np.argpartition(-hardness, min(self.top, hardness.size) - 1)[: self.top]
        at = at[hardness[at] > -np.inf]
        columns = (
            scores.first + at,
            scores.loss[at],
            scores.target[at],
            scores.log_prob[at],
            scores.predicted[at],
            scores.predicted_log_prob(at),
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self.hardest = _hardest([Hard(*row) for row in rows], self.top)

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / self.weight_sum if self.weight_sum else math.nan

    @property
    def perplexity(self) -> float:
        try:
            return math.exp(self.mean_loss)
        except OverflowError:
            return math.inf

    @property
    def accuracy(self) -> float:
        """The share of samples, ignored ones aside, whose likeliest class is the target."""
        counted = self.samples - self.ignored
        return self.correct / counted if counted else math.nan
