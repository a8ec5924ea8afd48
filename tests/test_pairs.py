"""distillation_loss and compare_logits: two arrays of logits at once.

Layout: a) the loss against the oracle, b) digits, c) comparisons, d) special values, e) the same
bits, f) arguments.
"""

from __future__ import annotations

import warnings

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, REDUCTIONS, assert_close, dtype_of, logits, loss_dtype

inf, nan = np.inf, np.nan
DIRECTIONS = ("forward", "reverse")
TYPES = [*FLOATS, *HALVES]
SHAPES = [
    ((3, 2), 1), ((70, 5), 1), ((200, 10), 1), ((65, 128), 1), ((9, 129), 1),
    ((5, 1000), 1), ((3, 2049), 1), ((2, 5000), 1), ((7,), 0), ((10, 130), 0), ((300, 3), 0),
    ((2, 6, 5, 7), 1), ((2, 200, 70), 1), ((4, 3, 11), -1), ((2, 3, 300), -1),
]  # fmt: skip


def pair(rng, shape, dtype="float32", other=None, near=None):
    """Two arrays of logits; `near`: how far the second is from the first, relative to it."""
    x = logits(rng, shape, dtype)
    y = rng.standard_normal(shape) * 4
    if near is not None:
        y = x.astype(np.float64) * (1 + near * rng.standard_normal(shape))
    return x, y.astype(dtype_of(other or dtype))


# ---- a) the loss against the oracle ----------------------------------------------------------


def hold(fl, x, teacher, temperature=1.0, direction="forward", axis=1, **options):
    """Hold the three functions to the oracle, gradients to the size of their terms."""
    options |= {"temperature": temperature, "direction": direction, "axis": axis}
    reference = oracle.distillation_loss(x, teacher, **options)
    rows = [np.moveaxis(a, axis, -1) for a in (x, teacher)]
    parts = oracle.divergences(*rows, temperature)
    size = 1.0
    if direction == "reverse":
        size = (parts.p * np.maximum(-parts.log_p, -parts.log_q)).max(initial=0.0)
    size = float(size) * temperature * np.max(options.get("sample_weight", 1.0))
    rng = np.random.default_rng(0)
    kind = loss_dtype(x.dtype)
    for reduction in REDUCTIONS:
        options["reduction"] = reduction
        divisor = reference.denominator if reduction == "mean" else 1.0
        want = reference.loss(reduction)
        upstream = rng.standard_normal(np.shape(want))
        loss, grad = fl.distillation_loss_value_and_grad(x, teacher, **options)
        back = fl.distillation_loss_backward(upstream, x, teacher, **options)
        assert loss.dtype == kind
        assert grad.dtype == back.dtype == x.dtype
        assert_close(loss, want, kind)
        assert_close(fl.distillation_loss(x, teacher, **options), want, kind)
        assert_close(grad, reference.grad(reduction), x.dtype, size / divisor)
        larger = size / divisor * np.abs(upstream).max()
        assert_close(back, reference.backward(upstream, reduction), x.dtype, larger)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_loss(fl, shape, axis, dtype, direction):
    rng = np.random.default_rng(0)
    x, teacher = pair(rng, shape, dtype)
    hold(fl, x, teacher, direction=direction, axis=axis)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1e-30, 0.05, 0.7, 2.0, 20.0, 1e30])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(70, 10), (9, 300)])
def test_temperature_and_weights(fl, shape, dtype, temperature, direction):
    rng = np.random.default_rng(1)
    x, teacher = pair(rng, shape, dtype)
    if temperature < 1e-9 or temperature > 1e9:
        x, teacher = (a * np.asarray(temperature, dtype) for a in (x, teacher))
    weight = rng.uniform(0, 2, len(x))
    options = {"temperature": temperature, "direction": direction, "sample_weight": weight}
    reference = oracle.distillation_loss(x, teacher, **options)
    if dtype == "float32" and temperature > 1e9:
        # The loss has the square of the temperature, which no float holds.
        with np.errstate(over="ignore"):
            assert fl.distillation_loss(x, teacher, **options) == np.float32(reference.loss())
        return
    hold(fl, x, teacher, **options)


