"""temperature, softcap and z_loss of the cross-entropy, and the focal loss: to the last digits.

What is exact: for float64 mpmath up to 257 classes, and long double beyond, whose own error
`test_oracle_is_exact_enough` bounds. For float32 and halves the float64 oracle would do; long
double is at hand.

The bound is 4 ulp of the result where it is a sum of terms of one sign, else 4 ulp of its largest
term. With temperature or softcap a float64 z is rounded once: a loss may be off by as many ulp of
the largest |z|, and a gradient that many times more. So it is for x/softcap in the gradient. The
focal loss multiplies the relative error of 1 − p_t by its power: 4 + 3·γ ulp.

Layout: a) data, b) accuracy, c) infinite, masked and far-out logits, d) reductions and weights,
e) the oracle.
"""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, dtype_of, loss_dtype

inf, nan = np.inf, np.nan
LIMIT = 4.0

# ---- a) data ---------------------------------------------------------------------------------

#: Either side of every size of the kernels' blocks.
SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025]
SIZES += [4095, 4096, 4097, 8191, 8192, 8193, 20_001]
AXES = ["last", "first", "middle"]

#: Kind of target, options, whether there are class weights, whether there are sample weights.
COMBINATIONS = [
    ("index", {"temperature": 0.7}, False, False),
    ("index", {"softcap": 5.0}, True, False),
    ("index", {"z_loss": 0.01}, False, True),
    ("index", {"temperature": 2.0, "softcap": 30.0, "z_loss": 0.5}, True, True),
    ("smoothed", {"temperature": 3.0}, False, True),
    ("smoothed", {"softcap": 5.0, "z_loss": 0.5}, True, False),
    ("probabilities", {"temperature": 0.7, "z_loss": 0.01}, True, True),
    ("probabilities", {"softcap": 30.0}, False, False),
]
GAMMAS = [0.0, 0.5, 1.0, 1.5, 2.0, 5.0]


def samples_of(classes: int) -> int:
    return 8 if classes <= 257 else 3


@cache
def data(dtype: str, classes: int):
    """Logits, class indices, probabilities, class weights, sample weights."""
    rng = np.random.default_rng(classes)
    n = samples_of(classes)
    x = rng.standard_normal((n, classes)) * np.resize([1.0, 10.0, 0.1, 40.0], n)[:, None]
    target = rng.integers(0, classes, n)
    if n > 3:
        x[5, target[5]] = x[5].max() + 30.0  # confident
        x[6, target[6]] = x[6].min() - 60.0  # hopeless
    p = rng.gamma(0.5, size=x.shape)
    p /= p.sum(axis=1, keepdims=True)
    weight = rng.uniform(0.5, 2.0, classes)
    return x.astype(dtype_of(dtype)), target, p.astype(np.float32), weight, rng.uniform(0.5, 2, n)


def arguments(kind, x, target, p, weight, sample_weight, options, weighted, sampled):
    options = dict(options)
    if weighted:
        options["weight"] = weight
    if sampled:
        options["sample_weight"] = sample_weight
    if kind == "smoothed":
        options["label_smoothing"] = 0.125
    return p if kind == "probabilities" else target, options


@cache
def exact_terms(dtype: str, classes: int, number: int) -> oracle.Terms:
    """Exact answers of combination `number`; the focal losses follow the other combinations."""
    x, target, _, weight, _ = data(dtype, classes)
    if number < len(COMBINATIONS):
        kind, *rest = COMBINATIONS[number]
        t, options = arguments(kind, *data(dtype, classes), *rest)
        z_changed = "temperature" in options or "softcap" in options
    else:
        t, z_changed = target, False
        options = {"gamma": GAMMAS[number - len(COMBINATIONS)], "alpha": weight}
    terms = oracle.softmax_loss(x, t, axis=1, rounded_z=z_changed and dtype == "float64", **options)
    if dtype == "float64" and classes <= 257:
        terms = terms._replace(**exactly(x, t, options))
    return terms


