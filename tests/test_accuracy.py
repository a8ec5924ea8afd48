"""Every loss and gradient within 4 ulp of the exact value, at every instruction-set level.

What is exact: for float64, mpmath with 160 bits. For float32 and halves the float64 oracle, whose
own error `test_oracle_is_exact_enough` holds below a thousandth of a float32 ulp: that allows
thousands of samples where mpmath would allow tens. The exact values are computed once and every
level is held to them.

A gradient with several nonzero targets is a difference of terms that can cancel, at any precision:
there 4 ulp are those of the terms. So it is for a soft target of the binary losses.

Layout: a) cross-entropy with class indices, b) with soft targets, c) binary losses, d) building
blocks and scores, e) reductions, f) half precision, g) the oracle.
"""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, dtype_of, loss_dtype
from oracle import Exact

LIMIT = 4.0
SCALES = (0.1, 1.0, 10.0, 60.0)


def assert_exact(got, want: Exact, limit=LIMIT, size=None):
    """At most `limit` ulp off; with `size`, ulp of that instead of the value."""
    got = np.asarray(got)
    error = oracle.ulp_error(got, want)
    if size is not None:
        unit = np.spacing(np.abs(want.high).astype(got.dtype)).astype(np.float64)
        error = error * unit / np.spacing(np.asarray(size).astype(got.dtype))
    worst = np.unravel_index(np.argmax(error), error.shape) if error.size else ()
    assert error.size == 0 or error[worst] <= limit, (
        f"{error[worst]:.3g} ulp at {worst}: got {got[worst]!r}, exact {want.high[worst]!r}"
    )
    assert np.isfinite(got).all()


def near(values) -> Exact:
    """A float64 array that is exact enough for a narrower type."""
    return Exact(np.asarray(values), np.zeros(np.shape(values)))


# ---- a) cross-entropy with class indices -----------------------------------------------------


def confident_gaps(dtype) -> np.ndarray:
    """How far a target's logit is above the rest: losses from 0.3 to the smallest normal numbers.

    exp(−87) is 1.6e-38 and exp(−708) 3e-308; the larger the gap, the smaller the loss.
    """
    last = 86.0 if dtype == "float32" else 700.0
    return np.concatenate([np.arange(1.0, 20.0, 2.3), np.linspace(20.0, last, 25)])


