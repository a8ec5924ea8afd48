"""The steps that all losses of single elements share: arguments, kernel, reduction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fastloss import _arrays, _threads
from fastloss._kernels import elements as _kernels
from fastloss.losses._reduction import Totals, reduced

#: Kinds of computations, by name.
Kind = SimpleNamespace(**_kernels.KINDS)

_NO_UPSTREAM = object()
_NO_OPERANDS = (None,) * 6


def evaluate(
    kind: int,
    x: Any,
    target: Any,
    reduction: Any,
    *,
    name: str = "logits",
    weight: Any = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = None,
    in_unit: bool = False,
    batchmean: bool = False,
    alpha: Any = None,
    gamma: float = 0.0,
    value: bool = True,
    gradient: bool = False,
    hessian: bool = False,
    upstream: Any = _NO_UPSTREAM,
    out: Any = None,
    curve: float = 1.0,
    floor: float = -np.inf,
    narrow: bool = False,
) -> tuple[Any, Any, Totals]:
    """Return (loss, gradient, totals); loss and gradient are None unless they are asked for.

    With `hessian`, the gradient and `out` are pairs: the second derivatives come with the gradient.
    They are raised to at least `floor`, except where loss and gradient are constant.  `curve`,
    which multiplies those of losses over classes, is 1 here.  With `narrow`, both are float32 for
    float64 logits.

    `in_unit` says that `x` and `target` must be in [0, 1], which the kernel checks for BCE;
    `batchmean` allows that reduction.
    """
    if (
        value
        and upstream is _NO_UPSTREAM
        and weight is sample_weight is pos_weight is ignore_index is None
        and not hessian
    ):
        found = _kernels.usual(
            kind, x, target, out, reduction, gradient, alpha, gamma, _threads.SMALL
        )
        if found is not None:
            small, grad, sums = found
            return small, grad, tuple.__new__(Totals, sums)
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS and not (batchmean and reduction == "batchmean"):
        _arrays.one_of(
            reduction,
            (*_arrays.REDUCTIONS, "batchmean") if batchmean else _arrays.REDUCTIONS,
            "reduction",
        )
    original = x
    x = _arrays.floating(x, name)
    shape = x.shape
    storage = _arrays.STORAGE[x.dtype]
    t = _arrays.operand(target, "target", shape, name, exact=True)
    integral = not in_unit and kind in _LABELS and t[0].dtype.kind in "iu"
    w = s = p = a = g = None
    if weight is not None:
        w = _arrays.operand(weight, "weight", shape, name, exact=False)
    if sample_weight is not None:
        s = _arrays.operand(sample_weight, "sample_weight", shape, name, exact=False)
    if pos_weight is not None:
        p = _arrays.operand(pos_weight, "pos_weight", shape, name, exact=False)
    if alpha is not None:
        a = _arrays.operand(alpha, "alpha", shape, name, exact=False)
    if ignore_index is not None:
        ignore_index = _arrays.integer(ignore_index, "ignore_index")
    none = reduction == "none"
    scale = 1.0
    if upstream is not _NO_UPSTREAM:
        upstream = _arrays.upstream(upstream, shape if none else ())
        if isinstance(upstream, float):
            scale = upstream
        else:
            g = _arrays.operand(upstream, "grad_output", shape, "the loss", exact=True)
    if reduction == "batchmean":
        if not shape:
            raise ValueError("reduction='batchmean' needs a batch axis, got a 0-d array")
        scale = scale / shape[0] if shape[0] else 0.0
    narrow = narrow and hessian and x.dtype == np.float64
    grad = hess = view = second = None
    if narrow:
        grad, hess = view, second = np.empty(shape, np.float32), np.empty(shape, np.float32)
    else:
        if hessian:
            out, out_second = _arrays.pair(out)
            hess = _arrays.output(out_second, x, original)
            second = _arrays.exported(hess)
        if gradient:
            grad = _arrays.output(out, x, original)
            view = _arrays.exported(grad)
    losses = np.empty(x.size, storage.loss) if value and none else None
    # 2. Kernel.
    what, where, total, weights = _kernels.evaluate(
        kind, storage.type, _arrays.exported(x), x.size, (t, w, s, p, a, g), gamma, ignore_index,
        integral, scale, reduction == "mean", value, losses, view, second, out is not None,
        _threads.for_work(x.size), floor, narrow,
    )  # fmt: skip
    if what:
        _arrays.failed(what, where, target=t[0], probs=x, name=name, ignore_index=ignore_index)
    # 3. Reduction.
    totals = tuple.__new__(Totals, (total, weights))  # takes half the time of Totals(...)
    if reduction == "batchmean":
        totals = Totals(total, float(shape[0]))
        reduction = "mean"
    loss = reduced(reduction, totals, losses, storage.loss, shape) if value else None
    return loss, (grad, hess) if hessian else grad, totals


#: Losses whose integer targets must be 0, 1 or `ignore_index`.
_LABELS = (Kind.BCE_WITH_LOGITS, Kind.FOCAL)


def function(kind: int, x: Any, out: Any = None) -> Any:
    """Apply a function to each element, in the type of the array; `out` has been checked."""
    x = _arrays.floating(x, "x")
    y = np.empty(x.shape, x.dtype) if out is None else out
    what, where, _, _ = _kernels.evaluate(
        kind,
        _arrays.STORAGE[x.dtype].type,
        _arrays.exported(x),
        x.size,
        _NO_OPERANDS,
        out=_arrays.exported(y),
        given=out is not None,
        threads=_threads.for_work(x.size),
    )
    _arrays.failed(what, where)
    return y if y.shape or out is not None else y[()]
