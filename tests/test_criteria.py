"""The criterion classes: what they compute, and that they are values.

Layout: a) answers, b) value semantics (immutable, equal repr, picklable), c) arguments.
"""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest

import fastloss

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 4))
INDEX = RNG.integers(0, 4, 6)
UNIT = RNG.random((6, 4))
PROBS = RNG.random((6, 4))
WEIGHT = RNG.uniform(0.5, 2.0, 4)

# class, function, input, target, options that the class was made with
CASES = [
    (
        "CrossEntropyLoss",
        "cross_entropy",
        X,
        INDEX,
        {
            "weight": WEIGHT,
            "ignore_index": 2,
            "label_smoothing": 0.1,
            "temperature": 1.5,
            "softcap": 30.0,
            "z_loss": 1e-3,
            "axis": -1,
        },
    ),
    ("NLLLoss", "nll_loss", X, INDEX, {"weight": WEIGHT, "ignore_index": 2, "axis": -1}),
    (
        "SoftmaxFocalLoss",
        "softmax_focal_loss",
        X,
        INDEX,
        {"alpha": WEIGHT, "gamma": 1.5, "ignore_index": 2, "axis": -1},
    ),
    ("BCELoss", "binary_cross_entropy", PROBS, UNIT, {"weight": WEIGHT}),
    (
        "BCEWithLogitsLoss",
        "binary_cross_entropy_with_logits",
        X,
        (UNIT > 0.5).astype(int),
        {"weight": WEIGHT, "pos_weight": WEIGHT * 2, "ignore_index": -1},
    ),
    (
        "DistillationLoss",
        "distillation_loss",
        X,
        UNIT * 4,
        {"temperature": 2.5, "direction": "reverse", "axis": -1},
    ),
    ("KLDivLoss", "kl_div", X, UNIT, {"log_target": True}),
    (
        "SigmoidFocalLoss",
        "sigmoid_focal_loss",
        X,
        (UNIT > 0.5).astype(int),
        {"alpha": 0.3, "gamma": 1.5, "ignore_index": -1},
    ),
]
NAMES = [case[0] for case in CASES]


@pytest.fixture(params=CASES, ids=NAMES)
def case(request):
    return request.param


# ---- a) answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("with_options", [False, True], ids=["defaults", "options"])
def test_same_bits_as_the_functions(case, reduction, with_options):
    name, function, x, t, options = case
    options = {**options, "reduction": reduction} if with_options else {"reduction": reduction}
    criterion = getattr(fastloss, name)(**options)
    loss = getattr(fastloss, function)(x, t, **options)
    np.testing.assert_array_equal(criterion(x, t), loss)

    want_loss, want_grad = getattr(fastloss, f"{function}_value_and_grad")(x, t, **options)
    loss, grad = criterion.value_and_grad(x, t)
    np.testing.assert_array_equal(loss, want_loss)
    np.testing.assert_array_equal(grad, want_grad)

    upstream = np.random.default_rng(1).standard_normal(np.shape(want_loss))
    want_back = getattr(fastloss, f"{function}_backward")(upstream, x, t, **options)
    np.testing.assert_array_equal(criterion.backward(upstream, x, t), want_back)


def test_default_reduction_is_mean(case):
    name, function, x, t, _ = case
    assert getattr(fastloss, name)()(x, t) == getattr(fastloss, function)(x, t, reduction="mean")
    assert getattr(fastloss, name)().reduction == "mean"


def test_out(case):
    name, _, x, t, options = case
    criterion = getattr(fastloss, name)(**options)
    out = np.full_like(x, np.nan)
    _, want = criterion.value_and_grad(x, t)
    assert criterion.value_and_grad(x, t, out=out)[1] is out
    np.testing.assert_array_equal(out, want)
    out.fill(np.nan)
    assert criterion.backward(np.float64(1.0), x, t, out=out) is out
    np.testing.assert_array_equal(out, criterion.backward(np.float64(1.0), x, t))


def test_sample_weight(case):
    """The third argument of each call, positional or by name, is the function's option."""
    name, function, x, t, options = case
    criterion = getattr(fastloss, name)(**options)
    shape = np.shape(fastloss_none(function, x, t, options))
    weight = np.random.default_rng(2).uniform(0.1, 2.0, shape)
    loss, grad = getattr(fastloss, f"{function}_value_and_grad")(
        x, t, sample_weight=weight, **options
    )
    assert criterion(x, t, weight) == criterion(x, t, sample_weight=weight) == loss
    np.testing.assert_array_equal(criterion.value_and_grad(x, t, weight)[1], grad)
    np.testing.assert_array_equal(criterion.backward(1.0, x, t, weight), grad)
    assert loss != criterion(x, t)


