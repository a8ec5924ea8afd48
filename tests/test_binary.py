"""binary_cross_entropy and binary_cross_entropy_with_logits against the oracle.

Layout: a) with logits, b) with probabilities.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, check_loss, dtype_of, logits

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
