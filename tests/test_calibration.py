"""brier_score, calibration_error and fit_temperature.

Layout: a) the Brier score, b) calibration error, c) temperature, d) agreement with scikit-learn,
e) errors. Their oracles are float64 NumPy, mpmath and SciPy's minimiser.
"""

from __future__ import annotations

import inspect

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, dtype_of, logits, loss_dtype


def problem(shape, dtype="float32", seed=0, scale=2.0, right=0.6):
    """Logits, and targets of a model that is mostly right; some of them ignored."""
    rng = np.random.default_rng(seed)
    axis = oracle.class_axis(len(shape))
    x = logits(rng, shape, dtype, scale)
    target = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    target = np.where(rng.random(target.shape) < right, x.astype(float).argmax(axis=axis), target)
    return x, np.where(rng.random(target.shape) < 0.1, -100, target)


# ---- a) the Brier score ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(50, 2), (40, 20), (30, 300), (4, 9000), (3, 12, 30)])
def test_brier_score(fl, shape, dtype):
    x, target = problem(shape, dtype)
    want = np.nan_to_num(oracle.score_samples(x, target).brier)
    each = fl.brier_score(x, target, reduction="none")
    assert each.dtype == loss_dtype(dtype)
    assert_close(each, want, units=4)
    counted = np.count_nonzero(target != -100)
    assert_close(fl.brier_score(x, target, reduction="sum"), want.sum(), units=4)
    assert_close(fl.brier_score(x, target), want.sum() / counted, units=4)
    weight = np.random.default_rng(1).random(target.shape) * (target != 1)
    want = (want * weight).sum() / (weight * (target != -100)).sum()
    assert_close(fl.brier_score(x, target, sample_weight=weight), want, units=4)


def exact_brier(row, t):
    with mpmath.workprec(oracle.PRECISION):
        p, q, _ = oracle.exact_softmax_parts(row)
        return mpmath.fsum(q[c] ** 2 if c == t else v**2 for c, v in enumerate(p))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 30, 40, 1100])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("turned", [False, True])
def test_brier_score_keeps_its_digits(fl, classes, dtype, scale, turned):
    """Confident samples included, right and wrong: within 4 ulp of the exact value."""
    x, target = problem((24, classes), dtype, scale=scale)
    target = np.abs(target) % classes
    want = oracle.as_exact([exact_brier(row, t) for row, t in zip(x, target, strict=True)])
    options = {"axis": 0} if turned else {}
    got = fl.brier_score(np.ascontiguousarray(x.T) if turned else x, target, reduction="none",
                         **options)  # fmt: skip
    # Squares below the smallest normal number have lost digits.
    normal = want.high >= np.finfo(dtype).smallest_normal / np.finfo(dtype).eps
    assert (oracle.ulp_error(got, want)[normal] <= 4).all()


def test_brier_score_from_zero_to_two(fl):
    x = np.array([[100.0, 0.0, -5.0]] * 2)
    np.testing.assert_allclose(fl.brier_score(x, [0, 2], reduction="none"), [0, 2], atol=1e-80)
    assert fl.brier_score(np.zeros((1, 4)), [3]) == 0.75
    # As of two coins: twice the binary score.
    assert fl.brier_score(np.log([[0.7, 0.3]]), [1]) == pytest.approx(2 * 0.7**2)


# ---- b) calibration error --------------------------------------------------------------------


