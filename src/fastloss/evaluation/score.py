"""What every sample got: `score_samples`, one pass over the logits.

`scores` is what everything in this package reads logits by: the arrays that it is asked for, and
no others.
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
    """Return those of the kernel's `SCORES` that are wanted, of the shape of the target.

    Besides the fields of `SampleScores` there are ``brier``, and ``variance`` of the logits under
    the softmax.  With `wide` the numbers are float64 whatever the logits are.
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
        _kernels.TYPES[storage.kernel],
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
    """What `score_samples` returns; every array has the shape of the target.

    ``top_classes`` and ``top_log_probs`` have one axis more, the last, of length `top_k`; without
    `top_k` they are None.

    .. versionadded:: 0.1.0
    """

    log_prob: NDArray[Any]
    rank: NDArray[np.int64]
    predicted: NDArray[np.int64]
    predicted_log_prob: NDArray[Any]
    margin: NDArray[Any]
    entropy: NDArray[Any]
    logsumexp: NDArray[Any]
    top_classes: NDArray[np.int64] | None = None
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
    r"""Score each sample in one pass: its target, the prediction, and how sure that is.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.
    target : array_like
        Class indices: any integer type, shape of the logits without the class axis.
    ignore_index : int, optional
        Target of samples that have none.  Their ``log_prob`` and ``margin`` are NaN and their
        ``rank`` is -1; what needs no target is computed as ever.

        .. versionadded:: 0.2.0
    temperature : float, optional
        Logits are divided by it.

        .. versionadded:: 0.2.0
    softcap : float, optional
        Logits are changed to ``softcap * tanh(logits / softcap)``, before the temperature.

        .. versionadded:: 0.2.0
    top_k : int, optional
        How many of the likeliest classes to name, at most C; none by default.

        .. versionadded:: 0.2.0
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    SampleScores
        A named tuple of arrays of the shape of `target`.  Numbers are float32, of float64 logits
        float64; classes and ranks are integers.

        - ``log_prob``: of the target, in nats; the negative of its cross-entropy.
        - ``rank``: how many other classes have a logit as large as the target's, so that 0 means
          the target alone is the likeliest, and ``rank < k`` that it is in the top k.
        - ``predicted``: first class with the largest logit, NaNs passed over.
        - ``predicted_log_prob``: its log-probability.
        - ``margin``: the target's logit less the largest of the others; of a single class +inf.
        - ``entropy``: of the softmax, in nats.
        - ``logsumexp``: logarithm of the sum of the exponentials.
        - ``top_classes``, ``top_log_probs``: the `top_k` likeliest classes and their
          log-probabilities, largest first, along a last axis; of equal logits the first class comes
          first, and NaNs come last.  None without `top_k`.

        A sample with a NaN or +inf logit, or with -inf alone, has NaN for all numbers and -1 as
        ``rank``.

    Raises
    ------
    TypeError
        For arrays and options of the wrong type.
    ValueError
        For shapes that do not fit, and options outside their range.
    IndexError
        For a class index outside [0, C) that is not `ignore_index`.

    See Also
    --------
    calibration_error : whether the probabilities are right on the whole.
    StreamingMetrics : accuracy, perplexity and more over many batches.

    Notes
    -----
    With temperature or softcap, margin and logsumexp are those of the logits so changed.

    With the softmax :math:`p`, the entropy is :math:`-\sum_c p_c \log p_c`, summed as
    :math:`\log \sum_k e^{x_k - m} + \sum_c p_c (m - x_c)` with the largest logit :math:`m`:
    terms of one sign.

    The likeliest classes are selected while the logits are in the cache, without sorting them.

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
