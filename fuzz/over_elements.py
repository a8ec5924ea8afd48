"""Random calls of the functions of single elements: binary losses, KL divergence, sigmoid.

Layout: a) making a problem, b) exact answers, c) one problem on one level.
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

NAMES = {
    "bce": "binary_cross_entropy",
    "logits": "binary_cross_entropy_with_logits",
    "focal": "sigmoid_focal_loss",
    "kl": "kl_div",
    "kl log": "kl_div",
}
CRITERIA = {"bce": "BCELoss", "logits": "BCEWithLogitsLoss", "focal": "SigmoidFocalLoss",
            "kl": "KLDivLoss", "kl log": "KLDivLoss"}  # fmt: skip
FUNCTIONS = ["sigmoid", "log_sigmoid", "softplus"]
SIZES = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
LARGE = [1023, 1024, 1025, 4095, 4096, 4097, 20_001]


class Problem(NamedTuple):
    """The arguments of a call, in their plainest form."""

    kind: str
    x: np.ndarray
    target: Any
    options: dict[str, Any]
    #: Whether an element is outside of what is allowed.
    wrong: bool


# ---- a) making a problem ---------------------------------------------------------------------


def shape_of(rng: Generator) -> tuple[int, ...]:
    size = int(rng.choice(LARGE if rng.random() < 0.05 else SIZES))
    way = rng.integers(6)
    if way == 0 and size == 1:
        return ()
    if way <= 3:
        return (size,)
    first = int(rng.choice([1, 2, 3, 5]))
    return (first, size) if way == 4 else (first, 1 + size // 8, 4)


def logits_of(rng: Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    x = rng.standard_normal(shape) * rng.choice([0.01, 1.0, 5.0, 30.0, 200.0])
    way = rng.integers(10)
    some = rng.random(shape) < 0.2
    if way == 0:
        x = np.where(some, rng.choice([0.0, -0.0, inf, -inf, nan, 1e-40, -1e-310, 700, -700]), x)
    elif way == 1:
        x = np.where(some, rng.choice([1e4, -1e4, 1e30, -1e30, 88.0, -104.0, -746.0, 710.0]), x)
    elif way == 2:
        x = 10.0 ** rng.uniform(-40, 3, shape) * rng.choice([-1, 1], shape)
    if dtype == np.float16:
        x = np.where(np.isfinite(x), np.clip(x, -6e4, 6e4), x)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x).astype(dtype)


def fractions_of(rng: Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers in [0, 1], the ends and their neighbours among them."""
    way = rng.integers(6)
    if way == 0:
        p = 10.0 ** rng.uniform(-40, 0, shape)
    elif way == 1:
        p = 1.0 - 10.0 ** rng.uniform(-17, 0, shape)
    elif way == 2:
        p = np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape))
    else:
        p = rng.random(shape)
    with np.errstate(under="ignore"):
        # Of bfloat16, clip makes a float32.
        return np.clip(np.asarray(p).astype(dtype), 0, 1).astype(dtype)


def dtype_of(rng: Generator) -> np.dtype:
    kinds = [np.float32, np.float64, np.float16, BFLOAT16]
    return np.dtype(kinds[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])])


def operand_of(rng: Generator, shape: tuple[int, ...], small: bool = False) -> np.ndarray:
    """Weights of a shape that broadcasts to `shape`."""
    cut = int(rng.integers(len(shape) + 1))
    part = shape if rng.random() < 0.6 else shape[cut:]
    part = tuple(n if rng.random() < 0.8 else 1 for n in part)
    w = rng.random(part) if small else weights_of(rng, part)
    kept = str(rng.choice(["f8", "f4", "f2"], p=[0.6, 0.3, 0.1]))
    if small or (w.size and w.max() < 1e4) or kept == "f8":
        return np.asarray(w).astype(kept)
    return np.asarray(w, dtype=np.float64)


