"""Scores of every sample: `score_samples`, in one pass over the logits.

The whole package reads logits through `scores`, which computes only the arrays that are asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays, _threads
from fastloss._kernels import classes as _kernels
from fastloss._names import signed, unknown

__all__ = ["SampleScores", "score_samples"]


def __dir__() -> list[str]:
    return __all__


#: Scores that are integers; the others are numbers in the type of a loss.
_INTEGERS = frozenset({"rank", "predicted", "top_classes"})


def scores(
    logits: Any, target: Any, wanted: tuple[str, ...], *, ignore_index: Any = -100,
    temperature: Any = 1.0, softcap: Any = None, top_k: Any = 0, axis: Any = None,
    wide: bool = False,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Return the wanted ones of the kernel's `SCORES`, with the shape of the target.

    They are the fields of `SampleScores`, ``brier``, and the ``variance`` of the logits under the
    softmax.  With `wide`, numbers are float64 for logits of any type.
    """
    ignored = _arrays.integer(ignore_index, "ignore_index")
    temperature = _arrays.positive(temperature, "temperature")
    softcap = 0.0 if softcap is None else _arrays.positive(softcap, "softcap")
    k = _arrays.integer(top_k, "top_k")
    a = _arrays.over_classes(logits, target, None, None, axis, "logits", False)
    outer, classes, inner = a.shape
    if not 0 <= k <= classes:
        raise ValueError(f"top_k must lie between 0 and the number of classes, {classes}, got {k}")
    storage = _arrays.STORAGE[a.logits.dtype]
    number = _arrays.FLOAT64 if wide else storage.loss
    found: dict[str, NDArray[Any]] = {}
    for name in wanted:
        shape = (outer, inner, k) if name.startswith("top_") else (outer, inner)
        if name in _INTEGERS:
            found[name] = np.zeros(shape, np.int64)
        elif classes:
            found[name] = np.empty(shape, number)
        else:
            found[name] = np.full(shape, np.nan, number)
    what, where, _, _ = _kernels.evaluate(
        _kernels.KINDS["score"],
        storage.type,
        _arrays.exported(a.logits),
        a.shape,
        a.target,
        scores=tuple(found.get(name) for name in _kernels.SCORES),
        ignore_index=ignored,
        temperature=temperature,
        softcap=softcap,
        threads=_threads.for_work(a.logits.size),
        top_k=k,
        wide=wide,
    )
    if what:
        assert a.target is not None
        _arrays.failed(what, where, target=a.target.reshape(a.samples), classes=classes)
    for name, values in found.items():
        kept = (*a.samples, k) if name.startswith("top_") else a.samples
        found[name] = values.reshape(kept)
    return found


class SampleScores(NamedTuple):
    """The result of `score_samples`: arrays with the shape of the target.

    ``top_classes`` and ``top_log_probs`` have an additional last axis of length `top_k`; without
    `top_k` they are None.

    .. versionadded:: 0.1.0
    """

    #: Log-probability of the target, in nats; its negative is the cross-entropy.
    log_prob: NDArray[Any]
    #: Number of other classes with a logit at least as large as the target's.
    rank: NDArray[np.int64]
    #: First class with the largest logit.
    predicted: NDArray[np.int64]
    #: Log-probability of the predicted class.
    predicted_log_prob: NDArray[Any]
    #: Logit of the target minus the largest other logit.
    margin: NDArray[Any]
    #: Entropy of the softmax, in nats.
    entropy: NDArray[Any]
    #: Logarithm of the sum of the exponentials of the logits.
    logsumexp: NDArray[Any]
    #: The `top_k` most likely classes, most likely first.
    top_classes: NDArray[np.int64] | None = None
    #: Log-probabilities of these classes.
    top_log_probs: NDArray[Any] | None = None


_ALWAYS = tuple(name for name in SampleScores._fields if not name.startswith("top_"))


@signed
def score_samples(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    axis: int | None = None,
    **others: Never,
) -> SampleScores:
    r"""Score each sample in one pass: target, prediction, margin and entropy.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.
    target : array_like
        Class indices of any integer type, with the shape of the logits without the class axis.
    ignore_index : int, default -100
        Samples with this target have the ``log_prob`` and ``margin`` NaN and the ``rank`` -1.  The
        scores that do not depend on the target are computed for them, too.

        .. versionadded:: 0.2.0
    temperature : float, default 1.0
        Divides the logits; must be positive.

        .. versionadded:: 0.2.0
    softcap : float, optional
        Replaces the logits by ``softcap * tanh(logits / softcap)``, before the temperature divides
        them; must be positive.

        .. versionadded:: 0.2.0
    top_k : int, default 0
        Number of most likely classes to return, at most C.

        .. versionadded:: 0.2.0
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    SampleScores
        A named tuple of arrays with the shape of `target`.  Classes and ranks are integers.  The
        other scores are float64 for float64 logits and float32 for all others.

        - ``log_prob``: log-probability of the target, in nats; its negative is the cross-entropy.
        - ``rank``: number of other classes with a logit at least as large as the target's.  It is 0
          if the target alone has the largest logit, and less than k if the target is among the top
          k.
        - ``predicted``: first class with the largest logit; NaN logits are skipped.
        - ``predicted_log_prob``: log-probability of that class.
        - ``margin``: logit of the target minus the largest other logit; +inf for a single class.
        - ``entropy``: entropy of the softmax, in nats.
        - ``logsumexp``: logarithm of the sum of the exponentials of the logits.
        - ``top_classes``, ``top_log_probs``: the `top_k` most likely classes and their
          log-probabilities along an additional last axis, most likely first.  Among equal logits
          the first class comes first, and NaN logits come last.  None without `top_k`.

        A sample with a logit of NaN or +inf, or with all logits -inf, has the rank -1 and NaN for
        every other score that is not a class.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If shapes do not match or an option is out of range.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    calibration_error : the distance between confidence and accuracy.
    StreamingMetrics : accuracy, perplexity and more over many batches.
    compare_logits : the same samples scored by two models.

    Notes
    -----
    With `temperature` or `softcap`, all of these are those of the changed logits.  Logits that the
    change makes equal, such as those far above `softcap`, count as ties.

    With the softmax :math:`p`, the entropy is :math:`-\sum_c p_c \log p_c`.  It is computed as
    :math:`\log \sum_k e^{x_k - m} + \sum_c p_c (m - x_c)`, where :math:`m` is the largest logit and
    all terms have the same sign.

    The most likely classes are selected while the logits are in the cache, without sorting.

    Examples
    --------
    >>> import fastloss
    >>> scores = fastloss.score_samples([[1.0, 3.0, 0.0], [2.0, 2.0, 0.0]], [0, 1], top_k=2)
    >>> scores.log_prob.round(4)
    array([-2.1698, -0.7586])
    >>> scores.rank
    array([1, 1])
    >>> scores.predicted
    array([1, 0])
    >>> scores.margin
    array([-2.,  0.])
    >>> scores.top_classes
    array([[1, 0],
           [0, 1]])
    """
    if others:
        unknown(score_samples, others)
    k = _arrays.integer(top_k, "top_k")
    found = scores(
        logits, target, SampleScores._fields if k else _ALWAYS, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, top_k=k, axis=axis,
    )  # fmt: skip
    return SampleScores(**found)
