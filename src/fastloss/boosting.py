"""Criteria as objectives and metrics for LightGBM and XGBoost.

`lightgbm`, `xgboost` and `sklearn` create objectives and `metric` creates metrics: small objects
that can be pickled and that the libraries call.  `init_score` computes the constant that boosting
starts from, and `predict_proba` turns raw scores into probabilities.

The built-in objectives multiply the second derivative by a factor of their own.  Objectives created
here use the same factor, so that equal settings grow the same trees.

Layout: a) objectives, b) metrics, c) constant start and probabilities, d) labels, scores and
weights, e) criteria and libraries.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses.criteria import (
    BCEWithLogitsLoss,
    Criterion,
    CrossEntropyLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
)
from fastloss.special import sigmoid, softmax

__all__ = ["init_score", "lightgbm", "metric", "predict_proba", "sklearn", "xgboost"]


def __dir__() -> list[str]:
    return __all__


Library = Literal["lightgbm", "xgboost"]

#: Smallest second derivative, as in XGBoost's own objectives.
_FLOOR = 1e-16
#: Smallest distance of a probability from 0 and 1, as in LightGBM.
_LEAST = 1e-15
_NO_PROBABILITIES = "SoftmaxFocalLoss needs a class for each sample, not probabilities"


# ---- a) objectives ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Objective:
    """Gradient and second derivatives of a criterion, in the form that a library expects."""

    criterion: Criterion
    library: Library
    floor: float | None
    #: Whether results are returned as one long vector, as XGBoost 2.0 expects.
    flat: bool

    def derivatives(self, scores: Any, labels: Any, weight: Any) -> tuple[Array, Array]:
        scores = _scores(self.criterion, scores)
        target = _target(self.criterion, labels, scores)
        options = {k: v for k, v in self.criterion._options.items() if k != "reduction"}
        grad, hess = self.criterion._loss.grad_and_hess(
            scores, target, None, sample_weight=_weights(self.criterion, weight, scores),
            curve=self._factor(scores), floor=-math.inf if self.floor is None else self.floor,
            # LightGBM stores float32 and would round to it itself.
            narrow=self.library == "lightgbm", **options,
        )  # fmt: skip
        return (grad.ravel(), hess.ravel()) if self.flat else (grad, hess)

    def _factor(self, scores: Array) -> float:
        """Return the factor of the second derivative in the library's own objective."""
        if not _over_classes(self.criterion) or scores.shape[1] < 2:
            return 1.0
        return scores.shape[1] / (scores.shape[1] - 1) if self.library == "lightgbm" else 2.0


class _DatasetObjective(_Objective):
    """The form for training functions: it takes scores and the dataset with labels and weights."""

    def __call__(self, preds: Array, dataset: Any) -> tuple[Array, Array]:
        return self.derivatives(preds, *_contents(dataset))


class _SklearnObjective(_Objective):
    """The form for scikit-learn classes.  XGBoost passes the weights by name."""

    def __call__(
        self, y_true: Array, y_pred: Array, sample_weight: Array | None = None
    ) -> tuple[Array, Array]:
        return self.derivatives(y_pred, y_true, sample_weight)


