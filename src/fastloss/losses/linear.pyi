# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._arrays import Array
from fastloss.losses._reduction import Reduction

F = TypeVar("F", np.float32, np.float64)

class LinearGradients(NamedTuple):
    input: Array
    linear_weight: Array
    linear_bias: Array | None

@overload
def linear_cross_entropy(
    input: NDArray[F], linear_weight: NDArray[F], target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
) -> F: ...
@overload
def linear_cross_entropy(
    input: NDArray[F], linear_weight: NDArray[F], target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> NDArray[F]: ...
@overload
def linear_cross_entropy(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
) -> np.floating[Any]: ...
@overload
def linear_cross_entropy(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> Array: ...
@overload
def linear_cross_entropy_value_and_grad(
    input: NDArray[F], linear_weight: NDArray[F], target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
) -> tuple[F, LinearGradients]: ...
@overload
def linear_cross_entropy_value_and_grad(
    input: NDArray[F], linear_weight: NDArray[F], target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[NDArray[F], LinearGradients]: ...
@overload
def linear_cross_entropy_value_and_grad(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean", label_smoothing: float = 0.0,
    temperature: float = 1.0, softcap: float | None = None, z_loss: float = 0.0,
) -> tuple[np.floating[Any], LinearGradients]: ...
@overload
def linear_cross_entropy_value_and_grad(
    input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Literal["none"],
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Array, LinearGradients]: ...
@overload
def linear_cross_entropy_backward(
    grad_output: ArrayLike, input: NDArray[F], linear_weight: NDArray[F], target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Reduction = "mean",
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> LinearGradients: ...
@overload
def linear_cross_entropy_backward(
    grad_output: ArrayLike, input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
    linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None, ignore_index: int = -100, reduction: Reduction = "mean",
    label_smoothing: float = 0.0, temperature: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0,
) -> LinearGradients: ...
