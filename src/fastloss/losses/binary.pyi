# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss.losses._reduction import Reduction

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
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def binary_cross_entropy_value_and_grad(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Literal["none"], out: Array | None = None,
) -> tuple[Array, Array]: ...
def binary_cross_entropy_backward(
    grad_output: ArrayLike, probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
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
def binary_cross_entropy_with_logits_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
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
def sigmoid_focal_loss_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = 0.25,
    gamma: float = 2.0, sample_weight: ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean", out: Array | None = None,
) -> Array: ...
