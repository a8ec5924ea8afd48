"""Criterion classes with PyTorch's names: a loss with fixed options, to be called on batches.

A criterion consists of its options.  It is immutable, it can be pickled, and two criteria with the
same options are equal.  Each class writes out its constructor's signature and names its loss; the
rest follows from the specification of the loss.  Every criterion calls its arguments ``logits`` and
``target``, even where the first holds probabilities (`BCELoss`) or log-probabilities (`NLLLoss` and
`KLDivLoss`).
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss._names import meant, replacement
from fastloss.losses import _specification as losses
from fastloss.losses._pairs import Direction
from fastloss.losses._reduction import KLReduction, Loss, Reduction, Totals
from fastloss.losses._specification import Specification

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "DistillationLoss",
    "KLDivLoss",
    "NLLLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
]


def __dir__() -> list[str]:
    return __all__


class Criterion:
    """The base of all criteria: it holds the options and evaluates the loss."""

    __signature__: ClassVar[inspect.Signature]
    _loss: ClassVar[Specification]
    _options: dict[str, Any]

    def __init_subclass__(cls) -> None:
        # Otherwise help() would show the signature of __new__.
        own = inspect.signature(cls.__init__)
        cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])

    def __new__(cls, *args: Any, **options: Any) -> Self:
        for option in options:
            if option != "reduction" and option not in cls._loss.options:
                cls._refuse(option, options)
        return super().__new__(cls)

    def __init__(self, **options: Any):
        object.__setattr__(self, "_options", self._loss.checked(options))

    @classmethod
    def _refuse(cls, option: str, options: dict[str, Any]) -> NoReturn:
        """Raise for an unknown option; name the option that was meant, if that is clear."""
        known = ("reduction", *cls._loss.options)
        if option in ("size_average", "reduce"):
            raise TypeError(
                f"{cls.__name__} has no {option}={options[option]!r}: write"
                f" reduction={replacement(options)!r} instead"
            )
        other = meant(option, known)
        if other is not None:
            raise TypeError(f"{cls.__name__} has no option {option!r}: it is called {other!r} here")
        if option == "sample_weight":
            raise TypeError(
                f"sample_weight belongs to a batch: give it when {cls.__name__} is called"
            )
        raise TypeError(f"{cls.__name__} has no option {option!r}; it has {', '.join(known)}")

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one to change {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name} cannot be deleted")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._options]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._options)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        theirs = other._options
        return all(_same(value, theirs[option]) for option, value in self._options.items())

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(value) for value in self._options.values())))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{option}={_shown(value) if isinstance(value, np.ndarray) else repr(value)}"
            for option, value in self._options.items()
            if option == "reduction" or not self._loss.is_default(option, value)
        )
        return f"{type(self).__name__}({shown})"

    def _evaluate(
        self, x: Any, target: Any, sample_weight: Any, **mode: Any
    ) -> tuple[Any, Any, Totals]:
        return self._loss.evaluate(x, target, sample_weight=sample_weight, **self._options, **mode)

    def __call__(
        self, logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Loss:
        """Return the loss.

        Parameters
        ----------
        logits : array_like
            Input of the loss: logits, or what its first argument is called.
        target : array_like
            Targets, as for the loss.
        sample_weight : array_like, optional
            Weight of each sample, as for the loss.

        Returns
        -------
        scalar or ndarray
            The loss after the criterion's reduction.
        """
        return self._evaluate(logits, target, sample_weight)[0]

    def value_and_grad(
        self, logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None, *,
        out: Array | None = None,
    ) -> tuple[Loss, Array]:  # fmt: skip
        """Return the loss and its gradient with respect to `logits`, in one pass.

        Parameters
        ----------
        logits, target, sample_weight : array_like
            As for a call.
        out : ndarray, optional
            Array for the gradient: C-contiguous, with the shape and dtype of `logits`.

        Returns
        -------
        loss : scalar or ndarray
            The loss after the criterion's reduction.
        grad : ndarray
            Gradient of the loss, or of the sum of the losses with ``reduction="none"``.
        """
        return self._evaluate(logits, target, sample_weight, gradient=True, out=out)[:2]

    def backward(
        self, grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike,
        sample_weight: ArrayLike | None = None, *, out: Array | None = None,
    ) -> Array:  # fmt: skip
        """Return the gradient with respect to `logits` for an upstream gradient.

        Parameters
        ----------
        grad_output : array_like
            Gradient with respect to the loss, with the shape of the loss.
        logits, target, sample_weight : array_like
            As for a call.
        out : ndarray, optional
            Array for the gradient: C-contiguous, with the shape and dtype of `logits`.

        Returns
        -------
        ndarray
            Gradient with the shape and dtype of `logits`.
        """
        return self._evaluate(
            logits, target, sample_weight, value=False, gradient=True, upstream=grad_output, out=out
        )[1]

    def grad_and_hess(
        self, logits: ArrayLike, target: ArrayLike, sample_weight: ArrayLike | None = None, *,
        out: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return the gradient and the second derivatives of each loss, without the reduction.

        .. versionadded:: 0.2.0

        Parameters
        ----------
        logits, target, sample_weight : array_like
            As for a call.
        out : pair of ndarray, optional
            Arrays for both results, with the shape and dtype of `logits`.

        Returns
        -------
        grad, hess : ndarray
            First and second derivative of each loss with respect to each logit.

        Raises
        ------
        TypeError
            If the loss has none: only `CrossEntropyLoss`, `SoftmaxFocalLoss`, `BCEWithLogitsLoss`
            and `SigmoidFocalLoss` have second derivatives.
        """
        if not self._loss.second_order:
            raise TypeError(f"{type(self).__name__} has no second derivatives")
        options = {name: value for name, value in self._options.items() if name != "reduction"}
        return self._loss.grad_and_hess(logits, target, out, sample_weight=sample_weight, **options)


