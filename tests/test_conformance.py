"""Random configurations against PyTorch in float64, forward and backward.

A few examples of each test by default; 2,000 of each with `pytest --hypothesis-profile=full`,
and the run ends with how many were compared. Data avoid what test_special_values.py has: here both
libraries are to answer the same.
"""

from __future__ import annotations

import collections

import numpy as np
import pytest

import fastloss
import oracle
from helpers import dtype_of

torch = pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

F = torch.nn.functional
torch.set_num_threads(1)

# Examples by function; conftest.py prints it at the end of the run.
compared: collections.Counter[str] = collections.Counter()


DTYPES = st.sampled_from(["float64", "float64", "float32", "float16", "bfloat16"])
REDUCTIONS = st.sampled_from(["none", "sum", "mean"])
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.1, 1.0, 5.0, 20.0])


def tensor(array):
    """A float64 tensor of an array (int64 of integers), None of None."""
    if array is None:
        return None
    array = np.asarray(array)
    return torch.tensor(array.astype(np.int64 if array.dtype.kind in "iu" else np.float64))


def compare(name, reference, x, *arguments, reduction, rng, scale=1.0, **options):
    """Hold the three functions of `name` to `reference`, a function of a float64 tensor.

    `scale` is the size of the terms that losses and gradients are differences of.
    """
    leaf = tensor(x).requires_grad_()
    want = reference(leaf)
    upstream = rng.standard_normal(tuple(want.shape))
    (grad,) = torch.autograd.grad(want.sum(), leaf, retain_graph=True)
    (back,) = torch.autograd.grad(want, leaf, tensor(upstream))
    want = want.detach().numpy()

    options["reduction"] = reduction
    got = getattr(fastloss, name)(x, *arguments, **options)
    fused, got_grad = getattr(fastloss, f"{name}_value_and_grad")(x, *arguments, **options)
    got_back = getattr(fastloss, f"{name}_backward")(upstream, x, *arguments, **options)
    # PyTorch's own float64 error sets the limit there: ε·|x| from its subtraction.
    exact = 1e-12 if x.dtype == np.float64 else 3e-6
    rounded = {"float16": 1e-3, "bfloat16": 8e-3}.get(x.dtype.name, exact)
    least = 6e-8 if x.dtype == np.float16 else 0.0
    for answer, truth, tolerance, at_least in (
        (got, want, exact, 0.0),
        (fused, want, exact, 0.0),
        (got_grad, grad.numpy(), rounded, least),
        (got_back, back.numpy(), rounded, least),
    ):
        assert np.shape(answer) == truth.shape
        np.testing.assert_allclose(
            np.asarray(answer, np.float64),
            truth,
            rtol=tolerance,
            atol=max(tolerance * scale * max(1.0, np.abs(truth).max(initial=0.0)), at_least),
        )
    compared[name] += 1


@st.composite
def problems(draw):
    """Logits of any shape, the class axis anywhere, and what belongs to a categorical loss."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    axis = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    where = oracle.class_axis(len(shape), axis)
    classes = draw(st.one_of(st.just(shape[where]), st.sampled_from([1, 2, 10, 64, 65, 130, 5000])))
    shape = (*shape[:where], classes, *shape[where + 1 :])
    rng = np.random.default_rng(draw(SEEDS))
    x = (rng.standard_normal(shape) * draw(SCALES)).astype(dtype_of(draw(DTYPES)))
    weight = rng.uniform(0.1, 3.0, classes) if draw(st.booleans()) else None
    return x, axis, where, weight, rng


def torch_axis(x, where):
    """PyTorch's layout of `x`: the class axis at 1, or alone."""
    return x if x.ndim == 1 else x.movedim(where, 1).contiguous()