@cache
def rows(dtype: str, classes: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets: scales, and targets that are random, certain, hopeless, confident."""
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((samples, classes))
    x *= np.resize(SCALES, samples)[:, None]
    x = x.astype(dtype)
    kind = np.arange(samples) // len(SCALES) % 4
    target = rng.integers(0, classes, samples)
    target = np.where(kind == 1, x.argmax(axis=1), target)
    target = np.where(kind == 2, x.argmin(axis=1), target)
    gaps = confident_gaps(dtype)
    for turn, i in enumerate(np.flatnonzero(kind == 3)):
        others = np.delete(x[i] / dtype_of(dtype).type(20.0), target[i])
        x[i] = np.insert(others, target[i], others.max() + gaps[turn % gaps.size])
    if samples > 8:
        x[4].sort()  # the running maximum rises all the way
        x[8] += 700  # far from 0, but well inside the exponential's range
        x[9] -= 1e4
    return x, target


@cache
def exact_rows(dtype: str, classes: int, samples: int) -> tuple[Exact, Exact]:
    x, target = rows(dtype, classes, samples)
    if dtype == "float32":
        reference = oracle.cross_entropy(x, target)
        return near(reference.losses), near(reference.gradients)
    pairs = [oracle.exact_cross_entropy(row, t) for row, t in zip(x, target, strict=True)]
    return oracle.as_exact([loss for loss, _ in pairs]), oracle.as_exact([g for _, g in pairs])


# mpmath takes 20 µs an element.
SIZES = {
    "float32": [(2, 4000), (3, 4000), (10, 2000), (33, 1000), (64, 500), (65, 500), (100, 500)]
    + [(1000, 200), (4097, 40), (9000, 30), (100_000, 16)],
    "float64": [(2, 300), (3, 300), (10, 300), (33, 100), (64, 64), (65, 64), (100, 64)]
    + [(1000, 16), (8200, 3), (100_000, 1)],
}
CASES = [(dtype, *size) for dtype, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(("dtype", "classes", "samples"), CASES)
def test_cross_entropy(fl, dtype, classes, samples):
    x, target = rows(dtype, classes, samples)
    losses, gradients = exact_rows(dtype, classes, samples)
    assert_exact(fl.cross_entropy(x, target, reduction="none"), losses)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    assert_exact(loss, losses)
    assert_exact(gradient, gradients)


@pytest.mark.parametrize(("dtype", "classes", "samples"), [c for c in CASES if c[1] <= 10_000])
def test_class_axis_first(fl, dtype, classes, samples):
    """The same samples, class-major: another way through the kernels."""
    x, target = rows(dtype, classes, samples)
    losses, gradients = exact_rows(dtype, classes, samples)
    turned = np.ascontiguousarray(x.T)
    assert_exact(fl.cross_entropy(turned, target, axis=0, reduction="none"), losses)
    loss, gradient = fl.cross_entropy_value_and_grad(turned, target, axis=0, reduction="none")
    assert_exact(loss, losses)
    assert_exact(gradient.T, gradients)


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_down_to_the_smallest_normal(dtype):
    """The confident samples above really reach 1e-37 (float32) and 1e-300 (float64)."""
    losses, _ = exact_rows(dtype, 2, SIZES[dtype][0][1])
    least = losses.high[losses.high > 0].min()
    assert least < (1e-37 if dtype == "float32" else 1e-300)


@pytest.mark.parametrize("dtype", FLOATS)
def test_documented_example(fl, dtype):
    """Where PyTorch, optax and scikit-learn answer 0.0."""
    x = np.array([[20, 0, -1]], dtype)
    loss, gradient = oracle.exact_cross_entropy(x[0], 0)
    assert_exact(fl.cross_entropy(x, [0], reduction="none"), oracle.as_exact([loss]))
    got = fl.cross_entropy_value_and_grad(x, [0])[1]
    assert_exact(got, oracle.as_exact([gradient]))
    np.testing.assert_allclose(float(loss), 2.81941e-9, rtol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [10, 200])
def test_masked_classes(fl, dtype, classes):
    """Logits of −inf, among which the exact answers are those of the other classes."""
    x, target = rows(dtype, classes, 64)
    losses, gradients = exact_rows(dtype, classes, 64)
    wide = np.full((64, 2 * classes), -np.inf, dtype)
    wide[:, ::2] = x
    loss, gradient = fl.cross_entropy_value_and_grad(wide, 2 * target, reduction="none")
    assert_exact(loss, losses)
    assert_exact(gradient[:, ::2], gradients)
    assert not gradient[:, 1::2].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fill", [-1e4, -1e9, -3e38])
@pytest.mark.parametrize("masked", [1024, 9000, 16_384])
def test_long_rows_that_begin_far_below(fl, dtype, fill, masked):
    """The first classes are far below the range of exponentials, the others lie within it."""
    rng = np.random.default_rng(masked)
    x = (rng.standard_normal((4, 20_000)) * np.array([[0.1], [1.0], [10.0], [30.0]])).astype(dtype)
    x[:, :masked] = fill
    target = np.array([19_000, x[1].argmax(), x[2].argmax(), 17_000])
    exact = oracle.softmax_loss(x, target)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    unit = np.spacing(exact.losses.astype(dtype)).astype(np.longdouble)
    assert (np.abs(loss - exact.losses) / unit).max() <= LIMIT
    unit = np.spacing(np.abs(exact.gradients).astype(dtype)).astype(np.longdouble)
    assert (np.abs(gradient - exact.gradients) / unit).max() <= LIMIT


# ---- b) cross-entropy with soft targets ------------------------------------------------------


@cache
def soft(dtype: str, classes: int, samples: int):
    rng = np.random.default_rng(classes)
    x, target = rows(dtype, classes, samples)
    p = rng.gamma(0.5, size=x.shape)
    p /= p.sum(axis=1, keepdims=True)
    p[::2] = np.eye(classes)[target[::2]]  # one-hot: a confident sample needs all its digits
    return x, p.astype(dtype), rng.uniform(0.5, 2.0, classes).astype(dtype)


SOFT_SIZES = {
    "float32": [(2, 1000), (10, 1000), (100, 200), (1000, 60), (1500, 24), (9000, 12)],
    "float64": [(2, 100), (10, 60), (100, 20), (1000, 4), (1500, 2)],
}
SOFT_CASES = [(dtype, *size) for dtype, sizes in SOFT_SIZES.items() for size in sizes]


@cache
def exact_soft(dtype, classes, samples, smoothing) -> tuple[Exact, Exact, np.ndarray]:
    x, p, weight = soft(dtype, classes, samples)
    if dtype == "float32":
        reference = oracle.cross_entropy(x, p, weight=weight, label_smoothing=smoothing)
        a = weight * ((1.0 - smoothing) * p.astype(np.float64) + smoothing / classes)
        one_hot = np.count_nonzero(a, axis=1, keepdims=True) == 1
        size = oracle.softmax(x) * a.sum(axis=1, keepdims=True) + a
        size = np.where(one_hot, np.abs(reference.gradients), size)
        return near(reference.losses), near(reference.gradients), size
    triples = [
        oracle.exact_soft_cross_entropy(row, t, weight, smoothing)
        for row, t in zip(x, p, strict=True)
    ]
    losses, gradients, sizes = zip(*triples, strict=True)
    return oracle.as_exact(losses), oracle.as_exact(gradients), oracle.as_exact(sizes).high


@pytest.mark.parametrize(("dtype", "classes", "samples"), SOFT_CASES)
@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_probabilities(fl, dtype, classes, samples, smoothing):
    x, p, weight = soft(dtype, classes, samples)
    losses, gradients, size = exact_soft(dtype, classes, samples, smoothing)
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": "none"}
    assert_exact(fl.cross_entropy(x, p, **options), losses)
    loss, gradient = fl.cross_entropy_value_and_grad(x, p, **options)
    assert_exact(loss, losses)
    assert_exact(gradient, gradients, size=size)


@pytest.mark.parametrize(("dtype", "classes", "samples"), SOFT_CASES)
def test_smoothed_indices(fl, dtype, classes, samples):
    x, _ = rows(dtype, classes, samples)
    _, p, _ = soft(dtype, classes, samples)
    target = p.argmax(axis=1)[::2]  # the one-hot rows
    x, p = x[::2].copy(), p[::2]
    if dtype == "float32":
        reference = oracle.cross_entropy(x, target, label_smoothing=0.125)
        losses, gradients = near(reference.losses), near(reference.gradients)
        size = oracle.softmax(x) + 0.875 * p + 0.125 / classes
    else:
        triples = [
            oracle.exact_soft_cross_entropy(row, t, None, 0.125)
            for row, t in zip(x, p, strict=True)
        ]
        losses, gradients, sizes = map(oracle.as_exact, zip(*triples, strict=True))
        size = sizes.high
    options = {"label_smoothing": 0.125, "reduction": "none"}
    assert_exact(fl.cross_entropy(x, target, **options), losses)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, **options)
    assert_exact(loss, losses)
    assert_exact(gradient, gradients, size=size)


SOFT_CLASSES = [2, 33, 64, 65, 96, 129, 1000, 1025, 8192, 8200]  # either side of every block


def hold_to_oracle(fl, x, target, larger=False, **options):
    """Forward, value and gradient of float32 or half logits.

    A gradient is held to its two terms, with `larger` to the larger one.
    """
    reference = oracle.cross_entropy(x, target, **options)
    losses = near(reference.losses)
    one_hot = target
    if target.ndim < x.ndim:
        one_hot = np.arange(x.shape[1]) == target[:, None]
    epsilon = options.get("label_smoothing", 0.0)
    a = options.get("weight", 1.0) * ((1.0 - epsilon) * one_hot + epsilon / x.shape[1])
    drawn = oracle.softmax(x) * a.sum(axis=1, keepdims=True)
    size = np.maximum(drawn, a) if larger else drawn + a
    for axis in (1, 0):
        if axis == 0:
            x = np.ascontiguousarray(x.T)
            target = np.ascontiguousarray(target.T)
        loss = fl.cross_entropy(x, target, axis=axis, reduction="none", **options)
        assert_exact(loss, losses)
        loss, gradient = fl.cross_entropy_value_and_grad(
            x, target, axis=axis, reduction="none", **options
        )
        assert_exact(loss, losses)
        gradient = np.moveaxis(gradient, axis, 1)
        assert_exact(gradient, near(reference.gradients), size=size)


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("classes", SOFT_CLASSES)
def test_soft_targets_of_every_length(fl, dtype, classes):
    """Weights of which some are 0, ties for the largest logit, maxima out of every range."""
    rng = np.random.default_rng(classes)
    n = 20 if classes <= 1025 else 6
    x = rng.standard_normal((n, classes)) * np.resize(SCALES, n)[:, None]
    x[1] = np.round(x[1])
    x[2, [0, -1]] = 5.0
    x[3] += {"float32": 1e5, "bfloat16": 2500.0, "float16": 1500.0}[dtype]
    x[4] += 1200  # within double's range of exponentials, beyond that of floats
    x = x.astype(dtype_of(dtype))
    index = rng.integers(0, classes, n)
    index[::2] = x[::2].astype(np.float64).argmax(axis=1)
    p = rng.gamma(0.5, size=x.shape).astype(np.float32)
    weight = rng.uniform(0.5, 2.0, classes)
    weight[rng.random(classes) < 0.2] = 0.0
    weight[index[0]] = 1.0
    for target in (index, p):
        hold_to_oracle(fl, x, target, label_smoothing=0.125)
        hold_to_oracle(fl, x, target, label_smoothing=0.125, weight=weight)


@pytest.mark.parametrize("classes", [2, 64, 65, 1025, 8200])
def test_gradients_that_all_but_cancel(fl, classes):
    """A float32 gradient is right next to the larger of its terms, and the loss in itself."""
    rng = np.random.default_rng(classes)
    p = rng.uniform(0.5, 1.0, (4, classes)).astype(np.float32)
    sign = np.where(np.arange(classes) % 2, 1.0, -1.0)
    x = (np.log(p.astype(np.float64)) + 1e-5 * sign).astype(np.float32)
    hold_to_oracle(fl, x, p, larger=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 64, 65, 1025])
def test_one_probability_is_all_but_one(fl, dtype, classes):
    """At the largest logit neither the other probabilities nor the other targets are lost."""
    x = np.full((2, classes), -200.0, dtype)
    x[:, -1], x[:, 0] = 0.0, (60.0, 40.0)
    p = np.zeros_like(x)
    p[:, -1], p[:, 0] = 1e-20, 1.0
    triples = [oracle.exact_soft_cross_entropy(*pair) for pair in zip(x, p, strict=True)]
    losses, gradients, _ = map(oracle.as_exact, zip(*triples, strict=True))
    loss, gradient = fl.cross_entropy_value_and_grad(x, p, reduction="none")
    assert_exact(loss, losses)
    assert_exact(fl.cross_entropy(x, p, reduction="none"), losses)
    assert_exact(gradient[:, 0], Exact(gradients.high[:, 0], gradients.low[:, 0]))


@pytest.mark.parametrize("classes", [10, 100])
def test_confident_loss_with_a_large_weight(fl, classes):
    """Terms too small for a float next to the largest one count where a weight makes them large."""
    x = np.zeros((1, classes), np.float32)
    x[0, 3] = 150.0
    p = np.eye(classes, dtype=np.float32)[[3]]
    weight = np.full(classes, 1e30)
    hold_to_oracle(fl, x, p, weight=weight)


# ---- c) binary losses ------------------------------------------------------------------------


@cache
def elements(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets 0 and 1, weights, weights of the positive."""
    rng = np.random.default_rng(0)
    count = 4000 if dtype == "float32" else 300
    last = 86.0 if dtype == "float32" else 700.0
    parts = [rng.standard_normal(count) * scale for scale in SCALES]
    parts += [np.linspace(-last, last, count), rng.uniform(-2e-3, 2e-3, count)]
    x = np.concatenate([*parts, [0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4]]).astype(dtype)
    target = rng.integers(0, 2, x.size).astype(dtype)
    weight, pos_weight = rng.uniform(0.5, 2.0, (2, x.size)).astype(dtype)
    return x, target, weight, pos_weight


@cache
def exact_elements(dtype: str, weighted: bool) -> tuple[Exact, Exact]:
    x, target, weight, pos_weight = elements(dtype)
    if not weighted:
        weight = pos_weight = np.ones(x.size)
    if dtype == "float32":
        reference = oracle.binary_cross_entropy_with_logits(
            x, target, weight=weight, pos_weight=pos_weight
        )
        return near(reference.losses), near(reference.gradients)
    pairs = [
        oracle.exact_binary_cross_entropy_with_logits(*element)
        for element in zip(x, target, weight, pos_weight, strict=True)
    ]
    return oracle.as_exact([loss for loss, _ in pairs]), oracle.as_exact([g for _, g in pairs])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_binary_cross_entropy_with_logits(fl, dtype, weighted):
    x, target, weight, pos_weight = elements(dtype)
    losses, gradients = exact_elements(dtype, weighted)
    options = {"weight": weight, "pos_weight": pos_weight} if weighted else {}
    alone = fl.binary_cross_entropy_with_logits(x, target, reduction="none", **options)
    assert_exact(alone, losses)
    loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(
        x, target, reduction="none", **options
    )
    assert_exact(loss, losses)
    assert_exact(gradient, gradients)


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_with_logits_soft_targets(fl, dtype):
    x = elements(dtype)[0]
    target = np.random.default_rng(1).random(x.size).astype(dtype)
    pairs = [
        oracle.exact_binary_cross_entropy_with_logits(*pair)
        for pair in zip(x[::4], target[::4], strict=True)
    ]
    losses = oracle.as_exact([loss for loss, _ in pairs])
    gradients = oracle.as_exact([gradient for _, gradient in pairs])
    x, target = x[::4].copy(), target[::4].copy()
    loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(x, target, reduction="none")
    assert_exact(loss, losses)
    size = (1.0 - target) * oracle.sigmoid(x) + target * oracle.sigmoid(-x.astype(np.float64))
    assert_exact(gradient, gradients, size=np.maximum(size, np.abs(gradients.high)))


def test_binary_cross_entropy(fl):
    """float32 probabilities down to 1e-30, targets 0 and 1."""
    rng = np.random.default_rng(2)
    small = 10.0 ** rng.uniform(-30, -1, 3000)
    p = np.concatenate([rng.random(3000), small, 1.0 - small]).astype(np.float32)
    target = rng.integers(0, 2, p.size).astype(np.float32)
    reference = oracle.binary_cross_entropy(p, target)
    loss, gradient = fl.binary_cross_entropy_value_and_grad(p, target, reduction="none")
    assert_exact(loss, near(reference.losses))
    assert_exact(gradient, near(reference.gradients))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0, 5.0])
