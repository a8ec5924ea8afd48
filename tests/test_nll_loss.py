"""nll_loss against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, check_loss, dtype_of, logits


def check(fl, x, target, **options):
    reference = oracle.nll_loss(x, target, **options)
    check_loss(fl, "nll_loss", reference, x, target, **options)


def log_probs(rng, shape, dtype, axis):
    x = rng.standard_normal(shape) * 3
    return oracle.log_softmax(x, axis=axis).astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize(
    "shape", [(4,), (1, 1), (9, 3), (40, 200), (3, 5000), (2, 3, 4), (2, 5, 9, 7), (70, 3, 70)]
)
def test_shapes_and_options(fl, shape, dtype):
    rng = np.random.default_rng(0)
    axis = oracle.class_axis(len(shape))
    x = log_probs(rng, shape, dtype, axis)
    samples = shape[:axis] + shape[axis + 1 :]
    target = rng.integers(0, shape[axis], samples)
    check(fl, x, target)
    weight = rng.uniform(0.1, 2.0, shape[axis]).astype(x.dtype)
    sample_weight = rng.uniform(0.1, 2.0, samples).astype(x.dtype)
    check(fl, x, target, weight=weight)
    target = np.where(rng.random(samples) < 0.3, 0, target)
    check(fl, x, target, weight=weight, sample_weight=sample_weight, ignore_index=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 4, 5), (2, 3, 4, 5)])
def test_axis(fl, shape, dtype):
    rng = np.random.default_rng(1)
    for axis in range(-len(shape), len(shape)):
        x = log_probs(rng, shape, dtype, axis)
        rest = np.delete(shape, axis)
        check(fl, x, rng.integers(0, shape[axis], rest), axis=axis)


def test_scores_need_not_be_logarithms(fl):
    """Any numbers are taken: the loss is linear in them."""
    x = logits(np.random.default_rng(2), (9, 4), "float64")
    check(fl, x, np.arange(9) % 4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_is_the_second_half_of_cross_entropy(fl, dtype):
    rng = np.random.default_rng(3)
    x, target = logits(rng, (31, 12), dtype), rng.integers(0, 12, 31)
    weight = rng.uniform(0.5, 1.5, 12).astype(dtype)
    halves = fl.nll_loss(fl.log_softmax(x, axis=1), target, weight=weight, reduction="none")
    whole = fl.cross_entropy(x, target, weight=weight, reduction="none")
    assert_close(halves, whole.astype(np.float64), scale=1.0)


@pytest.mark.parametrize("weights", [{"weight": [0.0, 1.0]}, {"sample_weight": 0.0}])
def test_a_weight_of_0_takes_an_infinite_loss_out(fl, weights):
    x = [[np.inf, 0.0], [-np.inf, 0.0], [np.nan, 0.0]]
    losses = fl.nll_loss(x, [0, 0, 0], reduction="none", **weights)
    np.testing.assert_array_equal(losses, [0.0, 0.0, np.nan])
