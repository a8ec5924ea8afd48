"""The steps that all losses of single elements share: arguments, kernel, reduction."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import _arrays, _threads
from fastloss._kernels import elementwise as _kernels
from fastloss.losses._reduction import Totals, reduced

Kind = _kernels.Kind

# A fused kernel's specialisations by name: one dictionary look-up instead of a dispatch.
_EVALUATE = {name: _kernels.evaluate[name] for name in _kernels.evaluate.__signatures__}
_NO_UPSTREAM = object()


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
    upstream: Any = _NO_UPSTREAM,
    out: Any = None,
) -> tuple[Any, Any, Totals]:
    """Return (loss, gradient, totals); loss and gradient are None where not asked for.

    `in_unit` asks for `x` and `target` in [0, 1]; `batchmean` allows that reduction.
    """
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
    count = float(x.size)
    if sample_weight is not None or ignore_index is not None or isinstance(alpha, np.ndarray):
        x, target, weight, alpha, count = _interim(
            x, target, weight, sample_weight, ignore_index, alpha, name, count
        )
    parameters = (-1.0 if alpha is None else float(alpha), gamma)
    t = _arrays.operand(target, "target", shape, name, exact=True)
    w = p = g = None
    if weight is not None:
        w = _arrays.operand(weight, "weight", shape, name, exact=False)
    if pos_weight is not None:
        p = _arrays.operand(pos_weight, "pos_weight", shape, name, exact=False)
    if reduction == "batchmean":
        if not shape:
            raise ValueError("reduction='batchmean' needs a batch axis, got a 0-d array")
        count = float(shape[0])
    none = reduction == "none"
    scale = 1.0
    if upstream is not _NO_UPSTREAM:
        upstream = _arrays.upstream(upstream, shape if none else ())
        if isinstance(upstream, float):
            scale = upstream
        else:
            g = _arrays.operand(upstream, "grad_output", shape, "the loss", exact=True)
    if reduction not in ("sum", "none"):
        scale = scale / count if count else 0.0
    grad = view = None
    if gradient:
        grad = _arrays.output(out, x, original)
        view = _arrays.seen_by_kernel(grad, -1)
    losses = losses32 = losses64 = None
    if value and none:
        losses = np.empty(x.size, storage.loss)
        if storage.kernel == "double":
            losses64 = losses
        else:
            losses32 = losses
    # 2. Kernel.
    total = _EVALUATE[storage.kernel](
        kind,
        _arrays.seen_by_kernel(x, -1),
        t,
        w,
        p,
        g,
        *parameters,
        scale,
        value,
        losses32,
        losses64,
        view,
        _threads.for_work(x.size),
    )
    if total is None:
        _arrays.overlapping()
    if in_unit and total != total:
        # So says the kernel where a number is outside [0, 1]; a weight can be NaN as well.
        _arrays.check_unit(_arrays.operand(x, name, shape, name, exact=True), name, shape)
        _arrays.check_unit(t, "target", shape)
    # 3. Reduction.
    totals = Totals(total, count)
    if reduction == "batchmean":
        reduction = "mean"
    loss = reduced(reduction, totals, losses, storage.loss, shape) if value else None
    return loss, grad, totals


def function(kind: int, x: Any) -> Any:
    """Return a function of each element, in the array's own type."""
    x = _arrays.floating(x, "x")
    y = np.empty(x.shape, x.dtype)
    _EVALUATE[_arrays.STORAGE[x.dtype].kernel](
        kind,
        _arrays.seen_by_kernel(x, -1),
        None,
        None,
        None,
        None,
        0.0,
        0.0,
        1.0,
        False,
        None,
        None,
        _arrays.seen_by_kernel(y, -1),
        _threads.for_work(x.size),
    )
    return y if y.shape else y[()]


def _interim(
    x: Any, target: Any, weight: Any, sample_weight: Any, ignore_index: Any, alpha: Any,
    name: str, count: float,
) -> Any:  # fmt: skip
    """Turn sample weights, ignored elements and an array of alpha into weights."""
    t = np.asarray(target)
    if t.shape != x.shape:
        raise ValueError(f"target must have the shape of {name}, {x.shape}, got {t.shape}")
    total = np.ones(x.shape)
    weights = np.ones(x.shape)

    def times(value: Any, label: str) -> Any:
        value = _arrays.as_float64(value, label)
        try:
            return np.broadcast_to(value, x.shape)
        except ValueError:
            raise ValueError(
                f"{label} must broadcast to {name} of shape {x.shape}, got {value.shape}"
            ) from None

    if weight is not None:
        weights = weights * times(weight, "weight")
    if sample_weight is not None:
        weights = weights * times(sample_weight, "sample_weight")
        total = total * times(sample_weight, "sample_weight")
    if ignore_index is not None:
        ignore_index = _arrays.integer(ignore_index, "ignore_index")
        dead = t == ignore_index
        if t.dtype.kind in "iu":
            wrong = np.argwhere(~dead & (t != 0) & (t != 1))
            if len(wrong):
                where = tuple(int(i) for i in wrong[0])
                place = where[0] if len(where) == 1 else where
                raise ValueError(
                    f"target must be 0, 1 or ignore_index={ignore_index}, got {t[where]} at"
                    f" position {place}"
                )
        x, t = np.where(dead, x.dtype.type(0), x), np.where(dead, 0, t)
        weights, total = np.where(dead, 0.0, weights), np.where(dead, 0.0, total)
    if np.ndim(alpha):
        alpha = times(alpha, "alpha")
        soft = t.astype(np.float64)
        weights = weights * (alpha * soft + (1.0 - alpha) * (1.0 - soft))
        alpha = None
    return x, t, weights, alpha, float(total.sum())
