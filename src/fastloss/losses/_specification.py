"""The losses: one `Specification` drives a loss's functions, criterion, totals and dask graph.

Layout: a) checks of options, b) `Specification`, c) the losses.  Adding a loss adds an entry to c),
functions whose signatures are written by hand in a module beside this one, and a criterion class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss.losses import _classes, _elementwise, _pairs
from fastloss.losses._elementwise import Kind
from fastloss.losses._reduction import Totals

# ---- a) checks of options --------------------------------------------------------------------

#: Checks the value of an option with this name, and returns it in the form that is stored.
Check = Callable[[Any, str], Any]
Evaluate = Callable[..., tuple[Any, Any, Totals]]


def _optional(check: Check) -> Check:
    """Return a check that lets None pass."""
    return lambda value, name: None if value is None else check(value, name)


# ---- b) Specification ------------------------------------------------------------------------


class Specification:
    """A description of a loss, for code that works with all losses.

    Not a dataclass, because importing `dataclasses` would double the time that this module takes.

    Parameters
    ----------
    name : str
        Name of its function.
    evaluate : callable
        Maps (x, target, *, reduction, value, gradient, upstream, out, sample_weight and the
        options) to (loss, gradient, totals).  The mean is the quotient of the totals.
    options : dict
        Options beside reduction and sample_weight, each with its default and its check.
    input, target : str
        Names of the array that the gradient belongs to, and of the second array.
    two_logits : bool
        Whether the second array is logits, too, with the shape of the first.
    over_classes : bool
        Whether there is a loss for each sample, which has several classes, not for each element.
    reductions : tuple of str
        The reductions that it has.
    operands : tuple of str
        Options that broadcast to the elements.
    second_order : bool
        Whether there are second derivatives.
    likelihood : callable or None
        Evaluates the unweighted -log p(target) for a perplexity; None for losses without one.
    """

    def __init__(
        self, name: str, evaluate: Evaluate, options: Mapping[str, tuple[Any, Check]], *,
        input: str = "logits", target: str = "target", two_logits: bool = False,
        over_classes: bool = True, reductions: tuple[str, ...] = _arrays.REDUCTIONS,
        operands: tuple[str, ...] = (), second_order: bool = False,
        likelihood: Evaluate | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.evaluate = evaluate
        self.options = options
        self.input = input
        self.target = target
        self.two_logits = two_logits
        self.over_classes = over_classes
        self.reductions = reductions
        self.operands = operands
        self.second_order = second_order
        self.likelihood = likelihood

    def grad_and_hess(self, x: Any, target: Any, out: Any, **options: Any) -> tuple[Array, Array]:
        """Return the gradient and the diagonal of the Hessian of the sum of the losses.

        A matrix of logits in column-major order is read in place; the results have its order.
        """
        turned = (
            self.over_classes
            and options.get("axis") in (None, 1, -1)
            and isinstance(x, np.ndarray)
            and x.ndim == 2
            and x.flags.f_contiguous
            and not x.flags.c_contiguous
        )
        if turned:
            t = np.asarray(target)
            options["axis"] = 0
            target = t.T if t.shape == x.shape else t
            out = out if out is None else tuple(a.T for a in _arrays.pair(out))
            x = x.T
        grad, hess = self.evaluate(
            x, target, reduction="none", value=False, gradient=True, hessian=True, out=out,
            **options,
        )[1]  # fmt: skip
        return (grad.T, hess.T) if turned else (grad, hess)

    def checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options as they are kept, after checking each."""
        kept = {}
        for name, value in options.items():
            if name == "reduction":
                if value not in self.reductions:
                    _arrays.one_of(value, self.reductions, name)
                kept[name] = value
            else:
                kept[name] = self.options[name][1](value, name)
        return kept

    def defaults(self) -> dict[str, Any]:
        """Return every option but the reduction, the axis and class weights with its default."""
        apart = ("weight", "axis")
        return {name: default for name, (default, _) in self.options.items() if name not in apart}

    def is_default(self, name: str, value: Any) -> bool:
        """Whether an option has its default."""
        default = "mean" if name == "reduction" else self.options[name][0]
        return type(value) is type(default) and bool(value == default)


# ---- c) the losses ---------------------------------------------------------------------------


def _evaluate_kl_div(x: Any, target: Any, *, log_target: Any = False, **options: Any) -> Any:
    kind = Kind.KL_LOG_TARGET if _arrays.truth(log_target, "log_target") else Kind.KL
    return _elementwise.evaluate(kind, x, target, name="log_probs", batchmean=True, **options)


