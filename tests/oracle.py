"""Reference answers, independent of the package: plain NumPy in float64, and mpmath.

Layout
------
a) `Reference`: losses and gradients of the samples, and how a reduction or an upstream gradient
   turns them into an answer. Every loss of b) to d) returns one.
b) categorical losses: `cross_entropy`, `nll_loss`, `linear_cross_entropy`
c) element-wise losses: `binary_cross_entropy`, `binary_cross_entropy_with_logits`, `kl_div`,
   `sigmoid_focal_loss`
d) building blocks and `score_samples`
e) exact values by mpmath, as pairs of float64 (`Exact`), and the distance to them in ulp
f) the softmax losses with all their options: `softmax_loss` in any type (long double by default),
   `exact_softmax_loss` by mpmath, both with the sizes of the terms that a result is a sum of

The float64 part follows the formulas of the documentation; it subtracts nothing that cancels, so
that a float32 result can be compared with it to the last digit (`tests/test_accuracy.py` bounds
its own error with e). Nothing here is written for speed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import mpmath
import numpy as np

# ---------------------------------------------------------------- a) losses into answers


@dataclass(frozen=True)
class Reference:
    """Losses per sample, the gradient of their sum, and the denominator of "mean".

    `losses` has the shape that reduction="none" returns, `gradients` that of the logits.
    `class_axis` is where the logits have an axis that the losses lack; None where they have the
    same shape.
    """

    losses: np.ndarray
    gradients: np.ndarray
    denominator: float
    class_axis: int | None = None
    batch: int | None = None

    def loss(self, reduction: str = "mean") -> np.ndarray:
        if reduction == "none":
            return self.losses
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.losses.sum(), self._divisor(reduction))

    def backward(self, grad_output, reduction: str = "mean") -> np.ndarray:
        upstream = np.asarray(grad_output, np.float64)
        if reduction == "none" and self.class_axis is not None:
            upstream = np.expand_dims(upstream, self.class_axis)
        # A gradient that is exactly zero stays so, even where the mean divides by nothing.
        dead = self.gradients == 0
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.divide(upstream, self._divisor(reduction))
            return np.where(dead, 0.0, self.gradients * np.where(dead, 0.0, scale))

    def grad(self, reduction: str = "mean") -> np.ndarray:
        ones = np.ones(self.losses.shape) if reduction == "none" else 1.0
        return self.backward(ones, reduction)

    def _divisor(self, reduction: str) -> float:
        return {
            "none": 1.0,
            "sum": 1.0,
            "mean": self.denominator,
            "batchmean": float(self.batch or 0),
        }[reduction]


def _product(a, b):
    """a·b where 0·inf is 0: a term of weight zero contributes nothing."""
    a, b = np.broadcast_arrays(a, b)
    with np.errstate(invalid="ignore"):
        return np.where((a == 0) & np.isinf(b), 0.0, a * b)


# ---------------------------------------------------------------- b) categorical losses


def class_axis(ndim: int, axis: int | None = None) -> int:
    """PyTorch's rule for axis=None: 1, or 0 for a one-dimensional input."""
    if axis is None:
        return 0 if ndim == 1 else 1
    return axis % ndim


