"""Random calls of the functions over classes: losses, their derivatives, softmax.

Layout: a) making a problem, b) exact answers, c) one problem on one level, held to itself and to
the exact answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import oracle
from common import (
    BFLOAT16,
    EXACT,
    WAYS,
    Found,
    Generator,
    Package,
    another_form,
    as_option,
    call_again,
    class_indices,
    exact,
    hold,
    in_a_room,
    inf,
    nan,
    overlaps,
    refused,
    same,
    threads_of,
    untouched,
    weights_of,
    wrong_array,
    wrong_options,
    wrong_output,
)

#: The sizes of the kernels' own blocks, and their neighbours.
CLASSES = [1, 2, 3, 5, 10, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257]
LONG = [1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193, 16_385, 20_001]
SAMPLES = [0, 1, 1, 2, 3, 5, 7, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 200, 449]
#: Elements of a call, at most: mostly few, so that there are many calls.
ELEMENTS = [200, 1000, 8000, 60_000]

KINDS = ["index", "smooth", "soft", "focal", "nll", "softmax", "log_softmax", "logsumexp"]
LIKELY = [0.3, 0.1, 0.16, 0.16, 0.05, 0.08, 0.08, 0.07]
NAMES = {
    "index": "cross_entropy", "smooth": "cross_entropy", "soft": "cross_entropy",
    "focal": "softmax_focal_loss", "nll": "nll_loss",
}  # fmt: skip
CRITERIA = {
    "cross_entropy": "CrossEntropyLoss",
    "softmax_focal_loss": "SoftmaxFocalLoss",
    "nll_loss": "NLLLoss",
}


class Problem(NamedTuple):
    """The arguments of a call, in their plainest form: contiguous, native, aligned."""

    kind: str
    x: np.ndarray
    target: Any
    axis: int
    options: dict[str, Any]
    #: Whether the target holds a class that there is not.
    wrong: bool


# ---- a) making a problem ---------------------------------------------------------------------


def shape_of(rng: Generator) -> tuple[tuple[int, ...], int]:
    """A shape and its class axis."""
    most = int(rng.choice(ELEMENTS, p=[0.68, 0.27, 0.04, 0.01]))
    wide = rng.random() < (0.02 if most < 8000 else 0.3)
    classes = int(rng.choice(LONG if wide else CLASSES))
    if rng.random() < 0.01:
        classes = 0
    most = max(int(10.0 ** rng.uniform(1, np.log10(most))) // max(classes, 1), 1)
    samples = min(int(rng.choice(SAMPLES)), most)
    way = rng.integers(6)
    if way == 0:
        return (classes,), 0
    if way <= 2:
        return (samples, classes), 1
    if way == 3:
        return (classes, samples), 0
    inner = int(rng.choice([0, 1, 2, 3, 5, 17, 64, 65], p=[0.02] + [0.14] * 7))
    outer = max(min(samples, most // max(inner, 1)), 1)
    if way == 4:
        return (outer, classes, inner), 1
    dims = [max(outer // 2, 1), 2 if outer > 1 else 1, inner]
    axis = int(rng.integers(4))
    return (*dims[:axis], classes, *dims[axis:]), axis


def values_of(rng: Generator, samples: int, classes: int, dtype: np.dtype) -> np.ndarray:
    """Rows of logits of many kinds, side by side."""
    x = rng.standard_normal((samples, classes))
    x *= rng.choice(
        [0.01, 0.1, 1.0, 10.0, 60.0, 300.0], (samples, 1), p=[0.05, 0.1, 0.4, 0.3, 0.1, 0.05]
    )
    ways = rng.integers(40, size=samples) if rng.random() < 0.7 and classes else ()
    for i in np.flatnonzero(np.asarray(ways) < 13):
        way = ways[i]
        if way == 0:
            x[i] = rng.standard_normal()
        elif way == 1:
            x[i] += rng.choice([80, -80, 100, -100, 700, -700, 1e4, -1e4])
        elif way == 2:
            x[i] = np.linspace(0, rng.choice([100, 300, 1500, 1e4, 1e30]), classes)
        elif way == 3:
            x[i] = x[i, ::-1] if rng.random() < 0.5 else np.sort(x[i])
        elif way == 4:
            x[i, rng.random(classes) < rng.choice([0.1, 0.5, 0.95])] = -inf
        elif way == 5:
            x[i, rng.integers(classes)] += rng.choice([20, 50, 86, 120, 300, 700, 1e5])
        elif way == 6:
            x[i, rng.integers(classes)] = rng.choice([nan, inf, -inf, -inf])
        elif way == 7:
            x[i] = -inf
        elif way == 8:
            x[i] *= rng.choice([1e-45, 1e-30, 1e-310, 0.0])
        elif way == 9:
            x[i] *= rng.choice([1e3, 1e10, 1e30, 1e34])
        elif way == 10:
            x[i, : rng.integers(classes + 1)] -= rng.choice([100, 1e3, 1e5, inf])
        elif way == 11:
            x[i] = np.round(x[i])
        elif way == 12:
            x[i] -= rng.choice([90, 200, 1000]) * np.arange(classes)
    if rng.random() < 0.04:
        x = np.round(x)  # whole numbers, which may come as integers
    if dtype == np.float16:
        x = np.where(np.isfinite(x), np.clip(x, -6e4, 6e4), x)
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(dtype)


def sizes_of(rng: Generator, usual: list[float], low: float, high: float) -> float:
    """A usual number, or one from 10**low to 10**high."""
    return float(rng.choice(usual) if rng.random() < 0.7 else 10.0 ** rng.uniform(low, high))


def sample_weights_of(rng: Generator, rest: tuple[int, ...]) -> np.ndarray:
    """Weights of a shape that broadcasts to the samples."""
    way = rng.random()
    if way < 0.6:
        return weights_of(rng, rest)
    some = rest[int(rng.integers(len(rest) + 1)) :]
    return weights_of(rng, tuple(n if rng.random() < 0.5 else 1 for n in some))


def dtype_of(rng: Generator) -> np.dtype:
    kinds = [np.float32, np.float64, np.float16, BFLOAT16]
    return np.dtype(kinds[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])])


def make(rng: Generator) -> Problem:
    kind = str(rng.choice(KINDS, p=LIKELY))
    shape, axis = shape_of(rng)
    dtype = dtype_of(rng)
    classes = shape[axis]
    rest = shape[:axis] + shape[axis + 1 :]
    samples = int(np.prod(rest, dtype=int))
    rows = values_of(rng, samples, classes, dtype)
    x = np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, classes), -1, axis))
    options: dict[str, Any] = {}
    if kind in ("softmax", "log_softmax", "logsumexp"):
        return Problem(kind, x, None, axis, options, False)

    wide = rows.astype(np.float64)
    wrong = False
    if classes:
        target = rng.integers(0, classes, samples)
        way = rng.integers(4, size=samples)
        target = np.where(way == 1, wide.argmax(axis=1), target)
        target = np.where(way == 2, wide.argmin(axis=1), target)
    else:
        target = np.full(samples, -100)
        kind = "index" if kind == "soft" else kind
    ignored = int(rng.choice([-100, -1, 0, classes - 1, classes, 2**40])) if classes else -100
    if kind != "soft":
        part = rng.choice([0, 0, 0.1, 0.5, 0.95, 1])
        target[rng.random(samples) < part] = ignored
        options["ignore_index"] = ignored
        if rng.random() < 0.03 and samples:
            bad = int(rng.choice([-1, -2, classes, classes + 1, -(2**62), 2**62]))
            if bad != ignored:
                target[rng.integers(samples)] = bad
                wrong = True
        if rng.random() < 0.4:
            target = class_indices(rng, target)
    target = target.reshape(rest)
    if kind == "soft":
        p = rng.gamma(rng.choice([0.05, 0.5, 5.0]), size=(samples, classes))
        with np.errstate(invalid="ignore"):
            p = p / p.sum(axis=1, keepdims=True)
        p = np.where(np.isfinite(p), p, 0.0)
        hard = rng.random(samples) < 0.3
        p[hard] = np.eye(classes)[target.reshape(-1)[hard]] if classes <= 1025 else p[hard]
        if rng.random() < 0.2:
            p[rng.random(p.shape) < 0.5] = 0.0
        if rng.random() < 0.1:
            p = p * rng.choice([0.0, 1e-20, 7.0])
        if rng.random() < 0.2:
            p[np.isneginf(wide)] = 0.0
        kept = np.dtype(["f4", "f8", "f2", BFLOAT16][rng.choice(4, p=[0.5, 0.3, 0.1, 0.1])])
        target = np.ascontiguousarray(np.moveaxis(p.reshape(*rest, classes), -1, axis)).astype(kept)
    if kind == "smooth" or (kind == "soft" and rng.random() < 0.4):
        options["label_smoothing"] = sizes_of(rng, [0.1, 0.125, 1e-3, 1.0, 0.9], -16, 0)
    if kind == "focal":
        options["gamma"] = sizes_of(rng, [0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 0.1], -6, 1.5)
        if rng.random() < 0.4:
            options["alpha"] = weights_of(rng, (classes,))
    elif rng.random() < 0.35:
        options["weight"] = weights_of(rng, (classes,))
    if rng.random() < 0.35:
        options["sample_weight"] = sample_weights_of(rng, rest)
    if kind in ("index", "smooth", "soft"):
        if rng.random() < 0.2:
            options["temperature"] = sizes_of(rng, [0.01, 0.5, 0.7, 2.0, 3.0, 100.0], -8, 12)
        if rng.random() < 0.2:
            options["softcap"] = sizes_of(rng, [0.1, 1.0, 5.0, 15.0, 30.0, 50.0, 1e4], -4, 12)
        if rng.random() < 0.2:
            options["z_loss"] = sizes_of(rng, [1e-4, 1e-2, 0.5, 3.0], -20, 3)
    return Problem(kind, x, target, axis, options, wrong)


def described(problem: Problem) -> str:
    options = {
        name: f"{value.dtype}{value.shape} from {value.min():.3g} to {value.max():.3g}"
        if isinstance(value, np.ndarray) and value.size
        else value
        for name, value in problem.options.items()
    }
    target = "" if problem.target is None else f" target {problem.target.dtype}"
    return (
        f"{problem.kind} {problem.x.dtype}{problem.x.shape} axis {problem.axis}{target} {options}"
    )


# ---- b) exact answers ------------------------------------------------------------------------


class Exactly:
    """What is exact, computed once for all levels."""

    def __init__(self, problem: Problem):
        kind, x, target, axis, options, _ = problem
        self.problem = problem
        self.limit, self.key = 4.0, kind
        if kind in ("softmax", "log_softmax", "logsumexp"):
            wide = np.moveaxis(exact(x), axis, -1)
            self.wide = wide
            self.p, _, self.nll = oracle._softmax_parts(wide)
            return
        if kind == "nll":
            wide = np.moveaxis(exact(x), axis, -1)
            live = target != options["ignore_index"]
            index = np.where(live, target, 0).astype(np.intp)
            w = exact(options.get("weight", np.ones(wide.shape[-1])))
            s = np.broadcast_to(exact(options.get("sample_weight", 1.0)), live.shape)
            factor = np.where(live, w[index] * s, 0)
            picked = np.take_along_axis(wide, index[..., None], axis=-1)[..., 0]
            losses = np.where(live, oracle._product(-factor, picked), 0)
            gradients = np.zeros(wide.shape, EXACT)
            np.put_along_axis(gradients, index[..., None], -factor[..., None], axis=-1)
            self.terms = oracle.Terms(
                losses, abs(losses), gradients, abs(gradients), float(factor.sum())
            )
        else:
            tempered = options.get("temperature", 1.0) != 1.0 or "softcap" in options
            self.terms = oracle.softmax_loss(
                x, target, axis=axis, rounded_z=tempered and x.dtype == np.float64, **options
            )
            self.tempered = tempered
            if kind == "focal":
                self.limit += 3.0 * options["gamma"]
            if tempered:
                self.key += " tempered"
            if "z_loss" in options:
                self.key += " z_loss"
                if x.dtype == np.float64:
                    self.limit += 2  # S² doubles the error of S

    def second_derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """The diagonal of the Hessian, and the sizes of its terms."""
        kind, x, target, axis, options, _ = self.problem
        if kind == "focal":
            return self._focal_second_derivatives()
        wide = np.moveaxis(exact(x), axis, -1)
        classes, samples = wide.shape[-1], wide.shape[:-1]
        w = exact(options.get("weight", np.ones(classes)))
        epsilon = EXACT(options.get("label_smoothing", 0.0))
        if target.dtype.kind in "iu":
            live = target != options["ignore_index"]
            index = np.where(live, target, 0).astype(np.intp)
            t = np.zeros(wide.shape, EXACT)
            np.put_along_axis(t, index[..., None], 1.0, axis=-1)
            v = w[index]
        else:
            live, t, v = np.ones(samples, bool), np.moveaxis(exact(target), axis, -1), EXACT(1)
        s = np.where(live, np.broadcast_to(exact(options.get("sample_weight", 1.0)), samples), 0)
        wide = np.where(live[..., None], wide, EXACT(0))
        temperature, softcap = EXACT(options.get("temperature", 1.0)), options.get("softcap")
        z, slope = oracle.tempered(wide, temperature, None if softcap is None else EXACT(softcap))
        with np.errstate(all="ignore"):
            bend = EXACT(0)
            if softcap is not None:
                bend = -2 * np.tanh(wide / EXACT(softcap)) * slope / EXACT(softcap)
                bend = np.where(np.isfinite(wide), bend, 0)
            p, q, nll = oracle._softmax_parts(z)
            a = w * ((1 - epsilon) * t + epsilon / classes)
            total = a.sum(axis=-1, keepdims=True)
            log_sum = (z.max(axis=-1) + nll.min(axis=-1))[..., None]
            extra = 2 * EXACT(options.get("z_loss", 0.0)) * np.asarray(v)[..., None]
            square = extra * p * p
            one = total - a
            one = np.where(np.count_nonzero(a, axis=-1, keepdims=True) == 1, total * (a == 0), one)
            grad = p * one - a * q + oracle._product(p, extra * log_sum)
            grad_size = p * total + a + p * extra * np.maximum(np.abs(log_sum), 1)
            hess = (total + extra * log_sum) * p * q + square
            size = (total + extra * np.maximum(np.abs(log_sum), 1)) * p * q + square
            hess = oracle._product(hess, slope * slope) + oracle._product(grad, bend)
            size = size * slope * slope + grad_size * np.abs(bend)
            if self.tempered and x.dtype == np.float64:
                # The logits are rounded once.
                most = np.abs(np.where(np.isfinite(z), z, 0)).max(axis=-1, keepdims=True)
                size = size * np.maximum(most, 1) * (1 + extra * (most + 1))
            s = s[..., None]
            return oracle._product(s, hess), oracle._product(s, size)

    def _focal_second_derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Of F(L) with L the cross-entropy: F' p_c (1 - p_c) + F'' d_c², d the gradient of L."""
        _, x, target, axis, options, _ = self.problem
        wide = np.moveaxis(exact(x), axis, -1)
        live = target != options["ignore_index"]
        index = np.where(live, target, 0).astype(np.intp)[..., None]
        g = EXACT(options["gamma"])
        product = oracle._product
        with np.errstate(all="ignore"):
            p, q, nll = oracle._softmax_parts(np.where(live[..., None], wide, EXACT(0)))
            hit, u, loss = (np.take_along_axis(a, index, axis=-1) for a in (p, q, nll))
            d = p.copy()
            np.put_along_axis(d, index, -u, axis=-1)

            def power(n: int) -> np.ndarray:
                # d_t² and p_t p_c u², times u**(g - 2), are nothing where u is.
                return np.where(u < EXACT("1e-1000"), 0, u ** (g - n)) if g - n else u * 0 + 1

            first = [power(0), product(g * power(1) * hit, loss)]
            second = [2 * g * power(1) * hit, -product(g * power(1) * hit, loss)]
            second.append(product(g * (g - 1) * power(2) * hit * hit, loss))
            terms = [product(f, p * q) for f in first]
            terms += [product(f, d * d) for f in second]
            if not g:
                terms = terms[:1]
            w = exact(options.get("alpha", np.ones(wide.shape[-1])))[index[..., 0]]
            s = np.broadcast_to(exact(options.get("sample_weight", 1.0)), live.shape)
            s = np.where(live, product(w, s), 0)[..., None]
            bad = np.isnan(nll).any(axis=-1, keepdims=True)
            terms = [np.where(bad, nan, t) for t in terms]
            return product(s, sum(terms)), product(s, sum(np.abs(t) for t in terms))


