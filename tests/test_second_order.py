"""Gradients with second derivatives: exact, at every instruction-set level.

What is exact: for float64, mpmath with 160 bits, and for narrower types the same formulas in
float64. 4 ulp are those of the value where it is one product, and of the terms where it is a sum
of terms of two signs: soft targets, `z_loss`, `softcap`, the focal loss.

Layout: a) the reference of losses over classes, b) class indices, c) the other options,
d) binary losses, e) derivatives taken numerically, and a peer, f) memory: column by column, `out`,
halves, g) threads, h) criteria and wrong arguments.
"""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import pytest

import fastloss
import oracle
from helpers import FLOATS, HALVES, dtype_of, epsilon
from oracle import Exact

LIMIT = 4.0
#: What one more rounding adds.
ROUNDING = 0.5


def assert_within(got, want: Exact, size=None, limit=LIMIT):
    """At most `limit` ulp off, where it is normal; with `size`, ulp of that."""
    assert got.shape == want.high.shape
    assert np.isfinite(got).all()
    if not got.size:
        return
    unit = np.spacing(np.abs(want.high if size is None else size).astype(got.dtype))
    error = np.abs((got.astype(np.float64) - want.high) - want.low) / unit.astype(np.float64)
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error[worst] <= limit, (
        f"{error[worst]:.3g} ulp at {worst}: got {got[worst]!r}, exact {want.high[worst]!r}"
    )


# ---- a) the reference of losses over classes -------------------------------------------------


def elementwise(function, x):
    return np.array([function(v) for v in x.ravel()], dtype=object).reshape(x.shape)


def exact_softmax_parts(z):
    """p, 1 − p and −log p of rows of mpmath's numbers."""
    e = elementwise(mpmath.exp, z - z.max(axis=1, keepdims=True))
    total = e.sum(axis=1, keepdims=True)
    largest = z.argmax(axis=1)[:, None]
    rest = e.copy()
    np.put_along_axis(rest, largest, mpmath.mpf(0), axis=1)
    rest = rest.sum(axis=1, keepdims=True)
    q = (total - e) / total
    np.put_along_axis(q, largest, rest / total, axis=1)
    nll = elementwise(mpmath.log1p, rest) + (z.max(axis=1, keepdims=True) - z)
    return e / total, q, nll


def reference(
    x, a, *, exact, w=1.0, factor=1.0, z_loss=0.0, temperature=1.0, softcap=None
):  # fmt: skip
    """Gradient, second derivative and the sizes of both's terms, of logits (N, C) and targets a.

    With z the logits after softcap and temperature, L their logsumexp, A the sum of a and
    S = 2 z_loss w L: the derivatives with respect to z are (A + S) p − a and
    (A + S) p (1 − p) + 2 z_loss w p². The chain rule leads to x.
    """
    with mpmath.workprec(oracle.PRECISION):
        slope, bend = 1.0, 0.0
        z = elementwise(lambda v: mpmath.mpf(float(v)), x) if exact else x.astype(np.float64)
        a = elementwise(lambda v: mpmath.mpf(float(v)), a) if exact else a
        if softcap is not None:
            tanh = elementwise(mpmath.tanh, z / softcap) if exact else np.tanh(z / softcap)
            # 1 − tanh² has no digits left where tanh is near 1.
            sech = elementwise(mpmath.sech, z / softcap) if exact else 1 / np.cosh(z / softcap)
            z = softcap * tanh / temperature
            slope = sech * sech / temperature
            bend = -2 * tanh * sech * sech / softcap / temperature
        elif temperature != 1:
            z = z / temperature
            slope = 1 / mpmath.mpf(temperature) if exact else 1 / temperature
        if exact:
            p, q, nll = exact_softmax_parts(z)
        else:
            p, q, nll = oracle._softmax_parts(z)
        log_sum = (nll + z)[:, :1]
        total = a.sum(axis=1, keepdims=True)
        others = np.where(a == total, 0.0 * a, total - a)
        extra = 2 * z_loss * w * log_sum
        grad = p * others - a * q + p * extra
        grad_size = p * others + a * q + p * abs(extra)
        square = 2 * z_loss * w * p * p
        hess = (total + extra) * p * q + square
        hess_size = (total + abs(extra)) * p * q + square
        # The bend's share needs the gradient's own digits.
        hess = factor * (hess * slope * slope + grad * bend)
        hess_size = factor * (hess_size * slope * slope + grad_size * abs(bend))
        grad, grad_size = factor * grad * slope, factor * grad_size * slope
        if exact:
            return (
                oracle.as_exact(grad), oracle.as_exact(hess),
                grad_size.astype(np.float64), hess_size.astype(np.float64),
            )  # fmt: skip
    none = np.zeros(grad.shape)
    return Exact(grad, none), Exact(hess, none), grad_size, hess_size


