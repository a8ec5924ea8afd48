"""binary_cross_entropy and binary_cross_entropy_with_logits against the oracle.

Layout: a) with logits, b) with probabilities, c) sample weights and ignored elements, d) numbers
that are not of the logits' type, e) what is wrong is found before anything is written, f) second
derivatives.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, check_loss, dtype_of, logits, weighted

SHAPES = [(), (1,), (7,), (100,), (1025,), (3, 5), (4, 3, 9), (2, 3, 4, 5), (70_001,)]


# ---- a) with logits --------------------------------------------------------------------------


def check_logits(fl, x, target, **options):
    reference = oracle.binary_cross_entropy_with_logits(x, target, **options)
    check_loss(fl, "binary_cross_entropy_with_logits", reference, x, target, **options)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_with_logits(fl, shape, dtype):
    rng = np.random.default_rng(0)
    x = logits(rng, shape, dtype)
    check_logits(fl, x, rng.integers(0, 2, shape).astype(x.dtype))
    check_logits(fl, x, rng.random(shape).astype(x.dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_with_logits_weights_broadcast(fl, dtype):
    rng = np.random.default_rng(1)
    x = logits(rng, (4, 3, 5), dtype)
    target = rng.random(x.shape).astype(dtype)
    factors = [None] + [
        rng.uniform(0.2, 3.0, shape).astype(dtype)
        for shape in ((4, 3, 5), (5,), (3, 1), (4, 1, 1), (4, 1, 5), (1, 3, 1), ())
    ]
    for weight, pos_weight in itertools.product(factors, factors):
        check_logits(fl, x, target, weight=weight, pos_weight=pos_weight)


@pytest.mark.parametrize("target_dtype", ["bool", "int8", "uint8", "int64", "float16", "float64"])
def test_with_logits_target_dtypes(fl, target_dtype):
    rng = np.random.default_rng(2)
    x = logits(rng, 50, "float32")
    check_logits(fl, x, rng.integers(0, 2, 50).astype(target_dtype))


def test_with_logits_target_outside_unit_interval(fl):
    """PyTorch's formula goes on past [0, 1]; so does this."""
    rng = np.random.default_rng(3)
    x = logits(rng, 40, "float64")
    check_logits(fl, x, rng.uniform(-1.0, 2.0, 40))


@pytest.mark.parametrize("dtype", FLOATS)
def test_with_logits_far_out(fl, dtype):
    """exp(|x|) overflows from 88 (float32) or 709 on; the loss does not."""
    x = np.array([-1e30, -1e4, -800.0, -100.0, 100.0, 800.0, 1e4, 1e30], dtype)
    for target in (0.0, 0.25, 1.0):
        check_logits(fl, x, np.full(8, target, dtype))


# ---- b) with probabilities -------------------------------------------------------------------


