"""StreamingMetrics: the oracle's numbers, in whatever way a stream is cut.

Layout: a) agreement with the oracle and the functions, b) cuts, order, merging and pickling, c)
edge cases and errors, d) exact sums.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import pickle
import random
from fractions import Fraction

import numpy as np
import pytest

import fastloss
import oracle
from fastloss import StreamingMetrics
from fastloss.evaluation._sums import exact_sums
from helpers import dtype_of, logits

SAMPLES, CLASSES = 1500, 12


def problem(dtype="float32", samples=SAMPLES):
    rng = np.random.default_rng(0)
    x = logits(rng, (samples, CLASSES), dtype, 2.0)
    target = (x.astype(float) + rng.gumbel(size=x.shape) * 2).argmax(axis=1)
    target[::9] = -100
    return x, target, rng.random(samples)


def expected(x, target, weight=None, k=5, bins=15, **options):
    """Every metric by NumPy."""
    scores = oracle.score_samples(x, target, **options)
    live = target != -100
    w = np.ones(live.sum()) if weight is None else weight[live]
    right = (scores.predicted == target)[live]
    confidence = np.exp(scores.predicted_log_prob[live])
    group = np.ceil(confidence * bins).astype(int)
    gaps = [abs(((confidence - right) * w)[group == b].sum()) for b in range(1, bins + 1)]
    loss = np.average(-scores.log_prob[live], weights=w)
    return (
        live.sum(),
        loss,
        np.exp(loss),
        np.average(right, weights=w),
        np.average(scores.rank[live] < k, weights=w),
        sum(gaps) / w.sum(),
        np.average(scores.brier[live], weights=w),
    )


# ---- a) agreement with the oracle and the functions ------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_oracle(fl, dtype, weighted):
    x, target, weight = problem(dtype)
    weight = weight if weighted else None
    for options in ({}, {"temperature": 1.7, "softcap": 9.0}):
        got = fl.StreamingMetrics(top_k=3, n_bins=10, **options).update(x, target, weight)
        want = expected(x, target, weight, 3, 10, **options)
        np.testing.assert_allclose(got.compute(), want, rtol=2e-6 if dtype != "float64" else 1e-12)


def test_agrees_with_the_functions():
    x, target, weight = problem()
    metrics = StreamingMetrics().update(x, target, weight)
    result = metrics.compute()
    error = fastloss.calibration_error(x, target, sample_weight=weight)
    # A confidence may differ in its last digit by what else is asked for in the same pass.
    assert result.calibration_error == pytest.approx(error.expected, rel=1e-6)
    got = metrics.calibration()
    assert (got.expected, got.maximum) == pytest.approx((error.expected, error.maximum), rel=1e-6)
    for one, two in zip(got.bins, error.bins, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    brier = fastloss.brier_score(x, target, sample_weight=weight)
    assert result.brier_score == pytest.approx(float(brier), rel=1e-6)
    loss = fastloss.cross_entropy(x, target, sample_weight=weight)
    assert result.loss == pytest.approx(float(loss), rel=1e-6)
    plain = StreamingMetrics().update(x, target).compute()
    stream = fastloss.StreamingLoss(fastloss.CrossEntropyLoss()).update(x, target)
    assert plain.perplexity == pytest.approx(stream.perplexity, rel=1e-6)


@pytest.mark.parametrize("axis", [0, 2])
def test_class_axis(axis):
    x, target, _ = problem(samples=60)
    want = StreamingMetrics().update(x, target).compute()
    images = np.moveaxis(x.reshape(6, 10, CLASSES), 2, axis)
    got = StreamingMetrics(axis=axis).update(images, target.reshape(6, 10)).compute()
    np.testing.assert_allclose(got, want, rtol=1e-6)


# ---- b) cuts, order, merging and pickling ----------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_any_cuts_order_and_merges_give_the_same_bits(dtype, weighted):
    x, target, weight = problem(dtype)
    weight = weight if weighted else None
    whole = StreamingMetrics().update(x, target, weight)
    for seed in range(4):
        rng = random.Random(seed)
        cuts = [0, *sorted(rng.sample(range(1, SAMPLES), 11)), SAMPLES]
        parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        rng.shuffle(parts)
        workers = [StreamingMetrics() for _ in range(4)]
        for i, part in enumerate(parts):
            w = None if weight is None else weight[part]
            workers[i % 4].update(x[part], target[part], w)
        while len(workers) > 1:  # as a tree, in any order
            one = pickle.loads(pickle.dumps(workers.pop(rng.randrange(len(workers)))))
            workers[rng.randrange(len(workers))].merge(one)
        assert workers[0].compute() == whole.compute()
        assert workers[0].batches == len(parts)
        np.testing.assert_equal(workers[0].calibration(), whole.calibration())


def test_order_of_samples_changes_no_bit():
    x, target, weight = problem()
    order = np.random.default_rng(1).permutation(SAMPLES)
    one = StreamingMetrics().update(x, target, weight)
    two = StreamingMetrics().update(x[order], target[order], weight[order])
    assert one.compute() == two.compute()


def _work(part):
    x, target, _ = problem()
    return StreamingMetrics(top_k=2).update(x[part], target[part])


def test_workers_in_other_processes():
    parts = [slice(0, 500), slice(500, 600), slice(600, None)]
    total = StreamingMetrics(top_k=2)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for worker in pool.map_async(_work, parts).get(timeout=120):
            total.merge(worker)
    x, target, _ = problem()
    assert total.compute() == StreamingMetrics(top_k=2).update(x, target).compute()


def test_small_when_pickled():
    x, target, weight = problem()
    assert len(pickle.dumps(StreamingMetrics().update(x, target, weight))) < 20_000


def test_reset():
    x, target, _ = problem()
    metrics = StreamingMetrics(top_k=2).update(x, target)
    assert metrics.reset() is metrics
    assert (metrics.samples, metrics.batches, metrics.non_finite) == (0, 0, 0)
    np.testing.assert_equal(metrics.compute(), StreamingMetrics().compute())
    assert (
        metrics.update(x, target).compute() == StreamingMetrics(top_k=2).update(x, target).compute()
    )


# ---- c) edge cases and errors ----------------------------------------------------------------


def test_nothing_has_counted():
    for metrics in (
        StreamingMetrics(),
        StreamingMetrics().update(np.zeros((3, 2)), np.full(3, -100)),
        StreamingMetrics().update(np.zeros((3, 2)), np.zeros(3, int), np.zeros(3)),
        StreamingMetrics().update(np.zeros((0, 2)), np.zeros(0, int)),
    ):
        result = metrics.compute()
        assert result.samples == 0
        assert np.isnan(result[1:]).all()


def test_all_wrong_is_zero_not_nan():
    x = np.array([[0.0, 1.0, 2.0]])
    result = StreamingMetrics(top_k=1).update(x, [0]).compute()
    assert (result.accuracy, result.top_k_accuracy) == (0.0, 0.0)


def test_ties():
    x = np.zeros((2, 3))
    result = StreamingMetrics(top_k=2).update(x, [0, 1]).compute()
    assert (result.accuracy, result.top_k_accuracy) == (0.5, 0.0)
    assert StreamingMetrics(top_k=3).update(x, [0, 1]).compute().top_k_accuracy == 1.0


def test_samples_without_a_softmax():
    x, target, _ = problem()
    x[1, 2] = np.nan
    x[2, target[2]] = np.inf
    metrics = StreamingMetrics().update(x, target)
    assert metrics.non_finite == 2
    result = metrics.compute()
    assert np.isnan([result.loss, result.perplexity, result.calibration_error]).all()
    assert math.isnan(result.brier_score)
    rest = StreamingMetrics().update(np.delete(x, [1, 2], 0), np.delete(target, [1, 2])).compute()
    assert result.samples == rest.samples + 2
    assert result.accuracy == pytest.approx(rest.accuracy * rest.samples / result.samples)
    assert metrics.calibration().bins.samples.sum() == rest.samples
    merged = StreamingMetrics().update(x[:1], target[:1])
    assert merged.merge(metrics).non_finite == 2
    assert math.isnan(merged.compute().calibration_error)


def test_an_infinite_loss():
    x = np.array([[0.0, -np.inf], [1.0, 0.0]])
    result = StreamingMetrics().update(x, [1, 0]).compute()
    assert result.loss == result.perplexity == math.inf
    assert math.isfinite(result.brier_score)


def test_a_rejected_batch_changes_nothing():
    x, target, _ = problem()
    metrics = StreamingMetrics().update(x, target)
    before = pickle.dumps(metrics)
    for bad in (lambda: metrics.update(x, target[1:]), lambda: metrics.update(x, target + 50)):
        with pytest.raises((ValueError, IndexError)):
            bad()
    with pytest.raises(ValueError, match="sample_weight"):
        metrics.update(x, target, np.full(SAMPLES, -1.0))
    assert pickle.dumps(metrics) == before


def test_merge_refuses():
    with pytest.raises(TypeError, match="int"):
        StreamingMetrics().merge(3)
    for options in ({"top_k": 2}, {"n_bins": 3}, {"temperature": 2.0}, {"ignore_index": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            StreamingMetrics().merge(StreamingMetrics(**options))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"top_k": 0}, ValueError),
        ({"top_k": 2.5}, TypeError),
        ({"n_bins": 0}, ValueError),
        ({"temperature": -1.0}, ValueError),
        ({"softcap": 0.0}, ValueError),
        ({"axis": "a"}, TypeError),
    ],
)
def test_wrong_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        StreamingMetrics(**options)


def test_repr():
    metrics = StreamingMetrics(top_k=3)
    assert repr(metrics).startswith("StreamingMetrics(top_k=3, n_bins=15, ignore_index=-100")
    assert repr(metrics).endswith("0 samples in 0 batches")


# ---- d) exact sums ---------------------------------------------------------------------------


def test_sums_are_exact():
    rng = np.random.default_rng(2)
    values = np.concatenate(
        [
            rng.standard_normal(2000) * 10.0 ** rng.integers(-300, 300, 2000),
            rng.standard_normal(1000).astype(np.float32).astype(float),
            [5e-324, -5e-324, 5e-324, 2.0**-1022, 1.7e308, 1.7e308, -1.7e308, 0.0, -0.0],
        ]
    )
    groups = rng.integers(0, 5, values.size)
    sums = exact_sums(values, groups, 5)
    for group in range(5):
        want = sum(map(Fraction, values[groups == group]))
        assert Fraction(sums[group].units, 2**1074) == want
    assert Fraction(exact_sums(values)[0].units, 2**1074) == sum(map(Fraction, values))


def test_sums_of_what_is_not_finite():
    values = np.array([1.0, np.inf, -np.inf, np.nan, np.inf])
    sums = exact_sums(values, np.array([0, 1, 2, 3, 1]), 4)
    np.testing.assert_array_equal([float(s) for s in sums], [1.0, np.inf, -np.inf, np.nan])
    assert math.isnan(float(exact_sums(values[:3])[0]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_of_a_million_small_numbers(dtype):
    values = np.full(3_000_000, 0.1).astype(dtype_of(dtype)).astype(np.float64)
    assert float(exact_sums(values)[0]) == float(Fraction(values[0]) * values.size)