def one_hot(target, classes, weight=None, smoothing=0.0):
    """The targets of class indices: the class's weight, and all others' by smoothing."""
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    t = np.zeros((target.size, classes))
    t[np.arange(target.size), target] = 1.0
    return (1.0 - smoothing) * t * w + smoothing * w / classes


# ---- b) class indices ------------------------------------------------------------------------


@cache
def rows(dtype: str, classes: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets: of several scales, targets random, certain and hopeless."""
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((samples, classes)) * np.resize((0.1, 1.0, 10.0), samples)[:, None]
    target = rng.integers(0, classes, samples)
    kind = np.arange(samples) // 3 % 4
    target = np.where(kind == 1, x.argmax(axis=1), target)
    target = np.where(kind == 2, x.argmin(axis=1), target)
    gaps = np.linspace(1.0, 80.0 if dtype == "float32" else 600.0, samples)
    confident = np.flatnonzero(kind == 3)
    x[confident, target[confident]] = x[confident].max(axis=1) + gaps[confident]
    if samples > 5:
        x[0] += 700  # far from 0, but well inside the exponential's range
        x[1] -= 1e4
        x[2].sort()  # the running maximum rises all the way
        x[4] = 3.0  # all alike
    return x.astype(dtype), target


@cache
def exact_rows(dtype: str, classes: int, samples: int):
    x, target = rows(dtype, classes, samples)
    return reference(x, one_hot(target, classes), exact=dtype == "float64")


SIZES = {
    "float32": [(1, 9), (2, 1000), (3, 1000), (10, 500), (31, 200), (32, 200), (33, 200)]
    + [(64, 200), (65, 100), (1000, 40), (9000, 12)],
    "float64": [(1, 9), (2, 200), (3, 200), (10, 100), (31, 40), (32, 40), (33, 40)]
    + [(64, 24), (65, 24), (1000, 9), (9000, 2)],
}  # fmt: skip
CASES = [(dtype, *size) for dtype, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(("dtype", "classes", "samples"), CASES)
@pytest.mark.parametrize("layout", ["rows", "class axis first", "column by column"])
def test_class_indices(fl, dtype, classes, samples, layout):
    x, target = rows(dtype, classes, samples)
    want_grad, want_hess, _, _ = exact_rows(dtype, classes, samples)
    if layout == "class axis first":
        turned = np.ascontiguousarray(x.T)
        grad, hess = (r.T for r in fl.cross_entropy_grad_and_hess(turned, target, axis=0))
    else:
        x = np.asfortranarray(x) if layout == "column by column" else x
        grad, hess = fl.cross_entropy_grad_and_hess(x, target)
    assert grad.dtype == hess.dtype == x.dtype
    assert_within(grad, want_grad)
    assert_within(hess, want_hess)


@pytest.mark.parametrize("dtype", FLOATS)
def test_class_axis_in_the_middle(fl, dtype):
    x, target = rows(dtype, 10, SIZES[dtype][3][1])
    want_grad, want_hess, _, _ = exact_rows(dtype, 10, SIZES[dtype][3][1])
    stacked = np.ascontiguousarray(x.reshape(4, -1, 10).transpose(0, 2, 1))
    results = fl.cross_entropy_grad_and_hess(stacked, target.reshape(4, -1))
    for got, want in zip(results, (want_grad, want_hess), strict=True):
        assert_within(np.ascontiguousarray(got.transpose(0, 2, 1)).reshape(x.shape), want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 10, 65])
@pytest.mark.parametrize("order", ["C", "F"])
def test_weights_and_ignored_samples(fl, dtype, classes, order):
    x, target = rows(dtype, classes, 60)
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.1, 5.0, classes)
    sample_weight = rng.uniform(0.1, 3.0, 60)
    ignored = np.arange(60) % 7 == 3
    given = np.where(ignored, -100, target)
    x = np.array(x, order=order)
    x[3] = np.nan  # an ignored sample's logits have no say
    grad, hess = fl.cross_entropy_grad_and_hess(
        x, given, weight=weight, sample_weight=sample_weight
    )
    assert (grad[ignored] == 0).all() and (hess[ignored] == 0).all()
    for options in ({"softcap": 5.0}, {"temperature": 0.5}, {"z_loss": 0.1}):
        pair = fl.cross_entropy_grad_and_hess(x, given, **options)
        assert all((part[ignored] == 0).all() for part in pair)
        assert all(np.isfinite(part).all() for part in pair)
    kept = ~ignored
    want_grad, want_hess, _, _ = reference(
        x[kept], one_hot(target[kept], classes, weight), exact=dtype == "float64",
        factor=sample_weight[kept][:, None],
    )  # fmt: skip
    assert_within(grad[kept], want_grad)
    assert_within(hess[kept], want_hess)


def test_nothing_to_do(fl):
    for shape in ((0, 3), (0, 0)):
        grad, hess = fl.cross_entropy_grad_and_hess(np.zeros(shape), np.zeros(0, int))
        assert grad.shape == hess.shape == shape
    grad, hess = fl.binary_cross_entropy_with_logits_grad_and_hess(np.zeros(0), np.zeros(0))
    assert grad.shape == hess.shape == (0,)


def test_special_values(fl):
    """A class of probability 0 has both derivatives 0; NaN and +inf leave no answer."""
    x = np.array([[0.0, -np.inf, 0.0], [np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0]])
    grad, hess = fl.cross_entropy_grad_and_hess(x, [0, 0, 0])
    np.testing.assert_array_equal(hess[0], [0.25, 0.0, 0.25])
    np.testing.assert_array_equal(grad[0], [-0.5, 0.0, 0.5])
    assert np.isnan(grad[1:]).all() and np.isnan(hess[1:]).all()


# ---- c) the other options --------------------------------------------------------------------

OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-3},
    "z_loss and smoothing": {"z_loss": 0.5, "label_smoothing": 0.3},
    "temperature": {"temperature": 2.5},
    "softcap": {"softcap": 5.0},
    "all": {"softcap": 20.0, "temperature": 0.7, "z_loss": 1e-2, "label_smoothing": 0.05},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("target_kind", ["indices", "probabilities"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [3, 40])
@pytest.mark.parametrize("order", ["C", "F"])
def test_options(fl, name, target_kind, dtype, classes, order):
    options = dict(OPTIONS[name])
    rng = np.random.default_rng(classes)
    x = np.asarray(rng.standard_normal((24, classes)) * 3.0, dtype, order=order)
    weight = rng.uniform(0.5, 2.0, classes)
    sample_weight = rng.uniform(0.5, 2.0, 24)
    smoothing = options.pop("label_smoothing", 0.0)
    if target_kind == "indices":
        target = rng.integers(0, classes, 24)
        a, w = one_hot(target, classes, weight, smoothing), weight[target][:, None]
    else:
        target = rng.dirichlet(np.ones(classes), 24).astype(dtype)
        a = weight * ((1.0 - smoothing) * target.astype(np.float64) + smoothing / classes)
        w = 1.0
    grad, hess = fl.cross_entropy_grad_and_hess(
        x, target, weight=weight, sample_weight=sample_weight, label_smoothing=smoothing, **options
    )
    want_grad, want_hess, grad_size, hess_size = reference(
        x, a, exact=dtype == "float64", w=w, factor=sample_weight[:, None], **options
    )
    # A rounded z makes exp(z) wrong by |z| ulp.
    changed = "temperature" in options or "softcap" in options
    scale = 1.0 + float(np.abs(x).max()) if changed and dtype == "float64" else 1.0
    limit = (LIMIT + 3 * ROUNDING) * scale  # weight, sample_weight, and what the option adds
    assert_within(grad, want_grad, grad_size, limit)
    assert_within(hess, want_hess, hess_size, limit)


# ---- d) binary losses ------------------------------------------------------------------------


def binary_logits(dtype: str) -> np.ndarray:
    last = 80.0 if dtype == "float32" else 600.0
    x = np.concatenate([np.linspace(-20, 20, 161), np.geomspace(1e-6, last, 60), [0.0]])
    return np.concatenate([x, -x]).astype(dtype)


def exact_bce(x, t, w, positive):
    """w (t P + 1 − t) p (1 − p), and the gradient's two terms."""
    with mpmath.workprec(oracle.PRECISION):
        grads, hesses, sizes = [], [], []
        for row in zip(x, t, w, positive, strict=True):
            v, u, f, k = (mpmath.mpf(float(value)) for value in row)
            p, q = oracle.exact_sigmoid(v), oracle.exact_sigmoid(-v)
            grads.append(f * ((1 - u) * p - u * k * q))
            sizes.append(float(f * ((1 - u) * p + u * k * q)))
            hesses.append(f * (u * k + 1 - u) * p * q)
        return oracle.as_exact(grads), oracle.as_exact(hesses), np.array(sizes)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(fl, dtype, targets, weighted):
    x = binary_logits(dtype)
    rng = np.random.default_rng(1)
    t = rng.integers(0, 2, x.size) if targets == "hard" else rng.uniform(0, 1, x.size)
    options = {}
    w = positive = np.ones(x.size)
    if weighted:
        w, positive = rng.uniform(0.1, 9.0, x.size), rng.uniform(0.1, 9.0, x.size)
        options = {"weight": w, "pos_weight": positive}
    if targets == "soft":
        t = t.astype(dtype)
    grad, hess = fl.binary_cross_entropy_with_logits_grad_and_hess(x, t, **options)
    want_grad, want_hess, size = exact_bce(x, t, w, positive)
    limit = LIMIT + 2 * ROUNDING if weighted else LIMIT
    assert_within(grad, want_grad, None if targets == "hard" else size, limit)
    assert_within(hess, want_hess, limit=limit)


def exact_focal(x, t, alpha, gamma):
    """Two derivatives of a u^γ ce, and the sizes of the terms of each."""
    grads, hesses, sizes = [], [], []
    with mpmath.workprec(3 * oracle.PRECISION):
        a1, g = mpmath.mpf(alpha), mpmath.mpf(gamma)
        for v, u in zip(x, t, strict=True):
            v, u = mpmath.mpf(float(v)), mpmath.mpf(float(u))
            a = a1 * u + (1 - a1) * (1 - u)
            p, q = oracle.exact_sigmoid(v), oracle.exact_sigmoid(-v)
            ce = u * oracle.exact_softplus(-v) + (1 - u) * oracle.exact_softplus(v)
            ce1, ce2 = (1 - u) * p - u * q, p * q
            m, m1 = u * q + (1 - u) * p, (1 - 2 * u) * p * q
            m2 = m1 * (q - p)
            terms = [m**g * ce2]
            if g != 0:
                terms += [2 * g * m ** (g - 1) * m1 * ce1, g * m ** (g - 1) * m2 * ce]
            if g not in (0, 1):
                terms += [g * (g - 1) * m ** (g - 2) * m1**2 * ce]
            slopes = [m**g * (1 - u) * p, -(m**g) * u * q]
            slopes += [g * m ** (g - 1) * m1 * ce] if g != 0 else []
            grads.append(a * sum(slopes))
            hesses.append(a * sum(terms))
            sizes.append([float(a * sum(abs(term) for term in s)) for s in (slopes, terms)])
    return oracle.as_exact(grads), oracle.as_exact(hesses), *np.array(sizes).T


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_focal_loss(fl, dtype, gamma, targets):
    x = binary_logits(dtype)
    x = x[np.abs(x) < (20 if dtype == "float32" else 100)]  # (1 − p)^γ stays a normal number
    rng = np.random.default_rng(2)
    t = rng.integers(0, 2, x.size)
    if targets == "soft":
        t = rng.uniform(0.1, 0.9, x.size).astype(dtype)
    grad, hess = fl.sigmoid_focal_loss_grad_and_hess(x, t, alpha=0.25, gamma=gamma)
    want_grad, want_hess, grad_size, size = exact_focal(x, t, 0.25, gamma)
    # (1 − p)^γ and its logarithm are rounded once each in float64: `docs/numerics.md`.
    limit = 4.0 + 3.0 * gamma if dtype == "float64" else LIMIT
    assert_within(grad, want_grad, grad_size, limit)
    assert_within(hess, want_hess, size, limit)
    if gamma >= 1.0 and targets == "hard":
        assert (hess < 0).any()  # exact also where the loss is concave


@pytest.mark.parametrize(
    "name", ["binary_cross_entropy_with_logits_grad_and_hess", "sigmoid_focal_loss_grad_and_hess"]
)
def test_ignored_and_weighted_elements(fl, name):
    x = np.linspace(-3, 3, 300).reshape(30, 10)
    t = np.arange(300).reshape(30, 10) % 2
    ignored = np.arange(300).reshape(30, 10) % 7 == 0
    weights = np.linspace(0.5, 2.0, 30)[:, None]
    function = getattr(fl, name)
    grad, hess = function(x, t)
    got = function(
        np.where(ignored, np.nan, x), np.where(ignored, -1, t), sample_weight=weights,
        ignore_index=-1,
    )  # fmt: skip
    for value, plain in zip(got, (grad, hess), strict=True):
        assert (value[ignored] == 0).all()
        np.testing.assert_allclose(value[~ignored], (plain * weights)[~ignored], rtol=1e-15)


@cache
def exact_softmax_focal(dtype: str, classes: int, gamma: float):
    """Both derivatives of rows() by the formulas of the docstring, and the sizes of their terms."""
    x, target = rows(dtype, classes, 40)
    grads, hesses, grad_sizes, sizes = [], [], [], []
    with mpmath.workprec(3 * oracle.PRECISION):
        g = mpmath.mpf(gamma)
        for row, t in zip(x, target, strict=True):
            p, q, nll = oracle.exact_softmax_parts(row)
            with mpmath.workprec(3 * oracle.PRECISION):
                u, pt, loss = q[t], p[t], nll[t]
                slope = [u**g, g * u ** (g - 1) * pt * loss if g else mpmath.mpf(0)]
                bend = [mpmath.mpf(0)]
                if g:
                    bend = [2 * g * u ** (g - 1) * pt, -g * u ** (g - 1) * pt * loss]
                    bend += [g * (g - 1) * u ** (g - 2) * pt**2 * loss]
                d = [-u if c == t else p[c] for c in range(classes)]
                grads.append([sum(slope) * v for v in d])
                grad_sizes.append([float(sum(slope) * abs(v)) for v in d])
                hesses.append([
                    sum(bend) * v * v + sum(slope) * p[c] * q[c] for c, v in enumerate(d)
                ])  # fmt: skip
                sizes.append([
                    float(sum(abs(b) for b in bend) * v * v + sum(slope) * p[c] * q[c])
                    for c, v in enumerate(d)
                ])  # fmt: skip
    return oracle.as_exact(grads), oracle.as_exact(hesses), np.array(grad_sizes), np.array(sizes)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("classes", [2, 10, 150])
@pytest.mark.parametrize("order", ["C", "F"])
def test_softmax_focal_loss(fl, dtype, gamma, classes, order):
    x, target = rows(dtype, classes, 40)
    want_grad, want_hess, grad_size, size = exact_softmax_focal(dtype, classes, gamma)
    # u**gamma stays a normal number.
    normal = size > 1e3 * np.finfo(dtype).tiny
    grad, hess = fl.softmax_focal_loss_grad_and_hess(np.array(x, order=order), target, gamma=gamma)
    # What the exponentials are off, u**gamma is gamma times.
    limit = LIMIT + (3.0 if dtype == "float64" else 1.0) * gamma
    for got, want, terms in ((grad, want_grad, grad_size), (hess, want_hess, size)):
        assert_within(got[normal], Exact(want.high[normal], want.low[normal]), terms[normal], limit)
    if gamma >= 1.0 and classes > 2:
        assert (hess < 0).any()  # exact also where the loss is concave


@pytest.mark.parametrize("classes", [3, 40, 200])
@pytest.mark.parametrize("dtype", FLOATS)
def test_options_of_the_softmax_focal_loss(fl, dtype, classes):
    x, target = rows(dtype, classes, 40)
    plain = fl.softmax_focal_loss_grad_and_hess(x, target, gamma=1.5)
    rng = np.random.default_rng(0)
    alpha, weight = rng.uniform(0.5, 2, classes), rng.uniform(0.5, 2, 40)
    ignored = np.arange(40) % 5 == 2
    got = fl.softmax_focal_loss_grad_and_hess(
        np.where(ignored[:, None], np.nan, x), np.where(ignored, -7, target), gamma=1.5,
        alpha=alpha, sample_weight=weight, ignore_index=-7,
    )  # fmt: skip
    factor = np.where(ignored, 0, alpha[target] * weight)[:, None]
    for value, wanted in zip(got, plain, strict=True):
        assert (value[ignored] == 0).all()
        # Second derivatives are sums of terms of two signs.
        np.testing.assert_allclose(
            value[~ignored], (wanted * factor)[~ignored],
            rtol=1e3 * epsilon(dtype), atol=np.finfo(dtype).tiny,
        )  # fmt: skip
    first = fl.softmax_focal_loss_grad_and_hess(
        np.ascontiguousarray(x.T), target, gamma=1.5, axis=0
    )
    for value, wanted in zip(first, plain, strict=True):
        np.testing.assert_allclose(
            value.T, wanted, rtol=1e3 * epsilon(dtype), atol=np.finfo(dtype).tiny
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["cross_entropy", "softmax_focal_loss"])
@pytest.mark.parametrize("classes", [2, 5, 200])
def test_special_logits(fl, dtype, name, classes):
    """Ties, masked classes and targets; a row that has no answer is NaN alone."""
    second = getattr(fl, f"{name}_grad_and_hess")
    x = np.zeros((6, classes), dtype)
    x[1, 1:] = -np.inf  # one class is left, the target
    x[2, 0] = -np.inf  # the target is masked
    x[3, 1] = np.nan
    x[4, 1] = np.inf
    x[5] = -np.inf
    target = np.zeros(6, int)
    grad, hess = second(x, target)
    assert np.isnan(grad[3:]).all() and np.isnan(hess[3:]).all()
    assert (grad[1] == 0).all() and (hess[1] == 0).all()
    p = 1 / (classes - 1)
    np.testing.assert_allclose(grad[2], np.where(np.arange(classes) == 0, -1, p), rtol=1e-6)
    np.testing.assert_allclose(
        hess[2], np.where(np.arange(classes) == 0, 0, p * (1 - p)), rtol=1e-6, atol=1e-12
    )
    # All alike: the target's is one less.
    u, log = 1 - 1 / classes, np.log(classes)
    slope = 1.0 if name == "cross_entropy" else u * u + 2 * u / classes * log
    np.testing.assert_allclose(
        grad[0], slope * np.where(np.arange(classes) == 0, -u, 1 / classes), rtol=1e-6
    )
    if name == "cross_entropy":
        np.testing.assert_allclose(hess[0], u / classes, rtol=1e-6)


# ---- e) derivatives taken numerically, and a peer --------------------------------------------


def five_point(function, x, step=1e-3):
    """Derivative of each output with respect to the element at its own place."""
    f = [function(x + k * step) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy_against_its_own_gradient(fl, options):
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((5, 6)) * 2, rng.integers(0, 6, 5)
    grad, hess = fl.cross_entropy_grad_and_hess(x, target, **options)
    np.testing.assert_allclose(
        grad, fl.cross_entropy_value_and_grad(x, target, reduction="sum", **options)[1],
        rtol=1e-13, atol=1e-15,
    )  # fmt: skip
    for c in range(6):

        def slope(v, c=c):
            moved = x.copy()
            moved[:, c] = v
            return fl.cross_entropy_value_and_grad(moved, target, reduction="sum", **options)[1][
                :, c
            ]

        np.testing.assert_allclose(hess[:, c], five_point(slope, x[:, c]), atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0, 2.0, 3.0])
def test_softmax_focal_loss_against_its_own_gradient(fl, gamma):
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 5)) * 2, rng.integers(0, 5, 8)
    options = {"gamma": gamma, "alpha": rng.uniform(0.5, 2, 5)}
    grad, hess = fl.softmax_focal_loss_grad_and_hess(x, target, **options)
    gradient = fl.softmax_focal_loss_value_and_grad
    np.testing.assert_allclose(
        grad, gradient(x, target, reduction="sum", **options)[1], rtol=1e-13, atol=1e-15
    )
    for c in range(5):

        def slope(v, c=c):
            moved = x.copy()
            moved[:, c] = v
            return gradient(moved, target, reduction="sum", **options)[1][:, c]

        np.testing.assert_allclose(hess[:, c], five_point(slope, x[:, c]), atol=1e-10)


