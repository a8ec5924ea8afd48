"""Losses and scores of dask arrays: lazy, chunk by chunk, on one machine or a cluster.

Each loss but `linear_cross_entropy`, and its `_value_and_grad`, takes and returns dask arrays in
place of NumPy arrays.  Every chunk takes one pass of the NumPy function.  A mean needs two numbers
from each chunk, the sum of its losses and the sum of its weights.  They are added up as a tree and
divided once.  The denominator depends only on the target and the weights, so a gradient of the mean
has it before the logits are read.

`score_samples`, `compare_logits` and `streaming_metrics` evaluate saved logits in the same way.

Layout: a) losses, b) evaluation of saved logits, c) arguments: dask arrays with matching chunks,
d) graphs, e) functions that run in a chunk.

Arrays that are not dask arrays are split into the chunks of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss.evaluation.compare import LogitsComparison
from fastloss.evaluation.compare import compare_logits as _compare_logits
from fastloss.evaluation.metrics import StreamingMetrics
from fastloss.evaluation.score import SampleScores
from fastloss.evaluation.score import score_samples as _score_samples
from fastloss.losses import _specification as losses
from fastloss.losses._pairs import Direction
from fastloss.losses._reduction import KLReduction, Reduction, Totals, reduced
from fastloss.losses._specification import SPECIFICATIONS, Specification

try:
    import dask
    import dask.array as da
except ImportError as error:
    raise ImportError(
        "fastloss.dask needs dask, which is not installed: pip install 'fastloss[dask]', or dask"
    ) from error

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "compare_logits",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "distillation_loss",
    "distillation_loss_value_and_grad",
    "kl_div",
    "kl_div_value_and_grad",
    "nll_loss",
    "nll_loss_value_and_grad",
    "score_samples",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_value_and_grad",
    "softmax_focal_loss",
    "softmax_focal_loss_value_and_grad",
    "streaming_metrics",
]


def __dir__() -> list[str]:
    return __all__


DaskArray = Any  # dask.array.Array, which carries no types

#: Chunks whose metrics are merged at a time.
TREE = 8


# ---- a) losses -------------------------------------------------------------------------------


def cross_entropy(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    axis: int | None = None,
) -> DaskArray:
    """Cross-entropy of dask arrays: `fastloss.cross_entropy`, lazily and chunk by chunk.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, in any chunks along the sample axes and one chunk along the class axis.
    target : dask array or array_like
        Class indices, with the shape of the logits without the class axis, or class probabilities,
        with the shape of the logits.  Chunks that differ from those of the logits are unified with
        them.
    weight : dask array or array_like, shape (C,), optional
        Weight of each class, which is passed whole to every chunk.
    sample_weight : dask array or array_like, optional
        Weight of each sample; broadcasts to the shape of the logits without the class axis.
    ignore_index : int, default -100
        Samples with this class index have loss 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights over all chunks.
    label_smoothing : float, default 0.0
        Fraction, in [0, 1], of the target that is spread evenly over all classes.
    temperature, softcap, z_loss
        As `fastloss.cross_entropy` takes them.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    loss : dask array
        A 0-d array; with ``reduction="none"``, an array with the shape and chunks of the logits
        without the class axis.  float64 for float64 logits, float32 for all others.

    Raises
    ------
    TypeError, ValueError
        Immediately, if types, shapes, chunks or options are not valid.
    IndexError
        When the result is computed, if a class index is outside [0, C).  The message names the
        chunk.

    See Also
    --------
    fastloss.cross_entropy : formula and options.

    Notes
    -----
    Dask runs several chunks at the same time, so each chunk uses one thread unless
    `fastloss.set_num_threads` or ``OMP_NUM_THREADS`` sets another number on the worker.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0]], chunks=(2, 2))
    >>> loss = fastloss.dask.cross_entropy(logits, [0, 1, 1], weight=[1, 2])
    >>> print(loss.compute().round(4))
    0.3642
    """
    return _lazy(
        losses.CROSS_ENTROPY, logits, target, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
        temperature=temperature, softcap=softcap, z_loss=z_loss, axis=axis,
    )  # fmt: skip


def cross_entropy_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Cross-entropy of dask arrays and the gradient of its sum, in one pass over each chunk.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits, target, weight, sample_weight, ignore_index, reduction
        As `cross_entropy` takes them.
    label_smoothing, temperature, softcap, z_loss, axis
        As `cross_entropy` takes them.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.
    grad : dask array
        Gradient with respect to the logits, with their shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.cross_entropy_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call, ``dask.compute(loss, grad)``.  If they are computed one after the
    other, each takes a whole pass.  With ``reduction="mean"`` there is a pass over the targets and
    weights first, because the gradient of every chunk is divided by the sum of all weights.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0]], chunks=(1, 2))
    >>> loss, grad = dask.compute(*fastloss.dask.cross_entropy_value_and_grad(logits, [0, 1]))
    >>> print(loss.round(4))
    0.7201
    >>> grad.round(4)
    array([[-0.3655,  0.3655],
           [ 0.0596, -0.0596]])
    """
    return _lazy(
        losses.CROSS_ENTROPY, logits, target, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
        temperature=temperature, softcap=softcap, z_loss=z_loss, axis=axis, gradient=True,
    )  # fmt: skip