def hold_building_block(exactly: Exactly, value: Any, label: str) -> None:
    kind, axis = exactly.problem.kind, exactly.problem.axis
    p, nll, wide = exactly.p, exactly.nll, exactly.wide
    if kind == "softmax":
        hold(np.moveaxis(value, axis, -1), p, p, 4, kind, (kind, ""), label)
    elif kind == "log_softmax":
        hold(np.moveaxis(value, axis, -1), -nll, np.abs(nll), 4, kind, (kind, ""), label)
    else:
        with np.errstate(invalid="ignore"):
            m = wide.max(axis=-1)
            rest = nll.min(axis=-1)
            want = np.where(np.isfinite(m), m + rest, m)
            size = np.maximum(np.abs(m), rest)
        hold(value, want, np.where(np.isfinite(size), size, 0), 4, kind, (kind, ""), label)


def hold_loss(exactly: Exactly, results: dict[str, Any], label: str) -> None:
    kind, x, _, axis, options, _ = exactly.problem
    dtype, terms, limit, key = x.dtype, exactly.terms, exactly.limit, exactly.key
    # What is too small for the type it is computed in is lost, and a weight does not bring it back.
    # Float32 takes another way where a weight is 1e10 or more.
    weights = (
        np.broadcast_to(np.abs(exact(options.get("sample_weight", 1.0))), results["none"].shape)
        * np.abs(exact(options.get("weight", options.get("alpha", np.ones(1))))).max()
    )
    least = np.longdouble(2.0) ** (-1022 if dtype == np.float64 else -149)
    if kind == "nll" or (dtype != np.float64 and kind != "soft"):
        least = np.longdouble(0)
    lost = least * np.maximum(weights, 1)
    losses, sizes = terms.losses, terms.loss_sizes
    hold(results["none"], losses, sizes, limit, "losses", (key, "loss"), label, lost)
    with np.errstate(all="ignore"):
        total, size, part = losses.sum(), np.abs(sizes).sum(), lost.sum()
        divisor = np.longdouble(terms.denominator)
        # A mean of nothing is NaN, even where smoothing leaves an infinite loss above it.
        mean, mean_size = total / divisor if divisor else np.longdouble("nan"), size / abs(divisor)
        mean_part = part / abs(divisor)
    hold(results["sum"], total, size, limit + 2, "sum", (key, "sum"), label, part)
    hold(results["mean"], mean, mean_size, limit + 3, "mean", (key, "mean"), label, mean_part)
    if dtype == np.float64 and "softcap" in options:
        limit += 2  # dz/dx is one more factor
    gradients, sizes, lost = terms.gradients, terms.gradient_sizes, lost[..., None]
    for name, factor, more in [
        ("gradient", np.longdouble(1), 0.0),
        ("backward", exact(results["upstream"])[..., None], 0.5),
        ("mean gradient", results["scalar"] / divisor if divisor else np.longdouble(0), 1.0),
    ]:
        with np.errstate(all="ignore"):
            want = np.where(gradients == 0, 0, gradients * factor)
            size = np.where(sizes == 0, 0, np.abs(sizes * factor))
            part = lost * np.maximum(np.abs(factor), 1)
        g = np.moveaxis(results[name], axis, -1)
        hold(g, want, size, limit + more, name, (key, name), label, part)
    if "hess" in results:
        want, size = exactly.second_derivatives()
        got = np.moveaxis(results["hess"], axis, -1)
        usual = np.isfinite(want) & (weights[..., None] < 1e8)
        if dtype != np.float64:
            lost = np.longdouble(2.0) ** -149 * np.maximum(weights, 1)[..., None]
        top = np.abs(np.moveaxis(exact(x), axis, -1))
        top = np.where(np.isfinite(top), top, 0).max(axis=-1, keepdims=True)
        if "z_loss" in options:
            lost = lost * (1 + 2 * options["z_loss"] * (top + 10))
        got, want, size = (np.where(usual, v, 0) for v in (got, want, size))
        more = 1 if kind == "index" else 2
        hold(got.astype(dtype), want, size, limit + more, "hess", (key, "hess"), label, lost)


