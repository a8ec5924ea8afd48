"""logsumexp, softmax, log_softmax, sigmoid, log_sigmoid and softplus against the oracle.

Layout: a) over one axis, and of each element, b) over any axes, c) logsumexp with weights and
signs, d) `out`.  test_scipy_compatibility.py compares with SciPy.
"""

from __future__ import annotations

import itertools
import math
import warnings

import mpmath
import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, dtype_of, epsilon, largest, logits, loss_dtype

ROWS = ("logsumexp", "softmax", "log_softmax")
ELEMENTS = ("sigmoid", "log_sigmoid", "softplus")
INF, NAN = np.inf, np.nan


def over_rows(fl, name, x, **options):
    """The function of the elements, or over the last axis."""
    if name in ROWS:
        options["axis"] = -1
    return getattr(fl, name)(x, **options)


# ---- a) over one axis, and of each element ---------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "shape",
    [(1,), (5,), (1, 1), (40, 3), (9, 10), (33, 128), (5, 1000), (2, 9000), (3, 4, 5), (70, 3, 70)],
)
def test_rows(fl, name, shape, dtype):
    x = logits(np.random.default_rng(0), shape, dtype)
    for axis in range(-len(shape), len(shape)):
        got = getattr(fl, name)(x, axis=axis)
        want = getattr(oracle, name)(x, axis=axis)
        assert np.asarray(got).dtype == x.dtype
        assert_close(got, want, x.dtype, 1.0 if name != "softmax" else None)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_keepdims(fl, axis):
    x = logits(np.random.default_rng(2), (2, 3, 4), "float64")
    kept = fl.logsumexp(x, axis=axis, keepdims=True)
    np.testing.assert_array_equal(kept, np.expand_dims(fl.logsumexp(x, axis=axis), axis))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_half_precision(fl, name, dtype):
    """Computed in float32; the result has the dtype of the input, like a gradient."""
    x = logits(np.random.default_rng(3), (9, 40), dtype)
    got = over_rows(fl, name, x)
    want = getattr(oracle, name)(x)
    assert got.dtype == x.dtype
    assert_close(got, want, got.dtype, largest(want))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("shape", [(), (1,), (1025,), (3, 5, 7), (70_001,), (0,), (2, 0, 3)])
