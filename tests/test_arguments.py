"""What the functions take, what they refuse and with which words, and where they write.

Layout: a) one call of every function, b) layouts and dtypes that are taken, c) out=, d) refused
arrays, e) refused options, f) errors write nothing, g) arrays changed by another thread, h) size.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import fastloss
from helpers import FLOATS, HALVES, dtype_of

# ---- a) one call of every function -----------------------------------------------------------

RNG = np.random.default_rng(0)
SHAPE = (6, 4)


class Call(NamedTuple):
    """A valid call of loss `name`: its input, its target, and options that have arrays."""

    name: str
    x: np.ndarray
    target: np.ndarray
    options: dict


INDEX = RNG.integers(0, 4, 6)
UNIT = RNG.random(SHAPE)
CALLS = [
    Call(
        "cross_entropy",
        RNG.standard_normal(SHAPE),
        INDEX,
        {"weight": RNG.random(4), "sample_weight": RNG.random(6)},
    ),
    Call("cross_entropy", RNG.standard_normal(SHAPE), UNIT, {"weight": RNG.random(4)}),
    Call(
        "nll_loss",
        np.log(RNG.random(SHAPE)),
        INDEX,
        {"weight": RNG.random(4), "sample_weight": RNG.random(6)},
    ),
    Call("binary_cross_entropy", RNG.random(SHAPE), UNIT, {"weight": RNG.random(4)}),
    Call(
        "binary_cross_entropy_with_logits",
        RNG.standard_normal(SHAPE),
        UNIT,
        {"weight": RNG.random(4), "pos_weight": RNG.random(SHAPE)},
    ),
    Call("kl_div", np.log(RNG.random(SHAPE)), UNIT, {}),
    Call("sigmoid_focal_loss", RNG.standard_normal(SHAPE), UNIT, {}),
]
IDS = [
    call.name + ("-soft" if call.name == "cross_entropy" and call.target is UNIT else "")
    for call in CALLS
]
CATEGORICAL = [CALLS[0], CALLS[2]]


@pytest.fixture(params=CALLS, ids=IDS)
def call(request):
    return request.param


def results(package, call, x, target, **options):
    """Loss and gradient of each of the three functions, for two reductions."""
    answers = []
    for reduction in ("none", "mean"):
        every = {**options, "reduction": reduction}
        loss = getattr(package, call.name)(x, target, **every)
        upstream = np.full(np.shape(loss), 0.5)
        answers += [loss, *getattr(package, f"{call.name}_value_and_grad")(x, target, **every)]
        answers.append(getattr(package, f"{call.name}_backward")(upstream, x, target, **every))
    return answers


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


# ---- b) layouts and dtypes that are taken ----------------------------------------------------


def read_only(array, path):
    array = array.copy()
    array.flags.writeable = False
    return array


def memory_mapped(array, path):
    file = path / f"{len(list(path.iterdir()))}.npy"
    np.save(file, array)
    return np.load(file, mmap_mode="r")


def fortran(array, path):
    return np.asfortranarray(array)


def strided(array, path):
    wide = np.zeros([2 * n for n in array.shape], array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_(array, path):
    return array[::-1].copy()[::-1]


def foreign_byte_order(array, path):
    return array.astype(array.dtype.newbyteorder())


def misaligned(array, path):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned or array.dtype.itemsize == 1
    return view


def nested_list(array, path):
    return array.tolist()


LAYOUTS = [read_only, memory_mapped, fortran, strided, reversed_, foreign_byte_order, misaligned]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_layouts(fl, call, layout, dtype, tmp_path):
    """The same bits from any layout of logits, targets and weights."""
    x, target = call.x.astype(dtype), call.target
    want = results(fl, call, x, target, **call.options)
    assert_same(results(fl, call, layout(x, tmp_path), target, **call.options), want)
    assert_same(results(fl, call, x, layout(target, tmp_path), **call.options), want)
    options = {name: layout(array, tmp_path) for name, array in call.options.items()}
    assert_same(results(fl, call, x, target, **options), want)


def test_lists(fl, call):
    options = {name: array.tolist() for name, array in call.options.items()}
    got = results(fl, call, call.x.tolist(), call.target.tolist(), **options)
    assert_same(got, results(fl, call, call.x, call.target, **call.options))


def test_inputs_are_never_written(fl, call):
    x, target = call.x.copy(), call.target.copy()
    options = {name: array.copy() for name, array in call.options.items()}
    results(fl, call, x, target, **options)
    np.testing.assert_array_equal(x, call.x)
    np.testing.assert_array_equal(target, call.target)
    for name, array in options.items():
        np.testing.assert_array_equal(array, call.options[name])


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint64", "int64"])
def test_integer_logits_count_as_float64(fl, call, dtype):
    x = np.resize([0, 1, 1, 0, 1], SHAPE).astype(dtype)  # 0 and 1 are probabilities as well
    got = results(fl, call, x, call.target)
    assert all(np.asarray(answer).dtype == np.float64 for answer in got)
    assert_same(got, results(fl, call, x.astype(np.float64), call.target))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_result_types(fl, call, dtype):
    x = call.x.astype(dtype_of(dtype))
    exact = np.float64 if dtype == "float64" else np.float32
    for answer in results(fl, call, x, call.target):
        expected = x.dtype if np.shape(answer) == SHAPE and answer.dtype == x.dtype else exact
        assert np.asarray(answer).dtype == expected
    loss = getattr(fl, call.name)(x, call.target)
    assert isinstance(loss, np.generic)
    _, gradient = getattr(fl, f"{call.name}_value_and_grad")(x, call.target)
    assert type(gradient) is np.ndarray
    assert gradient.dtype == x.dtype


def test_array_likes(fl, call):
    """Whatever np.asarray takes: subclasses, and objects with the array interface."""

    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return np.array(call.x, dtype=dtype)

    want = results(fl, call, call.x, call.target)
    assert_same(results(fl, call, Wrapped(), call.target), want)
    assert_same(results(fl, call, call.x.view(np.recarray), call.target), want)
    assert_same(results(fl, call, np.ma.masked_array(call.x), call.target), want)
    assert_same(results(fl, call, memoryview(call.x), call.target), want)


@pytest.mark.parametrize(
    "name",
    [
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "sigmoid_focal_loss",
    ],
)
def test_scalars(fl, name):
    """0-d arrays, NumPy's scalars and Python's numbers."""
    want = getattr(fl, name)(np.array([0.25]), np.array([1.0]), reduction="none")
    for x in (0.25, np.float64(0.25), np.array(0.25)):
        for reduction in ("none", "sum", "mean"):
            loss = getattr(fl, name)(x, 1.0, reduction=reduction)
            assert np.shape(loss) == ()
            assert loss == want[0]
            loss, gradient = getattr(fl, f"{name}_value_and_grad")(x, 1, reduction=reduction)
            assert np.shape(gradient) == ()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (0, 3, 0), (2, 0, 3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_zero_size(fl, call, shape, dtype):
    """No loss: the sum is 0, the mean NaN, "none" and the gradient empty."""
    x = np.zeros(shape, dtype)
    target = np.zeros(shape, dtype)
    if call.target is INDEX:
        target = np.zeros(shape[:1] + shape[2:], np.int64)
    none, *_ = results(fl, call, x, target)
    assert none.size == 0
    assert getattr(fl, call.name)(x, target, reduction="sum") == 0.0
    for reduction, want in (("sum", 0.0), ("mean", np.nan)):
        loss, gradient = getattr(fl, f"{call.name}_value_and_grad")(x, target, reduction=reduction)
        np.testing.assert_array_equal(loss, want)
        assert gradient.shape == shape


def test_empty_list_as_target(fl):
    """np.asarray([]) is floating; no index is wrong in it."""
    assert fl.cross_entropy(np.empty((0, 3)), [], reduction="sum") == 0.0


# ---- c) out= ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_out(fl, call, dtype, reduction):
    x = call.x.astype(dtype_of(dtype))
    options = {**call.options, "reduction": reduction}
    value_and_grad = getattr(fl, f"{call.name}_value_and_grad")
    backward = getattr(fl, f"{call.name}_backward")
    loss, gradient = value_and_grad(x, call.target, **options)

    out = np.full_like(x, np.nan)
    got = value_and_grad(x, call.target, out=out, **options)
    assert got[1] is out
    assert_same(got, (loss, gradient))

    upstream = np.asarray(RNG.standard_normal(np.shape(loss)))
    want = backward(upstream, x, call.target, **options)
    out = np.full_like(x, np.nan)
    assert backward(upstream, x, call.target, out=out, **options) is out
    assert_same([out], [want])

    in_place = x.copy()
    got = value_and_grad(in_place, call.target, out=in_place, **options)
    assert got[1] is in_place
    assert_same(got, (loss, gradient))
    in_place = x.copy()
    backward(upstream, in_place, call.target, out=in_place, **options)
    assert_same([in_place], [want])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(2000, 3), (300, 100), (70, 3000), (3, 20_000), (2, 7, 40, 50), (2, 300, 90)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_place_sizes(fl, shape, dtype, smoothing):
    """In place on every way through the kernels of cross_entropy, several threads included."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(dtype)
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    want = fl.cross_entropy_value_and_grad(x, target, label_smoothing=smoothing)
    got = fl.cross_entropy_value_and_grad(x, target, label_smoothing=smoothing, out=x)
    assert_same(got, want)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_in_place_where_the_loss_is_infinite(fl, reduction):
    """A float32 loss that is too large is not computed anew from what is a gradient by then."""
    logits, target = np.float32([[-3e38, 3e38]]), np.array([0])
    loss, grad = fl.cross_entropy_value_and_grad(logits, target, reduction=reduction, out=logits)
    assert loss == np.inf
    assert grad is logits
    np.testing.assert_array_equal(grad, [[-1, 1]])
    logits = np.float32([-3e38, 3e38])
    loss, grad = fl.binary_cross_entropy_with_logits_value_and_grad(
        logits, np.float32([1, 0]), reduction="sum", out=logits
    )
    assert loss == np.inf
    np.testing.assert_array_equal(grad, [-1, 1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [1, 33, 100, 1_000])
@pytest.mark.parametrize("kind", ["float32", "float64", "int64", "int8"])
@pytest.mark.parametrize(
    "name",
    ["binary_cross_entropy_with_logits", "binary_cross_entropy", "sigmoid_focal_loss", "kl_div"],
)
def test_small_calls_have_the_bits_of_others(fl, name, kind, size, reduction):
    """A small call is checked in the kernel, but not one of five dimensions."""
    rng = np.random.default_rng(size)
    x = rng.random(size, dtype=np.float32)
    if name == "kl_div":
        x = np.log(x)
    elif name != "binary_cross_entropy":
        x = 9 * x - 4
    target = rng.integers(0, 2, size) if kind.startswith("int") else rng.random(size)
    target = target.astype(kind)
    shape = (size, 1, 1, 1, 1)
    both = getattr(fl, f"{name}_value_and_grad")
    loss, grad = both(x, target, reduction=reduction)
    other_loss, other_grad = both(x.reshape(shape), target.reshape(shape), reduction=reduction)
    assert loss == other_loss
    np.testing.assert_array_equal(grad, other_grad.ravel())
    assert getattr(fl, name)(x, target, reduction=reduction) == loss


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cross_entropy", (45_000, 100)),
        ("cross_entropy", (480_000, 9)),
        ("cross_entropy", (300, 15_000)),
        ("binary_cross_entropy_with_logits", (45_000, 100)),
    ],
)
def test_large_out_of_odd_alignment(fl, name, shape):
    """Gradients beyond the caches may be written past them: the same bits as small ones."""
    rng = np.random.default_rng(2)
    out = np.empty(np.prod(shape) + 1, np.float32)[1:].reshape(shape)
    x = rng.standard_normal(shape, np.float32)
    target = rng.integers(0, 2, shape[:1] if name == "cross_entropy" else shape)
    function = getattr(fl, f"{name}_value_and_grad")
    out.fill(np.nan)
    function(x, target, reduction="sum", out=out)
    for first in range(0, shape[0], shape[0] // 10):
        part = slice(first, first + 64)
        _, want = function(x[part], target[part], reduction="sum")
        np.testing.assert_array_equal(out[part], want)
    want = out.copy()
    out[...] = x
    function(out, target, reduction="sum", out=out)
    np.testing.assert_array_equal(out, want)


def overlapping(x):
    """`x` in a buffer, and an array of its shape that starts one row later in that buffer."""
    buffer = np.zeros((x.shape[0] + 1, *x.shape[1:]), x.dtype)
    buffer[:-1] = x
    return buffer[:-1], buffer[1:]


BAD_OUT = {
    "shape": (lambda x: np.zeros((4, 6)), ValueError, r"\(6, 4\).*\(4, 6\)"),
    "rank": (lambda x: np.zeros(24), ValueError, r"\(6, 4\).*\(24,\)"),
    "dtype": (lambda x: np.zeros(SHAPE, np.float32), TypeError, "float64.*float32"),
    "byte order": (lambda x: np.zeros(SHAPE, ">f8"), TypeError, "float64.*>f8"),
    "order": (lambda x: np.zeros(SHAPE, order="F"), ValueError, "C-contiguous"),
    "stride": (lambda x: np.zeros((6, 8))[:, ::2], ValueError, "C-contiguous"),
    "read-only": (lambda x: read_only(x, None), ValueError, "read-only"),
    "misaligned": (lambda x: misaligned(x, None), ValueError, "aligned"),
    "list": (lambda x: x.tolist(), TypeError, "NumPy array.*list"),
}


@pytest.mark.parametrize("problem", BAD_OUT)
def test_bad_out(fl, call, problem):
    make, error, text = BAD_OUT[problem]
    for function, first in ((f"{call.name}_value_and_grad", ()), (f"{call.name}_backward", (1.0,))):
        out = make(call.x)
        before = np.array(out)
        with pytest.raises(error, match=f"(?s)out.*{text}"):
            getattr(fl, function)(*first, call.x, call.target, out=out)
        np.testing.assert_array_equal(out, before)


def test_out_of_integer_logits(fl, call):
    """Their gradient is float64, and no array of the logits' dtype can hold it."""
    x = np.resize([0, 1, 1], SHAPE)
    for dtype in ("float64", "int64"):
        out = np.zeros(SHAPE, dtype)
        with pytest.raises(TypeError, match=r"out.*int64"):
            getattr(fl, f"{call.name}_value_and_grad")(x, call.target, out=out)
        assert not out.any()


def test_out_that_overlaps(fl, call):
    """Memory shared in another way than in place is refused: the answer would be garbage."""
    x, out = overlapping(call.x)
    with pytest.raises(ValueError, match="overlap"):
        getattr(fl, f"{call.name}_value_and_grad")(x, call.target, out=out)
    np.testing.assert_array_equal(x, call.x)
    if call.target.shape == SHAPE:
        target = call.target.copy()
        with pytest.raises(ValueError, match="overlap"):
            getattr(fl, f"{call.name}_value_and_grad")(call.x, target, out=target)
        np.testing.assert_array_equal(target, call.target)


# ---- d) refused arrays -----------------------------------------------------------------------


def raises(error, *texts):
    """A context that wants an `error` whose message has all `texts`, as they stand."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{re.escape(t)})" for t in texts))


DTYPES = ["complex64", "complex128", "object", "U3", "S3", "datetime64[s]", "timedelta64[s]", "V4"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_logits(fl, call, dtype):
    x = np.zeros(SHAPE).astype(dtype) if dtype != "V4" else np.zeros(SHAPE, dtype)
    for name in (call.name, f"{call.name}_value_and_grad"):
        with raises(TypeError, str(x.dtype)):
            getattr(fl, name)(x, call.target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_of_target(fl, call, dtype):
    target = np.zeros(call.target.shape, "f8" if dtype != "V4" else dtype).astype(dtype)
    with raises(TypeError, "target", str(target.dtype)):
        getattr(fl, call.name)(call.x, target)


@pytest.mark.parametrize("dtype", ["complex128", "object", "U3", "datetime64[s]"])
def test_dtype_of_weights(fl, call, dtype):
    for name, array in call.options.items():
        bad = np.ones(array.shape).astype(dtype)
        with raises(TypeError, name, str(bad.dtype)):
            getattr(fl, call.name)(call.x, call.target, **{name: bad})


@pytest.mark.parametrize("dtype", ["complex128", "object", "U3"])
def test_dtype_of_grad_output(fl, call, dtype):
    with raises(TypeError, "grad_output", str(np.dtype(dtype))):
        getattr(fl, f"{call.name}_backward")(np.ones(()).astype(dtype), call.x, call.target)


def test_none_and_ragged(fl, call):
    function = getattr(fl, call.name)
    with pytest.raises((TypeError, ValueError)):
        function(None, call.target)
    with pytest.raises((TypeError, ValueError)):
        function(call.x, None)
    with pytest.raises((TypeError, ValueError)):
        function([[1.0, 2.0], [3.0]], call.target)


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("x_shape", "target_shape"),
    [
        ((6, 4), (5,)),
        ((6, 4), (6, 1)),
        ((6, 4), (6, 5)),
        ((6, 4), ()),
        ((4,), (4,)),
        ((2, 3, 4), (2, 3)),
        ((2, 3, 4, 5), (2, 4)),
        ((0, 4), (1,)),
    ],
)
def test_shapes_of_indices(fl, call, x_shape, target_shape):
    """Both shapes are shown."""
    with raises(ValueError, str(x_shape), str(target_shape)):
        getattr(fl, call.name)(np.zeros(x_shape), np.zeros(target_shape, int))


@pytest.mark.parametrize("shape", [(6, 5), (4, 6), (6, 4, 1), (1, 4), ()])
def test_shapes_of_probabilities(fl, shape):
    with raises(ValueError, "(6, 4)", str(shape)):
        fl.cross_entropy(np.zeros(SHAPE), np.zeros(shape))


@pytest.mark.parametrize("call", CALLS[3:], ids=IDS[3:])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (4, 6), (6, 4, 1), (7, 6, 4)])
def test_shapes_of_elements(fl, call, shape):
    with raises(ValueError, "(6, 4)", str(shape)):
        getattr(fl, call.name)(call.x, np.zeros(shape))


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
def test_indices_are_integers(fl, call):
    with raises(TypeError, "target", "bool"):
        getattr(fl, call.name)(call.x, call.target > 1)
    with raises(TypeError, "target is float64: class indices must be integers"):
        getattr(fl, call.name)(call.x, call.target.astype(float))


def test_missing_indices(fl):
    """A data frame's column of integers with holes arrives as floating numbers and NaN."""
    target = np.array([0, 1, np.nan, 2, 3, 0])
    for function in (fl.cross_entropy, fl.nll_loss):
        with raises(TypeError, "target is float64", "NaN", "ignore_index"):
            function(np.zeros(SHAPE), target)
    with raises(TypeError, "target is float64", "NaN", "ignore_index"):
        fl.linear_cross_entropy(np.zeros((6, 2)), np.zeros((4, 2)), target)


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_swapped_arguments(fl, call, axis):
    with pytest.raises((TypeError, ValueError), match="look swapped"):
        getattr(fl, call.name)(np.zeros(6, int), np.zeros(SHAPE, int), axis=axis)
    if call.name == "cross_entropy":
        with raises(ValueError, "logits and target look swapped"):
            fl.cross_entropy(np.zeros(6, int), np.zeros(SHAPE), axis=axis)


def test_masked_elements_are_refused(fl, call):
    """Their mask would be lost without a word."""

    def masked(values):
        values = np.ma.masked_array(values)
        values[0] = np.ma.masked
        return values

    function = getattr(fl, call.name)
    with raises(TypeError, "masked array"):
        function(masked(call.x), call.target)
    with raises(TypeError, "target is a masked array"):
        function(call.x, masked(call.target))
    with raises(TypeError, "sample_weight is a masked array"):
        function(call.x, call.target, sample_weight=masked(np.ones(1)))


def test_columns_of_arrays_name_the_remedy(fl):
    """A data frame's column of arrays is an array of objects."""
    column = np.empty(6, object)
    column[:] = list(np.zeros(SHAPE))
    with raises(TypeError, "logits", "object", "np.stack(np.asarray(logits))"):
        fl.cross_entropy(column, np.zeros(6, int))
    assert fl.cross_entropy(np.stack(np.asarray(column)), np.zeros(6, int)) == np.log(4)


def test_logits_without_an_axis(fl):
    for name in ("cross_entropy", "nll_loss"):
        with pytest.raises(ValueError, match=r"0-d|dimension|axis"):
            getattr(fl, name)(1.0, 0)


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("bad", [4, 5, -1, -99, -101, 2**31, 2**40, -(2**63), 2**63 - 1])
def test_index_outside_the_classes(fl, call, bad):
    """The index, where it is, and how many classes there are; the first of several."""
    target = call.target.copy()
    target[3] = bad
    target[5] = 77
    with raises(IndexError, str(bad), "3", "4 classes"):
        getattr(fl, call.name)(call.x, target)
    message = None
    try:
        getattr(fl, call.name)(call.x, target)
    except IndexError as error:
        message = str(error)
    assert re.search(r"position 3\b", message)


def test_index_outside_the_classes_with_dimensions(fl):
    target = np.zeros((2, 4, 5), int)
    target[1, 2, 3] = 9
    with raises(IndexError, "9", "(1, 2, 3)", "[0, 3)"):
        fl.cross_entropy(np.zeros((2, 3, 4, 5)), target)


def test_index_of_no_classes(fl):
    with raises(IndexError, "0"):
        fl.cross_entropy(np.zeros((2, 0)), np.zeros(2, int))
    assert fl.cross_entropy(np.zeros((2, 0)), np.full(2, -100), reduction="sum") == 0.0


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (4, 1), (6, 4)])
def test_shape_of_class_weights(fl, call, shape):
    with raises(ValueError, "weight", "4", str(shape)):
        getattr(fl, call.name)(call.x, call.target, weight=np.ones(shape))


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(5,), (6, 1), (6, 4), (1, 6)])
def test_shape_of_sample_weights(fl, call, shape):
    with raises(ValueError, "sample_weight", "(6,)", str(shape)):
        getattr(fl, call.name)(call.x, call.target, sample_weight=np.ones(shape))


