"""Random calls of the functions of two arrays of logits: distillation_loss and compare_logits.

Layout: a) making a problem, b) exact answers, c) one problem on one level: d) the loss, e) the
comparison.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import oracle
import over_classes
from common import (
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
    wrong_array,
    wrong_options,
    wrong_output,
)


class Problem(NamedTuple):
    """The arguments of a call, in their plainest form."""

    kind: str
    x: np.ndarray
    y: np.ndarray
    #: Class indices, of a comparison; or None.
    target: Any
    axis: int
    options: dict[str, Any]
    #: Whether the target holds a class that there is not.
    wrong: bool


# ---- a) making a problem ---------------------------------------------------------------------


def second_of(rng: Generator, x: np.ndarray) -> np.ndarray:
    """Rows like those of `x`: another model's, or the same model a little changed."""
    samples, classes = x.shape
    y = over_classes.values_of(rng, samples, classes, np.dtype(np.float64))
    wide = x.astype(np.float64)
    way = rng.integers(12, size=samples) if rng.random() < 0.7 else [rng.integers(12)] * samples
    with np.errstate(all="ignore"):
        for i, w in enumerate(way):
            noise = rng.standard_normal(classes)
            if w == 0:
                y[i] = wide[i]
            elif w == 1:
                y[i] = wide[i] + noise
            elif w <= 4:
                y[i] = wide[i] * (1 + noise * 10.0 ** rng.uniform(-8, -1))
            elif w == 5:
                y[i] = wide[i] + noise * 10.0 ** rng.uniform(-10, 0)
            elif w == 6:
                y[i] = wide[i] + rng.choice([5, -300, 1e4]) + noise * 10.0 ** rng.uniform(-6, 0)
            elif w == 7 and classes:
                y[i] = wide[i]
                y[i, rng.integers(classes)] += rng.choice([1e-6, 1e-3, 1, 20, 90, 800, -inf])
            elif w == 8:
                y[i] = wide[i].astype(rng.choice(["f2", "f4"]))
            elif w == 9:
                y[i] = np.where(np.isneginf(wide[i]), -inf, y[i])
    return y


def make(rng: Generator) -> Problem:
    kind = str(rng.choice(["distil", "compare"], p=[0.6, 0.4]))
    shape, axis = over_classes.shape_of(rng)
    classes = shape[axis]
    rest = shape[:axis] + shape[axis + 1 :]
    samples = int(np.prod(rest, dtype=int))
    types = over_classes.dtype_of(rng), over_classes.dtype_of(rng)
    if rng.random() < 0.5:
        types = types[0], types[0]

    def laid(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
        with np.errstate(all="ignore"):
            rows = rows.astype(dtype)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, classes), -1, axis))

    rows = over_classes.values_of(rng, samples, classes, types[0])
    y = second_of(rng, rows)
    if types[1] == np.float16:
        y = np.where(np.isfinite(y), np.clip(y, -6e4, 6e4), y)
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        usual = [0.01, 0.3, 0.5, 0.7, 2.0, 3.0, 4.0, 100.0]
        options["temperature"] = over_classes.sizes_of(rng, usual, -6, 8)
    target, wrong = None, False
    if kind == "distil":
        options["direction"] = str(rng.choice(["forward", "reverse"]))
        if rng.random() < 0.4:
            options["sample_weight"] = over_classes.sample_weights_of(rng, rest)
    elif rng.random() < 0.7:
        ignored = int(rng.choice([-100, -1, 0, classes - 1, classes, 2**40]))
        target = rng.integers(0, max(classes, 1), samples)
        target[rng.random(samples) < rng.choice([0, 0, 0.2, 1] if classes else [1])] = ignored
        options["ignore_index"] = ignored
        if rng.random() < 0.05 and samples:
            bad = int(rng.choice([-1, classes, -(2**62), 2**62]))
            if bad != ignored:
                target[rng.integers(samples)] = bad
                wrong = True
        target = target.reshape(rest)
        if rng.random() < 0.4:
            target = class_indices(rng, target)
    return Problem(kind, laid(rows, types[0]), laid(y, types[1]), target, axis, options, wrong)