def nll_loss(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> DaskArray:
    """Negative log-likelihood of dask arrays: `fastloss.nll_loss`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    log_probs : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Log-probabilities, in any chunks along the sample axes and one chunk along the class axis.
    target : dask array or array_like
        Class indices, with the shape of `log_probs` without the class axis, in any chunks.
    weight, sample_weight, ignore_index, reduction, axis
        As `cross_entropy` takes them.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.nll_loss : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
    >>> print(fastloss.dask.nll_loss(log_probs, [0, 1]).compute())
    1.45
    """
    return _lazy(
        losses.NLL_LOSS, log_probs, target, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, axis=axis,
    )  # fmt: skip


def nll_loss_value_and_grad(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Negative log-likelihood of dask arrays and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    log_probs, target, weight, sample_weight, ignore_index, reduction, axis
        As `nll_loss` takes them.

    Returns
    -------
    loss : dask array
        As `nll_loss` returns it.
    grad : dask array
        Gradient with respect to `log_probs`, with its shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.nll_loss_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
    >>> loss, grad = fastloss.dask.nll_loss_value_and_grad(log_probs, [0, 1])
    >>> grad.compute()
    array([[-0.5,  0. ],
           [ 0. , -0.5]])
    """
    return _lazy(
        losses.NLL_LOSS, log_probs, target, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, reduction=reduction, axis=axis, gradient=True,
    )  # fmt: skip


def binary_cross_entropy_with_logits(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> DaskArray:
    """Binary cross-entropy of logits in dask arrays, lazily and chunk by chunk.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : dask array, any shape and chunks
        Unnormalised scores.
    target : dask array or array_like, shape of `logits`
        Targets, usually in [0, 1].  Chunks that differ from the logits' are unified with them.
    weight : dask array or array_like, optional
        Multiplies each loss; broadcasts to `logits`.
    pos_weight : dask array or array_like, optional
        Weight of the positive term; broadcasts to `logits`.
    sample_weight : dask array or array_like, optional
        Multiplies each loss; the mean divides by the sum of these weights.  Broadcasts to `logits`.

        .. versionadded:: 0.2.0
    ignore_index : int, optional
        Elements with this target have loss 0.

        .. versionadded:: 0.2.0
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements that are not ignored, or by the sum of their
        sample weights.

    Returns
    -------
    loss : dask array
        A 0-d array; with ``reduction="none"``, an array with the shape and chunks of the logits.
        float64 for float64 logits, float32 for all others.

    Raises
    ------
    TypeError, ValueError
        Immediately, if types, shapes or options are not valid.  When the result is computed, if a
        target is not valid; the message names the chunk.

    See Also
    --------
    fastloss.binary_cross_entropy_with_logits : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1, 2], [2, 2], [3, 4], [4, 5]], chunks=1)
    >>> target = [[1, 0], [1, 0], [0, 1], [0, 1]]
    >>> loss = fastloss.dask.binary_cross_entropy_with_logits(logits, target, pos_weight=3)
    >>> print(loss.compute().round(4))
    1.5895
    """
    return _lazy(
        losses.BINARY_CROSS_ENTROPY_WITH_LOGITS, logits, target, weight=weight,
        pos_weight=pos_weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction,
    )  # fmt: skip


def binary_cross_entropy_with_logits_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]:
    """Binary cross-entropy on logits in dask arrays, and the gradient of its sum.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits, target, weight, pos_weight, sample_weight, ignore_index, reduction
        As `binary_cross_entropy_with_logits` takes them.

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy_with_logits` returns it.
    grad : dask array
        Gradient with respect to the logits, with their shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits` raises them.

    See Also
    --------
    fastloss.binary_cross_entropy_with_logits_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([2.0, -1.0], chunks=1)
    >>> both = fastloss.dask.binary_cross_entropy_with_logits_value_and_grad(logits, [1, 1])
    >>> both[1].compute().round(4)
    array([-0.0596, -0.3655])
    """
    return _lazy(
        losses.BINARY_CROSS_ENTROPY_WITH_LOGITS, logits, target, weight=weight,
        pos_weight=pos_weight, sample_weight=sample_weight, ignore_index=ignore_index,
        reduction=reduction, gradient=True,
    )  # fmt: skip


def softmax_focal_loss(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    alpha: DaskArray | ArrayLike | None = None,
    gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> DaskArray:
    """Focal loss over classes of dask arrays: `fastloss.softmax_focal_loss`, chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, sample_weight, ignore_index, reduction, axis
        As `cross_entropy` takes them, with class indices alone.
    alpha : dask array or array_like, shape (C,), optional
        Weight of each class, which is passed whole to every chunk.
    gamma : float, default 2.0
        How strongly well-classified samples are played down.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.softmax_focal_loss : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0]], chunks=(1, 2))
    >>> fastloss.dask.softmax_focal_loss(logits, [0, 1], reduction="none").compute().round(4)
    array([0.7019, 0.0018])
    """
    return _lazy(
        losses.SOFTMAX_FOCAL_LOSS, logits, target, alpha=alpha, gamma=gamma,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction, axis=axis,
    )  # fmt: skip


def softmax_focal_loss_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    alpha: DaskArray | ArrayLike | None = None,
    gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Focal loss over classes of dask arrays, and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, alpha, gamma, sample_weight, ignore_index, reduction, axis
        As `softmax_focal_loss` takes them.

    Returns
    -------
    loss : dask array
        As `softmax_focal_loss` returns it.
    grad : dask array
        Gradient with respect to `logits`, with its shape and dtype.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `softmax_focal_loss` raises them.

    See Also
    --------
    fastloss.softmax_focal_loss_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0]], chunks=(1, 2))
    >>> loss, grad = fastloss.dask.softmax_focal_loss_value_and_grad(logits, [0])
    >>> grad.compute().round(4)
    array([[-0.7682,  0.7682]])
    """
    return _lazy(
        losses.SOFTMAX_FOCAL_LOSS, logits, target, alpha=alpha, gamma=gamma,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction, axis=axis,
        gradient=True,
    )  # fmt: skip


