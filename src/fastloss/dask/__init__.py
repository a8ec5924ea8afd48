"""Losses and scores of dask arrays: lazy, chunk by chunk, on one machine or a cluster.

Each loss but `linear_cross_entropy`, and its `_value_and_grad`, takes and returns dask arrays in
place of NumPy arrays.  Every chunk takes one pass of the NumPy function.  `score_samples`,
`compare_logits` and `streaming_metrics` evaluate saved logits in the same way.  Arrays that are not
dask arrays are split into the chunks of the logits.

Layout: `_losses` makes the losses' functions from their specifications, `_graphs` builds their
graphs, `_evaluation` has the functions of saved logits, and `_chunks` what both do with arguments
and in a chunk.
"""

from importlib import import_module as _import_module

try:
    _import_module("dask.array")
except ImportError as error:
    raise ImportError(
        "fastloss.dask needs dask, which is not installed: pip install 'fastloss[dask]', or dask"
    ) from error

from fastloss.dask._evaluation import compare_logits, score_samples, streaming_metrics
from fastloss.dask._losses import (
    binary_cross_entropy,
    binary_cross_entropy_value_and_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_value_and_grad,
    cross_entropy,
    cross_entropy_value_and_grad,
    distillation_loss,
    distillation_loss_value_and_grad,
    kl_div,
    kl_div_value_and_grad,
    nll_loss,
    nll_loss_value_and_grad,
    sigmoid_focal_loss,
    sigmoid_focal_loss_value_and_grad,
    softmax_focal_loss,
    softmax_focal_loss_value_and_grad,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "compare_logits",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "distillation_loss",
    "distillation_loss_value_and_grad",
    "kl_div",
    "kl_div_value_and_grad",
    "nll_loss",
    "nll_loss_value_and_grad",
    "score_samples",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_value_and_grad",
    "softmax_focal_loss",
    "softmax_focal_loss_value_and_grad",
    "streaming_metrics",
]


def __dir__() -> list[str]:
    return __all__
