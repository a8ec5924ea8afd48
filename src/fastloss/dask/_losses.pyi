# The types of the functions beside this file.
# fmt: off
from typing import Any

from numpy.typing import ArrayLike

from fastloss.losses._pairs import Direction
from fastloss.losses._reduction import KLReduction, Reduction

DaskArray = Any  # dask.array.Array, which carries no types

def cross_entropy(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", label_smoothing: float = 0.0, temperature: float = 1.0,
    softcap: float | None = None, z_loss: float = 0.0, axis: int | None = None,
) -> DaskArray: ...
def cross_entropy_value_and_grad(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", label_smoothing: float = 0.0, temperature: float = 1.0,
    softcap: float | None = None, z_loss: float = 0.0, axis: int | None = None,
) -> tuple[DaskArray, DaskArray]: ...
def nll_loss(
    log_probs: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None,
) -> DaskArray: ...
def nll_loss_value_and_grad(
    log_probs: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None,
) -> tuple[DaskArray, DaskArray]: ...
def softmax_focal_loss(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    alpha: DaskArray | ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None,
) -> DaskArray: ...
def softmax_focal_loss_value_and_grad(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    alpha: DaskArray | ArrayLike | None = None, gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int = -100,
    reduction: Reduction = "mean", axis: int | None = None,
) -> tuple[DaskArray, DaskArray]: ...
def distillation_loss(
    logits: DaskArray, teacher_logits: DaskArray | ArrayLike, *,
    sample_weight: DaskArray | ArrayLike | None = None, temperature: float = 1.0,
    direction: Direction = "forward", reduction: Reduction = "mean", axis: int | None = None,
) -> DaskArray: ...
def distillation_loss_value_and_grad(
    logits: DaskArray, teacher_logits: DaskArray | ArrayLike, *,
    sample_weight: DaskArray | ArrayLike | None = None, temperature: float = 1.0,
    direction: Direction = "forward", reduction: Reduction = "mean", axis: int | None = None,
) -> tuple[DaskArray, DaskArray]: ...
def binary_cross_entropy(
    probs: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, reduction: Reduction = "mean",
) -> DaskArray: ...
def binary_cross_entropy_value_and_grad(
    probs: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]: ...
def binary_cross_entropy_with_logits(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> DaskArray: ...
def binary_cross_entropy_with_logits_value_and_grad(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    weight: DaskArray | ArrayLike | None = None,
    pos_weight: DaskArray | ArrayLike | None = None,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]: ...
def sigmoid_focal_loss(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    alpha: float | DaskArray | ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> DaskArray: ...
def sigmoid_focal_loss_value_and_grad(
    logits: DaskArray, target: DaskArray | ArrayLike, *,
    alpha: float | DaskArray | ArrayLike | None = 0.25, gamma: float = 2.0,
    sample_weight: DaskArray | ArrayLike | None = None, ignore_index: int | None = None,
    reduction: Reduction = "mean",
) -> tuple[DaskArray, DaskArray]: ...
def kl_div(
    log_probs: DaskArray, target: DaskArray | ArrayLike, *,
    sample_weight: DaskArray | ArrayLike | None = None, reduction: KLReduction = "mean",
    log_target: bool = False,
) -> DaskArray: ...
def kl_div_value_and_grad(
    log_probs: DaskArray, target: DaskArray | ArrayLike, *,
    sample_weight: DaskArray | ArrayLike | None = None, reduction: KLReduction = "mean",
    log_target: bool = False,
) -> tuple[DaskArray, DaskArray]: ...