def _softmax_parts(x):
    """Of rows x (…, C): p, 1 − p and −log p, each without cancellation.

    With m the maximum at position j and `rest` the sum of exp(x − m) without j:
    −log p_j = log1p(rest), −log p_c = log1p(rest) + (m − x_c), 1 − p_c = (sum without c)/sum.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        m = x.max(axis=-1, keepdims=True)
        j = x.argmax(axis=-1)[..., None]
        e = np.exp(x - m)
        others = e.copy()
        np.put_along_axis(others, j, 0.0, axis=-1)
        rest = others.sum(axis=-1, keepdims=True)
        total = 1.0 + rest
        nll = np.log1p(rest) + (m - x)
        p = e / total
        q = 1.0 - p
        np.put_along_axis(q, j, rest / total, axis=-1)
        # NaN, +inf, or nothing but −inf: the whole sample has no answer.
        bad = np.isnan(x).any(axis=-1, keepdims=True) | ~np.isfinite(m)
    return tuple(np.where(bad, np.nan, part) for part in (p, q, nll))


def cross_entropy(
    logits,
    target,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    axis=None,
) -> Reference:
    """Σc a[c]·(logsumexp(x) − x[c]) with a[c] = w[c]·((1−ε)·t[c] + ε/C).

    Class indices count as a one-hot t whose part is multiplied by w[target]: the same formula.
    Gradient: p·Σa − a = p·(Σa − a) − a·(1 − p).
    """
    logits, target = np.asarray(logits, np.float64), np.asarray(target)
    axis = class_axis(logits.ndim, axis)
    x = np.moveaxis(logits, axis, -1)
    classes = x.shape[-1]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    epsilon = float(label_smoothing)

    if target.dtype.kind == "f" or target.dtype.name == "bfloat16":
        t = np.moveaxis(target.astype(np.float64), axis, -1)
        live = np.ones(x.shape[:-1], bool)
        mass = np.ones(x.shape[:-1])
    else:
        live = target != ignore_index
        index = np.where(live, target, 0).astype(np.intp)
        t = np.zeros(x.shape)
        if classes:
            np.put_along_axis(t, index[..., None], 1.0, axis=-1)
        mass = np.where(live, w[index], 0.0) if classes else np.zeros(target.shape)
    s = np.ones(x.shape[:-1])
    if sample_weight is not None:
        s = np.broadcast_to(np.asarray(sample_weight, np.float64), s.shape)

    a = w * ((1.0 - epsilon) * t + epsilon / max(classes, 1))
    x = np.where(live[..., None], x, 0.0)
    p, q, nll = _softmax_parts(x)
    per_sample = _product(a, nll).sum(axis=-1)
    others = a.sum(axis=-1, keepdims=True) - a
    if target.dtype.kind in "iub" and epsilon == 0:
        others = w[index][..., None] * (1.0 - t)  # exact where the subtraction would cancel
    gradients = p * others - a * q

    scale = np.where(live, s, 0.0)
    with np.errstate(invalid="ignore"):
        losses = np.where(live, _product(s, per_sample), 0.0)
        gradients = np.where(live[..., None], gradients * scale[..., None], 0.0)
    return Reference(
        losses, np.moveaxis(gradients, -1, axis), float((mass * scale).sum()), class_axis=axis
    )


def nll_loss(
    log_probs, target, *, weight=None, sample_weight=None, ignore_index=-100, axis=None
) -> Reference:
    """−w[t]·x[t]: the gradient is −w[t] at the target and zero elsewhere."""
    log_probs, target = np.asarray(log_probs, np.float64), np.asarray(target)
    axis = class_axis(log_probs.ndim, axis)
    x = np.moveaxis(log_probs, axis, -1)
    w = np.ones(x.shape[-1]) if weight is None else np.asarray(weight, np.float64)
    live = target != ignore_index
    index = np.where(live, target, 0).astype(np.intp)
    factor = np.where(live, w[index], 0.0) if w.size else np.zeros(target.shape)
    if sample_weight is not None:
        factor = factor * np.asarray(sample_weight, np.float64)
    gradients = np.zeros(x.shape)
    losses = np.zeros(target.shape)
    if w.size:
        np.put_along_axis(gradients, index[..., None], -factor[..., None], axis=-1)
        picked = np.take_along_axis(x, index[..., None], axis=-1)[..., 0]
        losses = np.where(live, _product(-factor, picked), 0.0)
    return Reference(losses, np.moveaxis(gradients, -1, axis), float(factor.sum()), class_axis=axis)


class LinearGradients(NamedTuple):
    input: np.ndarray
    linear_weight: np.ndarray
    linear_bias: np.ndarray | None


def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, reduction="mean", grad_output=None, **options
):
    """Cross-entropy of input @ linear_weight.T + linear_bias: the loss and three gradients.

    A weight of shape (classes, d1, ..., dK, features) makes logits (..., classes, d1, ..., dK).
    """
    input, linear_weight = np.asarray(input, np.float64), np.asarray(linear_weight, np.float64)
    logits = np.tensordot(input, linear_weight, (-1, -1))
    if linear_bias is not None:
        logits = logits + np.asarray(linear_bias, np.float64)
    axis = input.ndim - 1
    temperature, softcap = options.pop("temperature", 1.0), options.pop("softcap", None)
    z_loss = options.pop("z_loss", 0.0)
    slope = np.ones_like(logits)
    if softcap is not None:
        slope = 1 - np.tanh(logits / softcap) ** 2
        logits = softcap * np.tanh(logits / softcap)
    logits, slope = logits / temperature, slope / temperature
    reference = cross_entropy(logits, target, axis=axis, **options)
    if z_loss:
        lse = np.log(np.exp(logits).sum(axis=axis))
        mass = np.ones(lse.shape) * options.get("sample_weight", 1.0)
        if np.asarray(target).dtype.kind in "iu":
            live = np.asarray(target) != options.get("ignore_index", -100)
            w = options.get("weight")
            w = np.ones(logits.shape[axis]) if w is None else np.asarray(w, np.float64)
            mass = np.where(live, mass * w[np.where(live, target, 0)], 0.0)
        p = np.exp(logits - np.expand_dims(lse, axis))
        reference = dataclasses.replace(
            reference,
            losses=reference.losses + z_loss * lse**2 * mass,
            gradients=reference.gradients + p * np.expand_dims(2 * z_loss * lse * mass, axis),
        )
    loss = reference.loss(reduction)
    upstream = np.ones(np.shape(loss)) if grad_output is None else grad_output
    g = np.asarray(reference.backward(upstream, reduction)) * slope
    before = tuple(range(axis))
    over = tuple(range(axis, logits.ndim))
    gradients = LinearGradients(
        np.tensordot(g, linear_weight, (over, range(len(over)))),
        np.tensordot(g, input, (before, before)),
        None if linear_bias is None else g.sum(axis=before),
    )
    return loss, gradients


# ---------------------------------------------------------------- c) element-wise losses


class Divergences(NamedTuple):
    """Of rows of logits over a temperature: the divergences, softmaxes, and their logarithms."""

    kl: np.ndarray
    reverse_kl: np.ndarray
    p: np.ndarray
    q: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray


def divergences(logits, other, temperature=1.0) -> Divergences:
    """The divergences by their definition, class axis last, in long double."""

    def parts(x):
        x = np.asarray(x).astype(np.float64).astype(np.longdouble) / np.longdouble(temperature)
        p, _, nll = _softmax_parts(x)
        return p, -nll

    p, log_p = parts(logits)
    q, log_q = parts(other)
    with np.errstate(invalid="ignore"):
        gap = log_p - log_q
        # Masked in both. Where nothing is defined, all of p or q is NaN.
        gap = np.where(np.isneginf(log_p) & np.isneginf(log_q), 0, gap)
        kl = np.where(np.isneginf(log_p) & ~np.isnan(q), 0, p * gap).sum(axis=-1)
        reverse_kl = np.where(np.isneginf(log_q) & ~np.isnan(p), 0, -q * gap).sum(axis=-1)
    return Divergences(kl, reverse_kl, p, q, log_p, log_q)


def distillation_loss(
    logits,
    teacher_logits,
    *,
    sample_weight=None,
    temperature=1.0,
    direction="forward",
    axis=None,
) -> Reference:
    axis = class_axis(np.ndim(logits), axis)
    found = divergences(
        np.moveaxis(logits, axis, -1), np.moveaxis(teacher_logits, axis, -1), temperature
    )
    kl = found.reverse_kl if direction == "forward" else found.kl
    weights = np.broadcast_to(1.0 if sample_weight is None else sample_weight, kl.shape)
    gradients = found.p - found.q
    if direction == "reverse":
        gap = found.log_p - found.log_q - kl[..., None]
        gradients = _product(found.p, gap)
    return Reference(
        (weights * kl * temperature**2).astype(np.float64),
        np.moveaxis(weights[..., None] * gradients * temperature, -1, axis).astype(np.float64),
        float(weights.sum()),
        axis,
    )


def _elementwise(losses, gradients, batch=None) -> Reference:
    losses = np.asarray(losses)
    return Reference(losses, np.asarray(gradients), float(losses.size), batch=batch)


def _factor(weight):
    return 1.0 if weight is None else np.asarray(weight, np.float64)


def binary_cross_entropy(probs, target, *, weight=None) -> Reference:
    """−w·(t·log p + (1−t)·log(1−p)), logs clamped at −100.

    The gradient is PyTorch's, w·(p − t)/max(p·(1−p), 1e-12): not the derivative where a log is
    clamped.
    """
    p, t = np.asarray(probs, np.float64), np.asarray(target, np.float64)
    w = _factor(weight)
    with np.errstate(divide="ignore"):
        log_p = np.maximum(np.log(p), -100.0)
        log_q = np.maximum(np.log1p(-p), -100.0)
    losses = -w * (t * log_p + (1.0 - t) * log_q)
    gradients = w * (p - t) / np.maximum(p * (1.0 - p), 1e-12)
    return _elementwise(losses, gradients)


def binary_cross_entropy_with_logits(logits, target, *, weight=None, pos_weight=None) -> Reference:
    """w·(t·pos_weight·softplus(−x) + (1−t)·softplus(x)) and w·((1−t)·σ(x) − t·pos_weight·σ(−x))."""
    x, t = np.asarray(logits, np.float64), np.asarray(target, np.float64)
    w, positive = _factor(weight), t * _factor(pos_weight)
    losses = _product(w, _product(positive, softplus(-x)) + _product(1.0 - t, softplus(x)))
    gradients = w * ((1.0 - t) * sigmoid(x) - positive * sigmoid(-x))
    return _elementwise(losses, gradients)


def kl_div(log_probs, target, *, log_target=False) -> Reference:
    """t·(log t − x), or exp(t)·(t − x) with log_target; the gradient is −t or −exp(t)."""
    x, t = np.asarray(log_probs, np.float64), np.asarray(target, np.float64)
    p = np.exp(t) if log_target else t
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = t if log_target else np.log(t)
        losses = np.where(p == 0, 0.0, p * (log_p - x))
    return _elementwise(losses, -p + 0.0 * x, batch=x.shape[0] if x.ndim else None)


def sigmoid_focal_loss(logits, target, *, alpha=0.25, gamma=2.0) -> Reference:
    """a·(1 − p_t)^γ·ce with a = α·t + (1−α)·(1−t) and 1 − p_t = t·σ(−x) + (1−t)·σ(x).

    The derivative of 1 − p_t is −(2t−1)·σ(x)·σ(−x), that of ce is (1−t)·σ(x) − t·σ(−x).
    """
    x, t = np.asarray(logits, np.float64), np.asarray(target, np.float64)
    ce = binary_cross_entropy_with_logits(x, t)
    a = 1.0 if alpha is None else _factor(alpha) * t + (1.0 - _factor(alpha)) * (1.0 - t)
    miss = t * sigmoid(-x) + (1.0 - t) * sigmoid(x)
    slope = -(2.0 * t - 1.0) * sigmoid(x) * sigmoid(-x)
    losses = a * miss**gamma * ce.losses
    gradients = a * miss**gamma * ce.gradients
    if gamma != 0:
        gradients = gradients + a * gamma * miss ** (gamma - 1.0) * slope * ce.losses
    return _elementwise(losses, gradients)


# ---------------------------------------------------------------- d) building blocks, evaluation


def sigmoid(x):
    """1/(1 + exp(−x)), never through an overflow."""
    x = np.asarray(x, np.float64)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(−|x|))."""
    x = np.asarray(x, np.float64)
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def log_sigmoid(x):
    return -softplus(-np.asarray(x, np.float64))