@pytest.mark.parametrize("shape", [(70, 10), (9, 300), (2, 3000), (2, 7, 90)])
@pytest.mark.parametrize("other", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_two_types(fl, dtype, other, shape):
    """Each array keeps its type; the gradient has the student's, the loss the wider one."""
    rng = np.random.default_rng(2)
    x, teacher = pair(rng, shape, dtype, other)
    loss, grad = fl.distillation_loss_value_and_grad(x, teacher, reduction="none")
    want = oracle.distillation_loss(x, teacher)
    assert grad.dtype == x.dtype
    assert loss.dtype == max(loss_dtype(dtype), loss_dtype(other))
    np.testing.assert_allclose(loss, want.losses, rtol=1e-6)
    limit = {"float16": 1e-3, "bfloat16": 8e-3}.get(dtype, 1e-6)
    np.testing.assert_allclose(grad.astype(float), want.gradients, rtol=limit, atol=limit * 0.1)


# ---- b) digits -------------------------------------------------------------------------------

# How the second array comes of the first. What is nearer than a number's last digit is the same.
NEAR = {
    "far": lambda rng, x: rng.standard_normal(x.shape) * 4,
    "other": lambda rng, x: x + rng.standard_normal(x.shape),
    "near": lambda rng, x: x * (1 + 1e-3 * rng.standard_normal(x.shape)),
    "nearer": lambda rng, x: x * (1 + 1e-6 * rng.standard_normal(x.shape)),
    "half": lambda rng, x: x.astype(np.float16),
    "moved": lambda rng, x: x + 5 + 1e-3 * rng.standard_normal(x.shape),
    "one": lambda rng, x: x + 1e-3 * (np.arange(x.shape[1]) == 1),
    "confident": lambda rng, x: (
        np.where(x == x.max(axis=1, keepdims=True), x + 12, x) + rng.standard_normal(x.shape)
    ),
}


def exact(x, y, temperature):
    return [oracle.exact_divergences(a, b, temperature) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("classes", [2, 3, 10, 130])
@pytest.mark.parametrize("dtype", FLOATS)
def test_digits(fl, dtype, classes, near, temperature):
    """Losses and gradients to a few units in the last place, where the two are alike as well."""
    rng = np.random.default_rng(classes)
    x = logits(rng, (4 if classes > 10 else 12, classes), dtype)
    y = NEAR[near](rng, x.astype(np.float64)).astype(dtype)
    truth = exact(x, y, temperature)
    found = fl.compare_logits(x, y, temperature=temperature)
    limit = 4 if dtype == "float32" else 6
    for got, want in zip((found.kl, found.reverse_kl), zip(*truth, strict=True), strict=False):
        want = oracle.as_exact(want)
        none = (want.high < 1e-30) & (got <= 1e-30)
        assert oracle.ulp_error(got, want)[~none].max(initial=0) <= limit
    for number, direction in enumerate(DIRECTIONS):
        _, grad = fl.distillation_loss_value_and_grad(
            x, y, temperature=temperature, direction=direction, reduction="none"
        )
        want = oracle.as_exact([row[2 + number] for row in truth])
        parts = oracle.divergences(x, y, temperature)
        terms, least = np.maximum(parts.p, parts.q), 0.0
        if direction == "reverse":
            sizes = (-parts.log_p, -parts.log_q, parts.kl[:, None])
            terms = parts.p * np.maximum.reduce(np.broadcast_arrays(*sizes))
            # The difference of two logarithms of sums has no digits below that.
            least = 1e-14 * parts.p
        error = np.abs(grad.astype(float) / temperature - want.high - want.low)
        unit = np.spacing(terms.astype(dtype)).astype(float)
        assert (error <= limit * unit + least).all(), (error / unit).max()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("classes", "left"), [(300, 5), (300, 30), (4095, 5), (4095, 409)])
def test_thousands_of_classes_that_one_array_masks(fl, classes, left, axis):
    """Each of them adds its share to the sums, which keep their digits."""
    x = np.full((classes, 16), 1.200014591217041)
    y = np.full((classes, 16), -inf)
    y[7 : 7 + left] = 0.3
    if axis:
        x, y = x.T.copy(), y.T.copy()
    want = float(mpmath.log(mpmath.mpf(classes) / left))
    found = fl.compare_logits(x, y, axis=axis)
    assert (found.kl == inf).all()
    np.testing.assert_allclose(found.reverse_kl, want, rtol=4 * 2.0**-52)
    np.testing.assert_allclose(fl.compare_logits(y, x, axis=axis).kl, want, rtol=4 * 2.0**-52)
    loss = fl.distillation_loss(x, y, axis=axis, reduction="none")
    np.testing.assert_allclose(loss, want, rtol=4 * 2.0**-52)


def test_digits_of_large_logits(fl):
    """What exponentials of large logits are off by counts some times, in float32."""
    rng = np.random.default_rng(0)
    base = rng.uniform(-1000, 1000, 20_000).astype(np.float32)
    gap = rng.uniform(1, 64, len(base)).astype(np.float32)
    x = np.stack([base, base - gap], axis=1)
    y = np.float32([[0, -500]] * len(base))
    # The second softmax is (1, 0) to 200 digits.
    want = np.log1p(np.exp(x[:, 1].astype(float) - x[:, 0]))
    found = fl.compare_logits(x, y).reverse_kl
    unit = np.spacing(want.astype(np.float32)).astype(float)
    assert (np.abs(found - want) / unit).max() <= 8


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [1, 10, 130, 3000])
def test_equal_logits_give_exact_zeros(fl, dtype, classes):
    x = logits(np.random.default_rng(3), (5, classes), dtype)
    found = fl.compare_logits(x, x.copy())
    assert (found.kl == 0).all()
    assert (found.reverse_kl == 0).all()
    for direction in DIRECTIONS:
        loss, grad = fl.distillation_loss_value_and_grad(x, x.copy(), direction=direction)
        assert loss == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_one_class(fl, dtype):
    """There is nothing to learn: no loss, and no gradient but for what logarithms lose."""
    x, y = pair(np.random.default_rng(16), (100, 1), dtype)
    for direction in DIRECTIONS:
        loss, grad = fl.distillation_loss_value_and_grad(x, y, direction=direction, reduction="sum")
        assert loss == 0
        limit = 4 * np.finfo(np.float64 if dtype == "float64" else np.float32).eps
        assert (np.abs(grad.astype(float)) <= limit).all()


