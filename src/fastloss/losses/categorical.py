"""Losses over classes: `cross_entropy` and `nll_loss`, each with its gradient.

Layout: a) the steps that all of them share (arguments, kernel, reduction), b) cross-entropy,
c) negative log-likelihood.

Each loss has ``NAME``, ``NAME_value_and_grad`` and ``NAME_backward``; ``NAME_totals`` (not public)
returns the two sums of which a mean is made, for losses that are gathered batch by batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss._kernels import classes as _kernels
from fastloss.losses._reduction import Totals, reduced

Reduction = Literal["mean", "sum", "none"]

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_value_and_grad",
    "nll_loss",
    "nll_loss_backward",
    "nll_loss_value_and_grad",
]

# ---- a) the shared steps ---------------------------------------------------------------------

# A fused kernel's specialisations by name: one dictionary look-up instead of a dispatch.
_EVALUATE = {name: _kernels.evaluate[name] for name in _kernels.evaluate.__signatures__}
_KINDS = _kernels.KINDS
_CROSS_ENTROPY, _SOFT = _KINDS["cross_entropy"], _KINDS["soft_cross_entropy"]
#: The upstream gradient where there is none.
_ONE = object()


def evaluate(
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    axis: Any,
    *,
    log_probs: bool = False,
    focal: bool = False,
    temperature: float = 1.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    gamma: float = 0.0,
    value: bool = True,
    gradient: bool = False,
    upstream: Any = _ONE,
    out: Any = None,
) -> tuple[Any, Any, Totals]:
    """Return (loss, gradient, totals); loss and gradient are None where not asked for."""
    # 1. Arguments.
    if reduction not in _arrays.REDUCTIONS:
        _arrays.reduction(reduction)
    if type(ignore_index) is not int:
        ignore_index = _arrays.integer(ignore_index, "ignore_index")
    smoothing = 0.0
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        smoothing = _arrays.fraction(label_smoothing, "label_smoothing")
    a = _arrays.over_classes(
        logits,
        target,
        weight,
        sample_weight,
        axis,
        "log_probs" if log_probs else "logits",
        not log_probs,
    )
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
        grad = _arrays.output(out, x, logits)
        view = _arrays.seen_by_kernel(grad, shape)
    losses = losses32 = losses64 = None
    if value and none:
        losses = np.zeros((shape[0], shape[2]), storage.loss)
        if storage.kernel == "double":
            losses64 = losses
        else:
            losses32 = losses
    # 2. Kernel.
    kind = _KINDS["nll_loss"] if log_probs else _CROSS_ENTROPY
    p32 = p64 = None
    if a.probabilities is not None:
        kind = _SOFT
        if a.probabilities.dtype == np.float32:
            p32 = a.probabilities.reshape(shape)
        else:
            p64 = a.probabilities.reshape(shape)
    elif smoothing != 0.0:
        kind = _SOFT
    if focal:
        kind = _KINDS["softmax_focal_loss"]
    what, where, total, weights = _EVALUATE[storage.kernel](
        kind,
        _arrays.seen_by_kernel(x, shape),
        a.target,
        p32,
        p64,
        a.weight,
        factor,
        ignore_index,
        smoothing,
        z_loss,
        gamma,
        temperature,
        softcap,
        scale,
        reduction == "mean",
        losses32,
        losses64,
        view,
        None,
        None,
        _threads.for_work(x.size),
    )
    if what:
        if what == 1:
            raise MemoryError
        if what == 2:
            _arrays.overlapping()
        assert a.target is not None
        _arrays.wrong_index(a.target.reshape(samples), where, shape[1])
    # 3. Reduction.
    totals = Totals(total, weights)
    loss = reduced(reduction, totals, losses, storage.loss, samples) if value else None
    return loss, grad, totals


# ---- b) cross-entropy ------------------------------------------------------------------------


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    axis: int | None = None,
) -> np.floating[Any] | Array:
    r"""Cross-entropy between logits and class indices or class probabilities.

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.  Or class
        probabilities: floating, shape of the logits.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their logits hold.
        May lie outside [0, C).  With probabilities it must be negative, and does nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored; with probabilities by the sum of the sample weights.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the logits' shape without the class axis.  float32;
        float64 for float64 logits.  The mean over no sample is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    cross_entropy_value_and_grad : the loss and its gradient in one pass.
    linear_cross_entropy : the same on ``input @ weight.T`` without the whole logits.

    Notes
    -----
    For class indices, with :math:`\ell_c = x_c - \log \sum_k e^{x_k}`, the loss of a sample is
    :math:`-w_t \ell_t`.  Label smoothing :math:`\varepsilon` makes it
    :math:`-(1-\varepsilon) w_t \ell_t - \frac{\varepsilon}{C} \sum_c w_c \ell_c`.
    For probabilities :math:`p` it is :math:`-\sum_c w_c q_c \ell_c` with
    :math:`q = (1-\varepsilon) p + \varepsilon / C`.

    The target's exponential is kept out of the sum, so that a confident sample's loss has all its
    digits: ``log1p(rest)`` instead of a logarithm near 1.  Losses are within 4 ulp of the exact
    value.  A logit of -inf masks its class.  A NaN or +inf makes its own sample NaN.

    Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision",
    2016.  Semantics of weights and reductions follow ``torch.nn.functional.cross_entropy``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3], [1, 3]], dtype=np.float32)
    >>> fastloss.cross_entropy(logits, [0, 1, 1], reduction="none").round(4)
    array([1.3133, 0.1269, 0.1269], dtype=float32)
    >>> print(fastloss.cross_entropy(logits, [0, 1, 1], weight=[1, 2]).round(4))
    0.3642
    >>> print(f"{fastloss.cross_entropy(np.float32([20, 0, -1]), 0):.5e}")
    2.81941e-09
    """
    return evaluate(
        logits, target, weight, sample_weight, ignore_index, reduction, label_smoothing, axis
    )[0]


def cross_entropy_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    axis: int | None = None,
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    """Cross-entropy and the gradient of its sum with respect to the logits, in one pass.

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.  Or class
        probabilities: floating, shape of the logits.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their logits hold.
        May lie outside [0, C).  With probabilities it must be negative, and does nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored; with probabilities by the sum of the sample weights.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the logits' shape and dtype; the logits
        themselves are allowed.  A new array of that size costs as much time as the kernel.

    Returns
    -------
    loss : scalar or ndarray
        As `cross_entropy` returns it.
    grad : ndarray
        Gradient of the loss, for "none" of the sum of the losses: shape and dtype of the logits;
        `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    Notes
    -----
    For class indices the gradient is :math:`w_t (p_c - [c = t])` with the softmax :math:`p`, over
    the mean's denominator.  At the target it is formed as ``-rest / sum`` and not as ``p - 1``,
    so that it has all its digits there, too.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3]], dtype=np.float32)
    >>> loss, grad = fastloss.cross_entropy_value_and_grad(logits, [0, 1])
    >>> print(loss.round(4))
    0.7201
    >>> grad.round(4)
    array([[-0.3655,  0.3655],
           [ 0.0596, -0.0596]], dtype=float32)
    """
    return evaluate(
        logits,
        target,
        weight,
        sample_weight,
        ignore_index,
        reduction,
        label_smoothing,
        axis,
        gradient=True,
        out=out,
    )[:2]


def cross_entropy_backward(
    grad_output: ArrayLike,
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    axis: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `cross_entropy` with respect to the logits, for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number for "mean" and "sum".
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.  Or class
        probabilities: floating, shape of the logits.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever their logits hold.
        May lie outside [0, C).  With probabilities it must be negative, and does nothing.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored; with probabilities by the sum of the sample weights.
    label_smoothing : float, default 0.0
        Share, in [0, 1], of the target that is spread evenly over all classes.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the logits' shape and dtype; the logits
        themselves are allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of the logits; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1, 2], [1, 3]], dtype=np.float32)
    >>> fastloss.cross_entropy_backward([1, 2], logits, [0, 1], reduction="none").round(4)
    array([[-0.7311,  0.7311],
           [ 0.2384, -0.2384]], dtype=float32)
    """
    return evaluate(
        logits,
        target,
        weight,
        sample_weight,
        ignore_index,
        reduction,
        label_smoothing,
        axis,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def cross_entropy_totals(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    axis: int | None = None,
) -> Totals:
    """Return the two sums that `cross_entropy`'s mean is the quotient of, in float64."""
    return evaluate(
        logits, target, weight, sample_weight, ignore_index, "sum", label_smoothing, axis
    )[2]


# ---- c) negative log-likelihood --------------------------------------------------------------


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> np.floating[Any] | Array:
    """Negative log-likelihood of class indices under log-probabilities.

    Parameters
    ----------
    log_probs : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of `log_probs` without the class axis.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever else they hold.
        May lie outside [0, C).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D input.

    Returns
    -------
    loss : scalar or ndarray
        A scalar, or for "none" an array of the shape without the class axis.  float32; float64
        for float64 log-probabilities.  The mean over no sample is NaN.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    cross_entropy : the same on logits, in one pass and without loss of digits.

    Notes
    -----
    The loss of a sample is :math:`-w_t x_t`: what `cross_entropy` makes of logits, for
    log-probabilities that are there already.  Nothing checks that they are normalised.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.nll_loss([[1, 2], [1, 3], [1, 3]], [0, 1, 1], reduction="sum"))
    -7.0
    """
    return evaluate(
        log_probs,
        target,
        weight,
        sample_weight,
        ignore_index,
        reduction,
        0.0,
        axis,
        log_probs=True,
    )[0]


def nll_loss_value_and_grad(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, Array]:
    """Negative log-likelihood and the gradient of its sum, with respect to the log-probabilities.

    Parameters
    ----------
    log_probs : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of `log_probs` without the class axis.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever else they hold.
        May lie outside [0, C).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D input.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `log_probs`, which
        is itself allowed.

    Returns
    -------
    loss : scalar or ndarray
        As `nll_loss` returns it.
    grad : ndarray
        :math:`-w_t` at the target, over the mean's denominator, and 0 elsewhere.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    Examples
    --------
    >>> import fastloss
    >>> loss, grad = fastloss.nll_loss_value_and_grad([[-0.5, -0.9], [-0.1, -2.4]], [0, 1])
    >>> print(loss)
    1.45
    >>> grad
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """
    return evaluate(
        log_probs,
        target,
        weight,
        sample_weight,
        ignore_index,
        reduction,
        0.0,
        axis,
        log_probs=True,
        gradient=True,
        out=out,
    )[:2]


def nll_loss_backward(
    grad_output: ArrayLike,
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of `nll_loss` with respect to the log-probabilities, for an upstream gradient.

    Parameters
    ----------
    grad_output : array_like
        Gradient with respect to the loss, of the loss's shape: a number for "mean" and "sum".
    log_probs : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    target : array_like
        Class indices: any integer type, shape of `log_probs` without the class axis.
    weight : array_like, shape (C,), optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the shape without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0 and gradient 0, whatever else they hold.
        May lie outside [0, C).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of ``weight[target] * sample_weight`` over the samples that are
        not ignored.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D input.
    out : ndarray, optional
        Where the gradient is written: C-contiguous, of the shape and dtype of `log_probs`, which
        is itself allowed.

    Returns
    -------
    grad : ndarray
        Shape and dtype of `log_probs`; `out` if given.

    Raises
    ------
    TypeError
        For arrays or options of the wrong type.
    ValueError
        For shapes that do not fit, or options out of range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.nll_loss_backward(2.0, [[-0.5, -0.9]], [1], reduction="sum")
    array([[ 0., -2.]])
    """
    return evaluate(
        log_probs,
        target,
        weight,
        sample_weight,
        ignore_index,
        reduction,
        0.0,
        axis,
        log_probs=True,
        value=False,
        gradient=True,
        upstream=grad_output,
        out=out,
    )[1]


def nll_loss_totals(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    axis: int | None = None,
) -> Totals:
    """Return the two sums that `nll_loss`'s mean is the quotient of, in float64."""
    return evaluate(
        log_probs, target, weight, sample_weight, ignore_index, "sum", 0.0, axis, log_probs=True
    )[2]
