"""The temperature that calibrates logits: `fit_temperature`.

The command line finds it in the same way, by `minimise`, from files that it reads once a pass.

Layout: a) Newton's method, b) the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Never, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays
from fastloss._arrays import Array
from fastloss._names import signed, unknown
from fastloss.evaluation.calibration import counting, errors_of, total_of, weighted_sum
from fastloss.evaluation.score import scores

__all__ = ["TemperatureFit", "fit_temperature"]


def __dir__() -> list[str]:
    return __all__


# ---- a) Newton's method ----------------------------------------------------------------------

#: A step that is smaller, relative to the temperature, is the last: the next would be its square.
_CLOSE = 1e-8
_MOST_STEPS = 100


class Pass(Protocol):
    """What `minimise` has to know of a pass over the logits; b is the inverse of the temperature.

    All but the counts are means over the samples.
    """

    @property
    def loss(self) -> float: ...

    @property
    def slope(self) -> float:
        """Derivative of the mean loss by log(b): cross-entropy less entropy."""
        ...

    @property
    def curvature(self) -> float:
        """Second derivative of the mean loss by b, times b**2: variance of the scaled logits."""
        ...

    @property
    def gap(self) -> float:
        """How far the target is below the largest logit, in log-probabilities."""
        ...

    @property
    def behind(self) -> int:
        """Number of samples whose target is below the largest logit."""
        ...

    @property
    def apart(self) -> int:
        """Number of samples of which the temperature changes the loss."""
        ...


AnyPass = TypeVar("AnyPass", bound=Pass)


def apart(margin: Array) -> int:
    """Return how many margins say that the temperature changes the sample's loss."""
    # If not, all logits are equal, or all but one are -inf.
    return int(np.count_nonzero((margin != 0) & (margin != math.inf)))


def minimise(take: Callable[[float], AnyPass], classes: int) -> tuple[float, int, AnyPass, AnyPass]:
    """Return the best temperature, the number of steps, and the first and the last pass.

    The first pass is at temperature 1, the last one at the temperature that is returned, or so
    close to it that its loss is the same.

    Parameters
    ----------
    take : callable
        Takes a pass over the logits at a temperature.
    classes : int
        Number of classes.

    Raises
    ------
    ValueError
        If the loss has no minimum.
    """
    before = now = take(1.0)
    if not before.curvature and not before.apart:
        return 1.0, 0, before, before
    if not before.behind:
        raise ValueError(
            "no temperature minimises the loss: the lower the temperature, the smaller the loss,"
            " because every target has the largest logit of its sample; fit on samples that the"
            " model was not trained on"
        )
    chance = math.log(classes)
    b, low, high, last, steps = 1.0, 0.0, math.inf, math.inf, 0
    while True:
        if now.slope < 0:
            # The variance falls as b grows: a step of Newton's method does not reach the minimum.
            low, factor = b, 1 - now.slope / max(now.curvature, 1e-300)
        else:
            high = b
            if now.curvature < 1e-12 and now.slope < 1e-3 and now.loss - now.slope > 0.01:
                raise ValueError(
                    "no temperature minimises the loss: the higher the temperature, the smaller the"
                    " loss, because the logits carry no information about these targets"
                )
            # A step in b may go beyond 0; one in log(b) can't.  At the minimum the loss is at most
            # that of chance, and at least the gap.
            factor = math.exp(-now.slope / (now.slope + now.curvature)) if now.slope else 1.0
            factor = min(factor, chance / now.gap) if now.gap > chance else factor
        step = abs(factor - 1)
        if step <= _CLOSE or (step < 1e-6 and step >= last):
            # The loss does not tell the two apart, and no pass is needed for it.
            b *= factor
            break
        if steps == _MOST_STEPS:
            raise ValueError(f"no temperature was found in {steps} steps; the last was {1 / b}")
        last = step
        after = b * factor
        if not low < after < high:
            after = math.sqrt(low * high)
            if not low < after < high:
                break
        b = after
        now = take(1 / b)
        steps += 1
    return 1 / b, steps, before, now


# ---- b) the function -------------------------------------------------------------------------


class TemperatureFit(NamedTuple):
    """The result of `fit_temperature`.

    .. versionadded:: 0.2.0
    """

    #: The temperature that minimises the loss.
    temperature: float
    #: Mean cross-entropy at that temperature.
    loss: float
    #: Mean cross-entropy at temperature 1.
    loss_before: float
    #: Expected calibration error at that temperature, from 15 bins of equal width.
    calibration_error: float
    #: Expected calibration error at temperature 1.
    calibration_error_before: float
    #: Number of Newton steps; there is a pass over the logits before the first and after each step.
    steps: int