def make(rng: Generator) -> Problem:
    kind = str(rng.choice([*NAMES, *FUNCTIONS], p=[0.17, 0.25, 0.2, 0.12, 0.08, 0.06, 0.06, 0.06]))
    shape, dtype = shape_of(rng), dtype_of(rng)
    if kind in FUNCTIONS:
        return Problem(kind, logits_of(rng, shape, dtype), None, {}, False)
    options: dict[str, Any] = {}
    wrong = False
    size = int(np.prod(shape, dtype=int))
    if kind in ("kl", "kl log"):
        x = np.asarray(-np.abs(logits_of(rng, shape, dtype))).astype(dtype)
        if kind == "kl log":
            if dtype.itemsize < 8:  # a float may hold nothing of exp(t), and then inf is not met
                x = np.asarray(np.where(np.isinf(x), np.asarray(-5, dtype), x))
            near = rng.random() < 0.5
            target = x if near else -np.abs(logits_of(rng, shape, dtype_of(rng)))
            if near and size and dtype.itemsize > 2:
                target = np.nextafter(x, np.asarray(-1, dtype))
            target = np.asarray(target)
            options["log_target"] = True
        else:
            target = fractions_of(rng, shape, dtype_of(rng))
            if rng.random() < 0.4:
                with np.errstate(under="ignore", over="ignore"):
                    target = np.exp(x.astype(np.float64)).astype(dtype_of(rng))
            target = np.asarray(target)
    else:
        x = fractions_of(rng, shape, dtype) if kind == "bce" else logits_of(rng, shape, dtype)
        way = rng.integers(5)
        if way <= 1:
            kept = str(rng.choice(["i8", "u1", "i4", "?", "u8"]))
            target = rng.integers(0, 2, shape)
            if kind != "bce" and kept in ("i8", "i4") and rng.random() < 0.4:
                options["ignore_index"] = int(rng.choice([-1, -100, 2, 0]))
                some = rng.random(shape) < 0.3
                target = np.where(some, options["ignore_index"], target)
            if kind != "bce" and size and kept in ("i8", "i4") and rng.random() < 0.05:
                target = np.array(target)
                target.reshape(-1)[rng.integers(size)] = 7
                wrong = True
            target = np.asarray(target).astype(kept)
        elif way == 2:
            target = np.asarray(rng.integers(0, 2, shape)).astype(dtype_of(rng))
        else:
            target = np.asarray(fractions_of(rng, shape, dtype_of(rng)))
        if kind == "bce" and size and rng.random() < 0.05:
            broken = x if rng.random() < 0.5 or target.dtype.kind not in "f" else target
            broken = np.array(broken)
            broken.reshape(-1)[rng.integers(size)] = rng.choice([-0.5, 1.5, nan, inf])
            if broken.dtype == x.dtype and broken.shape == x.shape and rng.random() < 0.5:
                x = broken
            else:
                target = broken
            wrong = True
        if kind in ("bce", "logits") and rng.random() < 0.4:
            options["weight"] = operand_of(rng, shape)
        if kind == "logits" and rng.random() < 0.4:
            options["pos_weight"] = operand_of(rng, shape)
        if kind == "focal":
            options["gamma"] = float(rng.choice([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 16.0]))
            if rng.random() < 0.2:
                options["gamma"] = float(10.0 ** rng.uniform(-6, 1.4))
            way = rng.integers(4)
            if way == 0:
                options["alpha"] = None
            elif way == 1:
                options["alpha"] = operand_of(rng, shape, small=True)
            elif way == 2:
                options["alpha"] = float(rng.choice([0.0, 1.0, 0.25, 0.9, -1]))
    if rng.random() < 0.35:
        options["sample_weight"] = operand_of(rng, shape)
    return Problem(kind, x, target, options, wrong)


def described(problem: Problem) -> str:
    target = "" if problem.target is None else f" target {problem.target.dtype}"
    options = {
        name: f"{value.dtype}{value.shape} up to {value.max() if value.size else 0:.3g}"
        if isinstance(value, np.ndarray)
        else value
        for name, value in problem.options.items()
    }
    return f"{problem.kind} {problem.x.dtype}{problem.x.shape}{target} {options}"


# ---- b) exact answers ------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


class Exactly(NamedTuple):
    """Losses, gradients and second derivatives, each with the sizes of its terms."""

    losses: np.ndarray
    loss_sizes: np.ndarray
    gradients: np.ndarray
    gradient_sizes: np.ndarray
    hess: np.ndarray | None
    hess_sizes: np.ndarray | None
    denominator: Any
    #: The weights of each element, all together.
    factor: np.ndarray


