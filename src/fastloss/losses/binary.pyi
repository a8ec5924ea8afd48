# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._arrays import Array
from fastloss.losses._reduction import Reduction

F = TypeVar("F", np.float32, np.float64)

@overload
def binary_cross_entropy(
    probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> F: ...
@overload
def binary_cross_entropy(
    probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"],
) -> NDArray[F]: ...
@overload
def binary_cross_entropy(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def binary_cross_entropy(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"],
) -> Array: ...
@overload
def binary_cross_entropy_value_and_grad(
    probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def binary_cross_entropy_value_and_grad(
    probs: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"],
    out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def binary_cross_entropy_value_and_grad(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def binary_cross_entropy_value_and_grad(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"], out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def binary_cross_entropy_backward(
    grad_output: ArrayLike, probs: NDArray[F], target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    reduction: Reduction = "mean", out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def binary_cross_entropy_backward(
    grad_output: ArrayLike, probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
@overload
def binary_cross_entropy_with_logits(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> F: ...
@overload
def binary_cross_entropy_with_logits(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["none"],
) -> NDArray[F]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["none"],
) -> Array: ...
@overload
def binary_cross_entropy_with_logits_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def binary_cross_entropy_with_logits_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["none"], out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def binary_cross_entropy_with_logits_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def binary_cross_entropy_with_logits_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Literal["none"], out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def binary_cross_entropy_with_logits_backward(
    grad_output: ArrayLike, logits: NDArray[F], target: ArrayLike, *,
    weight: ArrayLike | None = None, pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean", out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def binary_cross_entropy_with_logits_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
@overload
def sigmoid_focal_loss(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> F: ...
@overload
def sigmoid_focal_loss(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["none"],
) -> NDArray[F]: ...
@overload
def sigmoid_focal_loss(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def sigmoid_focal_loss(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["none"],
) -> Array: ...
@overload
def sigmoid_focal_loss_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["mean", "sum"] = "mean", out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def sigmoid_focal_loss_value_and_grad(
    logits: NDArray[F], target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["none"], out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def sigmoid_focal_loss_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["mean", "sum"] = "mean", out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def sigmoid_focal_loss_value_and_grad(
    logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Literal["none"], out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def sigmoid_focal_loss_backward(
    grad_output: ArrayLike, logits: NDArray[F], target: ArrayLike, *,
    alpha: ArrayLike | None = 0.25, gamma: float = 2.0, sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None, reduction: Reduction = "mean", out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def sigmoid_focal_loss_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0, sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
