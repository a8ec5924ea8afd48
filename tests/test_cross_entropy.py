"""cross_entropy: every option and layout against the oracle.

Layout: a) shapes and class counts, b) options, c) probabilities, d) axes, e) half precision,
f) target dtypes, g) memory, h) gradients beyond the caches.
"""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, check_loss, dtype_of, largest, logits

NAME = "cross_entropy"


def targets(rng, shape, classes, ignored=None):
    """Class indices of logits of `shape` without their class axis; a quarter are `ignored`."""
    target = rng.integers(0, classes, shape)
    if ignored is not None:
        target[rng.random(shape) < 0.25] = ignored
    return target


def without(shape, axis):
    axis = oracle.class_axis(len(shape), axis)
    return shape[:axis] + shape[axis + 1 :]


def check(fl, x, target, **options):
    reductions = options.pop("reductions", ("none", "sum", "mean"))
    reference = oracle.cross_entropy(x, target, **options)
    check_loss(fl, NAME, reference, x, target, reductions=reductions, **options)


# ---- a) shapes and class counts --------------------------------------------------------------
# Around the kernels' corners: one class, few classes, lane counts and their neighbours, rows
# beyond a block of 8192 classes; one sample, fewer samples than a tile, more than one.

CLASSES = (1, 2, 3, 4, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 255, 1000)
LONG = (4095, 4096, 4097, 8191, 8192, 8193, 16_385, 50_000, 300_000)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", CLASSES)
def test_class_counts(fl, classes, dtype):
    rng = np.random.default_rng(classes)
    for samples in (1, 3, 16, 65):
        x = logits(rng, (samples, classes), dtype)
        check(fl, x, targets(rng, samples, classes))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", LONG)