def test_focal(fl, gamma):
    x, target, _, _ = elements("float32")
    keep = np.abs(x) < 86 / (1 + gamma)  # the loss is a product of so many exponentials
    x, target = x[keep], target[keep]
    reference = oracle.sigmoid_focal_loss(x, target, gamma=gamma)
    loss, gradient = fl.sigmoid_focal_loss_value_and_grad(x, target, gamma=gamma, reduction="none")
    assert_exact(loss, near(reference.losses))
    assert_exact(gradient, near(reference.gradients))


def exact_focal(x, t, alpha, gamma):
    """Loss and gradient of one element, and the largest of the gradient's terms."""
    with mpmath.workprec(oracle.PRECISION):
        x, t, alpha, gamma = (mpmath.mpf(float(v)) for v in (x, t, alpha, gamma))
        p, q = oracle.exact_sigmoid(x), oracle.exact_sigmoid(-x)
        ce = t * oracle.exact_softplus(-x) + (1 - t) * oracle.exact_softplus(x)
        factor = alpha * t + (1 - alpha) * (1 - t)
        u = p * (1 - t) + q * t
        power = factor * u**gamma
        first, second = power * p * (1 - t), power * q * t
        third = factor * gamma * u ** (gamma - 1) * p * q * (1 - 2 * t) * ce
    return power * ce, first - second + third, max(first, second, abs(third))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 16.0])