def test_long_rows_with_an_outlying_first_block(fl):
    """The first block of a long row says nothing of the rest: terms are summed again."""
    rng = np.random.default_rng(4)
    for dtype in FLOATS:
        x = logits(rng, (3, 6000), dtype)
        x[:, :2048] -= 30
        y = x + (1e-3 * rng.standard_normal(x.shape)).astype(dtype)
        y[:, :2048] += np.asarray([[8], [-25], [-inf]], dtype)
        y[2, 2048:] += 3
        found = fl.compare_logits(x, y)
        want = oracle.divergences(x, y)
        np.testing.assert_allclose(found.reverse_kl, want.reverse_kl.astype(float), rtol=1e-5)
        np.testing.assert_allclose(found.kl[:2], want.kl[:2].astype(float), rtol=1e-5)
        assert found.kl[2] == inf


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 8191), (1, 256, 2)])
def test_a_first_block_that_almost_underflows(fl, shape, dtype):
    """Its exponentials are the smallest that there are: their quotient is no number."""
    rng = np.random.default_rng(15)
    x = rng.standard_normal(shape).astype(dtype)
    for far in (*range(60, 120, 3), *range(690, 760, 3)):
        y = x.copy()
        y[:, -1] += far
        found = fl.compare_logits(x, y)
        want = oracle.divergences(*(np.moveaxis(a, 1, -1) for a in (x, y)))
        np.testing.assert_allclose(found.kl, want.kl.astype(float), rtol=1e-5)
        np.testing.assert_allclose(found.reverse_kl, want.reverse_kl.astype(float), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions_lose_nothing(fl, reduction):
    x, y = pair(np.random.default_rng(5), (20_000, 7), near=1e-3)
    terms = oracle.divergences(x, y).reverse_kl
    want = terms.sum() if reduction == "sum" else terms.mean()
    got = fl.distillation_loss(x, y, reduction=reduction)
    assert abs(float(got) - float(want)) <= np.spacing(np.float32(want))


# ---- c) comparisons --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_comparison(fl, shape, axis, dtype):
    rng = np.random.default_rng(6)
    x, y = pair(rng, shape, dtype)
    samples = np.delete(shape, axis)
    target = rng.integers(0, shape[axis], samples)
    found = fl.compare_logits(x, y, target, axis=axis)
    rows = [np.moveaxis(a, axis, -1).astype(np.float64) for a in (x, y)]
    want = oracle.divergences(*rows)
    scores = [oracle.score_samples(a, target, axis=-1) for a in rows]
    np.testing.assert_allclose(found.kl, want.kl.astype(float), rtol=1e-6)
    np.testing.assert_allclose(found.reverse_kl, want.reverse_kl.astype(float), rtol=1e-6)
    np.testing.assert_array_equal(found.predicted, scores[0].predicted)
    np.testing.assert_array_equal(found.other_predicted, scores[1].predicted)
    np.testing.assert_array_equal(found.same_prediction, scores[0].predicted == scores[1].predicted)
    np.testing.assert_allclose(found.log_prob, scores[0].log_prob, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.other_log_prob, scores[1].log_prob, rtol=1e-6, atol=1e-12)
    assert found.kl.dtype == found.log_prob.dtype == loss_dtype(dtype)
    assert found.kl.shape == found.same_prediction.shape == found.log_prob.shape == target.shape
    without = fl.compare_logits(x, y, axis=axis)
    assert without.log_prob is without.other_log_prob is None
    np.testing.assert_array_equal(without.predicted, found.predicted)


@pytest.mark.parametrize("classes", [10, 300])
def test_confident_log_probabilities_keep_their_digits(fl, classes):
    x = np.zeros((1, classes), np.float32)
    x[0, 3] = 40
    found = fl.compare_logits(x, 2 * x, [3])
    np.testing.assert_allclose(found.log_prob, -(classes - 1) * np.exp(-40.0), rtol=1e-6)
    np.testing.assert_allclose(found.other_log_prob, -(classes - 1) * np.exp(-80.0), rtol=1e-6)


@pytest.mark.parametrize("classes", [5, 300])
def test_ignored_samples_are_nan(fl, classes):
    x, y = pair(np.random.default_rng(7), (4, classes))
    found = fl.compare_logits(x, y, [1, -100, 0, -100])
    for numbers in (found.kl, found.reverse_kl, found.log_prob, found.other_log_prob):
        np.testing.assert_array_equal(np.isnan(numbers), [False, True, False, True])
    other = fl.compare_logits(x, y, [1, 7, 0, 7], ignore_index=7)
    np.testing.assert_array_equal(found.kl, other.kl)


# ---- d) special values -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [4, 200, 5000])
def test_masked_classes(fl, dtype, classes):
    """Masked in both: as if the class were not there. In one: one divergence is infinite."""
    rng = np.random.default_rng(8)
    x, y = pair(rng, (3, classes), dtype)
    masked = rng.random(classes) < 0.5
    masked[:2] = False, True
    x[:, masked] = y[:, masked] = -inf
    rest = fl.compare_logits(x[:, ~masked], y[:, ~masked])
    found = fl.compare_logits(x, y)
    np.testing.assert_allclose(found.kl, rest.kl, rtol=1e-5)
    np.testing.assert_allclose(found.reverse_kl, rest.reverse_kl, rtol=1e-5)
    for direction in DIRECTIONS:
        loss, grad = fl.distillation_loss_value_and_grad(x, y, direction=direction)
        assert np.isfinite(loss)
        assert (grad[:, masked] == 0).all()
        assert np.isfinite(grad.astype(float)).all()
    y[:, 1] = 0
    found = fl.compare_logits(x, y)
    assert np.isfinite(found.kl).all()
    assert (found.reverse_kl == inf).all()
    loss, grad = fl.distillation_loss_value_and_grad(x, y, reduction="none")
    assert (loss == inf).all()
    np.testing.assert_allclose(
        grad[:, 1].astype(float),
        -oracle.divergences(x, y).q[:, 1].astype(float),
        rtol=1e-2,
        atol=1e-7,
    )
    swapped = fl.compare_logits(y, x)
    assert (swapped.kl == inf).all()
    assert np.isfinite(swapped.reverse_kl).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [4, 200, 5000])