def test_elements(fl, name, shape, dtype):
    x = logits(np.random.default_rng(4), shape, dtype, scale=10.0)
    got = getattr(fl, name)(x)
    assert np.asarray(got).dtype == x.dtype
    assert_close(got, getattr(oracle, name)(x), x.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_far_out(fl, name, dtype):
    x = np.array(
        [-np.inf, -1e30, -700.0, -80.0, -0.0, 0.0, 80.0, 700.0, 1e30, np.inf, np.nan], dtype
    )
    assert_close(getattr(fl, name)(x), getattr(oracle, name)(x), dtype)


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_integers_count_as_float64(fl, name):
    x = np.arange(12).reshape(3, 4)
    got = over_rows(fl, name, x)
    assert got.dtype == loss_dtype("int64") == np.float64
    assert_close(got, getattr(oracle, name)(x), scale=1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_with_infinities(fl, dtype):
    inf = np.inf
    x = np.array(
        [
            [-inf, 1.0, 2.0],
            [-inf, -inf, -inf],
            [inf, 1.0, 2.0],
            [np.nan, 1.0, 2.0],
            [3.0, 3.0, -inf],
        ],
        dtype,
    )
    assert_close(fl.logsumexp(x, axis=1), oracle.logsumexp(x), dtype, 1.0)
    np.testing.assert_array_equal(fl.logsumexp(x, axis=1)[1:3], [-inf, inf])
    for name in ("softmax", "log_softmax"):
        got = getattr(fl, name)(x, axis=1)
        assert np.isnan(got[1:4]).all()
        assert_close(got, getattr(oracle, name)(x), dtype, 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_shift_changes_nothing(fl, dtype):
    """Logits of 10,000 neither overflow nor lose the softmax."""
    x = np.array([[0.0, 1.0, 2.0]], dtype)
    for shift in (10_000.0, -10_000.0):
        assert_close(fl.softmax(x + dtype_of(dtype).type(shift)), oracle.softmax(x), units=4)


def test_empty(fl):
    assert fl.softmax(np.empty((0, 3)), axis=1).shape == (0, 3)
    assert fl.log_softmax(np.empty((2, 0, 3)), axis=0).shape == (2, 0, 3)
    assert fl.logsumexp(np.empty((0, 3)), axis=1).shape == (0,)
    np.testing.assert_array_equal(fl.logsumexp(np.empty((3, 0)), axis=1), [-np.inf] * 3)
    assert fl.softmax(np.empty((3, 0)), axis=1).shape == (3, 0)


@pytest.mark.parametrize("name", ROWS)
def test_axis_out_of_range(fl, name):
    for axis in (2, -3):
        with pytest.raises(ValueError, match=f"axis {axis} .* 2 dimensions"):
            getattr(fl, name)(np.ones((2, 3)), axis=axis)
        with pytest.raises(ValueError, match=f"axis {axis} .* 2 dimensions"):
            getattr(fl, name)(np.ones((2, 3)), axis=(0, axis))
    with pytest.raises(ValueError, match="axis 1 "):
        getattr(fl, name)(np.float64(1.0), axis=1)


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
@pytest.mark.parametrize("dtype", ["complex128", "U3", "object", "datetime64[s]"])
def test_dtypes_refused(fl, name, dtype):
    with pytest.raises(TypeError, match=r"complex|str|<U3|object|datetime"):
        getattr(fl, name)(np.zeros((2, 3)).astype(dtype))


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_layouts(fl, name):
    rng = np.random.default_rng(5)
    x = logits(rng, (6, 8), "float32")
    want = over_rows(fl, name, x)
    frozen = x.copy()
    frozen.flags.writeable = False
    wide = np.zeros((12, 16), np.float32)
    wide[::2, ::-2] = x
    for same in (frozen, np.asfortranarray(x), wide[::2, ::-2], x.astype(">f4"), x.tolist()):
        assert_close(over_rows(fl, name, same), want.astype(np.float64), "float32")


# ---- b) over any axes ------------------------------------------------------------------------

SHAPES = [(7,), (3, 40), (2, 3, 4), (2, 3, 4, 5), (2, 1, 4, 1, 3), (1, 1)]


def flattened(name, x, axes):
    """The oracle's answer over a set of axes, by way of one last axis."""
    others = [i for i in range(x.ndim) if i not in axes]
    order = [*others, *axes]
    turned = np.transpose(x, order)
    rows = turned.reshape(math.prod(x.shape[i] for i in others), -1)
    if name == "logsumexp":
        return oracle.logsumexp(rows).reshape([x.shape[i] for i in others])
    result = getattr(oracle, name)(rows).reshape(turned.shape)
    return np.transpose(result, np.argsort(order))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sets_of_axes(fl, name, shape, dtype):
    x = logits(np.random.default_rng(6), shape, dtype)
    function = getattr(fl, name)
    for count in range(len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), count):
            want = flattened(name, x, axes)
            got = function(x, axis=axes)
            assert np.asarray(got).dtype == x.dtype
            assert_close(got, want, dtype, 1.0 if name != "softmax" else None)
            # Whatever their order and sign.
            same = tuple(a - len(shape) for a in reversed(axes))
            np.testing.assert_array_equal(function(x, axis=same), got)
            if name == "logsumexp":
                kept = function(x, axis=axes, keepdims=True)
                np.testing.assert_array_equal(kept, np.expand_dims(got, axes))


@pytest.mark.parametrize("name", ROWS)
def test_default_is_all_axes(fl, name):
    x = logits(np.random.default_rng(1), (2, 3, 4), "float64")
    function = getattr(fl, name)
    np.testing.assert_array_equal(function(x), function(x, axis=(0, 1, 2)))
    np.testing.assert_array_equal(function(x), function(x, axis=None))
    assert_close(function(x), flattened(name, x, (0, 1, 2)), scale=1.0)


def test_keepdims_of_all_axes(fl):
    x = np.zeros((2, 3))
    assert fl.logsumexp(x, keepdims=True).shape == (1, 1)
    assert fl.logsumexp(0.0, keepdims=True).shape == (1,)


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_scalars(fl, name, dtype):
    """A number gives a number, and a 0-d array too, as in NumPy."""
    number = dtype_of(dtype).type(1.5)
    for x in (number, np.array(number)):
        got = getattr(fl, name)(x)
        assert not isinstance(got, np.ndarray)
        assert got.dtype == number.dtype
        assert_close(got, getattr(oracle, name)([1.5] if name in ROWS else 1.5).reshape(()), dtype)
        if name in ROWS:
            assert getattr(fl, name)(x, axis=0) == getattr(fl, name)(x, axis=-1) == got
    assert getattr(fl, name)(2).dtype == np.float64


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", [1.0, "0", (0, None), [0, 1], (0, 1.5)])
def test_axis_of_another_type(fl, name, axis):
    with pytest.raises(TypeError, match="axis must be an integer"):
        getattr(fl, name)(np.ones((2, 3)), axis=axis)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("axis", [(0, 0), (1, -1)])
def test_axis_named_twice(fl, name, axis):
    with pytest.raises(ValueError, match=r"each axis once, got \("):
        getattr(fl, name)(np.ones((2, 3)), axis=axis)


@pytest.mark.parametrize("axis", [None, (0, 2), (0, 1)])
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (2, 0, 3)])
def test_empty_over_sets_of_axes(fl, shape, axis):
    x = np.empty(shape, np.float32)
    for name in ("softmax", "log_softmax"):
        assert getattr(fl, name)(x, axis=axis).shape == shape
    for b in (None, np.ones(shape, np.float32)):
        got, sign = fl.logsumexp(x, axis=axis, b=b, return_sign=True)
        want = np.zeros(shape).sum(axis=axis)
        assert got.dtype == sign.dtype == np.float32
        np.testing.assert_array_equal(got, np.full(want.shape, -INF))
        np.testing.assert_array_equal(sign, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_long_row(fl, dtype):
    """All of a large array: no digits are lost in the sum."""
    x = logits(np.random.default_rng(7), (1000, 1500), dtype, 1.0)
    exact = math.log(math.fsum(np.exp(x.astype(np.float64)).ravel()))
    assert_close(fl.logsumexp(x), np.float64(exact), dtype, units=4)


# ---- c) logsumexp with weights and signs -----------------------------------------------------


def exact_sum(a, b):
    """log|Σ b exp(a)|, its sign, Σ|b| exp(a) / |Σ b exp(a)|, and |a| of the largest term."""
    with mpmath.workprec(400):
        terms = [mpmath.mpf(float(y)) * mpmath.exp(float(x)) for x, y in zip(a, b, strict=True)]
        total, size = mpmath.fsum(terms), mpmath.fsum(map(abs, terms))
        largest_a = abs(float(a[max(range(len(terms)), key=lambda i: abs(terms[i]))]))
        if total == 0:
            return -INF, 0.0, INF, largest_a
        return (
            mpmath.log(abs(total)),
            float(mpmath.sign(total)),
            float(size / abs(total)),
            largest_a,
        )


def weights_and_exponents(kind, rng):
    a, b = rng.standard_normal(30), rng.standard_normal(30)
    match kind:
        case "one sign":
            return 10 * a, np.abs(b)
        case "both signs":
            return a, b
        case "huge exponents":
            return 1e5 * (1 + 1e-5 * a), b
        case "probabilities":  # whose logarithm of the sum is next to 0
            return 0 * a, np.abs(b) / np.abs(b).sum()
        case "weights undo exponents":
            return 500 * a, b * np.exp(np.clip(-500 * a, -700, 700))
        case "wide weights":
            return 700 * a, np.ldexp(b, rng.integers(-900, 900, 30))
        case "subnormal weights":
            return 700 + a, b * 1e-310
        case "cancelling":  # all but exactly
            return np.r_[a, a, -30.0], np.r_[b, -b, 1.0]


KINDS = (
    "one sign",
    "both signs",
    "huge exponents",
    "probabilities",
    "weights undo exponents",
    "wide weights",
    "subnormal weights",
    "cancelling",
)


# float32 does not hold the kinds of weights whose names say so.
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "float64") for kind in KINDS]
    + [(kind, "float32") for kind in KINDS if "weights" not in kind],
)
def test_weights(fl, kind, dtype):
    """The bound that the docstring states, in the type of the result."""
    rng = np.random.default_rng(8)
    for _ in range(20):
        a, b = (x.astype(dtype) for x in weights_and_exponents(kind, rng))
        want, want_sign, condition, largest_a = exact_sum(a, b)
        got, sign = fl.logsumexp(a, b=b, return_sign=True)
        assert got.dtype == sign.dtype == dtype
        assert sign == want_sign
        if want_sign == 0:
            assert got == want
            continue
        unit = max(np.spacing(a.dtype.type(abs(want))), np.spacing(a.dtype.type(largest_a)))
        error = abs(mpmath.mpf(float(got)) - want)
        assert error <= 4 * unit + 4 * epsilon("float64") * condition
        without_sign = fl.logsumexp(a, b=b)
        assert np.isnan(without_sign) if sign < 0 else without_sign == got