def _restore(cls: type[Criterion], options: dict[str, Any]) -> Criterion:
    return cls(**options)


def _shown(weights: Array) -> str:
    """Return weights as a list; of more than 20, the first and last three."""
    if weights.size <= 20:
        return str(weights.tolist())
    flat = weights.ravel()
    ends = [", ".join(map(repr, part.tolist())) for part in (flat[:3], flat[-3:])]
    size = " × ".join(map(str, weights.shape))
    return f"[{ends[0]}, ..., {ends[1]}] ({size})"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)


def _hashable(value: Any) -> Any:
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


class CrossEntropyLoss(Criterion):
    """Cross-entropy of logits: `fastloss.cross_entropy` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    weight, ignore_index, reduction, label_smoothing : see `fastloss.cross_entropy`
    temperature, softcap, z_loss, axis : see `fastloss.cross_entropy`

    See Also
    --------
    cross_entropy : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> criterion = fastloss.CrossEntropyLoss(weight=[1, 2])
    >>> criterion
    CrossEntropyLoss(weight=[1.0, 2.0], reduction='mean')
    >>> print(criterion([[1, 2], [1, 3], [1, 3]], [0, 1, 1]).round(4))
    0.3642
    """

    _loss = losses.CROSS_ENTROPY

    def __init__(
        self, weight: ArrayLike | None = None, *, ignore_index: int = -100,
        reduction: Reduction = "mean", label_smoothing: float = 0.0, temperature: float = 1.0,
        softcap: float | None = None, z_loss: float = 0.0, axis: int | None = None,
    ):  # fmt: skip
        super().__init__(
            weight=weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, temperature=temperature, softcap=softcap,
            z_loss=z_loss, axis=axis,
        )  # fmt: skip


class NLLLoss(Criterion):
    """Negative log-likelihood of log-probabilities: `fastloss.nll_loss` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    weight, ignore_index, reduction, axis : see `fastloss.nll_loss`

    See Also
    --------
    nll_loss : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.NLLLoss(reduction="sum")([[1, 2], [1, 3], [1, 3]], [0, 1, 1]))
    -7.0
    """

    _loss = losses.NLL_LOSS

    def __init__(
        self, weight: ArrayLike | None = None, *, ignore_index: int = -100,
        reduction: Reduction = "mean", axis: int | None = None,
    ):  # fmt: skip
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, axis=axis)


class SoftmaxFocalLoss(Criterion):
    """Focal loss over classes: `fastloss.softmax_focal_loss` with fixed options.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    alpha, gamma, ignore_index, reduction, axis : see `fastloss.softmax_focal_loss`

    See Also
    --------
    softmax_focal_loss : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.SoftmaxFocalLoss(gamma=1)([[1.0, 2.0], [1.0, 3.0]], [0, 1]).round(4))
    0.4876
    """

    _loss = losses.SOFTMAX_FOCAL_LOSS

    def __init__(
        self, *, alpha: ArrayLike | None = None, gamma: float = 2.0, ignore_index: int = -100,
        reduction: Reduction = "mean", axis: int | None = None,
    ):  # fmt: skip
        super().__init__(
            alpha=alpha, gamma=gamma, ignore_index=ignore_index, reduction=reduction, axis=axis
        )


