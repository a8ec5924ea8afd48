"""Random calls of what is made of the kernels: linear layers, sums over axes, streams of batches.

Layout: a) linear_cross_entropy, b) logsumexp and softmax over axes, c) StreamingLoss, d) objectives
of boosting, e) rows by the C functions of fastloss.cython; each makes its problem and holds it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import oracle
import over_classes
import over_elements
import over_pairs
from common import (
    EXACT,
    Found,
    Generator,
    Package,
    another_form,
    calls,
    exact,
    hold,
    nan,
    refused,
    same,
    threads_of,
    weights_of,
    wrong_array,
)
from guarded import guarded
from test_cython import function as row_function


class Problem(NamedTuple):
    kind: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]


def make(rng: Generator) -> Problem:
    makers = {
        "linear": _linear, "axes": _axes, "weights": _weights, "stream": _stream,
        "boosting": _boosting, "rows": _rows,
    }  # fmt: skip
    return makers[str(rng.choice([*makers]))](rng)


def described(problem: Problem) -> str:
    def short(a: Any) -> Any:
        return f"{a.dtype}{a.shape}" if isinstance(a, np.ndarray) else a

    options = {name: short(value) for name, value in problem.options.items()}
    return f"{problem.kind} {[short(a) for a in problem.arrays]} {options}"


def run(fl: Package, problem: Problem, rng: Generator, spot: dict[str, Any], label: str) -> None:
    fl.use_threads(1)
    run_one = {
        "linear": run_linear, "axes": run_axes, "weights": run_weights, "stream": run_stream,
        "boosting": run_boosting, "rows": run_rows,
    }[problem.kind]  # fmt: skip
    run_one(fl, problem, rng, label)


# ---- a) linear_cross_entropy -----------------------------------------------------------------


def _linear(rng: Generator) -> Problem:
    """A layer whose products are exact: small multiples of 1/8."""
    rows, features = int(rng.choice([0, 1, 2, 5, 33])), int(rng.choice([0, 1, 3, 8, 17]))
    classes = int(rng.choice([1, 2, 10, 33, 100]))
    more = (int(rng.integers(1, 4)),) if rng.random() < 0.2 else ()
    types = [over_classes.dtype_of(rng) for _ in range(3)]
    if rng.random() < 0.5:
        types = types[:1] * 3
    before = (rows,) if rng.random() < 0.7 else (rows, int(rng.integers(1, 4)))
    x, w, b = (
        (rng.integers(-24, 25, shape) / 8).astype(dtype)
        for shape, dtype in zip(
            ((*before, features), (classes, *more, features), (classes, *more)), types, strict=True
        )
    )
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        target: Any = rng.random((*before, classes, *more)).astype(rng.choice(["f4", "f8", "f2"]))
    else:
        target = rng.integers(0, classes, (*before, *more))
        options["ignore_index"] = int(rng.choice([-100, 0, classes]))
        away = rng.random(before) < 0.2
        target[away] = options["ignore_index"]
        if rng.random() < 0.3:
            x[away] = nan  # an ignored sample's features have no say
    if rng.random() < 0.5:
        options["linear_bias"] = b
    if rng.random() < 0.3:
        options["weight"] = rng.uniform(0.5, 2, classes)
    if rng.random() < 0.3:
        options["sample_weight"] = rng.uniform(0.5, 2, (*before, *more))
        if rng.random() < 0.3:
            options["sample_weight"] = rng.uniform(0.5, 2, more)
    if rng.random() < 0.3:
        options["label_smoothing"] = 0.1
    if rng.random() < 0.3:
        options["temperature"] = 0.7
    if rng.random() < 0.2:
        options["softcap"] = 2.0
    if rng.random() < 0.2:
        options["z_loss"] = 1e-3
    return Problem("linear", (x, w, target), options)


def run_linear(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    x, w, target = problem.arrays
    options = problem.options
    # So little memory that there are many blocks and strips, or as much as there is.
    memory = fl.package.linear_cross_entropy.__globals__["_layer"]
    memory.LEAST_MEMORY = int(rng.choice([1, 600, 3000, 20_000, 64 << 20]))
    memory._PART_BYTES = int(rng.choice([1, 500, 4 << 20]))
    memory._ADDED = int(rng.choice([1, 3, 64]))
    wide = np.dtype("f8") if np.dtype("f8") in (x.dtype, w.dtype) else np.dtype("f4")
    z = np.tensordot(x.astype(wide), w.astype(wide), (-1, -1))
    bias = options.get("linear_bias")
    if bias is not None:
        z = z + bias.astype(wide)
    plain = {name: v for name, v in options.items() if name != "linear_bias"}
    plain["axis"] = x.ndim - 1
    rows = int(np.prod(x.shape[:-1], dtype=int))
    clean = np.where(np.isnan(x), np.zeros_like(x), x).astype(float).reshape(rows, x.shape[-1])
    # A gradient of halves may come from logits that are multiplied a second time.
    late = memory.LEAST_MEMORY < 64 << 20 and w.dtype != wide
    outputs = int(np.prod(w.shape[:-1], dtype=int))
    flat = w.reshape(outputs, w.shape[-1]).astype(float)
    tiny = float(np.finfo(wide).tiny)

    def near(got: Any, want: Any, dtype: np.dtype, bound: np.ndarray, what: str) -> None:
        if got.shape != want.shape or got.dtype != dtype:
            raise Found(f"{what}: {got.dtype}{got.shape} instead of {dtype}{want.shape}")
        if dtype != wide:  # rounded once more
            info = ml_dtypes.finfo(dtype)
            bound = bound + float(info.eps) * np.abs(want) + float(info.smallest_subnormal)
        off = np.abs(got.astype(float) - want)
        if not (off <= bound).all():
            raise Found(f"{what}: off by {off.max()}")

    for reduction in ("none", "sum", "mean"):
        want = fl.cross_entropy(z, target, reduction=reduction, **plain)
        got = fl.linear_cross_entropy(x, w, target, reduction=reduction, **options)
        if reduction == "none" and z.ndim == 2:
            same(got, want, "losses")
        elif not np.allclose(got, want, rtol=1e-6 if wide == "f4" else 1e-14, equal_nan=True):
            raise Found(f"{reduction}: {got} instead of {want}")
        upstream = rng.standard_normal(np.shape(want))
        g = fl.cross_entropy_backward(upstream, z, target, reduction=reduction, **plain)
        grads = fl.linear_cross_entropy_backward(
            upstream, another_form(rng, x), another_form(rng, w), target, reduction=reduction,
            **options,
        )  # fmt: skip
        loss, fused = fl.linear_cross_entropy_value_and_grad(
            x, w, target, reduction=reduction, **options
        )
        if reduction == "none" or w.dtype == wide:
            same(loss, got, f"{reduction} with gradient")
        elif not np.allclose(loss, got, rtol=float(np.finfo(wide).eps), atol=0, equal_nan=True):
            # What is left of the memory, and so the blocks, depends on the gradient's type.
            raise Found(f"{reduction} with gradient: {loss} instead of {got}")
        g, eps = g.astype(float).reshape(rows, outputs), 2 * float(np.finfo(wide).eps)
        for name, a, b, like in (
            ("input", g, flat, x), ("linear_weight", g.T, clean, w),
        ):  # fmt: skip
            bound = (len(b) + 8) * eps * (np.abs(a) @ np.abs(b)) + tiny
            if late and name == "linear_weight":
                # p - 1 of a confident sample is a difference then.
                most = 4 * np.abs(upstream).max(initial=1.0)
                bound = bound + 3e-5 * np.abs(a @ b).max(initial=0) + most * eps * np.abs(b).sum(0)
            near(getattr(grads, name), (a @ b).reshape(like.shape), like.dtype,
                 bound.reshape(like.shape), f"{reduction}: gradient of {name}")  # fmt: skip
        if bias is not None:
            bound = ((rows + 8) * eps * np.abs(g).sum(axis=0) + tiny).reshape(bias.shape)
            total = g.sum(axis=0).reshape(bias.shape)
            near(grads.linear_bias, total, bias.dtype, bound, f"{reduction}: gradient of the bias")
        if fused.input.shape != x.shape or fused.linear_weight.shape != w.shape:
            raise Found("shape of the gradients")
    refused(lambda: fl.linear_cross_entropy(wrong_array(rng, x), w, target), "a wrong array")
    refused(lambda: fl.linear_cross_entropy(x, w[..., :0], target) if w.shape[-1] else
            fl.linear_cross_entropy(x, 1j, target), "a wrong layer")  # fmt: skip
    if target.size and target.dtype.kind == "i":
        bad = target.copy()
        bad.reshape(-1)[0] = len(w)
        ignored = {"ignore_index": -1}
        refused(lambda: fl.linear_cross_entropy(x, w, bad, **ignored), "a wrong class")


# ---- b) logsumexp and softmax over axes ------------------------------------------------------


def _shape(rng: Generator) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.choice([0, 1, 2, 3, 4, 9], rng.integers(0, 5), p=[
        0.02, 0.18, 0.2, 0.2, 0.2, 0.2]))  # fmt: skip


def _some_axes(rng: Generator, ndim: int) -> Any:
    if rng.random() < 0.2:
        return None
    if rng.random() < 0.3 and ndim:
        return int(rng.integers(-ndim, ndim))
    axes = rng.permutation(ndim)[: rng.integers(0, ndim + 1)]
    return tuple(int(a - ndim * (rng.random() < 0.5)) for a in axes)


def _axes(rng: Generator) -> Problem:
    shape, dtype = _shape(rng), over_classes.dtype_of(rng)
    size = int(np.prod(shape, dtype=int))
    x = over_classes.values_of(rng, 1, size, dtype)[0].reshape(shape)
    return Problem("axes", (x,), {"axis": _some_axes(rng, len(shape))})


def _flat(x: np.ndarray, axis: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Rows of what is summed over, and the axes."""
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = tuple(sorted(a % x.ndim for a in axes)) if x.ndim else ()
    others = [i for i in range(x.ndim) if i not in axes]
    moved = x.transpose(*others, *axes)
    rows = int(np.prod([x.shape[i] for i in others], dtype=int))
    return moved.reshape(rows, int(np.prod([x.shape[i] for i in axes], dtype=int))), axes