def test_weights_that_cancel(fl):
    """What is left is known to twice the digits where the exponents are equal."""
    got, sign = fl.logsumexp([3.0, 3.0, 3.0], b=[1.0, -1e-20, -1.0], return_sign=True)
    assert_close(got, np.float64(3 + math.log(1e-20)), units=2)
    assert sign == -1
    for shift in (0.0, 1000.0):
        got, sign = fl.logsumexp([shift, shift], b=[1, -1], return_sign=True)
        assert (got, sign) == (-INF, 0)


def test_small_terms_are_kept(fl):
    assert_close(fl.logsumexp([0.0, -40.0], b=[1.0, 1.0]), np.float64(math.exp(-40.0)), units=2)
    assert_close(fl.logsumexp([0.0, 0.0], b=[1.0, 1e-30]), np.float64(1e-30), units=2)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 2), (0, 1), (), (0, 1, 2)])
def test_weights_over_axes(fl, axis):
    """Broadcast together, summed as NumPy sums."""
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((4, 1, 5)), rng.standard_normal((3, 1))
    total = (b * np.exp(a)).sum(axis=axis)
    for keepdims in (False, True):
        got, sign = fl.logsumexp(a, axis, b, keepdims, True)
        want = (b * np.exp(a)).sum(axis=axis, keepdims=keepdims)
        assert np.shape(got) == np.shape(sign) == want.shape
        np.testing.assert_allclose(got, np.log(np.abs(want)), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(sign, np.sign(want))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            fl.logsumexp(a, axis, b), np.log(total), rtol=1e-12, atol=1e-12, equal_nan=True
        )