def calibration(x, target, bins, strategy, weight=None, temperature=1.0):
    """By sorting samples into bins one after the other."""
    scores = oracle.score_samples(x, target, temperature=temperature)
    live = target != -100
    confidence = np.exp(scores.predicted_log_prob[live])
    right = (scores.predicted == target)[live]
    weight = np.ones(live.sum()) if weight is None else weight[live]
    edges = [i / bins for i in range(1, bins)]
    if strategy == "quantile":
        order = np.argsort(confidence, kind="stable")
        mass = np.cumsum(weight[order])
        edges = [
            confidence[order][np.flatnonzero(mass >= i * mass[-1] / bins)[0]]
            for i in range(1, bins)
        ]
    table = np.zeros((3, bins))
    for c, r, w in zip(confidence, right, weight, strict=True):
        b = sum(c > edge for edge in edges)
        table[:, b] += w, w * c, w * r
    full = table[0] > 0
    gaps = np.abs(table[1, full] - table[2, full])
    return gaps.sum() / weight.sum(), (gaps / table[0, full]).max(), table[0]


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize("weighted", [False, True])
def test_calibration_error(fl, strategy, bins, weighted):
    x, target = problem((300, 6), "float64")
    weight = np.random.default_rng(2).integers(1, 5, 300) / 4.0 if weighted else None
    options = {"n_bins": bins, "strategy": strategy, "sample_weight": weight, "temperature": 1.5}
    got = fl.calibration_error(x, target, **options)
    expected, maximum, mass = calibration(x, target, bins, strategy, weight, 1.5)
    assert got.expected == pytest.approx(expected, rel=1e-12)
    assert got.maximum == pytest.approx(maximum, rel=1e-12)
    np.testing.assert_array_equal(got.bins.samples, mass)
    np.testing.assert_array_equal(got.bins.lower[1:], got.bins.upper[:-1])
    assert (got.bins.lower[0], got.bins.upper[-1]) == (0, 1)
    filled = got.bins.samples > 0
    used = [part[filled] for part in got.bins]
    assert ((used[0] < used[3]) & (used[3] <= used[1])).all()
    assert np.isnan(got.bins.accuracy[~filled]).all()


def test_bins_of_equal_mass(fl):
    x, target = problem((1500, 6), "float32")
    target = np.abs(target) % 6
    got = fl.calibration_error(x, target, strategy="quantile")
    assert (got.bins.samples == 100).all()
    # Samples that are all alike are in one bin.
    got = fl.calibration_error(np.zeros((50, 4)), np.arange(50) % 4, strategy="quantile")
    assert sorted(got.bins.samples) == [0] * 14 + [50]
    assert got.expected == pytest.approx(abs(13 / 50 - 1 / 4))


def test_confidence_on_an_edge_belongs_to_the_bin_below(fl):
    x = np.array([[0.0, 0.0], [50.0, 0.0]])
    bins = fl.calibration_error(x, [0, 0], n_bins=2).bins
    np.testing.assert_array_equal(bins.samples, [1, 1])


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_order_of_samples_changes_no_bit(fl, strategy):
    x, target = problem((2000, 10))
    weight = np.random.default_rng(3).random(2000)
    order = np.random.default_rng(4).permutation(2000)
    for w in (None, weight):
        kept = None if w is None else w[order]
        one = fl.calibration_error(x, target, strategy=strategy, sample_weight=w)
        two = fl.calibration_error(x[order], target[order], strategy=strategy, sample_weight=kept)
        if w is None or strategy == "uniform":
            assert (one.expected, one.maximum) == (two.expected, two.maximum)
        np.testing.assert_allclose(one.expected, two.expected, rtol=1e-14)


def test_samples_without_a_softmax(fl):
    x, target = problem((100, 5))
    target = np.abs(target) % 5
    want = fl.calibration_error(x[1:], target[1:])
    x[0, 1] = np.nan
    got = fl.calibration_error(x, target)
    assert np.isnan([got.expected, got.maximum]).all()
    np.testing.assert_array_equal(got.bins.samples, want.bins.samples)
    assert np.isnan(fl.brier_score(x, target))
    # Ignored, or of no weight, it does not count.
    target[0] = -100
    assert fl.calibration_error(x, target).expected == want.expected
    target[0] = 0
    weight = np.arange(100) > 0
    assert fl.calibration_error(x, target, sample_weight=weight).expected == want.expected
    assert fl.brier_score(x, target, sample_weight=weight) == fl.brier_score(x[1:], target[1:])


def test_nothing_counts(fl):
    for x, target in ((np.zeros((3, 2)), np.full(3, -100)), (np.zeros((0, 2)), np.zeros(0, int))):
        got = fl.calibration_error(x, target)
        assert np.isnan([got.expected, got.maximum]).all()
        assert not got.bins.samples.any()
        assert np.isnan(fl.brier_score(x, target))
        assert fl.brier_score(x, target, reduction="sum") == 0


# ---- c) temperature --------------------------------------------------------------------------


