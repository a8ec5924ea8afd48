"""fastloss.boosting: the trees of the libraries' own objectives, and what those do not offer.

Layout: a) the same predictions as the built-in objectives, b) other criteria learn,
c) scikit-learn classes, d) metrics, e) start and probabilities, f) what a dataset holds, g) wrong
arguments, and libraries that are missing.
"""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloss
import oracle
from fastloss import boosting

ROUNDS = 50
BINARY, CLASSES = fastloss.BCEWithLogitsLoss(), fastloss.CrossEntropyLoss()


@pytest.fixture(scope="module")
def lgb():
    return pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def xgb():
    return pytest.importorskip("xgboost")


def data(kind: str, samples: int = 500):
    """Features, labels of two or of four classes, and weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 5))
    noise = rng.standard_normal(samples) * 0.6
    if kind == "binary":
        y = (x[:, 0] + x[:, 1] * x[:, 2] + noise > 0).astype(int)
    else:
        y = np.digitize(x[:, 0] + 0.5 * x[:, 1] ** 2 + noise, [-0.5, 0.6, 1.5])
    return x, y, rng.uniform(0.5, 2.0, samples)


# ---- a) the same predictions as the built-in objectives --------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_lightgbm_grows_the_same_trees(lgb, kind, weighted):
    x, y, weight = data(kind)
    classes = 1 if kind == "binary" else 4
    criterion = BINARY if kind == "binary" else CLASSES
    # A custom objective starts at 0, and so does a built-in one without its average.
    parameters = {
        "verbosity": -1, "num_threads": 1, "num_class": classes, "boost_from_average": False,
    }  # fmt: skip
    raw = []
    for objective in (kind, boosting.lightgbm(criterion)):
        dataset = lgb.Dataset(x, y, weight=weight if weighted else None)
        model = lgb.train({**parameters, "objective": objective}, dataset, ROUNDS)
        raw.append(model.predict(x, raw_score=True))
    assert np.abs(raw[0]).max() > 1
    np.testing.assert_allclose(raw[1], raw[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_lightgbm_from_the_average(lgb, kind):
    """With `init_score` a custom objective starts where the built-in one does."""
    x, y, weight = data(kind)
    criterion = BINARY if kind == "binary" else CLASSES
    parameters = {"verbosity": -1, "num_threads": 1, "num_class": 1 if kind == "binary" else 4}
    start = boosting.init_score(criterion, y, weight)
    built_in = lgb.train({**parameters, "objective": kind}, lgb.Dataset(x, y, weight=weight), 20)
    every = np.full(len(y), start) if kind == "binary" else np.tile(start, (len(y), 1))
    dataset = lgb.Dataset(x, y, weight=weight, init_score=every)
    model = lgb.train({**parameters, "objective": boosting.lightgbm(criterion)}, dataset, 20)
    np.testing.assert_allclose(
        model.predict(x, raw_score=True) + start, built_in.predict(x, raw_score=True), atol=1e-5
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_xgboost_grows_the_same_trees(xgb, kind, weighted):
    x, y, weight = data(kind)
    parameters = {"nthread": 1, "max_depth": 4}
    if kind == "multiclass":
        parameters["num_class"] = 4
    criterion = BINARY if kind == "binary" else CLASSES
    own = "binary:logistic" if kind == "binary" else "multi:softprob"
    matrix = xgb.DMatrix(x, y, weight=weight if weighted else None)
    # The built-in base_score is a probability: 0.5 is the score 0.
    built_in = xgb.train({**parameters, "objective": own, "base_score": 0.5}, matrix, ROUNDS)
    custom = xgb.train(
        {**parameters, "base_score": 0}, matrix, ROUNDS, obj=boosting.xgboost(criterion)
    )
    got = boosting.predict_proba(criterion, custom.predict(matrix, output_margin=True))
    want = built_in.predict(matrix)
    np.testing.assert_allclose(got if kind == "multiclass" else got[:, 1], want, atol=1e-5)
    assert np.ptp(want) > 0.5


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_second_derivatives_have_the_librarys_factor(library):
    """C / (C − 1) in LightGBM and 2 in XGBoost for several classes, 1 for one score."""
    pytest.importorskip(library)
    scores = np.random.default_rng(0).standard_normal((20, 5))
    labels = np.arange(20) % 5
    p = oracle.softmax(scores)
    _, hess = boosting.sklearn(CLASSES, library)(labels, scores)
    hess = hess.reshape(scores.shape)  # XGBoost 2.0 has one long vector
    factor = 1.25 if library == "lightgbm" else 2.0
    np.testing.assert_allclose(hess, factor * p * (1 - p), rtol=1e-6)
    _, hess = boosting.sklearn(fastloss.SoftmaxFocalLoss(gamma=0), library)(labels, scores)
    np.testing.assert_allclose(hess.reshape(scores.shape), factor * p * (1 - p), rtol=1e-6)
    _, hess = boosting.sklearn(BINARY, library)(labels % 2, scores[:, 0])
    p = oracle.sigmoid(scores[:, 0])
    np.testing.assert_allclose(hess, p * (1 - p), rtol=1e-6)


# ---- b) other criteria learn ---------------------------------------------------------------

OTHERS = {
    "focal": ("binary", fastloss.SigmoidFocalLoss(gamma=2.0)),
    "pos_weight": ("binary", fastloss.BCEWithLogitsLoss(pos_weight=3.0)),
    "softmax focal": ("multiclass", fastloss.SoftmaxFocalLoss(gamma=1.5)),
    "smoothing": ("multiclass", fastloss.CrossEntropyLoss(label_smoothing=0.1)),
    "weights": ("multiclass", fastloss.CrossEntropyLoss(weight=[1.0, 2.0, 3.0, 4.0])),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_the_loss_of_the_criterion_falls(request, library, name):
    module = request.getfixturevalue("lgb" if library == "lightgbm" else "xgb")
    kind, criterion = OTHERS[name]
    x, y, weight = data(kind)
    classes = 1 if kind == "binary" else 4
    if library == "lightgbm":
        parameters = {"verbosity": -1, "num_threads": 1, "num_class": classes}
        parameters["objective"] = boosting.lightgbm(criterion)
        model = module.train(parameters, module.Dataset(x, y, weight=weight), 20)
        raw = model.predict(x, raw_score=True)
    else:
        parameters = {"nthread": 1, "base_score": 0}
        if classes > 1:
            parameters["num_class"] = classes
        matrix = module.DMatrix(x, y, weight=weight)
        model = module.train(parameters, matrix, 20, obj=boosting.xgboost(criterion))
        raw = model.predict(matrix, output_margin=True)
    assert np.isfinite(raw).all()
    assert criterion(raw, y, weight) < 0.5 * criterion(np.zeros(raw.shape), y, weight)


def test_soft_labels(lgb):
    """Labels between 0 and 1 draw predictions to themselves."""
    x, _, _ = data("binary")
    y = oracle.sigmoid(2.0 * x[:, 0])
    parameters = {"verbosity": -1, "num_threads": 1, "objective": boosting.lightgbm(BINARY)}
    raw = lgb.train(parameters, lgb.Dataset(x, y), ROUNDS).predict(x, raw_score=True)
    assert np.abs(boosting.predict_proba(BINARY, raw)[:, 1] - y).mean() < 0.02


def test_several_columns_of_labels(xgb):
    """XGBoost trains several binary outputs at once."""
    x, _, weight = data("binary")
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0.5], axis=1).astype(float)
    matrix = xgb.DMatrix(x, y, weight=weight)
    model = xgb.train({"nthread": 1, "base_score": 0}, matrix, 20, obj=boosting.xgboost(BINARY))
    raw = model.predict(matrix, output_margin=True)
    assert raw.shape == y.shape and ((raw > 0) == y).mean() > 0.99


@pytest.mark.parametrize(
    ("name", "least"), [("weights", 0.4), ("soft", 0.5), ("focal", 0.2), ("noise", 0.4)]
)
def test_example(lgb, name, least):
    """Each experiment's losses all learn, and give what they measure after each round."""
    pytest.importorskip("sklearn")
    path = Path(__file__).resolve().parents[1] / "examples" / "boosting.py"
    if not path.is_file():
        pytest.skip("needs the source tree")
    example = runpy.run_path(str(path))
    curves = example["run"](name, rounds=12, seeds=1)
    assert len(curves) == 3
    higher = example["EXPERIMENTS"][name].better == "higher"
    for values in curves.values():
        assert values.shape == (1, 12)
        gained = values[0, -1] - values[0, 0]
        assert gained > 0 if higher else gained < 0
        if higher:
            assert values[0, -1] > least


