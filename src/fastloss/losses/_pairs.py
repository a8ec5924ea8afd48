"""The steps of a loss between two arrays of logits: arguments, kernel, reduction.

The only one is `distillation_loss`.  `compare_logits` calls the same kernel.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fastloss import _arrays, _kernels, _threads
from fastloss.losses._reduction import Totals, reduced

Direction = Literal["forward", "reverse"]
DIRECTIONS = ("forward", "reverse")

#: Stands for a missing upstream gradient.
_ONE = object()


def direction(value: Any, name: str) -> str:
    """Check the name of one of the two divergences."""
    if value not in DIRECTIONS:
        _arrays.one_of(value, DIRECTIONS, name)
    return str(value)


def loss_type(a: _arrays.TwoLogits) -> np.dtype[Any]:
    """Return the type of a result: float64 if either array is float64."""
    types = (_arrays.STORAGE[x.dtype].loss for x in (a.logits, a.other))
    return max(types, key=lambda dtype: dtype.itemsize)


def evaluate(
    x: Any, target: Any, *, sample_weight: Any = None, temperature: Any = 1.0,
    direction: Any = "forward", reduction: Any = "mean", axis: Any = None, value: bool = True,
    gradient: bool = False, upstream: Any = _ONE, out: Any = None,
) -> tuple[Any, Any, Totals]:  # fmt: skip
    """Return (loss, gradient, totals); loss and gradient are None unless they are asked for.

    `target` is the teacher's logits.  `upstream` is a gradient with respect to the loss, with its
    shape.
    """
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    if direction not in DIRECTIONS:
        _arrays.one_of(direction, DIRECTIONS, "direction")
    temperature = _arrays.positive(temperature, "temperature")
    a = _arrays.two_logits(x, target, "teacher_logits", sample_weight=sample_weight, axis=axis)
    none = reduction == "none"
    scale, factor = 1.0, a.factor
    if upstream is not _ONE:
        upstream = _arrays.upstream(upstream, a.samples if none else ())
        if isinstance(upstream, float):
            scale = upstream
        else:
            factor = _arrays.combined(factor, upstream, (a.shape[0], a.shape[2]))
    grad = view = None
    if gradient:
        grad = _arrays.output(out, a.logits, x)
        view = _arrays.exported(grad)
    losses = np.zeros((a.shape[0], a.shape[2])) if value and none else None
    # 2. Kernel.
    what, where, total, divisor = _kernels.pairs.evaluate(
        _arrays.STORAGE[a.logits.dtype].type,
        _arrays.exported(a.logits),
        _arrays.STORAGE[a.other.dtype].type,
        _arrays.exported(a.other),
        a.shape,
        factor=factor,
        losses=losses,
        out=view,
        value=value,
        reverse=direction == "reverse",
        temperature=temperature,
        scale=scale,
        mean=reduction == "mean",
        threads=_threads.for_work(a.logits.size),
    )
    _arrays.failed(what, where)
    # 3. Reduction.
    totals = Totals(total, divisor)
    dtype = loss_type(a)
    if losses is not None:
        with np.errstate(over="ignore"):
            losses = losses.astype(dtype, copy=False)
    loss = reduced(reduction, totals, losses, dtype, a.samples) if value else None
    return loss, grad, totals