# ---- c) one problem on one level -------------------------------------------------------------


def run(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any], label: str) -> None:
    """Hold the calls of a problem to each other, and the first of them to what is exact."""
    if "exactly" not in spot and not problem.wrong and problem.x.shape[problem.axis]:
        spot["exactly"] = Exactly(problem)
    fl.use_threads(1)
    if problem.kind not in NAMES:
        value = building_block(fl, problem, rng)
        if "exactly" in spot:
            hold_building_block(spot["exactly"], value, label)
        return
    results = loss(fl, problem, rng, spot)
    if results and "exactly" in spot:
        hold_loss(spot["exactly"], results, label)


def building_block(fl: Package, problem: Problem, rng: Generator) -> Any:
    name, x, axis = problem.kind, problem.x, problem.axis
    function = getattr(fl, name)
    value = function(x, axis=axis)
    for _ in range(6):
        fl.use_threads(threads_of(rng))
        again = function(another_form(rng, x), axis=axis - x.ndim * int(rng.integers(2)))
        same(again, value, "another form")
        if name != "logsumexp":
            room, out, shift = in_a_room(rng, x)
            start = x
            if rng.random() < 0.5:
                out[...] = x
                start = out
            same(function(start, axis=axis, out=out), value, "into an array")
            untouched(room, shift, x.size, name)
    refused(lambda: function(wrong_array(rng, x), axis=axis), "a wrong array")
    return value


