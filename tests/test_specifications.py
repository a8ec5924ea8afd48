"""One specification per loss: function, criterion, stream and dask graph give the same answer.

For each loss and each of its options, alone and all together, the function is held to the formula
in float64 NumPy, and everything else to the function.  An option that is added to a specification
has to get a value here.

Layout: a) formulas, b) values of the options, c) function and formula, d) the others and the
function, e) linear_cross_entropy.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import fastloss
from fastloss import StreamingLoss
from fastloss.losses import _layer
from fastloss.losses._specification import SPECIFICATIONS
from fastloss.losses.criteria import Criterion

RNG = np.random.default_rng(20)
ROWS, CLASSES = 24, 5
LOGITS = RNG.standard_normal((ROWS, CLASSES)) * 3

# ---- a) formulas -----------------------------------------------------------------------------
# Each returns the losses, and what the mean divides by.


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(
    x, t, *, weight=None, sample_weight=1.0, ignore_index=-100, label_smoothing=0.0,
    temperature=1.0, softcap=None, z_loss=0.0, axis=None,
):  # fmt: skip
    x = np.moveaxis(x, 1 if axis is None else axis, -1)
    z = (x if softcap is None else softcap * np.tanh(x / softcap)) / temperature
    logp = log_softmax(z)
    lse = (z - logp)[..., 0]
    w = np.ones(x.shape[-1]) if weight is None else np.asarray(weight)
    s = np.broadcast_to(sample_weight, lse.shape)
    if t.dtype.kind == "f":
        q = np.moveaxis(t, 1 if axis is None else axis, -1)
        kept, own = np.ones(lse.shape), np.ones(lse.shape)
        q = w * (1 - label_smoothing) * q
    else:
        kept = t != ignore_index
        index = np.where(kept, t, 0)
        own = w[index]
        q = (1 - label_smoothing) * own[..., None] * np.eye(x.shape[-1])[index]
    q = q + w * label_smoothing / x.shape[-1]
    losses = kept * s * (-(q * logp).sum(axis=-1) + z_loss * own * lse**2)
    return losses, (kept * s * own).sum()


def nll_loss(x, t, *, weight=None, sample_weight=1.0, ignore_index=-100, axis=None):
    x = np.moveaxis(x, 1 if axis is None else axis, -1)
    kept = t != ignore_index
    index = np.where(kept, t, 0)
    own = kept * sample_weight * (1.0 if weight is None else np.asarray(weight)[index])
    return -own * np.take_along_axis(x, index[..., None], -1)[..., 0], own.sum()


def softmax_focal_loss(
    x, t, *, alpha=None, gamma=2.0, sample_weight=1.0, ignore_index=-100, axis=None
):
    x = np.moveaxis(x, 1 if axis is None else axis, -1)
    kept = t != ignore_index
    index = np.where(kept, t, 0)
    logp = np.take_along_axis(log_softmax(x), index[..., None], -1)[..., 0]
    own = kept * sample_weight * (1.0 if alpha is None else np.asarray(alpha)[index])
    return own * (1 - np.exp(logp)) ** gamma * -logp, own.sum()


def with_logits(x, t, weight=1.0, pos_weight=1.0):
    return weight * (t * pos_weight * np.log1p(np.exp(-x)) + (1 - t) * np.log1p(np.exp(x)))


def elements(losses, t, sample_weight, ignore_index=None):
    share = np.broadcast_to(sample_weight, t.shape) * (t != ignore_index)
    return np.where(share == 0, 0.0, losses * share), share.sum()


def binary_cross_entropy(x, t, *, weight=1.0, sample_weight=1.0):
    return elements(-weight * (t * np.log(x) + (1 - t) * np.log(1 - x)), t, sample_weight)


def binary_cross_entropy_with_logits(
    x, t, *, weight=1.0, pos_weight=1.0, sample_weight=1.0, ignore_index=None
):
    losses = with_logits(x, t, np.asarray(weight), np.asarray(pos_weight))
    return elements(losses, t, sample_weight, ignore_index)


def sigmoid_focal_loss(x, t, *, alpha=0.25, gamma=2.0, sample_weight=1.0, ignore_index=None):
    p = 1 / (1 + np.exp(-x))
    miss = t * (1 - p) + (1 - t) * p
    a = 1.0 if alpha is None else np.asarray(alpha) * t + (1 - np.asarray(alpha)) * (1 - t)
    with np.errstate(invalid="ignore"):
        return elements(a * miss**gamma * with_logits(x, t), t, sample_weight, ignore_index)


def kl_div(x, t, *, sample_weight=1.0, log_target=False):
    return elements(np.exp(t) * (t - x) if log_target else t * (np.log(t) - x), t, sample_weight)


def distillation_loss(x, t, *, sample_weight=1.0, temperature=1.0, direction="forward", axis=None):
    axis = 1 if axis is None else axis
    logp, logq = (log_softmax(np.moveaxis(a, axis, -1) / temperature) for a in (x, t))
    if direction == "forward":
        logp, logq = logq, logp
    losses = temperature**2 * (np.exp(logp) * (logp - logq)).sum(axis=-1)
    return sample_weight * losses, np.broadcast_to(sample_weight, losses.shape).sum()


FORMULAS = {name: globals()[name] for name in SPECIFICATIONS}

# ---- b) values of the options ----------------------------------------------------------------

CLASS_WEIGHT = RNG.uniform(0.5, 2.0, CLASSES)
ELEMENT_WEIGHT = RNG.uniform(0.5, 2.0, CLASSES)
VALUES = {
    "weight": {True: CLASS_WEIGHT, False: ELEMENT_WEIGHT},
    "pos_weight": {False: ELEMENT_WEIGHT[::-1].copy()},
    "alpha": {True: CLASS_WEIGHT, False: RNG.uniform(0.1, 0.9, CLASSES)},
    "gamma": {True: 1.5, False: 0.5},
    "ignore_index": {True: 3, False: -1},
    "label_smoothing": {True: 0.2},
    "temperature": {True: 1.7},
    "softcap": {True: 2.5},
    "z_loss": {True: 0.05},
    "direction": {True: "reverse"},
    "log_target": {False: True},
    "axis": {True: 0},
    "sample_weight": {True: RNG.uniform(0, 2, ROWS), False: RNG.uniform(0, 2, (ROWS, 1))},
}


def arguments(name: str, options: dict, soft: bool = False):
    """Arrays that go with the options."""
    loss = SPECIFICATIONS[name]
    x = {
        "logits": LOGITS,
        "log_probs": log_softmax(LOGITS),
        "probs": 1 / (1 + np.exp(-LOGITS)),
    }[loss.input]
    rng = np.random.default_rng(8)
    if loss.two_logits:
        t = x + rng.standard_normal(x.shape)
        if "axis" in options:
            x, t = np.ascontiguousarray(x.T), np.ascontiguousarray(t.T)
    elif loss.over_classes:
        t = rng.dirichlet(np.ones(CLASSES), ROWS) if soft else rng.integers(0, CLASSES, ROWS)
        if "axis" in options:
            x, t = np.ascontiguousarray(x.T), np.ascontiguousarray(t.T)
    elif options.get("ignore_index") is not None:
        t = rng.integers(-1, 2, x.shape)
    else:
        t = rng.uniform(0.05, 0.95, x.shape)
        if options.get("log_target"):
            t = np.log(t)
    return x, t


CASES = []
for _name, _loss in SPECIFICATIONS.items():
    _values = {
        option: VALUES[option][_loss.over_classes] for option in (*_loss.options, "sample_weight")
    }
    CASES += [(_name, {}, False), (_name, _values, False)]
    CASES += [(_name, {option: value}, False) for option, value in _values.items()]
del _values["sample_weight"]
_values = {
    option: VALUES[option][True]
    for option in (*SPECIFICATIONS["cross_entropy"].options, "sample_weight")
    if option != "ignore_index"
}
CASES += [("cross_entropy", {}, True), ("cross_entropy", _values, True)]


@pytest.fixture(
    params=CASES, ids=lambda case: f"{case[0]}({', '.join(case[1])}){case[2] * ' soft'}"
)
def case(request):
    name, options, soft = request.param
    return name, options, *arguments(name, options, soft)


CRITERIA = {
    made._loss.name: made
    # By name: criteria are imported when they are first asked for.
    for made in (getattr(fastloss, name) for name in fastloss.__all__)
    if inspect.isclass(made) and issubclass(made, Criterion)
}


def reductions(name):
    return SPECIFICATIONS[name].reductions


def formula(name, x, t, options, reduction):
    losses, denominator = FORMULAS[name](x, t, **options)
    if reduction == "none":
        return losses
    divisor = {"sum": 1.0, "mean": denominator, "batchmean": len(x)}[reduction]
    return losses.sum() / divisor


# ---- c) function and formula -----------------------------------------------------------------


def test_every_option_is_an_argument_with_its_default():
    for name, loss in SPECIFICATIONS.items():
        parameters = inspect.signature(getattr(fastloss, name)).parameters
        assert list(parameters)[1] == loss.target
        keyword = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert keyword.pop("sample_weight") is None
        assert keyword.pop("reduction") == "mean"
        assert keyword == {option: default for option, (default, _) in loss.options.items()}
        assert next(iter(parameters)) == loss.input


def test_loss_is_the_formulas(case):
    name, options, x, t = case
    for reduction in reductions(name):
        got = getattr(fastloss, name)(x, t, **options, reduction=reduction)
        np.testing.assert_allclose(got, formula(name, x, t, options, reduction), rtol=1e-11)


def test_gradient_is_the_formulas_slope(case):
    """Central differences of the formula; the mean's gradient is the sum's over its divisor."""
    name, options, x, t = case
    for reduction in reductions(name):
        if reduction == "none":
            continue
        _, grad = getattr(fastloss, f"{name}_value_and_grad")(x, t, **options, reduction=reduction)
        for seed in range(3):
            step = np.random.default_rng(seed).standard_normal(x.shape) * 1e-6
            if name == "binary_cross_entropy":
                step *= x * (1 - x)
            ends = (formula(name, x + sign * step, t, options, reduction) for sign in (1, -1))
            slope = next(ends) - next(ends)
            np.testing.assert_allclose(
                (grad * step).sum() * 2, slope, rtol=1e-6, atol=1e-8 * np.abs(grad * step).sum()
            )


# ---- d) the others and the function ----------------------------------------------------------


def test_criterion_is_the_function(case):
    name, options, x, t = case
    sample_weight = options.get("sample_weight")
    own = {option: value for option, value in options.items() if option != "sample_weight"}
    upstream = np.random.default_rng(1)
    for reduction in reductions(name):
        criterion = CRITERIA[name](**own, reduction=reduction)
        loss, grad = getattr(fastloss, f"{name}_value_and_grad")(
            x, t, **options, reduction=reduction
        )
        np.testing.assert_array_equal(criterion(x, t, sample_weight), loss)
        got_loss, got_grad = criterion.value_and_grad(x, t, sample_weight)
        np.testing.assert_array_equal(got_loss, loss)
        np.testing.assert_array_equal(got_grad, grad)
        g = upstream.standard_normal(np.shape(loss))
        np.testing.assert_array_equal(
            criterion.backward(g, x, t, sample_weight),
            getattr(fastloss, f"{name}_backward")(g, x, t, **options, reduction=reduction),
        )


def parts(x, t, weight, options):
    """The batch in three, along the samples."""
    last = options.get("axis") == 0
    for part in (slice(0, 1), slice(1, 15), slice(15, ROWS)):
        cut = (slice(None), part) if last else part
        yield (
            x[cut],
            t[cut] if t.ndim == x.ndim else t[part],
            None if weight is None else weight[part],
        )


def test_stream_is_the_function(case):
    name, options, x, t = case
    own = {option: value for option, value in options.items() if option != "sample_weight"}
    for reduction in reductions(name):
        if reduction == "none":
            continue
        loss = StreamingLoss(CRITERIA[name](**own, reduction=reduction))
        for batch in parts(x, t, options.get("sample_weight"), options):
            loss.update(*batch)
        whole = getattr(fastloss, name)(x, t, **options, reduction=reduction)
        assert loss.compute() == pytest.approx(float(whole), rel=1e-13)


def test_dask_is_the_function(case):
    name, options, x, t = case
    da = pytest.importorskip("dask.array")
    dask = pytest.importorskip("dask")
    lazy = pytest.importorskip("fastloss.dask")
    chunks = (CLASSES, 7) if options.get("axis") == 0 else (7, CLASSES)
    for reduction in reductions(name):
        made = getattr(lazy, f"{name}_value_and_grad")(
            da.from_array(x, chunks=chunks), t, **options, reduction=reduction
        )
        alone = getattr(lazy, name)(
            da.from_array(x, chunks=chunks), t, **options, reduction=reduction
        )
        got = dask.compute(alone, *made)
        loss, grad = getattr(fastloss, f"{name}_value_and_grad")(
            x, t, **options, reduction=reduction
        )
        for value, want in zip(got, (loss, loss, grad), strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-13, atol=1e-15)


# ---- e) linear_cross_entropy -----------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_linear_cross_entropy_has_all_options(monkeypatch, reduction, soft):
    """Every option of cross_entropy but axis, in several blocks, with an ignored row of NaN."""
    monkeypatch.setattr(_layer, "LEAST_MEMORY", 7 * CLASSES * 8)
    rng = np.random.default_rng(4)
    features, layer, bias = (rng.standard_normal(n) for n in ((ROWS, 3), (CLASSES, 3), CLASSES))
    options = {
        option: VALUES[option][True]
        for option in (*SPECIFICATIONS["cross_entropy"].options, "sample_weight")
        if option != "axis" and not (soft and option == "ignore_index")
    }
    _, t = arguments("cross_entropy", {}, soft)
    dirty = features.copy()
    if not soft:
        assert (t == options["ignore_index"]).any()
        dirty[t == options["ignore_index"]] = np.nan
    else:
        options["sample_weight"] = np.where(np.arange(ROWS) == 5, 0.0, options["sample_weight"])
        dirty[5] = np.inf
    loss, grads = fastloss.linear_cross_entropy_value_and_grad(
        dirty, layer, t, linear_bias=bias, **options, reduction=reduction
    )
    logits = features @ layer.T + bias
    want, grad = fastloss.cross_entropy_value_and_grad(logits, t, **options, reduction=reduction)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(grads.input, grad @ layer, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(grads.linear_weight, grad.T @ features, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(grads.linear_bias, grad.sum(axis=0), rtol=1e-10, atol=1e-13)
    upstream = rng.standard_normal(np.shape(want))
    back = fastloss.linear_cross_entropy_backward(
        upstream, dirty, layer, t, linear_bias=bias, **options, reduction=reduction
    )
    grad = fastloss.cross_entropy_backward(upstream, logits, t, **options, reduction=reduction)
    np.testing.assert_allclose(back.linear_weight, grad.T @ features, rtol=1e-10, atol=1e-13)
