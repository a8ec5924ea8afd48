"""Code as a user writes it, with the types that a checker is to find; test_types.py checks it.

``assert_type`` does nothing at run time.  The file is read by type checkers alone.
"""

from __future__ import annotations

from typing import Any, Literal, assert_type

import numpy as np
from numpy.typing import NDArray

import fastloss

x32: NDArray[np.float32] = np.zeros((4, 3), np.float32)
x64: NDArray[np.float64] = np.zeros((4, 3))
x16: NDArray[np.float16] = np.zeros((4, 3), np.float16)
target: NDArray[np.int64] = np.zeros(4, np.int64)

# A mean or a sum is a scalar of the logits' type, "none" an array.
assert_type(fastloss.cross_entropy(x32, target), np.float32)
assert_type(fastloss.cross_entropy(x64, target, reduction="sum"), np.float64)
assert_type(fastloss.cross_entropy(x64, target, reduction="none"), NDArray[np.float64])
assert_type(fastloss.nll_loss(x32, target, reduction="none"), NDArray[np.float32])
assert_type(fastloss.kl_div(x32, x32, reduction="batchmean"), np.float32)
assert_type(fastloss.binary_cross_entropy(x64, x64), np.float64)
assert_type(fastloss.linear_cross_entropy(x32, x32, target), np.float32)

# What is no array of float32 or float64 gives some floating type.
assert_type(fastloss.cross_entropy([[1.0, 2.0]], [0]), np.floating[Any])
assert_type(fastloss.cross_entropy(x16, target), np.floating[Any])
assert_type(fastloss.cross_entropy([[1.0, 2.0]], [0], reduction="none"), NDArray[Any])

# The gradient has the type of the logits.
loss, grad = fastloss.cross_entropy_value_and_grad(x32, target, label_smoothing=0.1)
assert_type(loss, np.float32)
assert_type(grad, NDArray[np.float32])
losses, grad64 = fastloss.binary_cross_entropy_with_logits_value_and_grad(
    x64, x64, pos_weight=2.0, reduction="none", out=x64
)
assert_type(losses, NDArray[np.float64])
assert_type(grad64, NDArray[np.float64])
assert_type(fastloss.sigmoid_focal_loss_backward(1.0, x32, x32), NDArray[np.float32])
value, gradients = fastloss.linear_cross_entropy_value_and_grad(x64, x64, target)
assert_type(value, np.float64)
assert_type(gradients, fastloss.LinearGradients)


def chosen(reduction: Literal["mean", "none"]) -> np.float32 | NDArray[np.float32]:
    """A reduction that is known only at run time gives either."""
    return fastloss.cross_entropy(x32, target, reduction=reduction)


# Criteria.
criterion = fastloss.CrossEntropyLoss(np.ones(3), label_smoothing=0.1)
assert_type(criterion, fastloss.CrossEntropyLoss)
total = fastloss.StreamingLoss(criterion)
assert_type(total.update(x32, target).compute(), float)

# Saved logits.
scores = fastloss.score_samples(x32, target)
assert_type(scores, fastloss.SampleScores)
assert_type(scores.predicted, NDArray[np.int64])

# Building blocks.
assert_type(fastloss.softmax(x32, axis=-1), NDArray[np.float32])

# Run time.
assert_type(fastloss.get_num_threads(), int)
