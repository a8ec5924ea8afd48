# The types of the functions beside this file, by the reduction where the result depends on it.
# fmt: off
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._arrays import Array
from fastloss.losses._reduction import KLReduction

F = TypeVar("F", np.float32, np.float64)

@overload
def kl_div(
    log_probs: NDArray[F], target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["mean", "batchmean", "sum"] = "mean", log_target: bool = False,
) -> F: ...
@overload
def kl_div(
    log_probs: NDArray[F], target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["none"], log_target: bool = False,
) -> NDArray[F]: ...
@overload
def kl_div(
    log_probs: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["mean", "batchmean", "sum"] = "mean", log_target: bool = False,
) -> np.floating[Any]: ...
@overload
def kl_div(
    log_probs: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["none"], log_target: bool = False,
) -> Array: ...
@overload
def kl_div_value_and_grad(
    log_probs: NDArray[F], target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["mean", "batchmean", "sum"] = "mean", log_target: bool = False,
    out: NDArray[F] | None = None,
) -> tuple[F, NDArray[F]]: ...
@overload
def kl_div_value_and_grad(
    log_probs: NDArray[F], target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["none"], log_target: bool = False, out: NDArray[F] | None = None,
) -> tuple[NDArray[F], NDArray[F]]: ...
@overload
def kl_div_value_and_grad(
    log_probs: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["mean", "batchmean", "sum"] = "mean", log_target: bool = False,
    out: Array | None = None,
) -> tuple[np.floating[Any], Array]: ...
@overload
def kl_div_value_and_grad(
    log_probs: ArrayLike, target: ArrayLike, *, sample_weight: ArrayLike | None = None,
    reduction: Literal["none"], log_target: bool = False, out: Array | None = None,
) -> tuple[Array, Array]: ...
@overload
def kl_div_backward(
    grad_output: ArrayLike, log_probs: NDArray[F], target: ArrayLike, *,
    sample_weight: ArrayLike | None = None, reduction: KLReduction = "mean",
    log_target: bool = False, out: NDArray[F] | None = None,
) -> NDArray[F]: ...
@overload
def kl_div_backward(
    grad_output: ArrayLike, log_probs: ArrayLike, target: ArrayLike, *,
    sample_weight: ArrayLike | None = None, reduction: KLReduction = "mean",
    log_target: bool = False, out: Array | None = None,
) -> Array: ...