# ---- c) scikit-learn classes -----------------------------------------------------------------


def classifier(request, library, criterion, **options):
    module = request.getfixturevalue("lgb" if library == "lightgbm" else "xgb")
    objective = boosting.sklearn(criterion, library)
    if library == "lightgbm":
        return module.LGBMClassifier(
            objective=objective, n_estimators=20, n_jobs=1, verbosity=-1, **options
        )
    # The class reads base_score as a probability whatever the objective: 0.5 is the score 0.
    return module.XGBClassifier(
        objective=objective, n_estimators=20, n_jobs=1, base_score=0.5, **options
    )


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_cross_val_score(request, library, kind):
    selection = pytest.importorskip("sklearn.model_selection")
    x, y, _ = data(kind)
    criterion = BINARY if kind == "binary" else CLASSES

    def scored(estimator, x, y):
        raw = (
            estimator.predict(x, raw_score=True)
            if library == "lightgbm"
            else estimator.predict(x, output_margin=True)
        )
        return (boosting.predict_proba(criterion, raw).argmax(axis=1) == y).mean()

    model = classifier(request, library, criterion)
    scores = selection.cross_val_score(model, x, y, cv=3, scoring=scored, error_score="raise")
    assert scores.min() > (0.75 if kind == "binary" else 0.5)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes_and_training_functions_agree(request, library, kind):
    x, y, weight = data(kind)
    criterion = BINARY if kind == "binary" else CLASSES
    if library == "xgboost" and request.getfixturevalue("xgb").__version__.startswith("2.0."):
        weight = None  # its classes keep weights from a custom objective
    model = classifier(request, library, criterion).fit(x, y, sample_weight=weight)
    copy = pickle.loads(pickle.dumps(model))
    if library == "lightgbm":
        module = request.getfixturevalue("lgb")
        parameters = {"verbosity": -1, "num_threads": 1, "num_class": 1 if kind == "binary" else 4}
        parameters["objective"] = boosting.lightgbm(criterion)
        want = module.train(parameters, module.Dataset(x, y, weight=weight), 20)
        want = want.predict(x, raw_score=True)
        got, again = (m.predict(x, raw_score=True) for m in (model, copy))
    else:
        module = request.getfixturevalue("xgb")
        parameters = {"nthread": 1, "base_score": 0}
        if kind == "multiclass":
            parameters["num_class"] = 4
        matrix = module.DMatrix(x, y, weight=weight)
        want = module.train(parameters, matrix, 20, obj=boosting.xgboost(criterion))
        want = want.predict(matrix, output_margin=True)
        got, again = (m.predict(x, output_margin=True) for m in (model, copy))
    np.testing.assert_allclose(
        boosting.predict_proba(criterion, got), boosting.predict_proba(criterion, want), atol=1e-5
    )
    np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_objects_pickle(library):
    pytest.importorskip(library)
    criterion = fastloss.CrossEntropyLoss(weight=[1.0, 2.0])
    for made in (
        getattr(boosting, library)(criterion),
        boosting.sklearn(criterion, library, floor=None),
        boosting.metric(criterion, library),
    ):
        copy = pickle.loads(pickle.dumps(made))
        assert copy == made and copy.criterion == criterion