def lightgbm(
    criterion: Criterion, *, floor: float | None = _FLOOR
) -> Callable[[Any, Any], tuple[Array, Array]]:
    """Create an objective for ``lightgbm.train`` from a criterion.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion : criterion of fastloss
        Cross-entropy, BCE with logits or one of the focal losses.  Its `reduction` has no effect,
        because boosting uses the derivatives of each sample.
    floor : float or None, default 1e-16
        Smallest second derivative: smaller ones, including negative ones of the focal losses, are
        replaced by it.  None leaves them as they are.  Then the sum in a leaf, by which LightGBM
        divides, may be 0 or negative.

    Returns
    -------
    callable
        ``objective(preds, dataset)``, which returns gradients and second derivatives as float32,
        the type that LightGBM stores.  It takes labels and weights from the dataset.  It can be
        pickled.

    Raises
    ------
    ImportError
        If LightGBM 4 or later is not installed.
    TypeError
        If the criterion has no second derivatives.

    See Also
    --------
    fastloss.boosting.xgboost : the same for XGBoost.
    fastloss.boosting.sklearn : for the scikit-learn classes of both.
    fastloss.boosting.metric : the loss as an evaluation metric.

    Notes
    -----
    The second derivative of losses over C classes is multiplied by C / (C - 1), as in LightGBM's
    own objective.  With a custom objective LightGBM starts from 0: see `init_score`.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> def train(dataset):
    ...     objective = boosting.lightgbm(fastloss.BCEWithLogitsLoss(pos_weight=3))
    ...     return lightgbm.train({"objective": objective}, dataset, num_boost_round=50)
    """
    return _objective(_DatasetObjective, criterion, "lightgbm", floor)


def xgboost(
    criterion: Criterion, *, floor: float | None = _FLOOR
) -> Callable[[Any, Any], tuple[Array, Array]]:
    """Create an objective for ``xgboost.train`` from a criterion.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion, floor : see `lightgbm`

    Returns
    -------
    callable
        ``objective(predt, dtrain)``, which returns gradients and second derivatives.

    Raises
    ------
    ImportError
        If XGBoost 2 or later is not installed.
    TypeError
        If the criterion has no second derivatives.

    See Also
    --------
    fastloss.boosting.lightgbm : the same for LightGBM; describes the arguments.
    fastloss.boosting.sklearn : for the scikit-learn classes of both.

    Notes
    -----
    The second derivative of losses over classes is multiplied by 2, as in XGBoost's own objective.
    Pass ``base_score=0`` to XGBoost, or a ``base_margin`` from `init_score`.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> def train(matrix):
    ...     objective = boosting.xgboost(fastloss.CrossEntropyLoss(label_smoothing=0.1))
    ...     return xgboost.train({"num_class": 3, "base_score": 0}, matrix, obj=objective)
    """
    return _objective(_DatasetObjective, criterion, "xgboost", floor)


def sklearn(
    criterion: Criterion, library: Library, *, floor: float | None = _FLOOR
) -> Callable[..., tuple[Array, Array]]:
    """Create an objective for the scikit-learn classes of LightGBM or XGBoost.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion, floor : see `lightgbm`
    library : {"lightgbm", "xgboost"}
        The library of the class: ``LGBMClassifier`` or ``XGBClassifier``.

    Returns
    -------
    callable
        ``objective(y_true, y_pred, sample_weight=None)``, for the argument `objective` of the
        class.  Pass ``base_score=0.5`` to ``XGBClassifier`` as well: there it is a probability.

    Raises
    ------
    ImportError
        If the library is not installed.
    TypeError
        If the criterion has no second derivatives.
    ValueError
        If `library` is neither of the two.

    See Also
    --------
    fastloss.boosting.lightgbm : for ``lightgbm.train``.
    fastloss.boosting.xgboost : for ``xgboost.train``.

    Notes
    -----
    The classes of XGBoost 2.0 do not pass sample weights to an objective: use ``xgboost.train``
    there.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> def classifier():
    ...     objective = boosting.sklearn(fastloss.SigmoidFocalLoss(), "lightgbm")
    ...     return lightgbm.LGBMClassifier(objective=objective)
    """
    return _objective(_SklearnObjective, criterion, library, floor)


def _objective(form: Any, criterion: Any, library: Any, floor: Any) -> Any:
    _check(criterion)
    version = _version(library)
    if floor is not None:
        floor = _arrays.not_negative(floor, "floor")
    return form(criterion, library, floor, library == "xgboost" and version < (2, 1))