@given(
    problems(),
    REDUCTIONS,
    st.sampled_from([-100, -1, 0, 1, 7, "last"]),
    st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    st.sampled_from(["int8", "int32", "int64", "uint64"]),
    st.floats(0.0, 1.0),
)
def test_cross_entropy_and_nll(problem, reduction, ignored, smoothing, target_dtype, share):
    x, axis, where, weight, rng = problem
    classes = x.shape[where]
    samples = x.shape[:where] + x.shape[where + 1 :]
    ignore_index = classes - 1 if ignored == "last" else ignored
    target = rng.integers(0, classes, samples)
    hide = np.iinfo(target_dtype).min <= ignore_index <= np.iinfo(target_dtype).max
    target = np.where((rng.random(samples) < share) & hide, ignore_index, target)
    if target.max(initial=0) > np.iinfo(target_dtype).max:
        target_dtype = "int64"
    options = {"weight": weight, "ignore_index": ignore_index}
    for name, more in (("cross_entropy", {"label_smoothing": smoothing}), ("nll_loss", {})):

        def reference(leaf, name=name, more=more):
            return getattr(F, name)(
                torch_axis(leaf, where),
                tensor(target),
                weight=tensor(weight),
                ignore_index=ignore_index,
                reduction=reduction,
                **more,
            )

        compare(
            name,
            reference,
            x,
            target.astype(target_dtype),
            axis=axis,
            reduction=reduction,
            rng=rng,
            **options,
            **more,
        )


@given(problems(), REDUCTIONS, st.one_of(st.just(0.0), st.floats(0.0, 1.0)), st.booleans())
def test_probabilities(problem, reduction, smoothing, one_hot):
    x, axis, where, weight, rng = problem
    p = rng.gamma(0.5, size=x.shape) + 1e-9
    if one_hot:
        p = (p == p.max(axis=where, keepdims=True)).astype(float)
    p /= p.sum(axis=where, keepdims=True)

    def reference(leaf):
        return F.cross_entropy(
            torch_axis(leaf, where),
            torch_axis(tensor(p), where),
            weight=tensor(weight),
            label_smoothing=smoothing,
            reduction=reduction,
        )

    compare(
        "cross_entropy",
        reference,
        x,
        p,
        axis=axis,
        weight=weight,
        label_smoothing=smoothing,
        reduction=reduction,
        rng=rng,
    )


@st.composite
def element_problems(draw):
    """An array of any shape, and two factors that broadcast to it (or None)."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 70]), max_size=3)))
    rng = np.random.default_rng(draw(SEEDS))

    def factor():
        if not draw(st.booleans()):
            return None
        kept = shape[draw(st.integers(0, len(shape))) :]
        kept = tuple(1 if draw(st.booleans()) else n for n in kept)
        return rng.uniform(0.1, 3.0, kept)

    x = (rng.standard_normal(shape) * draw(SCALES)).astype(dtype_of(draw(DTYPES)))
    target = rng.random(shape) if draw(st.booleans()) else rng.integers(0, 2, shape).astype(float)
    return x, target, factor(), factor(), rng


@given(element_problems(), REDUCTIONS)
def test_binary_cross_entropy(problem, reduction):
    x, target, weight, pos_weight, rng = problem

    def with_logits(leaf):
        return F.binary_cross_entropy_with_logits(
            leaf,
            tensor(target),
            weight=tensor(weight),
            pos_weight=tensor(pos_weight),
            reduction=reduction,
        )

    compare(
        "binary_cross_entropy_with_logits",
        with_logits,
        x,
        target,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        rng=rng,
        scale=3.0,
    )

    # PyTorch's log(1 − p) and its 1e-12 as a float32 number: not too near 0 and 1.
    probs = np.clip(oracle.sigmoid(x), 1e-3, 0.99).astype(x.dtype)

    def with_probs(leaf):
        return F.binary_cross_entropy(
            leaf, tensor(target), weight=tensor(weight), reduction=reduction
        )

    compare(
        "binary_cross_entropy",
        with_probs,
        probs,
        target,
        weight=weight,
        reduction=reduction,
        rng=rng,
    )


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@given(element_problems(), st.sampled_from(["none", "sum", "mean", "batchmean"]), st.booleans())
def test_kl_div(problem, reduction, log_target):
    x, target, _, _, rng = problem
    if reduction == "batchmean" and x.ndim == 0:
        x, target = x[None], target[None]
    if log_target:
        target = -5.0 * target

    def reference(leaf):
        return F.kl_div(leaf, tensor(target), log_target=log_target, reduction=reduction)

    compare(
        "kl_div",
        reference,
        x,
        target,
        log_target=log_target,
        reduction=reduction,
        rng=rng,
        scale=float(max(x.size, 1)) * 80.0,
    )


@given(
    problems(), REDUCTIONS, st.sampled_from(["forward", "reverse"]),
    st.sampled_from([1.0, 0.5, 3.0]), st.sampled_from([0.1, 1.0, 3.0]),
)  # fmt: skip
def test_distillation_loss(problem, reduction, direction, temperature, step):
    x, _, axis, _, rng = problem
    teacher = (x.astype(np.float64) + step * rng.standard_normal(x.shape)).astype(x.dtype)
    classes = x.shape[axis]

    def reference(leaf):
        logs = [F.log_softmax(a / temperature, axis) for a in (leaf, tensor(teacher))]
        logs = logs if direction == "forward" else logs[::-1]
        each = F.kl_div(*logs, log_target=True, reduction="none").sum(axis) * temperature**2
        return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]

    compare(
        "distillation_loss",
        reference,
        x,
        teacher,
        temperature=temperature,
        direction=direction,
        axis=axis,
        reduction=reduction,
        rng=rng,
        # PyTorch's terms cancel.
        scale=100.0 * classes * max(temperature, 1 / temperature),
    )


@given(
    element_problems(), REDUCTIONS, st.floats(0.0, 1.0), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.3])
)
def test_sigmoid_focal_loss(problem, reduction, alpha, gamma):
    """torchvision's formula, written out."""
    x, target, _, _, rng = problem
    x = np.clip(x, -15, 15)
    t = tensor(target)

    def reference(leaf):
        p = torch.sigmoid(leaf)
        ce = F.binary_cross_entropy_with_logits(leaf, t, reduction="none")
        p_t = p * t + (1 - p) * (1 - t)
        loss = (alpha * t + (1 - alpha) * (1 - t)) * ce * (1 - p_t) ** gamma
        return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]

    compare(
        "sigmoid_focal_loss",
        reference,
        x,
        target,
        alpha=alpha,
        gamma=gamma,
        reduction=reduction,
        rng=rng,
        scale=1e4 if x.dtype == np.float64 else 10.0,
    )