def test_focal_float64(fl, gamma, soft):
    """Powers keep their digits: within 4 ulp up to an exponent of 3, 5 ulp above.

    Where the target is soft the gradient is a difference, and the ulp that of its largest term.
    """
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.standard_normal(100) * scale for scale in (0.1, 1.0, 3.0, 10.0)])
    target = rng.random(x.size) if soft else rng.integers(0, 2, x.size).astype(float)
    triples = [exact_focal(*pair, 0.3, gamma) for pair in zip(x, target, strict=True)]
    losses, gradients, sizes = map(oracle.as_exact, zip(*triples, strict=True))
    loss, gradient = fl.sigmoid_focal_loss_value_and_grad(
        x, target, alpha=0.3, gamma=gamma, reduction="none"
    )
    limit = LIMIT if gamma <= 3 else 5.0
    assert_exact(loss, losses, limit)
    size = np.maximum(sizes.high, np.abs(gradients.high)) if soft else None
    assert_exact(gradient, gradients, limit, size=size)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div(fl, dtype, log_target):
    """4 ulp of the larger term, t·log t or t·x; with a logarithm as target, of the result."""
    rng = np.random.default_rng(5)
    count = 600
    log_t = -np.abs(np.concatenate([rng.standard_normal(count) * s for s in (1e-3, 1.0, 20.0)]))
    x = (log_t * (1 + rng.standard_normal(log_t.size) * 0.01)).astype(dtype)
    target = (log_t if log_target else np.exp(log_t)).astype(dtype)
    exact, size = [], []
    with mpmath.workprec(oracle.PRECISION):
        for t, v in zip(target, x, strict=True):
            t, v = mpmath.mpf(float(t)), mpmath.mpf(float(v))
            p, log_p = (mpmath.exp(t), t) if log_target else (t, mpmath.log(t))
            exact.append(p * (log_p - v))
            size.append(float(max(abs(p * log_p), abs(p * v))))
    loss = fl.kl_div(x, target, log_target=log_target, reduction="none")
    assert_exact(loss, oracle.as_exact(exact), size=None if log_target else np.array(size))


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_losses_with_all_factors(fl, dtype):
    """Weights of the positive, of elements and of samples, and an upstream gradient."""
    x, target, weight, pos_weight = elements(dtype)
    rng = np.random.default_rng(6)
    sample_weight, upstream = rng.uniform(0.5, 2.0, (2, x.size))
    options = {"weight": weight, "pos_weight": pos_weight, "sample_weight": sample_weight}
    pairs = []
    with mpmath.workprec(oracle.PRECISION):
        for i in range(0, x.size, 16):
            loss, gradient = oracle.exact_binary_cross_entropy_with_logits(
                x[i], target[i], weight[i], pos_weight[i]
            )
            factor = mpmath.mpf(float(sample_weight[i]))
            pairs.append((loss * factor, gradient * factor * mpmath.mpf(float(upstream[i]))))
    losses, gradients = map(oracle.as_exact, zip(*pairs, strict=True))
    loss = fl.binary_cross_entropy_with_logits(x, target, reduction="none", **options)
    gradient = fl.binary_cross_entropy_with_logits_backward(
        upstream, x, target, reduction="none", **options
    )
    assert_exact(loss[::16], losses)
    assert_exact(gradient[::16], gradients)