def loss(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any]) -> dict[str, Any]:
    kind, x, target, axis, options, wrong = problem
    name = NAMES[kind]
    value = getattr(fl, name)
    fused = getattr(fl, f"{name}_value_and_grad")
    back = getattr(fl, f"{name}_backward")
    options = {**options, "axis": axis}
    if wrong:
        out = np.full(x.shape, 7, x.dtype)
        for call in (
            lambda: value(x, target, **options),
            lambda: fused(x, target, out=out, **options),
        ):
            text = refused(call, "a wrong class index", out)
            if "outside [0" not in text and "no classes" not in text:
                raise Found(f"message {text}")
        return {}
    results: dict[str, Any] = {}
    for reduction in ("none", "sum", "mean"):
        results[reduction] = value(x, target, reduction=reduction, **options)
    results["gradient"] = fused(x, target, reduction="none", **options)[1]
    # Upstream gradients.
    upstream = spot.get("upstream")
    if upstream is None:
        upstream = np.asarray(rng.standard_normal(results["none"].shape))
        if rng.random() < 0.2:
            upstream *= 10.0 ** rng.choice([-20, -10, 9, 10, 12, 20])
        if rng.random() < 0.2:
            upstream = np.where(rng.random(upstream.shape) < 0.3, 0.0, upstream)
        spot["upstream"] = upstream
        spot["scalar"] = float(rng.choice([1.0, -1.0, 0.3, 1e-3, 1e12]))
    results["upstream"], results["scalar"] = upstream, spot["scalar"]
    results["backward"] = back(upstream, x, target, reduction="none", **options)
    results["mean gradient"] = back(spot["scalar"], x, target, reduction="mean", **options)
    second = None
    if name != "nll_loss" and spot.setdefault("second", rng.random() < 0.4):
        second = getattr(fl, f"{name}_grad_and_hess")
        results["first"], results["hess"] = second(x, target, **options)
    criterion = getattr(fl, CRITERIA[name])
    kept = {name: v for name, v in options.items() if name != "sample_weight"}
    criterion = criterion(reduction="none", **kept)
    functions = value, fused, back, second, criterion
    for _ in range(14):
        again(fl, problem, rng, results, functions, options)
    for _ in range(2):
        overlaps(rng, x, target, functions, results, options)
    # Overlaps are errors.
    if x.size > 1:
        room = np.zeros(x.size + 1, x.dtype)
        a, b = room[:-1].reshape(x.shape), room[1:].reshape(x.shape)
        a[...] = x
        text = refused(lambda: fused(a, target, out=b, **options), "an overlap", room)
        if "overlap" not in text:
            raise Found(f"message {text}")
    # So is what does not fit.
    out = np.full(x.shape, 7, x.dtype)
    wrong_one = wrong_options(rng, name)
    bad = {**options, **wrong_one}
    refused(lambda: fused(x, target, out=out, **bad), f"wrong {next(iter(wrong_one))}", out)
    refused(lambda: fused(wrong_array(rng, x), target, **options), "a wrong array")
    refused(lambda: value(x, wrong_array(rng, np.asarray(target)), **options), "a wrong target")
    no_out = wrong_output(rng, x)
    refused(lambda: back(1.0, x, target, reduction="sum", out=no_out, **options), f"out={no_out!r}")
    other_samples(problem, rng, results, fused, options)
    return results