def check_probs(fl, p, target, **options):
    reference = oracle.binary_cross_entropy(p, target, **options)
    check_loss(fl, "binary_cross_entropy", reference, p, target, **options)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_probs(fl, shape, dtype):
    rng = np.random.default_rng(4)
    p = rng.random(shape).astype(dtype)
    check_probs(fl, p, rng.integers(0, 2, shape).astype(dtype))
    check_probs(fl, p, rng.random(shape).astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_with_probs_half(fl, dtype):
    rng = np.random.default_rng(5)
    p = rng.random(99).astype(dtype_of(dtype))
    check_probs(fl, p, rng.random(99).astype(dtype_of(dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_with_probs_weight_broadcasts(fl, dtype):
    rng = np.random.default_rng(6)
    p, target = rng.random((2, 4, 3, 5)).astype(dtype)
    for shape in ((4, 3, 5), (5,), (3, 1), (4, 1, 1), ()):
        check_probs(fl, p, target, weight=rng.uniform(0.2, 3.0, shape).astype(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_gradient_is_the_same_beside_other_elements(fl, dtype):
    """Whether a mean or each loss is wanted, alone or among others, and in place."""
    rng = np.random.default_rng(8)
    p = rng.random(3000).astype(dtype_of(dtype))
    p[[600, 2000]] = 0.0, 1.0
    target = rng.integers(0, 2, p.size).astype(p.dtype)
    target[[1100, 1600]] = 0.25
    for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        function = getattr(fl, f"{name}_value_and_grad")
        want = function(p, target, reduction="none")[1]
        np.testing.assert_array_equal(function(p, target, reduction="sum")[1], want)
        back = getattr(fl, f"{name}_backward")(1.0, p, target, reduction="sum")
        np.testing.assert_array_equal(back, want)
        part = slice(37, 1900)
        got = function(p[part], target[part], reduction="sum")[1]
        np.testing.assert_array_equal(got, want[part])
        given = p.copy()
        function(given, target, reduction="sum", out=given)
        np.testing.assert_array_equal(given, want)


@pytest.mark.parametrize("count", [4_194_304, 4_200_003])
def test_large_arrays_are_written_whole(fl, count):
    """Gradients that are written past the caches, from any place within a line on."""
    rng = np.random.default_rng(9)
    room = np.empty(count + 16, np.float32)
    for offset in (0, 1, 13):
        x = logits(rng, count, "float32")
        target = rng.integers(0, 2, count).astype("float32")
        want = fl.binary_cross_entropy_with_logits_backward(
            np.ones(count), x, target, reduction="none"
        )
        room[:] = 7
        out = room[offset : offset + count]
        fl.binary_cross_entropy_with_logits_value_and_grad(x, target, reduction="sum", out=out)
        np.testing.assert_array_equal(out, want)
        assert (room[:offset] == 7).all()
        assert (room[offset + count :] == 7).all()
        fl.binary_cross_entropy_with_logits_value_and_grad(x, target, reduction="sum", out=x)
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_logs_are_clamped_at_minus_100(fl, dtype):
    p = np.array([0.0, 1.0, 0.0, 1.0, 0.0], dtype)
    target = np.array([1.0, 0.0, 0.0, 1.0, 0.25], dtype)
    loss = fl.binary_cross_entropy(p, target, reduction="none")
    np.testing.assert_array_equal(loss, [100.0, 100.0, 0.0, 0.0, 25.0])
    check_probs(fl, p, target)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_denominator_is_at_least_1e_12(fl, dtype):
    p = np.array([1e-30, 1e-13, 1e-12, 1e-11], dtype)
    check_probs(fl, p, np.ones(4, dtype))
    check_probs(fl, p, np.zeros(4, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_small_probabilities_keep_their_digits(fl, dtype):
    """−log(1 − p) is p for a small p, where log of a rounded 1 − p would be 0."""
    p = np.array([1e-20, 1e-12, 1e-9, 1e-5], dtype)
    loss = fl.binary_cross_entropy(p, np.zeros(4, dtype), reduction="none")
    np.testing.assert_allclose(loss, -np.log1p(-p.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_is_the_second_half_of_the_one_with_logits(fl, dtype):
    rng = np.random.default_rng(7)
    x, target = logits(rng, 200, dtype), rng.random(200).astype(dtype)
    halves = fl.binary_cross_entropy(fl.sigmoid(x), target, reduction="none")
    whole = fl.binary_cross_entropy_with_logits(x, target, reduction="none")
    # Rounding p to 1 − ε loses the digits of 1 − p: |x| reaches 12 or so.
    assert_close(halves, whole.astype(np.float64), units=1e6)


# ---- c) sample weights and ignored elements --------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (1025,), (70_001,)])
def test_sample_weight(fl, shape, dtype):
    rng = np.random.default_rng(10)
    x, target = logits(rng, shape, dtype), rng.integers(0, 2, shape)
    p = rng.uniform(0.01, 0.99, shape).astype(x.dtype)
    for sample_weight in (rng.random(shape), rng.random(shape[-1:]), 0.3):
        for name, arrays in [
            ("binary_cross_entropy", (p, target)),
            ("binary_cross_entropy", (p, p[::-1].copy())),
            ("binary_cross_entropy_with_logits", (x, target)),
            ("binary_cross_entropy_with_logits", (x, p)),
            ("sigmoid_focal_loss", (x, target)),
        ]:
            reference = weighted(getattr(oracle, name)(*arrays), sample_weight)
            check_loss(fl, name, reference, *arrays, sample_weight=sample_weight)


def test_weight_is_in_no_denominator_and_sample_weight_is(fl):
    x, target = np.array([1.0, -2.0, 0.5]), np.array([0, 1, 1])
    each = fl.binary_cross_entropy_with_logits(x, target, reduction="none")
    w = np.array([1.0, 2.0, 4.0])
    mean = fl.binary_cross_entropy_with_logits(x, target, weight=w)
    np.testing.assert_allclose(mean, (w * each).sum() / 3, rtol=1e-14)
    mean = fl.binary_cross_entropy_with_logits(x, target, sample_weight=w)
    np.testing.assert_allclose(mean, (w * each).sum() / w.sum(), rtol=1e-14)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("target_dtype", ["int8", "int16", "int64", "float32", "float64"])
@pytest.mark.parametrize("ignore_index", [-100, 7, 1])
def test_ignore_index(fl, dtype, target_dtype, ignore_index):
    """Whatever the logits of such elements hold: loss 0, gradient +0, no part of the mean."""
    rng = np.random.default_rng(11)
    x = logits(rng, 2000, dtype)
    target = rng.integers(0, 2, x.size).astype(target_dtype)
    target[rng.random(x.size) < 0.3] = ignore_index
    kept = target != ignore_index
    sample_weight = rng.random(x.size)
    sample_weight[~kept] = np.nan
    x[np.flatnonzero(~kept)[:3]] = np.nan, np.inf, -np.inf
    filled = np.where(kept, x.astype(np.float64), 0.0)
    plain = np.where(kept, target, 0)
    for name in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        for options in ({}, {"sample_weight": sample_weight}):
            reference = weighted(
                getattr(oracle, name)(filled, plain), options.get("sample_weight", 1.0), kept
            )
            check_loss(fl, name, reference, x, target, ignore_index=ignore_index, **options)
        _, gradient = getattr(fl, f"{name}_value_and_grad")(x, target, ignore_index=ignore_index)
        assert not gradient[~kept].any()
        assert not np.signbit(gradient[~kept]).any()


def test_all_ignored(fl):
    x, target = np.array([np.nan, 1.0]), np.array([-1, -1])
    for name in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        loss, gradient = getattr(fl, f"{name}_value_and_grad")(x, target, ignore_index=-1)
        assert np.isnan(loss)
        np.testing.assert_array_equal(gradient, 0.0)
        assert getattr(fl, name)(x, target, ignore_index=-1, reduction="sum") == 0


@pytest.mark.parametrize("count", [3, 600, 200_000])
@pytest.mark.parametrize("target_dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64"])
def test_other_labels_are_refused(fl, count, target_dtype):
    x = np.zeros(count, np.float32)
    target = np.ones(count, target_dtype)
    target[[count // 2, count - 1]] = 2
    message = rf"must be 0 or 1, got 2 at position {count // 2}$"
    out = np.full(count, 7, np.float32)
    for name in ("binary_cross_entropy_with_logits", "sigmoid_focal_loss"):
        for call in (
            lambda name=name: getattr(fl, name)(x, target),
            lambda name=name: getattr(fl, f"{name}_value_and_grad")(x, target, out=out),
            lambda name=name: getattr(fl, f"{name}_backward")(1.0, x, target, out=out),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert (out == 7).all()
        assert np.isfinite(getattr(fl, name)(x, target, ignore_index=2))
        with pytest.raises(ValueError, match=r"0, 1 or ignore_index=5, got 2"):
            getattr(fl, name)(x, target, ignore_index=5)


def test_ignore_index_is_an_integer(fl):
    x, target = np.zeros(2), np.zeros(2)
    for wrong, error in [(0.5, TypeError), ("1", TypeError), (10**30, ValueError)]:
        with pytest.raises(error, match="ignore_index"):
            fl.binary_cross_entropy_with_logits(x, target, ignore_index=wrong)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_weight_of_zero_takes_an_infinite_term_away(fl, dtype):
    x = np.array([-np.inf, np.inf, -np.inf, 0.0], dtype)
    for target in (np.array([1, 0, 1, 1]), np.array([1.0, 0.0, 0.5, 1.0])):
        for options, zeros in [
            ({"pos_weight": 0.0}, [0, 2, 3]),
            ({"weight": [0.0, 0.0, 0.0, 1.0]}, [0, 1, 2]),
            ({"sample_weight": [0.0, 0.0, 0.0, 1.0]}, [0, 1, 2]),
        ]:
            loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(
                x, target, reduction="none", **options
            )
            np.testing.assert_array_equal(loss[zeros], 0.0)
            assert not np.isnan(loss).any()
            assert not np.isnan(gradient).any()


# ---- d) numbers that are not of the logits' type ---------------------------------------------


def test_targets_count_as_they_are(fl):
    """A float64 target that float32 would round to 1, or to the probability itself."""
    x, target = np.float32([50.0]), np.array([1 - 1e-8])
    loss = fl.binary_cross_entropy_with_logits(x, target, reduction="none")
    np.testing.assert_allclose(loss, [50 * 1e-8], rtol=1e-6)
    p, target = np.float32([0.3]), np.array([0.3])
    _, gradient = fl.binary_cross_entropy_value_and_grad(p, target)
    exact = (np.float64(p) - target) / (np.float64(p) * (1 - np.float64(p)))
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)
    assert gradient[0] != 0


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_float64_targets_among_others(fl, dtype):
    rng = np.random.default_rng(12)
    x, target = logits(rng, 1500, dtype), rng.random(1500)
    target[::3] = rng.integers(0, 2, 500)
    check_logits(fl, x, target)
    check_probs(fl, rng.random(1500).astype(x.dtype), target)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_weights_beyond_float32(fl, reduction):
    """Weights bring back losses that float32 cannot hold, and products meet in the middle."""
    x, target = np.float32([-100.0, -120.0, -30.0, 30.0]), np.array([0, 0, 0, 1])
    want = np.exp(-np.abs(x.astype(np.float64)))
    for options, factor in [
        ({"weight": 1e39}, 1e39),
        ({"sample_weight": 1e39}, 1e39),
        ({"weight": 1e300, "sample_weight": 1e-261}, 1e39),
    ]:
        loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(
            x, target, reduction=reduction, **options
        )
        exact = want * factor
        np.testing.assert_allclose(loss, exact if reduction == "none" else exact.sum(), rtol=1e-6)
        np.testing.assert_allclose(gradient, np.where(target, -exact, exact), rtol=1e-6)
    upstream = 1e39 if reduction == "sum" else np.full(4, 1e39)
    gradient = fl.binary_cross_entropy_with_logits_backward(
        upstream, x, target, reduction=reduction
    )
    np.testing.assert_allclose(gradient, np.where(target, -want, want) * 1e39, rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_misaligned_operands(fl, dtype):
    """One byte off: weights and upstream gradients are read all the same."""
    rng = np.random.default_rng(13)

    def askew(values):
        room = np.empty(values.nbytes + 1, np.uint8)
        a = room[1:].view(values.dtype).reshape(values.shape)
        a[...] = values
        assert not a.flags.aligned
        return a

    x, target = logits(rng, 100, dtype), rng.integers(0, 2, 100)
    a, b, c, upstream = rng.random((4, 100))
    function = fl.binary_cross_entropy_with_logits_backward
    want = function(upstream, x, target, weight=a, pos_weight=b, sample_weight=c, reduction="none")
    got = function(
        askew(upstream),
        askew(x),
        askew(target),
        weight=askew(a),
        pos_weight=askew(b),
        sample_weight=askew(c),
        reduction="none",
    )
    np.testing.assert_array_equal(got, want)


# ---- e) what is wrong is found before anything is written ------------------------------------


@pytest.mark.parametrize("count", [1, 5, 70_000])
def test_out_is_written_only_where_all_is_well(fl, count):
    p = np.full(count, 0.5)
    target = np.ones(count)
    for array, value, name in [(p, 1.5, "probs"), (target, -0.25, "target"), (p, np.nan, "probs")]:
        before = array[-1]
        array[-1] = value
        kept = p.copy()
        with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\], got {value} at"):
            fl.binary_cross_entropy_value_and_grad(p, target, out=p)
        np.testing.assert_array_equal(p, kept)
        with pytest.raises(ValueError, match=rf"{name} must lie .* at position {count - 1}$"):
            fl.binary_cross_entropy(p, target)
        array[-1] = before


def test_a_weight_that_is_nan_is_no_probability(fl):
    p = np.array([1.0])
    loss, gradient = fl.binary_cross_entropy_value_and_grad(p, [1.0], weight=[np.nan], out=p)
    assert np.isnan(loss)
    assert gradient is p
    assert np.isnan(p).all()


# ---- f) second derivatives -------------------------------------------------------------------


def exact_slopes(loss, x):
    """First and second derivative at x, by mpmath's differences with hundreds of digits."""
    with mpmath.workdps(120):
        return [mpmath.diff(loss, mpmath.mpf(float(x)), n) for n in (1, 2)]


@pytest.mark.thread_unsafe(reason="mpmath has one precision for all threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("gamma", [None, 0.0, 1.0, 2.0, 2.5])
def test_gradient_and_hessian(fl, dtype, soft, gamma):
    """Exact second derivatives, those of focal loss where they are negative too."""
    rng = np.random.default_rng(14)
    x = logits(rng, 60, dtype)
    target = rng.random(60) if soft else rng.integers(0, 2, 60).astype(float)
    weight, sample_weight = rng.random((2, 60))
    options = {"sample_weight": sample_weight, "gradient": True, "hessian": True}
    kinds = fl.losses._elementwise.Kind
    if gamma is None:
        options |= {"weight": weight, "pos_weight": 2.5}
        kind = kinds.BCE_WITH_LOGITS
    else:
        options |= {"alpha": 0.3, "gamma": gamma}
        kind = kinds.FOCAL
    _, (grad, hess), _ = fl.losses._elementwise.evaluate(kind, x, target, "none", **options)
    assert grad.dtype == hess.dtype == x.dtype

    def loss(v, i):
        t = mpmath.mpf(float(target[i]))
        p, q = 1 / (1 + mpmath.exp(-v)), 1 / (1 + mpmath.exp(v))
        if gamma is None:
            return weight[i] * (-2.5 * t * mpmath.log(p) - (1 - t) * mpmath.log(q))
        a = mpmath.mpf(0.3)
        ce = -t * mpmath.log(p) - (1 - t) * mpmath.log(q)
        return (a * t + (1 - a) * (1 - t)) * (p * (1 - t) + q * t) ** gamma * ce

    for i in range(60):
        first, second = exact_slopes(lambda v, i=i: loss(v, i), x[i])
        eps = 16 * np.finfo(dtype).eps
        size = max(abs(first), abs(second)) if gamma is not None or soft else 0
        assert abs(grad[i] - float(first * sample_weight[i])) <= eps * max(abs(grad[i]), size)
        assert abs(hess[i] - float(second * sample_weight[i])) <= eps * max(abs(hess[i]), size)


def test_hessian_of_confident_and_ignored_elements(fl):
    """p * (1 - p) keeps its digits, and what is ignored or infinite has none."""
    evaluate, kinds = fl.losses._elementwise.evaluate, fl.losses._elementwise.Kind
    x = np.array([40.0, -300.0, 50.0, np.inf, -np.inf, np.nan])
    target = np.array([1, 0, 0, 0, 0, -1])
    grad, hess = np.empty(6), np.empty(6)
    for kind, gamma in [(kinds.BCE_WITH_LOGITS, 0.0), (kinds.FOCAL, 0.0), (kinds.FOCAL, 2.0)]:
        _, (a, b), _ = evaluate(
            kind, x, target, "none", gamma=gamma, ignore_index=-1, gradient=True, hessian=True,
            out=(grad, hess),
        )  # fmt: skip
        assert a is grad
        assert b is hess
        np.testing.assert_array_equal(hess[3:], 0.0)
        assert grad[5] == 0
        if gamma == 0:
            np.testing.assert_allclose(hess[:3], np.exp(-np.abs(x[:3])), rtol=1e-15)
    with pytest.raises(TypeError, match="pair"):
        evaluate(kinds.FOCAL, x, target, "none", gradient=True, hessian=True, out=grad)