def exactly(x, t, options):
    """Losses and gradients by mpmath, as long doubles."""
    options = dict(options)
    s = options.pop("sample_weight", np.ones(len(x)))
    options["weight"] = options.pop("alpha", options.get("weight"))
    losses, gradients = [], []
    for row, target, factor in zip(x, t, s, strict=True):
        loss, gradient = oracle.exact_softmax_loss(row, target, **options)
        with mpmath.workprec(oracle.PRECISION):
            losses.append(loss * float(factor))
            gradients.append([g * float(factor) for g in gradient])
    pairs = oracle.as_exact(losses), oracle.as_exact(gradients)
    names = "losses", "gradients"
    return {
        name: pair.high.astype(np.longdouble) + pair.low
        for name, pair in zip(names, pairs, strict=True)
    }


needs_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double has no more digits than float64"
)


def turned(a, axis: str):
    """Samples (n, C) with the class axis elsewhere, and where it is then."""
    if axis == "first":
        return np.ascontiguousarray(a.T), 0
    if axis == "middle":
        # Two outer positions of the same samples.
        return np.ascontiguousarray(np.stack([a.T, a.T])), 1
    return a, 1


def turned_back(g, axis: str):
    return g if axis == "last" else g.T if axis == "first" else g[1].T


def hold(got, want, sizes, limit=LIMIT):
    error = oracle.ulps(got, want, sizes)
    assert got.shape == want.shape
    assert np.isfinite(np.asarray(got, np.float64)).all()
    i = np.unravel_index(np.argmax(error), error.shape)
    assert error[i] <= limit, f"{error[i]:.3g} ulp at {i}: {got[i]!r}, exact {want[i]!r}"


def hold_loss(fl, name, x, target, options, axis, terms, limit=LIMIT):
    """Forward, value and gradient, with the class axis where `axis` says."""
    two = axis == "middle"
    logits, class_axis = turned(x, axis)
    if np.ndim(target) == 2:
        target = turned(target, axis)[0]
    elif two:
        target = np.stack([target, target])
    options = {**options, "axis": class_axis, "reduction": "none"}
    loss = getattr(fl, name)(logits, target, **options)
    assert loss.dtype == loss_dtype(x.dtype)
    fused, gradient = getattr(fl, f"{name}_value_and_grad")(logits, target, **options)
    np.testing.assert_array_equal(fused, loss)
    if two:
        np.testing.assert_array_equal(loss[0], loss[1])
        loss = loss[1]
    hold(loss, terms.losses, terms.loss_sizes, limit)
    assert gradient.dtype == x.dtype
    if x.dtype == np.float64 and "softcap" in options:
        limit += 2.0
    hold(turned_back(gradient, axis), terms.gradients, terms.gradient_sizes, limit)


# ---- b) accuracy -----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@needs_long_double
def test_options(fl, dtype, classes, axis):
    for number, (kind, *rest) in enumerate(COMBINATIONS):
        t, options = arguments(kind, *data(dtype, classes), *rest)
        x, terms = data(dtype, classes)[0], exact_terms(dtype, classes, number)
        hold_loss(fl, "cross_entropy", x, t, options, axis, terms)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@needs_long_double
def test_focal_loss(fl, dtype, classes, axis):
    x, target, _, alpha, _ = data(dtype, classes)
    for number, gamma in enumerate(GAMMAS, len(COMBINATIONS)):
        options = {"gamma": gamma, "alpha": alpha}
        terms = exact_terms(dtype, classes, number)
        limit = LIMIT + 3.0 * gamma
        hold_loss(fl, "softmax_focal_loss", x, target, options, axis, terms, limit)