def exactly(problem: Problem) -> Exactly:
    kind, x, target, options, _ = problem
    x, t = exact(x), exact(target)
    live = np.ones(x.shape, bool)
    if options.get("ignore_index") is not None:
        live = t != options["ignore_index"]
        t = np.where(live, t, 0)
        x = np.where(live, x, 0)
    s = np.where(live, np.broadcast_to(exact(options.get("sample_weight", 1.0)), x.shape), 0)
    w = s * exact(options.get("weight", 1.0))
    product = oracle._product
    hess = hess_sizes = None
    factor = w
    if kind == "bce":
        log_p, log_q = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
        losses = -(t * log_p + (1 - t) * log_q)
        sizes = losses
        below = np.maximum(x * (1 - x), EXACT(1e-12))
        gradients = (x - t) / below
        gradient_sizes = np.maximum(x, t) / below
    elif kind == "logits":
        k = exact(options.get("pos_weight", 1.0))
        factor = w * np.maximum(k, 1)
        p, q = _sigmoid(x), _sigmoid(-x)
        first, second = product(1 - t, _softplus(x)), product(t * k, _softplus(-x))
        losses = sizes = first + second
        gradients = (1 - t) * p - t * k * q
        gradient_sizes = np.maximum((1 - t) * p, t * k * q)
        hess = hess_sizes = (t * k + (1 - t)) * p * q
    elif kind == "focal":
        alpha, g = options.get("alpha", 0.25), EXACT(options["gamma"])
        a = EXACT(1)
        if alpha is not None and not np.array_equal(alpha, -1):
            alpha = exact(alpha)
            a = alpha * t + (1 - alpha) * (1 - t)
        p, q = _sigmoid(x), _sigmoid(-x)
        ce = product(t, _softplus(-x)) + product(1 - t, _softplus(x))
        m, slope = t * q + (1 - t) * p, (1 - 2 * t) * p * q
        losses = sizes = product(a * m**g, ce)

        def term(*parts: Any) -> np.ndarray:
            result = EXACT(1)
            for part in parts:
                result = product(result, part)
            return np.broadcast_to(result, x.shape)

        def power(n: int) -> np.ndarray:
            return np.where(m < EXACT("1e-1000"), 0, m ** (g - n)) if g - n else np.ones_like(m)

        terms = [term(a, m**g, 1 - t, p), -term(a, m**g, t, q)]
        if g:
            terms.append(term(a, g, power(1), slope, ce))
        gradients, gradient_sizes = sum(terms), np.max(np.abs(terms), axis=0)
        terms = [term(a, m**g, p, q)]
        if g:
            terms.append(term(a, 2 * g, power(1), slope, (1 - t) * p - t * q))
            terms.append(term(a, g, power(1), slope, q - p, ce))
            terms.append(term(a, g * (g - 1), power(2), slope * slope, ce))
        hess, hess_sizes = sum(terms), np.sum(np.abs(terms), axis=0)
    else:
        share, log_share = (np.exp(t), t) if kind == "kl log" else (t, np.log(t))
        nothing = share == 0
        losses = np.where(nothing, 0, share * (log_share - x))
        sizes = np.where(
            nothing, 0, np.maximum(np.abs(share * log_share), np.abs(product(share, x)))
        )
        if kind == "kl log":
            sizes = np.abs(losses)
        gradients, gradient_sizes = -share, share
    losses, sizes = product(w, losses), product(w, sizes)
    return Exactly(
        np.where(live, losses, 0), np.where(live, np.abs(sizes), 0),
        np.where(live, product(w, gradients), 0), np.where(live, product(w, gradient_sizes), 0),
        None if hess is None else np.where(live, product(w, hess), 0),
        None if hess_sizes is None else np.where(live, product(w, hess_sizes), 0),
        s.sum(), np.broadcast_to(factor, x.shape),
    )  # fmt: skip


# ---- c) one problem on one level -------------------------------------------------------------


def run(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any], label: str) -> None:
    fl.use_threads(1)
    if problem.kind in FUNCTIONS:
        function(fl, problem, rng, label)
        return
    results = loss(fl, problem, rng, spot)
    if not results:
        return
    if "exactly" not in spot:
        with np.errstate(all="ignore"):
            spot["exactly"] = exactly(problem)
    with np.errstate(all="ignore"):
        hold_loss(problem, results, spot["exactly"], label)


