"""Infinities, NaN, nothing to average: a table of what fastloss and PyTorch 2.13 answer.

Layout: a) the table, b) the tests over it, c) the six deliberate differences, d) NaN stays in its
sample, on every way through the kernels, e) logits far apart and far out.

Where PyTorch is installed its column is checked as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import oracle
from helpers import FLOATS, HALVES, dtype_of

inf, nan = np.inf, np.nan
LOG2 = np.log(2.0)

# ---- a) the table ----------------------------------------------------------------------------


class Case(NamedTuple):
    """One call in float64: its loss and the gradient of the loss's sum.

    `torch` is PyTorch's pair where it is another, UNKNOWN where it has no such function or option.
    """

    id: str
    function: str
    x: Any
    target: Any
    options: dict
    loss: Any
    gradient: Any
    torch: tuple[Any, Any] | None = None


UNKNOWN = (None, None)
SUM, MEAN = {"reduction": "sum"}, {"reduction": "mean"}
CE, NLL, KL = "cross_entropy", "nll_loss", "kl_div"
BCE, BCEL = "binary_cross_entropy", "binary_cross_entropy_with_logits"
FOCAL = "sigmoid_focal_loss"

EVEN = [-0.5, 0.5]  # gradient of the logits [0, 0] with target 0
ZEROS = [[0, 0], [0, 0]]

# fmt: off
TABLE = [
    # Masked classes: logits of −inf.
    Case("masked", CE, [[0, -inf, 0]], [0], {}, [LOG2], [[-0.5, 0, 0.5]]),
    Case("masked target", CE, [[0, -inf]], [1], {}, [inf], [[1, -1]]),
    Case("masked but one", CE, [[-inf, 3, -inf]], [1], {}, [0], [[0, 0, 0]]),
    Case("masked, smoothed", CE, [[0, -inf]], [0], {"label_smoothing": 0.5},
         [inf], [[0.25, -0.25]]),
    Case("all masked", CE, [[-inf, -inf], [0, 0]], [0, 0], {}, [nan, LOG2], [[nan, nan], EVEN]),
    Case("all masked, ignored", CE, [[-inf, -inf], [0, 0]], [-100, 0], {},
         [0, LOG2], [[0, 0], EVEN], ([0, LOG2], [[nan, nan], EVEN])),
    Case("probability 0 on masked", CE, [[0, -inf, 0]], [[0.5, 0, 0.5]], {},
         [LOG2], [[0, 0, 0]], ([nan], [[0, 0, 0]])),
    Case("probability > 0 on masked", CE, [[0, -inf]], [[0.5, 0.5]], {}, [inf], [[0.5, -0.5]]),
    Case("no probability", CE, [[0, 1]], [[0, 0]], {}, [0], ZEROS[:1]),
    # NaN and +inf: that sample alone.
    Case("NaN", CE, [[nan, 0], [0, 0]], [1, 0], {}, [nan, LOG2], [[nan, nan], EVEN]),
    Case("NaN target", CE, [[nan, 0], [0, 0]], [0, 0], {}, [nan, LOG2], [[nan, nan], EVEN]),
    Case("+inf", CE, [[inf, 0], [0, 0]], [1, 0], {}, [nan, LOG2], [[nan, nan], EVEN]),
    Case("+inf target", CE, [[inf, 0], [0, 0]], [0, 0], {}, [nan, LOG2], [[nan, nan], EVEN]),
    Case("+inf, probabilities", CE, [[inf, 1], [0, 0]], [[0, 1], [0.5, 0.5]], {},
         [nan, LOG2], [[nan, nan], [0, 0]]),
    Case("NaN probability", CE, [[0, 1], [0, 0]], [[nan, 0], [0.5, 0.5]], {},
         [nan, LOG2], [[nan, nan], [0, 0]]),
    Case("NaN ignored", CE, [[nan, 0], [0, 0]], [-100, 0], {},
         [0, LOG2], [[0, 0], EVEN], ([0, LOG2], [[nan, nan], EVEN])),
    Case("NaN ignored, mean", CE, [[nan, 0], [0, 0]], [-100, 0], MEAN,
         LOG2, [[0, 0], EVEN], (LOG2, [[nan, nan], EVEN])),
    Case("+inf ignored, smoothed", CE, [[inf, 0], [0, 0]], [-100, 0], {"label_smoothing": 0.5},
         [0, LOG2], [[0, 0], [-0.25, 0.25]], ([0, LOG2], [[nan, nan], [-0.25, 0.25]])),
    # Numbers at the ends of their range.
    Case("largest", CE, [[1.7e308, -1.7e308], [1.7e308, 1.7e308]], [0, 0], {},
         [0, LOG2], [[0, 0], EVEN]),
    Case("distance overflows", CE, [[1.7e308, -1.7e308]], [1], {}, [inf], [[1, -1]]),
    Case("far negative", CE, [[-1e300, -1e300]], [0], {}, [LOG2], [EVEN]),
    Case("one class", CE, [[5], [-inf]], [0, 0], {}, [0, nan], [[0], [nan]]),
    Case("one class, smoothed", CE, [[5], [-inf]], [0, 0], {"label_smoothing": 0.5},
         [0, nan], [[0], [nan]]),
    # Nothing to average.
    Case("all ignored", CE, ZEROS, [-100, -100], {}, [0, 0], ZEROS),
    Case("all ignored, sum", CE, ZEROS, [-100, -100], SUM, 0, ZEROS),
    Case("all ignored, mean", CE, ZEROS, [-100, -100], MEAN, nan, ZEROS),
    Case("all ignored, smoothed mean", CE, ZEROS, [-100, -100], {**MEAN, "label_smoothing": 0.5},
         nan, ZEROS),
    Case("empty", CE, np.zeros((0, 2)), np.zeros(0, int), {}, [], np.zeros((0, 2))),
    Case("empty, sum", CE, np.zeros((0, 2)), np.zeros(0, int), SUM, 0, np.zeros((0, 2))),
    Case("empty, mean", CE, np.zeros((0, 2)), np.zeros(0, int), MEAN, nan, np.zeros((0, 2))),
    Case("empty probabilities, mean", CE, np.zeros((0, 2)), np.zeros((0, 2)), MEAN,
         nan, np.zeros((0, 2))),
    # Zero weights.
    Case("weight 0", CE, ZEROS, [0, 1], {"weight": [0, 1]}, [0, LOG2], [[0, 0], [0.5, -0.5]]),
    Case("weight 0, mean", CE, ZEROS, [0, 1], {**MEAN, "weight": [0, 1]},
         LOG2, [[0, 0], [0.5, -0.5]]),
    Case("weights 0, sum", CE, ZEROS, [0, 0], {**SUM, "weight": [0, 1]}, 0, ZEROS),
    Case("weights 0, mean", CE, ZEROS, [0, 0], {**MEAN, "weight": [0, 1]},
         nan, ZEROS, (nan, [[nan, nan], [nan, nan]])),
    Case("weight 0 on masked target", CE, [[-inf, 0]], [0], {"weight": [0, 1]},
         [0], ZEROS[:1], ([nan], ZEROS[:1])),
    Case("weight 0 on masked, smoothed", CE, [[0, -inf]], [0],
         {"weight": [1, 0], "label_smoothing": 0.5}, [0], ZEROS[:1], ([nan], ZEROS[:1])),
    Case("weight 0 on masked, probabilities", CE, [[0, -inf]], [[0.5, 0.5]], {"weight": [1, 0]},
         [0], ZEROS[:1], ([nan], ZEROS[:1])),
    # NLL
    Case("−inf", NLL, [[-inf, 0], [0, -inf]], [0, 0], {}, [inf, 0], [[-1, 0], [-1, 0]]),
    Case("NaN elsewhere", NLL, [[nan, -1]], [1], {}, [1], [[0, -1]]),
    Case("NaN", NLL, [[nan, -1], [-2, -1]], [0, 0], {}, [nan, 2], [[-1, 0], [-1, 0]]),
    Case("weight 0 on −inf", NLL, [[-inf, -1]], [0], {"weight": [0, 1]},
         [0], ZEROS[:1], ([nan], ZEROS[:1])),
    Case("weights 0, mean", NLL, [[-1, -1]], [0], {**MEAN, "weight": [0, 1]},
         nan, ZEROS[:1], (nan, [[nan, 0]])),
    Case("NaN ignored", NLL, [[nan, -1], [-2, -1]], [-100, 0], MEAN, 2, [[0, 0], [-1, 0]]),
    Case("all ignored", NLL, [[-1, -1]], [-100], MEAN, nan, ZEROS[:1]),
    Case("empty", NLL, np.zeros((0, 2)), np.zeros(0, int), MEAN, nan, np.zeros((0, 2))),
    # BCE with logits
    Case("right at infinity", BCEL, [inf, -inf], [1, 0], {}, [0, 0], [0, 0], ([nan, nan], [0, 0])),
    Case("wrong at infinity", BCEL, [inf, -inf], [0, 1], {}, [inf, inf], [1, -1],
         ([inf, nan], [1, -1])),
    Case("half right at infinity", BCEL, [inf, -inf], [0.5, 0.5], {}, [inf, inf], [0.5, -0.5],
         ([inf, nan], [0.5, -0.5])),
    Case("NaN", BCEL, [nan, 0], [1, 1], {}, [nan, LOG2], [nan, -0.5]),
    Case("NaN target", BCEL, [0, 0], [nan, 1], {}, [nan, LOG2], [nan, -0.5]),
    Case("largest", BCEL, [1e308, -1e308, 1e308], [0, 1, 1], {}, [1e308, 1e308, 0], [1, -1, 0]),
    Case("weight 0", BCEL, [3, -3], [0, 0], {"weight": [0, 0]}, [0, 0], [0, 0]),
    Case("weight 0 at infinity", BCEL, [inf, -inf], [0, 1], {"weight": [0, 0]},
         [0, 0], [0, 0], ([nan, nan], [0, 0])),
    Case("positive weight 0 at infinity", BCEL, [-inf, inf], [1, 0], {"pos_weight": 0.0},
         [0, inf], [0, 1], ([nan, inf], [0, 1])),
    Case("sample weight 0 at infinity", BCEL, [inf, 0], [0, 1], {**MEAN, "sample_weight": [0, 1]},
         LOG2, [0, -0.5], UNKNOWN),
    Case("ignored NaN", BCEL, [nan, 0], [-1, 1], {**MEAN, "ignore_index": -1}, LOG2, [0, -0.5],
         UNKNOWN),
    Case("empty, sum", BCEL, np.zeros((0, 2)), np.zeros((0, 2)), SUM, 0, np.zeros((0, 2))),
    Case("empty, mean", BCEL, np.zeros((0, 2)), np.zeros((0, 2)), MEAN, nan, np.zeros((0, 2))),
    # Focal loss, which PyTorch's functions do not have
    Case("wrong at infinity", FOCAL, [inf, -inf], [0, 1], {"alpha": None}, [inf, inf], [1, -1],
         UNKNOWN),
    Case("right at infinity", FOCAL, [inf, -inf], [1, 0], {"gamma": 0.5}, [0, 0], [0, 0], UNKNOWN),
    Case("alpha 0 at infinity", FOCAL, [-inf, 0], [1, 1], {"alpha": [0, 1], "gamma": 0},
         [0, LOG2], [0, -0.5], UNKNOWN),
    # BCE. PyTorch's 1e-12 is a float32 number.
    Case("clamped", BCE, [0, 1, 0, 1], [1, 0, 0, 1], {}, [100, 100, 0, 0], [-1e12, 1e12, 0, 0]),
    Case("empty", BCE, np.zeros((0, 2)), np.zeros((0, 2)), MEAN, nan, np.zeros((0, 2))),
    # KL
    Case("target 0 on −inf", KL, [-inf, -1], [0, 0], {}, [0, 0], [0, 0], ([nan, 0], [0, 0])),
    Case("target > 0 on −inf", KL, [-inf], [0.5], {}, [inf], [-0.5]),
    Case("NaN", KL, [nan, -1], [0.5, 0], {}, [nan, 0], [-0.5, 0]),
    Case("log target, −inf on −inf", KL, [-inf, -1], [-inf, -inf], {"log_target": True},
         [0, 0], [0, 0], ([nan, nan], [0, 0])),
    Case("log target on −inf", KL, [-inf], [0], {"log_target": True}, [inf], [-1]),
    Case("empty, mean", KL, np.zeros((0, 2)), np.zeros((0, 2)), MEAN, nan, np.zeros((0, 2))),
    Case("empty, batchmean", KL, np.zeros((0, 2)), np.zeros((0, 2)), {"reduction": "batchmean"},
         nan, np.zeros((0, 2))),
]
# fmt: on


@pytest.fixture(params=TABLE, ids=lambda case: f"{case.function}: {case.id}")
def case(request):
    return request.param


def arrays(case):
    x = np.asarray(case.x, np.float64)
    target = np.asarray(case.target)
    if target.shape == x.shape:
        target = target.astype(np.float64)
    options = {"reduction": "none", **case.options}
    if "weight" in options:
        options["weight"] = np.asarray(options["weight"], np.float64)
    return x, target, options


# ---- b) the tests over it --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_fastloss(fl, case, dtype):
    x, target, options = arrays(case)
    if dtype == "float32" and np.abs(x[np.isfinite(x)]).max(initial=0) > 1e38:
        x = x * 2e-270  # to the end of that type's range
    loss = np.asarray(case.loss, np.float64)
    if x.size and np.abs(loss[np.isfinite(loss)]).max(initial=0) > 1e300 and dtype == "float32":
        loss = loss * 2e-270
    x = x.astype(dtype)
    got, gradient = getattr(fl, f"{case.function}_value_and_grad")(x, target, **options)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, case.gradient, rtol=1e-6, atol=0)
    alone = getattr(fl, case.function)(x, target, **options)
    np.testing.assert_allclose(alone, loss, rtol=1e-6)
    back = getattr(fl, f"{case.function}_backward")(np.ones(loss.shape), x, target, **options)
    np.testing.assert_array_equal(back, gradient)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_pytorch(case):
    """The table's other column, so that it stays true."""
    torch = pytest.importorskip("torch")
    if case.torch is UNKNOWN:
        pytest.skip("PyTorch has no such function or option")
    x, target, options = arrays(case)
    options = {
        name: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    x = torch.tensor(x, requires_grad=True)
    loss = getattr(torch.nn.functional, case.function)(x, torch.tensor(target), **options)
    loss.sum().backward()
    want_loss, want_gradient = case.torch or (case.loss, case.gradient)
    np.testing.assert_allclose(loss.detach().numpy(), want_loss, rtol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), want_gradient, rtol=1e-8, atol=0)