def fastloss_none(function, x, t, options):
    return getattr(fastloss, function)(x, t, **options, reduction="none")


def test_calls_name_their_arguments(case):
    name, _, x, t, options = case
    criterion = getattr(fastloss, name)(**options)
    arrays = {"logits": x, criterion._loss.target: t}
    loss = criterion(**arrays, sample_weight=None)
    assert criterion.value_and_grad(**arrays)[0] == loss
    criterion.backward(grad_output=1.0, **arrays)


def test_equal_where_the_options_are(case):
    name, _, _, _, options = case
    make = getattr(fastloss, name)
    assert make(**options) == make(**options)
    assert hash(make(**options)) == hash(make(**options))
    for option in options:
        assert make(**options) != make(**{k: v for k, v in options.items() if k != option})


def test_batchmean():
    criterion = fastloss.KLDivLoss(reduction="batchmean")
    assert criterion(X, UNIT) == fastloss.kl_div(X, UNIT, reduction="batchmean")


# ---- b) value semantics ----------------------------------------------------------------------


def test_options_are_read_only_attributes(case):
    name, _, _, _, options = case
    criterion = getattr(fastloss, name)(**options)
    for option, value in {**options, "reduction": "mean"}.items():
        np.testing.assert_array_equal(getattr(criterion, option), value)
        with pytest.raises(AttributeError):
            setattr(criterion, option, value)
    with pytest.raises(AttributeError):
        criterion.something_new = 1


def test_weight_changed_afterwards_changes_nothing():
    """A criterion keeps its own copy of a weight, and gives none away to write to."""
    weight = WEIGHT.copy()
    criterion = fastloss.CrossEntropyLoss(weight=weight)
    before = criterion(X, INDEX)
    weight[:] = 100.0
    assert criterion(X, INDEX) == before
    with pytest.raises(ValueError, match="read-only"):
        criterion.weight[0] = 5.0


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(case, protocol):
    name, _, x, t, options = case
    criterion = getattr(fastloss, name)(**options, reduction="sum")
    again = pickle.loads(pickle.dumps(criterion, protocol))
    assert type(again) is type(criterion)
    assert repr(again) == repr(criterion)
    assert again(x, t) == criterion(x, t)


def test_copy(case):
    name, _, x, t, options = case
    criterion = getattr(fastloss, name)(**options)
    for again in (copy.copy(criterion), copy.deepcopy(criterion)):
        assert again(x, t) == criterion(x, t)


def test_repr_shows_the_options(case):
    name, _, _, _, options = case
    text = repr(getattr(fastloss, name)(**options, reduction="sum"))
    assert text.startswith(f"{name}(")
    assert "reduction='sum'" in text
    for option, value in options.items():
        assert f"{option}=" in text
        if not isinstance(value, np.ndarray):
            assert f"{option}={value!r}" in text


def test_repr_is_an_expression(case):
    name, _, x, t, options = case
    plain = {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}
    criterion = getattr(fastloss, name)(**plain, reduction="sum")
    again = eval(repr(criterion), vars(fastloss).copy())
    assert again(x, t) == criterion(x, t)


# ---- c) arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("old", "instead"),
    [
        ({"size_average": True}, "mean"),
        ({"size_average": False}, "sum"),
        ({"reduce": False}, "none"),
        ({"reduce": True}, "mean"),
        ({"size_average": False, "reduce": True}, "sum"),
        ({"size_average": True, "reduce": False}, "none"),
    ],
    ids=str,
)
def test_abandoned_arguments_name_their_successor(name, old, instead):
    with pytest.raises(TypeError, match=f"reduction=['\"]{instead}['\"]") as error:
        getattr(fastloss, name)(**old)
    assert any(argument in str(error.value) for argument in old)


