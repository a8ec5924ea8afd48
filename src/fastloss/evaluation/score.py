"""What every sample got: `score_samples`, one pass over the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays, _threads
from fastloss._kernels import classes as _kernels

__all__ = ["SampleScores", "score_samples"]


class SampleScores(NamedTuple):
    """What `score_samples` returns; every array has the shape of the target."""

    log_prob: NDArray[Any]
    predicted: NDArray[np.intp]
    predicted_log_prob: NDArray[Any]
    entropy: NDArray[Any]


def score_samples(logits: ArrayLike, target: ArrayLike, *, axis: int | None = None) -> SampleScores:
    r"""Score each sample in one pass: its target, the prediction, and how sure that is.

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    SampleScores
        A named tuple of arrays of the shape of `target`: ``log_prob`` (of the target, the negative
        of its cross-entropy), ``predicted`` (first class with the largest logit, NaNs passed over),
        ``predicted_log_prob`` and ``entropy`` of the softmax, in nats.  float32; float64 for
        float64 logits.

    Raises
    ------
    TypeError
        For arrays of the wrong type.
    ValueError
        For shapes that do not fit.
    IndexError
        For a class index outside [0, C).

    Notes
    -----
    With the softmax :math:`p`, the entropy is :math:`-\sum_c p_c \log p_c`, summed as
    :math:`\log \sum_k e^{x_k - m} + \sum_c p_c (m - x_c)` with the largest logit :math:`m`:
    terms of one sign.

    Examples
    --------
    >>> import fastloss
    >>> scores = fastloss.score_samples([[1.0, 3.0], [2.0, 2.0]], [1, 1])
    >>> scores.log_prob.round(4)
    array([-0.1269, -0.6931])
    >>> scores.predicted
    array([1, 0])
    >>> scores.entropy.round(4)
    array([0.3653, 0.6931])
    """
    a = _arrays.over_classes(logits, target, None, None, axis, "logits", False)
    shape = a.shape
    storage = _arrays.STORAGE[a.logits.dtype]
    numbers = np.full((3, shape[0], shape[2]), np.nan)
    predicted = np.zeros((shape[0], shape[2]), np.int64)
    what, where, _, _ = _kernels.evaluate(
        _kernels.KINDS["score"],
        _kernels.TYPES[storage.kernel],
        _arrays.exported(a.logits),
        shape,
        a.target,
        numbers=numbers,
        predicted=predicted,
        threads=_threads.for_work(a.logits.size),
    )
    if what:
        assert a.target is not None
        _arrays.failed(what, where, target=a.target.reshape(a.samples), classes=shape[1])
    log_prob, predicted_log_prob, entropy = numbers.astype(storage.loss).reshape(3, *a.samples)
    return SampleScores(log_prob, predicted.reshape(a.samples), predicted_log_prob, entropy)