def test_no_gradient_is_negative_zero_for_the_ignored(fl):
    _, gradient = fl.cross_entropy_value_and_grad(np.ones((3, 4)), np.full(3, -100))
    assert not np.signbit(gradient).any()


def test_sample_weights_that_sum_to_zero(fl):
    """The mean is 0/0, the gradient nothing: all samples count as left out."""
    loss, gradient = fl.cross_entropy_value_and_grad(
        np.zeros((2, 2)), [0, 1], sample_weight=[0.0, 0.0]
    )
    assert np.isnan(loss)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_sums_of_binary_losses_with_special_logits(fl, dtype):
    """Many elements at once, of which one is special."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal(2000).astype(dtype)
    target = rng.integers(0, 2, plain.size)
    for value, label, contribution in [
        (inf, 1, 0.0), (-inf, 0, 0.0), (inf, 0, inf), (-inf, 1, inf), (nan, 0, nan), (0.0, 1, LOG2)
    ]:  # fmt: skip
        x, t = plain.copy(), target.copy()
        x[777], t[777] = value, label
        rest = np.delete(np.arange(x.size), 777)
        want = oracle.binary_cross_entropy_with_logits(x[rest], t[rest]).losses.sum() + contribution
        loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(x, t, reduction="sum")
        alone = fl.binary_cross_entropy_with_logits(x, t, reduction="sum")
        np.testing.assert_allclose([loss, alone], want, rtol=1e-6)
        each = fl.binary_cross_entropy_with_logits_value_and_grad(x, t, reduction="none")[1]
        np.testing.assert_array_equal(gradient, each)


def test_sample_weight_zero_hides_an_infinite_loss(fl):
    x = np.array([[-inf, 0.0], [0.0, 0.0]])
    for target in (np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])):
        loss = fl.cross_entropy(x, target, sample_weight=[0.0, 1.0], reduction="none")
        np.testing.assert_array_equal(loss, [0.0, LOG2])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [10, 64, 65, 100, 1025, 9000])
@pytest.mark.parametrize("soft", [False, True], ids=["smoothed", "probabilities"])
def test_special_rows_of_every_length(fl, dtype, classes, soft):
    """NaN, +inf, or -inf alone spoil their own sample; a masked class is one more term."""
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((7, classes)).astype(dtype)
    x[0, 5] = x[1, -1] = nan
    x[2, 5] = inf
    x[3] = -inf
    x[4, 1:] = -inf
    x[5, ::2] = -inf
    target = rng.integers(0, classes, 7)
    options = {"label_smoothing": 0.1}
    if soft:
        target = rng.random((7, classes)).astype(dtype)
        target[4, 1:] = target[5, ::2] = 0
        options = {}
    reference = oracle.cross_entropy(x, target, **options)
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none", **options)
    np.testing.assert_allclose(loss, reference.losses, rtol=1e-6)
    np.testing.assert_allclose(gradient, reference.gradients, rtol=1e-4, atol=1e-6)
    alone = fl.cross_entropy(x, target, reduction="none", **options)
    np.testing.assert_allclose(alone, reference.losses, rtol=1e-6)
    assert np.isnan(loss[:4]).all()
    assert not np.isnan(loss[4:]).any()


# ---- c) the six deliberate differences -------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_difference_1_confident_samples_keep_their_digits(fl, dtype):
    """PyTorch, optax and scikit-learn: 0.0. test_accuracy.py has the full range."""
    x = np.array([[20, 0, -1]], dtype)
    loss, gradient = fl.cross_entropy_value_and_grad(x, [0])
    exact_loss, exact_gradient = oracle.exact_cross_entropy(x[0], 0)
    assert oracle.ulp_error(loss, oracle.as_exact(exact_loss)) <= 4
    assert oracle.ulp_error(gradient[0], oracle.as_exact(exact_gradient)).max() <= 4
    assert loss > 0
    if dtype == "float32":
        np.testing.assert_allclose(loss, 2.81941e-9, rtol=2e-6)


@pytest.mark.parametrize("filling", [nan, inf, -inf, 1e30])
@pytest.mark.parametrize("classes", [3, 100, 5000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_difference_2_ignored_samples_give_exact_zeros(fl, filling, classes, smoothing):
    """PyTorch: NaN gradients where an ignored sample holds NaN or infinity."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, classes)).astype(np.float32)
    target = rng.integers(0, classes, 70)
    ignored = np.arange(0, 70, 3)
    x[ignored], target[ignored] = filling, -100
    options = {"label_smoothing": smoothing, "reduction": "none"}
    for turned, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
        loss, gradient = fl.cross_entropy_value_and_grad(turned, target, axis=axis, **options)
        assert not loss[ignored].any()
        assert not np.moveaxis(gradient, axis, 1)[ignored].any()
        kept = np.delete(np.arange(70), ignored)
        reference = oracle.cross_entropy(x[kept], target[kept], label_smoothing=smoothing)
        np.testing.assert_allclose(loss[kept], reference.losses, rtol=1e-5)
        mean = fl.cross_entropy(turned, target, axis=axis, label_smoothing=smoothing)
        np.testing.assert_allclose(mean, reference.loss("mean"), rtol=1e-5)


