"""score_samples against the oracle, which sorts whole rows.

Layout: a) every field in every layout and type, b) ranks, margins and ties, c) the likeliest
classes, d) temperature and softcap, e) samples without an answer, f) what changes no bit, g) edge
cases and errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, assert_close, dtype_of, logits, loss_dtype

SHAPES = [
    (6,), (1, 1), (40, 2), (41, 10), (130, 31), (9, 32), (9, 128), (5, 1000), (3, 1024), (3, 1500),
    (2, 9000), (2, 21, 9, 7), (2, 200, 70), (1, 1, 3), (3, 140, 1),
]  # fmt: skip
EXACT = ("rank", "predicted", "top_classes")


def samples_of(shape, axis):
    return shape[:axis] + shape[axis + 1 :]


def scores_of(package, *arguments, wanted=("brier", "variance"), **options):
    """`score_samples` and what only the package itself asks for, as one dictionary."""
    found = package.score_samples(*arguments, **options)._asdict()
    return found | package.evaluation.score.scores(*arguments, wanted, **options)


def check(fl, x, target, **options):
    got = fl.score_samples(x, target, **options)
    want = oracle.score_samples(x, target, **options)
    assert got._fields == want._fields[:-2]
    size = np.max(np.abs(x.astype(np.float64)), initial=0.0, where=np.isfinite(x))
    size = max(size / options.get("temperature", 1.0), 1.0)
    for name, value in got._asdict().items():
        if name.startswith("top_") and not options.get("top_k"):
            assert value is None
        elif name in EXACT:
            assert value.dtype == np.int64
            np.testing.assert_array_equal(value, getattr(want, name), err_msg=name)
        else:
            assert value.dtype == loss_dtype(x.dtype)
            assert_close(value, getattr(want, name), None, size, units=4)
    more = scores_of(fl, x, target, **options)
    for name in ("brier", "variance"):
        assert_close(more[name], getattr(want, name), None, 1.0, units=4 if name == "brier" else 64)


# ---- a) every field in every layout and type -------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(fl, shape, dtype):
    rng = np.random.default_rng(0)
    axis = oracle.class_axis(len(shape))
    x = logits(rng, shape, dtype)
    target = rng.integers(0, shape[axis], samples_of(shape, axis))
    check(fl, x, target)
    # As of a model that is mostly right, and with all that can be asked for.
    target = np.where(rng.random(target.shape) < 0.8, x.astype(float).argmax(axis=axis), target)
    target = np.where(rng.random(target.shape) < 0.2, -100, target)
    check(fl, x, target, top_k=min(5, shape[axis]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_whose_exponentials_are_not_kept(fl, dtype):
    rng = np.random.default_rng(0)
    x = logits(rng, (2, 300_000), dtype)
    check(fl, x, np.array([7, 299_999]), top_k=30)


@pytest.mark.parametrize("dtype", FLOATS)
def test_axis(fl, dtype):
    rng = np.random.default_rng(1)
    shape = (3, 4, 5)
    for axis in range(-3, 3):
        target = rng.integers(0, shape[axis], np.delete(shape, axis))
        check(fl, logits(rng, shape, dtype), target, axis=axis, top_k=3)


# ---- b) ranks, margins and ties --------------------------------------------------------------


def test_first_of_equal_maxima_is_predicted(fl):
    x = np.zeros((4, 300), np.float32)
    x[1, [40, 200]] = 1.0
    x[2, [299, 70]] = 2.0
    x[3, 0] = -1.0
    np.testing.assert_array_equal(fl.score_samples(x, np.zeros(4, int)).predicted, [0, 40, 70, 1])


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_target_may_be_the_first_of_equal_maxima(fl, axis, dtype):
    """Whatever lies between it and the others."""
    first = np.array([0, 3, 70, 1000, 2290, 4999])
    for apart in (1, 40, 700, 4000):
        x = np.zeros((len(first), 9000), dtype_of(dtype))
        for target in (first, first + apart):
            np.put_along_axis(x, target[:, None], 4.0, axis=1)
        turned = np.ascontiguousarray(np.moveaxis(x, 1, axis))
        for target in (first, first + apart):
            found = fl.score_samples(turned, target, axis=axis)
            np.testing.assert_array_equal(found.predicted, first)
            assert (found.margin == 0).all() and (found.rank == 1).all()
            metrics = fl.StreamingMetrics(axis=axis).update(turned, target).compute()
            assert metrics.accuracy == (target is first)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("classes", [2, 7, 31, 32, 33, 64, 100, 129, 1000, 1025, 9000])
@pytest.mark.parametrize("axis", [0, 1])
def test_ties_count_against_the_target(fl, classes, axis, dtype):
    """Few different values, so that most samples are tied, at every position of the target."""
    rng = np.random.default_rng(classes)
    n = 70 if classes <= 129 else 12
    x = rng.integers(-3, 3, (n, classes)).astype(dtype_of(dtype))
    target = rng.integers(0, classes, n)
    target[: min(n, 6)] = [0, classes - 1, 1, classes // 2, classes - 1, 0][: min(n, 6)]
    turned = np.ascontiguousarray(np.moveaxis(x, 1, axis))
    check(fl, turned, target, axis=axis, top_k=min(classes, 40))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("classes", [64, 100, 1025, 9000])
def test_zeros_of_both_signs_are_equal(fl, classes, dtype):
    x = np.full((4, classes), -1.0).astype(dtype_of(dtype))
    x[:, [7, 9, 60]] = np.array([-0.0, 0.0, -0.0])
    x[2:, 7] = 0.0
    target = np.array([9, 60, 0, 7])
    got = fl.score_samples(x, target)
    np.testing.assert_array_equal(got.rank, [2, 2, classes - 1, 2])
    np.testing.assert_array_equal(got.predicted, 7)
    np.testing.assert_array_equal(got.margin.astype(np.float64), [0, 0, -1, 0])


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("classes", [64, 100, 1025, 9000])
def test_nan_of_either_sign_is_never_predicted(fl, classes, dtype):
    x = logits(np.random.default_rng(classes), (6, classes), dtype)
    x[:, 20] = x.astype(np.float64).max(axis=1) + 1
    x[:, 3] = np.nan
    x[3:, 3] = -x[3:, 3]
    got = fl.score_samples(x, np.full(6, 5))
    np.testing.assert_array_equal(got.predicted, 20)
    np.testing.assert_array_equal(got.rank, -1)
    assert np.isnan(got.log_prob).all()


def test_rank_tells_the_top_k(fl):
    rng = np.random.default_rng(3)
    x, target = logits(rng, (500, 50)), rng.integers(0, 50, 500)
    scores = fl.score_samples(x, target, top_k=50)
    for k in (1, 5, 50):
        inside = (scores.top_classes[:, :k] == target[:, None]).any(axis=1)
        np.testing.assert_array_equal(scores.rank < k, inside)
    np.testing.assert_array_equal(scores.rank == 0, scores.margin > 0)


@pytest.mark.parametrize("layout", [(4, 1), (40, 1, 3)])
def test_a_single_class(fl, layout):
    scores = fl.score_samples(np.zeros(layout), np.zeros(samples_of(layout, 1), int), top_k=1)
    assert (scores.margin == np.inf).all()
    assert not scores.rank.any()
    assert not scores.top_log_probs.any()


@pytest.mark.parametrize("classes", [5, 40, 2000])
def test_masked_classes(fl, classes):
    x = np.full((3, classes), -np.inf)
    x[:, 2] = 1.0
    x[1:, 4] = 0.0
    scores = fl.score_samples(x, np.array([2, 0, 4]), top_k=4)
    np.testing.assert_array_equal(scores.rank, [0, classes - 1, 1])
    np.testing.assert_array_equal(scores.margin, [np.inf, -np.inf, -1.0])
    np.testing.assert_array_equal(scores.predicted, [2, 2, 2])
    np.testing.assert_array_equal(scores.top_classes[0], [2, 0, 1, 3])
    np.testing.assert_array_equal(scores.top_classes[1], [2, 4, 0, 1])
    assert scores.log_prob[1] == -np.inf
    assert (scores.top_log_probs[1, 2:] == -np.inf).all()
    brier = scores_of(fl, x, np.array([2, 0, 4]))["brier"]
    p = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(brier, [0, 1 + p**2 + (1 - p) ** 2, 2 * p**2], rtol=1e-14)


# ---- c) the likeliest classes ----------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 20, 63, 64, 65, 999, 1000])
@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal", "blocks"])
@pytest.mark.parametrize("axis", [0, 1])
def test_top_k_in_any_order(fl, k, order, axis):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((3, 1000)).astype(np.float32)
    if order == "rising":
        x.sort(axis=1)
    elif order == "falling":
        x = np.sort(x, axis=1)[:, ::-1].copy()
    elif order == "equal":
        x[:] = 2.5
    elif order == "blocks":
        x = np.round(x * 2) + np.arange(1000, dtype=np.float32) // 300 % 2 * 4
    x = np.ascontiguousarray(np.moveaxis(x, 1, axis))
    got = fl.score_samples(x, np.zeros(3, int), top_k=k, axis=axis)
    want = oracle.score_samples(x, np.zeros(3, int), top_k=k, axis=axis)
    np.testing.assert_array_equal(got.top_classes, want.top_classes)
    assert_close(got.top_log_probs, want.top_log_probs, None, 1.0, units=4)


@pytest.mark.parametrize("k", [1, 5, 8, 9, 24, 25])
@pytest.mark.parametrize("shape", [(70, 30), (40, 64), (9, 129), (3, 1025), (2, 140, 9)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_top_k_among_ties_masked_classes_and_nan(fl, dtype, shape, k):
    """Few values, so that most logits are equal; where few classes count, the others follow."""
    rng = np.random.default_rng(k)
    x = rng.choice(np.array([3, 1, 0.5, -2, -np.inf], dtype), shape)
    x[0] = np.where(rng.random(x[0].shape) < 0.95, -np.inf, x[0])
    x[1] = np.where(rng.random(x[1].shape) < 0.5, np.nan, x[1])
    target = np.zeros(samples_of(shape, 1), int)
    got = fl.score_samples(x, target, top_k=k)
    want = oracle.score_samples(x, target, top_k=k)
    np.testing.assert_array_equal(got.top_classes, want.top_classes)


def test_top_k_agrees_with_the_prediction(fl):
    rng = np.random.default_rng(4)
    for shape in ((100, 9), (20, 500), (2, 20_000), (3, 50, 40)):
        x = logits(rng, shape)
        target = rng.integers(0, shape[1], samples_of(shape, 1))
        scores = fl.score_samples(x, target, top_k=1)
        np.testing.assert_array_equal(scores.top_classes[..., 0], scores.predicted)
        np.testing.assert_array_equal(scores.top_log_probs[..., 0], scores.predicted_log_prob)


@pytest.mark.parametrize("shape", [(60, 11), (30, 900), (4, 20_000), (3, 50, 40)])
@pytest.mark.parametrize("k", [1, 5, 11])
def test_topk_and_log_softmax_of_pytorch(fl, shape, k):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    x = logits(rng, shape, "float64")
    target = rng.integers(0, shape[1], samples_of(shape, 1))
    got = fl.score_samples(x, target, top_k=k)
    logs = torch.log_softmax(torch.from_numpy(x), dim=1)
    values, classes = (np.moveaxis(part.numpy(), 1, -1) for part in torch.topk(logs, k, dim=1))
    np.testing.assert_array_equal(got.top_classes, classes)
    np.testing.assert_allclose(got.top_log_probs, values, rtol=1e-13, atol=1e-13)
    own = torch.gather(logs, 1, torch.from_numpy(target)[:, None])
    np.testing.assert_array_equal(got.rank, ((logs >= own).sum(dim=1) - 1).numpy())
    np.testing.assert_allclose(got.log_prob, own[:, 0].numpy(), rtol=1e-13, atol=1e-13)


# ---- d) temperature and softcap --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(41, 10), (9, 100), (3, 9000), (2, 21, 30)])
@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"softcap": 8.0, "temperature": 1.5}])
def test_changed_logits(fl, shape, dtype, options):
    rng = np.random.default_rng(5)
    x = logits(rng, shape, dtype)
    target = rng.integers(0, shape[1], samples_of(shape, 1))
    target[..., 0] = 5
    check(fl, x, target, top_k=4, ignore_index=5, **options)


# ---- e) samples without an answer ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize("shape", [(6, 10), (6, 100), (6, 9000), (6, 12, 20)])
def test_sample_with_nan_spoils_itself_alone(fl, shape, dtype):
    rng = np.random.default_rng(6)
    x = logits(rng, shape, dtype)
    target = rng.integers(0, shape[1], samples_of(shape, 1))
    target[5] = -100
    whole = scores_of(fl, x, target, top_k=8)
    bad = x.copy()
    bad[1, 2] = np.nan
    bad[2, 3] = np.inf
    bad[3] = -np.inf
    bad[4, :6] = np.nan
    got = scores_of(fl, bad, target, top_k=8)
    want = oracle.score_samples(bad, target, top_k=8)
    for name, value in got.items():
        if name in EXACT:
            np.testing.assert_array_equal(value, getattr(want, name), err_msg=name)
        else:
            assert np.isnan(value[1:5]).all(), name
        np.testing.assert_array_equal(value[[0, 5]], whole[name][[0, 5]], err_msg=name)
    assert (got["rank"][1:] == -1).all()
    assert np.isnan(got["log_prob"][5]).all()
    assert np.isfinite(got["entropy"][5]).all()


def test_all_classes_are_nan(fl):
    for classes in (4, 40, 9000):
        scores = fl.score_samples(np.full((2, classes), np.nan), np.zeros(2, int), top_k=3)
        np.testing.assert_array_equal(scores.top_classes, [[0, 1, 2]] * 2)
        np.testing.assert_array_equal(scores.predicted, [0, 0])


def test_ignored_samples(fl):
    x = np.array([[1.0, 2.0], [5.0, 5.0]], np.float32)
    got = fl.score_samples(x, np.array([-1, 0]), ignore_index=-1)
    assert np.isnan([got.log_prob[0], got.margin[0]]).all()
    np.testing.assert_array_equal(got.rank, [-1, 1])
    np.testing.assert_array_equal(got.predicted, [1, 0])
    everything = fl.score_samples(x, np.array([1, 0]))
    np.testing.assert_array_equal(got.entropy, everything.entropy)


# ---- f) what changes no bit ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, "float16"])
@pytest.mark.parametrize("classes", [10, 100, 1200, 9000])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.3}])
def test_same_bits_for_a_sample_alone(fl, classes, dtype, options):
    rng = np.random.default_rng(classes)
    n = 70 if classes <= 100 else 6
    x = rng.standard_normal((n, classes)) * rng.choice([0.01, 1.0, 10.0], (n, 1))
    x = (x + rng.choice([0.0, 30.0, -30.0], (n, 1))).astype(dtype_of(dtype))
    target = rng.integers(0, classes, n)
    options = {**options, "top_k": 6}
    whole = scores_of(fl, x, target, **options)
    turned = scores_of(fl, np.ascontiguousarray(x.T), target, axis=0, **options)
    for i in range(n):
        alone = scores_of(fl, x[i : i + 1], target[i : i + 1], **options)
        two = np.ascontiguousarray(x[[i, i]].T)
        twice = scores_of(fl, two, target[[i, i]], axis=0, **options)
        for name, value in alone.items():
            np.testing.assert_array_equal(value[0], whole[name][i], err_msg=name)
            np.testing.assert_array_equal(twice[name][1], turned[name][i], err_msg=name)


def test_permuted_classes(fl):
    """Another order of the classes: the same ranks, margins and likeliest classes."""
    rng = np.random.default_rng(8)
    for classes in (12, 300, 10_000):
        x, target = logits(rng, (20, classes), "float64"), rng.integers(0, classes, 20)
        order = rng.permutation(classes)
        one = fl.score_samples(x, target, top_k=7)
        two = fl.score_samples(x[:, order], np.argsort(order)[target], top_k=7)
        np.testing.assert_array_equal(one.rank, two.rank)
        np.testing.assert_array_equal(one.margin, two.margin)
        np.testing.assert_array_equal(one.top_classes, order[two.top_classes])
        np.testing.assert_allclose(one.entropy, two.entropy, rtol=1e-14)


# ---- g) edge cases and errors ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_confident_sample_keeps_its_digits(fl, dtype):
    x = np.array([[20.0, 0.0, -1.0]], dtype)
    scores = fl.score_samples(x, np.array([0]), top_k=1)
    np.testing.assert_allclose(scores.log_prob, -2.819409661255213e-09, rtol=1e-6)
    np.testing.assert_allclose(scores.predicted_log_prob, scores.log_prob, rtol=0)
    # (1 - p)**2 and two squares: 2.8e-9 and its parts, exp(-20) and exp(-21).
    want = 2.819409657280604e-09**2 + np.exp(-40.0) + np.exp(-42.0)
    np.testing.assert_allclose(scores_of(fl, x, np.array([0]))["brier"], want, rtol=1e-6)


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


def test_huge_logits(fl):
    """Beyond what an exponential can be scaled by: the maximum is subtracted first."""
    rng = np.random.default_rng(9)
    for classes in (8, 80, 9000):
        x = (rng.standard_normal((5, classes)) * 1e6).astype(np.float32)
        check(fl, x, x.argsort(axis=1)[:, -2], top_k=5)


@pytest.mark.parametrize("k", [0, 3])
def test_empty(fl, k):
    scores = fl.score_samples(np.empty((0, 3)), np.empty(0, int), top_k=k)
    assert [len(field) for field in scores if field is not None] == [0] * (9 if k else 7)


def test_no_classes(fl):
    scores = fl.score_samples(np.empty((2, 0)), np.full(2, -100))
    assert np.isnan(scores.log_prob).all()
    with pytest.raises(IndexError, match="no classes"):
        fl.score_samples(np.empty((2, 0)), np.zeros(2, int))


class Wrong(NamedTuple):
    options: dict
    error: type[Exception]
    message: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong({"top_k": 4}, ValueError, "4"),
        Wrong({"top_k": -1}, ValueError, "-1"),
        Wrong({"top_k": 1.5}, TypeError, "1.5"),
        Wrong({"temperature": 0.0}, ValueError, "0.0"),
        Wrong({"softcap": -1.0}, ValueError, "-1.0"),
        Wrong({"ignore_index": 0.5}, TypeError, "0.5"),
        Wrong({"axis": 2}, ValueError, "axis 2"),
    ],
)
def test_wrong_options(fl, wrong):
    with pytest.raises(wrong.error, match=wrong.message):
        fl.score_samples(np.zeros((4, 3)), np.zeros(4, int), **wrong.options)


def test_errors(fl):
    x = np.zeros((4, 3))
    with pytest.raises(IndexError, match="3"):
        fl.score_samples(x, np.array([0, 1, 3, 0]))
    with pytest.raises(IndexError, match="-100"):
        fl.score_samples(x, np.array([0, 1, -100, 0]), ignore_index=-1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        fl.score_samples(x, np.zeros(3, int))
    with pytest.raises(TypeError):
        fl.score_samples(x, np.zeros(4))
