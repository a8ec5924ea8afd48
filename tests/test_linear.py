"""linear_cross_entropy: against the oracle, and against cross_entropy of the product."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from helpers import FLOATS, REDUCTIONS, assert_close, largest


def problem(dtype, samples=37, features=11, classes=23, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((samples, features)).astype(dtype),
        rng.standard_normal((classes, features)).astype(dtype),
        rng.integers(0, classes, samples),
        rng.standard_normal(classes).astype(dtype),
        rng.uniform(0.2, 2.0, classes).astype(dtype),
    )


def check(fl, x, w, target, reduction, **options):
    want_loss, want = oracle.linear_cross_entropy(x, w, target, reduction=reduction, **options)
    loss = fl.linear_cross_entropy(x, w, target, reduction=reduction, **options)
    assert np.asarray(loss).dtype == x.dtype
    # The product itself is rounded: features·ε of its largest terms.
    units = 16.0 * x.shape[-1]
    assert_close(loss, want_loss, x.dtype, largest(want_loss), units=units)
    fused, gradients = fl.linear_cross_entropy_value_and_grad(
        x, w, target, reduction=reduction, **options
    )
    assert_close(fused, want_loss, x.dtype, largest(want_loss), units=units)
    compare(gradients, want, units)

    upstream = np.random.default_rng(1).standard_normal(np.shape(want_loss)).astype(x.dtype)
    _, want = oracle.linear_cross_entropy(
        x, w, target, reduction=reduction, grad_output=upstream, **options
    )
    back = fl.linear_cross_entropy_backward(upstream, x, w, target, reduction=reduction, **options)
    compare(back, want, units)


def compare(got, want, units):
    assert got._fields == ("input", "linear_weight", "linear_bias")
    for name in got._fields:
        left, right = getattr(got, name), getattr(want, name)
        if right is None:
            assert left is None
        else:
            assert_close(left, right, None, largest(right), units=units)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear(fl, dtype, reduction):
    x, w, target, bias, weight = problem(dtype)
    check(fl, x, w, target, reduction)
    check(fl, x, w, target, reduction, linear_bias=bias)
    target[::3] = 5
    check(
        fl,
        x,
        w,
        target,
        reduction,
        linear_bias=bias,
        weight=weight,
        ignore_index=5,
        label_smoothing=0.1,
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("samples", [0, 1, 3000])
def test_batch_sizes(fl, dtype, samples):
    x, w, target, bias, _ = problem(dtype, samples=samples)
    check(fl, x, w, target, "sum", linear_bias=bias)


def test_unbatched(fl):
    x, w, target, bias, _ = problem("float64")
    check(fl, x[0], w, target[0], "mean", linear_bias=bias)


def test_probabilities(fl):
    x, w, _, bias, weight = problem("float64")
    p = oracle.softmax(np.random.default_rng(2).standard_normal((37, 23)))
    for reduction in REDUCTIONS:
        check(fl, x, w, p, reduction, linear_bias=bias, weight=weight, label_smoothing=0.2)


def test_agrees_with_cross_entropy_of_the_product(fl):
    x, w, target, bias, _ = problem("float64")
    assert_close(
        fl.linear_cross_entropy(x, w, target, linear_bias=bias, reduction="none"),
        fl.cross_entropy(x @ w.T + bias, target, reduction="none"),
        scale=1.0,
        units=1000,
    )


def test_gradients_are_freed_of_the_batch_matrix():
    """The logits of all samples at once are never held: memory is bounded by blocks of samples."""
    import tracemalloc

    import fastloss

    x, w, target, _, _ = problem("float32", samples=4096, features=8, classes=4000)
    fastloss.linear_cross_entropy_value_and_grad(x[:8], w, target[:8])
    tracemalloc.start()
    try:
        fastloss.linear_cross_entropy_value_and_grad(x, w, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4096 * 4000 * 4 // 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"linear_weight": np.ones((23, 4))}, ValueError, r"\(37, 11\).*\(23, 4\)"),
        ({"linear_bias": np.ones(7)}, ValueError, r"\(7,\)"),
        ({"target": np.zeros(5, int)}, ValueError, r"\(5,\)"),
        ({"target": np.full(37, 23)}, IndexError, "23"),
        ({"input": np.ones((2, 3, 11))}, ValueError, r"\(2, 3, 11\)"),
        ({"linear_weight": np.ones(11)}, ValueError, r"\(11,\)"),
        ({"input": np.ones((37, 11), complex)}, TypeError, "complex"),
    ],
)
def test_errors(fl, change, error, text):
    x, w, target, bias, _ = problem("float64")
    arguments = {"input": x, "linear_weight": w, "target": target, "linear_bias": bias} | change
    for function in (fl.linear_cross_entropy, fl.linear_cross_entropy_value_and_grad):
        with pytest.raises(error, match=text):
            function(**arguments)


@pytest.mark.parametrize("dtype", [complex, "U1", "M8[s]", object, bool])
def test_a_target_of_another_type_is_refused_when_empty_too(fl, dtype):
    with pytest.raises(TypeError, match="target must be integers"):
        fl.linear_cross_entropy(np.zeros((0, 2)), np.zeros((3, 2)), np.zeros(0, dtype))