def sigmoid_focal_loss(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    alpha: float | DaskArray | ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> DaskArray:
    """Focal loss of dask arrays: `fastloss.sigmoid_focal_loss`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, sample_weight, ignore_index, reduction
        As `binary_cross_entropy_with_logits` takes them.
    alpha : float, dask array, array_like or None, default 0.25
        Weight, in [0, 1], of positive targets; broadcasts to `logits`.
    gamma : float, default 2.0
        How strongly well-classified elements are played down.

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy_with_logits` returns it.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits` raises them.

    See Also
    --------
    fastloss.sigmoid_focal_loss : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> loss = fastloss.dask.sigmoid_focal_loss(da.from_array([2.0, -1.0], chunks=1), [1, 1])
    >>> print(loss.compute().round(4))
    0.088
    """
    return _lazy(
        losses.SIGMOID_FOCAL_LOSS, logits, target, alpha=alpha, gamma=gamma,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


def sigmoid_focal_loss_value_and_grad(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    alpha: float | DaskArray | ArrayLike | None = 0.25,
    gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]:
    """Focal loss of dask arrays, and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target, alpha, gamma, sample_weight, ignore_index, reduction
        As `sigmoid_focal_loss` takes them.

    Returns
    -------
    loss : dask array
        As `sigmoid_focal_loss` returns it.
    grad : dask array
        Gradient with respect to `logits`, with its shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_focal_loss` raises them.

    See Also
    --------
    fastloss.sigmoid_focal_loss_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([2.0, -1.0], chunks=1)
    >>> fastloss.dask.sigmoid_focal_loss_value_and_grad(logits, [1, 1])[1].compute().round(4)
    array([-0.0006, -0.096 ])
    """
    return _lazy(
        losses.SIGMOID_FOCAL_LOSS, logits, target, alpha=alpha, gamma=gamma,
        sample_weight=sample_weight, ignore_index=ignore_index, reduction=reduction, gradient=True,
    )  # fmt: skip


def binary_cross_entropy(
    probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> DaskArray:
    """Binary cross-entropy of dask arrays of probabilities, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    probs : dask array, any shape and chunks
        Probabilities in [0, 1].
    target, weight, sample_weight, reduction
        As `binary_cross_entropy_with_logits` takes them, targets in [0, 1].

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy_with_logits` returns it.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits` raises them.

    See Also
    --------
    fastloss.binary_cross_entropy : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> loss = fastloss.dask.binary_cross_entropy(da.from_array([0.9, 0.2], chunks=1), [1, 0])
    >>> print(loss.compute().round(4))
    0.1643
    """
    return _lazy(
        losses.BINARY_CROSS_ENTROPY, probs, target, weight=weight, sample_weight=sample_weight,
        reduction=reduction,
    )  # fmt: skip


def binary_cross_entropy_value_and_grad(
    probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]:
    """Binary cross-entropy of dask arrays of probabilities, and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    probs, target, weight, sample_weight, reduction
        As `binary_cross_entropy` takes them.

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy` returns it.
    grad : dask array
        Gradient with respect to `probs`, of its shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy` raises them.

    See Also
    --------
    fastloss.binary_cross_entropy_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> probs = da.from_array([0.9, 0.2], chunks=1)
    >>> fastloss.dask.binary_cross_entropy_value_and_grad(probs, [1, 0])[1].compute().round(4)
    array([-0.5556,  0.625 ])
    """
    return _lazy(
        losses.BINARY_CROSS_ENTROPY, probs, target, weight=weight, sample_weight=sample_weight,
        reduction=reduction, gradient=True,
    )  # fmt: skip


def kl_div(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    reduction: KLReduction = "mean",
    log_target: bool = False,
) -> DaskArray:
    """Kullback-Leibler divergence of dask arrays: `fastloss.kl_div`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    log_probs : dask array, any shape and chunks
        Log-probabilities.
    target : dask array or array_like, shape of `log_probs`
        Probabilities, or their logarithms with `log_target`.
    sample_weight : dask array or array_like, optional
        Multiplies each loss; the mean divides by the sum of these weights.  Broadcasts to
        `log_probs`.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "batchmean" divides by the first dimension, which has to be known.
    log_target : bool, default False
        Whether `target` holds log-probabilities.

    Returns
    -------
    loss : dask array
        As `binary_cross_entropy_with_logits` returns it.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy_with_logits` raises them.

    See Also
    --------
    fastloss.kl_div : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastloss.dask
    >>> log_probs = da.from_array(np.log([[0.5, 0.5], [0.9, 0.1]]), chunks=(1, 2))
    >>> target = [[0.25, 0.75], [0.9, 0.1]]
    >>> loss = fastloss.dask.kl_div(log_probs, target, reduction="batchmean")
    >>> print(loss.compute().round(4))
    0.0654
    """
    return _lazy(
        losses.KL_DIV, log_probs, target, sample_weight=sample_weight, reduction=reduction,
        log_target=log_target,
    )  # fmt: skip


def kl_div_value_and_grad(
    log_probs: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    reduction: KLReduction = "mean",
    log_target: bool = False,
) -> tuple[DaskArray, DaskArray]:
    """Kullback-Leibler divergence of dask arrays, and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    log_probs, target, sample_weight, reduction, log_target
        As `kl_div` takes them.

    Returns
    -------
    loss : dask array
        As `kl_div` returns it.
    grad : dask array
        Gradient with respect to `log_probs`, with its shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `kl_div` raises them.

    See Also
    --------
    fastloss.kl_div_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import fastloss.dask
    >>> log_probs = da.from_array(np.log([[0.5, 0.5]]), chunks=1)
    >>> both = fastloss.dask.kl_div_value_and_grad(log_probs, [[0.25, 0.75]], reduction="sum")
    >>> both[1].compute()
    array([[-0.25, -0.75]])
    """
    return _lazy(
        losses.KL_DIV, log_probs, target, sample_weight=sample_weight, reduction=reduction,
        log_target=log_target, gradient=True,
    )  # fmt: skip


def distillation_loss(
    logits: DaskArray,
    teacher_logits: DaskArray | ArrayLike,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    temperature: float = 1.0,
    direction: Direction = "forward",
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> DaskArray:
    """Distillation loss of dask arrays: `fastloss.distillation_loss`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, sample_weight, reduction, axis
        As `cross_entropy` takes them.
    teacher_logits : dask array or array_like, shape of `logits`
        The teacher's logits, in any chunks along the sample axes.
    temperature, direction
        As `fastloss.distillation_loss` takes them.

    Returns
    -------
    loss : dask array
        As `cross_entropy` returns it; float64 where one of the arrays is float64.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.distillation_loss : formula and options.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0], [0.0, 0.5]], chunks=(1, 2))
    >>> teacher = [[3.0, 2.0], [0.0, 1.0]]
    >>> print(fastloss.dask.distillation_loss(logits, teacher, temperature=2).compute().round(4))
    0.2599
    """
    return _lazy(
        losses.DISTILLATION_LOSS, logits, teacher_logits, sample_weight=sample_weight,
        temperature=temperature, direction=direction, reduction=reduction, axis=axis,
    )  # fmt: skip


def distillation_loss_value_and_grad(
    logits: DaskArray,
    teacher_logits: DaskArray | ArrayLike,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    temperature: float = 1.0,
    direction: Direction = "forward",
    reduction: Reduction = "mean",
    axis: int | None = None,
) -> tuple[DaskArray, DaskArray]:
    """Distillation loss of dask arrays, and the gradient of its sum.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, teacher_logits, sample_weight, temperature, direction, reduction, axis
        As `distillation_loss` takes them.

    Returns
    -------
    loss : dask array
        As `distillation_loss` returns it.
    grad : dask array
        Gradient with respect to `logits`, with its shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.distillation_loss_value_and_grad : the function over NumPy arrays.

    Notes
    -----
    Compute both in one call: see `cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 2.0]], chunks=(1, 2))
    >>> loss, grad = fastloss.dask.distillation_loss_value_and_grad(logits, [[3.0, 2.0]])
    >>> grad.compute().round(4)
    array([[-0.4621,  0.4621]])
    """
    return _lazy(
        losses.DISTILLATION_LOSS, logits, teacher_logits, sample_weight=sample_weight,
        temperature=temperature, direction=direction, reduction=reduction, axis=axis,
        gradient=True,
    )  # fmt: skip


# ---- b) saved logits -------------------------------------------------------------------------


def score_samples(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    axis: int | None = None,
) -> SampleScores:
    """Scores of the samples of dask arrays: `fastloss.score_samples`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, in any chunks along the sample axes and one chunk along the class axis.
    target : dask array or array_like
        Class indices, with the shape of the logits without the class axis, in any chunks.
    ignore_index, temperature, softcap, top_k, axis
        As `fastloss.score_samples` takes them.

    Returns
    -------
    SampleScores
        The named tuple that `fastloss.score_samples` returns, with dask arrays in the chunks of the
        logits.

    Raises
    ------
    TypeError, ValueError
        Immediately, if types, shapes, chunks or options are not valid.
    IndexError
        When the result is computed, if a class index is outside [0, C).  The message names the
        chunk.

    See Also
    --------
    fastloss.score_samples : the function over NumPy arrays.

    Notes
    -----
    All scores of a chunk come from one pass over its logits.  So compute those that you need in one
    call: ``dask.compute(scores.log_prob, scores.rank)``.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.0]], chunks=(1, 2))
    >>> scores = fastloss.dask.score_samples(logits, [1, 1])
    >>> log_prob, entropy = dask.compute(scores.log_prob, scores.entropy)
    >>> log_prob.round(4)
    array([-0.1269, -0.6931])
    """
    options: dict[str, Any] = {
        "ignore_index": ignore_index, "temperature": temperature, "softcap": softcap,
        "top_k": top_k,
    }  # fmt: skip
    return SampleScores(*_by_sample(_score_samples, logits, {"target": target}, options, axis))


def compare_logits(
    logits: DaskArray,
    other: DaskArray | ArrayLike,
    target: DaskArray | ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int | None = None,
) -> LogitsComparison:
    """Two models' logits in dask arrays: `fastloss.compare_logits`, lazily and chunk by chunk.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, in any chunks along the sample axes and one chunk along the class axis.
    other : dask array or array_like, shape of `logits`
        The other model's unnormalised scores, of any type and in any chunks along the sample axes.
    target : dask array or array_like, optional
        Class indices, with the shape of the logits without the class axis, in any chunks.
    ignore_index, temperature, axis
        As `fastloss.compare_logits` takes them.

    Returns
    -------
    LogitsComparison
        The named tuple that `fastloss.compare_logits` returns, with dask arrays in the chunks of
        the logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `score_samples` raises them.

    See Also
    --------
    fastloss.compare_logits : the function over NumPy arrays.

    Notes
    -----
    Compute the arrays that you need in one call: those of a chunk come from one pass.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.0]], chunks=(1, 2))
    >>> found = fastloss.dask.compare_logits(logits, [[1.0, 2.5], [2.0, 2.1]])
    >>> found.kl.compute().round(5)
    array([0.01488, 0.00125])
    """
    operands = {"other": other} if target is None else {"other": other, "target": target}
    options = {"ignore_index": ignore_index, "temperature": temperature}
    return LogitsComparison(*_by_sample(_compare_logits, logits, operands, options, axis))


def streaming_metrics(
    logits: DaskArray,
    target: DaskArray | ArrayLike,
    group: DaskArray | ArrayLike | None = None,
    *,
    sample_weight: DaskArray | ArrayLike | None = None,
    top_k: int = 5,
    n_bins: int = 15,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    axis: int | None = None,
) -> Any:
    """Loss, perplexity, accuracy and calibration of dask arrays, as a whole or by group.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : dask array, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, in any chunks along the sample axes and one chunk along the class axis.
    target : dask array or array_like
        Class indices, with the shape of the logits without the class axis, in any chunks.
    group : dask array or array_like, optional
        The group of each sample, such as a document, a domain or a language: numbers or strings
        that broadcast to the samples.
    sample_weight : dask array or array_like, optional
        Weight of each sample; broadcasts to the samples.
    top_k, n_bins, ignore_index, temperature, softcap
        Options of `fastloss.StreamingMetrics`.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    dask.delayed.Delayed
        Computes to a `fastloss.StreamingMetrics`; with `group`, to a dictionary that has one for
        each group, sorted by group.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `score_samples` raises them.

    See Also
    --------
    fastloss.StreamingMetrics : the accumulator that this returns.

    Notes
    -----
    Each chunk takes one pass, and a worker sends a few kilobytes for each of its groups.  The
    metrics of the chunks are merged exactly, as a tree.  The results are therefore the same to the
    last bit for any chunks and any order in which workers finish.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastloss.dask
    >>> logits = da.from_array([[1.0, 3.0], [2.0, 2.5], [0.0, 1.0]], chunks=(2, 2))
    >>> domains = ["code", "prose", "code"]
    >>> found = fastloss.dask.streaming_metrics(logits, [1, 0, 1], domains).compute()
    >>> for domain, metrics in found.items():
    ...     print(domain, metrics.samples, round(metrics.compute().loss, 4))
    code 2 0.2201
    prose 1 0.9741
    """
    options: dict[str, Any] = {
        "top_k": top_k, "n_bins": n_bins, "ignore_index": ignore_index,
        "temperature": temperature, "softcap": softcap,
    }  # fmt: skip
    x, axis = _logits(logits, axis)
    operands = {"target": _like_samples(target, "target", x, axis, True)}
    for name, value in (("group", group), ("sample_weight", sample_weight)):
        if value is not None:
            operands[name] = _like_samples(value, name, x, axis, False)
    # A batch without samples raises every error that types and options can cause.
    StreamingMetrics(**options, axis=1).update(
        np.zeros((0, x.shape[axis]), x.dtype), np.zeros((0,), operands["target"].dtype)
    )
    x, *aligned = _aligned(x, *(_expanded(value, axis) for value in operands.values()))
    made = da.map_blocks(
        _metrics_in_chunk, x, *aligned, names=tuple(operands), axis=axis, options=options,
        dtype=object, meta=_meta(x.ndim, object),
    )  # fmt: skip
    parts = list(made.to_delayed().ravel())
    merge = dask.delayed(_merged, pure=True)
    while len(parts) > 1:
        parts = [merge(parts[i : i + TREE]) for i in range(0, len(parts), TREE)]
    return dask.delayed(_ordered, pure=True)(parts[0], group is not None)


# ---- c) arguments ----------------------------------------------------------------------------


def _logits(x: Any, axis: Any) -> tuple[DaskArray, int]:
    """Return logits as a dask array with one chunk along the class axis, and that axis."""
    if not isinstance(x, da.Array):
        x = _arrays._as_array(x, "logits")
    axis = _arrays.class_axis(axis, x.ndim, "logits")
    if not isinstance(x, da.Array):
        x = da.from_array(x, chunks=dict.fromkeys(range(x.ndim), "auto") | {axis: -1})
    _one_class_chunk(x, axis, "logits")
    return x, axis


def _like_samples(value: Any, name: str, x: DaskArray, axis: int, exact: bool) -> DaskArray:
    """Return an operand with the shape of the samples, or broadcasting to it, as a dask array."""
    shape, chunks = (a[:axis] + a[axis + 1 :] for a in (x.shape, x.chunks))
    if exact:
        if not isinstance(value, da.Array):
            value = _arrays._as_array(value, name)
        if not _same_shape(value.shape, shape):
            _arrays._wrong_target(value, x, shape, axis, "logits", False)
        if value.dtype.kind == "f":
            # The check by a batch without samples would accept this type as class indices.
            _arrays.no_indices(value.dtype)
        return _in_chunks(value, chunks)
    value = _broadcasting(value, name, shape, chunks, "the samples")
    return value.reshape((1,) * (len(shape) - value.ndim) + value.shape)


def _by_sample(
    function: Callable[..., Any],
    logits: Any,
    operands: dict[str, Any],
    options: dict[str, Any],
    axis: Any,
) -> list[Any]:
    """Return the arrays of the named tuple that a function of logits returns for each chunk."""
    x, axis = _logits(logits, axis)
    arrays: dict[str, DaskArray] = {}
    for name, value in operands.items():
        if name == "target":
            arrays[name] = _expanded(_like_samples(value, name, x, axis, True), axis)
        else:
            value = value if isinstance(value, da.Array) else _arrays._as_array(value, name)
            if not _same_shape(value.shape, x.shape):
                raise ValueError(
                    f"{name} must have the shape of logits, {x.shape}, got {value.shape}"
                )
            arrays[name] = _in_chunks(value, x.chunks)
            _one_class_chunk(arrays[name], axis, name)
    # A call without samples raises every error that types and options can cause, and shows the
    # types of the results.
    classes = x.shape[axis]
    empty = function(
        np.zeros((0, classes), x.dtype),
        **{
            name: np.zeros((0,) if name == "target" else (0, classes), value.dtype)
            for name, value in arrays.items()
        },
        **options,
        axis=1,
    )
    x, *aligned = _aligned(x, *arrays.values())
    made = da.map_blocks(
        _scores_in_chunk, x, *aligned, function=function, names=tuple(arrays), axis=axis,
        options=options, dtype=object, meta=_meta(x.ndim, object),
    )  # fmt: skip
    found: list[Any] = []
    for number, part in enumerate(empty):
        if part is None:
            found.append(None)
            continue
        # The class axis is replaced by the number of values per sample: one, or top_k.
        each = 1 if part.ndim == 1 else part.shape[1]
        lazy = made.map_blocks(
            _item, number=number, dtype=part.dtype, meta=_meta(x.ndim, part.dtype),
            chunks=tuple((each,) if i == axis else c for i, c in enumerate(x.chunks)),
        )  # fmt: skip
        found.append(lazy.squeeze(axis) if part.ndim == 1 else da.moveaxis(lazy, axis, -1))
    return found


def _lazy(
    loss: Specification,
    x: Any,
    target: Any,
    *,
    reduction: Any,
    sample_weight: Any,
    gradient: bool = False,
    axis: Any = None,
    **options: Any,
) -> Any:
    """Check the arguments of a loss and build its graph, with the gradient if it is wanted."""
    if not isinstance(x, da.Array):
        x = _arrays._as_array(x, loss.input)
    if loss.over_classes:
        axis = _arrays.class_axis(axis, x.ndim, loss.input)
    if not isinstance(x, da.Array):
        chunks = dict.fromkeys(range(x.ndim), "auto") | ({} if axis is None else {axis: -1})
        x = da.from_array(x, chunks=chunks)
    if not isinstance(target, da.Array):
        target = _arrays._as_array(target, loss.target)
    if loss.two_logits and target.dtype.kind in "biu":
        # Otherwise they would be taken for class indices.
        target = target.astype(np.float64)
    shape, chunks = x.shape, x.chunks
    indices = False
    if loss.over_classes:
        _one_class_chunk(x, axis, loss.input)
        shape, chunks = shape[:axis] + shape[axis + 1 :], chunks[:axis] + chunks[axis + 1 :]
        indices = target.dtype.kind in "iu"
    if loss.over_classes and not loss.two_logits:
        if not _same_shape(target.shape, shape if indices else x.shape):
            soft = loss is losses.CROSS_ENTROPY
            if target.dtype.kind == "f" and _same_shape(target.shape, shape):
                _arrays.no_indices(target.dtype)
            _arrays._wrong_target(target, x, shape, axis, loss.input, soft)
    elif not _same_shape(target.shape, x.shape):
        raise ValueError(
            f"{loss.target} must have the shape of {loss.input}, {x.shape}, got {target.shape}"
        )
    target = _in_chunks(target, chunks if indices else x.chunks)
    if loss.over_classes and not indices:
        _one_class_chunk(target, axis, loss.target)
    # Each option is passed whole to all chunks, or split into the chunks of the losses.
    like = "the samples" if loss.over_classes else loss.input
    cut, whole = {}, {}
    for name, value in (options | {"sample_weight": sample_weight}).items():
        lazy = isinstance(value, da.Array)
        if value is not None and (
            name == "sample_weight" or (name in loss.operands and (lazy or np.ndim(value)))
        ):
            cut[name] = _broadcasting(value, name, shape, chunks, like)
        else:
            whole[name] = value if lazy or not isinstance(value, list) else np.asarray(value)
    # A call without samples raises every error that types and options can cause.
    empty = (0,) * x.ndim if axis is None else (0, x.shape[axis])
    loss.evaluate(
        np.zeros(empty, x.dtype),
        np.zeros((0,) if indices else empty, target.dtype),
        reduction=reduction,
        **{name: np.zeros((), value.dtype) for name, value in cut.items()},
        **{
            name: np.zeros(value.shape, value.dtype) if isinstance(value, da.Array) else value
            for name, value in whole.items()
        },
        **({} if axis is None else {"axis": 1}),
    )
    scale = None
    if reduction == "batchmean":
        if math.isnan(x.shape[0]):
            raise ValueError(
                f"reduction='batchmean' needs a known number of rows: call"
                f" {loss.input}.compute_chunk_sizes() first"
            )
        scale = 1.0 / x.shape[0] if x.shape[0] else 0.0
    if gradient and reduction == "mean":
        scale = _inverse_of_weights(loss, target, cut.get("sample_weight"), whole, x, axis, indices)
    operands = {"target": _expanded(target, axis) if indices else target} | cut
    if loss.over_classes and "sample_weight" in cut:
        missing = len(shape) - cut["sample_weight"].ndim
        aligned = cut["sample_weight"].reshape((1,) * missing + cut["sample_weight"].shape)
        operands["sample_weight"] = _expanded(aligned, axis)
    return _graph(loss, x, operands, whole, scale, reduction, axis, gradient)


def _one_class_chunk(x: DaskArray, axis: int, name: str) -> None:
    if x.numblocks[axis] != 1:
        raise ValueError(
            f"{name} must have one chunk along the class axis {axis}, got chunks"
            f" {x.chunks[axis]}: call {name}.rechunk({{{axis}: -1}}) first"
        )
    if math.isnan(x.shape[axis]):
        raise ValueError(
            f"{name} must have a known number of classes: call {name}.compute_chunk_sizes() first"
        )


def _same_shape(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Return whether shapes agree where both are known; dask has NaN for an unknown extent."""
    return len(a) == len(b) and all(
        m == n or math.isnan(m) or math.isnan(n) for m, n in zip(a, b, strict=True)
    )


def _in_chunks(x: Any, chunks: tuple[tuple[int, ...], ...]) -> DaskArray:
    return x if isinstance(x, da.Array) else da.from_array(x, chunks=chunks)


def _broadcasting(
    value: Any,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[tuple[int, ...], ...],
    like: str,
) -> DaskArray:
    """Return an operand that broadcasts to `shape`, as a dask array."""
    if not isinstance(value, da.Array):
        value = _arrays._as_array(value, name)
    missing = len(shape) - value.ndim
    if missing < 0 or not all(
        m == 1 or m == n or math.isnan(m) or math.isnan(n)
        for m, n in zip(value.shape, shape[missing:], strict=True)
    ):
        raise ValueError(f"{name} must broadcast to {like}, shape {shape}, got {value.shape}")
    if isinstance(value, da.Array):
        # Dask broadcasts an extent of 1 only if it is a single chunk, without empty chunks.
        return value.rechunk({i: -1 for i, n in enumerate(value.shape) if n == 1})
    return _in_chunks(
        value,
        tuple((1,) if m == 1 else n for m, n in zip(value.shape, chunks[missing:], strict=True)),
    )


def _aligned(x: DaskArray, *operands: DaskArray) -> tuple[DaskArray, ...]:
    """Return the arrays with the same chunks along all axes that are not broadcast."""
    pairs = [(a, tuple(range(x.ndim - a.ndim, x.ndim))) for a in (x, *operands)]
    return tuple(da.unify_chunks(*(part for pair in pairs for part in pair))[1])


def _expanded(x: DaskArray, axis: int) -> DaskArray:
    """Return the array with an additional class axis of extent 1."""
    return x[(slice(None),) * axis + (None,)]


# ---- d) graphs -------------------------------------------------------------------------------


def _meta(ndim: int, dtype: Any) -> Array:
    return np.empty((0,) * ndim, dtype)


def _inverse_of_weights(
    loss: Specification,
    target: DaskArray,
    sample_weight: DaskArray | None,
    options: dict[str, Any],
    x: DaskArray,
    axis: int | None,
    indices: bool,
) -> DaskArray | float:
    """Return 1 / the denominator of the mean, or 0 if that is 0, without reading the logits."""
    ignored = options.get("ignore_index")
    if indices:
        return _inverse_of_sum(
            _class_weights_in_chunk, target, sample_weight, ignore_index=ignored,
            weight=options.get("weight", options.get("alpha")), classes=x.shape[axis],
        )  # fmt: skip
    if loss.over_classes:
        ignored = None
    count = math.prod(n for i, n in enumerate(target.shape) if i != axis)
    if sample_weight is None and ignored is None and not math.isnan(count):
        return 1.0 / count if count else 0.0
    if sample_weight is not None and axis is not None:
        missing = target.ndim - 1 - sample_weight.ndim
        sample_weight = sample_weight.reshape((1,) * missing + sample_weight.shape)
        sample_weight = _expanded(sample_weight, axis)
    return _inverse_of_sum(
        _weights_in_chunk, target, sample_weight, ignore_index=ignored, axis=axis
    )


def _inverse_of_sum(
    chunk: Callable[..., Array], target: DaskArray, sample_weight: DaskArray | None, **options: Any
) -> DaskArray:
    """Return 1 / the sum of the results of `chunk` over all chunks of the target."""
    shares = da.map_blocks(
        chunk, *_aligned(target, *([] if sample_weight is None else [sample_weight])),
        chunks=(1,) * target.ndim, dtype=np.float64, meta=_meta(target.ndim, np.float64), **options,
    )  # fmt: skip
    return shares.sum().map_blocks(_inverse, dtype=np.float64, meta=_meta(0, np.float64))


def _graph(
    loss: Specification,
    x: DaskArray,
    operands: dict[str, DaskArray],
    constants: dict[str, Any],
    scale: Any,
    reduction: str,
    axis: int | None,
    gradient: bool,
) -> Any:
    """Build the graph of a loss, and of its gradient.

    Parameters
    ----------
    loss : Specification
        The loss to evaluate in each chunk of the logits.
    x : dask array
        The logits.
    operands : dict of dask arrays
        Named arguments that are split into chunks; they have the shape of the logits or broadcast
        to it.
    constants : dict
        Named arguments that are passed whole to every chunk.
    scale : float, 0-d dask array or None
        Factor of each chunk's gradient.
    reduction : str
        Reduction of the whole loss.
    axis : int or None
        Class axis of the logits, which the losses do not have.
    gradient : bool
        Whether to compute the gradient.
    """
    grad_dtype = _arrays.floating(_meta(1, x.dtype), loss.input).dtype
    loss_dtype = _arrays.STORAGE[grad_dtype].loss
    if loss.two_logits and operands["target"].dtype.itemsize == 8:
        loss_dtype = _arrays.FLOAT64
    none = reduction == "none"
    if gradient and scale is not None:
        operands = operands | {"scale": da.asarray(scale)}
    x, *aligned = _aligned(x, *operands.values())
    # One task computes both the losses and the gradient of a chunk, so its result is a pair.
    losses_meta = _meta(x.ndim, loss_dtype) if none else _meta(x.ndim + 1, np.float64)
    if none:
        layout = {"chunks": tuple((1,) if i == axis else c for i, c in enumerate(x.chunks))}
    else:
        layout = {"chunks": (1,) * x.ndim + (2,), "new_axis": x.ndim}
    made = da.map_blocks(
        # By name, which pickles and is the same wherever the graph is built.
        partial(_in_chunk, loss.name),
        x,
        *aligned,
        names=tuple(operands),
        reduction=reduction,
        axis=axis,
        gradient=gradient,
        dtype=grad_dtype if gradient else losses_meta.dtype,
        meta=_meta(x.ndim, grad_dtype) if gradient else losses_meta,
        **({} if gradient else layout),
        **constants,
    )
    grad = None
    values = made
    if gradient:
        grad = made.map_blocks(_item, number=1, dtype=grad_dtype, meta=_meta(x.ndim, grad_dtype))
        values = made.map_blocks(
            _item, number=0, dtype=losses_meta.dtype, meta=losses_meta, **layout
        )
    if none:
        result = values if axis is None else values.squeeze(axis)
    else:
        totals = values.sum(axis=tuple(range(x.ndim))) if x.ndim else values
        result = totals.map_blocks(
            _reduced, reduction=reduction, rows=x.shape[0] if reduction == "batchmean" else None,
            loss_dtype=loss_dtype, drop_axis=0, dtype=loss_dtype, meta=_meta(0, loss_dtype),
        )  # fmt: skip
    return (result, grad) if gradient else result


# ---- e) functions that run in a chunk --------------------------------------------------------


def _one_thread() -> AbstractContextManager[None]:
    """Use one thread, unless a number is set: other chunks run on the other threads."""
    return nullcontext() if _threads.chosen() else _threads.at_most(1)


def _in_chunk(
    name: str,
    x: Array,
    *operands: Array,
    names: tuple[str, ...],
    reduction: str,
    axis: int | None,
    gradient: bool,
    block_id: tuple[int, ...],
    **constants: Any,
) -> Any:
    """Return what `reduction` needs from a chunk, with the gradient if it is wanted.

    This is the losses, with extent 1 along the class axis, or an array of the two totals.
    """
    arguments: dict[str, Any] = dict(zip(names, operands, strict=True))
    if axis is not None:
        constants["axis"] = axis
        for operand in ("target", "sample_weight"):
            if operand in arguments and _lacks_classes(operand, arguments[operand]):
                arguments[operand] = np.squeeze(arguments[operand], axis)
    if "scale" in arguments:
        arguments["upstream"] = float(arguments.pop("scale"))
    if reduction != "none":
        # The loss of all chunks is computed from their sums.
        reduction = "sum"
    loss = SPECIFICATIONS[name]
    try:
        with _one_thread():
            values, grad, totals = loss.evaluate(
                x, reduction=reduction, gradient=gradient, **arguments, **constants
            )
    except (IndexError, ValueError) as error:
        message = f"in chunk {block_id} of the {loss.input}: {error}"
        raise type(error)(message) from None
    if reduction == "none":
        made = np.asarray(values if axis is None else np.expand_dims(values, axis))
    else:
        made = np.array(totals).reshape((1,) * x.ndim + (2,))
    return (made, grad) if gradient else made


def _lacks_classes(name: str, operand: Array) -> bool:
    return name == "sample_weight" or operand.dtype.kind in "iu"


def _class_weights_in_chunk(
    target: Array,
    sample_weight: Array | None = None,
    *,
    weight: Array | None,
    ignore_index: int,
    classes: int,
    block_id: tuple[int, ...],
) -> Array:
    """Return the sum of the weights of a chunk of class indices, without reading the logits."""
    kept = np.asarray(target != ignore_index)
    wrong = kept & ((target < 0) | (target >= classes))
    if wrong.any():
        try:
            _arrays.wrong_index(target, int(np.flatnonzero(wrong)[0]), classes)
        except IndexError as error:
            raise IndexError(f"in chunk {block_id} of the target: {error}") from None
    weights = np.array(kept, np.float64)
    if weight is not None:
        weights[kept] = np.asarray(weight, np.float64)[target[kept]]
    if sample_weight is not None:
        weights *= np.asarray(sample_weight, np.float64)
        # An ignored sample has weight 0, even if its weight is infinite.
        weights[~kept] = 0.0
    return weights.sum(keepdims=True)


def _weights_in_chunk(
    target: Array,
    sample_weight: Array | None = None,
    *,
    ignore_index: int | None,
    axis: int | None,
) -> Array:
    """Return the sum of the weights of a chunk without class indices."""
    shape = tuple(1 if i == axis else n for i, n in enumerate(target.shape))
    weights = np.broadcast_to(1.0 if sample_weight is None else sample_weight, shape)
    if ignore_index is not None:
        weights = np.where(target == ignore_index, 0.0, weights)
    return np.asarray(weights, np.float64).sum(keepdims=True)


def _inverse(total: Any) -> Any:
    # If the weights add up to 0, the gradient is 0.
    return np.divide(1.0, total) if total != 0 else np.float64(0.0)


def _item(pair: tuple[Any, Any], *, number: int) -> Any:
    return pair[number]


def _reduced(totals: Array, *, reduction: str, rows: int | None, loss_dtype: Any) -> Any:
    total, weight = totals.tolist()
    if rows is not None:
        weight = float(rows)
    return reduced(reduction, Totals(total, weight), None, np.dtype(loss_dtype), ())


def _scores_in_chunk(
    x: Array,
    *operands: Array,
    function: Callable[..., Any],
    names: tuple[str, ...],
    axis: int,
    options: dict[str, Any],
    block_id: tuple[int, ...],
) -> tuple[Array | None, ...]:
    """Return what a function makes of a chunk, each with an axis in the place of the classes."""
    arguments = dict(zip(names, operands, strict=True))
    if "target" in arguments:
        arguments["target"] = np.squeeze(arguments["target"], axis)
    samples = x.ndim - 1
    with _one_thread(), _naming(block_id):
        found = function(x, **arguments, **options, axis=axis)
    return tuple(
        None
        if part is None
        else np.expand_dims(part, axis)
        if part.ndim == samples
        else np.moveaxis(part, -1, axis)
        for part in found
    )


def _metrics_in_chunk(
    x: Array,
    *operands: Array,
    names: tuple[str, ...],
    axis: int,
    options: dict[str, Any],
    block_id: tuple[int, ...],
) -> dict[Any, StreamingMetrics]:
    """Return the metrics of each group of a chunk; of all samples where there are no groups."""
    arguments = {name: np.squeeze(value, axis) for name, value in zip(names, operands, strict=True)}
    target, weight = arguments["target"], arguments.get("sample_weight")
    with _one_thread(), _naming(block_id):
        if "group" not in arguments:
            return {None: StreamingMetrics(**options, axis=axis).update(x, target, weight)}
        if target.size == 0:
            return {}
        groups, index = np.unique(
            np.broadcast_to(arguments["group"], target.shape), return_inverse=True
        )
        # Samples of a group side by side: one copy of the chunk.
        order = np.argsort(index.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(index.ravel()))
        rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])[order]
        target = target.ravel()[order]
        if weight is not None:
            weight = np.broadcast_to(weight, np.shape(arguments["target"])).ravel()[order]
        found, start = {}, 0
        for name, end in zip(groups.tolist(), ends.tolist(), strict=True):
            part = slice(start, end)
            found[name] = StreamingMetrics(**options, axis=1).update(
                rows[part], target[part], None if weight is None else weight[part]
            )
            start = end
        return found


def _merged(parts: list[dict[Any, StreamingMetrics]]) -> dict[Any, StreamingMetrics]:
    """Return the metrics of several chunks, which stay as they are: dask may use them again."""
    found: dict[Any, StreamingMetrics] = {}
    for part in parts:
        for name, metrics in part.items():
            if name in found:
                found[name].merge(metrics)
            else:
                found[name] = deepcopy(metrics)
    return found


def _ordered(found: dict[Any, StreamingMetrics], grouped: bool) -> Any:
    return dict(sorted(found.items())) if grouped else found[None]


@contextmanager
def _naming(block_id: tuple[int, ...]) -> Iterator[None]:
    """Say in which chunk an error was found."""
    try:
        yield
    except (IndexError, ValueError) as error:
        raise type(error)(f"in chunk {block_id} of the logits: {error}") from None
