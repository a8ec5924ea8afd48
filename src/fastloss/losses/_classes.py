"""The steps that all losses over classes share: arguments, kernel, reduction.

This is the one place that calls the kernels over classes.  Every loss over classes is `evaluate`
with a kind of its own; what a loss does not offer stays at its default.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import _arrays, _threads
from fastloss._kernels import categorical as _indexed
from fastloss._kernels import soft as _soft
from fastloss.losses import _interim
from fastloss.losses._reduction import Totals, reduced

#: The kinds of losses over classes.
CROSS_ENTROPY, NLL, FOCAL = range(3)

# A fused kernel's specialisations by name: one dictionary look-up instead of a dispatch.
_INDEXED = {name: _indexed.cross_entropy[name] for name in _indexed.cross_entropy.__signatures__}
_SOFT = {
    tuple(name.split("|")): _soft.cross_entropy[name] for name in _soft.cross_entropy.__signatures__
}
_NO_PROBABILITIES = np.empty((0, 0, 0))
#: The upstream gradient where there is none.
_ONE = object()


def evaluate(
    kind: int, x: Any, target: Any, *, weight: Any = None, sample_weight: Any = None,
    ignore_index: Any = -100, reduction: Any = "mean", label_smoothing: Any = 0.0,
    temperature: Any = 1.0, softcap: Any = None, z_loss: Any = 0.0, gamma: Any = 0.0,
    axis: Any = None, value: bool = True, gradient: bool = False, upstream: Any = _ONE,
    out: Any = None,
) -> tuple[Any, Any, Totals]:  # fmt: skip
    """Return (loss, gradient, totals); loss and gradient are None where not asked for.

    `kind` is `CROSS_ENTROPY`, `NLL` or `FOCAL`; `weight` is the alpha of `FOCAL`.  The options are
    those of the losses.  `upstream` is a gradient with respect to the loss, of the loss's shape.
    """
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    if type(ignore_index) is not int:
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
    a = _arrays.over_classes(
        x, target, None if kind == FOCAL else weight, sample_weight, axis, name,
        kind == CROSS_ENTROPY,
    )  # fmt: skip
    if kind == FOCAL and weight is not None:
        a = a._replace(weight=_arrays.class_weights(weight, a.shape[1], "alpha"))
    x, samples, shape = a.logits, a.samples, a.shape
    if a.probabilities is not None and ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} has no meaning for class probabilities: it must be"
            " negative"
        )
    storage = _arrays.STORAGE[x.dtype]
    factor = a.factor
    none = reduction == "none"
    scale = 1.0
    if upstream is not _ONE:
        upstream = _arrays.upstream(upstream, samples if none else ())
        if isinstance(upstream, float):
            scale = upstream
        else:
            factor = _arrays.combined(factor, upstream, (shape[0], shape[2]))
    grad = view = None
    if gradient:
        grad = _arrays.output(out, x, original)
        view = _arrays.seen_by_kernel(grad, shape)
    losses = losses32 = losses64 = None
    if value and none:
        losses = np.zeros((shape[0], shape[2]), storage.loss)
        if storage.kernel == "double":
            losses64 = losses
        else:
            losses32 = losses
    # 2. Kernel.
    threads = _threads.for_work(x.size)
    kernel_x = _arrays.seen_by_kernel(x, shape)
    if kind == FOCAL or temperature != 1.0 or softcap is not None or z_loss != 0.0:
        bad, total, weights = _interim.evaluate(
            kind == FOCAL, a, factor, ignore_index, reduction, label_smoothing, temperature,
            softcap, z_loss, gamma, scale, losses, grad,
        )  # fmt: skip
    elif a.probabilities is None and label_smoothing == 0.0:
        bad, total, weights = _INDEXED[storage.kernel](
            kernel_x, a.target, a.weight, factor, ignore_index, scale, reduction == "mean",
            losses32, losses64, view, threads, kind == NLL,
        )  # fmt: skip
    else:
        probabilities = _NO_PROBABILITIES
        if a.probabilities is not None:
            probabilities = a.probabilities.reshape(shape)
        dtype = "float" if probabilities.dtype == np.float32 else "double"
        bad, total, weights = _SOFT[storage.kernel, dtype](
            kernel_x, a.target, probabilities, a.weight, factor, ignore_index, label_smoothing,
            scale, reduction == "mean", losses32, losses64, view, threads,
        )  # fmt: skip
    if bad == -2:  # OVERLAP in samples.pxd
        _arrays.overlapping()
    if bad >= 0:
        assert a.target is not None
        _arrays.wrong_index(a.target.reshape(samples), bad, shape[1])
    # 3. Reduction.
    totals = Totals(total, weights)
    loss = reduced(reduction, totals, losses, storage.loss, samples) if value else None
    return loss, grad, totals