def test_jax(fl):
    """JAX's Hessians of the losses, their diagonals."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((6, 4)) * 2, rng.integers(0, 4, 6)

    def cross_entropy(z, t):
        return -jax.nn.log_softmax(z)[t]

    def focal(z, t):
        return (1 - jax.nn.softmax(z)[t]) ** 2.5 * cross_entropy(z, t)

    for loss, ours in (
        (cross_entropy, fl.cross_entropy_grad_and_hess(x, target)),
        (focal, fl.softmax_focal_loss_grad_and_hess(x, target, gamma=2.5)),
    ):
        for row, t, grad, hess in zip(x, target, *ours, strict=True):
            np.testing.assert_allclose(grad, jax.grad(loss)(row, t), rtol=1e-10)
            np.testing.assert_allclose(
                hess, np.diag(jax.hessian(loss)(row, t)), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize(
    ("name", "options"),
    [("binary_cross_entropy_with_logits", {"pos_weight": 3.0}), ("binary_cross_entropy_with_logits",
     {}), ("sigmoid_focal_loss", {"gamma": 2.0}), ("sigmoid_focal_loss", {"gamma": 1.3})],
)  # fmt: skip
def test_binary_losses_against_their_own_gradients(fl, name, options):
    x, t = np.linspace(-4, 4, 40), np.linspace(0, 1, 40)
    _, hess = getattr(fl, f"{name}_grad_and_hess")(x, t, **options)
    gradient = getattr(fl, f"{name}_value_and_grad")

    def slope(v):
        return gradient(v, t, reduction="sum", **options)[1]

    np.testing.assert_allclose(hess, five_point(slope, x), atol=1e-10)


def test_scikit_learn(fl):
    """HalfMultinomialLoss has the same gradient and the same diagonal."""
    loss = pytest.importorskip("sklearn._loss.loss").HalfMultinomialLoss(n_classes=7)
    rng = np.random.default_rng(0)
    x, target = np.asfortranarray(rng.standard_normal((50, 7)) * 3), rng.integers(0, 7, 50)
    weight = rng.uniform(0.5, 2.0, 50)
    theirs = loss.gradient_hessian(target.astype(float), x, weight)
    ours = fl.cross_entropy_grad_and_hess(x, target, sample_weight=weight)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


# ---- f) memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_results_lie_like_the_logits(fl, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((33, 5)).astype(dtype_of(dtype))
    target = rng.integers(0, 5, 33)
    probabilities = rng.dirichlet(np.ones(5), 33)
    for t in (target, probabilities):
        rowwise = fl.cross_entropy_grad_and_hess(x, t)
        columns = fl.cross_entropy_grad_and_hess(np.asfortranarray(x), t)
        for row, column in zip(rowwise, columns, strict=True):
            assert row.flags.c_contiguous and column.flags.f_contiguous
            assert row.dtype == column.dtype == x.dtype
            np.testing.assert_allclose(
                row.astype(float), column.astype(float), rtol=4 * epsilon(dtype)
            )
    # An array that is both has one order.
    grad, hess = fl.cross_entropy_grad_and_hess(x[:1], target[:1])
    assert grad.flags.c_contiguous and hess.flags.c_contiguous


@pytest.mark.parametrize("order", ["C", "F"])
def test_out(fl, order):
    rng = np.random.default_rng(0)
    x = np.array(rng.standard_normal((70, 4)), order=order)
    target = rng.integers(0, 4, 70)
    want = fl.cross_entropy_grad_and_hess(x, target)
    out = np.full_like(x, 7), np.full_like(x, 7)
    got = fl.cross_entropy_grad_and_hess(x, target, out=out)
    for mine, returned, wanted in zip(out, got, want, strict=True):
        assert np.shares_memory(mine, returned)
        np.testing.assert_array_equal(mine, wanted)
    for place in (0, 1):  # over the logits themselves
        pair = [np.empty_like(x), np.empty_like(x)]
        pair[place] = x.copy(order="K")
        fl.cross_entropy_grad_and_hess(pair[place], target, out=tuple(pair))
        for mine, wanted in zip(pair, want, strict=True):
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(
    "name", ["binary_cross_entropy_with_logits_grad_and_hess", "sigmoid_focal_loss_grad_and_hess"]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_out_of_binary_losses(fl, name, dtype):
    function = getattr(fl, name)
    x, t = np.linspace(-3, 3, 3001).astype(dtype), np.arange(3001) % 2
    want = function(x, t)
    for place in (0, 1):
        pair = [np.empty_like(x), np.empty_like(x)]
        pair[place] = x.copy()
        got = function(pair[place], t, out=tuple(pair))
        for mine, returned, wanted in zip(pair, got, want, strict=True):
            assert np.shares_memory(mine, returned)
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("classes", [3, 40])
def test_halves(fl, dtype, classes):
    """Computed in float32, rounded once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, classes)).astype(dtype_of(dtype))
    target = rng.integers(0, classes, 64)
    want_grad, want_hess, _, _ = reference(
        x.astype(np.float32), one_hot(target, classes), exact=False
    )
    for got, want in zip(
        fl.cross_entropy_grad_and_hess(x, target), (want_grad, want_hess), strict=True
    ):
        np.testing.assert_allclose(
            got.astype(float), want.high, rtol=0.51 * epsilon(dtype), atol=1e-7
        )