# ---- b) metrics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Metric:
    """The mean loss, in the form that a library expects."""

    criterion: Criterion
    library: Library

    @property
    def __name__(self) -> str:
        return self.criterion._loss.name

    def loss(self, scores: Any, labels: Any, weight: Any) -> float:
        scores = _scores(self.criterion, scores)
        target = _target(self.criterion, labels, scores)
        weights = _weights(self.criterion, weight, scores)
        return float(_mean(self.criterion)(scores, target, weights))


class _DatasetMetric(_Metric):
    def __call__(self, preds: Array, dataset: Any) -> Any:
        value = self.loss(preds, *_contents(dataset))
        if self.library == "lightgbm":
            return self.__name__, value, False
        return self.__name__, value


class _SklearnMetric(_Metric):
    def __call__(self, y_true: Array, y_pred: Array, sample_weight: Array | None = None) -> Any:
        value = self.loss(y_pred, y_true, sample_weight)
        return (self.__name__, value, False) if self.library == "lightgbm" else value


def metric(criterion: Criterion, library: Library, *, sklearn: bool = False) -> Callable[..., Any]:
    """Create an evaluation metric: the criterion's mean loss of raw scores; lower is better.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion : see `lightgbm`
    library : {"lightgbm", "xgboost"}
        The library that will call the metric.
    sklearn : bool, default False
        Whether the metric is for the library's scikit-learn classes.

    Returns
    -------
    callable
        A function for ``lightgbm.train(feval=...)``, ``xgboost.train(custom_metric=...)``, the
        `eval_metric` of ``LGBMClassifier.fit``, or that of ``XGBClassifier``.

    Raises
    ------
    ImportError
        If the library is not installed.
    TypeError
        If the criterion cannot be an objective.
    ValueError
        If `library` is neither of the two.

    See Also
    --------
    fastloss.boosting.lightgbm : the objective that goes with it.
    fastloss.boosting.xgboost : the objective that goes with it.

    Notes
    -----
    Both libraries pass raw scores to a metric if the objective is a custom one, and probabilities
    otherwise.  Use the metric with an objective from this module.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> def train(dataset, held_out):
    ...     criterion = fastloss.BCEWithLogitsLoss()
    ...     parameters = {"objective": boosting.lightgbm(criterion), "metric": "None"}
    ...     feval = boosting.metric(criterion, "lightgbm")
    ...     return lightgbm.train(parameters, dataset, valid_sets=[held_out], feval=feval)
    """
    _check(criterion)
    _version(library)
    return (_SklearnMetric if sklearn else _DatasetMetric)(criterion, library)


# ---- c) start and end ------------------------------------------------------------------------