def _evaluate_sigmoid_focal(
    x: Any, target: Any, *, alpha: Any = 0.25, gamma: Any = 2.0, **options: Any
) -> Any:
    alpha, gamma = _arrays.alpha(alpha, "alpha"), _arrays.not_negative(gamma, "gamma")
    return _elementwise.evaluate(Kind.FOCAL, x, target, alpha=alpha, gamma=gamma, **options)


def _evaluate_softmax_focal(
    x: Any, target: Any, *, alpha: Any = None, gamma: Any = 2.0, **options: Any
) -> Any:
    return _classes.evaluate(_classes.FOCAL, x, target, weight=alpha, gamma=gamma, **options)


_evaluate_cross_entropy = partial(_classes.evaluate, _classes.CROSS_ENTROPY)
_evaluate_nll = partial(_classes.evaluate, _classes.NLL)

# Options that several losses have.
_CLASS_WEIGHT = None, _optional(_arrays.kept_class_weights)
_WEIGHT = None, _optional(_arrays.kept_weights)
_IGNORE_INDEX = -100, _arrays.integer
_IGNORED_ELEMENT = None, _optional(_arrays.integer)
_GAMMA = 2.0, _arrays.not_negative
_AXIS = None, _optional(_arrays.integer)

CROSS_ENTROPY = Specification(
    "cross_entropy", _evaluate_cross_entropy,
    {
        "weight": _CLASS_WEIGHT, "ignore_index": _IGNORE_INDEX,
        "label_smoothing": (0.0, _arrays.fraction), "temperature": (1.0, _arrays.positive),
        "softcap": (None, _optional(_arrays.positive)), "z_loss": (0.0, _arrays.not_negative),
        "axis": _AXIS,
    },
    second_order=True, likelihood=_evaluate_cross_entropy,
)  # fmt: skip
NLL_LOSS = Specification(
    "nll_loss", _evaluate_nll,
    {"weight": _CLASS_WEIGHT, "ignore_index": _IGNORE_INDEX, "axis": _AXIS},
    input="log_probs", likelihood=_evaluate_nll,
)  # fmt: skip
SOFTMAX_FOCAL_LOSS = Specification(
    "softmax_focal_loss", _evaluate_softmax_focal,
    {"alpha": _CLASS_WEIGHT, "gamma": _GAMMA, "ignore_index": _IGNORE_INDEX, "axis": _AXIS},
    second_order=True, likelihood=_evaluate_cross_entropy,
)  # fmt: skip
BINARY_CROSS_ENTROPY = Specification(
    "binary_cross_entropy", partial(_elementwise.evaluate, Kind.BCE, name="probs", in_unit=True),
    {"weight": _WEIGHT},
    input="probs", over_classes=False, operands=("weight",),
)  # fmt: skip
BINARY_CROSS_ENTROPY_WITH_LOGITS = Specification(
    "binary_cross_entropy_with_logits", partial(_elementwise.evaluate, Kind.BCE_WITH_LOGITS),
    {"weight": _WEIGHT, "pos_weight": _WEIGHT, "ignore_index": _IGNORED_ELEMENT},
    over_classes=False, operands=("weight", "pos_weight"), second_order=True,
)  # fmt: skip
SIGMOID_FOCAL_LOSS = Specification(
    "sigmoid_focal_loss", _evaluate_sigmoid_focal,
    {"alpha": (0.25, _arrays.alpha), "gamma": _GAMMA, "ignore_index": _IGNORED_ELEMENT},
    over_classes=False, operands=("alpha",), second_order=True,
)  # fmt: skip
KL_DIV = Specification(
    "kl_div", _evaluate_kl_div,
    {"log_target": (False, _arrays.truth)},
    input="log_probs", over_classes=False, reductions=(*_arrays.REDUCTIONS, "batchmean"),
)  # fmt: skip
DISTILLATION_LOSS = Specification(
    "distillation_loss", _pairs.evaluate,
    {"temperature": (1.0, _arrays.positive), "direction": ("forward", _pairs.direction),
     "axis": _AXIS},
    target="teacher_logits", two_logits=True,
)  # fmt: skip

#: Every loss of logits, probabilities or log-probabilities and a target, by name.
SPECIFICATIONS = {
    loss.name: loss
    for loss in (
        CROSS_ENTROPY, NLL_LOSS, SOFTMAX_FOCAL_LOSS, BINARY_CROSS_ENTROPY,
        BINARY_CROSS_ENTROPY_WITH_LOGITS, SIGMOID_FOCAL_LOSS, KL_DIV,
        DISTILLATION_LOSS,
    )
}  # fmt: skip