def described(problem: Problem) -> str:
    x, y, target, options = problem.x, problem.y, problem.target, problem.options
    options = {
        name: f"{v.dtype}{v.shape} up to {v.max():.3g}"
        if isinstance(v, np.ndarray) and v.size
        else v
        for name, v in options.items()
    }
    t = "" if target is None else f" target {target.dtype}"
    return f"{problem.kind} {x.dtype} {y.dtype} {x.shape} axis {problem.axis}{t} {options}"


# ---- b) exact answers ------------------------------------------------------------------------


def _h(x: np.ndarray) -> np.ndarray:
    """exp(x) - 1 - x: a series where that would cancel."""
    small = np.where(np.abs(x) < 0.5, x, 0)
    series = np.zeros_like(small)
    for n in range(22, 1, -1):
        series = (series + 1) * small / n
    # (…((x/22 + 1) x/21 + 1) … + 1) x/2, times x.
    return np.where(np.abs(x) < 0.5, series * small, np.expm1(x) - x)


def _sum_of(a: Any, b: Any, c: Any, d: Any) -> np.ndarray:
    """a + b + c + d, as if in twice the digits."""

    def both(a: Any, b: Any) -> tuple[Any, Any]:
        total = a + b
        part = total - a
        return total, (a - (total - part)) + (b - part)

    (first, e1), (second, e2) = both(a, b), both(c, d)
    total, e3 = both(first, second)
    rest = e1 + e2 + e3
    return total + np.where(np.isfinite(rest), rest, 0)


class Exactly:
    """Both divergences, and the gradients of the loss with the sizes of their terms, class last."""

    def __init__(self, x: np.ndarray, y: np.ndarray, axis: int, temperature: float = 1.0):
        x, y = (np.moveaxis(exact(a), axis, -1) for a in (x, y))
        t = EXACT(temperature)
        with np.errstate(all="ignore"):
            tops = [a.max(axis=-1, keepdims=True) for a in (x, y)]
            p, _, nll_p = oracle._softmax_parts((x - tops[0]) / t)
            q, _, nll_q = oracle._softmax_parts((y - tops[1]) / t)
            log_sums = [nll.min(axis=-1, keepdims=True) for nll in (nll_p, nll_q)]
            d = _sum_of(x, -y, -tops[0], tops[1]) / t - (log_sums[0] - log_sums[1])
            both = np.isneginf(x) & np.isneginf(y)
            bad = np.isnan(p).any(axis=-1) | np.isnan(q).any(axis=-1)
            self.bad = bad
            self.p, self.q = p, q
            self.log_p, self.log_q = -nll_p, -nll_q
            self.kl = self._sum(p, q, d, both, np.isneginf(x), np.isneginf(y))
            self.reverse_kl = self._sum(q, p, -d, both, np.isneginf(y), np.isneginf(x))
            self.d = np.where(both, 0, d)
            self.most = sum(
                np.abs(np.where(np.isfinite(a), a, 0)).max(axis=-1, initial=0) for a in (x, y)
            )

    def _sum(self, p: Any, q: Any, d: Any, both: Any, no_p: Any, no_q: Any) -> np.ndarray:
        """sum p (log p - log q) as sum p h(-d), whose terms have one sign.

        d is off by what the logarithms of two sums are. That makes q' of q, and S = sum (q' - p)
        tells how much it is: S - log(1 + S) comes off.
        """
        near = p * _h(-d)
        far = (q - p) + oracle._product(p, d)
        terms = np.where(np.abs(d) < 1, near, far)
        terms = np.where(no_p & ~no_q, q, terms)
        terms = np.where(no_q & ~no_p, inf, terms)
        apart = np.where(np.abs(d) < 1, p * np.expm1(-d), q - p)
        total, off = (np.where(both, 0, v).sum(axis=-1) for v in (terms, apart))
        excess = np.where(np.abs(off) < 1e-6, off * off * (0.5 - off / 3), off - np.log1p(off))
        total = total - np.where(np.isfinite(excess), excess, 0)
        return np.where(self.bad, nan, total)

    def rounding(self, temperature: float) -> np.ndarray:
        """What a gradient in reverse has of the rounding of d: of logits, and of float32 sums."""
        p = np.where(self.bad[..., None], 0, self.p)
        off = EXACT(2.0) ** -52 * self.most + EXACT("1e-14") * EXACT(temperature)
        return oracle._product(off[..., None], p)

    def loss(self, direction: str, temperature: float) -> tuple[np.ndarray, ...]:
        """Losses, gradients and the sizes of their terms."""
        t = EXACT(temperature)
        if direction == "forward":
            gradients, sizes = self.p * -np.expm1(-self.d), np.maximum(self.p, self.q)
            gradients = np.where(np.abs(self.d) < 1, gradients, self.p - self.q)
            loss = self.reverse_kl
        else:
            loss = self.kl
            gradients = oracle._product(self.p, self.d - loss[..., None])
            sizes = np.maximum(
                *(np.abs(oracle._product(self.p, v)) for v in (self.log_p, self.log_q))
            )
            sizes = np.maximum(sizes, np.abs(oracle._product(self.p, loss[..., None])))
        gradients, sizes = (np.where(self.bad[..., None], nan, v) for v in (gradients, sizes))
        return t * t * loss, t * gradients, t * sizes