#: Bins of the calibration errors.
_BINS = 15
_WANTED = ("log_prob", "predicted_log_prob", "entropy", "variance", "margin", "predicted")


class _Pass(NamedTuple):
    """One pass over arrays."""

    loss: float
    slope: float
    curvature: float
    gap: float
    behind: int
    apart: int
    calibration_error: float


@signed
def fit_temperature(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    axis: int | None = None,
    **others: Never,
) -> TemperatureFit:
    r"""Find the temperature that minimises the cross-entropy: calibration by temperature scaling.

    Fit the temperature on held-out samples, then divide the logits of other samples by it.
    Predictions do not change.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    logits, target : see `score_samples`
    sample_weight : array_like, optional
        Weight of each sample, not negative; broadcasts to the samples.
    ignore_index : int, default -100
        Samples with this target are left out.
    axis : see `score_samples`

    Returns
    -------
    TemperatureFit
        A named tuple of numbers: ``temperature``; the mean cross-entropy at that temperature,
        ``loss``, and at temperature 1, ``loss_before``; the expected calibration errors
        ``calibration_error`` and ``calibration_error_before``, from 15 bins of equal width; and the
        number of ``steps``.

    Raises
    ------
    TypeError
        If an array or option has the wrong type.
    ValueError
        If there is no best temperature.  If every target has the largest logit of its sample, the
        loss decreases as the temperature goes to 0; if the logits carry no information about the
        targets, it decreases as the temperature goes to infinity.  Also if the loss of a sample is
        infinite or NaN, if no sample counts, if shapes do not match or if a weight is negative.
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.

    See Also
    --------
    calibration_error : the distance between confidence and accuracy, which the fit reduces.

    Notes
    -----
    The mean loss is convex in :math:`\beta = 1/T`.  Each pass over the logits gives its first two
    derivatives,

    .. math:: \frac{1}{N} \sum_i \left(\mathrm E_i[x] - x_{t_i}\right) \qquad\text{and}\qquad
        \frac{1}{N} \sum_i \mathrm{Var}_i[x],

    where :math:`\mathrm E_i` and :math:`\mathrm{Var}_i` are the mean and variance under the softmax
    of sample :math:`i`, and Newton's method takes a step.  A step that would leave the interval
    known to contain the minimum is shortened.  Everything is computed in double precision.  The
    temperature is exact to about twelve digits.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017, arXiv:1706.04599.

    Examples
    --------
    Logits that are three times too large:

    >>> import numpy as np
    >>> import fastloss
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(20_000, 5))
    >>> target = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    >>> fit = fastloss.fit_temperature(3 * logits, target)
    >>> print(f"{fit.temperature:.2f}")
    2.94
    >>> fit.calibration_error < 0.1 * fit.calibration_error_before
    True
    """
    if others:
        unknown(fit_temperature, others)
    x = _arrays.floating(logits, "logits")
    t = _arrays.as_array(target, "target")
    ignored = _arrays.integer(ignore_index, "ignore_index")

    def take(temperature: float) -> _Pass:
        found = scores(
            x, t, _WANTED, ignore_index=ignored, temperature=temperature, axis=axis, wide=True
        )
        kept, weight = counting(t, ignored, sample_weight)
        of_target, of_predicted, entropy, variance, margin, predicted = (
            found[name].ravel()[kept] for name in _WANTED
        )
        _have_losses(of_target, kept)
        total = total_of(of_target, weight)

        def mean(values: Array) -> float:
            return weighted_sum(values, weight).over(total)

        right = predicted == t.ravel()[kept]
        return _Pass(
            mean(-of_target),
            mean(-of_target - entropy),
            mean(variance),
            mean(of_predicted - of_target),
            int(np.count_nonzero(margin < 0)),
            apart(margin),
            errors_of(of_predicted, right, weight, _BINS, "uniform").expected,
        )

    classes = x.shape[_arrays.class_axis(axis, x.ndim, "logits")]
    temperature, steps, before, after = minimise(take, classes)
    return TemperatureFit(
        temperature, after.loss, before.loss, after.calibration_error, before.calibration_error,
        steps,
    )  # fmt: skip


def _have_losses(log_prob: Array, kept: Array) -> None:
    """Refuse samples whose loss is infinite or NaN."""
    if not log_prob.size:
        raise ValueError("there is no sample to fit a temperature to: all are ignored")
    wrong = ~np.isfinite(log_prob)
    if wrong.any():
        at = int(np.argmax(wrong))
        what = "a target whose logit is -inf" if log_prob[at] == -math.inf else "no finite softmax"
        raise ValueError(
            f"sample {int(np.flatnonzero(kept)[at])} has {what}, which no temperature changes"
        )