# ---- d) metrics ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_lightgbm_metric(lgb, kind):
    x, y, weight = data(kind)
    criterion = BINARY if kind == "binary" else CLASSES
    parameters = {
        "verbosity": -1, "num_threads": 1, "num_class": 1 if kind == "binary" else 4,
        "metric": "None", "objective": boosting.lightgbm(criterion),
    }  # fmt: skip
    seen = {}
    train = lgb.Dataset(x[:300], y[:300])
    held_out = lgb.Dataset(x[300:], y[300:], weight=weight[300:], reference=train)
    model = lgb.train(
        parameters, train, 5, valid_sets=[held_out], feval=boosting.metric(criterion, "lightgbm"),
        callbacks=[lgb.record_evaluation(seen)],
    )  # fmt: skip
    raw = model.predict(x[300:], raw_score=True)
    name = "cross_entropy" if kind == "multiclass" else "binary_cross_entropy_with_logits"
    want = criterion(raw, y[300:], weight[300:].astype(np.float32))
    assert seen["valid_0"][name][-1] == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_xgboost_metric(xgb, kind):
    x, y, weight = data(kind)
    criterion = BINARY if kind == "binary" else CLASSES
    parameters = {"nthread": 1, "base_score": 0, "disable_default_eval_metric": True}
    if kind == "multiclass":
        parameters["num_class"] = 4
    matrix, seen = xgb.DMatrix(x, y, weight=weight), {}
    model = xgb.train(
        parameters, matrix, 5, obj=boosting.xgboost(criterion), evals=[(matrix, "all")],
        custom_metric=boosting.metric(criterion, "xgboost"), evals_result=seen, verbose_eval=False,
    )  # fmt: skip
    raw = model.predict(matrix, output_margin=True)
    name = "cross_entropy" if kind == "multiclass" else "binary_cross_entropy_with_logits"
    assert seen["all"][name][-1] == pytest.approx(float(criterion(raw, y, weight)), rel=1e-5)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_metrics_of_scikit_learn_classes(request, library):
    pytest.importorskip(library)
    x, y, weight = data("binary")
    made = boosting.metric(BINARY, library, sklearn=True)
    held_out, labels = x[300:], y[300:]
    if library == "lightgbm":
        model = classifier(request, library, BINARY)
        model.fit(
            x[:300], y[:300], eval_set=[(held_out, labels)], eval_sample_weight=[weight[300:]],
            eval_metric=made,
        )  # fmt: skip
        seen, raw = model.evals_result_["valid_0"], model.predict(held_out, raw_score=True)
    else:
        model = classifier(request, library, BINARY, eval_metric=made)
        model.fit(
            x[:300], y[:300], eval_set=[(held_out, labels)], sample_weight_eval_set=[weight[300:]],
            verbose=False,
        )  # fmt: skip
        seen = model.evals_result()["validation_0"]
        raw = model.predict(held_out, output_margin=True)
    want = BINARY(raw, labels, weight[300:])
    assert seen["binary_cross_entropy_with_logits"][-1] == pytest.approx(float(want), rel=1e-5)