def again(
    fl: Package, problem: Problem, rng: Generator, results: dict[str, Any],
    functions: tuple[Any, ...], options: dict[str, Any],
) -> None:  # fmt: skip
    """One more call, in other form, into an array, in place or by a criterion: the same bits."""
    _, fused, _, second, _ = functions
    x, target = problem.x, problem.target
    fl.use_threads(threads_of(rng))
    form = another_form(rng, x), another_form(rng, target)
    given = {
        name: as_option(rng, v) if isinstance(v, np.ndarray) else v for name, v in options.items()
    }
    if rng.random() < 0.5:
        given["axis"] = problem.axis - x.ndim
    if problem.axis == min(1, x.ndim - 1) and rng.random() < 0.5:
        del given["axis"]
    way = int(rng.integers(WAYS + 3))
    if way < WAYS:
        call_again(way, rng, x, form, functions, results, options.get("sample_weight"), given)
    elif way == WAYS and second is not None:
        room, hess, shift = in_a_room(rng, x)
        second(x, form[1], out=(np.empty_like(x), hess), **given)
        same(hess, results["hess"], "hess in out")
        untouched(room, shift, x.size, "hess")
    else:
        room, out, shift = in_a_room(rng, x)
        got, g = fused(*form, reduction="none", out=out, **given)
        same(got, results["none"], "losses in another form")
        same(g, results["gradient"], "gradient in another form")
        untouched(room, shift, x.size, "another form")