def function(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    kind, x = problem.kind, problem.x
    call = getattr(fl, kind)
    value = call(x)
    wide = exact(x)
    with np.errstate(all="ignore"):
        if kind == "sigmoid":
            want = _sigmoid(wide)
        else:
            want = _softplus(wide) if kind == "softplus" else -_softplus(-wide)
    hold(value, want, np.abs(want), 4, kind, (kind, ""), label)
    for _ in range(6):
        fl.use_threads(threads_of(rng))
        same(call(another_form(rng, x)), value, "another form")
        room, out, shift = in_a_room(rng, x)
        out[...] = x
        call(out, out=out)
        same(out, value, "in place")
        untouched(room, shift, x.size, kind)
    refused(lambda: call(wrong_array(rng, x)), "a wrong array")


def hold_loss(problem: Problem, results: dict[str, Any], e: Exactly, label: str) -> None:
    kind, x, _, options, _ = problem
    limit = 4.0 + 0.5 * sum(
        name in options for name in ("weight", "pos_weight", "sample_weight", "alpha")
    )
    if kind == "focal" and options["gamma"] > 3:
        limit += 1
    # What a float64 has lost, a weight does not bring back.
    lost = EXACT(2.0) ** -1022 * np.maximum(e.factor, 1)
    if kind == "focal" and x.dtype != np.float64:
        # So has a float, of a loss that its target or alpha makes tiny.
        lost = EXACT(2.0) ** -149 * np.maximum(e.factor, 1)
    if kind == "kl log" and x.dtype != np.float64:
        # exp(t) is a float there.
        distance = np.abs(exact(problem.target) - exact(x))
        lost = EXACT(2.0) ** -149 * np.maximum(np.where(np.isfinite(distance), distance, 0), 1)
        lost = lost * np.maximum(e.factor, 1)
    finite = np.isfinite(exact(x))
    hold(results["none"], e.losses, e.loss_sizes, limit, "losses", (kind, "loss"), label, lost)
    total, size, part = e.losses.sum(), e.loss_sizes.sum(), lost.sum()
    hold(results["sum"], total, size, limit + 2, "sum", (kind, "sum"), label, part)
    d = e.denominator
    if "batchmean" in results:
        n = EXACT(max(x.shape[0], 1))
        want = total / n if x.shape[0] else EXACT(nan)
        hold(results["batchmean"], want, size / n, limit + 3, "batchmean", (kind, "batchmean"),
             label, part / n)  # fmt: skip
    hold(
        results["mean"], total / d if d else EXACT(nan), size / d if d else size, limit + 3, "mean",
        (kind, "mean"), label, part / d if d else part,
    )  # fmt: skip
    gradients, sizes = e.gradients, e.gradient_sizes
    if kind == "focal":
        limit += 3 * options["gamma"] if x.dtype == np.float64 else 0
    if kind.startswith("kl"):  # the gradient of what is not finite is the next test's
        gradients, sizes = (np.where(finite, v, 0) for v in (gradients, sizes))
    for name, factor in [
        ("gradient", EXACT(1)),
        ("backward", exact(results["upstream"])),
        ("mean gradient", results["scalar"] / d if d else EXACT(0)),
    ]:
        want, size = oracle._product(gradients, factor), oracle._product(sizes, np.abs(factor))
        got = results[name]
        if kind.startswith("kl"):
            got = np.where(finite, got, 0).astype(got.dtype)
        part = lost * np.maximum(np.abs(factor), 1)
        hold(got, want, np.abs(size), limit + 1, name, (kind, name), label, part)
    if e.hess is not None and "hess" in results:
        want, size, got = e.hess, e.hess_sizes, results["hess"]
        hold(got, want, size, limit + 1, "hess", (kind, "hess"), label, lost)


def loss(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any]) -> dict[str, Any]:
    kind, x, target, options, wrong = problem
    name = NAMES[kind]
    value = getattr(fl, name)
    fused = getattr(fl, f"{name}_value_and_grad")
    back = getattr(fl, f"{name}_backward")
    if wrong:
        out = np.full(x.shape, 7, x.dtype)
        refused(lambda: value(x, target, **options), "a wrong element")
        refused(lambda: fused(x, target, out=out, **options), "a wrong element", out)
        room = x.copy()
        refused(lambda: fused(room, target, out=room, **options), "a wrong element", room)
        return {}
    results: dict[str, Any] = {}
    for reduction in ("none", "sum", "mean"):
        results[reduction] = value(x, target, reduction=reduction, **options)
    results["gradient"] = fused(x, target, reduction="none", **options)[1]
    upstream = spot.get("upstream")
    if upstream is None:
        upstream = np.asarray(rng.standard_normal(x.shape))
        if rng.random() < 0.2:
            upstream = upstream * 10.0 ** rng.choice([-20, -10, 9, 10, 12, 20])
        spot["upstream"], spot["scalar"] = upstream, float(rng.choice([1.0, -1.0, 0.3, 1e-3]))
    results["upstream"], results["scalar"] = upstream, spot["scalar"]
    results["backward"] = back(upstream, x, target, reduction="none", **options)
    results["mean gradient"] = back(spot["scalar"], x, target, reduction="mean", **options)
    if kind.startswith("kl") and x.ndim:
        results["batchmean"], g = fused(x, target, reduction="batchmean", **options)
        same(value(x, target, reduction="batchmean", **options), results["batchmean"], "batchmean")
        again_g = back(1.0, x, target, reduction="batchmean", **options)
        same(again_g, g, "gradient of batchmean in one pass and in two")
    second = None
    if kind in ("logits", "focal"):
        second = getattr(fl, f"{name}_grad_and_hess")
        results["first"], results["hess"] = second(x, target, **options)
    kept = {name: v for name, v in options.items() if name != "sample_weight"}
    criterion = getattr(fl, CRITERIA[kind])(reduction="none", **kept)
    functions = value, fused, back, second, criterion
    for _ in range(14):
        again(fl, problem, rng, results, functions)
    for _ in range(2):
        overlaps(rng, x, target, functions, results, options)
    if x.size > 1:
        room = np.zeros(x.size + 1, x.dtype)
        a, b = room[:-1].reshape(x.shape), room[1:].reshape(x.shape)
        a[...] = x
        refused(lambda: fused(a, target, out=b, **options), "an overlap", room)
    out = np.full(x.shape, 7, x.dtype)
    wrong_one = wrong_options(rng, name)
    bad = {**options, **wrong_one}
    if "ignore_index" not in bad or kind in ("logits", "focal") or "ignore_index" not in options:
        refused(lambda: fused(x, target, out=out, **bad), f"wrong {next(iter(wrong_one))}", out)
    refused(lambda: fused(wrong_array(rng, x), target, **options), "a wrong array")
    refused(lambda: value(x, wrong_array(rng, np.asarray(target)), **options), "a wrong target")
    no_out = wrong_output(rng, x)
    refused(lambda: back(1.0, x, target, reduction="sum", out=no_out, **options), f"out={no_out!r}")
    return results