# ---- c) one problem on one level -------------------------------------------------------------


def run(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any], label: str) -> None:
    if "exactly" not in spot and not problem.wrong and problem.x.shape[problem.axis]:
        temperature = problem.options.get("temperature", 1.0)
        spot["exactly"] = Exactly(problem.x, problem.y, problem.axis, temperature)
    fl.use_threads(1)
    if problem.kind == "distil":
        results = loss(fl, problem, rng, spot)
        if "exactly" in spot:
            hold_loss(problem, spot["exactly"], results, label)
    else:
        results = compare(fl, problem, rng)
        if results is not None and "exactly" in spot:
            hold_comparison(problem, spot["exactly"], results, label)


def type_of(problem: Problem) -> np.dtype:
    """The type of losses: float64 where one array is."""
    wide = np.dtype(np.float64)
    return wide if wide in (problem.x.dtype, problem.y.dtype) else np.dtype(np.float32)


# ---- d) the loss -----------------------------------------------------------------------------


def hold_loss(problem: Problem, e: Exactly, results: dict[str, Any], label: str) -> None:
    options = problem.options
    direction, t = options["direction"], options.get("temperature", 1.0)
    narrow = type_of(problem) == np.float32
    limit, limit_of_gradient = (8.0, 4.0) if narrow else (10.0, 8.0)
    with np.errstate(all="ignore"):
        losses, gradients, sizes = e.loss(direction, t)
        s = np.broadcast_to(exact(options.get("sample_weight", 1.0)), losses.shape)
        losses = oracle._product(s, losses)
        gradients, sizes = (oracle._product(s[..., None], v) for v in (gradients, sizes))
    if "sample_weight" in options:
        limit += 0.5
        limit_of_gradient += 0.5
    key = f"distil {direction}"
    # Divergences below 1e-30 are 0.
    lost = EXACT("1e-30") * s * (t * t)
    hold(results["none"], losses, np.abs(losses), limit, "losses", (key, "loss"), label, lost)
    with np.errstate(all="ignore"):
        total, part, divisor = losses.sum(), lost.sum(), s.sum()
        mean = total / divisor if divisor else EXACT(nan)
    hold(results["sum"], total, np.abs(total), limit + 2, "sum", (key, "sum"), label, part)
    hold(results["mean"], mean, np.abs(mean), limit + 3, "mean", (key, "mean"), label,
         part / divisor if divisor else part)  # fmt: skip
    # What a float has lost, a weight does not bring back.
    wide = type_of(problem) == np.float64
    least = EXACT(2.0) ** (-1022 if wide else -126) * np.maximum(s, 1)[..., None]
    if direction == "reverse":
        # Neither does what is made of the loss and of a probability that has underflowed.
        with np.errstate(all="ignore"):
            d = np.abs(e.d) + e.kl[..., None] + 1
            least = least * np.where(np.isfinite(d), d, 1)
        with np.errstate(all="ignore"):
            least = least + oracle._product(s[..., None], e.rounding(t))
    for name, factor, more in [
        ("gradient", EXACT(1), 0.0),
        ("backward", exact(results["upstream"])[..., None], 0.5),
        ("mean gradient", results["scalar"] / divisor if divisor else EXACT(0), 1.0),
    ]:
        with np.errstate(all="ignore"):
            want = oracle._product(gradients, factor)
            size = np.abs(oracle._product(sizes, factor))
            part = least * np.maximum(np.abs(factor), 1)
            want, size = (np.where(np.isfinite(want), v, nan) for v in (want, size))
        g = np.moveaxis(results[name], problem.axis, -1)
        # Of an infinite loss there is no gradient to be right about.
        known = np.isfinite(want)
        g, want, size = (np.where(known, v, 0) for v in (g, want, size))
        part = np.where(np.broadcast_to(np.isnan(part), known.shape), 0, part)
        hold(g.astype(results[name].dtype), want, size, limit_of_gradient + more, name,
             (key, name), label, part)  # fmt: skip