# ---- e) start and probabilities --------------------------------------------------------------

STARTS = {
    "binary": (BINARY, [0, 0, 0, 1, 1]),
    "soft": (BINARY, [0.25, 0.5, 0.0, 1.0, 0.75]),
    "pos_weight": (fastloss.BCEWithLogitsLoss(pos_weight=2.5), [0, 0, 0, 1, 1]),
    "focal": (fastloss.SigmoidFocalLoss(gamma=2.0, alpha=0.3), [0, 0, 0, 1, 1]),
    "classes": (CLASSES, [0, 2, 1, 1, 2]),
    "weights": (fastloss.CrossEntropyLoss(weight=[1.0, 5.0, 2.0]), [0, 2, 1, 1, 2]),
    "smoothing": (
        fastloss.CrossEntropyLoss(weight=[1.0, 5.0, 2.0], label_smoothing=0.2, temperature=1.5),
        [0, 2, 1, 1, 2],
    ),
    "softmax focal": (fastloss.SoftmaxFocalLoss(alpha=[1.0, 5.0, 2.0]), [0, 2, 1, 1, 2]),
    "softmax focal 0": (fastloss.SoftmaxFocalLoss(gamma=0), [0, 2, 1, 1, 2]),
    "softmax focal 0.5": (fastloss.SoftmaxFocalLoss(gamma=0.5), [0, 2, 1, 1, 2]),
    "softcap": (fastloss.CrossEntropyLoss(softcap=8.0, z_loss=0.1), [0, 2, 1, 1, 2]),
    "ignored": (fastloss.CrossEntropyLoss(ignore_index=1), [0, 2, 1, 0, 2]),
}