def test_long_rows(fl, classes, dtype):
    rng = np.random.default_rng(classes)
    x = logits(rng, (2, classes), dtype)
    x[0].sort()  # the running maximum rises with every block
    x[1] = np.sort(x[1])[::-1]
    for target in ([0, 0], [classes - 1, classes - 1], [classes // 2, 4095 % classes]):
        check(fl, x, np.array(target))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("classes", [10, 32, 50, 63, 64, 65, 100, 1000, 1024, 3000, 9000, 20_001])
@pytest.mark.parametrize("step", [12.0, 30.0, 80.0, 700.0])
def test_rows_whose_maxima_lie_far_apart(fl, classes, dtype, step):
    """Rows are computed with an exponent that the rows before had: no bit shows it."""
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((90_000 // classes + 3, classes))
    x += np.cumsum(rng.choice([-step, 0, 0, 0, step], len(x)))[:, None]
    x[:, classes // 2 :] += rng.choice([-step, 0, 0, step], (len(x), 1))
    x = x.astype(dtype_of(dtype))
    target = targets(rng, len(x), classes, ignored=-100)
    target[::3] = np.asarray(x[::3], np.float64).argmax(axis=1)
    check(fl, x, target)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    for row in (*range(9), *rng.integers(0, len(x), 20)):
        part = slice(row, row + 1)
        alone = fl.cross_entropy_value_and_grad(x[part], target[part], reduction="none")
        np.testing.assert_array_equal(loss[part], alone[0])
        np.testing.assert_array_equal(gradient[part], alone[1])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [2, 10, 128])
def test_many_samples(fl, classes, dtype):
    """Enough samples for several threads and several blocks of the batch reduction."""
    rng = np.random.default_rng(7)
    x = logits(rng, (30_011, classes), dtype)
    check(fl, x, targets(rng, 30_011, classes))


@pytest.mark.parametrize(
    "shape",
    [
        (5,),
        (1,),
        (3, 4),
        (2, 3, 4),
        (2, 21, 9, 7),
        (1, 3, 64, 65),
        (3, 5, 2, 2, 2),
        (2, 1, 3),
        (2, 5, 1),
        (2, 300, 5),
        (2, 3, 1000),
        (1, 5000, 3),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dimensions(fl, shape, dtype):
    rng = np.random.default_rng(len(shape))
    classes = shape[oracle.class_axis(len(shape))]
    x = logits(rng, shape, dtype)
    check(fl, x, targets(rng, without(shape, None), classes))
    w = rng.uniform(0.1, 2.0, classes).astype(dtype)
    ignored = targets(rng, without(shape, None), classes, ignored=classes - 1)
    check(fl, x, ignored, weight=w, ignore_index=classes - 1, label_smoothing=0.1)


# ---- b) options ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(23, 6), (11, 200), (3, 6, 5), (2, 5000)])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("sampled", [False, True], ids=["", "sample_weight"])
@pytest.mark.parametrize("ignore_index", [-100, 2, -7])
def test_options(fl, shape, dtype, weighted, sampled, ignore_index):
    rng = np.random.default_rng(1)
    x = logits(rng, shape, dtype)
    target = targets(rng, without(shape, None), shape[1], ignored=ignore_index)
    weight = rng.uniform(0.1, 2.0, shape[1]).astype(dtype) if weighted else None
    sample_weight = rng.uniform(0.1, 2.0, target.shape).astype(dtype) if sampled else None
    for smoothing in (0.0, 0.2, 1.0):
        check(
            fl,
            x,
            target,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=smoothing,
        )


@pytest.mark.parametrize("dtype", FLOATS)
def test_sample_weight_broadcasts(fl, dtype):
    rng = np.random.default_rng(2)
    x, target = logits(rng, (4, 3, 5), dtype), targets(rng, (4, 5), 3)
    for shape in ((4, 5), (4, 1), (1, 5), (5,), (1,), ()):
        sample_weight = rng.uniform(0.1, 2.0, shape).astype(dtype)
        check(fl, x, target, sample_weight=sample_weight)


def test_sample_weight_is_a_repeated_sample(fl):
    """A sample of weight 3 counts like three samples: the mean is a weighted mean."""
    rng = np.random.default_rng(3)
    x, target = logits(rng, (6, 4), "float64"), targets(rng, 6, 4)
    times = np.array([1, 3, 0, 2, 1, 5])
    weighted = fl.cross_entropy(x, target, sample_weight=times.astype(float))
    repeated = fl.cross_entropy(np.repeat(x, times, axis=0), np.repeat(target, times))
    assert_close(weighted, np.asarray(repeated))


def test_negative_class_and_sample_weights(fl):
    """Weights are factors, of either sign, as in PyTorch."""
    rng = np.random.default_rng(4)
    x, target = logits(rng, (9, 3), "float64"), targets(rng, 9, 3)
    check(fl, x, target, weight=np.array([1.0, -2.0, 0.5]), reductions=("none", "sum"))
    check(fl, x, target, sample_weight=rng.standard_normal(9), reductions=("none", "sum"))


# ---- c) class probabilities ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(6,), (23, 6), (7, 200), (3, 6, 5), (2, 5000), (2, 4, 3, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_probabilities(fl, shape, dtype, smoothing):
    rng = np.random.default_rng(5)
    axis = oracle.class_axis(len(shape))
    x = logits(rng, shape, dtype)
    p = rng.gamma(0.5, size=shape)
    p = (p / p.sum(axis=axis, keepdims=True)).astype(dtype)
    weight = rng.uniform(0.1, 2.0, shape[axis]).astype(dtype)
    sample_weight = rng.uniform(0.1, 2.0, without(shape, None)).astype(dtype)
    for w, s in itertools.product((None, weight), (None, sample_weight)):
        check_probabilities(fl, x, p, weight=w, sample_weight=s, label_smoothing=smoothing)


def check_probabilities(fl, x, p, **options):
    reference = oracle.cross_entropy(x, p, **options)
    check_loss(fl, NAME, reference, x, p, **options)


def test_probabilities_need_not_sum_to_one(fl):
    """PyTorch takes any floating numbers; so does this."""
    rng = np.random.default_rng(6)
    x = logits(rng, (5, 4), "float64")
    check_probabilities(fl, x, rng.uniform(-1.0, 2.0, (5, 4)))


def test_one_hot_probabilities_are_indices(fl):
    rng = np.random.default_rng(7)
    x, target = logits(rng, (8, 5), "float64"), targets(rng, 8, 5)
    by_index, grad_index = fl.cross_entropy_value_and_grad(x, target)
    by_row, grad_row = fl.cross_entropy_value_and_grad(x, np.eye(5)[target])
    assert_close(by_row, np.asarray(by_index))
    assert_close(grad_row, grad_index)


# ---- d) axes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (3, 4, 5), (2, 3, 4, 5), (70, 3, 70)])
def test_axis(fl, shape, dtype):
    rng = np.random.default_rng(8)
    x = logits(rng, shape, dtype)
    for axis in range(-len(shape), len(shape)):
        rest = without(shape, axis)
        check(fl, x, targets(rng, rest, shape[axis], ignored=-100), axis=axis)
        p = rng.uniform(size=shape).astype(dtype)
        weight = rng.uniform(0.1, 2.0, shape[axis]).astype(dtype)
        check_probabilities(fl, x, p, axis=axis, weight=weight, label_smoothing=0.1)


# ---- e) half precision -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shape", [(6,), (40, 3), (40, 10), (9, 100), (5, 1000), (2, 9001), (2, 21, 9, 7)]
)
def test_half_precision(fl, shape, dtype):
    rng = np.random.default_rng(9)
    axis = oracle.class_axis(len(shape))
    x = logits(rng, shape, dtype)
    target = targets(rng, without(shape, None), shape[axis], ignored=1)
    check(fl, x, target)
    weight = rng.uniform(0.1, 2.0, shape[axis]).astype(dtype_of(dtype))
    check(fl, x, target, weight=weight, ignore_index=1, label_smoothing=0.1)
    p = rng.uniform(size=shape)
    p = (p / p.sum(axis=axis, keepdims=True)).astype(dtype_of(dtype))
    check_probabilities(fl, x, p, label_smoothing=0.1)


# ---- f) target dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target_dtype",
    ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i2", ">i8"],
)
@pytest.mark.parametrize("classes", [5, 300])
def test_target_dtypes(fl, target_dtype, classes):
    rng = np.random.default_rng(10)
    x = logits(rng, (33, classes), "float64")
    target = targets(rng, 33, min(classes, 100)).astype(target_dtype)
    check(fl, x, target)


def test_unsigned_targets_reach_past_the_signed(fl):
    """200 in uint8 is the class 200, not −56; 2⁶⁴−100 is not the ignore_index −100."""
    x = logits(np.random.default_rng(11), (2, 256), "float64")
    check(fl, x, np.array([200, 255], np.uint8))
    with pytest.raises(IndexError, match=str(2**64 - 100)):
        fl.cross_entropy(x, np.array([3, 2**64 - 100], np.uint64))


# ---- g) memory -------------------------------------------------------------------------------


def peak(call) -> int:
    """The most bytes that NumPy and Python held during `call`."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.thread_unsafe(reason="tracemalloc counts the memory of all threads")
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(64, 16_000), (100_000, 10), (4, 10, 160, 160)])
def test_forward_allocates_nothing_that_grows(fl, shape, dtype):
    rng = np.random.default_rng(13)
    x = logits(rng, shape, dtype)
    target = targets(rng, without(shape, None), shape[1])
    fl.cross_entropy(x, target)
    assert peak(lambda: fl.cross_entropy(x, target)) < 100_000


@pytest.mark.thread_unsafe(reason="tracemalloc counts the memory of all threads")
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(64, 16_000), (100_000, 10), (4, 10, 160, 160)])
def test_value_and_grad_allocates_the_gradient_alone(fl, shape, dtype):
    rng = np.random.default_rng(14)
    x = logits(rng, shape, dtype)
    target = targets(rng, without(shape, None), shape[1])
    out = np.empty_like(x)
    fl.cross_entropy_value_and_grad(x, target, out=out)
    assert peak(lambda: fl.cross_entropy_value_and_grad(x, target, out=out)) < 100_000
    assert peak(lambda: fl.cross_entropy_value_and_grad(x, target)) < x.nbytes + 100_000


# ---- h) gradients beyond the caches ----------------------------------------------------------
# They are written past the caches, some rows after those that are worked on: other code than that
# of the small ones, which the tests above hold to the oracle.


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize(
    "classes", [10, 31, 32, 33, 47, 63, 64, 65, 101, 128, 1000, 1024, 4096, 5003, 9001]
)
def test_gradient_beyond_the_caches(fl, classes, dtype):
    rng = np.random.default_rng(classes)
    samples = 17 * 2**20 // (classes * dtype_of(dtype).itemsize) + 1
    x = rng.standard_normal((samples, classes), np.float32) * 3
    odd, nan = samples // 2, samples // 3
    x[odd] += 150  # its neighbours' exponentials are nothing beside its own
    x[nan, 1] = np.nan
    x = x.astype(dtype_of(dtype))
    target = rng.integers(0, classes, samples)
    target[rng.integers(0, samples, samples // 7)] = -100
    target[[0, odd, nan, -1]] = 0
    some = np.append(rng.integers(0, samples, 40), [0, odd, samples - 1])
    some = some[some != nan]
    # Not at the beginning of a cache line, and between numbers that have to stay.
    room = np.full(x.size + 6, 7, x.dtype)
    out = room[3:-3].reshape(x.shape)
    for upstream in (-1.0, 3e-38):
        got = fl.cross_entropy_backward(upstream, x, target, reduction="sum", out=out)
        assert got is out
        assert (room[:3] == 7).all()
        assert (room[-3:] == 7).all()
        assert np.isnan(out[nan]).all()
        out[nan] = 0  # a bfloat16 NaN equals none
        assert not out[target == -100].any()
        reference = oracle.cross_entropy(x[some], target[some])
        want = reference.backward(upstream, "sum")
        assert_close(out[some], want, out.dtype, largest(want))
        for first in range(0, samples, samples // 5):
            part = slice(first, first + samples // 5)
            small = fl.cross_entropy_backward(upstream, x[part], target[part], reduction="sum")
            small[np.isnan(small)] = 0
            np.testing.assert_array_equal(out[part], small)
    in_place = x.copy()
    fl.cross_entropy_backward(upstream, in_place, target, reduction="sum", out=in_place)
    in_place[nan] = 0
    np.testing.assert_array_equal(in_place, out)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_usual_small_call_is_no_other(fl, name, dtype, reduction):
    """What a small call takes a short way for has the same bits when an axis is named."""
    rng = np.random.default_rng(5)
    value, both = getattr(fl, name), getattr(fl, f"{name}_value_and_grad")
    for shape in ((1, 1), (3, 10), (32, 10), (70, 33), (5, 1000)):
        x = (rng.standard_normal(shape) * 4).astype(dtype)
        target = rng.integers(0, shape[1], shape[0])
        target[0] = -100 if shape[0] > 1 else 0
        want_loss, want = both(x, target, reduction=reduction, axis=1)
        out = np.empty_like(x)
        for given in (None, out, x.copy()):
            source = x if given is None or given is out else given
            loss, grad = both(source, target, reduction=reduction, out=given)
            assert loss == want_loss
            assert type(loss) is type(want_loss)
            np.testing.assert_array_equal(grad, want)
            assert given is None or grad is given
        alone = value(x, target, reduction=reduction)
        assert alone == value(x, target, reduction=reduction, axis=1)