def init_score(
    criterion: Criterion, y: ArrayLike, sample_weight: ArrayLike | None = None, *,
    num_class: int | None = None,
) -> float | Array:  # fmt: skip
    """Return the constant score with the smallest loss, for boosting to start from.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion : see `lightgbm`
    y : array_like
        Labels, shape (N,): classes, or numbers from 0 to 1 for the binary losses.
        `CrossEntropyLoss` also takes class probabilities, shape (N, C).
    sample_weight : array_like, optional
        Weights, shape (N,), not negative.
    num_class : int, optional
        Number of classes for a loss over classes; the largest label plus one by default.

    Returns
    -------
    float or ndarray
        One score; for a loss over classes, one score for each class.  The score of a class without
        samples is the logarithm of 1e-15, and a single score is between -34.5 and 34.5.

    Raises
    ------
    TypeError
        If labels, weights or the number of classes are not numbers.
    ValueError
        If there are no labels, a label is not valid for the criterion, or a weight is negative.
    IndexError
        If a label is not one of the classes.

    See Also
    --------
    fastloss.boosting.predict_proba : probabilities from raw scores.

    Notes
    -----
    Neither library stores the constant in the model.  Pass it to the dataset for each sample
    (`init_score` in LightGBM, `base_margin` in XGBoost), and add it to raw predictions.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> round(boosting.init_score(fastloss.BCEWithLogitsLoss(), [0, 0, 0, 1]), 4)
    -1.0986
    >>> boosting.init_score(fastloss.CrossEntropyLoss(), [0, 1, 1, 1]).round(4)
    array([-1.3863, -0.2877])
    """
    _check(criterion)
    labels = _arrays.as_array(y, "y")
    if not labels.size:
        raise ValueError("init_score needs labels, but y is empty")
    if labels.dtype.kind not in "biuf":
        raise TypeError(f"y must be numbers, got dtype {labels.dtype}")
    if num_class is not None:
        num_class = _arrays.integer(num_class, "num_class")
    if _over_classes(criterion):
        return _init_scores(criterion, labels, sample_weight, num_class)
    if num_class is not None:
        raise ValueError(f"num_class={num_class!r} has no meaning for {type(criterion).__name__}")
    labels = labels.ravel()
    target = _target(criterion, labels, labels)
    weights = _weights_of_labels(sample_weight, target.shape)

    def slope(score: float) -> float:
        scores = np.full(target.size, score)
        return float(criterion.grad_and_hess(scores, target, weights)[0].sum())

    low, high = math.log(_LEAST), -math.log(_LEAST)
    for _ in range(60):  # halves the interval of length 69 sixty times
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _init_scores(criterion: Any, labels: Array, sample_weight: Any, num_class: Any) -> Array:
    """Return the scores for losses over classes.

    For the cross-entropy they are the logarithms of the classes' shares of the targets.
    """
    target: Array
    focal = isinstance(criterion, SoftmaxFocalLoss)
    if labels.ndim == 2:
        if focal:
            raise ValueError(f"{_NO_PROBABILITIES}, got y of shape {labels.shape}")
        classes = labels.shape[1]
        if num_class is not None and num_class != classes:
            raise ValueError(f"num_class={num_class!r}, but y has {classes} columns")
        target = np.asarray(labels, np.float64)
        live = np.ones(len(labels), bool)
    else:
        target = _classes(labels)
        live = target != criterion.ignore_index
        top = int(target[live].max(initial=-1)) + 1
        classes = top if num_class is None else num_class
        wrong = np.flatnonzero(live & ((target < 0) | (target >= classes)))
        if wrong.size:
            raise IndexError(
                f"label {target[wrong[0]]} at position {wrong[0]} is not one of {classes} classes"
            )
    weights = _weights_of_labels(sample_weight, live.shape)
    if target.ndim == 2:
        share = weights @ target
    else:
        share = np.bincount(target[live], weights[live], classes)
    smoothing = 0.0 if focal else criterion.label_smoothing
    share = (1 - smoothing) * share + smoothing / max(classes, 1) * share.sum()
    option = "alpha" if focal else "weight"
    if criterion._options[option] is not None:
        share = share * _arrays.class_weights(criterion._options[option], classes, option)
    total = share.sum()
    if not total > 0:
        raise ValueError("init_score needs a label whose weight is positive")
    if focal:
        return _focal_scores(share / total, criterion.gamma)
    scores = criterion.temperature * np.log(np.maximum(share / total, _LEAST))
    if criterion.softcap is not None:
        most = np.nextafter(1.0, 0.0)
        scores = criterion.softcap * np.arctanh(np.clip(scores / criterion.softcap, -most, most))
    return scores


def _weights_of_labels(sample_weight: Any, shape: tuple[int, ...]) -> Array:
    """Return one weight per label; 1 by default."""
    if sample_weight is None:
        return np.ones(shape)
    weights = _arrays.as_float64(sample_weight, "sample_weight")
    if weights.shape != shape:
        raise ValueError(f"sample_weight must have shape {shape}, got {weights.shape}")
    wrong = np.flatnonzero(~((weights >= 0) & (weights < math.inf)))
    if wrong.size:
        raise ValueError(
            f"sample_weight must be finite and at least 0, got {weights[wrong[0]]} at position"
            f" {wrong[0]}"
        )
    return weights