@pytest.mark.parametrize("name", STARTS)
def test_init_score_has_the_least_loss(name):
    """The gradient of the summed loss is zero there."""
    criterion, labels = STARTS[name]
    weight = np.array([1.0, 2.0, 0.5, 3.0, 1.0])
    start = boosting.init_score(criterion, labels, weight)
    scores = np.full(5, start) if np.ndim(start) == 0 else np.tile(start, (5, 1))
    grad = criterion.grad_and_hess(scores, labels, weight)[0].sum(axis=0)
    # Nothing draws at a class that no sample has.
    assert np.abs(grad).max() < 1e-9


@pytest.mark.parametrize("name", ["BCEWithLogitsLoss", "SigmoidFocalLoss"])
def test_ignored_labels_of_binary_losses(lgb, name):
    """They count neither for the start nor for the derivatives."""
    criterion = getattr(fastloss, name)(ignore_index=-1)
    start = boosting.init_score(criterion, [0, 1, -1, 1, -1])
    assert start == pytest.approx(boosting.init_score(criterion, [0, 1, 1]), abs=1e-12)
    objective = boosting.sklearn(criterion, "lightgbm")
    grad, hess = objective(np.array([1.0, -1.0, 0.0]), np.array([0.5, 1.5, 2.5]))
    assert grad[1] == hess[1] == 0 and (hess[[0, 2]] != 0).all()
    with pytest.raises(ValueError, match=r"label -2\.0 at position 1"):
        objective(np.array([1.0, -2.0]), np.array([0.5, 1.5]))


def test_init_score_of_one_class_is_finite():
    assert boosting.init_score(BINARY, [0, 0]) == pytest.approx(np.log(1e-15))
    start = boosting.init_score(CLASSES, [0, 0], num_class=3)
    np.testing.assert_allclose(start, [0.0, np.log(1e-15), np.log(1e-15)])


def test_init_score_of_probabilities():
    start = boosting.init_score(CLASSES, [[0.2, 0.8], [0.4, 0.6]])
    np.testing.assert_allclose(np.exp(start), [0.3, 0.7])


def test_predict_proba():
    raw = np.random.default_rng(0).standard_normal((6, 3))
    np.testing.assert_allclose(boosting.predict_proba(CLASSES, raw), oracle.softmax(raw))
    criterion = fastloss.CrossEntropyLoss(temperature=2.0, softcap=3.0)
    np.testing.assert_allclose(
        boosting.predict_proba(criterion, raw), oracle.softmax(3 * np.tanh(raw / 3) / 2)
    )
    np.testing.assert_allclose(
        boosting.predict_proba(fastloss.SoftmaxFocalLoss(), raw), oracle.softmax(raw)
    )
    two = boosting.predict_proba(fastloss.SigmoidFocalLoss(), raw[:, 0])
    np.testing.assert_allclose(two[:, 1], oracle.sigmoid(raw[:, 0]))
    np.testing.assert_allclose(two.sum(axis=1), 1.0)