@pytest.mark.parametrize("value", [nan, inf, "all masked"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_bad_sample_spoils_itself_alone(fl, dtype, classes, value, which):
    rng = np.random.default_rng(9)
    both = pair(rng, (70 if classes == 4 else 3, classes), dtype)
    target = np.zeros(len(both[0]), int)
    clean = fl.compare_logits(*both, target)
    if value == "all masked":
        both[which][1] = -inf
    else:
        both[which][1, classes // 2] = value
    found = fl.compare_logits(*both, target)
    others = np.arange(len(clean.kl)) != 1
    for got, want in ((found.kl, clean.kl), (found.reverse_kl, clean.reverse_kl)):
        assert np.isnan(got[1])
        np.testing.assert_array_equal(got[others], want[others])
    log_probs = found.log_prob, found.other_log_prob
    assert np.isnan(log_probs[which][1])
    assert np.isfinite(log_probs[1 - which]).all()
    _, grad = fl.distillation_loss_value_and_grad(*both, reduction="sum")
    assert np.isfinite(grad[others].astype(float)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 100, 3000])
@pytest.mark.parametrize("scale", [100.0, 1e3, 1e5, 1e30])
def test_logits_that_span_more_than_exponentials_can(fl, dtype, classes, scale):
    x, y = pair(np.random.default_rng(10), (20, classes), dtype)
    x, y = x * np.asarray(scale, dtype), y * np.asarray(scale, dtype)
    found, want = fl.compare_logits(x, y), oracle.divergences(x, y)
    # Below, an exponential is 0 here, as a probability it is 1e-59 and less.
    np.testing.assert_allclose(found.kl, want.kl.astype(float), rtol=2e-6, atol=1e-35)
    np.testing.assert_allclose(
        found.reverse_kl, want.reverse_kl.astype(float), rtol=2e-6, atol=1e-35
    )


def test_no_sample_and_no_class(fl):
    found = fl.compare_logits(np.empty((0, 3)), np.empty((0, 3)), np.empty(0, int))
    assert all(part.shape == (0,) for part in found)
    assert np.isnan(fl.distillation_loss(np.empty((0, 3)), np.empty((0, 3))))
    assert fl.distillation_loss(np.empty((0, 3)), np.empty((0, 3)), reduction="sum") == 0
    found = fl.compare_logits(np.empty((2, 0)), np.empty((2, 0)))
    assert np.isnan(found.kl).all()


def test_weights_of_zero(fl):
    x, y = pair(np.random.default_rng(11), (3, 4))
    y[0, 1] = -inf
    loss = fl.distillation_loss(x, y, direction="reverse", sample_weight=[0, 1, 1])
    assert np.isfinite(loss)
    for direction in DIRECTIONS:
        options = {"direction": direction, "sample_weight": [0, 1, 1]}
        loss, grad = fl.distillation_loss_value_and_grad(x, y, reduction="none", **options)
        assert loss[0] == 0
        assert (grad[0] == 0).all()
        assert np.isfinite(grad).all()
        options["sample_weight"] = 0.0
        loss, grad = fl.distillation_loss_value_and_grad(x, y, **options)
        assert np.isnan(loss)
        assert (grad == 0).all()


# ---- e) the same bits ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [1, 2, 10, 128, 129, 2048, 2049, 5000])
def test_same_bits_for_a_sample_alone(fl, classes, dtype):
    """Whatever lies beside it: near and far samples, masked ones, maxima far off."""
    rng = np.random.default_rng(classes)
    n = 70 if classes <= 200 else 5
    x = (rng.standard_normal((n, classes)) * rng.choice([0.1, 1, 10, 300], (n, 1))).astype(dtype)
    y = x * (1 + rng.choice([1e-6, 1e-3, 1, 30], (n, 1)) * rng.standard_normal((n, classes)))
    y = y.astype(dtype)
    y[rng.random(n) < 0.2, 0] = -inf
    t = rng.integers(0, classes, n)
    whole = fl.compare_logits(x, y, t, temperature=1.3)
    losses, grads = fl.distillation_loss_value_and_grad(x, y, reduction="none")
    backs = fl.distillation_loss_backward(np.ones(n), x, y, direction="reverse", reduction="none")
    for i in (0, 1, n - 1):
        one = slice(i, i + 1)
        for got, want in zip(fl.compare_logits(x[one], y[one], t[one], temperature=1.3), whole,
                             strict=True):  # fmt: skip
            np.testing.assert_array_equal(got, want[one])
        loss, grad = fl.distillation_loss_value_and_grad(x[one], y[one], reduction="none")
        np.testing.assert_array_equal(loss, losses[one])
        np.testing.assert_array_equal(grad, grads[one])
        back = fl.distillation_loss_backward(1.0, x[one], y[one], direction="reverse")
        np.testing.assert_array_equal(back, backs[one])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_into_out_and_in_place(fl, shape, axis, dtype, direction):
    x, y = pair(np.random.default_rng(12), shape, dtype)
    options = {"direction": direction, "axis": axis}
    loss, grad = fl.distillation_loss_value_and_grad(x, y, **options)
    assert loss == fl.distillation_loss(x, y, **options)
    np.testing.assert_array_equal(fl.distillation_loss_backward(1.0, x, y, **options), grad)
    room = np.full(x.size + 8, 3, x.dtype)
    out = room[3 : 3 + x.size].reshape(x.shape)
    out[...] = x
    again, same = fl.distillation_loss_value_and_grad(out, y, out=out, **options)
    assert same is out
    assert again == loss
    np.testing.assert_array_equal(out, grad)
    assert (room[:3] == 3).all()
    assert (room[3 + x.size :] == 3).all()
    with pytest.raises(ValueError, match="overlaps"):
        fl.distillation_loss_value_and_grad(x, y, out=y, **options)


def test_other_layouts(fl):
    x, y = pair(np.random.default_rng(13), (40, 30))
    want = fl.compare_logits(x, y)
    for a, b in [
        (np.asfortranarray(x), y),
        (x, np.repeat(y, 2, axis=1)[:, ::2]),
        (x.astype(">f4"), y[::-1].copy()[::-1]),
    ]:
        for got, one in zip(fl.compare_logits(a, b)[:5], want[:5], strict=True):
            np.testing.assert_array_equal(got, one)


def test_arrays_are_only_read(fl):
    x, y = pair(np.random.default_rng(14), (70, 30))
    t = np.zeros(70, int)
    for array in (x, y, t):
        array.setflags(write=False)
    fl.compare_logits(x, y, t)
    fl.distillation_loss_value_and_grad(x, y)


# ---- f) arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((np.zeros((2, 3)), np.zeros((3, 2))), {}, ValueError, r"shape of logits, \(2, 3\), got"),
        ((np.zeros((2, 3)), np.zeros(3)), {}, ValueError, "teacher_logits must have the shape"),
        ((np.zeros((2, 3)), np.zeros((2, 3), complex)), {}, TypeError, "teacher_logits must be"),
        ((np.zeros((2, 3)), [["a"] * 3] * 2), {}, TypeError, "teacher_logits must be real"),
        ((np.zeros(()), np.zeros(())), {}, ValueError, "class axis"),
        ((np.zeros((2, 3)),) * 2, {"axis": 2}, ValueError, "axis 2"),
        ((np.zeros((2, 3)),) * 2, {"temperature": 0}, ValueError, "temperature"),
        ((np.zeros((2, 3)),) * 2, {"temperature": nan}, ValueError, "temperature"),
        ((np.zeros((2, 3)),) * 2, {"temperature": "1"}, TypeError, "temperature"),
        ((np.zeros((2, 3)),) * 2, {"direction": "both"}, ValueError, "'forward', 'reverse'"),
        ((np.zeros((2, 3)),) * 2, {"direction": 1}, TypeError, "direction"),
        ((np.zeros((2, 3)),) * 2, {"reduction": "batchmean"}, ValueError, "reduction"),
        ((np.zeros((2, 3)),) * 2, {"sample_weight": [1, 2, 3]}, ValueError, "sample_weight"),
    ],
)
def test_wrong_arguments_of_the_loss(arguments, options, error, text):
    import fastloss

    with pytest.raises(error, match=text):
        fastloss.distillation_loss(*arguments, **options)