@pytest.mark.parametrize("classes", [3, 40, 200, 9000])
@pytest.mark.parametrize("power", [-50, -40, -20, 20, 40, 50])
@needs_long_double
def test_temperatures_of_any_size(fl, classes, power):
    """Logits of the temperature's size, and far larger ones: no loss depends on the unit."""
    rng = np.random.default_rng(classes)
    temperature = 1.3 * 2.0**power
    x = (rng.standard_normal((6, classes)) * 3 * temperature).astype(np.float32)
    x[3:] += np.float32(2e5 * temperature)
    target = rng.integers(0, classes, 6)
    z = x.astype(np.longdouble) / np.longdouble(temperature)
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    losses, gradient = fl.cross_entropy_value_and_grad(
        x, target, temperature=temperature, reduction="none"
    )
    rows = np.arange(6)
    want = np.log(np.exp(z).sum(axis=1)) - z[rows, target]
    np.testing.assert_allclose(losses, want.astype(float), rtol=5e-7)
    p[rows, target] -= 1
    np.testing.assert_allclose(
        gradient * np.float64(temperature), p.astype(float), rtol=1e-6, atol=1e-29
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [3, 40, 9000])
def test_options_that_change_nothing(fl, dtype, classes):
    """Neutral values give the bits of a call without them."""
    x, target, p, weight, _ = data(dtype, classes)
    for t in (target, p):
        for options in ({}, {"weight": weight, "label_smoothing": 0.125}):
            want = fl.cross_entropy_value_and_grad(x, t, reduction="none", **options)
            options |= {"temperature": 1, "softcap": None, "z_loss": 0}
            got = fl.cross_entropy_value_and_grad(x, t, reduction="none", **options)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
    want = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    got = fl.softmax_focal_loss_value_and_grad(x, target, gamma=0, reduction="none")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- c) infinite, masked and far-out logits --------------------------------------------------

CHANGES = [{"temperature": 0.5}, {"softcap": 5.0}, {"z_loss": 0.5}]
CHANGES += [{"temperature": 2.0, "softcap": 5.0, "z_loss": 0.01}]


@pytest.mark.parametrize("options", CHANGES, ids=str)
@pytest.mark.parametrize("classes", [3, 40, 200, 9000])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_masked_classes(fl, dtype, classes, options):
    """Logits of −inf stay so under softcap: the answers are those of the other classes."""
    x, target, p, _, _ = data(dtype, classes)
    wide = np.full((len(x), 2 * classes), -inf, x.dtype)
    wide[:, ::2] = x
    wide_p = np.zeros(wide.shape, p.dtype)
    wide_p[:, ::2] = p
    for t, wide_t in ((target, 2 * target), (p, wide_p)):
        for turn in (lambda a: a, np.transpose):
            axis = 1 if turn(wide) is wide else 0
            loss, gradient = fl.cross_entropy_value_and_grad(
                np.ascontiguousarray(turn(wide)),
                np.ascontiguousarray(turn(wide_t)),
                axis=axis, reduction="none", **options,
            )  # fmt: skip
            z_changed = (dtype == "float64" and "z_loss" not in options) or len(options) > 1
            terms = oracle.softmax_loss(x, t, rounded_z=z_changed, **options)
            hold(loss, terms.losses, terms.loss_sizes)
            hold(turn(gradient)[:, ::2], terms.gradients, terms.gradient_sizes)
            assert not turn(gradient)[:, 1::2].any()


FOCAL = [{"gamma": gamma} for gamma in GAMMAS]


@pytest.mark.parametrize("options", [*CHANGES, *FOCAL], ids=str)
@pytest.mark.parametrize("classes", [3, 40, 9000])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [-inf, -1e30, -1e5])
def test_target_masked_or_far_below(fl, dtype, classes, options, value):
    """Loss +inf, or huge; the gradient that of the other classes, and −1 at the target."""
    x = np.zeros((2, classes), dtype)
    x[:, 1] = value
    x[1, 0] = 3.0
    name = "softmax_focal_loss" if "gamma" in options else "cross_entropy"
    z_changed = dtype == "float64" and ("temperature" in options or "softcap" in options)
    with np.errstate(invalid="ignore"):
        terms = oracle.softmax_loss(x, [1, 1], rounded_z=z_changed, **options)
    for turn in (lambda a: a, np.transpose):
        axis = 1 if turn(x) is x else 0
        loss, gradient = getattr(fl, f"{name}_value_and_grad")(
            np.ascontiguousarray(turn(x)), [1, 1], axis=axis, reduction="none", **options
        )
        if value == -inf:
            np.testing.assert_array_equal(loss, [inf, inf])
        else:
            hold(loss, terms.losses, terms.loss_sizes)
        hold(
            turn(gradient),
            terms.gradients,
            terms.gradient_sizes,
            LIMIT + 3 * options.get("gamma", 0),
        )


