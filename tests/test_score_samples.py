"""score_samples against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, logits, loss_dtype


def check(fl, x, target, axis=None):
    got = fl.score_samples(x, target, axis=axis)
    want = oracle.score_samples(x, target, axis=axis)
    assert got._fields == want._fields
    np.testing.assert_array_equal(got.predicted, want.predicted)
    assert np.asarray(got.predicted).dtype.kind == "i"
    for name in ("log_prob", "predicted_log_prob", "entropy"):
        value = getattr(got, name)
        assert np.asarray(value).dtype == loss_dtype(x.dtype)
        assert_close(value, getattr(want, name), None, 1.0)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize(
    "shape", [(6,), (1, 1), (40, 2), (41, 10), (9, 128), (5, 1000), (2, 9000), (2, 21, 9, 7)]
)
def test_shapes(fl, shape, dtype):
    rng = np.random.default_rng(0)
    axis = oracle.class_axis(len(shape))
    target = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    check(fl, logits(rng, shape, dtype), target)


@pytest.mark.parametrize("dtype", FLOATS)
def test_axis(fl, dtype):
    rng = np.random.default_rng(1)
    shape = (3, 4, 5)
    for axis in range(-3, 3):
        target = rng.integers(0, shape[axis], np.delete(shape, axis))
        check(fl, logits(rng, shape, dtype), target, axis=axis)


def test_first_of_equal_maxima_is_predicted(fl):
    x = np.zeros((4, 300), np.float32)
    x[1, [40, 200]] = 1.0
    x[2, [299, 70]] = 2.0
    x[3, 0] = -1.0
    np.testing.assert_array_equal(fl.score_samples(x, np.zeros(4, int)).predicted, [0, 40, 70, 1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_confident_sample_keeps_its_digits(fl, dtype):
    x = np.array([[20.0, 0.0, -1.0]], dtype)
    scores = fl.score_samples(x, np.array([0]))
    np.testing.assert_allclose(scores.log_prob, -2.819409661255213e-09, rtol=1e-6)
    np.testing.assert_allclose(scores.predicted_log_prob, scores.log_prob, rtol=0)


def test_log_prob_is_the_negative_loss(fl):
    rng = np.random.default_rng(2)
    x, target = logits(rng, (50, 7), "float32"), rng.integers(0, 7, 50)
    scores = fl.score_samples(x, target)
    loss = fl.cross_entropy(x, target, reduction="none")
    assert_close(scores.log_prob, -loss.astype(np.float64), units=4)


def test_uniform_and_certain_entropy(fl):
    x = np.array([[3.0] * 8, [1000.0] + [0.0] * 7, [0.0] + [-np.inf] * 7])
    entropy = fl.score_samples(x, np.zeros(3, int)).entropy
    np.testing.assert_allclose(entropy, [np.log(8), 0.0, 0.0], rtol=1e-15)


def test_sample_with_nan_spoils_itself_alone(fl):
    x = np.zeros((3, 4))
    x[1, 2] = np.nan
    scores = fl.score_samples(x, np.zeros(3, int))
    assert np.isnan([scores.log_prob[1], scores.entropy[1]]).all()
    np.testing.assert_allclose(scores.entropy[[0, 2]], np.log(4))


def test_empty(fl):
    scores = fl.score_samples(np.empty((0, 3)), np.empty(0, int))
    assert [len(field) for field in scores] == [0, 0, 0, 0]


def test_errors(fl):
    x = np.zeros((4, 3))
    with pytest.raises(IndexError, match="3"):
        fl.score_samples(x, np.array([0, 1, 3, 0]))
    with pytest.raises(IndexError, match="-100"):
        fl.score_samples(x, np.array([0, 1, -100, 0]))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        fl.score_samples(x, np.zeros(3, int))
    with pytest.raises(TypeError):
        fl.score_samples(x, np.zeros(4))
