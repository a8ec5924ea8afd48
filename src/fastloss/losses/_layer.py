"""The cross-entropy of a linear layer's outputs, in little memory and with few, large products.

The logits are computed one block of rows at a time: one matrix product computes them, the
cross-entropy kernel turns them into their gradient in place, and two products turn that into the
gradients of input and weight.  A product of few rows with a large weight is limited by memory
bandwidth, so a block has as many rows as `memory` allows, and most batches are only a few blocks.

A weight of another type than that of the products, such as float16, is converted one strip at a
time: a few classes with all features.  The gradient of such a weight cannot be added up over blocks
in its own type.  It is added up in the type of the products if there is memory for that.  Otherwise
the gradient of the weight is computed last, strip by strip over all rows, from logits that are
computed a second time.

Layout: a) memory, b) products, c) `evaluate`, d) the gradient of a weight by strips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastloss._arrays import FLOAT64, Array, Layer
from fastloss.losses._reduction import Totals, reduced
from fastloss.losses._specification import CROSS_ENTROPY
from fastloss.special import logsumexp

# ---- a) memory -------------------------------------------------------------------------------

#: Bytes that a call may use apart from its results; half the size of the weights if that is more.
LEAST_MEMORY = 64 << 20


class Memory(NamedTuple):
    """How a call divides up its memory."""

    #: Rows of a block of logits.
    rows: int
    #: Classes of a strip of the weight.
    strip: int
    #: Whether the weight's gradient is added up in the type of the products.
    wide_sum: bool
    #: Whether the weight's gradient is computed from logits that are computed a second time.
    late: bool


def memory(a: Layer, rows: int, narrow: bool, gradient: bool) -> Memory:
    """Divide up the memory of a call with this number of rows that count.

    `narrow` says that the type of the weight is not that of the products; `gradient` says that its
    gradient is wanted.
    """
    outputs, features = a.linear_weight.shape
    size = a.kind.itemsize
    limit = max(LEAST_MEMORY, a.linear_weight.nbytes // 2)
    # A strip of the weight, and one of its gradient or of products for the input's gradient.
    strip_bytes = min(limit // 16, 8 << 20)
    strip = max(1, strip_bytes // max(1, features * size * math.prod(a.extents)))
    left = limit - limit // 32 - 2 * strip_bytes
    # A row needs its logits, its input and its gradient in the type of the products.
    a_row = max(1, (outputs + 2 * features) * size)
    several = rows * a_row > left
    whole = outputs * features * size
    wide_sum = narrow and gradient and several and whole <= limit // 2
    if wide_sum:
        left -= whole
    most = max(1, left // a_row)
    # Blocks of equal size: a short last block would be limited by memory bandwidth.
    blocks = max(1, -(-rows // most))
    return Memory(
        max(1, -(-rows // blocks)), strip, wide_sum,
        narrow and gradient and blocks > 1 and not wide_sum,
    )  # fmt: skip


# ---- b) products -----------------------------------------------------------------------------


class Products:
    """NumPy's matrix products; `fastloss.torch` has PyTorch's."""

    @staticmethod
    def into(left: Array, right: Array, out: Array) -> None:
        """Write ``left @ right`` to `out`."""
        np.matmul(left, right, out=out)

    @staticmethod
    def add(left: Array, right: Array, out: Array, step: int) -> None:
        """Add ``left @ right`` to `out`, `step` rows at a time: NumPy has no product that adds."""
        scratch = np.empty((min(step, len(out)), out.shape[1]), out.dtype)
        for start in range(0, len(out), step):
            here = out[start : start + step]
            np.matmul(left[start : start + step], right, out=scratch[: len(here)])
            here += scratch[: len(here)]


#: Number of rows that are added up in the type of the products before they enter a float64 sum.
_ADDED = 64


def _add_rows(total: Array, g: Array) -> None:
    """Add the rows of `g` to a total in float64."""
    for start in range(0, len(g), _ADDED):
        part = g[start : start + _ADDED]
        total += np.ones(len(part), g.dtype) @ part


# ---- c) evaluate -----------------------------------------------------------------------------


class _Weight:
    """The layer's weight in the type of the products, by strips if it has to be converted."""

    def __init__(self, a: Layer, strip: int) -> None:
        self.array, self.kind = a.linear_weight, a.kind
        self.narrow = self.array.dtype != a.kind
        self.step = strip * math.prod(a.extents) if self.narrow else max(1, len(self.array))
        self.scratch = None
        if self.narrow:
            extent = min(self.step, len(self.array)), self.array.shape[1]
            self.scratch = np.empty(extent, a.kind)

    def strips(self) -> Iterator[tuple[slice, Array]]:
        """Yield outputs, and their rows of the weight, which are good until the next ones."""
        for start in range(0, len(self.array), max(1, self.step)):
            here = slice(start, min(start + self.step, len(self.array)))
            part = self.array[here]
            if self.scratch is not None:
                np.copyto(self.scratch[: len(part)], part)
                part = self.scratch[: len(part)]
            yield here, part


