"""How far two models are from each other, sample by sample: `compare_logits`, one pass over both.

Two checkpoints, a model and its quantised form, the same model in two types.
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
    """What `compare_logits` returns; every array has the shape of the samples.

    .. versionadded:: 0.2.0
    """

    kl: NDArray[Any]
    reverse_kl: NDArray[Any]
    same_prediction: NDArray[np.bool_]
    predicted: NDArray[np.intp]
    other_predicted: NDArray[np.intp]
    log_prob: NDArray[Any] | None
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
        Unnormalised scores, float16, bfloat16, float32 or float64; integers and bool count as
        float64.  C-contiguous ones are read where they lie.
    other : array_like, shape of `logits`
        The other model's, of any of these types: it need not be that of `logits`.
    target : array_like, optional
        Class indices: any integer type, shape of the logits without the class axis.
    ignore_index : int, default -100
        Samples with this target get NaN for their divergences and log-probabilities.
    temperature : float, default 1.0
        Both softmaxes are taken of logits over this.
    axis : int, optional
        Class axis: 1 by default, 0 for 1-D logits.

    Returns
    -------
    LogitsComparison
        A named tuple of arrays of the shape of the logits without the class axis: ``kl``, the
        divergence KL(softmax(logits) ‖ softmax(other)) in nats, and ``reverse_kl``, that with the
        two swapped; ``same_prediction``, ``predicted`` and ``other_predicted`` (first class with
        the largest logit, NaNs passed over); with targets ``log_prob`` and ``other_log_prob``, the
        target's log-probability in both, else None.  Numbers are float32, or float64 where one of
        the arrays is float64.

    Raises
    ------
    TypeError
        For arrays of the wrong type.
    ValueError
        For shapes that do not fit, or a temperature that is not above 0.
    IndexError
        For a class index outside [0, C).

    See Also
    --------
    distillation_loss : one of the divergences with its gradient.
    score_samples : what one model says of each sample.

    Notes
    -----
    With the two softmaxes :math:`p` and :math:`q` and :math:`d_c = \log p_c - \log q_c`, the
    divergence :math:`\sum_c p_c d_c` is summed as :math:`\sum_c p_c\,(e^{-d_c} - 1 + d_c)`, which
    is the same, since both sum to 1.  Its terms have one sign, so that models that all but agree
    are told apart: their divergence keeps its digits down to about 1e-30, and is 0 below.

    A class masked in both, its logits -inf, adds nothing.  One that only ``other`` masks makes
    ``kl`` infinite, one that only ``logits`` masks ``reverse_kl``.  A NaN or +inf logit, or a row
    that is all -inf, gives NaN in that sample alone.

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
        _pairs.TYPES[_arrays.STORAGE[a.logits.dtype].kernel],
        _arrays.exported(a.logits),
        _pairs.TYPES[_arrays.STORAGE[a.other.dtype].kernel],
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