@pytest.mark.parametrize(
    ("target", "options", "error", "text"),
    [
        ([0, 3], {}, IndexError, r"class 3 at position 1, outside \[0, 3\)"),
        ([0, -1], {}, IndexError, "class -1 at position 1"),
        ([0.0, 1.0], {}, TypeError, "class indices must be integers"),
        ([0], {}, ValueError, "target of shape"),
        (None, {"ignore_index": 0.5}, TypeError, "ignore_index"),
        (None, {"temperature": -1}, ValueError, "temperature"),
    ],
)
def test_wrong_arguments_of_the_comparison(target, options, error, text):
    import fastloss

    with pytest.raises(error, match=text):
        fastloss.compare_logits(np.zeros((2, 3)), np.zeros((2, 3)), target, **options)
    with pytest.raises(ValueError, match="other must have the shape"):
        fastloss.compare_logits(np.zeros((2, 3)), np.zeros((2, 4)))


def test_nothing_warns(fl):
    x = np.array([[3e38, -3e38], [0, -inf], [1, 2]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.compare_logits(x, x[:, ::-1], [0, 1, 0])
        fl.distillation_loss(x, x[:, ::-1], temperature=3.0, reduction="none")


def test_oracle_of_mpmath_and_of_long_doubles_agree():
    x, y = pair(np.random.default_rng(15), (4, 9), "float64")
    want = oracle.divergences(x, y, 2.0)
    for i, (kl, reverse_kl, *_) in enumerate(exact(x, y, 2.0)):
        with mpmath.workprec(oracle.PRECISION):
            assert abs(float(kl) / float(want.kl[i]) - 1) < 1e-14
            assert abs(float(reverse_kl) / float(want.reverse_kl[i]) - 1) < 1e-14
