"""linear_cross_entropy: against the oracle, and against cross_entropy of the product."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import fastloss
import oracle
from fastloss.losses import _layer
from helpers import FLOATS, REDUCTIONS, assert_close, dtype_of, epsilon, largest


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


# So few bytes cut a problem of some hundred logits into blocks of rows and strips of classes; with
# the fewer, the sum of a half-precision weight's gradient does not fit.
FEW_BYTES, FEWEST_BYTES = 1000, 400

OPTIONS = {
    "plain": {},
    "several": {"label_smoothing": 0.1, "temperature": 1.5, "softcap": 3.0, "z_loss": 0.01},
    "temperature": {"temperature": 0.5},
    "weights": {"weight": True, "sample_weight": True, "ignore_index": 3},
}


def case(extents, probabilities, options, samples=29, features=6, classes=9):
    """Float32 arrays of a layer whose classes have more axes beside them."""
    rng = np.random.default_rng(len(extents) + 2 * probabilities + len(options))
    x = rng.standard_normal((samples, features)).astype(np.float32)
    w = rng.standard_normal((classes, *extents, features)).astype(np.float32)
    bias = rng.standard_normal((classes, *extents)).astype(np.float32)
    shape = (samples, *extents)
    options = dict(options)
    if probabilities:
        target = rng.random((samples, classes, *extents)).astype(np.float32)
        options.pop("ignore_index", None)
    else:
        target = rng.integers(0, classes, shape)
        target[4] = options.get("ignore_index", 0)
    if options.get("weight"):
        options["weight"] = rng.uniform(0.2, 2.0, classes)
        options["sample_weight"] = rng.integers(0, 3, shape) / 2
    return x, w, target, {"linear_bias": bias, **options}


@pytest.mark.parametrize("memory", [FEWEST_BYTES, FEW_BYTES, None], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("extents", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_layers_of_every_kind(fl, monkeypatch, options, extents, probabilities, dtype, memory):
    if memory is not None:
        monkeypatch.setattr(_layer, "LEAST_MEMORY", memory)
    x, w, target, given = case(extents, probabilities, OPTIONS[options])
    x, w = x.astype(dtype_of(dtype)), w.astype(dtype_of(dtype))
    for reduction in REDUCTIONS:
        hold(fl, x, w, target, given | {"reduction": reduction})


def hold(fl, x, w, target, options):
    """Hold the three functions to the oracle, in the digits of float32 and of the arrays."""
    want_loss, want = oracle.linear_cross_entropy(x, w, target, **options)
    loss = fl.linear_cross_entropy(x, w, target, **options)
    fused, gradients = fl.linear_cross_entropy_value_and_grad(x, w, target, **options)
    for got in (loss, fused):
        assert_close(got, want_loss, "float32", largest(want_loss), units=300)
    match(gradients, want, x, w)
    upstream = np.random.default_rng(1).standard_normal(np.shape(want_loss))
    _, want = oracle.linear_cross_entropy(x, w, target, grad_output=upstream, **options)
    match(fl.linear_cross_entropy_backward(upstream, x, w, target, **options), want, x, w)


def match(got, want, x, w):
    assert (got.input.dtype, got.linear_weight.dtype) == (x.dtype, w.dtype)
    assert_close(got.input, want.input, x.dtype, largest(want.input), units=300)
    # Rounded once: not at each of the blocks that it is added up over.
    half = 0.5 if w.dtype.itemsize == 2 else 1.0
    tolerance = half * epsilon(w.dtype) * (1.01 if half < 1 else 300)
    np.testing.assert_allclose(
        got.linear_weight.astype(np.float64),
        want.linear_weight,
        rtol=tolerance,
        atol=max(3e-5 * largest(want.linear_weight), 1e-7),
    )
    assert_close(got.linear_bias, want.linear_bias, "float32", largest(want.linear_bias), 300)


def test_two_leading_axes_and_more_axes_of_classes(fl):
    x, w, target, options = case((2, 3), False, {}, samples=12)
    loss = fl.linear_cross_entropy(
        x.reshape(3, 4, -1), w, target.reshape(3, 4, 2, 3), reduction="none", **options
    )
    want = fl.linear_cross_entropy(x, w, target, reduction="none", **options)
    np.testing.assert_array_equal(loss, want.reshape(3, 4, 2, 3))


def test_types_are_mixed(fl, monkeypatch):
    monkeypatch.setattr(_layer, "LEAST_MEMORY", FEW_BYTES)
    x, w, target, options = case((), False, {})
    for one, other in (("float64", "float32"), ("float32", "float64"), ("float16", "bfloat16")):
        hold(fl, x.astype(dtype_of(one)), w.astype(dtype_of(other)), target, options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transposed_weight(fl, dtype):
    x, w, target, options = case((), False, {})
    turned = np.ascontiguousarray(w.astype(dtype_of(dtype)).T).T
    got = fl.linear_cross_entropy_value_and_grad(x, turned, target, **options)
    want = fl.linear_cross_entropy_value_and_grad(x, w.astype(turned.dtype), target, **options)
    assert_close(got[0], want[0], "float32", 1.0)
    compare(got[1], want[1], 16.0)
    assert got[1].linear_weight.flags.c_contiguous


def test_what_an_ignored_row_holds_reaches_nothing(fl, monkeypatch):
    x, w, target, _ = case((), False, {})
    clean = fl.linear_cross_entropy_value_and_grad(x[5:], w, target[5:])
    target[:5] = -100
    x[:5] = np.nan
    for memory in (1 << 20, FEW_BYTES, FEWEST_BYTES):
        monkeypatch.setattr(_layer, "LEAST_MEMORY", memory)
        loss, grads = fl.linear_cross_entropy_value_and_grad(x, w, target)
        assert_close(loss, clean[0], "float32", 1.0)
        assert (grads.input[:5] == 0).all()
        assert_close(grads.linear_weight, clean[1].linear_weight, "float32", 1.0, units=100)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1500, 32, 20_000), (40, 64, 560_000)], ids=str)
def test_memory_is_bounded(shape, dtype):
    """Beside the results, 64 MiB at most, or half of the weight's size where that is more."""
    samples, features, classes = shape
    numbers = np.random.default_rng(0).standard_normal(9973).astype(dtype_of(dtype))
    x, w = np.resize(numbers, (samples, features)), np.resize(numbers, (classes, features))
    target = np.arange(samples)
    tracemalloc.start()
    try:
        _, grads = fastloss.linear_cross_entropy_value_and_grad(x, w, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    beside = peak - grads.input.nbytes - grads.linear_weight.nbytes
    assert beside <= max(64 << 20, w.nbytes // 2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"linear_weight": np.ones((23, 4))}, ValueError, r"\(37, 11\).*\(23, 4\)"),
        ({"linear_bias": np.ones(7)}, ValueError, r"\(7,\)"),
        ({"target": np.zeros(5, int)}, ValueError, r"\(5,\)"),
        ({"target": np.full(37, 23)}, IndexError, "23"),
        ({"input": np.ones((2, 3, 11))}, ValueError, r"\(2, 3, 11\)"),
        ({"linear_weight": np.ones(11)}, ValueError, r"\(11,\)"),
        ({"linear_weight": np.ones((23, 2, 11))}, ValueError, r"linear_bias.*\(23, 2\)"),
        ({"linear_weight": np.ones((23, 2, 11)), "linear_bias": None}, ValueError, r"\(37, 2\)"),
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