@pytest.mark.parametrize("classes", [3, 100, 5000])
def test_difference_3_probability_zero_on_a_masked_class(fl, classes):
    """PyTorch: NaN (0·∞)."""
    rng = np.random.default_rng(1)
    x, p = rng.standard_normal((5, classes)), rng.random((5, classes))
    masked = rng.random((5, classes)) < 0.3
    masked[:, 0] = False
    x[masked], p[masked] = -inf, 0.0
    loss, gradient = fl.cross_entropy_value_and_grad(x, p, reduction="none")
    assert np.isfinite(loss).all()
    assert not gradient[masked].any()
    for i in range(5):
        kept = ~masked[i]
        reference = oracle.cross_entropy(x[i, kept], p[i, kept])
        np.testing.assert_allclose(loss[i], reference.losses, rtol=1e-13)
        np.testing.assert_allclose(gradient[i, kept], reference.gradients, atol=1e-12)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
def test_difference_4_infinite_logits_give_the_limit(fl, dtype):
    """PyTorch: NaN for (+inf, 1), (−inf, 0) and (−inf, 1)."""
    x = np.array([inf, -inf, -inf, inf] * 20, dtype_of(dtype))
    target = np.array([1, 0, 1, 0] * 20, dtype_of(dtype))
    for function in (fl.binary_cross_entropy_with_logits, fl.sigmoid_focal_loss):
        loss = function(x, target, reduction="none")
        np.testing.assert_array_equal(loss, [0, 0, inf, inf] * 20)
    _, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(x, target, reduction="sum")
    np.testing.assert_array_equal(gradient.astype(float), [0, 0, -1, 1] * 20)


