"""kl_div and sigmoid_focal_loss against the oracle."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, REDUCTIONS, assert_close, check_loss, dtype_of, logits, weighted

SHAPES = [(1,), (7,), (1025,), (3, 5), (4, 3, 9), (70_001,)]


# ---- kl_div ----------------------------------------------------------------------------------


def check_kl(fl, x, target, reductions=(*REDUCTIONS, "batchmean"), **options):
    reference = oracle.kl_div(x, target, **options)
    check_loss(fl, "kl_div", reference, x, target, reductions=reductions, **options)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_div(fl, shape, dtype):
    rng = np.random.default_rng(0)
    x = oracle.log_softmax(rng.standard_normal(shape) * 3).astype(dtype_of(dtype))
    target = oracle.softmax(rng.standard_normal(shape) * 3).astype(x.dtype)
    target[rng.random(shape) < 0.2] = 0
    check_kl(fl, x, target)
    log_target = oracle.log_softmax(rng.standard_normal(shape) * 3).astype(x.dtype)
    check_kl(fl, x, log_target, log_target=True)


def test_kl_div_of_a_scalar(fl):
    check_kl(fl, np.float64(-1.5), np.float64(0.25), reductions=REDUCTIONS)


def test_kl_div_zero_target_contributes_nothing(fl):
    x = np.array([-np.inf, -3.0, np.nan, -1.0])
    loss = fl.kl_div(x, np.array([0.0, 0.0, 0.5, 0.5]), reduction="none")
    np.testing.assert_array_equal(loss[:2], 0.0)
    assert np.isnan(loss[2])
    assert_close(loss[3], 0.5 * (np.log(0.5) + 1.0))


def test_kl_div_of_equal_distributions_is_zero(fl):
    target = oracle.softmax(np.random.default_rng(1).standard_normal((5, 8)))
    loss = fl.kl_div(np.log(target), target, reduction="batchmean")
    np.testing.assert_allclose(loss, 0.0, atol=1e-15)


def test_kl_div_log_target_agrees_with_target(fl):
    rng = np.random.default_rng(2)
    x, log_target = oracle.log_softmax(rng.standard_normal((2, 6, 9)))
    assert_close(
        fl.kl_div(x, log_target, log_target=True, reduction="none"),
        fl.kl_div(x, np.exp(log_target), reduction="none"),
        scale=1.0,
    )


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_kl_div_sample_weight(fl, dtype):
    rng = np.random.default_rng(6)
    x = oracle.log_softmax(rng.standard_normal((30, 40)) * 3).astype(dtype_of(dtype))
    target = oracle.softmax(rng.standard_normal((30, 40)) * 3).astype(x.dtype)
    for sample_weight in (rng.random((30, 1)), rng.random((30, 40)), 2.0):
        reference = weighted(oracle.kl_div(x, target), sample_weight)
        check_loss(
            fl,
            "kl_div",
            reference,
            x,
            target,
            reductions=(*REDUCTIONS, "batchmean"),
            sample_weight=sample_weight,
        )


@pytest.mark.parametrize("target_dtype", ["float32", "float64"])
def test_kl_div_of_near_numbers_keeps_digits(fl, target_dtype):
    """Where t is all but exp(x): what log t, rounded to the type, would have lost."""
    rng = np.random.default_rng(7)
    target = rng.random(2000).astype(target_dtype)
    x = (np.log(target.astype(np.float64)) * (1 + 1e-5 * rng.standard_normal(2000))).astype(
        target_dtype
    )
    with mpmath.workprec(oracle.PRECISION):
        pairs = [
            (mpmath.mpf(float(t)), mpmath.mpf(float(v))) for t, v in zip(target, x, strict=True)
        ]
        exact = np.array([float(t * (mpmath.log(t) - v)) for t, v in pairs])
    loss = fl.kl_div(x, target, reduction="none")
    # An eighth of an ulp of the two terms.
    unit = np.spacing(np.abs(target * x))
    assert (np.abs(loss - exact) <= np.abs(exact) * np.finfo(target_dtype).eps + unit / 8).all()


# ---- sigmoid_focal_loss ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_has_the_same_bits_in_any_byte_order(fl, log_target, dtype):
    x = -np.geomspace(1e-3, 20, 100).astype(np.float32)
    target = (x * 1.01 if log_target else np.exp(x * 1.01)).astype(dtype)
    options = {"log_target": log_target, "reduction": "none"}
    want = fl.kl_div(x, target, **options)
    got = fl.kl_div(x, target.astype(target.dtype.newbyteorder()), **options)
    np.testing.assert_array_equal(got, want)


def check_focal(fl, x, target, **options):
    reference = oracle.sigmoid_focal_loss(x, target, **options)
    check_loss(fl, "sigmoid_focal_loss", reference, x, target, **options)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_focal(fl, shape, dtype):
    rng = np.random.default_rng(3)
    x = logits(rng, shape, dtype, scale=2.0)
    check_focal(fl, x, rng.integers(0, 2, shape).astype(x.dtype))
    check_focal(fl, x, rng.random(shape).astype(x.dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
def test_focal_options(fl, alpha, gamma, dtype):
    rng = np.random.default_rng(4)
    x = logits(rng, 300, dtype, scale=3.0)
    check_focal(fl, x, rng.integers(0, 2, 300).astype(dtype), alpha=alpha, gamma=gamma)


@pytest.mark.parametrize("dtype", FLOATS)
def test_focal_of_targets_between_is_within_5_ulp(fl, dtype):
    """A loss is a product of three sums of positive terms, so its error is relative to itself."""
    rng = np.random.default_rng(6)
    x = (rng.standard_normal(60_000) * rng.choice([0.01, 1, 5, 20], 60_000)).astype(dtype)
    t = rng.random(60_000).astype(dtype)
    wide, part = x.astype(np.longdouble), t.astype(np.longdouble)
    yes = 1 / (1 + np.exp(-wide))
    no = 1 / (1 + np.exp(wide))
    cost = part * np.logaddexp(0, -wide) + (1 - part) * np.logaddexp(0, wide)
    miss = part * no + (1 - part) * yes
    want = (0.25 * part + 0.75 * (1 - part)) * miss**2 * cost
    got = fl.sigmoid_focal_loss(x, t, gamma=2.0, reduction="none")
    error = np.abs(got.astype(np.longdouble) - want) / np.spacing(want.astype(dtype))
    assert error.max() <= 5


def test_focal_without_focus_is_weighted_bce(fl):
    rng = np.random.default_rng(5)
    x, target = logits(rng, 64, "float64"), rng.integers(0, 2, 64).astype(float)
    focal = fl.sigmoid_focal_loss(x, target, alpha=0.3, gamma=0.0, reduction="none")
    bce = fl.binary_cross_entropy_with_logits(
        x, target, weight=np.where(target == 1, 0.3, 0.7), reduction="none"
    )
    assert_close(focal, bce)


@pytest.mark.parametrize("dtype", FLOATS)
def test_focal_far_out(fl, dtype):
    """Finite for every finite logit, and no NaN from 0·∞ where 1 − p_t underflows."""
    x = np.array([-1e4, -200.0, -50.0, 0.0, 50.0, 200.0, 1e4], dtype)
    for target in (0.0, 1.0):
        for gamma in (0.0, 0.5, 1.0, 2.0):
            t = np.full(7, target, dtype)
            loss, grad = fl.sigmoid_focal_loss_value_and_grad(x, t, gamma=gamma, reduction="none")
            assert np.isfinite(loss).all()
            assert np.isfinite(grad).all()
            hopeless = np.abs(x).astype(float) * (0.25 if target else 0.75)
            wrong = (x < 0) if target else (x > 0)
            np.testing.assert_allclose(
                loss[wrong & (abs(x) > 100)], hopeless[wrong & (abs(x) > 100)], rtol=1e-6
            )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3, 1e-300, 1e-320])
def test_focal_where_a_probability_is_subnormal(fl, target, gamma):
    """1 / (1 - p_t) is infinite there, and no result is NaN for that."""
    x = np.concatenate([np.linspace(-760, -700, 97), np.linspace(700, 760, 97)])
    t = np.full(x.size, target)
    loss, gradient = fl.sigmoid_focal_loss_value_and_grad(x, t, gamma=gamma, reduction="none")
    first, second = fl.sigmoid_focal_loss_grad_and_hess(x, t, gamma=gamma)
    # What is subnormal has lost digits.
    with np.errstate(divide="ignore", invalid="ignore"):
        want = oracle.sigmoid_focal_loss(x, t, gamma=gamma)
    np.testing.assert_allclose(loss, want.losses, rtol=1e-14, atol=1e-305)
    if gamma >= 1:  # the oracle divides by 1 - p_t as well
        np.testing.assert_allclose(gradient, want.gradients, rtol=1e-14, atol=1e-305)
    assert np.isfinite([gradient, first, second]).all()
    assert (np.abs(gradient) <= 0.75 * (1 + gamma * 760)).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_focal_alpha_broadcasts(fl, dtype):
    rng = np.random.default_rng(6)
    x, target = logits(rng, (30, 40), dtype), rng.integers(0, 2, (30, 40))
    for alpha in (rng.random(40), rng.random((30, 1)), np.float32(0.25), [[0.5]]):
        check_focal(fl, x, target, alpha=alpha)
    soft = rng.random((30, 40)).astype(dtype)
    check_focal(fl, x, soft, alpha=rng.random((30, 40)))


def test_focal_options_out_of_range(fl):
    x, target = np.zeros(2), np.zeros(2)
    for options, error in [
        ({"alpha": -5.0}, ValueError),
        ({"alpha": [0.5, 1.5]}, ValueError),
        ({"alpha": np.nan}, ValueError),
        ({"alpha": "x"}, TypeError),
        ({"alpha": [0.5, 0.5, 0.5]}, ValueError),
        ({"gamma": -1.0}, ValueError),
        ({"gamma": np.inf}, ValueError),
        ({"gamma": 10**400}, ValueError),
    ]:
        with pytest.raises(error, match=next(iter(options))):
            fl.sigmoid_focal_loss(x, target, **options)