def evaluate(
    a: Layer, products: Any, *, reduction: str, wanted: Sequence[bool], upstream: Any,
    value: bool = True, **options: Any,
) -> tuple[Any, list[Array | None]]:  # fmt: skip
    """Return the loss and the gradients of input, weight and bias that are wanted.

    Parameters
    ----------
    a : Layer
        Checked arrays.
    products : type
        `Products`, or what does the same.
    reduction : str
    wanted : sequence of three bool
        Of which of input, weight and bias the gradient is wanted; rows and outputs are their first
        axes.
    upstream : float or ndarray
        Gradient with respect to the loss, for "none" of the shape of the samples.
    value : bool
        Whether the loss is wanted.
    **options
        Checked options of the cross-entropy.
    """
    x, w, kind = a.input, a.linear_weight, a.kind
    outputs, features = w.shape
    gradient = any(wanted)
    none = reduction == "none"
    scale: Any = upstream
    if reduction == "mean":
        scale = scale / a.weights if a.weights else 0.0
    if none:
        scale = np.broadcast_to(scale, a.samples).reshape(len(x), *a.extents)
    rows = len(x) if a.alive is None else len(a.alive)
    plan = memory(a, rows, w.dtype != kind, wanted[1])
    weight = _Weight(a, plan.strip)
    step = plan.strip * math.prod(a.extents)  # outputs of a strip
    direct_x = a.alive is None and x.dtype == kind and not weight.narrow
    # 1. Results.
    losses: Any = np.zeros((len(x), *a.extents), kind) if none and value else None
    grad_x: Any = None
    grad_w: Any = None
    sums: Any = None
    grad_b = None
    if wanted[0]:
        make = np.empty if a.alive is None else np.zeros
        grad_x = make(x.shape, x.dtype)
    if wanted[1]:
        grad_w = (np.empty if rows else np.zeros)(w.shape, w.dtype)
        sums = np.empty(w.shape, kind) if plan.wide_sum else grad_w
    if wanted[2]:
        grad_b = np.zeros(outputs)
    # What a strip over all rows has to know of each sample.
    lse = np.empty((rows, *a.extents)) if plan.late else None
    total = 0.0
    # 2. Block by block.
    block = plan.rows
    logits = shaped = buffer = np.empty((min(block, rows), outputs), kind)
    for start in range(0, rows, block):
        here: Any = slice(start, min(start + block, rows))
        source = here if a.alive is None else a.alive[here]
        part = x[source].astype(kind, copy=False)
        logits = buffer[: len(part)]
        for strip, strip_weight in weight.strips():
            products.into(part, strip_weight.T, logits[:, strip])
        if a.linear_bias is not None:
            logits += a.linear_bias
        shaped = logits.reshape(len(part), a.classes, *a.extents)
        if lse is not None:
            lse[here] = _logsumexp(shaped, options)
        loss, _, totals = CROSS_ENTROPY.evaluate(
            shaped,
            a.target[source],
            weight=a.weight,
            sample_weight=None if a.factor is None else a.factor[source],
            reduction="none" if none else "sum",
            gradient=gradient,
            out=shaped if gradient else None,
            upstream=scale[source] if none else scale,
            value=value,
            axis=1,
            **options,
        )
        total += totals.loss
        if losses is not None:
            losses[source] = loss
        if grad_x is not None:
            if direct_x:
                products.into(logits, w, grad_x[here])
            else:
                grad_x[source] = _back(products, logits, weight, part.shape)
        if sums is not None and not plan.late:
            if sums.dtype != kind:  # one block
                for first in range(0, outputs, step):
                    strip = slice(first, first + step)
                    made = np.empty((len(sums[strip]), features), kind)
                    products.into(logits[:, strip].T, part, made)
                    sums[strip] = made
            elif start == 0:
                products.into(logits.T, part, sums)
            else:
                products.add(logits.T, part, sums, step)
        if grad_b is not None:
            _add_rows(grad_b, logits)
    # 3. What is left of the weight's gradient.
    if plan.late:
        assert lse is not None
        del buffer, logits, shaped
        _by_strips(a, products, grad_w, weight, lse, scale, none, options)
    elif plan.wide_sum:
        grad_w[...] = sums
    # 4. Reduction.
    found = None
    if value:
        found = reduced(reduction, Totals(total, a.weights), losses, kind, a.samples)
    return found, [grad_x, grad_w, grad_b]


def _back(products: Any, g: Array, weight: _Weight, shape: tuple[int, ...]) -> Array:
    """Return ``g @ weight`` in the type of the products."""
    whole = np.empty(shape, weight.kind)
    scratch = np.empty(shape, weight.kind) if weight.narrow else whole
    first = True
    for strip, part in weight.strips():
        if first:
            products.into(g[:, strip], part, whole)
        else:
            products.into(g[:, strip], part, scratch)
            whole += scratch
        first = False
    return whole


# ---- d) the gradient of a weight by strips ---------------------------------------------------

