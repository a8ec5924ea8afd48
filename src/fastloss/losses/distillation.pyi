# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from fastloss._arrays import Array
from fastloss.losses._pairs import Direction
from fastloss.losses._reduction import Reduction

@overload
def distillation_loss(
    logits: ArrayLike, teacher_logits: ArrayLike, *, sample_weight: ArrayLike | None = None,
    temperature: float = 1.0, direction: Direction = "forward",
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None,
) -> np.floating[Any]: ...
@overload
def distillation_loss(
    logits: ArrayLike, teacher_logits: ArrayLike, *, sample_weight: ArrayLike | None = None,
    temperature: float = 1.0, direction: Direction = "forward",
    reduction: Literal["none"], axis: int | None = None,
) -> Array: ...
@overload
def distillation_loss_value_and_grad(
    logits: ArrayLike, teacher_logits: ArrayLike, *, sample_weight: ArrayLike | None = None,
    temperature: float = 1.0, direction: Direction = "forward",
    reduction: Literal["mean", "sum"] = "mean", axis: int | None = None, out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def distillation_loss_value_and_grad(
    logits: ArrayLike, teacher_logits: ArrayLike, *, sample_weight: ArrayLike | None = None,
    temperature: float = 1.0, direction: Direction = "forward",
    reduction: Literal["none"], axis: int | None = None, out: Array | None = None,
) -> tuple[Array, Array]: ...
def distillation_loss_backward(
    grad_output: ArrayLike, logits: ArrayLike, teacher_logits: ArrayLike, *,
    sample_weight: ArrayLike | None = None, temperature: float = 1.0,
    direction: Direction = "forward", reduction: Reduction = "mean", axis: int | None = None,
    out: Array | None = None,
) -> Array: ...