def again(
    fl: Package, problem: Problem, rng: Generator, results: dict[str, Any],
    functions: tuple[Any, ...],
) -> None:  # fmt: skip
    _, fused, _, second, _ = functions
    x, target, options = problem.x, problem.target, problem.options
    fl.use_threads(threads_of(rng))
    form = another_form(rng, x), another_form(rng, target)
    given = {
        name: as_option(rng, v, typed=True) if isinstance(v, np.ndarray) else v
        for name, v in options.items()
    }
    way = int(rng.integers(WAYS + 3))
    if way < WAYS:
        call_again(way, rng, x, form, functions, results, options.get("sample_weight"), given)
    elif way == WAYS and second is not None:
        room, hess, shift = in_a_room(rng, x)
        second(*form, out=(np.empty_like(x), hess), **given)
        same(hess, results["hess"], "hess in out")
        untouched(room, shift, x.size, "hess")
    elif x.size > 1:
        # A part of the elements: their bits do not depend on those beside them.
        cut = int(rng.integers(x.size))
        some = slice(cut, cut + int(rng.integers(1, x.size)))
        part = {
            name: np.broadcast_to(v, x.shape).reshape(-1)[some] if isinstance(v, np.ndarray) else v
            for name, v in options.items()
        }
        got, g = fused(x.reshape(-1)[some], target.reshape(-1)[some], reduction="none", **part)
        same(got, results["none"].reshape(-1)[some], "losses of a part")
        same(g, results["gradient"].reshape(-1)[some], "gradient of a part")
    if not results:
        raise Found("no results")
