"""Softmax options and the focal loss over classes, in NumPy, until their kernel takes over."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastloss import _arrays
from fastloss._arrays import Array


def evaluate(
    focal: bool,
    a: _arrays.Classes,
    factor: Array | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    gamma: float,
    scale: float,
    losses: Array | None,
    grad: Array | None,
) -> tuple[int, float, float]:
    """Write losses and gradient; return (first wrong index or -1, sum of losses, of weights)."""
    shape = a.shape
    x = a.logits.reshape(shape).astype(np.float64)
    s = np.ones((shape[0], shape[2])) if factor is None else factor
    w = np.ones(shape[1]) if a.weight is None else a.weight
    share = w * smoothing / max(shape[1], 1)
    if a.target is None:
        assert a.probabilities is not None
        live, mass = np.ones(s.shape, bool), np.ones(s.shape)
        q = w[:, None] * a.probabilities.reshape(shape) * (1 - smoothing) + share[:, None]
    else:
        live = a.target != ignore_index
        wrong = np.flatnonzero(live & ((a.target < 0) | (a.target >= shape[1])))
        if wrong.size:
            return int(wrong[0]), 0.0, 0.0
        index = np.where(live, a.target, 0)
        mass = np.where(live, w[index], 0.0) if shape[1] else np.zeros(s.shape)
        onehot = np.arange(shape[1])[:, None] == index[:, None, :]
        q = onehot * mass[:, None, :] * (1 - smoothing) + share[:, None]
    weights = float(np.sum(np.where(live, mass * s, 0.0)))
    x = np.where(live[:, None, :], x, 0.0)
    with np.errstate(all="ignore"):
        slope: Any = 1.0 / temperature
        if softcap is not None:
            t = np.tanh(x / softcap)
            x, slope = softcap * t, (1.0 - t * t) * slope
        z = x / temperature
        m = z.max(axis=1, keepdims=True, initial=-np.inf)
        e = np.exp(z - m)
        total = e.sum(axis=1, keepdims=True)
        p, lse = e / total, m + np.log(total)
        nll = lse - z
        terms = np.where(q == 0, 0.0, q * nll)
        g = p * q.sum(axis=1, keepdims=True) - q
        per = terms.sum(axis=1)
        if focal:
            own = np.where(onehot, nll, 0.0).sum(axis=1)
            miss = np.where(onehot, 0.0, p).sum(axis=1)
            rise = miss**gamma
            if gamma:
                rise = rise + gamma * miss ** (gamma - 1) * (1.0 - miss) * own
            per, g = per * miss**gamma, g * rise[:, None, :]
        per = per + z_loss * mass * lse[:, 0] ** 2
        g = g + 2.0 * z_loss * mass[:, None, :] * lse * p
        per = np.where(live & (s != 0), per * s, 0.0)
        g = np.where((live & (s != 0))[:, None, :], g * s[:, None, :] * slope, 0.0)
        if reduction == "mean":
            scale = scale / weights if weights else 0.0
    if losses is not None:
        losses[...] = per
    if grad is not None:
        grad.reshape(shape)[...] = g * scale
    return -1, float(per.sum()), weights
