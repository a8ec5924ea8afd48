"""Criterion classes with PyTorch's names: a loss with its options, to be called on batches.

A criterion is its options and nothing else: immutable, picklable, comparable by what it does.  The
work is done by the functions in the modules beside this one; each class names its functions in
`_loss`.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses import binary, categorical, divergence
from fastloss.losses._reduction import Totals

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "NLLLoss",
    "SigmoidFocalLoss",
]


class Criterion:
    """What all criterions share: options that stay as they are, and three calls."""

    #: Module and name of the loss.
    _loss: ClassVar[tuple[ModuleType, str]]
    #: Options and their defaults, in the order of the repr.
    _defaults: ClassVar[dict[str, Any]]
    #: Values of `reduction`.
    _reductions: ClassVar[tuple[str, ...]] = _arrays.REDUCTIONS

    _options: dict[str, Any]

    def __init_subclass__(cls) -> None:
        # What help() and editors show. The type checker knows no such attribute of a class.
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default)
                for option, default in cls._defaults.items()
            ]
        )

    def __init__(self, *args: Any, **options: Any):
        name = type(self).__name__
        if args:
            raise TypeError(f"{name} takes keyword arguments only, got {args[0]!r}")
        for old in ("size_average", "reduce"):
            if old in options:
                raise TypeError(
                    f"{name} has no {old}={options[old]!r}: write"
                    f" reduction={_replacement(options)!r} instead"
                )
        for option in options:
            if option not in self._defaults:
                known = ", ".join(self._defaults)
                raise TypeError(f"{name} has no option {option!r}; it has {known}")
        options = self._defaults | options
        if options["reduction"] not in self._reductions:
            _arrays.one_of(options["reduction"], self._reductions, "reduction")
        for option, value in options.items():
            if option in ("weight", "pos_weight") and value is not None:
                # A copy that nobody can change: what the criterion is stays what it was.
                options[option] = np.array(_arrays.as_float64(value, option))
                options[option].setflags(write=False)
                if "ignore_index" in options and options[option].ndim != 1:
                    raise ValueError(
                        "weight must have one number per class, shape (C,), got"
                        f" {options[option].shape}"
                    )
        object.__setattr__(self, "_options", options)

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one to change {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._options]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._options)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self._options, other._options
        return all(_same(mine[option], theirs[option]) for option in self._defaults)

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(value) for value in self._options.values())))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{option}={value.tolist() if isinstance(value, np.ndarray) else value!r}"
            for option, value in self._options.items()
            if not _same(value, self._defaults[option]) or option == "reduction"
        )
        return f"{type(self).__name__}({shown})"

    def _call(self, suffix: str, *args: Any, **options: Any) -> Any:
        module, name = self._loss
        return getattr(module, name + suffix)(*args, **self._options, **options)

    def __call__(self, x: Any, t: Any) -> np.floating[Any] | Array:
        """Return the loss of logits (or probabilities) `x` and target `t`."""
        return self._call("", x, t)

    def value_and_grad(
        self, x: Any, t: Any, out: Array | None = None
    ) -> tuple[np.floating[Any] | Array, Array]:
        """Return the loss and the gradient of its sum with respect to `x`, written to `out`."""
        return self._call("_value_and_grad", x, t, out=out)

    def backward(self, grad_output: Any, x: Any, t: Any, out: Array | None = None) -> Array:
        """Return the gradient with respect to `x` for an upstream gradient, written to `out`."""
        return self._call("_backward", grad_output, x, t, out=out)

    def _totals(self, x: Any, t: Any) -> Totals:
        """Return the two float64 sums that the mean is the quotient of."""
        module, name = self._loss
        options = {k: v for k, v in self._options.items() if k != "reduction"}
        return getattr(module, name + "_totals")(x, t, **options)


def _restore(cls: type[Criterion], options: dict[str, Any]) -> Criterion:
    return cls(**options)


def _replacement(options: dict[str, Any]) -> str:
    """Return the `reduction` that PyTorch's two old arguments stand for."""
    if options.get("reduce") is False:
        return "none"
    return "sum" if options.get("size_average") is False else "mean"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is not None and b is not None and np.array_equal(a, b)
    return bool(a == b)


def _hashable(value: Any) -> Any:
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


