"""logsumexp, softmax, log_softmax, sigmoid, log_sigmoid and softplus against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, dtype_of, largest, logits, loss_dtype

ROWS = ("logsumexp", "softmax", "log_softmax")
ELEMENTS = ("sigmoid", "log_sigmoid", "softplus")


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


@pytest.mark.parametrize("name", ROWS)
def test_default_axis_is_the_last(fl, name):
    x = logits(np.random.default_rng(1), (2, 3, 4), "float64")
    np.testing.assert_array_equal(getattr(fl, name)(x), getattr(fl, name)(x, axis=2))


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
    got = getattr(fl, name)(x)
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
    got = getattr(fl, name)(x)
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
    assert_close(fl.logsumexp(x), oracle.logsumexp(x), dtype, 1.0)
    np.testing.assert_array_equal(fl.logsumexp(x)[1:3], [-inf, inf])
    for name in ("softmax", "log_softmax"):
        got = getattr(fl, name)(x)
        assert np.isnan(got[1:4]).all()
        assert_close(got, getattr(oracle, name)(x), dtype, 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_shift_changes_nothing(fl, dtype):
    """Logits of 10,000 neither overflow nor lose the softmax."""
    x = np.array([[0.0, 1.0, 2.0]], dtype)
    for shift in (10_000.0, -10_000.0):
        assert_close(fl.softmax(x + dtype_of(dtype).type(shift)), oracle.softmax(x), units=4)


def test_empty(fl):
    assert fl.softmax(np.empty((0, 3))).shape == (0, 3)
    assert fl.log_softmax(np.empty((2, 0, 3)), axis=0).shape == (2, 0, 3)
    assert fl.logsumexp(np.empty((0, 3))).shape == (0,)
    np.testing.assert_array_equal(fl.logsumexp(np.empty((3, 0))), [-np.inf] * 3)
    assert fl.softmax(np.empty((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("name", ROWS)
def test_axis_out_of_range(fl, name):
    for axis in (2, -3):
        with pytest.raises((ValueError, IndexError), match=str(axis)):
            getattr(fl, name)(np.ones((2, 3)), axis=axis)
    with pytest.raises((ValueError, IndexError)):
        getattr(fl, name)(np.float64(1.0))


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
@pytest.mark.parametrize("dtype", ["complex128", "U3", "object", "datetime64[s]"])
def test_dtypes_refused(fl, name, dtype):
    with pytest.raises(TypeError, match=r"complex|str|<U3|object|datetime"):
        getattr(fl, name)(np.zeros((2, 3)).astype(dtype))


@pytest.mark.parametrize("name", [*ROWS, *ELEMENTS])
def test_layouts(fl, name):
    rng = np.random.default_rng(5)
    x = logits(rng, (6, 8), "float32")
    want = getattr(fl, name)(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    wide = np.zeros((12, 16), np.float32)
    wide[::2, ::-2] = x
    for same in (frozen, np.asfortranarray(x), wide[::2, ::-2], x.astype(">f4"), x.tolist()):
        assert_close(getattr(fl, name)(same), want.astype(np.float64), "float32")