def _focal_scores(share: Array, gamma: float) -> Array:
    """Return the logarithms of the probabilities with the smallest focal loss for these shares.

    Let F be the focal loss as a function of the cross-entropy.  At the minimum,
    share_c F'(p_c) / p_c is the same number for all classes.  Bisection finds that number and, for
    each number that it tries, every p_c.
    """
    live = share > 0

    def log_probs(level: float) -> Array:
        low, high = np.full(share.shape, math.log(_LEAST)), np.full(share.shape, -_LEAST)
        for _ in range(60):
            x = (low + high) / 2
            p, u = np.exp(x), -np.expm1(x)
            slope = u**gamma * (1 - gamma * p / u * x)
            more = share * slope > level * p
            low, high = np.where(more, x, low), np.where(more, high, x)
        return np.where(live, (low + high) / 2, math.log(_LEAST))

    least, most = -40.0, 40.0  # logarithms of the number
    for _ in range(60):
        middle = (least + most) / 2
        if np.exp(log_probs(math.exp(middle))).sum() > 1:
            least = middle
        else:
            most = middle
    return log_probs(math.exp((least + most) / 2))


def predict_proba(criterion: Criterion, raw: ArrayLike) -> Array:
    """Return the probabilities of the classes, from raw scores.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    criterion : see `lightgbm`
    raw : array_like
        Raw scores, shape (N, C) for losses over classes and (N,) for binary losses.

    Returns
    -------
    ndarray
        Probabilities, shape (N, C); for binary losses shape (N, 2), for class 0 and class 1.

    Raises
    ------
    ValueError
        If the scores do not have the shape that the criterion needs.

    See Also
    --------
    fastloss.boosting.init_score : the constant that boosting starts from.

    Examples
    --------
    >>> import fastloss
    >>> from fastloss import boosting
    >>> boosting.predict_proba(fastloss.BCEWithLogitsLoss(), [0.0, 2.0]).round(4)
    array([[0.5   , 0.5   ],
           [0.1192, 0.8808]])
    """
    _check(criterion)
    scores = _arrays.floating(raw, "raw")
    if _over_classes(criterion):
        z = _scores(criterion, scores)
        if isinstance(criterion, CrossEntropyLoss):
            if criterion.softcap is not None:
                z = criterion.softcap * np.tanh(z / criterion.softcap)
            z = z / criterion.temperature
        return np.asarray(softmax(z, axis=1))
    if scores.ndim != 1:
        raise ValueError(f"raw must have shape (N,), got {scores.shape}")
    return np.stack([sigmoid(-scores), sigmoid(scores)], axis=1)


# ---- d) labels, scores and weights -----------------------------------------------------------


def _contents(dataset: Any) -> tuple[Any, Any]:
    """Return labels and weights of a dataset, None for those it does not have."""
    return dataset.get_label(), dataset.get_weight()


def _scores(criterion: Criterion, scores: Any) -> Array:
    """Check the shape of raw scores."""
    scores = np.asarray(scores)
    if _over_classes(criterion):
        if scores.ndim != 2:
            binary = (
                BCEWithLogitsLoss if isinstance(criterion, CrossEntropyLoss) else SigmoidFocalLoss
            )
            raise ValueError(
                f"{type(criterion).__name__} needs scores of shape (N, C), got {scores.shape}: set"
                f" num_class, or use {binary.__name__} for a single score"
            )
    elif scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    return scores