@pytest.mark.parametrize("options", [*CHANGES, *FOCAL], ids=str)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(70, 3), (70, 40), (5, 9000), (2, 7, 70), (2, 300, 70)])
def test_bad_sample_spoils_itself_alone(fl, dtype, shape, options):
    """NaN, +inf and nothing but −inf: NaN there, and the others' bits are what they were."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype_of(dtype))
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    name = "softmax_focal_loss" if "gamma" in options else "cross_entropy"
    evaluate = getattr(fl, f"{name}_value_and_grad")
    loss, gradient = evaluate(x, target, reduction="none", **options)
    bad = np.zeros(target.shape, bool)
    for number, value in enumerate([nan, inf, -inf]):
        sample = np.unravel_index(number * 2 * (target.size // 7), target.shape)
        classes = slice(None) if value == -inf else rng.integers(shape[1])
        x[(sample[0], classes, *sample[1:])] = value
        bad[sample] = True
    got, g = evaluate(x, target, reduction="none", **options)
    np.testing.assert_array_equal(np.isnan(got), bad)
    np.testing.assert_array_equal(got[~bad], loss[~bad])
    g, gradient = np.moveaxis(g, 1, -1), np.moveaxis(gradient, 1, -1)
    assert np.isnan(g[bad]).all()
    np.testing.assert_array_equal(g[~bad], gradient[~bad])


@pytest.mark.parametrize("options", [*CHANGES, *FOCAL], ids=str)
@pytest.mark.parametrize("classes", [3, 40, 9000])
@pytest.mark.parametrize("filling", [nan, inf, -inf, 1e30])
def test_ignored_samples_give_exact_zeros(fl, classes, filling, options):
    x, target = np.full((3, classes), filling), np.array([-100, 0, -100])
    x[1] = np.arange(classes) % 3
    name = "softmax_focal_loss" if "gamma" in options else "cross_entropy"
    evaluate = getattr(fl, f"{name}_value_and_grad")
    loss, gradient = evaluate(x, target, reduction="none", **options)
    assert not loss[[0, 2]].any()
    assert not gradient[[0, 2]].any()
    mean, mean_gradient = evaluate(x, target, **options)
    assert mean == loss[1]
    np.testing.assert_allclose(mean_gradient, gradient, rtol=1e-15)


# ---- d) reductions and weights ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["index", "smoothed", "probabilities", "focal"])
def test_reductions(fl, dtype, kind):
    """No option changes what "mean" divides by."""
    x, target, _, weight, sample_weight = data(dtype, 33)
    if kind == "focal":
        name, t, options = "softmax_focal_loss", target, {"gamma": 2.0, "alpha": weight}
    else:
        rest = {"temperature": 2.0, "softcap": 30.0, "z_loss": 0.5}
        name = "cross_entropy"
        t, options = arguments(kind, *data(dtype, 33), rest, True, False)
    options["sample_weight"] = sample_weight
    if kind != "probabilities":
        t = t.copy()
        t[3] = options["ignore_index"] = 7
    terms = oracle.softmax_loss(x, t, **options)
    share = sample_weight if kind == "probabilities" else sample_weight * weight[t]
    divisor = share[np.arange(len(x)) != 3].sum() if kind != "probabilities" else share.sum()
    evaluate = getattr(fl, f"{name}_value_and_grad")
    rtol = 1e-6 if dtype == "float32" else 1e-13
    total, gradient = evaluate(x, t, reduction="sum", **options)
    np.testing.assert_allclose(total, float(terms.losses.sum()), rtol=rtol)
    largest = float(np.abs(terms.gradients).max())
    np.testing.assert_allclose(gradient, terms.gradients.astype(float), atol=rtol * largest)
    mean, gradient = evaluate(x, t, reduction="mean", **options)
    np.testing.assert_allclose(mean, float(terms.losses.sum()) / divisor, rtol=rtol)
    want = terms.gradients.astype(float) / divisor
    np.testing.assert_allclose(gradient, want, atol=rtol * largest)
    upstream = np.linspace(-1, 2, len(x))
    got = getattr(fl, f"{name}_backward")(upstream, x, t, reduction="none", **options)
    want = terms.gradients.astype(float) * upstream[:, None]
    np.testing.assert_allclose(got, want, atol=2 * rtol * largest)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [3, 40, 9000])
def test_five_point_derivatives(fl, dtype, classes):
    """The gradient is the derivative of the loss that is returned."""
    x, target, p, weight, _ = data("float64", classes)
    x, step = np.clip(x[:2], -8, 8), 1e-3
    weights = np.array([1.0, -8.0, 8.0, -1.0]) / (12 * step)
    for t, name, options in [
        (target[:2], "cross_entropy", {"temperature": 2.0, "softcap": 9.0, "z_loss": 0.5}),
        (p[:2].astype(float), "cross_entropy", {"temperature": 0.8, "softcap": 9.0, "z_loss": 0.5}),
        (target[:2], "softmax_focal_loss", {"gamma": 1.5, "alpha": weight}),
    ]:
        loss = getattr(fl, name)
        gradient = getattr(fl, f"{name}_value_and_grad")(
            x.astype(dtype), t, reduction="sum", **options
        )[1]
        for i, c in ((0, target[0]), (1, classes // 2), (1, 0)):
            moved = np.repeat(x[None], 4, axis=0)
            moved[:, i, c] += step * np.array([-2, -1, 1, 2])
            values = [loss(m, t, reduction="sum", **options) for m in moved]
            tolerance = 1e-9 if dtype == "float64" else 1e-5
            np.testing.assert_allclose(gradient[i, c], weights @ values, atol=tolerance)


# ---- e) the oracle ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 33, 1025])
@needs_long_double
def test_oracle_is_exact_enough(classes):
    """Long double's error is below 1/20 of a float64 ulp."""
    x, target, p, weight, s = (a[:3] if np.ndim(a) else a for a in data("float64", classes))
    weight = data("float64", classes)[3]
    for kind, *rest in COMBINATIONS:
        t, options = arguments(kind, x, target, p, weight, s, *rest)
        terms, want = oracle.softmax_loss(x, t, **options), exactly(x, t, options)
        assert oracle.ulps(want["losses"].astype(float), want["losses"], 0).max() <= 0.5
        unit = np.spacing(terms.loss_sizes.astype(float))
        assert (np.abs(terms.losses - want["losses"]) <= unit / 20).all()
        unit = np.spacing(terms.gradient_sizes.astype(float))
        assert (np.abs(terms.gradients - want["gradients"]) <= unit / 20).all()
    for gamma in GAMMAS:
        options = {"gamma": gamma, "alpha": weight}
        terms, want = oracle.softmax_loss(x, target, **options), exactly(x, target, options)
        for got, name in ((terms.losses, "losses"), (terms.gradients, "gradients")):
            unit = np.spacing(np.abs(want[name]).astype(float))
            assert (np.abs(got - want[name]) <= unit / 20).all()


@pytest.mark.parametrize("option", ["temperature", "softcap"])
def test_an_option_that_has_no_reciprocal(fl, option):
    """1 / 1e-310 is infinite: a logit of 0 stays 0 nevertheless, and alike logits stay alike."""
    loss = fl.cross_entropy(np.zeros((2, 3), np.float32), [0, 1], **{option: 1e-310})
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 30, 300])
def test_probabilities_that_only_weights_over_a_temperature_bring_back(fl, classes):
    """A float has no digits of these probabilities; what they are multiplied by has a say, too."""
    logits = np.zeros((1, classes), np.float32)
    logits[0, 1:] = -50
    target = np.full((1, classes), 1.2345e-41)
    target[0, 0] = 1
    weight = np.full(classes, 9.8e7)
    weight[0] = 1e-8
    loss, grad = fl.cross_entropy_value_and_grad(
        logits, target, weight=weight, temperature=0.01, reduction="sum"
    )
    # exp(-5000) is 0 beside the rest.
    share = 9.8e7 * 1.2345e-41
    np.testing.assert_allclose(grad[0, 1:], -share / 0.01, rtol=4 * 2.0**-24)
    assert loss == pytest.approx((classes - 1) * share * 5000, rel=4 * 2.0**-24)