# ---- d) building blocks and scores -----------------------------------------------------------

FLOAT32_CASES = [case for case in CASES if case[0] == "float32"]


@pytest.mark.parametrize(("dtype", "classes", "samples"), FLOAT32_CASES)
def test_softmax_and_scores(fl, dtype, classes, samples):
    x, target = rows(dtype, classes, samples)
    want = oracle.score_samples(x, target)
    got = fl.score_samples(x, target)
    for name in ("log_prob", "predicted_log_prob", "entropy", "margin"):
        assert_exact(getattr(got, name), near(getattr(want, name)))
    best = fl.score_samples(x, target, top_k=min(classes, 9)).top_log_probs
    assert_exact(best, near(-np.sort(-oracle.log_softmax(x))[:, :9]))
    brier = fl.brier_score(x, target, reduction="none")
    assert_exact(brier, near(want.brier))
    assert_exact(fl.softmax(x, axis=1), near(oracle.softmax(x)))
    assert_exact(fl.log_softmax(x, axis=1), near(oracle.log_softmax(x)))
    # m + log(sum) cancels where the maximum m is negative: 4 ulp of the larger of the two.
    total = oracle.logsumexp(x)
    assert_exact(
        fl.logsumexp(x, axis=1), near(total), size=np.maximum(abs(x.max(axis=1)), abs(total))
    )