@pytest.mark.parametrize("dtype", HALVES)
def test_difference_5_half_precision_losses_are_float32(fl, dtype):
    """PyTorch: a float16 sum over 200,000 rows overflows, and the mean is NaN."""
    x = np.zeros((200_000, 10), dtype_of(dtype))
    loss, gradient = fl.cross_entropy_value_and_grad(x, np.zeros(200_000, int), reduction="sum")
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, 200_000 * np.log(10.0), rtol=1e-7)
    assert gradient.dtype == x.dtype
    unit = np.zeros(200_000, dtype_of(dtype))
    loss, gradient = fl.binary_cross_entropy_with_logits_value_and_grad(unit, unit)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, LOG2, rtol=1e-7)
    assert gradient.dtype == unit.dtype


@pytest.mark.parametrize("target_dtype", ["int8", "uint8", "int16", "int32", "uint32", "uint64"])
def test_difference_6_any_integer_dtype_of_targets(fl, target_dtype):
    """PyTorch: int64 (and uint8 for NLL) alone."""
    x = np.random.default_rng(2).standard_normal((6, 5))
    target = np.array([0, 4, 2, 2, 1, 3])
    for name in ("cross_entropy", "nll_loss"):
        np.testing.assert_array_equal(
            getattr(fl, name)(x, target.astype(target_dtype), reduction="none"),
            getattr(fl, name)(x, target, reduction="none"),
        )