def run_axes(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    (x,), axis = problem.arrays, problem.options["axis"]
    rows, axes = _flat(x, axis)
    plain = np.ascontiguousarray(rows)
    keep = bool(rng.integers(2))
    left = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    shape = left if keep else tuple(n for i, n in enumerate(x.shape) if i not in axes)
    fl.use_threads(threads_of(rng))
    want = fl.logsumexp(plain, axis=1) if x.size or not axes else None
    got = fl.logsumexp(another_form(rng, x), axis=axis, keepdims=keep)
    if x.ndim == 0:
        shape = np.shape(got)  # SciPy's answer, which is (1,) for some
    if np.shape(got) != shape:
        raise Found(f"logsumexp: shape {np.shape(got)} instead of {shape}")
    if want is not None:
        want = want.reshape(shape)
        close(got, want, x.dtype, "logsumexp")
        value, sign = fl.logsumexp(x, axis=axis, keepdims=keep, return_sign=True)
        same(value, got, "logsumexp with sign")
        expected = np.where(np.isnan(exact(got)), nan, exact(got) > -np.inf)
        same(np.asarray(sign).astype(float), expected.astype(float), "sign")
        if shape:
            out = np.empty(shape, x.dtype)
            same(fl.logsumexp(x, axis=axis, keepdims=keep, out=out), got, "logsumexp in out")
    for name in ("softmax", "log_softmax"):
        function = getattr(fl, name)
        got = function(another_form(rng, x), axis=axis)
        if np.shape(got) != x.shape:
            raise Found(f"{name}: shape {np.shape(got)}")
        if x.size:
            close(_flat(np.asarray(got), axis)[0], function(plain, axis=1), x.dtype, name)
        if x.shape:
            out = x.copy()
            same(function(out, axis=axis, out=out), got, f"{name} in place")
    bad = rng.choice(["far", "twice", "word", "real"])
    axis = {"far": x.ndim + 1, "twice": (0, 0), "word": "1", "real": 1.5}[str(bad)]
    refused(lambda: fl.softmax(x, axis=axis), f"axis {axis!r}")
    refused(lambda: fl.logsumexp(wrong_array(rng, x)), "a wrong array")


def close(got: Any, want: Any, dtype: np.dtype, what: str) -> None:
    """Within 8 ulp: rows and columns add in another order."""
    a, b = exact(got), exact(want)
    with np.errstate(invalid="ignore"):
        eps = 2.0**-10 if dtype == np.float16 else 2.0**-7 if dtype.itemsize == 2 else 0.0
        eps = max(8 * float(np.finfo(np.float32 if dtype.itemsize < 8 else dtype).eps), eps)
        off = np.abs(a - b) > eps * np.maximum(np.abs(b), np.finfo(np.float16).tiny)
    if (off & ~(a == b) & ~(np.isnan(a) & np.isnan(b))).any():
        raise Found(f"{what}: {got} instead of {want}")


def _weights(rng: Generator) -> Problem:
    shape = _shape(rng)
    dtype = np.dtype(rng.choice(["f4", "f8"]))
    a = (rng.standard_normal(shape) * rng.choice([0.1, 1, 20, 200])).astype(dtype)
    if rng.random() < 0.1 and a.size:
        a = np.where(rng.random(shape) < 0.2, -np.inf, a).astype(dtype)
    cut = int(rng.integers(len(shape) + 1))
    b = np.asarray(weights_of(rng, tuple(n if rng.random() < 0.8 else 1 for n in shape[cut:])))
    if rng.random() < 0.5:
        b = b * rng.choice([-1, 1], b.shape)
    return Problem("weights", (a, np.asarray(b)), {"axis": _some_axes(rng, len(shape))})


def run_weights(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    (a, b), axis = problem.arrays, problem.options["axis"]
    form = another_form(rng, a), another_form(rng, b)
    got, sign = fl.logsumexp(form[0], axis, form[1], return_sign=True)
    plain = fl.logsumexp(a, axis, b)
    same(plain, np.where(np.asarray(sign) < 0, np.asarray(nan, np.asarray(got).dtype), got)[()],
         "without a sign")  # fmt: skip
    rows, _ = _flat(np.broadcast_to(exact(a), a.shape), axis)
    weights, _ = _flat(np.broadcast_to(exact(b), a.shape), axis)
    if not rows.size:
        return
    with np.errstate(all="ignore"):
        m = rows.max(axis=1, keepdims=True)
        m = np.where(np.isfinite(m), m, 0)
        terms = np.where((weights == 0) | (rows == -np.inf), 0, weights * np.exp(rows - m))
        # In long double a sum of float64 weights loses what the promise allows.
        total, size = terms.sum(axis=1), np.abs(terms).sum(axis=1)
        want = np.log(np.abs(total)) + m[:, 0]
        loose = size / np.abs(total) * 4 * 2.0**-52
        largest = np.take_along_axis(rows, np.abs(terms).argmax(axis=1)[:, None], 1)[:, 0]
        largest = np.where(np.isfinite(largest), np.abs(largest), 0)
    usual = (np.abs(total) > size * 2.0**-40) & (total != 0)
    value, want, loose, largest = (
        np.where(usual, v, 0) for v in (np.asarray(got).reshape(-1), want, loose, largest)
    )
    kind = np.asarray(got).dtype
    hold(value.astype(kind), want.astype(EXACT), largest, 4, "logsumexp with weights",
         ("logsumexp", "weights"), label, loose)  # fmt: skip
    signs = np.where(usual, np.asarray(sign).reshape(-1), 0)
    if (signs != np.where(usual, np.sign(total), 0)).any():
        raise Found(f"sign: {sign}")


# ---- c) StreamingLoss ------------------------------------------------------------------------


def _stream(rng: Generator) -> Problem:
    """Batches along the first axis, for any criterion."""
    name = str(rng.choice(STREAMED))
    samples, classes = int(rng.integers(1, 60)), int(rng.choice([2, 5, 10, 40]))
    dtype = over_classes.dtype_of(rng)
    x = over_classes.values_of(rng, samples, classes, np.dtype(np.float32)).clip(-50, 50)
    x = np.where(np.isnan(x), 0, x).astype(dtype)
    options: dict[str, Any] = {}
    if name in ("CrossEntropyLoss", "NLLLoss", "SoftmaxFocalLoss"):
        target: Any = rng.integers(0, classes, samples)
        target[rng.random(samples) < 0.1] = -100
        if rng.random() < 0.4:
            options["alpha" if "Focal" in name else "weight"] = rng.uniform(0.5, 2, classes)
        if name == "CrossEntropyLoss" and rng.random() < 0.3:
            options["label_smoothing"] = 0.1
        if name == "CrossEntropyLoss" and rng.random() < 0.3:
            options["temperature"] = 0.7
    elif name == "DistillationLoss":
        target = over_pairs.second_of(rng, x).clip(-50, 50)
        target = np.where(np.isnan(target), 0, target).astype(dtype)
        options["direction"] = str(rng.choice(["forward", "reverse"]))
    else:
        target = over_elements.fractions_of(rng, x.shape, np.dtype(np.float64))
        if name == "BCELoss":
            x = over_elements.fractions_of(rng, x.shape, dtype)
        elif name == "KLDivLoss":
            x = -np.abs(x)
        elif name == "BCEWithLogitsLoss" and rng.random() < 0.5:
            options["pos_weight"] = rng.uniform(0.5, 2, classes)
    return Problem("stream", (name, x, target), options)


STREAMED = ["CrossEntropyLoss", "CrossEntropyLoss", "NLLLoss", "SoftmaxFocalLoss", "BCELoss",
            "BCEWithLogitsLoss", "KLDivLoss", "SigmoidFocalLoss", "DistillationLoss"]  # fmt: skip


def run_stream(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    name, x, target = problem.arrays
    reduction = str(rng.choice(["mean", "sum"]))
    criterion = getattr(fl, name)(reduction=reduction, **problem.options)
    cuts = np.sort(rng.integers(0, len(x) + 1, rng.integers(0, 5)))
    parts = list(zip(np.split(x, cuts), np.split(target, cuts), strict=True))
    each = x.shape if name in ELEMENTS else (len(x),)
    weights = rng.uniform(0.5, 2, each) if rng.random() < 0.3 else None
    shares = [None] * len(parts) if weights is None else np.split(weights, cuts)
    batches = [(*part, share) for part, share in zip(parts, shares, strict=True)]
    seen = []
    known = name in ("CrossEntropyLoss", "NLLLoss")
    for _ in range(3):
        streams = [fl.StreamingLoss(criterion) for _ in range(int(rng.integers(1, 4)))]
        for i in rng.permutation(len(batches)):
            streams[int(rng.integers(len(streams)))].update(*batches[i])
            calls["StreamingLoss"] += 1
        first, *rest = (streams[i] for i in rng.permutation(len(streams)))
        for other in rest:
            first.merge(other)
        perplexity = first.perplexity if known else 0.0
        seen.append((first.compute(), perplexity, first.samples, first.batches))
    for one in seen[1:]:
        if not np.array_equal(one, seen[0], equal_nan=True):
            raise Found(f"the order of batches matters: {seen}")
    whole = float(criterion(x, target, weights))
    eps = 1e-6 if x.dtype.itemsize < 8 else 1e-14
    # The sum of a batch has float64's rounding, of terms that may have two signs.
    terms = np.abs(np.asarray(getattr(fl, name)(reduction="none", **problem.options)(x, target)))
    terms = terms.astype(float) * (1 if weights is None else weights)
    size = np.where(np.isfinite(terms), terms, 0).sum() / (1 if reduction == "sum" else len(x))
    least = float(np.finfo(np.float32 if x.dtype.itemsize < 8 else x.dtype).smallest_subnormal)
    if not np.isclose(seen[0][0], whole, eps, eps * size * 2 + least, equal_nan=True):
        raise Found(f"streamed {seen[0][0]!r}, at once {whole!r}")
    if known:
        kept = {k: v for k, v in problem.options.items() if k == "temperature"}
        model = float(getattr(fl, name)(**kept)(x, target))
        scale = abs(model) if np.isfinite(model) else 1
        with np.errstate(over="ignore"):
            want = np.exp(model)
        if not np.isclose(seen[0][1], want, rtol=eps * max(scale, 1), atol=0, equal_nan=True):
            raise Found(f"perplexity {seen[0][1]!r}, not {want!r}")
    before = (first.sum, first.weight, first.samples)
    refused(lambda: first.update(wrong_array(rng, x), target), "a wrong batch")
    refused(lambda: first.update(x, np.full((len(x), 7, 7), 10**6)), "a wrong target")
    if before != (first.sum, first.weight, first.samples) and before[0] == before[0]:
        raise Found("a batch that is refused counts")


#: Criteria of single elements.
ELEMENTS = ("BCELoss", "BCEWithLogitsLoss", "KLDivLoss", "SigmoidFocalLoss")


# ---- d) objectives of boosting ---------------------------------------------------------------


def _boosting(rng: Generator) -> Problem:
    """Second derivatives times a factor and at least a floor, as float32 for LightGBM."""
    name = str(rng.choice(["CrossEntropyLoss", "SoftmaxFocalLoss", "BCEWithLogitsLoss",
                           "SigmoidFocalLoss"]))  # fmt: skip
    n = int(rng.choice([0, 1, 2, 31, 64, 65, 130]))
    dtype = np.dtype(rng.choice(["f8", "f8", "f4"]))
    how = {"curve": 1.0, "floor": -np.inf, "narrow": bool(rng.random() < 0.6)}
    if rng.random() < 0.7:
        how["floor"] = float(rng.choice([1e-16, 1e-6, 0.0, 0.1]))
    options: dict[str, Any] = {}
    if rng.random() < 0.4:
        options["sample_weight"] = weights_of(rng, (n,))
    if name in ("CrossEntropyLoss", "SoftmaxFocalLoss"):
        classes = int(rng.choice([1, 2, 3, 10, 33, 128, 129, 300]))
        how["curve"] = float(rng.choice([1.0, 2.0, classes / max(classes - 1, 1)]))
        x = over_classes.values_of(rng, n, classes, dtype)
        target: Any = rng.integers(0, classes, n)
        options["ignore_index"] = int(rng.choice([-100, 0, -1]))
        target[rng.random(n) < 0.1] = options["ignore_index"]
        if name == "SoftmaxFocalLoss":
            options["gamma"] = float(rng.choice([0.0, 0.5, 1.0, 2.0, 3.3]))
        else:
            if rng.random() < 0.3:
                options["label_smoothing"] = 0.1
            if rng.random() < 0.15:
                options["temperature"] = 2.0
            if rng.random() < 0.15:
                options["softcap"] = 5.0
            if rng.random() < 0.15:
                options["z_loss"] = 0.01
            if rng.random() < 0.2 and options["ignore_index"] < 0:
                target = rng.dirichlet(np.ones(classes), n)
        if rng.random() < 0.3:
            kind = "alpha" if name == "SoftmaxFocalLoss" else "weight"
            options[kind] = weights_of(rng, (classes,))
    else:
        x = over_elements.logits_of(rng, (n,), dtype)
        target = rng.integers(0, 2, n) if rng.random() < 0.5 else rng.random(n)
        if name == "SigmoidFocalLoss":
            options["gamma"] = float(rng.choice([0.0, 0.5, 2.0, 5.0]))
        elif rng.random() < 0.4:
            options["pos_weight"] = np.asarray(rng.uniform(0.5, 9.0))
    return Problem("boosting", (name, x, target), {**options, **how})


def run_boosting(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    name, x, target = problem.arrays
    options = dict(problem.options)
    how = {key: options.pop(key) for key in ("curve", "floor", "narrow")}
    loss = getattr(fl, name)._loss
    # Column-major logits are read in place, as those of another axis.
    form = np.asfortranarray(x) if rng.random() < 0.5 else x
    grad, hess = getattr(fl, f"{loss.name}_grad_and_hess")(form, target, **options)
    fl.use_threads(threads_of(rng))
    form = another_form(rng, form) if form is x and x.ndim == 1 else form.copy("K")
    got = loss.grad_and_hess(form, another_form(rng, target), None, **options, **how)
    calls["boosting"] += 1
    kind = np.dtype(np.float32) if how["narrow"] else x.dtype
    with np.errstate(all="ignore"):
        same(got[0], grad.astype(kind), "gradient of an objective")
        want = hess.astype(float) * how["curve"]
        raised = np.where((hess != 0) | (grad != 0), np.maximum(want, how["floor"]), want)
        raised = raised.astype(kind).astype(float)
        h = got[1].astype(float)
        # The terms of focal losses have two signs.
        size = np.abs(raised) + (20 * np.abs(grad.astype(float)) if "gamma" in options else 0)
        near = np.abs(h - raised) <= 2 * float(np.finfo(kind).eps) * size
    # Of what underflows, the second derivative may be raised or not.
    near |= (hess == 0) & (grad == 0) & (h == np.asarray(how["floor"], kind).astype(float))
    near |= (h == raised) | (np.isnan(h) & np.isnan(raised))
    near |= np.abs(h - raised) <= 2 * float(np.finfo(kind).smallest_subnormal)
    if got[1].dtype != kind or not near.all():
        at = np.argwhere(~near)[:1].tolist()
        raise Found(f"second derivatives of an objective at {at}: {h[~near][:3]},"
                    f" expected {raised[~near][:3]}, {how}")  # fmt: skip


# ---- e) rows by C functions ------------------------------------------------------------------


def _rows(rng: Generator) -> Problem:
    name = str(rng.choice(["logsumexp_row", "softmax_row", "cross_entropy_row",
                           "cross_entropy_grad_row", "bce_with_logits_block"]))  # fmt: skip
    dtype = np.dtype(rng.choice(["f4", "f8"]))
    n = int(rng.choice(over_classes.LONG if rng.random() < 0.1 else over_classes.CLASSES))
    scale = float(rng.choice([1.0, -1.0, 0.3, 1e-12, 1e-30, 1e10]))
    if name == "bce_with_logits_block":
        x = over_elements.logits_of(rng, (n,), dtype)
        t: Any = over_elements.fractions_of(rng, (n,), dtype)
    else:
        x = over_classes.values_of(rng, 1, n, dtype)[0]
        t = int(rng.integers(n)) if rng.random() < 0.9 else int(rng.choice([-1, n, 2**62]))
    return Problem("rows", (name, x, t), {"scale": scale})


def run_rows(fl: Package, problem: Problem, rng: Generator, label: str) -> None:
    name, x, t = problem.arrays
    n, scale, dtype = x.size, problem.options["scale"], x.dtype
    call = row_function(fl.package._kernels.single, name, dtype.name)
    calls[name] += 1
    row = guarded(x, at_end=bool(rng.integers(2)))
    out = row if rng.random() < 0.4 else guarded(np.zeros_like(x), at_end=bool(rng.integers(2)))
    key = (name, "row")

    def close_to(got: Any, want: Any, size: Any, limit: float, what: str, lost: Any = 0.0) -> None:
        with np.errstate(over="ignore", under="ignore"):
            got = np.asarray(got).astype(dtype)
        hold(got, np.asarray(want, EXACT), np.asarray(size, EXACT), limit, what, key, label, lost)

    least = EXACT(2.0) ** (-1022 if dtype == np.float64 else -126) * max(abs(scale), 1)
    with np.errstate(all="ignore"):
        if name == "bce_with_logits_block":
            targets = guarded(t)
            losses = None if rng.random() < 0.3 else guarded(np.zeros_like(x))
            grad = None if rng.random() < 0.3 else out
            total = call(row, targets, n, scale, losses, grad)
            e = over_elements.exactly(over_elements.Problem("logits", x, t, {}, False))
            close_to(total, e.losses.sum(), e.loss_sizes.sum(), 6, "sum")
            if losses is not None:
                close_to(losses, e.losses, e.loss_sizes, 4, "losses")
            if grad is not None:
                want, size = (EXACT(scale) * v for v in (e.gradients, e.gradient_sizes))
                close_to(grad, want, np.abs(size), 5, "grad", least)
            return
        p, q, nll = oracle._softmax_parts(exact(x)[None])
        p, q, nll = p[0], q[0], nll[0]
        top = exact(x).max()
        if name == "logsumexp_row":
            want = top + nll.min() if np.isfinite(top) else top
            size = max(abs(top), nll.min()) if np.isfinite(top) else 0
            close_to(call(row, n), want, size, 4, "logsumexp")
            return
        if name == "softmax_row":
            call(row, n, out)
            close_to(out, p, p, 4, "softmax")
            return
        inside = 0 <= t < n
        want = nll[t] if inside else EXACT(nan)
        if name == "cross_entropy_row":
            close_to(call(row, n, t), want, want, 4, "loss")
            return
        close_to(call(row, n, t, scale, out), want, want, 4, "loss")
        slope = p.copy()
        if inside:
            slope[t] = -q[t]
        slope = oracle._product(EXACT(scale), slope) if inside else np.full(n, nan, EXACT)
        close_to(out, slope, np.abs(slope), 4.5, "gradient", least)