@pytest.mark.parametrize("classes", [3, 100])
def test_softmax_float64(fl, classes):
    x, _ = rows("float64", classes, 48)
    parts = [oracle.exact_softmax_parts(row) for row in x]
    assert_exact(fl.softmax(x, axis=1), oracle.as_exact([p for p, _, _ in parts]))
    assert_exact(-fl.log_softmax(x, axis=1), oracle.as_exact([nll for _, _, nll in parts]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sigmoid", oracle.exact_sigmoid),
        ("softplus", oracle.exact_softplus),
        ("log_sigmoid", lambda x: -oracle.exact_softplus(-x)),
    ],
)
def test_elements(fl, dtype, name, function):
    x = elements(dtype)[0][:: 20 if dtype == "float32" else 4].copy()
    want = oracle.as_exact([function(mpmath.mpf(float(value))) for value in x])
    assert_exact(getattr(fl, name)(x), want)


# ---- e) reductions ---------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "classes", "samples"), CASES[:3] + CASES[11:14])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions(fl, dtype, classes, samples, reduction):
    x, target = rows(dtype, classes, samples)
    losses, gradients = exact_rows(dtype, classes, samples)
    divisor = samples if reduction == "mean" else 1
    # Two float64 sums: the second is some 1e-16 of the first, whatever it is rounded to.
    total = (losses.high.sum() + losses.low.sum()) / divisor
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction=reduction)
    assert_exact(loss, near(total), limit=LIMIT if dtype == "float32" else 8.0)
    if reduction == "sum":
        assert_exact(gradient, gradients)
    elif dtype == "float32":
        assert_exact(gradient, near(gradients.high / divisor))