class CrossEntropyLoss(Criterion):
    """`fastloss.cross_entropy` with its options.

    Parameters
    ----------
    weight : array_like, shape (C,), optional
        Weight of each class.
    ignore_index : int, default -100
        Samples with this class index count as nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `fastloss.cross_entropy`.
    label_smoothing : float, default 0.0
        Share of the target that is spread evenly over all classes.

    Examples
    --------
    >>> import fastloss
    >>> criterion = fastloss.CrossEntropyLoss(weight=[1, 2])
    >>> criterion
    CrossEntropyLoss(weight=[1.0, 2.0], reduction='mean')
    >>> print(criterion([[1, 2], [1, 3], [1, 3]], [0, 1, 1]).round(4))
    0.3642
    """

    _loss = categorical, "cross_entropy"
    _defaults: ClassVar[dict[str, Any]] = {
        "weight": None,
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.0,
    }

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        _arrays.integer(self.ignore_index, "ignore_index")
        _arrays.fraction(self.label_smoothing, "label_smoothing")


class NLLLoss(Criterion):
    """`fastloss.nll_loss` with its options.

    Parameters
    ----------
    weight : array_like, shape (C,), optional
        Weight of each class.
    ignore_index : int, default -100
        Samples with this class index count as nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `fastloss.nll_loss`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.NLLLoss(reduction="sum")([[1, 2], [1, 3], [1, 3]], [0, 1, 1]))
    -7.0
    """

    _loss = categorical, "nll_loss"
    _defaults: ClassVar[dict[str, Any]] = {
        "weight": None,
        "ignore_index": -100,
        "reduction": "mean",
    }

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        _arrays.integer(self.ignore_index, "ignore_index")


class BCELoss(Criterion):
    """`fastloss.binary_cross_entropy` with its options.

    Parameters
    ----------
    weight : array_like, optional
        Multiplies each loss; broadcasts to the probabilities.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `fastloss.binary_cross_entropy`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.BCELoss()([0.9, 0.2], [1, 0]).round(4))
    0.1643
    """

    _loss = binary, "binary_cross_entropy"
    _defaults: ClassVar[dict[str, Any]] = {"weight": None, "reduction": "mean"}


class BCEWithLogitsLoss(Criterion):
    """`fastloss.binary_cross_entropy_with_logits` with its options.

    Parameters
    ----------
    weight : array_like, optional
        Multiplies each loss; broadcasts to the logits.
    pos_weight : array_like, optional
        Weight of the positive term; broadcasts to the logits.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `fastloss.binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.BCEWithLogitsLoss(pos_weight=3)([1.0, 2.0], [1, 0]).round(4))
    1.5334
    """

    _loss = binary, "binary_cross_entropy_with_logits"
    _defaults: ClassVar[dict[str, Any]] = {"weight": None, "pos_weight": None, "reduction": "mean"}


class KLDivLoss(Criterion):
    """`fastloss.kl_div` with its options.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        See `fastloss.kl_div`.
    log_target : bool, default False
        Whether targets are log-probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> criterion = fastloss.KLDivLoss(reduction="batchmean")
    >>> print(criterion(np.log([[0.5, 0.5]]), [[0.25, 0.75]]).round(4))
    0.1308
    """

    _loss = divergence, "kl_div"
    _defaults: ClassVar[dict[str, Any]] = {"reduction": "mean", "log_target": False}
    _reductions = (*_arrays.REDUCTIONS, "batchmean")

    def _totals(self, x: Any, t: Any) -> Totals:
        totals = super()._totals(x, t)
        if self.reduction == "batchmean":
            return Totals(totals.loss, float(np.shape(x)[0]))
        return totals


class SigmoidFocalLoss(Criterion):
    """`fastloss.sigmoid_focal_loss` with its options.

    Parameters
    ----------
    alpha : float or None, default 0.25
        Weight of positive targets.
    gamma : float, default 2.0
        How strongly well-classified elements are played down.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `fastloss.sigmoid_focal_loss`.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.SigmoidFocalLoss()([2.0, -1.0], [1, 1]).round(4))
    0.088
    """

    _loss = binary, "sigmoid_focal_loss"
    _defaults: ClassVar[dict[str, Any]] = {"alpha": 0.25, "gamma": 2.0, "reduction": "mean"}

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        binary.focal_parameters(self.alpha, self.gamma)
