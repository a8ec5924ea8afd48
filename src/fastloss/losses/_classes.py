"""The steps that all losses over classes share: arguments, kernel, reduction.

Losses call the kernels over classes only from here.  Every loss over classes is `evaluate` with its
own kind; options that a loss does not have keep their defaults.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import _arrays, _threads
from fastloss._kernels import classes as _kernels
from fastloss.losses._reduction import Totals, reduced

#: The kinds of losses over classes.
CROSS_ENTROPY: int = _kernels.KINDS["cross_entropy"]
NLL: int = _kernels.KINDS["nll_loss"]
FOCAL: int = _kernels.KINDS["softmax_focal_loss"]
#: The kernel's kind for `CROSS_ENTROPY` if every class has a target.
_SOFT: int = _kernels.KINDS["soft_cross_entropy"]

#: With more classes than this, second derivatives of rows come from the traversal of rows, as SOFT.
_FEW = 128

#: All int64 are below this.
_LARGE = 1 << 63
#: Stands for a missing upstream gradient.
_ONE = object()


def evaluate(
    kind: int, x: Any, target: Any, *, weight: Any = None, sample_weight: Any = None,
    ignore_index: Any = -100, reduction: Any = "mean", label_smoothing: Any = 0.0,
    temperature: Any = 1.0, softcap: Any = None, z_loss: Any = 0.0, gamma: Any = 0.0,
    axis: Any = None, value: bool = True, gradient: bool = False, hessian: bool = False,
    upstream: Any = _ONE, out: Any = None, curve: float = 1.0,
    floor: float = -np.inf, narrow: bool = False,
) -> tuple[Any, Any, Totals]:  # fmt: skip
    """Return (loss, gradient, totals); loss and gradient are None unless they are asked for.

    With `hessian`, which `CROSS_ENTROPY` and `FOCAL` have, the gradient and `out` are pairs: the
    diagonal of the Hessian comes with the gradient, and there is no loss.  It is multiplied by
    `curve` and raised to at least `floor`, except where loss and gradient are constant.  With
    `narrow`, both are float32 for float64 logits.

    `kind` is `CROSS_ENTROPY`, `NLL` or `FOCAL`; `weight` is the alpha of `FOCAL`.  The options are
    those of the losses.  `upstream` is a gradient with respect to the loss, with its shape.
    """
    if (
        value
        and upstream is _ONE
        and weight is sample_weight is softcap is axis is None
        and not hessian
    ):
        found = _kernels.usual(
            kind, x, target, out, reduction, ignore_index, gradient, label_smoothing, z_loss,
            gamma, temperature, _threads.SMALL,
        )  # fmt: skip
        if found is not None:
            small, grad, sums = found
            return small, grad, tuple.__new__(Totals, sums)
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    if type(ignore_index) is not int or not -_LARGE <= ignore_index < _LARGE:
        ignore_index = _arrays.integer(ignore_index, "ignore_index")
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        label_smoothing = _arrays.fraction(label_smoothing, "label_smoothing")
    if type(temperature) is not float or temperature != 1.0:
        temperature = _arrays.positive(temperature, "temperature")
    if softcap is not None:
        softcap = _arrays.positive(softcap, "softcap")
    if type(z_loss) is not float or z_loss != 0.0:
        z_loss = _arrays.not_negative(z_loss, "z_loss")
    if type(gamma) is not float or gamma != 0.0:
        gamma = _arrays.not_negative(gamma, "gamma")
    name = "log_probs" if kind == NLL else "logits"
    original = x
    focal = kind == FOCAL
    x, samples, shape, axis, indices, soft, weights, factor = _arrays.over_classes(
        x, target, None if focal else weight, sample_weight, axis, name, kind == CROSS_ENTROPY
    )
    if focal and weight is not None:
        weights = _arrays.class_weights(weight, shape[1], "alpha")
    if soft is not None and ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} has no meaning for class probabilities: it must be"
            " negative"
        )
    storage = _arrays.STORAGE[x.dtype]
    none = reduction == "none"
    scale = 1.0
    if upstream is not _ONE:
        upstream = _arrays.upstream(upstream, samples if none else ())
        if isinstance(upstream, float):
            scale = upstream
        else:
            factor = _arrays.combined(factor, upstream, (shape[0], shape[2]))
    p32 = p64 = None
    if soft is not None:
        kind = _SOFT
        if soft.dtype == np.float32:
            p32 = soft
        else:
            p64 = soft
    elif kind == CROSS_ENTROPY and (
        z_loss != 0.0
        or (shape[2] == 1 and shape[1] > _FEW)
        or (label_smoothing != 0.0 and weights is not None)
        if hessian
        else label_smoothing != 0.0
    ):
        kind = _SOFT
    grad = hess = view = second = None
    narrow = narrow and x.dtype == np.float64
    if hessian and narrow and kind != _SOFT and temperature == 1.0 and softcap is None:
        grad, hess = np.empty(x.shape, np.float32), np.empty(x.shape, np.float32)
        view, second, narrow = grad, hess, False
        written_narrow = True
    else:
        written_narrow = False
        if hessian:
            out, out_second = _arrays.pair(out)
            hess = _arrays.output(out_second, x, original)
            second = _arrays.exported(hess)
        if gradient:
            grad = _arrays.output(out, x, original)
            view = _arrays.exported(grad)
    losses = np.zeros((shape[0], shape[2]), storage.loss) if value and none else None
    # 2. Kernel.
    what, where, total, divisor = _kernels.evaluate(
        kind, storage.type, _arrays.exported(x), shape, indices, view, losses, weights,
        factor, p32, p64, second, None, None, ignore_index, scale, reduction == "mean",
        label_smoothing, z_loss, gamma, temperature, 0.0 if softcap is None else softcap,
        _threads.for_work(x.size), curve, floor, written_narrow,
    )  # fmt: skip
    if what:
        target = None if indices is None else indices.reshape(samples)
        _arrays.failed(what, where, target=target, classes=shape[1])
    if grad is not None and hess is not None:
        if kind == _SOFT and (curve != 1.0 or floor != -np.inf):
            _arrays.bent(grad, hess, curve, floor)
        if narrow:
            grad, hess = grad.astype(np.float32), hess.astype(np.float32)
    # 3. Reduction.
    totals = tuple.__new__(Totals, (total, divisor))  # takes half the time of Totals(...)
    loss = reduced(reduction, totals, losses, storage.loss, samples) if value else None
    return loss, (grad, hess) if hessian else grad, totals
