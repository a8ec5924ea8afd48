"""What the tests of the losses share: test data, and one comparison of a loss with the oracle.

A loss `NAME` has three functions, `NAME`, `NAME_value_and_grad` and `NAME_backward`. `check_loss`
holds all three, with every reduction, to an `oracle.Reference`.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

REDUCTIONS = ("none", "sum", "mean")
FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")


def dtype_of(name) -> np.dtype:
    """The dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def epsilon(dtype) -> float:
    return float(ml_dtypes.finfo(dtype_of(dtype)).eps)


def loss_dtype(dtype) -> np.dtype:
    """Half precision is computed, and its loss given, in float32; integers count as float64."""
    dtype = dtype_of(dtype)
    if dtype.kind in "iub":
        return np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def logits(rng: np.random.Generator, shape, dtype="float32", scale=4.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(dtype_of(dtype))


def assert_close(got, want, dtype=None, scale=None, units=16.0) -> None:
    """Equal to within `units` ε of each value, or of `scale` where that is larger.

    `scale` is the size of the terms that a value is a difference of.
    """
    got, want = np.asarray(got), np.asarray(want)
    dtype = got.dtype if dtype is None else dtype_of(dtype)
    tolerance = epsilon(dtype) * (1.0 if dtype.itemsize == 2 else units)
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    assert got.shape == want.shape
    np.testing.assert_allclose(
        got.astype(np.float64),
        want,
        rtol=tolerance,
        atol=max(tolerance * (scale or 0.0), least),
    )


def weighted(reference, sample_weight=1.0, kept=True):
    """The reference of element-wise losses with sample weights, without what is not kept."""
    weights = np.broadcast_to(np.asarray(sample_weight, np.float64), reference.losses.shape)
    weights = np.where(kept, weights, 0.0)
    return dataclasses.replace(
        reference,
        losses=np.where(kept, reference.losses * weights, 0.0),
        gradients=np.where(kept, reference.gradients * weights, 0.0),
        denominator=float(weights.sum()),
    )


def largest(values) -> float:
    """The largest finite magnitude, 0 of nothing."""
    magnitudes = np.abs(np.asarray(values, np.float64))
    return float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))


def check_loss(package, name, reference, x, *args, reductions=REDUCTIONS, seed=0, **options):
    """Hold the three functions of `name` to `reference`, for each reduction."""
    value = getattr(package, name)
    value_and_grad = getattr(package, f"{name}_value_and_grad")
    backward = getattr(package, f"{name}_backward")
    rng = np.random.default_rng(seed)
    dtype = np.asarray(x).dtype
    exact_dtype = loss_dtype(dtype)
    grad_dtype = np.dtype(np.float64) if dtype.kind in "iub" else dtype

    for reduction in reductions:
        options["reduction"] = reduction
        want_loss, want_grad = reference.loss(reduction), reference.grad(reduction)
        upstream = rng.standard_normal(np.shape(want_loss)).astype(exact_dtype)
        want_back = reference.backward(upstream, reduction)
        size = largest(reference.losses) if reduction == "none" else np.abs(want_loss)
        if reduction != "none" and (reference.losses < 0).any():  # terms that cancel
            size = largest(reference.losses) * (1 if reduction == "mean" else reference.losses.size)

        loss = value(x, *args, **options)
        assert np.asarray(loss).dtype == exact_dtype
        assert_close(loss, want_loss, exact_dtype, size)

        fused_loss, grad = value_and_grad(x, *args, **options)
        assert np.asarray(fused_loss).dtype == exact_dtype
        assert grad.dtype == grad_dtype
        assert_close(fused_loss, want_loss, exact_dtype, size)
        assert_close(grad, want_grad, grad_dtype, largest(want_grad))

        back = backward(upstream, x, *args, **options)
        assert back.dtype == grad_dtype
        assert_close(back, want_back, grad_dtype, largest(want_back))