@given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(1, 9),
    SEEDS,
    REDUCTIONS,
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.2]),
)
def test_linear_cross_entropy(samples, features, classes, seed, reduction, biased, soft, smoothing):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((samples, features)), rng.standard_normal((classes, features))]
    if biased:
        parts.append(rng.standard_normal(classes))
    target = rng.random((samples, classes)) if soft else rng.integers(0, classes, samples)
    leaves = [tensor(part).requires_grad_() for part in parts]
    logits = leaves[0] @ leaves[1].T + (leaves[2] if biased else 0.0)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    want = F.cross_entropy(logits, tensor(target), **options)
    upstream = rng.standard_normal(tuple(want.shape))
    grads = torch.autograd.grad(want, leaves, tensor(upstream))

    bias = {"linear_bias": parts[2]} if biased else {}
    got = fastloss.linear_cross_entropy(*parts[:2], target, **bias, **options)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-12, atol=1e-12)
    back = fastloss.linear_cross_entropy_backward(upstream, *parts[:2], target, **bias, **options)
    for mine, theirs in zip(back, grads, strict=False):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-11, atol=1e-12)
    compared["linear_cross_entropy"] += 1


@given(problems())
def test_building_blocks(problem):
    x, _, where, _, _ = problem
    x64 = tensor(x)
    limit = 1e-12 if x.dtype == np.float64 else 3e-6
    rounded = {"float16": 1e-3, "bfloat16": 8e-3}.get(x.dtype.name, limit)
    pairs = [
        (fastloss.logsumexp(x, axis=where), torch.logsumexp(x64, where), rounded),
        (fastloss.softmax(x, axis=where), torch.softmax(x64, where), rounded),
        (fastloss.log_softmax(x, axis=where), F.log_softmax(x64, where), rounded),
        (fastloss.sigmoid(x), torch.sigmoid(x64), rounded),
        (fastloss.log_sigmoid(x), F.logsigmoid(x64), rounded),
        (fastloss.softplus(x), F.softplus(x64, threshold=1e9), rounded),
    ]
    for got, want, tolerance in pairs:
        np.testing.assert_allclose(
            np.asarray(got, np.float64),
            want.numpy(),
            rtol=tolerance,
            atol=max(limit, 6e-8 * (x.dtype.itemsize == 2)),
        )
    compared["building blocks"] += 1