def drawn(shape, dtype="float64", factor=1.0, seed=0):
    """Logits `factor` times what their targets were drawn from."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 2
    target = (x + rng.gumbel(size=shape)).argmax(axis=1)
    return (x * factor).astype(dtype_of(dtype)), target


def minimised(x, target, weight=None):
    """SciPy's minimiser on the oracle's loss, over the logarithm of the temperature."""
    optimize = pytest.importorskip("scipy.optimize")

    def loss(t):
        each = -oracle.score_samples(x, target, temperature=float(np.exp(t))).log_prob
        return np.average(each[target != -100], weights=weight)

    options = {"xatol": 1e-10}
    return optimize.minimize_scalar(loss, bounds=(-8, 8), method="bounded", options=options)


@pytest.mark.parametrize("dtype", [*FLOATS, "float16"])
@pytest.mark.parametrize("shape", [(3000, 4), (500, 60), (40, 3000)])
@pytest.mark.parametrize("factor", [0.05, 1.0, 8.0])
def test_fit_temperature(fl, shape, dtype, factor):
    x, target = drawn(shape, dtype, factor)
    target[::7] = -100
    fit = fl.fit_temperature(x, target)
    want = minimised(x, target)
    # A minimiser that sees losses alone knows half of their digits.
    assert fit.temperature == pytest.approx(np.exp(want.x), rel=1e-6)
    assert fit.loss <= want.fun * (1 + 1e-14)
    assert fit.loss == pytest.approx(want.fun, rel=1e-13)
    before = -oracle.score_samples(x, target).log_prob[target != -100].mean()
    assert fit.loss_before == pytest.approx(before, rel=1e-13)
    assert fit.loss <= fit.loss_before
    assert 1 <= fit.steps < 12


def test_the_derivative_vanishes(fl):
    """Where the loss is flat, by differences of mpmath."""
    x, target = drawn((12, 3), seed=3, factor=2.0)
    fit = fl.fit_temperature(x, target)
    with mpmath.workprec(300):

        def loss(b):
            total = mpmath.mpf(0)
            for row, t in zip(x, target, strict=True):
                z = [mpmath.mpf(float(v)) * b for v in row]
                total += mpmath.log(mpmath.fsum(map(mpmath.exp, z))) - z[int(t)]
            return total

        best = mpmath.findroot(lambda b: mpmath.diff(loss, b), 1 / mpmath.mpf(fit.temperature))
        assert abs(fit.temperature * best - 1) < 1e-9


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fit_of_any_layout(fl, axis):
    x, target = drawn((600, 5), "float32", 3.0)
    want = fl.fit_temperature(x, target)
    images = np.moveaxis(x.reshape(20, 30, 5), 2, axis)
    got = fl.fit_temperature(images, target.reshape(20, 30), axis=axis)
    assert got.temperature == pytest.approx(want.temperature, rel=1e-12)


def test_weights_are_repetitions(fl):
    x, target = drawn((400, 5), factor=2.0)
    times = np.random.default_rng(5).integers(0, 4, 400)
    got = fl.fit_temperature(x, target, sample_weight=times)
    want = fl.fit_temperature(np.repeat(x, times, axis=0), np.repeat(target, times))
    assert got.temperature == pytest.approx(want.temperature, rel=1e-12)
    assert got.loss == pytest.approx(want.loss, rel=1e-14)
    assert got.calibration_error == pytest.approx(want.calibration_error, rel=1e-12)


def test_scaled_logits_have_a_scaled_temperature(fl):
    x, target = drawn((2000, 6))
    want = fl.fit_temperature(x, target)
    for factor in (2.0**-30, 2.0**-7, 2.0**12, 2.0**40):
        got = fl.fit_temperature(x * factor, target)
        assert got.temperature == pytest.approx(want.temperature * factor, rel=1e-9)
        assert got.loss == pytest.approx(want.loss, rel=1e-13)
        # Each step is a pass over the logits.
        assert got.steps <= 10


def test_calibration_before_and_after(fl):
    x, target = drawn((5000, 5), "float32", 4.0)
    fit = fl.fit_temperature(x, target)
    after = fl.calibration_error(x, target, temperature=fit.temperature)
    assert fit.calibration_error == pytest.approx(after.expected, rel=1e-5)
    before = fl.calibration_error(x, target)
    assert fit.calibration_error_before == pytest.approx(before.expected, rel=1e-5)
    assert fit.calibration_error < fit.calibration_error_before / 5


def test_all_temperatures_alike(fl):
    fit = fl.fit_temperature(np.full((4, 3), 2.0), np.array([0, 1, 2, 0]))
    assert (fit.temperature, fit.steps) == (1.0, 0)
    assert fit.loss == pytest.approx(np.log(3))


def test_no_temperature_minimises(fl):
    x = np.random.default_rng(6).standard_normal((50, 4))
    with pytest.raises(ValueError, match="the lower the temperature"):
        fl.fit_temperature(x, x.argmax(axis=1))
    with pytest.raises(ValueError, match="the higher the temperature"):
        fl.fit_temperature(x, x.argmin(axis=1))


# ---- d) agreement with scikit-learn ----------------------------------------------------------


def test_brier_score_of_scikit_learn(fl):
    metrics = pytest.importorskip("sklearn.metrics")
    x, target = drawn((300, 4), factor=2.0)
    p = oracle.softmax(x)
    binary, right = x[:, :2], target % 2
    half = metrics.brier_score_loss(right, oracle.softmax(binary)[:, 1])
    assert fl.brier_score(binary, right) == pytest.approx(2 * half, rel=1e-12)
    if "scale_by_half" not in inspect.signature(metrics.brier_score_loss).parameters:
        pytest.skip("this scikit-learn has the binary score alone")
    whole = metrics.brier_score_loss(target, p, scale_by_half=False, labels=range(4))
    assert fl.brier_score(x, target) == pytest.approx(whole, rel=1e-12)


def test_calibration_curve_of_scikit_learn(fl):
    """Of two classes it bins the probability of the second: here that of the prediction."""
    curve = pytest.importorskip("sklearn.calibration").calibration_curve
    x, target = drawn((2000, 2), factor=2.0)
    x.sort(axis=1)  # the second class is always predicted
    bins = fl.calibration_error(x, target, n_bins=10).bins
    right, sure = curve(target, oracle.softmax(x)[:, 1], n_bins=10)
    filled = bins.samples > 0
    np.testing.assert_allclose(bins.accuracy[filled], right, rtol=1e-12)
    np.testing.assert_allclose(bins.confidence[filled], sure, rtol=1e-12)


def test_temperature_scaling_of_scikit_learn(fl):
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("this scikit-learn has no temperature scaling")
    x, target = drawn((3000, 5), factor=3.0)
    theirs = calibration._TemperatureScaling().fit(x, target)
    assert fl.fit_temperature(x, target).temperature == pytest.approx(1 / theirs.beta_, rel=1e-3)


# ---- e) errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brier_score", "calibration_error", "fit_temperature"])
def test_wrong_arguments(fl, name):
    call = getattr(fl, name)
    x, target = np.zeros((4, 3)), np.zeros(4, int)
    with pytest.raises(IndexError, match="7"):
        call(x, np.array([0, 7, 0, 0]))
    with pytest.raises(ValueError, match=r"\(5,\)"):
        call(x, np.zeros(5, int))
    with pytest.raises(TypeError, match="integers"):
        call(x, np.zeros(4))
    with pytest.raises(ValueError, match=r"sample_weight .* \(4,\), got \(3,\)"):
        call(x, target, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match=r"sample_weight .* -1\.0 for sample 2"):
        call(x, target, sample_weight=[1, 1, -1, 1])
    with pytest.raises(TypeError, match="sample_weight"):
        call(x, target, sample_weight=["a"] * 4)


def test_wrong_options(fl):
    x, target = np.zeros((4, 3)), np.zeros(4, int)
    with pytest.raises(ValueError, match=r"n_bins .* 0"):
        fl.calibration_error(x, target, n_bins=0)
    with pytest.raises(TypeError, match="n_bins"):
        fl.calibration_error(x, target, n_bins=2.5)
    with pytest.raises(ValueError, match="'uniform', 'quantile', got 'mass'"):
        fl.calibration_error(x, target, strategy="mass")
    with pytest.raises(ValueError, match="reduction"):
        fl.brier_score(x, target, reduction="median")


def test_samples_that_no_temperature_helps(fl):
    x, target = drawn((10, 3))
    with pytest.raises(ValueError, match="all are ignored"):
        fl.fit_temperature(x, np.full(10, -100))
    target[0] = -100
    x[4, target[4]] = -np.inf
    with pytest.raises(ValueError, match="sample 4 has a target whose logit is -inf"):
        fl.fit_temperature(x, target)
    x[4] = np.nan
    with pytest.raises(ValueError, match="sample 4 has no finite softmax"):
        fl.fit_temperature(x, target)