def test_weights_in_blocks(fl):
    """More rows than are worked on at once."""
    rng = np.random.default_rng(10)
    a, b = rng.standard_normal((40_000, 5)), rng.uniform(0.5, 2.0, (40_000, 5))
    want = np.log((b * np.exp(a)).sum(axis=1))
    np.testing.assert_allclose(fl.logsumexp(a, axis=1, b=b), want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("a", "b", "result", "sign"),
    [
        ([INF, 1], [1, 1], INF, 1),
        ([INF, 1], [-1, 1], INF, -1),
        ([INF, INF], [1, -1], NAN, NAN),
        ([INF, INF], [2, 1], INF, 1),
        ([NAN, 1], [1, 1], NAN, NAN),
        ([NAN, INF], [1, 1], NAN, NAN),
        ([1, 1], [NAN, 1], NAN, NAN),
        ([1, 1], [INF, 1], INF, 1),
        ([-800, 1], [-INF, 1], INF, -1),
        ([-INF, 1], [INF, 1], NAN, NAN),
        ([-INF, 1], [-5, 1], 1, 1),
        ([-INF, -INF], [1, -1], -INF, 0),
        ([INF, NAN, 1], [0, 0, 1], 1, 1),
        ([INF, -INF], [0, 1], -INF, 0),
        ([NAN], [0], -INF, 0),
        ([1e308, -1e308], [1, -1], 1e308, 1),
        ([1e308, 0.9e308], [1, -1], 1e308, 1),
        ([-1e308, -1e308], [1e-30, 1e30], -1e308, 1),
        ([-1000, 5], [1, 0], -1000, 1),
        ([-5000, -1000], [1, -1], -1000, -1),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_of_what_is_not_finite(fl, a, b, result, sign, dtype):
    if dtype == "float32" and abs(a[0]) == 1e308:
        a, result = [x / 1e300 * 1e30 for x in a], float(np.float32(result / 1e270))
    a, b = np.array(a, dtype), np.array(b, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(fl.logsumexp(a, b=b, return_sign=True), (result, sign))
        # Beside a row of numbers.
        many = fl.logsumexp(np.stack([a, np.zeros_like(a)]), axis=1, b=np.stack([b, b + 1]))
    np.testing.assert_array_equal(many[0], NAN if sign < 0 else result)


def test_signs_without_weights(fl):
    x = np.array([[1.0, 2.0], [-INF, -INF], [INF, 0.0], [NAN, 0.0]], np.float32)
    got, sign = fl.logsumexp(x, axis=1, return_sign=True)
    assert sign.dtype == np.float32
    np.testing.assert_array_equal(got, fl.logsumexp(x, axis=1))
    np.testing.assert_array_equal(sign, [1, 0, 1, NAN])


PROMOTED = [
    ("float32", "float32", "float32"),
    ("float32", "float64", "float64"),
    ("float64", "float32", "float64"),
    ("float32", "int64", "float64"),
    ("float32", "int8", "float32"),
    ("int64", "int64", "float64"),
    ("bool", "bool", "float64"),
    ("float16", "float16", "float16"),
    ("float16", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("bfloat16", "float32", "float32"),
    ("float16", "bfloat16", "float32"),
    ("bfloat16", "int64", "float64"),
    (">f4", "<f4", "float32"),
]


@pytest.mark.parametrize(("left", "right", "result"), PROMOTED)
def test_types_of_weights(fl, left, right, result):
    a, b = np.array([1, 0, 1]).astype(dtype_of(left)), np.array([1, 1, 1]).astype(dtype_of(right))
    for first, second in ((a, b), (b, a)):
        got = fl.logsumexp(first, b=second)
        assert got.dtype == dtype_of(result)
        want = math.log(sum(float(y) * math.exp(float(x)) for x, y in zip(first, second, strict=1)))
        assert_close(got, np.float64(want), result)


@pytest.mark.parametrize("number", [2, 2.0, True])
def test_python_numbers_take_the_other_type(fl, number):
    a = np.ones(3, np.float32)
    assert fl.logsumexp(a, b=number).dtype == np.float32
    assert fl.logsumexp(number, b=a).dtype == np.float32
    assert fl.logsumexp(a.astype(np.float16), b=number).dtype == np.float16
    assert fl.logsumexp(number, b=number).dtype == np.float64
    # A number of NumPy's, and a list, have a type of their own.
    assert fl.logsumexp(a, b=np.float64(number)).dtype == np.float64
    assert fl.logsumexp(a, b=[float(number)]).dtype == np.float64


def test_wrong_weights(fl):
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2,\)"):
        fl.logsumexp(np.ones((2, 3)), b=np.ones(2))
    with pytest.raises(TypeError, match=r"b must be real numbers.*complex128"):
        fl.logsumexp(np.ones(3), b=np.ones(3, complex))
    with pytest.raises(TypeError, match=r"a must be real numbers.*complex128"):
        fl.logsumexp(np.ones(3, complex), b=np.ones(3))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_nothing_warns(fl, dtype):
    most = np.finfo(np.float16).max if dtype == "float16" else 1e38
    x = np.array([[1.0, -INF, INF, NAN, most, most], [-INF] * 6, [most] * 6], dtype_of(dtype))
    weights = [b.astype(x.dtype) for b in (x, -x, np.zeros(6), np.ones(6))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (*ROWS, *ELEMENTS):
            over_rows(fl, name, x)
        for b in weights:
            fl.logsumexp(x, axis=1, b=b)


# ---- d) out ----------------------------------------------------------------------------------

AXES = [None, 0, 1, 2, (0, 1), (0, 2), ()]


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES, "int64"])
@pytest.mark.parametrize("axis", AXES)
def test_out_of_rows(fl, dtype, axis):
    x = logits(np.random.default_rng(11), (3, 4, 5), "float32").astype(dtype_of(dtype))
    for name in ROWS:
        for b in (None, np.asarray(2).astype(x.dtype)) if name == "logsumexp" else (None,):
            options = {"axis": axis} if b is None else {"axis": axis, "b": b}
            want = getattr(fl, name)(x, **options)
            out = np.full(np.shape(want), 9, np.asarray(want).dtype)
            assert getattr(fl, name)(x, out=out, **options) is out
            np.testing.assert_array_equal(out, want)


def test_out_and_sign(fl):
    """`out` takes the logarithm; the sign is an array of its own."""
    out = np.zeros((2, 1))
    got, sign = fl.logsumexp(np.ones((2, 3)), 1, [1.0, -2.0, -3.0], True, True, out=out)
    assert got is out
    np.testing.assert_allclose(out, [[1 + math.log(4.0)]] * 2)
    np.testing.assert_array_equal(sign, [[-1.0]] * 2)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_rows_in_place(fl, name, axis, dtype):
    x = logits(np.random.default_rng(12), (3, 4, 5), dtype)
    want = getattr(fl, name)(x, axis=axis)
    assert getattr(fl, name)(x, axis=axis, out=x) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES, "int64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 700)])
@pytest.mark.parametrize("name", ELEMENTS)
def test_out_of_elements(fl, name, shape, dtype):
    x = np.asarray(logits(np.random.default_rng(13), shape, "float32")).astype(dtype_of(dtype))
    want = getattr(fl, name)(x)
    out = np.full(shape, 9, np.asarray(want).dtype)
    assert getattr(fl, name)(x, out=out) is out
    np.testing.assert_array_equal(out, want)
    if dtype != "int64":
        assert getattr(fl, name)(x, out=x) is x
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_wrong_out(fl, name):
    x = np.ones((4, 6))
    shape = (4,) if name == "logsumexp" else (4, 6)
    for out, error, match in [
        ([0.0], TypeError, "NumPy array, got list"),
        (np.zeros(shape, np.float32), TypeError, "dtype float64, got float32"),
        (np.zeros(shape, ">f8"), TypeError, "dtype float64, got >f8"),
        (np.zeros((*shape, 1)), ValueError, "shape .*, got .*, 1\\)"),
        (np.zeros((8, 12))[::2, ::2][: shape[0], : shape[-1]], ValueError, "C-contiguous|shape"),
        (np.zeros(2 * 24)[::2][: shape[0]], ValueError, "C-contiguous|shape"),
        (np.broadcast_to(0.0, shape), ValueError, "C-contiguous|read-only"),
        (
            np.zeros(8 * 24 + 1, np.int8)[1:][: 8 * math.prod(shape)]
            .view(np.float64)
            .reshape(shape),
            ValueError,
            "aligned",
        ),
    ]:
        with pytest.raises(error, match=match):
            over_rows(fl, name, x, out=out)
    frozen = np.zeros(shape)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        over_rows(fl, name, x, out=frozen)


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_out_overlaps(fl, name):
    """A part of the input, which is left as it was."""
    memory = np.arange(50.0)
    before = memory.copy()
    x = memory[:48].reshape(4, 12)
    out = memory[2:6] if name == "logsumexp" else memory[2:].reshape(4, 12)
    with pytest.raises(ValueError, match="overlaps"):
        over_rows(fl, name, x, out=out)
    if name == "logsumexp":
        with pytest.raises(ValueError, match="overlaps"):
            fl.logsumexp(np.ones((4, 12)), axis=1, b=x, out=out)
    else:
        options = {"axis": (0, 2)} if name in ROWS else {}
        with pytest.raises(ValueError, match="overlaps"):
            getattr(fl, name)(x.reshape(2, 2, 12), out=out.reshape(2, 2, 12), **options)
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("name", ROWS)
def test_no_memory(fl, name, monkeypatch):
    """What the kernel reports is raised, and `out` is as it was."""
    status = fl.special._kernels.STATUS["NO_MEMORY"]
    monkeypatch.setattr(
        fl.special._kernels, "evaluate", lambda *arguments, **options: (status, 0, 0.0, 0.0)
    )
    out = np.full((2,) if name == "logsumexp" else (2, 3), 7.0)
    with pytest.raises(MemoryError):
        over_rows(fl, name, np.ones((2, 3)), out=out)
    assert (out == 7).all()