@pytest.mark.parametrize("call", [c for c in CALLS if "binary" in c.name], ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [(5,), (6,), (4, 6), (7, 1), (2, 6, 4), (1, 6, 4)])
def test_shape_of_element_weights(fl, call, shape):
    """They broadcast to the logits and may not enlarge them."""
    for name in call.options:
        with raises(ValueError, name, "(6, 4)", str(shape)):
            getattr(fl, call.name)(call.x, call.target, **{name: np.ones(shape)})


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("bad", [-0.5, 1.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["probs", "target"])
def test_probabilities_outside_the_unit_interval(fl, dtype, bad, where):
    for count, position in ((24, 17), (70_001, 70_000), (1, 0)):
        p = np.full(count, 0.5, dtype_of(dtype))
        target = p.copy()
        (p if where == "probs" else target)[position] = bad
        with raises(ValueError, where, str(bad), str(position)):
            fl.binary_cross_entropy(p, target)
        out = np.full_like(p, 7)
        with raises(ValueError, where, str(bad)):
            fl.binary_cross_entropy_value_and_grad(p, target, out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bad", [-1e-7, 1.001, 5.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 511, 1300, 2047, 2050])
def test_first_number_outside_the_unit_interval(fl, dtype, bad, position):
    """Among targets of 0 and 1, of which many are worked on at once."""
    rng = np.random.default_rng(0)
    for where in ("probs", "target"):
        p = rng.random(2060).astype(dtype)
        target = rng.integers(0, 2, p.size).astype(dtype)
        (p if where == "probs" else target)[[position, -1]] = bad
        out = np.full_like(p, 7)
        for reduction in ("mean", "none"):
            with raises(ValueError, where, f"position {position}"):
                fl.binary_cross_entropy(p, target, reduction=reduction)
            with raises(ValueError, where, f"position {position}"):
                fl.binary_cross_entropy_value_and_grad(p, target, reduction=reduction, out=out)
        assert (out == 7).all()


def test_target_outside_the_unit_interval_by_less_than_the_probabilities_show(fl):
    p, target = np.full(600, 0.5, np.float32), np.ones(600)
    target[500] += 1e-10
    for function in (fl.binary_cross_entropy, fl.binary_cross_entropy_value_and_grad):
        with raises(ValueError, "target", "position 500"):
            function(p, target)


@pytest.mark.parametrize("shape", [(6,), (1,), (6, 4), (4, 6)])
def test_shape_of_grad_output(fl, call, shape):
    """A number for a reduction, the shape of the losses without one."""
    function = getattr(fl, f"{call.name}_backward")
    with raises(ValueError, "grad_output", "()", str(shape)):
        function(np.ones(shape), call.x, call.target)
    losses = getattr(fl, call.name)(call.x, call.target, reduction="none")
    if shape != losses.shape:
        with raises(ValueError, "grad_output", str(losses.shape), str(shape)):
            function(np.ones(shape), call.x, call.target, reduction="none")


# ---- e) refused options ----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["Mean", "avg", "", "batch_mean"])
def test_reduction(fl, call, reduction):
    for name in (call.name, f"{call.name}_value_and_grad"):
        with raises(ValueError, "reduction", repr(reduction), "'mean'", "'sum'", "'none'"):
            getattr(fl, name)(call.x, call.target, reduction=reduction)


def test_reduction_is_a_string(fl, call):
    for reduction in (None, 0, ["mean"]):
        with pytest.raises((TypeError, ValueError), match="reduction"):
            getattr(fl, call.name)(call.x, call.target, reduction=reduction)


def test_batchmean_is_for_kl_div_alone(fl, call):
    if call.name == "kl_div":
        fl.kl_div(call.x, call.target, reduction="batchmean")
        with pytest.raises(ValueError, match="batchmean"):
            fl.kl_div(0.5, 0.5, reduction="batchmean")
    else:
        with raises(ValueError, "'batchmean'"):
            getattr(fl, call.name)(call.x, call.target, reduction="batchmean")


def test_options_are_keyword_only(fl, call):
    with pytest.raises(TypeError):
        getattr(fl, call.name)(call.x, call.target, None)


@pytest.mark.parametrize("call", CALLS[:3], ids=IDS[:3])
def test_axis(fl, call):
    for axis in (2, -3, 10**9):
        with raises(ValueError, "axis", str(axis), "2"):
            getattr(fl, call.name)(call.x, call.target, axis=axis)
    for axis in (1.0, "1", (1,)):
        with raises(TypeError, "axis", repr(axis)):
            getattr(fl, call.name)(call.x, call.target, axis=axis)


@pytest.mark.parametrize("smoothing", [-1e-9, 1.0000001, 2, np.nan, np.inf, -np.inf])
def test_label_smoothing_outside_the_unit_interval(fl, smoothing):
    for target in (INDEX, UNIT):
        with raises(ValueError, "label_smoothing", str(smoothing), "[0, 1]"):
            fl.cross_entropy(CALLS[0].x, target, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", ["0.1", None, 0.1j, [0.1, 0.2]])
def test_label_smoothing_is_a_number(fl, smoothing):
    with raises(TypeError, "label_smoothing", repr(smoothing)):
        fl.cross_entropy(CALLS[0].x, INDEX, label_smoothing=smoothing)


@pytest.mark.parametrize("call", CATEGORICAL, ids=["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("ignore_index", [1.0, "1", None, np.float64(2)])
def test_ignore_index_is_an_integer(fl, call, ignore_index):
    with raises(TypeError, "ignore_index", repr(ignore_index)):
        getattr(fl, call.name)(call.x, call.target, ignore_index=ignore_index)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("ignore_index", [2**63, -(2**63) - 1, 10**30, np.uint64(2**63)])
def test_ignore_index_fits_64_bits(fl, name, ignore_index):
    with raises(ValueError, "ignore_index must fit in 64 bits", str(ignore_index)):
        getattr(fl, name)([[1.0, 2.0]], [0], ignore_index=ignore_index)


@pytest.mark.parametrize("ignore_index", [0, 3, 4, 1000])
def test_ignore_index_of_probabilities(fl, ignore_index):
    with raises(ValueError, "ignore_index", str(ignore_index), "probabilities"):
        fl.cross_entropy(CALLS[1].x, UNIT, ignore_index=ignore_index)
    for negative in (-1, -100):
        assert np.isfinite(fl.cross_entropy(CALLS[1].x, UNIT, ignore_index=negative))


@pytest.mark.parametrize(
    ("option", "value"),
    [("gamma", "1"), ("gamma", 1j), ("gamma", [1.0, 2.0]), ("alpha", "1"), ("alpha", 1j)],
)
def test_focal_options_are_numbers(fl, option, value):
    with raises(TypeError, option, repr(value)):
        fl.sigmoid_focal_loss(CALLS[6].x, UNIT, **{option: value})


@pytest.mark.parametrize(
    ("alpha", "shown"),
    [(-5, "-5"), (1.5, "1.5"), (np.nan, "nan"), ([[0.5], [-5.0], [0.5]], "-5.0")],
)
def test_alpha_lies_in_the_unit_interval(fl, alpha, shown):
    with raises(ValueError, "alpha must lie in [0, 1]", shown):
        fl.sigmoid_focal_loss(CALLS[6].x, UNIT, alpha=alpha)


# ---- f) errors write nothing -----------------------------------------------------------------

WRONG = [
    ("cross_entropy", {"target": np.array([0, 1, 2, 3, 0, 4])}),
    ("cross_entropy", {"target": np.zeros(5, int)}),
    ("cross_entropy", {"target": np.zeros((6, 5))}),
    ("cross_entropy", {"target": np.zeros(6, complex)}),
    ("cross_entropy", {"weight": np.ones(3)}),
    ("cross_entropy", {"sample_weight": np.ones(3)}),
    ("cross_entropy", {"reduction": "most"}),
    ("cross_entropy", {"label_smoothing": 2.0}),
    ("cross_entropy", {"axis": 7}),
    ("cross_entropy", {"ignore_index": 1, "target": UNIT}),
    ("nll_loss", {"target": np.array([0, 1, 2, 3, 0, -1])}),
    ("nll_loss", {"weight": np.ones(3)}),
    ("binary_cross_entropy", {"target": np.full(SHAPE, np.nan)}),
    ("binary_cross_entropy", {"x": np.r_[np.full(23, 0.5), 1.5].reshape(SHAPE)}),
    ("binary_cross_entropy", {"weight": np.ones(3)}),
    ("binary_cross_entropy_with_logits", {"pos_weight": np.ones((2, 6, 4))}),
    ("binary_cross_entropy_with_logits", {"target": np.ones(3)}),
    ("kl_div", {"target": np.ones(3)}),
    ("sigmoid_focal_loss", {"target": np.ones(3)}),
    ("sigmoid_focal_loss", {"gamma": "high"}),
]


@pytest.mark.parametrize(
    ("name", "change"), WRONG, ids=lambda v: v if isinstance(v, str) else "-".join(v)
)
def test_errors_write_nothing(fl, name, change):
    call = next(call for call in CALLS if call.name == name)
    arguments = {"x": call.x, "target": call.target, **call.options, **change}
    x, target = arguments.pop("x"), arguments.pop("target")
    out = np.full(SHAPE, 7.0)
    with pytest.raises((TypeError, ValueError, IndexError)):
        getattr(fl, f"{name}_value_and_grad")(x, target, out=out, **arguments)
    with pytest.raises((TypeError, ValueError, IndexError)):
        getattr(fl, f"{name}_backward")(1.0, x, target, out=out, **arguments)
    in_place = x.copy()
    with pytest.raises((TypeError, ValueError, IndexError)):
        getattr(fl, f"{name}_value_and_grad")(in_place, target, out=in_place, **arguments)
    assert (out == 7.0).all()
    np.testing.assert_array_equal(in_place, x)


def test_bad_grad_output_writes_nothing(fl, call):
    out = np.full(SHAPE, 7.0)
    with pytest.raises(ValueError, match="grad_output"):
        getattr(fl, f"{call.name}_backward")(np.ones(9), call.x, call.target, out=out)
    assert (out == 7.0).all()


# ---- g) arrays changed by another thread -----------------------------------------------------

CHANGING = """
import threading
import numpy as np
import fastloss

for shape in ((20_000, 10), (2_000, 300), (20, 9_000), (4, 10, 60, 80)):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    target = np.zeros(shape[:1] + shape[2:], np.int64)
    flat, stop = target.reshape(-1), threading.Event()

    def scribble():
        while not stop.is_set():
            flat[::7] = 2**40
            flat[::5] = -(2**62)
            flat[:] = 0

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        for _ in range(150):
            for call in (fastloss.cross_entropy_value_and_grad, fastloss.nll_loss_value_and_grad):
                try:
                    call(x, target)
                except IndexError:
                    pass
    finally:
        stop.set()
        thread.join()
print("done")
"""


def test_targets_that_change_during_the_call():
    """A wrong number or an IndexError, never an access out of bounds: the process lives on."""
    result = subprocess.run(
        [sys.executable, "-c", CHANGING], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


# ---- h) size ---------------------------------------------------------------------------------


def test_more_than_2_31_classes():
    """One row of 2³¹ + 8 logits: np.zeros maps them all to one page of memory."""
    x = np.zeros((1, 2**31 + 8), np.float16)
    loss = fastloss.cross_entropy(x, np.array([2**31 + 5]))
    np.testing.assert_allclose(loss, np.log(2.0**31 + 8), rtol=1e-6)
    assert isinstance(loss, np.float32)


def test_more_than_2_31_elements_across_an_axis():
    """The target of each sample lies beyond element 2³¹."""
    classes = 2**17 + 1
    x = np.zeros((1, classes, 2**14), ml_dtypes.bfloat16)
    losses = fastloss.nll_loss(x, np.full((1, 2**14), classes - 1), reduction="none")
    assert not losses.any()
    with pytest.raises(IndexError, match=str(classes)):
        fastloss.nll_loss(x, np.full((1, 2**14), classes))


def test_more_than_2_31_elements_of_a_binary_loss():
    x = np.zeros(2**31 + 8, np.float16)
    loss = fastloss.binary_cross_entropy_with_logits(x, x, reduction="sum")
    np.testing.assert_allclose(loss, (2.0**31 + 8) * np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["weight", "sample_weight", "grad_output"])
def test_misaligned_factors_are_copied(fl, name):
    """Doubles at odd addresses, as fields of packed records have them."""
    x = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    target = np.arange(6)
    aligned = np.linspace(0.5, 2.0, 6)
    misaligned = np.zeros(6 * 8 + 1, np.uint8)[1:].view(np.float64)
    misaligned[:] = aligned
    assert not misaligned.flags.aligned
    gradients = []
    for factor in (aligned, misaligned):
        options = {name: factor} if name != "grad_output" else {}
        upstream = factor if name == "grad_output" else np.ones(6)
        gradients.append(
            fl.cross_entropy_backward(upstream, x, target, reduction="none", **options)
        )
    np.testing.assert_array_equal(*gradients)
    # What a kernel is given can be read a double at a time.
    a = fl._arrays.over_classes(x, target, misaligned, misaligned, None, "logits", True)
    assert a.weight.flags.aligned and a.factor.flags.aligned
    assert fl._arrays.combined(None, misaligned, (6, 1)).flags.aligned


# ---- names that other libraries have ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "meant"),
    [
        ("cross_entropy", "dim", "axis"),
        ("cross_entropy_value_and_grad", "class_weight", "weight"),
        ("cross_entropy_backward", "weights", "weight"),
        ("cross_entropy_grad_and_hess", "dim", "axis"),
        ("softmax_focal_loss", "weight", "alpha"),
        ("nll_loss", "input", "log_probs"),
        ("softmax", "dim", "axis"),
        ("logsumexp", "dim", "axis"),
        ("sigmoid", "input", "x"),
        ("kl_div", "size_average", "reduction="),
        ("binary_cross_entropy", "reduce", "reduction="),
        ("distillation_loss", "dim", "axis"),
        ("distillation_loss_value_and_grad", "dim", "axis"),
        ("distillation_loss_backward", "dim", "axis"),
        ("score_samples", "dim", "axis"),
        ("compare_logits", "dim", "axis"),
        ("brier_score", "dim", "axis"),
        ("calibration_error", "dim", "axis"),
        ("fit_temperature", "dim", "axis"),
    ],
)
def test_a_name_of_other_libraries_leads_to_ours(fl, name, option, meant):
    function = getattr(fl, name)
    arrays = [[[0.5, 0.5]]] * (len(inspect.signature(function).parameters) > 2) + [[[0.5, 0.5]]]
    if name.endswith("_backward"):
        arrays = [1.0, *arrays]
    if name in ("softmax", "logsumexp", "sigmoid"):
        arrays = arrays[:1]
    with raises(TypeError, f"{name}()", option, meant):
        function(*arrays, **{option: 1})


@pytest.mark.parametrize("kind", ["", "_value_and_grad", "_backward"])
def test_a_name_of_other_libraries_for_a_layer(fl, kind):
    arrays = [1.0] * (kind == "_backward") + [[[0.5]], [[0.5], [0.5]], [0]]
    with raises(TypeError, f"linear_cross_entropy{kind}()", "class_weight", "weight"):
        getattr(fl, f"linear_cross_entropy{kind}")(*arrays, class_weight=[1, 1])


def test_an_unknown_name_hears_which_there_are(fl):
    with raises(TypeError, "kl_div()", "'colour'", "log_target"):
        fl.kl_div([0.5], [0.5], colour=1)