@pytest.mark.parametrize("name", NAMES)
def test_weight_alone_may_be_positional(name):
    """As in PyTorch, whose code out there says CrossEntropyLoss(weight)."""
    make = getattr(fastloss, name)
    if "weight" in inspect.signature(make).parameters:
        assert make(WEIGHT) == make(weight=WEIGHT)
        arguments = (WEIGHT, WEIGHT)
    else:
        arguments = (0.5,)
    with pytest.raises(TypeError, match="positional"):
        make(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_constructor_takes_the_functions_options(name):
    """All that is not per sample, with the same defaults."""
    function = {case[0]: case[1] for case in CASES}[name]
    expected = {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(fastloss, function)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "sample_weight"
    }
    got = inspect.signature(getattr(fastloss, name)).parameters
    assert {option: parameter.default for option, parameter in got.items()} == expected


@pytest.mark.parametrize(
    ("name", "option", "meant"),
    [
        ("CrossEntropyLoss", "dim", "axis"),
        ("CrossEntropyLoss", "class_weight", "weight"),
        ("NLLLoss", "class_weight", "weight"),
        ("SoftmaxFocalLoss", "weight", "alpha"),
        ("SoftmaxFocalLoss", "class_weight", "alpha"),
        ("BCELoss", "class_weight", "weight"),
    ],
)
def test_names_of_other_libraries_name_ours(name, option, meant):
    with pytest.raises(TypeError, match=f"{option}.*'{meant}'"):
        getattr(fastloss, name)(**{option: [1.0]})


def test_repr_of_many_weights_is_short():
    criterion = fastloss.CrossEntropyLoss(np.arange(1000.0))
    assert repr(criterion) == (
        "CrossEntropyLoss(weight=[0.0, 1.0, 2.0, ..., 997.0, 998.0, 999.0] (1000),"
        " reduction='mean')"
    )
    few = fastloss.BCEWithLogitsLoss(pos_weight=np.ones((4, 5)))
    assert (
        repr(few) == f"BCEWithLogitsLoss(pos_weight={np.ones((4, 5)).tolist()}, reduction='mean')"
    )


def test_sample_weight_belongs_to_the_call():
    with pytest.raises(TypeError, match="sample_weight belongs to a batch"):
        fastloss.CrossEntropyLoss(sample_weight=[1.0])


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option(name):
    with pytest.raises(TypeError, match="colour"):
        getattr(fastloss, name)(colour="red")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["average", "MEAN", "", None, 1, True])
def test_unknown_reduction(name, reduction):
    with pytest.raises(
        (ValueError, TypeError), match=r"(?s)reduction.*mean|mean.*reduction"
    ) as error:
        getattr(fastloss, name)(reduction=reduction)
    assert repr(reduction) in str(error.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "KLDivLoss"])
def test_batchmean_belongs_to_kl_div(name):
    with pytest.raises(ValueError, match="batchmean"):
        getattr(fastloss, name)(reduction="batchmean")


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("CrossEntropyLoss", {"label_smoothing": 1.5}, ValueError, "1.5"),
        ("CrossEntropyLoss", {"label_smoothing": -0.1}, ValueError, "-0.1"),
        ("CrossEntropyLoss", {"label_smoothing": float("nan")}, ValueError, "nan"),
        ("CrossEntropyLoss", {"weight": np.ones((2, 2))}, ValueError, r"\(2, 2\)"),
        ("CrossEntropyLoss", {"weight": np.ones(3, complex)}, TypeError, "complex"),
        ("CrossEntropyLoss", {"ignore_index": 1.5}, TypeError, "1.5"),
        ("NLLLoss", {"weight": "abc"}, TypeError, "weight"),
        ("BCEWithLogitsLoss", {"pos_weight": np.ones(2, "U1")}, TypeError, "pos_weight"),
        ("CrossEntropyLoss", {"ignore_index": 10**30}, ValueError, str(10**30)),
        ("CrossEntropyLoss", {"temperature": 0.0}, ValueError, "temperature.*0.0"),
        ("CrossEntropyLoss", {"temperature": np.inf}, ValueError, "temperature.*inf"),
        ("CrossEntropyLoss", {"softcap": -2.0}, ValueError, "softcap.*-2"),
        ("CrossEntropyLoss", {"z_loss": -1e-4}, ValueError, "z_loss.*-0.0001"),
        ("CrossEntropyLoss", {"z_loss": np.nan}, ValueError, "z_loss.*nan"),
        ("CrossEntropyLoss", {"temperature": "1"}, TypeError, "temperature.*'1'"),
        ("CrossEntropyLoss", {"axis": 1.0}, TypeError, "axis.*1.0"),
        ("CrossEntropyLoss", {"label_smoothing": 10**400}, ValueError, "label_smoothing"),
        ("SoftmaxFocalLoss", {"gamma": 10**400}, ValueError, "gamma"),
        ("SoftmaxFocalLoss", {"alpha": np.ones((2, 2))}, ValueError, r"alpha.*\(2, 2\)"),
        ("BCEWithLogitsLoss", {"ignore_index": 0.5}, TypeError, "ignore_index.*0.5"),
        ("KLDivLoss", {"log_target": "yes"}, TypeError, "log_target.*'yes'"),
        ("SigmoidFocalLoss", {"alpha": -5}, ValueError, "alpha.*-5"),
        ("SigmoidFocalLoss", {"alpha": [0.5, 1.5]}, ValueError, "alpha.*1.5"),
        ("SigmoidFocalLoss", {"gamma": -1.0}, ValueError, "-1"),
        ("SigmoidFocalLoss", {"alpha": "x"}, TypeError, "alpha"),
    ],
)
def test_bad_options_fail_when_they_are_given(name, options, error, text):
    with pytest.raises(error, match=text):
        getattr(fastloss, name)(**options)