#: Bytes of logits that exist at a time beside a block: several steps read them.
_PART_BYTES = 4 << 20


def _logsumexp(logits: Array, options: dict[str, Any]) -> Array:
    """Return the logsumexp of each sample's own logits, after softcap and temperature."""
    if options["softcap"] is None and options["temperature"] == 1.0:
        return np.asarray(logsumexp(logits, axis=1))
    step = max(1, _PART_BYTES // max(1, logits[:1].nbytes))
    parts = [
        logsumexp(_bent(logits[start : start + step].copy(), options)[0], axis=1)
        for start in range(0, len(logits), step)
    ]
    return np.concatenate(parts)


def _by_strips(
    a: Layer, products: Any, grad_w: Array, weight: _Weight, lse: Array, scale: Any, none: bool,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Write the gradient of the weight, each strip over all rows, its logits multiplied again.

    With the loss's own logits y (after softcap and temperature), the softmax p and a sample's
    scale s, the gradient with respect to y is ``s (by p_c - q_c)``: for class indices
    q_c = (1 - ε) w_t [c = t] + (ε/C) w_c, for probabilities q_c = w_c ((1 - ε) t_c + ε/C).  In both
    cases `by` is the sum of q, and with z_loss (times w_t for class indices) 2 z_loss lse more.
    """
    x = a.input
    rows = len(lse)
    features = x.shape[1]
    inner = math.prod(a.extents)
    smoothing, z_loss = options["label_smoothing"], options["z_loss"]
    hard = a.target.dtype.kind == "i"
    # 1. What belongs to each sample: s, s·by, and for class indices s·(1 - ε) w_t.
    chosen = np.arange(rows) if a.alive is None else a.alive
    s = np.broadcast_to(np.asarray(scale, FLOAT64), (len(x), *a.extents))[chosen]
    if a.factor is not None:
        s = s * a.factor[chosen]
    w = np.ones(a.classes) if a.weight is None else a.weight
    target = a.target
    t: Any = None
    at_target: Any = None
    if hard:
        t = target[chosen]
        s = np.where(t == options["ignore_index"], 0.0, s)
        t = np.where(t == options["ignore_index"], 0, t)
        at_target = (1 - smoothing) * w[t]
        by = at_target + smoothing / a.classes * w.sum() + 2 * z_loss * w[t] * lse
        at_target = (s * at_target).astype(a.kind)
    else:
        by = np.empty_like(lse)
        for row in range(rows):
            q = (1 - smoothing) * target[chosen[row]].astype(FLOAT64) + smoothing / a.classes
            by[row] = np.tensordot(w, q, 1) + 2 * z_loss * lse[row]
    by, s = (s * by).astype(a.kind), s.astype(a.kind)
    lse = np.where(np.isfinite(lse), lse, np.nan).astype(a.kind)
    # 2. Strip by strip, block by block.
    block = max(1, _PART_BYTES // (a.kind.itemsize * min(weight.step, len(a.linear_weight))))
    for strip, strip_weight in weight.strips():
        first, count = strip.start // inner, (strip.stop - strip.start) // inner
        total = np.empty((len(strip_weight), features), a.kind)
        buffer = np.empty((min(block, rows), len(strip_weight)), a.kind)
        for start in range(0, rows, block):
            here = slice(start, min(start + block, rows))
            part = x[chosen[here]].astype(a.kind, copy=False)
            flat = buffer[: len(part)]
            products.into(part, strip_weight.T, flat)
            if a.linear_bias is not None:
                flat += a.linear_bias[strip]
            g, slope = _bent(flat.reshape(len(part), count, *a.extents), options)
            g -= lse[here][:, None]
            np.exp(g, out=g)
            g *= by[here][:, None]
            column = w[first : first + count].astype(a.kind)
            column = column.reshape(count, *(1,) * len(a.extents))
            if hard:
                if smoothing:
                    g -= s[here][:, None] * (a.kind.type(smoothing / a.classes) * column)
                hit = np.nonzero((t[here] >= first) & (t[here] < first + count))
                g[hit[0], t[here][hit] - first, *hit[1:]] -= at_target[here][hit]
            else:
                q = target[chosen[here], first : first + count].astype(a.kind)
                q = (1 - smoothing) * q + smoothing / a.classes
                g -= s[here][:, None] * column * q
            if slope is not None:
                g *= slope
            g = g.reshape(flat.shape)
            if start == 0:
                products.into(g.T, part, total)
            else:
                products.add(g.T, part, total, len(total))
        grad_w[strip] = total


def _bent(z: Array, options: dict[str, Any]) -> tuple[Array, Array | None]:
    """Return the logits after softcap and temperature, in place, and their derivative."""
    cap, temperature = options["softcap"], options["temperature"]
    slope = None
    if cap is not None:
        z /= cap
        np.tanh(z, out=z)
        slope = (1 - z * z) / temperature
        z *= cap
    elif temperature != 1.0:
        slope = np.asarray(1 / temperature, z.dtype)
    if temperature != 1.0:
        z /= temperature
    return z, slope