def _target(criterion: Criterion, labels: Any, scores: Array) -> Array:
    """Check labels, and return them in the form that the criterion takes."""
    labels = np.asarray(labels if labels is not None else ())
    if not labels.size and scores.size:
        raise ValueError("the dataset has no labels")
    if labels.size == scores.size and scores.ndim == 2 and scores.shape[1] > 1:
        labels = labels.reshape(scores.shape)  # several columns of labels arrive as one
    if _over_classes(criterion):
        if labels.shape == scores.shape:
            if isinstance(criterion, SoftmaxFocalLoss):
                raise ValueError(f"{_NO_PROBABILITIES}, got labels of shape {labels.shape}")
            return labels
        if labels.shape != scores.shape[:1]:
            raise ValueError(f"scores of shape {scores.shape} do not fit {labels.shape} labels")
        return _classes(labels)
    if labels.shape != scores.shape:
        raise ValueError(
            f"{type(criterion).__name__} needs one score for each label, got scores of shape"
            f" {scores.shape} and labels of shape {labels.shape}"
        )
    if not labels.size or (labels.min() >= 0 and labels.max() <= 1):
        return labels
    wrong = ~((labels >= 0) & (labels <= 1))
    if criterion.ignore_index is not None:
        wrong &= labels != criterion.ignore_index
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"label {labels.ravel()[place]} at position {place} does not lie between 0 and 1"
        )
    return labels


def _classes(labels: Array) -> Array:
    """Return labels, which the libraries keep as floating-point numbers, as class indices."""
    if labels.dtype.kind in "iu":
        return labels
    with np.errstate(invalid="ignore"):  # NaN is found by the comparison below
        classes = labels.astype(np.int64)
        wrong = classes.astype(labels.dtype) != labels
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"label {labels[place]} at position {place} is not a whole number")
    return classes


def _weights(criterion: Criterion, weight: Any, scores: Array) -> Any:
    """Return weights that broadcast to the losses; None if the library has no weights."""
    if weight is None or not np.size(weight):
        return None
    weight = np.asarray(weight)
    if weight.shape != scores.shape[:1]:
        raise ValueError(f"weights must have shape {scores.shape[:1]}, got {weight.shape}")
    if scores.ndim == 2 and not _over_classes(criterion):
        return weight[:, None]  # one loss per column
    return weight


# ---- e) criteria and libraries ---------------------------------------------------------------


def _check(criterion: Any) -> None:
    if not isinstance(criterion, Criterion):
        raise TypeError(
            f"criterion must be a criterion, such as CrossEntropyLoss(), got {criterion!r}"
            + (": call the class" if isinstance(criterion, type) else "")
        )
    if not criterion._loss.second_order:
        raise TypeError(
            f"{type(criterion).__name__} has no second derivatives: use CrossEntropyLoss,"
            " SoftmaxFocalLoss, BCEWithLogitsLoss or SigmoidFocalLoss"
        )
    if criterion._options.get("axis") not in (None, 1, -1):
        raise ValueError(
            f"axis={criterion.axis} has no meaning for boosting: scores have the shape (N, C)"
        )


def _over_classes(criterion: Criterion) -> bool:
    """Return whether the loss is over classes, with a score for each class of a sample."""
    return criterion._loss.over_classes


def _mean(criterion: Criterion) -> Criterion:
    return type(criterion)(**{**criterion._options, "reduction": "mean"})


#: The extras, each with the name of the library and the oldest version that works.
_LIBRARIES = {"lightgbm": ("LightGBM", 4), "xgboost": ("XGBoost", 2)}


def _version(library: Any) -> tuple[int, int]:
    """Return the installed version of a library; raise if it is missing or too old."""
    if not isinstance(library, str) or library not in _LIBRARIES:
        _arrays.one_of(library, tuple(_LIBRARIES), "library")
    name, least = _LIBRARIES[library]
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"fastloss.boosting.{library} needs {name}, which is not installed:"
            f" pip install 'fastloss[{library}]', or {library}"
        ) from error
    major, minor = (int(part) for part in module.__version__.split(".")[:2])
    if major < least:
        raise ImportError(f"fastloss.boosting needs {name} {least}, got {module.__version__}")
    return major, minor