# ---- f) what a dataset holds -----------------------------------------------------------------


class Dataset:
    """Labels and weights, as the libraries' datasets give them."""

    def __init__(self, labels, weights=None):
        self.labels, self.weights = labels, weights

    def get_label(self):
        return self.labels

    def get_weight(self):
        return self.weights


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_results_lie_like_the_scores(library):
    pytest.importorskip(library)
    objective = getattr(boosting, library)(CLASSES)
    labels = np.array([0, 1, 2, 1], np.float32)
    scores = np.random.default_rng(0).standard_normal((4, 3))
    grad, hess = objective(np.asfortranarray(scores), Dataset(labels))
    assert grad.flags.f_contiguous and hess.flags.f_contiguous
    grad, hess = objective(scores.astype(np.float32), Dataset(labels, np.zeros(0)))
    assert grad.dtype == hess.dtype == np.float32


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_floor(library):
    """The focal loss is concave where it is far from right: there the floor takes over."""
    pytest.importorskip(library)
    criterion = fastloss.SigmoidFocalLoss()
    scores, labels = np.linspace(-6, 6, 40), np.ones(40)
    exact = criterion.grad_and_hess(scores, labels)[1]
    if library == "lightgbm":
        exact = exact.astype(np.float32)  # the type that it keeps them in
    assert (exact < 0).any()
    for floor, least in ((None, exact.min()), (0.0, 0.0), (0.01, exact.dtype.type(0.01))):
        objective = getattr(boosting, library)(criterion, floor=floor)
        hess = objective(scores, Dataset(labels))[1]
        assert hess.min() == least
        np.testing.assert_array_equal(hess[exact >= least], exact[exact >= least])
    hess = getattr(boosting, library)(criterion)(scores, Dataset(labels))[1]
    assert hess.min() > 0
    # What has no weight stays without effect.
    weights = np.where(np.arange(40) % 2, 1.0, 0.0)
    hess = getattr(boosting, library)(criterion, floor=0.01)(scores, Dataset(labels, weights))[1]
    assert (hess[::2] == 0).all() and (hess[1::2] >= np.float32(0.01)).all()


