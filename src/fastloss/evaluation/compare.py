"""Two models compared sample by sample: `compare_logits`, in one pass over both arrays.

The models may be two checkpoints, a model and its quantised form, or one model in two types.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays, _threads
from fastloss._kernels import pairs as _kernels
from fastloss._names import signed, unknown
from fastloss.losses import _pairs

__all__ = ["LogitsComparison", "compare_logits"]


def __dir__() -> list[str]:
    return __all__


class LogitsComparison(NamedTuple):
    """The result of `compare_logits`: arrays with the shape of the samples.

    .. versionadded:: 0.2.0
    """

    #: KL(softmax(logits) ‖ softmax(other)), in nats.
    kl: NDArray[Any]
    #: KL(softmax(other) ‖ softmax(logits)), in nats.
    reverse_kl: NDArray[Any]
    #: Whether both models predict the same class.
    same_prediction: NDArray[np.bool_]
    #: First class with the largest logit in `logits`.
    predicted: NDArray[np.intp]
    #: First class with the largest logit in `other`.
    other_predicted: NDArray[np.intp]
    #: Log-probability of the target in `logits`; None without targets.
    log_prob: NDArray[Any] | None
    #: Log-probability of the target in `other`; None without targets.
    other_log_prob: NDArray[Any] | None


@signed
def compare_logits(
    logits: ArrayLike,
    other: ArrayLike,
    target: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int | None = None,
    **others: Never,
) -> LogitsComparison:
    r"""Compare two models' logits of the same samples, in one pass over both arrays.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits : array_like, shape (N, C), (C,), (N, C, d1, ..., dK), or any with `axis`
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and booleans
        are treated as float64.  C-contiguous arrays are read in place.
    other : array_like, shape of `logits`
        The other model's unnormalised scores, of any of these types.  The two types may differ.
    target : array_like, optional
        Class indices of any integer type, with the shape of the logits without the class axis.
    ignore_index : int, default -100
        Samples with this target have NaN divergences and log-probabilities.
    temperature : float, default 1.0
        Divides both arrays of logits; must be positive.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    LogitsComparison
        A named tuple of arrays with the shape of the logits without the class axis.

        - ``kl``: KL(softmax(logits) ‖ softmax(other)), in nats.
        - ``reverse_kl``: the divergence with the two arrays swapped.
        - ``predicted``, ``other_predicted``: first class with the largest logit in each array; NaN
          logits are skipped.
        - ``same_prediction``: whether these two classes are equal.
        - ``log_prob``, ``other_log_prob``: log-probability of the target in each array; None
          without targets.

        Divergences and log-probabilities are float64 if either array is float64, otherwise float32.

    Raises
    ------
    TypeError
        If an array has the wrong type.
    ValueError
        If shapes do not match or the temperature is not positive.
    IndexError
        If a class index is outside [0, C).

    See Also
    --------
    distillation_loss : one of the divergences, with its gradient.
    score_samples : the scores of one model.

    Notes
    -----
    Let :math:`p` and :math:`q` be the two softmaxes and :math:`d_c = \log p_c - \log q_c`.  The
    divergence :math:`\sum_c p_c d_c` is computed as :math:`\sum_c p_c\,(e^{-d_c} - 1 + d_c)`, which
    is the same because :math:`p` and :math:`q` both sum to 1.  All its terms have the same sign, so
    the divergence of two models that almost agree keeps its digits down to about 1e-30.  Below that
    it is 0.

    A class whose logits are -inf in both arrays contributes 0.  A class that only ``other`` masks
    makes ``kl`` infinite; a class that only ``logits`` masks makes ``reverse_kl`` infinite.  A
    sample with a logit of NaN or +inf, or with all logits -inf, has the divergences NaN; other
    samples are not affected.

    References
    ----------
    S. Kullback and R. A. Leibler, On information and sufficiency, The Annals of Mathematical
    Statistics 22 (1951).

    Examples
    --------
    A model in half precision against itself:

    >>> import numpy as np
    >>> import fastloss
    >>> logits = np.array([[1.0, 3.0, 0.1], [2.0, 1.9996, 0.3]], np.float32)
    >>> found = fastloss.compare_logits(logits, logits.astype(np.float16), [1, 0])
    >>> print(found.kl)
    [1.3140579e-11 1.9196941e-08]
    >>> found.same_prediction
    array([ True,  True])
    >>> (found.other_log_prob - found.log_prob).round(5)
    array([ 0.     , -0.00019], dtype=float32)
    """
    if others:
        unknown(compare_logits, others)
    ignore_index = _arrays.integer(ignore_index, "ignore_index")
    temperature = _arrays.positive(temperature, "temperature")
    a = _arrays.two_logits(logits, other, "other", target=target, axis=axis)
    outer, _, inner = a.shape
    numbers = np.full((2 if a.target is None else 4, outer, inner), np.nan)
    predicted = np.zeros((2, outer, inner), np.int64)
    what, where, _, _ = _kernels.evaluate(
        _arrays.STORAGE[a.logits.dtype].type,
        _arrays.exported(a.logits),
        _arrays.STORAGE[a.other.dtype].type,
        _arrays.exported(a.other),
        a.shape,
        a.target,
        numbers=numbers,
        predicted=predicted,
        ignore_index=ignore_index,
        temperature=temperature,
        threads=_threads.for_work(a.logits.size),
    )
    if what:
        target = None if a.target is None else a.target.reshape(a.samples)
        _arrays.failed(what, where, target=target, classes=a.shape[1])
    with np.errstate(over="ignore"):
        numbers = numbers.astype(_pairs.loss_type(a), copy=False).reshape(len(numbers), *a.samples)
    first, second = predicted.reshape(2, *a.samples)
    kl, reverse_kl, *log_probs = numbers
    log_prob, other_log_prob = log_probs or (None, None)
    return LogitsComparison(
        kl, reverse_kl, np.asarray(first == second), first, second, log_prob, other_log_prob
    )