# ---- d) NaN stays in its sample --------------------------------------------------------------


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES])
@pytest.mark.parametrize(
    "shape", [(200, 3), (200, 10), (130, 65), (9, 1000), (5, 9000), (2, 7, 9, 11), (2, 300, 70)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bad_sample_spoils_itself_alone(fl, value, dtype, shape, smoothing):
    """One bad logit (a whole sample of −inf) changes no bit of the others."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(dtype_of(dtype))
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    options = {"label_smoothing": smoothing, "reduction": "none"}
    clean_loss, clean_gradient = fl.cross_entropy_value_and_grad(x, target, **options)
    assert np.isfinite(clean_loss).all()

    bad = np.zeros(target.shape, bool)
    bad.reshape(-1)[[1, bad.size // 2, bad.size - 1]] = True
    for outer, *inner in np.argwhere(bad):
        classes = slice(None) if value == -inf else rng.integers(shape[1])
        x[(outer, classes, *inner)] = value
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, **options)
    np.testing.assert_array_equal(np.isnan(loss), bad)
    np.testing.assert_array_equal(loss[~bad], clean_loss[~bad])
    class_last = np.moveaxis(gradient, 1, -1)
    assert np.isnan(class_last[bad]).all()
    np.testing.assert_array_equal(class_last[~bad], np.moveaxis(clean_gradient, 1, -1)[~bad])


# ---- e) logits far apart, far out ------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("span", [500.0, 1500.0, 3000.0, 1e5, 1e30])
@pytest.mark.parametrize("classes", [2, 10, 100, 9000, 20_000])
def test_rows_that_span_more_than_exponentials_can(fl, dtype, span, classes):
    """Rising, falling and shuffled rows; starting at 0, ending at 0, and around it."""
    rng = np.random.default_rng(4)
    rise = np.linspace(0.0, span, classes)
    rows = [rise, rise[::-1], rng.permutation(rise)]
    rows += [row - shift for row in rows for shift in (span, span / 2)]
    x = np.array(rows, dtype)
    target = rng.integers(0, classes, len(rows))
    target[::2] = x[::2].argmax(axis=1)
    for smoothing in (0.1, 0.0):
        reference = oracle.cross_entropy(x, target, label_smoothing=smoothing)
        for turned, axis in ((x, 1), (np.ascontiguousarray(x.T), 0)):
            loss, gradient = fl.cross_entropy_value_and_grad(
                turned, target, axis=axis, label_smoothing=smoothing, reduction="none"
            )
            np.testing.assert_allclose(loss, reference.losses, rtol=1e-6, atol=1e-44)
            want = np.moveaxis(reference.gradients, 1, axis)
            if smoothing and dtype == "float32":
                # 4 ulp of the larger of the gradient's terms, which may all but cancel.
                targets = np.full(x.shape, smoothing / classes)
                targets[np.arange(len(x)), target] += 1 - smoothing
                terms = np.maximum(oracle.softmax(x), targets)
                error = np.abs(np.moveaxis(gradient - want, axis, 1))
                assert (error <= 4 * np.spacing(terms.astype(dtype))).all()
            else:
                np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-30)
            got = fl.softmax(turned, axis=axis)
            np.testing.assert_allclose(
                got, oracle.softmax(turned, axis=axis), rtol=1e-5, atol=1e-30
            )
            got = fl.logsumexp(turned, axis=axis)
            np.testing.assert_allclose(
                got, oracle.logsumexp(turned, axis=axis), rtol=1e-6, atol=1e-3
            )
    scores = fl.score_samples(x, target)
    np.testing.assert_array_equal(scores.predicted, x.argmax(axis=1))
    np.testing.assert_allclose(scores.log_prob, -reference.losses, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("classes", [3, 100, 9000])
@pytest.mark.parametrize("first", [1, 2, 4096, 8999])
def test_blocks_of_masked_classes(fl, classes, first):
    """−inf up to some class: whole blocks of a long row hold no number."""
    first = min(first, classes - 1)
    x = np.random.default_rng(5).standard_normal((4, classes))
    x[:, :first] = -inf
    target = np.array([first, classes - 1, first, classes - 1])
    loss, gradient = fl.cross_entropy_value_and_grad(x, target, reduction="none")
    reference = oracle.cross_entropy(x[:, first:], target - first)
    np.testing.assert_allclose(loss, reference.losses, rtol=1e-13)
    np.testing.assert_allclose(gradient[:, first:], reference.gradients, rtol=1e-12, atol=1e-17)
    assert not gradient[:, :first].any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_soft_targets_on_logits_farther_apart_than_numbers_go(fl, dtype):
    """The largest logit less another is infinite, and so is the loss; the gradient is right."""
    most = float(np.finfo(dtype).max)
    x = np.array([[0.9 * most, -0.9 * most, 0.0]], dtype)
    p = np.array([[0.25, 0.25, 0.5]], dtype)
    loss, gradient = fl.cross_entropy_value_and_grad(x, p, reduction="none")
    np.testing.assert_array_equal(loss, [np.inf])
    np.testing.assert_array_equal(gradient, [[0.75, -0.25, -0.5]])
    # One third of it is no trouble.
    loss = fl.cross_entropy(x / 3, p, reduction="none")
    np.testing.assert_allclose(loss, [0.9 * most / 3], rtol=1e-6 if dtype == "float32" else 1e-14)