def loss(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any]) -> dict[str, Any]:
    _, x, y, _, axis, options, _ = problem
    value, fused = fl.distillation_loss, fl.distillation_loss_value_and_grad
    back = fl.distillation_loss_backward
    options = {**options, "axis": axis}
    results: dict[str, Any] = {}
    for reduction in ("none", "sum", "mean"):
        results[reduction] = value(x, y, reduction=reduction, **options)
    results["gradient"] = fused(x, y, reduction="none", **options)[1]
    if "upstream" not in spot:
        upstream = np.asarray(rng.standard_normal(results["none"].shape))
        if rng.random() < 0.2:
            upstream = upstream * 10.0 ** rng.choice([-20, -10, 9, 12])
        spot["upstream"], spot["scalar"] = upstream, float(rng.choice([1.0, -1.0, 0.3, 1e-3]))
    results["upstream"], results["scalar"] = spot["upstream"], spot["scalar"]
    results["backward"] = back(spot["upstream"], x, y, reduction="none", **options)
    results["mean gradient"] = back(spot["scalar"], x, y, reduction="mean", **options)
    if results["none"].dtype != type_of(problem) or results["gradient"].dtype != x.dtype:
        raise Found(f"types {results['none'].dtype} and {results['gradient'].dtype}")
    kept = {name: v for name, v in options.items() if name != "sample_weight"}
    criterion = fl.DistillationLoss(reduction="none", **kept)
    functions = value, fused, back, None, criterion
    for _ in range(12):
        again(fl, problem, rng, results, functions, options)
    overlaps(rng, x, y, functions, results, options)
    if x.size > 1:
        room = np.zeros(x.size + 1, x.dtype)
        a, b = room[:-1].reshape(x.shape), room[1:].reshape(x.shape)
        a[...] = x
        text = refused(lambda: fused(a, y, out=b, **options), "an overlap", room)
        if "overlap" not in text:
            raise Found(f"message {text}")
        # The teacher's logits are no place for the gradient.
        teacher = y.copy()
        if x.dtype == y.dtype:
            refused(lambda: fused(x, teacher, out=teacher, **options), "out over y", teacher)
    out = np.full(x.shape, 7, x.dtype)
    wrong_one = wrong_options(rng, "distillation_loss")
    bad = {**options, **wrong_one}
    refused(lambda: fused(x, y, out=out, **bad), f"wrong {next(iter(wrong_one))}", out)
    refused(lambda: fused(wrong_array(rng, x), y, **options), "a wrong array")
    refused(lambda: fused(x, wrong_array(rng, y), out=out, **options), "a wrong teacher", out)
    refused(lambda: fused(x, y[..., None], out=out, **options), "a teacher of another shape", out)
    no_out = wrong_output(rng, x)
    refused(lambda: back(1.0, x, y, reduction="sum", out=no_out, **options), f"out={no_out!r}")
    other_samples(problem, rng, results, fused, options)
    return results