@pytest.mark.parametrize(
    "criterion",
    [CLASSES, fastloss.SoftmaxFocalLoss(), fastloss.CrossEntropyLoss(weight=[1.0, 2.0, 3.0]),
     fastloss.CrossEntropyLoss(label_smoothing=0.1),
     fastloss.CrossEntropyLoss(weight=[1.0, 2.0, 3.0], label_smoothing=0.1),
     fastloss.CrossEntropyLoss(temperature=2.0), fastloss.CrossEntropyLoss(softcap=3.0),
     fastloss.CrossEntropyLoss(z_loss=0.1)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_derivatives_are_those_of_the_criterion(library, criterion, order):
    """Times the library's factor and raised to the floor, whatever way the kernel takes."""
    pytest.importorskip(library)
    rng = np.random.default_rng(2)
    scores = np.array(rng.standard_normal((300, 3)) * 4, order=order)
    labels, weights = rng.integers(0, 3, 300).astype(np.float32), rng.uniform(0, 2, 300)
    weights[::5] = 0
    objective = getattr(boosting, library)(criterion, floor=0.02)
    grad, hess = (a.reshape(300, 3) for a in objective(scores, Dataset(labels, weights)))
    want_grad, want_hess = criterion.grad_and_hess(scores, labels.astype(int), weights)
    want_hess = want_hess * (1.5 if library == "lightgbm" else 2.0)
    low = (want_hess < 0.02) & (weights[:, None] > 0)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-6, atol=1e-40)
    np.testing.assert_allclose(hess, np.where(low, 0.02, want_hess), rtol=1e-6)
    if library == "lightgbm":
        assert grad.dtype == hess.dtype == np.float32


# ---- g) wrong arguments, and libraries that are missing --------------------------------------

SCORES = np.zeros((3, 4))
WRONG_DATA = {
    "no labels": (CLASSES, SCORES, None, None, ValueError, "no labels"),
    "empty labels": (BINARY, SCORES[:, 0], np.zeros(0), None, ValueError, "no labels"),
    "not whole": (CLASSES, SCORES, [0.0, 1.5, 2.0], None, ValueError, "1.5 at position 1"),
    "NaN": (CLASSES, SCORES, [0.0, np.nan, 2.0], None, ValueError, "nan at position 1"),
    "no class": (CLASSES, SCORES, [0.0, 4.0, 2.0], None, IndexError, "4"),
    "not binary": (BINARY, SCORES[:, 0], [0.0, 2.0, 1.0], None, ValueError, "2.0 at position 1"),
    "binary NaN": (BINARY, SCORES[:, 0], [0.0, np.nan, 1.0], None, ValueError, "nan"),
    "one score": (CLASSES, SCORES[:, 0], [0.0, 1.0, 1.0], None, ValueError, "set num_class"),
    "classes": (BINARY, SCORES, [0.0, 1.0, 1.0], None, ValueError, "one score for each label"),
    "number": (CLASSES, SCORES, [0.0, 1.0], None, ValueError, r"\(3, 4\) do not fit \(2,\)"),
    "focal probabilities": (
        fastloss.SoftmaxFocalLoss(), SCORES, np.eye(3, 4), None, ValueError, "not probabilities",
    ),
    "focal, one score": (
        fastloss.SoftmaxFocalLoss(), SCORES[:, 0], [0.0, 1.0, 1.0], None, ValueError,
        "or use SigmoidFocalLoss",
    ),
    "three axes": (CLASSES, SCORES[None], [0.0, 1.0, 1.0], None, ValueError, r"\(1, 3, 4\)"),
    "class weights": (
        fastloss.CrossEntropyLoss(weight=[1, 2]), SCORES, [0.0, 1.0, 2.0], None, ValueError,
        r"\(4,\), got \(2,\)",
    ),
    "infinite label": (CLASSES, SCORES, [0.0, np.inf, 2.0], None, ValueError, "inf at position 1"),
    "negative": (CLASSES, SCORES, [0.0, -1.0, 2.0], None, IndexError, "-1"),
    "weights": (CLASSES, SCORES, [0.0, 1.0, 2.0], [1.0, 2.0], ValueError, r"\(3,\), got \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_DATA)
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_wrong_data(library, case):
    pytest.importorskip(library)
    criterion, scores, labels, weights, error, message = WRONG_DATA[case]
    labels = None if labels is None else np.asarray(labels, np.float32)
    dataset = Dataset(labels, None if weights is None else np.asarray(weights))
    for made in (getattr(boosting, library)(criterion), boosting.metric(criterion, library)):
        with pytest.raises(error, match=message):
            made(scores, dataset)


def test_an_xgboost_matrix_without_labels(xgb):
    matrix = xgb.DMatrix(np.random.default_rng(0).standard_normal((20, 2)))
    with pytest.raises(ValueError, match="no labels"):
        xgb.train({"base_score": 0}, matrix, 1, obj=boosting.xgboost(BINARY))


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_num_class_that_does_not_fit(request, library):
    """Fewer classes than the labels have, or a loss over classes for a single score."""
    module = request.getfixturevalue("lgb" if library == "lightgbm" else "xgb")
    x, y, _ = data("multiclass")

    def train(classes):
        if library == "lightgbm":
            parameters = {"verbosity": -1, "num_class": classes}
            parameters["objective"] = boosting.lightgbm(CLASSES)
            module.train(parameters, module.Dataset(x, y), 1)
        else:
            parameters = {"base_score": 0, **({"num_class": classes} if classes > 1 else {})}
            module.train(parameters, module.DMatrix(x, y), 1, obj=boosting.xgboost(CLASSES))

    with pytest.raises(IndexError, match="3"):
        train(3)
    with pytest.raises(ValueError, match="set num_class"):
        train(1)


@pytest.mark.parametrize("function", [boosting.lightgbm, boosting.xgboost])
def test_wrong_criteria(function):
    with pytest.raises(TypeError, match="NLLLoss has no second derivatives"):
        function(fastloss.NLLLoss())
    with pytest.raises(TypeError, match="must be a criterion"):
        function("binary")
    with pytest.raises(ValueError, match="axis=0 has no meaning"):
        function(fastloss.CrossEntropyLoss(axis=0))
    with pytest.raises(ValueError, match="axis=2 has no meaning"):
        function(fastloss.SoftmaxFocalLoss(axis=2))


def test_wrong_options():
    with pytest.raises(ValueError, match="'catboost'"):
        boosting.sklearn(BINARY, "catboost")
    with pytest.raises(TypeError, match="None"):
        boosting.metric(BINARY, None)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_wrong_floor(library):
    pytest.importorskip(library)
    with pytest.raises(ValueError, match="floor must be finite and at least 0, got -1"):
        getattr(boosting, library)(BINARY, floor=-1)


def test_wrong_arguments_of_init_score():
    with pytest.raises(ValueError, match="y is empty"):
        boosting.init_score(BINARY, [])
    with pytest.raises(ValueError, match=r"2 at position 1"):
        boosting.init_score(BINARY, [0, 2])
    with pytest.raises(IndexError, match="label 3 at position 1 is not one of 3 classes"):
        boosting.init_score(CLASSES, [0, 3], num_class=3)
    with pytest.raises(ValueError, match="num_class=2 has no meaning"):
        boosting.init_score(BINARY, [0, 1], num_class=2)
    with pytest.raises(ValueError, match=r"\(2,\), got \(3,\)"):
        boosting.init_score(BINARY, [0, 1], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="weight is positive"):
        boosting.init_score(CLASSES, [0, 1], [0.0, 0.0])
    with pytest.raises(TypeError, match="y must be numbers, got dtype <U1"):
        boosting.init_score(CLASSES, ["a", "b"])
    with pytest.raises(TypeError, match="num_class must be an integer, got '3'"):
        boosting.init_score(CLASSES, [0, 1], num_class="3")
    for criterion in (BINARY, CLASSES):
        for bad in (-1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match=f"at least 0, got {bad} at position 1"):
                boosting.init_score(criterion, [0, 1], [1.0, bad])
        with pytest.raises(TypeError, match="sample_weight must be real numbers"):
            boosting.init_score(criterion, [0, 1], ["a", "b"])
    with pytest.raises(TypeError, match=r"such as .* got <class .*: call the class"):
        boosting.init_score(fastloss.CrossEntropyLoss, [0, 1])


def test_wrong_scores_of_predict_proba():
    with pytest.raises(ValueError, match=r"\(N,\), got \(3, 4\)"):
        boosting.predict_proba(BINARY, SCORES)


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_missing_library(monkeypatch, library):
    """None in sys.modules is what makes an import fail."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'fastloss\[{library}\]'"):
        getattr(boosting, library)(BINARY)


@pytest.mark.parametrize(("library", "version"), [("lightgbm", "3.3.5"), ("xgboost", "1.7.6")])
def test_old_library(monkeypatch, library, version):
    monkeypatch.setitem(sys.modules, library, type("Old", (), {"__version__": version}))
    with pytest.raises(ImportError, match=f"got {version}"):
        getattr(boosting, library)(BINARY)


def test_xgboost_before_2_1_has_long_vectors(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", type("Old", (), {"__version__": "2.0.3"}))
    grad, hess = boosting.xgboost(CLASSES)(SCORES, Dataset(np.array([0.0, 1.0, 2.0])))
    assert grad.shape == hess.shape == (12,)
