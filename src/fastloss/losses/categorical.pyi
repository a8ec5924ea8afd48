# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss.losses._reduction import Reduction

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
def cross_entropy_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
    axis: int | None = None, out: Array | None = None,
) -> Array: ...
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
def nll_loss_backward(
    grad_output: ArrayLike, log_probs: ArrayLike, target: ArrayLike, *,
    weight: ArrayLike | None = None, sample_weight: ArrayLike | None = None,
    ignore_index: int = -100, reduction: Reduction = "mean", axis: int | None = None,
    out: Array | None = None,
) -> Array: ...
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
def softmax_focal_loss_backward(
    grad_output: ArrayLike, logits: ArrayLike, target: ArrayLike, *, alpha: ArrayLike | None = None,
    gamma: float = 2.0, sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None, out: Array | None = None,
) -> Array: ...