class BCELoss(Criterion):
    """BCE of probabilities: `fastloss.binary_cross_entropy` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    weight, reduction : see `fastloss.binary_cross_entropy`

    See Also
    --------
    binary_cross_entropy : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.BCELoss()([0.9, 0.2], [1, 0]).round(4))
    0.1643
    """

    _loss = losses.BINARY_CROSS_ENTROPY

    def __init__(self, weight: ArrayLike | None = None, *, reduction: Reduction = "mean"):
        super().__init__(weight=weight, reduction=reduction)


class BCEWithLogitsLoss(Criterion):
    """BCE of logits: `fastloss.binary_cross_entropy_with_logits` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    weight, pos_weight, ignore_index : see `fastloss.binary_cross_entropy_with_logits`
    reduction : see `fastloss.binary_cross_entropy_with_logits`

    See Also
    --------
    binary_cross_entropy_with_logits : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.BCEWithLogitsLoss(pos_weight=3)([1.0, 2.0], [1, 0]).round(4))
    1.5334
    """

    _loss = losses.BINARY_CROSS_ENTROPY_WITH_LOGITS

    def __init__(
        self, weight: ArrayLike | None = None, *, pos_weight: ArrayLike | None = None,
        ignore_index: int | None = None, reduction: Reduction = "mean",
    ):  # fmt: skip
        super().__init__(
            weight=weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction
        )


class KLDivLoss(Criterion):
    """KL divergence of log-probabilities: `fastloss.kl_div` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    reduction, log_target : see `fastloss.kl_div`

    See Also
    --------
    kl_div : the function; describes the options.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss
    >>> criterion = fastloss.KLDivLoss(reduction="batchmean")
    >>> print(criterion(np.log([[0.5, 0.5]]), [[0.25, 0.75]]).round(4))
    0.1308
    """

    _loss = losses.KL_DIV

    def __init__(self, *, reduction: KLReduction = "mean", log_target: bool = False):
        super().__init__(reduction=reduction, log_target=log_target)


class DistillationLoss(Criterion):
    """KL divergence from a teacher: `fastloss.distillation_loss` with fixed options.

    Calls take ``teacher_logits`` in place of the target of other criteria.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    temperature, direction, reduction, axis : see `fastloss.distillation_loss`

    See Also
    --------
    distillation_loss : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> criterion = fastloss.DistillationLoss(temperature=2)
    >>> criterion
    DistillationLoss(temperature=2.0, reduction='mean')
    >>> print(criterion([[1.0, 2.0], [0.0, 0.5]], [[3.0, 2.0], [0.0, 1.0]]).round(4))
    0.2599
    """

    _loss = losses.DISTILLATION_LOSS

    def __init__(
        self, *, temperature: float = 1.0, direction: Direction = "forward",
        reduction: Reduction = "mean", axis: int | None = None,
    ):  # fmt: skip
        super().__init__(
            temperature=temperature, direction=direction, reduction=reduction, axis=axis
        )

    def __call__(
        self, logits: ArrayLike, teacher_logits: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Loss:
        """Return the loss of a student's logits, given a teacher's."""
        return super().__call__(logits, teacher_logits, sample_weight)

    def value_and_grad(
        self, logits: ArrayLike, teacher_logits: ArrayLike,
        sample_weight: ArrayLike | None = None, *, out: Array | None = None,
    ) -> tuple[Loss, Array]:  # fmt: skip
        """Return the loss and its gradient with respect to `logits`, in one pass."""
        return super().value_and_grad(logits, teacher_logits, sample_weight, out=out)

    def backward(
        self, grad_output: ArrayLike, logits: ArrayLike, teacher_logits: ArrayLike,
        sample_weight: ArrayLike | None = None, *, out: Array | None = None,
    ) -> Array:  # fmt: skip
        """Return the gradient with respect to `logits` for an upstream gradient."""
        return super().backward(grad_output, logits, teacher_logits, sample_weight, out=out)


class SigmoidFocalLoss(Criterion):
    """Focal loss of yes-or-no questions: `fastloss.sigmoid_focal_loss` with fixed options.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    alpha, gamma, ignore_index, reduction : see `fastloss.sigmoid_focal_loss`

    See Also
    --------
    sigmoid_focal_loss : the function; describes the options.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.SigmoidFocalLoss()([2.0, -1.0], [1, 1]).round(4))
    0.088
    """

    _loss = losses.SIGMOID_FOCAL_LOSS

    def __init__(
        self, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
        ignore_index: int | None = None, reduction: Reduction = "mean",
    ):  # fmt: skip
        super().__init__(alpha=alpha, gamma=gamma, ignore_index=ignore_index, reduction=reduction)