# Elements that are all alike, or repeat, put a rounding error that a sum hides on every digit.
COUNT = 3 * 512 + 100


def assert_binary_sums(fl, name, reference, x, target):
    for reduction in ("sum", "mean"):
        want = near(reference.loss(reduction))
        assert_exact(getattr(fl, name)(x, target, reduction=reduction), want)
        fused = getattr(fl, f"{name}_value_and_grad")(x, target, reduction=reduction)[0]
        assert_exact(fused, want)


def repeated(values, target, dtype):
    return np.resize(values, COUNT).astype(dtype), np.resize(target, COUNT).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("period", [1, 4, 7])
def test_binary_sums_with_logits(fl, dtype, period):
    """Equal and repeating logits, ordinary, hopeless and confident: losses down to 1e-37."""
    rng = np.random.default_rng(period)
    for spread in (0.01, 1.0, 5.0, 20.0, 86.0):
        for _ in range(12):
            x = rng.uniform(-spread, spread, period)
            target = rng.integers(0, 2, period)
            confident = np.where(target == 1, abs(x), -abs(x))
            for values in (x, confident, -confident):
                arrays = repeated(values, target, dtype)
                reference = oracle.binary_cross_entropy_with_logits(*arrays)
                assert_binary_sums(fl, "binary_cross_entropy_with_logits", reference, *arrays)


@pytest.mark.parametrize("period", [1, 4, 7])
def test_binary_sums(fl, period):
    """The same for probabilities, from certainty to where the logarithm is clamped."""
    rng = np.random.default_rng(period)
    for least in (0.0, -3.0, -10.0, -30.0, -44.0):
        for _ in range(12):
            wrong = 10.0 ** rng.uniform(least, 0.0, period) if least else rng.random(period)
            target = rng.integers(0, 2, period)
            for p in (wrong, np.where(target == 1, 1.0 - wrong, wrong)):
                arrays = repeated(p, target, "float32")
                reference = oracle.binary_cross_entropy(*arrays)
                assert_binary_sums(fl, "binary_cross_entropy", reference, *arrays)


@pytest.mark.parametrize("target_dtype", ["float32", "int64", "bool", "float16"])
def test_binary_sums_of_mixed_blocks(fl, target_dtype):
    """Ordinary elements among soft targets, long odds, zeros with a sign."""
    rng = np.random.default_rng(5)
    x, p = rng.standard_normal(COUNT).astype("float32") * 9, rng.random(COUNT).astype("float32")
    target = rng.integers(0, 2, COUNT).astype(target_dtype)
    p[700] = 1e-44
    p[[800, 1200]] = -0.0, 1.0
    if target.dtype.kind == "f":
        target[[30, 1030]] = 0.25, -0.0
    reference = oracle.binary_cross_entropy_with_logits(x, target)
    assert_binary_sums(fl, "binary_cross_entropy_with_logits", reference, x, target)
    assert_binary_sums(
        fl, "binary_cross_entropy", oracle.binary_cross_entropy(p, target), p, target
    )