def again(
    fl: Package, problem: Problem, rng: Generator, results: dict[str, Any],
    functions: tuple[Any, ...], options: dict[str, Any],
) -> None:  # fmt: skip
    """One more call, in other form, into an array, in place or by a criterion: the same bits."""
    x, y = problem.x, problem.y
    fl.use_threads(threads_of(rng))
    form = another_form(rng, x), another_form(rng, y)
    given = {
        name: as_option(rng, v) if isinstance(v, np.ndarray) else v for name, v in options.items()
    }
    if rng.random() < 0.5:
        given["axis"] = problem.axis - x.ndim
    if problem.axis == min(1, x.ndim - 1) and rng.random() < 0.5:
        del given["axis"]
    way = int(rng.integers(WAYS + 2))
    if way < WAYS:
        call_again(way, rng, x, form, functions, results, options.get("sample_weight"), given)
        return
    room, out, shift = in_a_room(rng, x)
    got, g = functions[1](*form, reduction="none", out=out, **given)
    same(got, results["none"], "losses in another form")
    same(g, results["gradient"], "gradient in another form")
    untouched(room, shift, x.size, "another form")


def picked_of(problem: Problem, rng: Generator) -> tuple[Any, ...] | None:
    """Some samples in another order, and how to turn arrays into them; None where that is none."""
    x, axis = problem.x, problem.axis
    n = x.size // max(x.shape[axis], 1)
    inner = int(np.prod(x.shape[axis + 1 :], dtype=int))
    if n < 2 or not x.shape[axis]:
        return None
    picked = rng.integers(0, n, int(rng.integers(1, 2 * n + 1)))
    if picked.size < 2 and inner != 1:
        return None

    def turned(a: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(a, axis, -1).reshape(n, -1)[picked]
        return np.ascontiguousarray(rows if inner == 1 else rows.T)

    return n, inner, picked, turned


def other_samples(
    problem: Problem, rng: Generator, results: dict[str, Any], fused: Any, options: dict[str, Any]
) -> None:
    """The bits of a sample do not depend on those beside it."""
    chosen = picked_of(problem, rng)
    if chosen is None:
        return
    n, inner, picked, turned = chosen
    kept = {**options, "axis": 1 if inner == 1 else 0}
    if "sample_weight" in kept:
        whole = np.broadcast_to(kept["sample_weight"], results["none"].shape)
        kept["sample_weight"] = whole.reshape(n)[picked]
    got, g = fused(turned(problem.x), turned(problem.y), reduction="none", **kept)
    same(got, results["none"].reshape(n)[picked], f"losses of samples {picked[:5]}")
    same(g, turned(results["gradient"]), f"gradients of samples {picked[:5]}")


# ---- e) the comparison -----------------------------------------------------------------------


def hold_comparison(problem: Problem, e: Exactly, found: Any, label: str) -> None:
    target, axis = problem.target, problem.axis
    limit = 8.0 if type_of(problem) == np.float32 else 10.0
    shape = e.kl.shape
    live = np.ones(shape, bool)
    if target is not None:
        live = target != problem.options["ignore_index"]
    least = np.full(shape, EXACT("1e-30"))
    for name, want in (("kl", e.kl), ("reverse_kl", e.reverse_kl)):
        want = np.where(live, want, nan)
        hold(getattr(found, name), want, np.abs(want), limit, name, ("compare", name), label, least)
    predictions = []
    for name, a in (("predicted", problem.x), ("other_predicted", problem.y)):
        wide = np.moveaxis(exact(a), axis, -1)
        first = np.where(np.isnan(wide), -inf, wide).argmax(axis=-1)
        first = np.where((np.isnan(wide) | np.isneginf(wide)).all(axis=-1), -1, first)
        got = np.where(first < 0, -1, getattr(found, name))
        same(got, first.astype(got.dtype), name)
        predictions.append(getattr(found, name))
    same(found.same_prediction, np.asarray(predictions[0] == predictions[1]), "same_prediction")
    if target is None:
        if found.log_prob is not None or found.other_log_prob is not None:
            raise Found("log-probabilities without targets")
        return
    index = np.where(live, target, 0).astype(np.intp)[..., None]
    t = problem.options.get("temperature", 1.0)
    for name, a, logs in (
        ("log_prob", problem.x, e.log_p), ("other_log_prob", problem.y, e.log_q)
    ):  # fmt: skip
        want = np.where(live, np.take_along_axis(logs, index, axis=-1)[..., 0], nan)
        size = np.abs(want)
        if t != 1.0 and a.dtype == np.float64:
            # The logit over the temperature is rounded once.
            wide = np.moveaxis(exact(a), axis, -1) / EXACT(t)
            most = np.abs(np.where(np.isfinite(wide), wide, 0)).max(axis=-1)
            size = np.maximum(size, most)
        hold(getattr(found, name), want, size, 4, name, ("compare", name), label)


def compare(fl: Package, problem: Problem, rng: Generator) -> Any:
    _, x, y, target, axis, options, wrong = problem
    options = {**options, "axis": axis}
    rest = () if target is None else (target,)
    if wrong:
        text = refused(lambda: fl.compare_logits(x, y, target, **options), "a wrong class index")
        if "outside [0" not in text and "no classes" not in text:
            raise Found(f"message {text}")
        return None
    found = fl.compare_logits(x, y, *rest, **options)
    for name in ("kl", "reverse_kl", "log_prob"):
        part = getattr(found, name)
        if part is not None and part.dtype != type_of(problem):
            raise Found(f"{name}: {part.dtype}")

    def alike(got: Any, want: Any, what: str) -> None:
        for name, a, b in zip(found._fields, got, want, strict=True):
            if b is not None:
                same(a, b, f"{name}, {what}")

    for _ in range(8):
        fl.use_threads(threads_of(rng))
        form = [another_form(rng, a) for a in (x, y, *rest)]
        given = {**options, "axis": axis - x.ndim * int(rng.integers(2))}
        alike(fl.compare_logits(*form, **given), found, "another form")
    # The other way round: the same divergences, by their other names.
    turned = fl.compare_logits(y, x, *rest, **options)
    same(turned.same_prediction, found.same_prediction, "same_prediction, turned")
    for name, other in (("predicted", "other_predicted"), ("log_prob", "other_log_prob")):
        if getattr(found, name) is not None and x.dtype == y.dtype:
            same(getattr(turned, name), getattr(found, other), f"{name}, turned")
    refused(lambda: fl.compare_logits(wrong_array(rng, x), y, *rest, **options), "a wrong array")
    refused(lambda: fl.compare_logits(x, wrong_array(rng, y), *rest, **options), "a wrong other")
    refused(lambda: fl.compare_logits(x, y[..., None], *rest, **options), "another shape")
    if target is not None:
        bad = wrong_array(rng, np.asarray(target))
        refused(lambda: fl.compare_logits(x, y, bad, **options), "a wrong target")
    wrong_one = wrong_options(rng, "compare_logits")
    bad_options = {**options, **wrong_one}
    refused(lambda: fl.compare_logits(x, y, *rest, **bad_options), f"wrong {next(iter(wrong_one))}")
    chosen = picked_of(problem, rng)
    if chosen is not None:
        n, inner, picked, turned_to = chosen
        kept = {**options, "axis": 1 if inner == 1 else 0}
        part = fl.compare_logits(
            turned_to(x), turned_to(y), *(t.reshape(n)[picked] for t in rest), **kept
        )
        want = [None if a is None else a.reshape(n)[picked] for a in found]
        alike(part, want, f"samples {picked[:5]}")
    return found