# ---- g) threads ------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads(fl):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 11))
    target = rng.integers(0, 11, 20_000)
    before = fl.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            fl.set_num_threads(threads)
            results.append([
                *fl.cross_entropy_grad_and_hess(x, target),
                *fl.cross_entropy_grad_and_hess(np.asfortranarray(x), target),
                *fl.binary_cross_entropy_with_logits_grad_and_hess(x, x > 0),
                *fl.sigmoid_focal_loss_grad_and_hess(x, x > 0),
            ])  # fmt: skip
    finally:
        fl.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


# ---- h) criteria and wrong arguments -------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "function", "options"),
    [("CrossEntropyLoss", "cross_entropy", {"weight": [1.0, 2.0, 3.0], "label_smoothing": 0.1}),
     ("SoftmaxFocalLoss", "softmax_focal_loss", {"alpha": [1.0, 2.0, 3.0], "gamma": 1.5}),
     ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", {"pos_weight": 3.0}),
     ("SigmoidFocalLoss", "sigmoid_focal_loss", {"gamma": 1.5, "alpha": 0.4})],
)  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_criteria(fl, criterion, function, options, reduction):
    """The same numbers, whatever the reduction."""
    x = np.linspace(-2, 2, 12).reshape(4, 3)
    over_classes = function in ("cross_entropy", "softmax_focal_loss")
    target = np.array([0, 1, 2, 1]) if over_classes else (x > 0.5)
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    weights = weights if over_classes else weights[:, None]
    made = getattr(fl, criterion)(reduction=reduction, **options)
    got = made.grad_and_hess(x, target, weights)
    want = getattr(fl, f"{function}_grad_and_hess")(x, target, sample_weight=weights, **options)
    for value, wanted in zip(got, want, strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("criterion", ["NLLLoss", "BCELoss", "KLDivLoss"])
def test_losses_without_second_derivatives(criterion):
    with pytest.raises(TypeError, match=f"{criterion} has no second derivatives"):
        getattr(fastloss, criterion)().grad_and_hess(np.full((1, 2), 0.5), [0])


X, TARGET = np.zeros((4, 3)), np.array([0, 1, 2, 0])
WRONG_OUT = {
    "an array": (X.copy(), TypeError, "pair of arrays"),
    "three": ((X.copy(), X.copy(), X.copy()), TypeError, "pair of arrays"),
    "a list in it": ((X.copy(), X.tolist()), TypeError, "NumPy array, got list"),
    "shape": ((X.copy(), np.zeros((3, 4))), ValueError, r"\(4, 3\), got \(3, 4\)"),
    "dtype": ((X.astype(np.float32), X.copy()), TypeError, "float64, got float32"),
    "order": ((X.copy(), np.asfortranarray(X)), ValueError, "contiguous"),
}


@pytest.mark.parametrize("case", WRONG_OUT)
def test_wrong_out(case):
    out, error, message = WRONG_OUT[case]
    with pytest.raises(error, match=message):
        fastloss.cross_entropy_grad_and_hess(X, TARGET, out=out)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits"])
def test_the_pair_must_not_overlap(name):
    """One array twice, or two views of the same memory, could hold neither result."""
    function = getattr(fastloss, f"{name}_grad_and_hess")
    target = TARGET if name == "cross_entropy" else np.ones((4, 3))
    memory = np.zeros(18)
    for out in (
        (memory[:12].reshape(4, 3), memory[:12].reshape(4, 3)),
        (memory[:12].reshape(4, 3), memory[6:].reshape(4, 3)),
    ):
        with pytest.raises(ValueError, match="overlap"):
            function(X, target, out=out)


def test_wrong_arguments():
    with pytest.raises(IndexError, match="5"):
        fastloss.cross_entropy_grad_and_hess(X, [0, 1, 2, 5])
    with pytest.raises(ValueError, match=r"\(3,\)"):
        fastloss.cross_entropy_grad_and_hess(np.asfortranarray(X), [0, 1, 2])
    with pytest.raises(ValueError, match="must be 0 or 1, got 2"):
        fastloss.binary_cross_entropy_with_logits_grad_and_hess([0.0, 1.0], [0, 2])
    with pytest.raises(TypeError, match="reduction"):
        fastloss.cross_entropy_grad_and_hess(X, TARGET, reduction="mean")