# ---- f) half precision -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1000, 3), (500, 10), (100, 200), (4, 9000)])
def test_half_precision(fl, dtype, shape):
    """The loss to 4 ulp of float32; the gradient rounded once more, to the nearest half."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape) * np.resize([0.1, 1.0, 10.0], shape[0])[:, None]
    x = x.astype(dtype_of(dtype))
    target = rng.integers(0, shape[1], shape[0])
    reference = oracle.cross_entropy(x, target)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    assert loss.dtype == loss_dtype(dtype) == np.float32
    assert_exact(loss, near(reference.losses))
    nearest = reference.gradients.astype(gradient.dtype)
    # Equal to the nearest half, but for values within 4 float32 ulp of a tie.
    differ = (gradient != nearest).mean()
    assert differ < 1e-3
    error = np.abs(gradient.astype(np.float64) - reference.gradients)
    up = np.nextafter(np.abs(nearest), dtype_of(dtype).type(np.inf)).astype(np.float64)
    assert (error <= 0.51 * (up - np.abs(nearest.astype(np.float64)))).all()


def every_half(dtype) -> np.ndarray:
    return np.arange(2**16, dtype=np.uint16).view(dtype_of(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_exactly(fl, dtype):
    """−1·x is exact; one class for single values, and a sum of one element for whole blocks."""
    x = every_half(dtype)
    with np.errstate(invalid="ignore"):
        want = -x.astype(np.float32)
    losses = fl.nll_loss(x[:, None], np.zeros(x.size, int), reduction="none")
    np.testing.assert_array_equal(losses, want)
    finite = x[np.isfinite(x.astype(np.float32))]
    losses = fl.kl_div(finite, np.ones(finite.size), reduction="none")
    np.testing.assert_array_equal(losses, -finite.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_rounded_to(fl, dtype):
    """Every half, every tie between two, and their neighbours, as a gradient: ties to even."""
    halves = every_half(dtype).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)]).astype(np.float64)
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    values = np.concatenate([halves, ties, np.nextafter(ties, up), np.nextafter(ties, down)])
    values = np.concatenate([values, [6e4, 65519.0, 65520.0, 65536.0, 1e30, np.inf, -1e30]])
    values = values.astype(np.float32)
    with np.errstate(over="ignore"):
        want = values.astype(dtype_of(dtype))
    # The gradient of softplus(x) at 0 is 1/2, exactly: upstream gradients arrive as they are.
    x = np.zeros(values.size, dtype_of(dtype))
    upstream = 2.0 * values.astype(np.float64)
    upstream = np.where(np.abs(upstream) > 3e38, np.copysign(np.inf, upstream), upstream)
    got = fl.binary_cross_entropy_with_logits_backward(upstream, x, x, reduction="none")
    small = np.abs(values) < 1e38  # 2·value overflows float32 beyond
    np.testing.assert_array_equal(
        got[small].view(np.uint16) & 0x7FFF, want[small].view(np.uint16) & 0x7FFF
    )
    got = fl.nll_loss_backward(-values, x[:, None], np.zeros(x.size, int), reduction="none")
    np.testing.assert_array_equal(got[:, 0], want)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_mean_of_many_rows(fl, dtype):
    """200,000 rows, where a float16 sum overflows: PyTorch's mean is NaN."""
    x = np.random.default_rng(4).standard_normal((200_000, 10)).astype(dtype_of(dtype))
    target = np.arange(200_000) % 10
    loss = fl.cross_entropy(x, target)
    want = oracle.cross_entropy(x, target).loss("mean")
    assert_exact(loss, near(want), limit=1.0)


# ---- g) the oracle ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_oracle_is_exact_enough(classes):
    """float64's error on float32 data is below 1e-3 float32 ulp = 2²⁹/1000 float64 ulp."""
    x, target = (a[:32] for a in rows("float32", classes, 200))
    reference = oracle.cross_entropy(x, target)
    for i in range(0, 32, 2 if classes < 1000 else 8):
        loss, gradient = oracle.exact_cross_entropy(x[i], target[i])
        assert oracle.ulp_error(reference.losses[i], oracle.as_exact(loss)) < 2**29 / 1000
        error = oracle.ulp_error(reference.gradients[i], oracle.as_exact(gradient))
        assert error.max() < 2**29 / 1000