def softmax(x, axis=-1):
    p, _, _ = _softmax_parts(np.moveaxis(np.asarray(x, np.float64), axis, -1))
    return np.moveaxis(p, -1, axis)


def log_softmax(x, axis=-1):
    _, _, nll = _softmax_parts(np.moveaxis(np.asarray(x, np.float64), axis, -1))
    return np.moveaxis(-nll, -1, axis)


def logsumexp(x, axis=-1, keepdims=False):
    """log Σ exp(x): −inf for nothing but −inf, +inf where one is +inf and none is NaN."""
    x = np.asarray(x, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        m = x.max(axis=axis, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(m), m, 0.0)
        result = np.log(np.exp(x - shift).sum(axis=axis, keepdims=True)) + shift
    return result if keepdims else np.squeeze(result, axis=axis)


class Scores(NamedTuple):
    log_prob: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    predicted_log_prob: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    logsumexp: np.ndarray
    top_classes: np.ndarray | None = None
    top_log_probs: np.ndarray | None = None
    brier: np.ndarray | None = None
    variance: np.ndarray | None = None


def score_samples(
    logits, target, *, ignore_index=-100, temperature=1.0, softcap=None, top_k=0, axis=None
) -> Scores:
    """What every sample got, by sorting whole rows."""
    logits, target = np.asarray(logits, np.float64), np.asarray(target)
    # Contiguous, so that NumPy sums in pairs.
    z = np.ascontiguousarray(np.moveaxis(logits, class_axis(logits.ndim, axis), -1))
    if softcap is not None:
        z = np.where(np.isfinite(z), softcap * np.tanh(z / softcap), z)
    z = z / temperature
    p, q, nll = _softmax_parts(z)
    # Stable, so that of equal logits the first comes first; NaNs come last.
    order = np.argsort(-z, axis=-1, kind="stable")
    live = target != ignore_index
    index = np.where(live, target, 0)[..., None]

    def pick(values, index):
        return np.take_along_axis(values, index, axis=-1)

    own = pick(z, index)
    others = np.where(np.arange(z.shape[-1]) == index, np.nan, z)
    log_prob = -pick(nll, index)[..., 0]
    known = live & ~np.isnan(log_prob)
    predicted = order[..., 0]
    with np.errstate(invalid="ignore"):
        rank = (others >= own).sum(axis=-1)
        margin = own[..., 0] - np.fmax.reduce(others, axis=-1, initial=-np.inf)
        d = np.maximum(nll - nll.min(axis=-1, keepdims=True), 0)
        mean = _product(p, d).sum(axis=-1, keepdims=True)
        variance = _product(p, (d - mean) ** 2).sum(axis=-1)
        brier = np.where(np.arange(z.shape[-1]) == index, q**2, p**2).sum(axis=-1)
        lse = pick(z, order[..., :1])[..., 0] + nll.min(axis=-1)
    return Scores(
        np.where(live, log_prob, np.nan),
        np.where(known, rank, -1),
        predicted,
        -pick(nll, predicted[..., None])[..., 0],
        np.where(known, margin, np.nan),
        _product(p, nll).sum(axis=-1),
        lse,
        order[..., :top_k] if top_k else None,
        -pick(nll, order[..., :top_k]) if top_k else None,
        np.where(live, brier, np.nan),
        variance,
    )


# ---------------------------------------------------------------- e) exact values

# 160 bits: the value, its residue in a second float64, and 54 bits to spare.
PRECISION = 160


class Exact(NamedTuple):
    """An exact value rounded to 106 bits: the nearest float64 and the rest in a second one."""

    high: np.ndarray
    low: np.ndarray


def as_exact(values) -> Exact:
    """Numbers of mpmath (a list, or nested lists of equal length) as an `Exact`."""
    values = np.array(values, dtype=object)
    high = np.array([float(v) for v in values.ravel()]).reshape(values.shape)
    with mpmath.workprec(PRECISION):
        low = np.array([float(v - h) for v, h in zip(values.ravel(), high.ravel(), strict=True)])
    return Exact(high, low.reshape(values.shape))


def ulp_error(got, exact: Exact) -> np.ndarray:
    """|got − exact| in units in the last place of `exact` in the dtype of `got`."""
    got = np.asarray(got)
    unit = np.spacing(np.abs(exact.high).astype(got.dtype)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        # The first difference is exact in float64 as soon as the two are within a factor of two.
        return np.abs((got.astype(np.float64) - exact.high) - exact.low) / unit


def exact_softmax_parts(row) -> tuple[list, list, list]:
    """mpmath's p, 1 − p and −log p of one row of finite logits or −inf."""
    return _exact_parts([mpmath.mpf(float(v)) for v in row])


def _exact_parts(x: list) -> tuple[list, list, list]:
    """`exact_softmax_parts` of numbers of mpmath."""
    with mpmath.workprec(PRECISION):
        m = max(x)
        e = [mpmath.exp(v - m) for v in x]
        total = mpmath.fsum(e)
        # total − e_c cancels where e_c is nearly all of it: ask for the others' sum there.
        j = max(range(len(x)), key=x.__getitem__)
        rest = mpmath.fsum(e[:j] + e[j + 1 :])
        p = [v / total for v in e]
        q = [(total - v) / total for v in e]
        q[j] = rest / total
        log_total = mpmath.log1p(rest)
        nll = [log_total + (m - v) for v in x]
    return p, q, nll


def exact_divergences(row, other, temperature=1.0) -> tuple[mpmath.mpf, mpmath.mpf, list, list]:
    """KL(p ‖ q), KL(q ‖ p), p - q and p (log p - log q - KL(p ‖ q)) of two rows of logits."""
    # The definition loses half of the digits, and all of them where p and q are equal.
    with mpmath.workprec(4 * PRECISION):
        rows = [[mpmath.mpf(float(v)) / mpmath.mpf(temperature) for v in x] for x in (row, other)]
        sums = [mpmath.log(mpmath.fsum(mpmath.exp(v) for v in x)) for x in rows]
        log_p, log_q = ([v - total for v in x] for x, total in zip(rows, sums, strict=True))
        p, q = ([mpmath.exp(v) for v in x] for x in (log_p, log_q))
        gap = [a - b for a, b in zip(log_p, log_q, strict=True)]
        kl = mpmath.fsum(a * d for a, d in zip(p, gap, strict=True))
        reverse_kl = mpmath.fsum(-b * d for b, d in zip(q, gap, strict=True))
        forward = [a - b for a, b in zip(p, q, strict=True)]
        reverse = [a * (d - kl) for a, d in zip(p, gap, strict=True)]
    return kl, reverse_kl, forward, reverse


def exact_cross_entropy(row, target: int) -> tuple[mpmath.mpf, list]:
    """The loss of one row with class index `target`, and its gradient."""
    p, q, nll = exact_softmax_parts(row)
    gradient = list(p)
    gradient[target] = -q[target]
    return nll[target], gradient


def exact_binary_cross_entropy_with_logits(x, t, weight=1.0, pos_weight=1.0):
    """Loss and gradient of one element, all arguments exact numbers."""
    with mpmath.workprec(PRECISION):
        x, t, w, positive = (mpmath.mpf(float(v)) for v in (x, t, weight, pos_weight))
        loss = w * (t * positive * exact_softplus(-x) + (1 - t) * exact_softplus(x))
        gradient = w * ((1 - t) * exact_sigmoid(x) - t * positive * exact_sigmoid(-x))
    return loss, gradient


def exact_softplus(x):
    with mpmath.workprec(PRECISION):
        return mpmath.log1p(mpmath.exp(-abs(x))) + max(x, 0)


def exact_sigmoid(x):
    with mpmath.workprec(PRECISION):
        return 1 / (1 + mpmath.exp(-x))


def exact_soft_cross_entropy(row, target, weight=None, label_smoothing=0.0):
    """The loss of one row with probabilities, the gradient, and the size of the gradient's terms.

    The gradient is p·Σa − a, a the target times its weights; its terms are p·Σa and a. `target`
    is a row of probabilities; a class index with smoothing is its one-hot row.
    """
    p, q, nll = exact_softmax_parts(row)
    with mpmath.workprec(PRECISION):
        classes = len(p)
        epsilon = mpmath.mpf(float(label_smoothing))
        w = [mpmath.mpf(float(v)) for v in (np.ones(classes) if weight is None else weight)]
        a = [
            w[c] * ((1 - epsilon) * mpmath.mpf(float(target[c])) + epsilon / classes)
            for c in range(classes)
        ]
        total = mpmath.fsum(a)
        loss = mpmath.fsum(v * n for v, n in zip(a, nll, strict=True))
        gradient = [p[c] * (total - a[c]) - a[c] * q[c] for c in range(classes)]
        if sum(v != 0 for v in a) == 1:  # −a·(1 − p) at the target, p·a elsewhere: no difference
            size = [abs(g) for g in gradient]
        else:
            size = [abs(p[c] * total) + abs(a[c]) for c in range(classes)]
    return loss, gradient, size


# ---------------------------------------------------------------- f) softmax losses with options


class Terms(NamedTuple):
    """Losses and gradients of the samples, and the size of the largest term of each.

    `denominator` is that of "mean". The class axis is the last one.
    """

    losses: np.ndarray
    loss_sizes: np.ndarray
    gradients: np.ndarray
    gradient_sizes: np.ndarray
    denominator: float


def tempered(x, temperature=1.0, softcap=None):
    """z = softcap·tanh(x/softcap)/temperature and dz/dx; an infinite logit stays what it is."""
    finite = np.isfinite(x)
    slope = np.ones_like(x)
    z = x
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if softcap is not None:
            z = np.where(finite, softcap * np.tanh(x / softcap), x)
            slope = np.where(np.isnan(x), x, 1.0 / np.cosh(x / softcap) ** 2)
        return z / temperature, slope / temperature


def softmax_loss(
    logits,
    target,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    temperature=1.0,
    softcap=None,
    z_loss=0.0,
    gamma=None,
    alpha=None,
    axis=None,
    real=np.longdouble,
    rounded_z=False,
) -> Terms:
    """Cross-entropy with all options, or with `gamma` the focal loss with class weights `alpha`.

    Cross-entropy: Σc a[c]·(S − z[c]) + z_loss·v·S² with S = logsumexp(z), v = w[t] of a class
    index and 1 of probabilities; its gradient p·(Σa + 2·z_loss·v·S) − a times dz/dx.
    Focal: α[t]·(1 − p_t)^γ·(−log p_t); gradient (p − onehot) times
    α[t]·((1 − p_t)^γ + γ·(1 − p_t)^(γ−1)·p_t·(−log p_t)). All computed in the type `real`.

    With `rounded_z`, the sizes allow for z being rounded once, to float64: the largest |z| joins
    the terms of a loss, and multiplies those of a gradient.
    """
    x = np.asarray(logits)
    axis = class_axis(x.ndim, axis)
    x = np.moveaxis(x.astype(np.float64).astype(real), axis, -1)
    target = np.asarray(target)
    classes = x.shape[-1]
    weight = alpha if gamma is not None else weight
    w = np.ones(classes, real) if weight is None else np.asarray(weight, np.float64).astype(real)
    epsilon = real(label_smoothing)
    samples = x.shape[:-1]
    indices = target.dtype.kind in "iub"
    if indices:
        live = target != ignore_index
        index = np.where(live, target, 0).astype(np.intp)
        t = np.zeros(x.shape, real)
        np.put_along_axis(t, index[..., None], 1.0, axis=-1)
        v = np.where(live, w[index], 0)
    else:
        live = np.ones(samples, bool)
        t = np.moveaxis(target.astype(np.float64).astype(real), axis, -1)
        v = np.ones(samples, real)
    s = np.ones(samples, real)
    if sample_weight is not None:
        s = np.broadcast_to(np.asarray(sample_weight, np.float64).astype(real), samples)
    denominator = float((np.where(live, v, 0) * np.where(live, s, 0)).sum())

    x = np.where(live[..., None], x, real(0))
    z, slope = tempered(x, real(temperature), None if softcap is None else real(softcap))
    p, q, nll = _softmax_parts(z)
    if gamma is not None:
        losses, gradients = _focal(p, q, nll, t, w, real(gamma))
        loss_sizes, gradient_sizes = np.abs(losses), np.abs(gradients)
    else:
        a = w * ((1 - epsilon) * t + epsilon / classes)
        mass = a.sum(axis=-1, keepdims=True)
        terms = _product(a, nll)
        losses, loss_sizes = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
        if indices and epsilon == 0:
            gradients = np.where(t == 1, -a * q, p * mass)
            gradient_sizes = np.abs(gradients)
        else:
            gradients = p * (mass - a) - a * q
            one = np.count_nonzero(a, axis=-1, keepdims=True) == 1
            gradient_sizes = np.where(
                one, np.abs(gradients), np.maximum(np.abs(p * mass), np.abs(a))
            )
        if z_loss:
            top = z.max(axis=-1)
            lse = top + nll.min(axis=-1)
            # S is formed of logarithms: next to 0 it is right to an ulp of 1.
            size = np.maximum(np.maximum(np.abs(top), np.abs(lse)), 1)
            losses = losses + real(z_loss) * v * lse * lse
            loss_sizes = np.maximum(loss_sizes, np.abs(real(z_loss) * v * lse * size))
            pull = 2 * real(z_loss) * v
            gradients = gradients + _product(p, (pull * lse)[..., None])
            more = np.abs(p * (pull * size)[..., None])
            # p·(Σa + 2·z_loss·v·S) is one term where there is another, and two of one sign else.
            at_one = np.maximum(np.abs(a * q), more)
            gradient_sizes = np.where(
                np.count_nonzero(a, axis=-1, keepdims=True) == 1,
                np.where(a != 0, at_one, np.abs(p * mass) + more),
                np.maximum(np.abs(p * mass) + more, np.abs(a)),
            )
    if rounded_z:
        most = np.abs(np.where(np.isfinite(z), z, 0)).max(axis=-1)
        pull = 1 + 2 * real(z_loss) * (most + 1)  # how much a loss changes with its logits
        whole = 1 if indices else np.maximum(np.abs(t).sum(axis=-1), 1)
        loss_sizes = np.maximum(loss_sizes, most * np.abs(w).max() * whole * pull)
        gradient_sizes = gradient_sizes * np.maximum(most, 1)[..., None] * pull[..., None]
    with np.errstate(invalid="ignore", over="ignore"):
        gradients = np.where(gradients == 0, 0, gradients * slope)
        gradient_sizes = gradient_sizes * slope
        scale = np.where(live, s, 0)
        losses = np.where(live, _product(scale, losses), 0)
        loss_sizes = np.where(live, np.abs(_product(scale, loss_sizes)), 0)
        gradients = np.where(live[..., None], gradients * scale[..., None], 0)
        gradient_sizes = np.where(live[..., None], np.abs(gradient_sizes * scale[..., None]), 0)
    return Terms(losses, loss_sizes, gradients, gradient_sizes, denominator)


def _focal(p, q, nll, t, w, gamma):
    def at(values):
        return (values * t if values is w else np.where(t == 1, values, 0)).sum(axis=-1)

    miss, hit, loss, factor = at(q), at(p), at(nll), at(w)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        power = miss**gamma
        bend = gamma * miss ** (gamma - 1) * hit * loss
    bend = np.where((hit == 0) | (miss == 0) | (gamma == 0), bend.dtype.type(0), bend)
    bend = np.where(np.isnan(loss), loss, bend)
    losses = _product(factor * power, loss)
    return losses, (factor * (power + bend))[..., None] * np.where(t == 1, -q, p)


def exact_softmax_loss(
    row, target, *, weight=None, label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0,
    gamma=None,
):  # fmt: skip
    """Loss and gradient of one row; `target` a class index or a row of probabilities.

    `weight` is alpha where there is a `gamma`. The formulas are those of `softmax_loss`.
    """
    with mpmath.workprec(PRECISION):
        x = [mpmath.mpf(float(v)) for v in row]
        z, slope = x, [mpmath.mpf(1)] * len(x)
        if softcap is not None:
            cap = mpmath.mpf(float(softcap))
            z = [cap * mpmath.tanh(v / cap) if mpmath.isfinite(v) else v for v in x]
            slope = [mpmath.sech(v / cap) ** 2 if mpmath.isfinite(v) else v * 0 for v in x]
        z, slope = ([v / mpmath.mpf(float(temperature)) for v in part] for part in (z, slope))
        p, q, nll = _exact_parts(z)
        classes = len(p)
        w = [mpmath.mpf(float(v)) for v in (np.ones(classes) if weight is None else weight)]
        index = None if np.ndim(target) else int(target)
        one_hot = np.eye(1, classes, index)[0] if index is not None else target
        t = [mpmath.mpf(float(v)) for v in one_hot]
        if gamma is not None:
            power = mpmath.mpf(float(gamma))
            miss, hit, loss = q[index], p[index], nll[index]
            factor = miss**power
            if power and loss:
                factor += power * miss ** (power - 1) * hit * loss
            loss = w[index] * miss**power * loss
            g = [w[index] * factor * v for v in p]
            g[index] = -w[index] * factor * miss
        else:
            epsilon = mpmath.mpf(float(label_smoothing))
            a = [w[c] * ((1 - epsilon) * t[c] + epsilon / classes) for c in range(classes)]
            total = mpmath.fsum(a)
            loss = mpmath.fsum(v * n for v, n in zip(a, nll, strict=True) if v)
            g = [p[c] * (total - a[c]) - a[c] * q[c] for c in range(classes)]
            lse = max(z) + min(nll)
            v = mpmath.mpf(float(z_loss)) * (1 if index is None else w[index])
            loss += v * lse**2
            g = [g[c] + p[c] * 2 * v * lse for c in range(classes)]
        return loss, [a * b for a, b in zip(g, slope, strict=True)]


def ulps(got, want, sizes) -> np.ndarray:
    """|got − want| in ulp of the larger of `want` and its largest term.

    An ulp is that of the type of `got`, but for halves, which are computed in float32: there it is
    float32's, after half an ulp of the half has been taken off for rounding.
    """
    got = np.asarray(got)
    half = got.dtype.itemsize == 2
    info = np.finfo(np.float32 if half else got.dtype)
    value = got.astype(np.float64).astype(np.longdouble)
    size = np.maximum(np.maximum(np.abs(want), sizes), info.smallest_normal)
    error = np.abs(value - want)
    if half:
        up = np.nextafter(np.abs(got), np.asarray(np.inf, got.dtype)).astype(np.longdouble)
        error = np.maximum(error - (up - np.abs(value)) * 0.5, 0)
    return error / np.ldexp(np.longdouble(info.eps), np.frexp(size)[1] - 1)
