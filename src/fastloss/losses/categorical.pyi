# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._arrays import Array
from fastloss.losses._reduction import Reduction

F = TypeVar("F", np.float32, np.float64)

@overload
def cross_entropy(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None,
) -> F: ...
@overload
def cross_entropy(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0, axis: int | None = None,
) -> NDArray[F]: ...
@overload
def cross_entropy(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None,
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0, axis: int | None = None,
) -> Array: ...
@overload
def cross_entropy_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def cross_entropy_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0, axis: int | None = None, out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def cross_entropy_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def cross_entropy_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0, axis: int | None = None, out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def cross_entropy_backward(
    grad_output: ArrayLike, logits: NDArray[F], target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def cross_entropy_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: Array | None = None,
) -> Array: ...
@overload
def nll_loss(
    log_probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
) -> F: ...
@overload
def nll_loss(
    log_probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None,
) -> NDArray[F]: ...
@overload
def nll_loss(
    log_probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
) -> np.floating[Any]: ...
@overload
def nll_loss(
    log_probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None,
) -> Array: ...
@overload
def nll_loss_value_and_grad(
    log_probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
    out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def nll_loss_value_and_grad(
    log_probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None, out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def nll_loss_value_and_grad(
    log_probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None, out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def nll_loss_value_and_grad(
    log_probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None, out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def nll_loss_backward(
    grad_output: ArrayLike, log_probs: NDArray[F], target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", axis: int | None = None,
    out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def nll_loss_backward(
    grad_output: ArrayLike, log_probs: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", axis: int | None = None,
    out: Array | None = None,
) -> Array: ...
@overload
def softmax_focal_loss(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
) -> F: ...
@overload
def softmax_focal_loss(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None,
) -> NDArray[F]: ...
@overload
def softmax_focal_loss(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
) -> np.floating[Any]: ...
@overload
def softmax_focal_loss(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None,
) -> Array: ...
@overload
def softmax_focal_loss_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
    out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def softmax_focal_loss_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None, out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def softmax_focal_loss_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None, out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def softmax_focal_loss_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    axis: int | None = None, out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def softmax_focal_loss_backward(
    grad_output: ArrayLike, logits: NDArray[F], target: ArrayLike, *,
    alpha: ArrayLike | None = None, gamma: float = 2.0, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", axis: int | None = None,
    out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def softmax_focal_loss_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None,
    gamma: float = 2.0, sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None, out: Array | None = None,
) -> Array: ...
