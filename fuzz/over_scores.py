"""Random calls of what is asked of saved logits: scores, Brier, calibration, temperature, metrics.

Layout: a) making a problem, b) exact answers, c) score_samples, d) brier_score,
e) calibration_error, f) fit_temperature, g) StreamingMetrics.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

import oracle
import over_classes
from common import (
    EXACT,
    Found,
    Generator,
    Package,
    another_form,
    calls,
    class_indices,
    exact,
    hold,
    inf,
    nan,
    refused,
    same,
    threads_of,
    wrong_array,
    wrong_options,
)


class Problem(NamedTuple):
    """The arguments of a call, in their plainest form."""

    kind: str
    x: np.ndarray
    target: np.ndarray
    axis: int
    options: dict[str, Any]
    #: Whether the target holds a class that there is not.
    wrong: bool


# ---- a) making a problem ---------------------------------------------------------------------

KINDS = ["score", "brier", "calibration", "temperature", "metrics"]
NAMES = {
    "score": "score_samples", "brier": "brier_score", "calibration": "calibration_error",
    "temperature": "fit_temperature",
}  # fmt: skip


def make(rng: Generator) -> Problem:
    kind = str(rng.choice(KINDS, p=[0.5, 0.15, 0.12, 0.11, 0.12]))
    shape, axis = over_classes.shape_of(rng)
    classes = shape[axis]
    if kind == "temperature" or not classes:
        kind = kind if classes else "score"
    rest = shape[:axis] + shape[axis + 1 :]
    samples = int(np.prod(rest, dtype=int))
    dtype = over_classes.dtype_of(rng)
    if kind == "temperature" and rng.random() < 0.9:
        rows = (rng.standard_normal((samples, classes)) * rng.choice([0.1, 1, 3, 10])).astype(dtype)
    else:
        rows = over_classes.values_of(rng, samples, classes, dtype)
    wide = rows.astype(np.float64)
    target = np.full(samples, -100)
    if classes:
        noise = rng.gumbel(size=wide.shape) / rng.choice([0.3, 1, 2])
        target = rng.integers(0, classes, samples)
        way = rng.integers(5, size=samples)
        target = np.where(way == 1, wide.argmax(axis=1), target)
        target = np.where(way == 2, wide.argmin(axis=1), target)
        if kind == "temperature":
            way = np.full(samples, 3)
        target = np.where(way == 3, (np.nan_to_num(wide) + noise).argmax(axis=1), target)
    options: dict[str, Any] = {}
    ignored = int(rng.choice([-100, -1, 0, classes - 1, classes, 2**40])) if classes else -100
    target[rng.random(samples) < rng.choice([0, 0, 0.1, 0.5, 1], p=[0.3, 0.3, 0.2, 0.18, 0.02])] = (
        ignored
    )
    options["ignore_index"] = ignored
    wrong = False
    if rng.random() < 0.03 and samples:
        bad = int(rng.choice([-1, -2, classes, classes + 1, -(2**62), 2**62]))
        if bad != ignored:
            target[rng.integers(samples)] = bad
            wrong = True
    if rng.random() < 0.4:
        target = class_indices(rng, target)
    if kind != "temperature":
        if rng.random() < 0.25:
            usual = [0.01, 0.5, 0.7, 2.0, 3.0, 100.0]
            options["temperature"] = over_classes.sizes_of(rng, usual, -8, 12)
        if rng.random() < 0.25:
            usual = [0.1, 1.0, 5.0, 15.0, 50.0, 1e4]
            options["softcap"] = over_classes.sizes_of(rng, usual, -4, 12)
    if kind == "score" and rng.random() < 0.5:
        options["top_k"] = int(min(rng.choice([0, 1, 2, 3, 5, 20, 64, 65]), classes))
        if rng.random() < 0.1:
            options["top_k"] = classes
    if kind != "score" and rng.random() < 0.35:
        options["sample_weight"] = over_classes.sample_weights_of(rng, rest)
    if kind == "calibration":
        options["strategy"] = str(rng.choice(["uniform", "quantile"]))
        options["n_bins"] = int(rng.choice([1, 2, 3, 10, 15, 100]))
    x = np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, classes), -1, axis))
    return Problem(kind, x, target.reshape(rest), axis, options, wrong)


def described(problem: Problem) -> str:
    options = {
        name: f"{v.dtype}{v.shape} up to {v.max():.3g}"
        if isinstance(v, np.ndarray) and v.size
        else v
        for name, v in problem.options.items()
    }
    return (
        f"{problem.kind} {problem.x.dtype}{problem.x.shape} axis {problem.axis}"
        f" target {problem.target.dtype} {options}"
    )


# ---- b) exact answers ------------------------------------------------------------------------


class Exactly:
    """What is exact of each sample, class axis last."""

    def __init__(self, problem: Problem):
        _, x, target, axis, options, _ = problem
        wide = np.moveaxis(exact(x), axis, -1)
        t, cap = EXACT(options.get("temperature", 1.0)), options.get("softcap")
        self.wide = wide
        self.z, _ = oracle.tempered(wide, t, None if cap is None else EXACT(cap))
        self.p, self.q, self.nll = oracle._softmax_parts(self.z)
        self.changed = t != 1 or cap is not None
        self.live = target != options["ignore_index"]
        self.index = np.where(self.live, target, 0).astype(np.intp)
        self.bad = np.isnan(self.nll).any(axis=-1)
        #: How large the logits are that were rounded once, to float64.
        self.most = np.zeros(self.live.shape, EXACT)
        if self.changed and x.dtype == np.float64:
            self.most = np.abs(np.where(np.isfinite(self.z), self.z, 0)).max(axis=-1)
        # NaNs passed over; a row of them alone has class 0.
        self.first = np.where(np.isnan(wide), -inf, wide).argmax(axis=-1)
        nans = np.isnan(wide).all(axis=-1)
        masked = np.isnan(wide).any(axis=-1) & np.isneginf(np.fmax.reduce(wide, axis=-1)) & ~nans
        self.first = np.where(masked, (~np.isnan(wide)).argmax(axis=-1), self.first)

    def pick(self, values: np.ndarray, index: Any = None) -> np.ndarray:
        index = self.index if index is None else index
        return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]

    def size(self, value: np.ndarray) -> np.ndarray:
        """Of which number the promise is: of what it is, or of the logits that were rounded."""
        value = np.abs(value)
        return np.minimum(value * (1 + 2 * self.most), value + 2 * self.most)

    def brier(self) -> np.ndarray:
        parts = self.p**2
        np.put_along_axis(parts, self.index[..., None], self.pick(self.q)[..., None] ** 2, axis=-1)
        return parts.sum(axis=-1)


def run(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any], label: str) -> None:
    if "exactly" not in spot and not problem.wrong and problem.x.shape[problem.axis]:
        with np.errstate(all="ignore"):
            spot["exactly"] = Exactly(problem)
    fl.use_threads(1)
    if problem.kind != "metrics":
        call = getattr(fl, NAMES[problem.kind])
        x, target, axis, options = problem.x, problem.target, problem.axis, problem.options
        if problem.wrong:
            text = refused(lambda: call(x, target, axis=axis, **options), "a wrong class index")
            if "outside [0" not in text and "no classes" not in text:
                raise Found(f"message {text}")
            return
        refused(lambda: call(wrong_array(rng, x), target, axis=axis, **options), "a wrong array")
        bad = wrong_array(rng, target)
        refused(lambda: call(x, bad, axis=axis, **options), "a wrong target")
        wrong_one = {**options, "axis": axis, **wrong_options(rng, NAMES[problem.kind])}
        refused(lambda: call(x, target, **wrong_one), f"one of {wrong_one}")
        if "sample_weight" in options and (target != options["ignore_index"]).any():
            w = {**options, "sample_weight": float(rng.choice([-1, nan, inf]))}
            refused(lambda: call(x, target, axis=axis, **w), "a wrong weight")
    elif problem.wrong:
        stream = fl.StreamingMetrics(axis=problem.axis)
        refused(lambda: stream.update(problem.x, problem.target), "a wrong class index")
        if stream.batches:
            raise Found("a batch that is refused counts")
        return
    with np.errstate(all="ignore"):
        {
            "score": score, "brier": brier, "calibration": calibration,
            "temperature": temperature, "metrics": metrics,
        }[problem.kind](fl, problem, spot.get("exactly"), rng, label)  # fmt: skip


def alike(found: Any, want: Any, what: str) -> None:
    for name, a, b in zip(want._fields, found, want, strict=True):
        if b is not None:
            same(a, b, f"{name}, {what}")


# ---- c) score_samples ------------------------------------------------------------------------


def score(fl: Package, problem: Problem, e: Exactly | None, rng: Generator, label: str) -> None:
    _, x, target, axis, options, _ = problem
    options = {**options, "axis": axis}
    found = fl.score_samples(x, target, **options)
    for _ in range(6):
        fl.use_threads(threads_of(rng))
        given = {**options, "axis": axis - x.ndim * int(rng.integers(2))}
        alike(fl.score_samples(another_form(rng, x), another_form(rng, target), **given), found,
              "another form")  # fmt: skip
    other = {**options, "top_k": int(rng.integers(min(x.shape[axis], 7) + 1))}
    again = fl.score_samples(x, target, **other)
    for name in found._fields[:7]:
        same(getattr(again, name), getattr(found, name), f"{name} with top_k={other['top_k']}")
    refused(lambda: fl.score_samples(x, target, **{**options, "top_k": x.shape[axis] + 1}), "top_k")
    n = target.size
    inner = int(np.prod(x.shape[axis + 1 :], dtype=int))
    picked = rng.integers(0, max(n, 1), int(rng.integers(2, 2 * n + 2))) if n > 1 else ()
    if len(picked) and e is not None:
        rows = np.moveaxis(x, axis, -1).reshape(n, -1)[picked]
        rows = np.ascontiguousarray(rows if inner == 1 else rows.T)
        kept = {**options, "axis": 1 if inner == 1 else 0}
        part = fl.score_samples(rows, target.reshape(n)[picked], **kept)
        for name, a, b in zip(found._fields, part, found, strict=True):
            if b is not None:
                same(a, b.reshape(n, *b.shape[target.ndim :])[picked], f"{name} of some samples")
    if e is not None:
        hold_scores(problem, e, found, label)


def hold_scores(problem: Problem, e: Exactly, found: Any, label: str) -> None:
    options, dtype = problem.options, found.log_prob.dtype
    key = "score tempered" if e.changed else "score"

    def near(name: str, want: Any, size: Any, limit: float = 4) -> None:
        hold(getattr(found, name), want, size, limit, name, (key, name), label)

    own = e.pick(e.nll)
    near("log_prob", np.where(e.live, -own, nan), e.size(own))
    # What a rounded logit may tie with.
    info = np.finfo(np.float64)
    unsure = 4 * info.eps * np.abs(np.where(np.isfinite(e.z), e.z, 0)).max(axis=-1)
    unsure = np.where(e.changed, unsure, 0)[..., None]
    if e.changed:
        tied = e.pick(e.z, found.predicted) >= e.pick(e.z, e.first) - unsure[..., 0]
        same(tied | e.bad, np.ones_like(e.bad), "predicted")
    else:
        same(found.predicted, e.first.astype(np.int64), "predicted")
    top = e.nll.min(axis=-1)
    near("predicted_log_prob", np.where(e.bad, nan, -top), e.size(top))
    entropy = oracle._product(e.p, e.nll).sum(axis=-1)
    near("entropy", entropy, entropy * (1 + 2 * e.most), 5 if dtype == np.float64 else 4)
    largest = e.z.max(axis=-1)
    near("logsumexp", np.where(e.bad, nan, largest + top),
         np.maximum(np.maximum(np.abs(largest), top), e.most), 6 if e.changed else 4)  # fmt: skip
    known = e.live & ~e.bad
    mine = e.pick(e.z)[..., None]
    others = np.arange(e.z.shape[-1]) != e.index[..., None]
    least = (others & (e.z > mine + unsure)).sum(axis=-1)
    most = (others & (e.z >= mine - unsure)).sum(axis=-1)
    if not e.changed:
        least = most
    rank = found.rank
    if (rank != -1)[~known].any() or ((rank < least) | (rank > most))[known].any():
        raise Found(f"rank {rank}, between {least} and {most}")
    best = np.where(others, e.z, -inf).max(axis=-1)
    margin = np.where(known, mine[..., 0] - best, nan)
    margin = np.where(known & np.isneginf(mine[..., 0]) & np.isneginf(best), found.margin, margin)
    size = np.abs(margin)
    if e.changed:
        size = np.maximum(size, np.where(np.isfinite(best), np.abs(best), 0))
        size = np.maximum(size, np.where(np.isfinite(mine[..., 0]), np.abs(mine[..., 0]), 0))
    hold(found.margin, margin.astype(EXACT), size, 6 if e.changed else 0.501, "margin",
         (key, "margin"), label, 2.0**-1070 * max(options.get("softcap") or 1, 1))  # fmt: skip
    k = options.get("top_k", 0)
    if not k:
        if found.top_classes is not None or found.top_log_probs is not None:
            raise Found("top classes that were not asked for")
        return
    order = np.argsort(-e.wide, axis=-1, kind="stable")[..., :k]
    if not e.changed:
        same(found.top_classes, order.astype(np.int64), "top_classes")
    got = np.take_along_axis(e.z, found.top_classes, axis=-1)
    want = np.take_along_axis(e.z, order, axis=-1)
    apart = np.where(got == want, 0, np.abs(got - want))
    if (np.where(e.bad[..., None], 0, apart) > unsure).any():
        raise Found(f"top_classes {found.top_classes}")
    if (np.sort(found.top_classes, axis=-1)[..., 1:] == np.sort(found.top_classes)[..., :-1]).any():
        raise Found("a class that is named twice")
    logs = np.take_along_axis(e.nll, found.top_classes, axis=-1)
    most = e.most[..., None]
    near("top_log_probs", -logs, np.minimum(logs * (1 + 2 * most), logs + 2 * most))
    first = np.where(e.bad, nan, found.top_log_probs[..., 0]).astype(dtype)
    if not e.changed:
        same(first, np.where(e.bad, nan, found.predicted_log_prob).astype(dtype), "the first of k")


# ---- d) brier_score --------------------------------------------------------------------------


def brier(fl: Package, problem: Problem, e: Exactly | None, rng: Generator, label: str) -> None:
    _, x, target, axis, options, _ = problem
    results = {}
    for reduction in ("none", "sum", "mean"):
        given = {**options, "axis": axis, "reduction": reduction}
        results[reduction] = fl.brier_score(x, target, **given)
        fl.use_threads(threads_of(rng))
        form = another_form(rng, x), another_form(rng, target)
        same(fl.brier_score(*form, **given), results[reduction], f"{reduction} in another form")
    bad = {**options, "axis": axis, "reduction": "half"}
    refused(lambda: fl.brier_score(x, target, **bad), "a wrong reduction")
    if e is None:
        return
    weight = np.broadcast_to(exact(options.get("sample_weight", 1.0)), target.shape)
    s = np.where(e.live, weight, 0)
    want = oracle._product(s, np.where(s == 0, 0, e.brier()))
    size = want * (1 + 4 * e.most)
    limit = 4.5 if "sample_weight" in options else 4.0
    # What is too small for the type is lost, and a weight does not bring it back.
    lost = np.maximum(s, 1) * EXACT(2.0) ** (-1022 if x.dtype == np.float64 else -148)
    hold(results["none"], want, size, limit, "brier", ("brier", "none"), label, lost)
    total, sizes, part, mass = want.sum(), size.sum(), lost.sum(), s.sum()
    hold(results["sum"], total, sizes, limit + 1, "sum", ("brier", "sum"), label, part)
    mean = total / mass if mass else EXACT(nan)
    sizes, part = (v / mass if mass else EXACT(0) for v in (sizes, part))
    hold(results["mean"], mean, sizes, limit + 1, "mean", ("brier", "mean"), label, part)


# ---- e) calibration_error --------------------------------------------------------------------


def close(got: Any, want: Any, what: str, eps: float = 1e-12) -> None:
    if not np.allclose(got, want, rtol=eps, atol=1e-14, equal_nan=True):
        raise Found(f"{what}: {got!r} instead of {want!r}")


def errors_of(
    e: Exactly, problem: Problem, edges: np.ndarray
) -> tuple[list[tuple[float, float, float]], Any, Any] | None:
    """Mass, confidence and accuracy of each bin, and the two errors; None for a doubtful bin."""
    weight = np.broadcast_to(
        np.asarray(problem.options.get("sample_weight", 1.0), float), problem.target.shape
    )
    live = e.live & (weight > 0)
    known = live & ~e.bad
    confidence = e.p.max(axis=-1)[known].astype(float)
    right = (e.first == problem.target)[known]
    w = weight[known]
    eps = 1e-12 if problem.x.dtype == np.float64 else 1e-6
    apart = np.abs(confidence[:, None] - edges) <= eps * (1 + 100 * float(e.most.max(initial=0)))
    # Softcap makes logits alike, and then the first of them is predicted.
    top = e.z.max(axis=-1, keepdims=True)
    alike = (e.z >= top - 1e-12 * np.abs(top)).sum(axis=-1) > 1
    if apart.any() or (e.changed and alike[known].any()):
        return None
    group = (confidence[:, None] > edges).sum(axis=1)
    table = []
    for b in range(len(edges) + 1):
        here = group == b
        m = math.fsum(w[here])
        if m:
            sure, hits = math.fsum(confidence[here] * w[here]), math.fsum(w[here & right])
            table.append((m, sure / m, hits / m))
        else:
            table.append((0.0, nan, nan))
    expected = maximum = nan
    total = math.fsum(m for m, _, _ in table)
    if total and not (live & e.bad).any():
        expected = math.fsum(abs(c - a) * m for m, c, a in table if m) / total
        maximum = max(abs(c - a) for m, c, a in table if m)
    return table, expected, maximum


def calibration(
    fl: Package, problem: Problem, e: Exactly | None, rng: Generator, label: str
) -> None:
    _, x, target, axis, options, _ = problem
    given = {**options, "axis": axis}
    found = fl.calibration_error(x, target, **given)
    form = another_form(rng, x), another_form(rng, target)
    fl.use_threads(threads_of(rng))
    again = fl.calibration_error(*form, **given)
    alike(again.bins, found.bins, "another form")
    same(again.expected, found.expected, "expected in another form")
    for option, value in (("n_bins", 0), ("n_bins", 1.5), ("strategy", "equal")):
        bad = {**given, option: value}
        refused(lambda bad=bad: fl.calibration_error(x, target, **bad), f"{option}={value}")
    # The errors are those of the table.
    bins, table = options["n_bins"], found.bins
    used = table.samples > 0
    apart, total = np.abs(table.confidence - table.accuracy)[used], math.fsum(table.samples)
    if found.expected == found.expected:
        close(found.expected, math.fsum(apart * table.samples[used]) / total, "expected")
        close(found.maximum, apart.max(), "maximum")
    if e is None:
        return
    edges = np.array([k / bins for k in range(1, bins)], float)
    if options["strategy"] == "uniform":
        same(table.upper[:-1], edges, "edges")
        want = errors_of(e, problem, edges)
        if want is None:
            return
        eps = 1e-12 if x.dtype == np.float64 else 1e-6
        eps *= 1 + float(e.most.max(initial=0))
        for b, (m, sure, hits) in enumerate(want[0]):
            close(table.samples[b], m, f"samples of bin {b}")
            close(table.confidence[b], sure, f"confidence of bin {b}", eps)
            close(table.accuracy[b], hits, f"accuracy of bin {b}")
        if not np.allclose((found.expected, found.maximum), want[1:], 0, eps, equal_nan=True):
            raise Found(f"{found.expected} and {found.maximum} instead of {want[1:]}")
    elif "sample_weight" not in options:
        live = e.live & ~e.bad
        ordered = np.sort(e.p.max(axis=-1)[live].astype(float))
        n = ordered.size
        if n:
            edges = np.array([ordered[-(-n * k // bins) - 1] for k in range(1, bins)], float)
        close(table.upper[:-1], edges, "edges", 1e-6 * (1 + float(e.most.max(initial=0))))
        if total != n:
            raise Found(f"{total} samples in bins, of {n}")


# ---- f) fit_temperature ----------------------------------------------------------------------


def temperature(
    fl: Package, problem: Problem, e: Exactly | None, rng: Generator, label: str
) -> None:
    _, x, target, axis, options, _ = problem
    given = {**options, "axis": axis}
    weight = np.broadcast_to(exact(options.get("sample_weight", 1.0)), target.shape)
    keep = (target != options["ignore_index"]) & (weight > 0)
    rows = np.moveaxis(exact(x), axis, -1)[keep]
    t, w = target[keep].astype(np.intp), weight[keep]
    w = w / w.sum() if len(w) else w

    def parts(b: Any) -> tuple[Any, Any, Any]:
        """The mean loss, its derivative by b and its second, with b the inverse temperature."""
        top = rows.max(axis=1, keepdims=True)
        p, _, nll = oracle._softmax_parts((rows - top) * b)
        gap = top - rows
        own = np.take_along_axis(gap, t[:, None], 1)
        d = np.where(np.isfinite(gap), gap, 0)
        mean = (p * d).sum(axis=1, keepdims=True)
        loss = (w * np.take_along_axis(nll, t[:, None], 1)[:, 0]).sum()
        slope = (w * (own - mean)[:, 0]).sum()
        return loss, slope, (w * (p * (d - mean) ** 2).sum(axis=1)).sum()

    own = np.take_along_axis(rows, t[:, None], 1) if len(t) else rows[:, :1]
    unusable = not len(t) or not np.isfinite(parts(EXACT(1))[0])
    if unusable:
        refused(lambda: fl.fit_temperature(x, target, **given), "what has no loss")
        return
    least = (own >= rows).all()
    finite = np.isfinite(rows)
    count = finite.sum(axis=1)
    flat = np.where(finite, rows, 0).sum(axis=1) / count - own[:, 0]
    try:
        found = fl.fit_temperature(x, target, **given)
    except ValueError as error:
        # At b = 0 the loss must fall with b, and for large b rise, or there is no minimum.
        slope = (w * -flat).sum()
        sizes = (w * np.abs(np.where(finite, rows, 0)).max(axis=1)).sum()
        # Logits whose differences no loss can tell have no temperature, either.
        if not least and -slope < -1e-6 * sizes and sizes > 1e-14:
            raise Found(f"there is a temperature: {error}") from None
        return
    form = another_form(rng, x), another_form(rng, target)
    fl.use_threads(threads_of(rng))
    alike(fl.fit_temperature(*form, **given), found, "another form")
    b = EXACT(1) / EXACT(found.temperature)
    loss, slope, curve = parts(b)
    scale = (w * np.abs(np.where(finite, rows, 0)).max(axis=1)).sum()
    close(found.loss_before, float(parts(EXACT(1))[0]), "loss_before", 1e-12)
    if abs(found.loss - float(loss)) > 1e-12 * float(loss + scale * b * 1e-3):
        raise Found(f"loss {found.loss} instead of {loss}")
    # How far the minimum is, by Newton; and how far rounding may hide it.
    if curve > 0 and abs(slope) > 1e-11 * curve * b + 1e-15 * scale:
        raise Found(f"temperature {found.temperature}: slope {slope}, curvature {curve}, b {b}")


# ---- g) StreamingMetrics ---------------------------------------------------------------------


def metrics(fl: Package, problem: Problem, e: Exactly | None, rng: Generator, label: str) -> None:
    _, x, target, axis, options, _ = problem
    kept = {k: v for k, v in options.items() if k in ("ignore_index", "temperature", "softcap")}
    k, bins = int(rng.integers(1, 8)), int(rng.choice([1, 10, 15]))
    n = target.size
    rows = np.ascontiguousarray(np.moveaxis(x, axis, -1).reshape(n, x.shape[axis]))
    t = target.reshape(n)
    weight = None
    if "sample_weight" in options:
        weight = np.broadcast_to(options["sample_weight"], target.shape).reshape(n)

    def stream() -> Any:
        return fl.StreamingMetrics(top_k=k, n_bins=bins, axis=1, **kept)

    whole = stream().update(rows, t, weight)
    calls["StreamingMetrics"] += 1
    want = whole.compute()
    turned = fl.StreamingMetrics(top_k=k, n_bins=bins, axis=axis, **kept)
    w = options.get("sample_weight")
    inner = int(np.prod(x.shape[axis + 1 :], dtype=int))
    if inner == 1:
        same(turned.update(x, target, w).compute(), want, "as it lies")
    for _ in range(3):
        order = rng.permutation(n)
        cuts = np.sort(rng.integers(0, n + 1, rng.integers(0, 5)))
        streams = [stream() for _ in range(int(rng.integers(1, 4)))]
        for part in np.split(order, cuts):
            one = streams[int(rng.integers(len(streams)))]
            one.update(another_form(rng, rows[part]), another_form(rng, t[part]),
                       None if weight is None else weight[part])  # fmt: skip
            calls["StreamingMetrics"] += 1
        first, *others = (streams[i] for i in rng.permutation(len(streams)))
        for other in others:
            first.merge(other)
        same(first.compute(), want, "in another order")
    before = whole.compute(), repr(whole)
    refused(lambda: whole.update(wrong_array(rng, rows), t), "a wrong batch")
    refused(lambda: whole.update(rows, np.full(n + 1, 10**6)), "a wrong target")
    refused(lambda: whole.merge(fl.StreamingMetrics(top_k=k + 1, axis=1)), "other options")
    same(whole.compute(), before[0], "after errors")
    if repr(whole) != before[1]:
        raise Found("a batch that is refused counts")
    if e is None:
        return
    weights = np.broadcast_to(np.asarray(options.get("sample_weight", 1.0), float), target.shape)
    live = e.live & (weights > 0)
    w, counting, lost = weights[live], target[live], e.bad[live]
    total = math.fsum(w)
    if (want.samples, whole.non_finite) != (len(w), int(lost.sum())):
        raise Found(f"{want.samples} samples, {whole.non_finite} not finite")
    if not total:
        if not np.isnan(want[1:]).all():
            raise Found(f"nothing counts: {want}")
        return
    exactly_so = x.dtype == np.float64
    eps = (1e-13 if exactly_so else 1e-6) * (1 + float(e.most.max(initial=0)))
    share = exact(w) / EXACT(total)
    loss = float(np.sum(oracle._product(share, e.pick(e.nll)[live])))
    close(want.loss, loss, "loss", eps)
    close(want.perplexity, np.exp(loss), "perplexity", eps * max(1, abs(loss)))
    close(want.brier_score, float(np.sum(share * e.brier()[live])), "brier_score", eps)
    if e.changed:  # logits that are rounded to one
        return
    close(want.accuracy, math.fsum(w[(e.first[live] == counting) & ~lost]) / total, "accuracy")
    others = np.arange(e.z.shape[-1]) != e.index[..., None]
    rank = (others & (e.z >= e.pick(e.z)[..., None])).sum(axis=-1)[live]
    close(want.top_k_accuracy, math.fsum(w[(rank < k) & ~lost]) / total, "top_k_accuracy")
    table = errors_of(e, problem, np.array([i / bins for i in range(1, bins)], float))
    if table is not None and not np.isclose(want.calibration_error, table[1], 0, eps, True):
        raise Found(f"calibration error {want.calibration_error} instead of {table[1]}")
