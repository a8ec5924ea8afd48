"""Gradients against five-point differences of the losses: no formula is shared with the package.

f'(x) = (f(x−2h) − 8f(x−h) + 8f(x+h) − f(x+2h))/(12h) + O(h⁴): with h = 1e-3 and logits of size 1
good for about ten digits in float64.
"""

from __future__ import annotations

import numpy as np
import pytest

STEP = 1e-3
RNG = np.random.default_rng(0)


def five_points(f, x: np.ndarray) -> np.ndarray:
    """The gradient of a function of an array to a number."""
    gradient = np.empty_like(x)
    for position in np.ndindex(x.shape):

        def at(steps, position=position):
            moved = x.copy()
            moved[position] += steps * STEP
            return float(f(moved))

        gradient[position] = (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * STEP)
    return gradient


X = RNG.standard_normal((3, 4, 2))
INDEX = RNG.integers(0, 4, (3, 2))
UNIT = RNG.random(X.shape)
INSIDE = RNG.uniform(0.2, 0.8, X.shape)
CLASS_WEIGHT = RNG.uniform(0.5, 2.0, 4)
LAST_WEIGHT = RNG.uniform(0.5, 2.0, 2)
SAMPLE_WEIGHT = RNG.uniform(0.5, 2.0, (3, 2))

CASES = [
    ("cross_entropy", X, INDEX, {}),
    ("cross_entropy", X, INDEX, {"weight": CLASS_WEIGHT, "sample_weight": SAMPLE_WEIGHT}),
    ("cross_entropy", X, INDEX, {"ignore_index": int(INDEX[0, 0]), "weight": CLASS_WEIGHT}),
    ("cross_entropy", X, INDEX, {"label_smoothing": 0.3, "weight": CLASS_WEIGHT}),
    ("cross_entropy", X, UNIT, {"label_smoothing": 0.3, "weight": CLASS_WEIGHT}),
    ("cross_entropy", X, UNIT, {"sample_weight": SAMPLE_WEIGHT}),
    ("cross_entropy", X, RNG.integers(0, 2, (3, 4)), {"axis": -1}),
    ("nll_loss", X, INDEX, {"weight": CLASS_WEIGHT, "sample_weight": SAMPLE_WEIGHT}),
    ("binary_cross_entropy", INSIDE, UNIT, {}),
    ("binary_cross_entropy", INSIDE, UNIT, {"weight": LAST_WEIGHT}),
    ("binary_cross_entropy_with_logits", X, UNIT, {}),
    (
        "binary_cross_entropy_with_logits",
        X,
        UNIT,
        {"weight": LAST_WEIGHT, "pos_weight": LAST_WEIGHT + 1.0},
    ),
    ("kl_div", X, UNIT, {}),
    ("kl_div", X, X[::-1], {"log_target": True}),
    ("sigmoid_focal_loss", X, np.rint(UNIT), {}),
    ("sigmoid_focal_loss", X, UNIT, {"alpha": 0.7, "gamma": 0.5}),
    ("sigmoid_focal_loss", X, UNIT, {"alpha": 0.5, "gamma": 0.0}),
]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(("name", "x", "target", "options"), CASES)
def test_gradient(fl, name, x, target, options, reduction):
    options = {**options, "reduction": reduction}
    loss = getattr(fl, name)
    _, gradient = getattr(fl, f"{name}_value_and_grad")(x, target, **options)
    want = five_points(lambda moved: np.sum(loss(moved, target, **options)), x)
    np.testing.assert_allclose(gradient, want, rtol=1e-8, atol=1e-9)

    upstream = np.random.default_rng(1).standard_normal(np.shape(loss(x, target, **options)))
    back = getattr(fl, f"{name}_backward")(upstream, x, target, **options)
    want = five_points(lambda moved: np.sum(upstream * loss(moved, target, **options)), x)
    np.testing.assert_allclose(back, want, rtol=1e-8, atol=1e-9)


def test_batchmean_gradient(fl):
    _, gradient = fl.kl_div_value_and_grad(X, UNIT, reduction="batchmean")
    want = five_points(lambda moved: fl.kl_div(moved, UNIT, reduction="batchmean"), X)
    np.testing.assert_allclose(gradient, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_linear_gradients(fl, reduction, soft):
    rng = np.random.default_rng(2)
    arguments = {
        "input": rng.standard_normal((4, 3)),
        "linear_weight": rng.standard_normal((5, 3)),
        "linear_bias": rng.standard_normal(5),
    }
    target = rng.random((4, 5)) if soft else rng.integers(0, 5, 4)
    options = {"target": target, "reduction": reduction, "label_smoothing": 0.1}
    _, gradients = fl.linear_cross_entropy_value_and_grad(**arguments, **options)
    for name in gradients._fields:

        def loss(moved, name=name):
            return np.sum(fl.linear_cross_entropy(**{**arguments, name: moved}, **options))

        want = five_points(loss, arguments[name])
        np.testing.assert_allclose(getattr(gradients, name), want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("classes", [3, 70, 5000])
def test_gradient_of_each_sample_sums_to_zero(fl, classes):
    """Adding a number to all logits of a sample changes no loss."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, classes))
    _, gradient = fl.cross_entropy_value_and_grad(x, rng.integers(0, classes, 9), reduction="sum")
    np.testing.assert_allclose(gradient.sum(axis=1), 0.0, atol=1e-14)