def other_samples(
    problem: Problem, rng: Generator, results: dict[str, Any], fused: Any, options: dict[str, Any]
) -> None:
    """The bits of a sample do not depend on those beside it."""
    kind, x, target, axis, _, _ = problem
    rest = results["none"].shape
    n = int(np.prod(rest, dtype=int))
    if n < 2:
        return
    classes = x.shape[axis]
    rows = np.moveaxis(x, axis, -1).reshape(n, classes)
    inner = int(np.prod(x.shape[axis + 1 :], dtype=int))
    picked = rng.integers(0, n, int(rng.integers(1, 2 * n + 1)))
    if picked.size < 2 and inner != 1:
        return
    kept = {**options, "axis": 1 if inner == 1 else 0}

    def turn(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a if inner == 1 else a.T)

    t = (
        turn(np.moveaxis(target, axis, -1).reshape(n, classes)[picked])
        if kind == "soft"
        else target.reshape(n)[picked]
    )
    if "sample_weight" in kept:
        kept["sample_weight"] = np.broadcast_to(kept["sample_weight"], rest).reshape(n)[picked]
    got, g = fused(turn(rows[picked]), t, reduction="none", **kept)
    same(got, results["none"].reshape(n)[picked], f"losses of samples {picked[:5]}")
    want = np.moveaxis(results["gradient"], axis, -1).reshape(n, classes)[picked]
    same(g if inner == 1 else g.T, want, f"gradients of samples {picked[:5]}")
