"""Random whole calls of every function over classes, held to a long-double oracle.

    python fuzz/calls.py --seconds 60 --seed 1 [--level avx2] [--only 1234]

Each call is made of (seed, its number) alone, so that `--only` repeats it. A call is held to

a) the oracle of `tests/oracle.py`, to the bound that the documentation promises, or to the error
   that it promises; an error must leave `out` as it was;
b) itself: the same bits in one pass and in two, for any layout, byte order, alignment, `out` and
   number of threads, and for samples in another order, or a part of them;
c) the other instruction sets that this processor has: each is held to a), from the same numbers.

Prints each find, and at the end how many calls were made; the exit status is 1 after a find.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import oracle
from conftest import LEVELS, load_level

inf, nan = np.inf, np.nan
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: The sizes of the kernels' own blocks, and their neighbours.
CLASSES = [1, 2, 3, 5, 10, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257]
LONG = [1023, 1024, 1025, 4095, 4096, 4097, 8191, 8192, 8193, 16_385, 20_001]
SAMPLES = [1, 1, 2, 3, 5, 7, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 200, 449]
#: Elements of a call, at most.
ELEMENTS = 60_000


class Found(AssertionError):
    """A call that is not as promised."""


class Problem(NamedTuple):
    """The arguments of a call, in their plainest form: contiguous, native, aligned."""

    kind: str
    x: np.ndarray
    target: Any
    axis: int
    options: dict[str, Any]
    #: Whether the target holds a class that there is not.
    wrong: bool


# ---- making a problem ------------------------------------------------------------------------


def shape_of(rng: np.random.Generator) -> tuple[tuple[int, ...], int]:
    """A shape and its class axis."""
    classes = int(rng.choice(LONG if rng.random() < 0.15 else CLASSES))
    most = max(int(10.0 ** rng.uniform(1, np.log10(ELEMENTS))) // classes, 1)
    samples = min(int(rng.choice(SAMPLES)), most)
    way = rng.integers(6)
    if way == 0:
        return (classes,), 0
    if way <= 2:
        return (samples, classes), 1
    if way == 3:
        return (classes, samples), 0
    inner = int(rng.choice([1, 2, 3, 5, 17, 64, 65]))
    outer = max(min(samples, most // inner), 1)
    if way == 4:
        return (outer, classes, inner), 1
    dims = [max(outer // 2, 1), 2 if outer > 1 else 1, inner]
    axis = int(rng.integers(4))
    return (*dims[:axis], classes, *dims[axis:]), axis


def values_of(rng: np.random.Generator, samples: int, classes: int, dtype: np.dtype) -> np.ndarray:
    """Rows of logits of many kinds, side by side."""
    narrow = dtype == np.float16
    x = rng.standard_normal((samples, classes))
    x *= rng.choice(
        [0.01, 0.1, 1.0, 10.0, 60.0, 300.0], (samples, 1), p=[0.05, 0.1, 0.4, 0.3, 0.1, 0.05]
    )
    plain = rng.random() < 0.3
    for i in range(samples):
        way = rng.integers(40) if not plain else 99
        if way == 0:
            x[i] = rng.standard_normal()
        elif way == 1:
            x[i] += rng.choice([80, -80, 100, -100, 700, -700, 1e4, -1e4])
        elif way == 2:
            x[i] = np.linspace(0, rng.choice([100, 300, 1500, 1e4, 1e30]), classes)
        elif way == 3:
            x[i] = x[i, ::-1] if rng.random() < 0.5 else np.sort(x[i])
        elif way == 4:
            x[i, rng.random(classes) < rng.choice([0.1, 0.5, 0.95])] = -inf
        elif way == 5:
            x[i, rng.integers(classes)] += rng.choice([20, 50, 86, 120, 300, 700, 1e5])
        elif way == 6:
            x[i, rng.integers(classes)] = rng.choice([nan, inf, -inf, -inf])
        elif way == 7:
            x[i] = -inf
        elif way == 8:
            x[i] *= rng.choice([1e-45, 1e-30, 1e-310, 0.0])
        elif way == 9:
            x[i] *= rng.choice([1e3, 1e10, 1e30, 1e34])
        elif way == 10:
            x[i, : rng.integers(classes + 1)] -= rng.choice([100, 1e3, 1e5, inf])
        elif way == 11:
            x[i] = np.round(x[i])
        elif way == 12:
            x[i] -= rng.choice([90, 200, 1000]) * np.arange(classes)
    if narrow:
        x = np.where(np.isfinite(x), np.clip(x, -6e4, 6e4), x)
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(dtype)


def dtype_of(rng: np.random.Generator) -> np.dtype:
    kinds = [np.float32, np.float64, np.float16, BFLOAT16]
    return np.dtype(kinds[rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])])


def spread_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    way = rng.integers(8)
    if way <= 3:
        w = rng.uniform(0.5, 2.0, shape)
    elif way == 4:
        w = np.where(rng.random(shape) < 0.3, 0.0, rng.uniform(0.5, 2.0, shape))
    elif way == 5:
        w = 10.0 ** rng.uniform(-8, 8, shape)
    elif way == 6:
        w = np.where(
            rng.random(shape) < 0.2, 10.0 ** rng.uniform(9, 25), rng.uniform(0.5, 2, shape)
        )
    else:
        w = np.full(shape, 10.0 ** rng.uniform(-12, 12))
    return np.asarray(w)


def problem_of(rng: np.random.Generator) -> Problem:
    kinds = ["index", "smooth", "soft", "focal", "nll", "softmax", "log_softmax", "logsumexp"]
    kind = str(
        rng.choice([*kinds, "score"], p=[0.3, 0.1, 0.15, 0.12, 0.05, 0.07, 0.07, 0.07, 0.07])
    )
    shape, axis = shape_of(rng)
    dtype = dtype_of(rng)
    classes = shape[axis]
    rest = shape[:axis] + shape[axis + 1 :]
    samples = int(np.prod(rest, dtype=int))
    rows = values_of(rng, samples, classes, dtype)
    x = np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, classes), -1, axis))
    options: dict[str, Any] = {}
    if kind in ("softmax", "log_softmax", "logsumexp"):
        return Problem(kind, x, None, axis, options, False)

    wide = rows.astype(np.float64)
    target = rng.integers(0, classes, samples)
    way = rng.integers(4, size=samples)
    target = np.where(way == 1, wide.argmax(axis=1), target)
    target = np.where(way == 2, wide.argmin(axis=1), target)
    ignored = int(rng.choice([-100, -1, 0, classes - 1, classes, 2**40]))
    if kind == "score":
        return Problem(kind, x, target.reshape(rest), axis, options, False)
    wrong = False
    if kind != "soft":
        part = rng.choice([0, 0, 0.1, 0.5, 0.95, 1])
        target[rng.random(samples) < part] = ignored
        options["ignore_index"] = ignored
        if rng.random() < 0.03:
            bad = int(rng.choice([-1, -2, classes, classes + 1, -(2**62), 2**62]))
            if bad != ignored:
                target[rng.integers(samples)] = bad
                wrong = True
    target = target.reshape(rest)
    if kind == "soft":
        p = rng.gamma(rng.choice([0.05, 0.5, 5.0]), size=(samples, classes))
        with np.errstate(invalid="ignore"):
            p = p / p.sum(axis=1, keepdims=True)
        p = np.where(np.isfinite(p), p, 0.0)
        hard = rng.random(samples) < 0.3
        p[hard] = np.eye(classes)[target.reshape(-1)[hard]] if classes <= 1025 else p[hard]
        if rng.random() < 0.2:
            p[rng.random(p.shape) < 0.5] = 0.0
        if rng.random() < 0.1:
            p = p * rng.choice([0.0, 1e-20, 7.0])
        if rng.random() < 0.2:
            p[np.isneginf(wide)] = 0.0
        kept = np.dtype(rng.choice(["f4", "f8", "f2"], p=[0.6, 0.3, 0.1]))
        target = np.ascontiguousarray(np.moveaxis(p.reshape(*rest, classes), -1, axis)).astype(kept)
    if kind in ("smooth", "soft") and (kind == "smooth" or rng.random() < 0.4):
        options["label_smoothing"] = float(rng.choice([0.1, 0.125, 1e-3, 1.0, 0.9]))
    if kind == "focal":
        options["gamma"] = float(rng.choice([0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 0.1]))
        if rng.random() < 0.4:
            options["alpha"] = spread_weights(rng, (classes,))
    elif rng.random() < 0.35:
        options["weight"] = spread_weights(rng, (classes,))
    if rng.random() < 0.35:
        shape_s = (
            rest if rng.random() < 0.7 else tuple(n if rng.random() < 0.5 else 1 for n in rest)
        )
        options["sample_weight"] = spread_weights(rng, shape_s)
    if kind in ("index", "smooth", "soft"):
        if rng.random() < 0.2:
            options["temperature"] = float(rng.choice([0.01, 0.5, 0.7, 2.0, 3.0, 100.0]))
        if rng.random() < 0.2:
            options["softcap"] = float(rng.choice([0.1, 1.0, 5.0, 15.0, 30.0, 50.0, 1e4]))
        if rng.random() < 0.2:
            options["z_loss"] = float(rng.choice([1e-4, 1e-2, 0.5, 3.0]))
    return Problem(kind, x, target, axis, options, wrong)


# ---- the same arguments in another form ------------------------------------------------------


def another_form(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    """The same numbers, laid out in another way."""
    way = rng.integers(7)
    if way == 0 and a.ndim:
        return np.repeat(a, 2, axis=-1)[..., ::2]
    if way == 1 and a.ndim:
        return np.asfortranarray(a)
    if way == 2:
        room = np.empty(a.nbytes + 1, np.uint8)
        b = room[1:].view(a.dtype) if a.dtype != BFLOAT16 else None
        if b is None:
            return a
        b = b.reshape(a.shape)
        b[...] = a
        return b
    if way == 3 and a.dtype != BFLOAT16:
        return a.astype(a.dtype.newbyteorder())
    if way == 4 and a.ndim:
        return np.ascontiguousarray(a[::-1])[::-1]
    if way == 5:
        b = a.copy()
        b.setflags(write=False)
        return b
    return a.copy()


NAMES = {
    "index": "cross_entropy", "smooth": "cross_entropy", "soft": "cross_entropy",
    "focal": "softmax_focal_loss", "nll": "nll_loss",
}  # fmt: skip


def bits(a: Any) -> np.ndarray:
    a = np.array(a, order="C")
    a = a.astype(a.dtype.newbyteorder("="))
    return a.reshape(-1).view(f"u{a.dtype.itemsize}")


def same(got: Any, want: Any, what: str) -> None:
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        raise Found(f"{what}: {got.dtype}{got.shape} instead of {want.dtype}{want.shape}")
    a, b = bits(got), bits(want)
    if a.dtype.kind == "u" and got.dtype.kind != "i":
        both_nan = (np.isnan(got.astype(float)) & np.isnan(want.astype(float))).reshape(-1)
    else:
        both_nan = np.zeros(a.shape, bool)
    differ = (a != b) & ~both_nan
    if differ.any():
        i = int(np.flatnonzero(differ)[0])
        raise Found(
            f"{what}: {differ.sum()} of {a.size} differ, first at {i}: {got.reshape(-1)[i]!r}"
            f" and {want.reshape(-1)[i]!r}"
        )


# ---- a) the oracle ---------------------------------------------------------------------------

worst: dict[tuple[str, str, str], tuple[float, str]] = {}


def hold(
    got: Any, want: Any, size: Any, limit: float, what: str, key: tuple[str, str], label: str,
    lost: Any = 0.0,
):  # fmt: skip
    """|got − want| at most `limit` ulp of `size`, in the type of `got`; halves are rounded.

    `lost`: how large a number may be that is lost before a weight is multiplied with it.
    """
    got, want, size = np.asarray(got), np.asarray(want), np.asarray(size)
    if got.shape != want.shape:
        raise Found(f"{what}: shape {got.shape} instead of {want.shape}")
    dtype = got.dtype
    info = ml_dtypes.finfo(dtype)
    half = dtype.itemsize == 2
    unit = np.dtype(np.float32) if half else dtype
    least, most = np.finfo(unit).smallest_normal, float(np.finfo(unit).max)
    value = got.astype(np.float64).astype(np.longdouble)
    with np.errstate(all="ignore"):
        known = np.where(np.isfinite(size), np.maximum(np.abs(want), size), np.abs(want))
        eps = float(np.finfo(unit).eps)
        # An ulp is at most eps times the number: powers of two are where it is that.
        scale = np.maximum(2.0 ** np.floor(np.log2(np.maximum(known, 1e-4900))), least) * eps
        allowed = limit * scale + lost
        if half:
            allowed = allowed + 0.5001 * np.maximum(
                float(info.eps) * 2.0 ** np.floor(np.log2(np.maximum(np.abs(want), 1e-4900))),
                float(info.smallest_subnormal),
            )
        error = np.abs(value - want)
        top = float(info.max)
        fine = error <= allowed
        fine |= np.isnan(value) & np.isnan(want)
        fine |= (
            np.isinf(value)
            & (np.abs(want) + allowed > top * (1 - float(info.eps)))
            & (np.sign(value) == np.sign(want))
        )
        # Terms that overflow.
        fine |= (known > most) & ~np.isnan(want) & ~np.isfinite(value)
        # Numbers below the normal ones.
        fine |= (np.abs(want) < least) & (np.abs(value) < 2 * least)
    if not fine.all():
        i = int(np.flatnonzero(~fine.reshape(-1))[0])
        with np.errstate(all="ignore"):
            off = float((error / scale).reshape(-1)[i])
        at = np.unravel_index(i, got.shape)
        raise Found(
            f"{what}: {(~fine).sum()} of {got.size} wrong, first at {tuple(map(int, at))}:"
            f" {got.reshape(-1)[i]!r}, exact {want.reshape(-1)[i]!r}, {off:.3g} ulp of"
            f" {size.reshape(-1)[i]!r}, allowed {limit}"
        )
    if not half and got.size:
        with np.errstate(all="ignore"):
            ulps = np.where(np.isfinite(value) & (np.abs(want) >= least), error / scale, 0)
        most_off = float(ulps.max())
        name = (*key, dtype.name)
        if most_off > worst.get(name, (0.0, ""))[0]:
            worst[name] = (most_off, label)


def against_oracle(problem: Problem, results: dict[str, Any], label: str) -> None:
    kind, x, target, axis, options, _ = problem
    dtype = x.dtype
    key = kind
    if kind in ("softmax", "log_softmax", "logsumexp", "score"):
        wide = np.moveaxis(x.astype(np.float64).astype(np.longdouble), axis, -1)
        p, _, nll = oracle._softmax_parts(wide)
        if kind == "softmax":
            hold(np.moveaxis(results["value"], axis, -1), p, p, 4, kind, (kind, ""), label)
        elif kind == "log_softmax":
            size = np.abs(nll)
            hold(np.moveaxis(results["value"], axis, -1), -nll, size, 4, kind, (kind, ""), label)
        elif kind == "logsumexp":
            with np.errstate(invalid="ignore"):
                m = wide.max(axis=-1)
                rest = nll.min(axis=-1)
                want = np.where(np.isfinite(m), m + rest, m)
                size = np.maximum(np.abs(m), rest)
            got = results["value"]
            hold(got, want, np.where(np.isfinite(size), size, 0), 4, kind, (kind, ""), label)
        else:
            scores = results["value"]

            def pick(index):
                return np.take_along_axis(nll, index[..., None], axis=-1)[..., 0]

            hold(
                scores.log_prob,
                -pick(target),
                pick(target),
                4,
                "log_prob",
                (kind, "log_prob"),
                label,
            )
            bad = np.isnan(nll).any(axis=-1)
            first = wide.argmax(axis=-1)
            same(scores.predicted[~bad], first[~bad], "predicted")
            hold(
                scores.predicted_log_prob, np.where(bad, nan, -pick(first)), pick(first), 4,
                "predicted_log_prob", (kind, "predicted"), label,
            )  # fmt: skip
            entropy = oracle._product(p, nll).sum(axis=-1)
            hold(scores.entropy, entropy, entropy, 4, "entropy", (kind, "entropy"), label)
        return

    if kind == "nll":
        wide = np.moveaxis(x.astype(np.float64).astype(np.longdouble), axis, -1)
        live = target != options["ignore_index"]
        index = np.where(live, target, 0)
        w = np.asarray(options.get("weight", np.ones(wide.shape[-1]))).astype(np.longdouble)
        s = np.broadcast_to(options.get("sample_weight", 1.0), live.shape)
        factor = np.where(live, w[index] * s, 0)
        picked = np.take_along_axis(wide, index[..., None], axis=-1)[..., 0]
        losses = np.where(live, oracle._product(-factor, picked), 0)
        gradients = np.zeros(wide.shape, np.longdouble)
        np.put_along_axis(gradients, index[..., None], -factor[..., None], axis=-1)
        terms = oracle.Terms(losses, abs(losses), gradients, abs(gradients), float(factor.sum()))
        limit = 4.0
    else:
        tempered = options.get("temperature", 1.0) != 1.0 or "softcap" in options
        terms = oracle.softmax_loss(
            x, target, axis=axis, rounded_z=tempered and dtype == np.float64, **options
        )
        limit = 4.0
        if kind == "focal":
            limit += 3.0 * options["gamma"]
        if tempered:
            key += " tempered"
        if "z_loss" in options:
            key += " z_loss"
            if dtype == np.float64:
                limit += 2  # S² doubles the error of S
    # What is too small for the type it is computed in is lost, and a weight does not bring it back.
    # Float32 takes another way where a weight is 1e10 or more.
    weights = (
        np.broadcast_to(
            np.abs(np.asarray(options.get("sample_weight", 1.0), np.longdouble)),
            results["none"].shape,
        )
        * np.abs(options.get("weight", options.get("alpha", np.ones(1)))).max()
    )
    least = np.longdouble(2.0) ** (-1022 if dtype == np.float64 else -149)
    if kind == "nll" or (dtype != np.float64 and kind != "soft"):
        least = np.longdouble(0)
    lost = least * np.maximum(weights, 1)
    hold(
        results["none"], terms.losses, terms.loss_sizes, limit, "losses", (key, "loss"), label, lost
    )
    with np.errstate(all="ignore"):
        total, size, part = terms.losses.sum(), np.abs(terms.loss_sizes).sum(), lost.sum()
    hold(results["sum"], total, size, limit + 2, "sum", (key, "sum"), label, part)
    with np.errstate(all="ignore"):
        divisor = np.longdouble(terms.denominator)
        mean, size, part = total / divisor, size / abs(divisor), part / abs(divisor)
    hold(results["mean"], mean, size, limit + 3, "mean", (key, "mean"), label, part)
    if dtype == np.float64 and "softcap" in options:
        limit += 2  # dz/dx is one more factor
    gradients, sizes, lost = terms.gradients, terms.gradient_sizes, lost[..., None]
    for name, factor, more in [
        ("gradient", np.longdouble(1), 0.0),
        ("backward", results["upstream"].astype(np.longdouble)[..., None], 0.5),
        ("mean gradient", results["scalar"] / divisor if divisor else np.longdouble(0), 1.0),
    ]:
        with np.errstate(all="ignore"):
            want = np.where(gradients == 0, 0, gradients * factor)
            size = np.where(sizes == 0, 0, np.abs(sizes * factor))
            part = lost * np.maximum(np.abs(factor), 1)
        g = np.moveaxis(results[name], axis, -1)
        hold(g, want, size, limit + more, name, (key, name), label, part)


# ---- b) itself -------------------------------------------------------------------------------


def in_form(rng: np.random.Generator, options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: another_form(rng, value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def call_building_block(fl: ModuleType, problem: Problem, rng: np.random.Generator) -> dict:
    kind, x, target, axis, _, _ = problem
    name = "score_samples" if kind == "score" else kind
    rest = () if target is None else (target,)
    value = getattr(fl, name)(x, *rest, axis=axis)
    again = getattr(fl, name)(another_form(rng, x), *rest, axis=axis)
    for a, b in zip(again if kind == "score" else [again], value if kind == "score" else [value],
                    strict=True):  # fmt: skip
        if b is not None:
            same(a, b, "another form")
    return {"value": value}


def call_loss(fl: ModuleType, problem: Problem, rng: np.random.Generator, spot: dict) -> dict:
    kind, x, target, axis, options, wrong = problem
    name = NAMES[kind]
    value = getattr(fl, name)
    fused = getattr(fl, f"{name}_value_and_grad")
    back = getattr(fl, f"{name}_backward")
    options = {**options, "axis": axis}
    grad_dtype = x.dtype
    if wrong:
        out = np.full(x.shape, 7, grad_dtype)
        for call in (
            lambda: value(x, target, **options),
            lambda: fused(x, target, out=out, **options),
        ):
            try:
                call()
            except IndexError as error:
                if "outside [0" not in str(error):
                    raise Found(f"message {error}") from None
            else:
                raise Found("a wrong class index is no error")
        if (out != 7).any():
            raise Found("out was written before an error")
        return {}
    results: dict[str, Any] = {}
    for reduction in ("none", "sum", "mean"):
        results[reduction] = value(x, target, reduction=reduction, **options)
    loss, gradient = fused(x, target, reduction="none", **options)
    same(loss, results["none"], "loss with gradient")
    results["gradient"] = gradient
    loss, g = fused(x, target, reduction="sum", **options)
    same(loss, results["sum"], "sum with gradient")
    same(g, gradient, "gradient of the sum")
    # Another form of all arguments.
    got, g = fused(
        another_form(rng, x), another_form(rng, target), reduction="none", **in_form(rng, options)
    )
    same(got, results["none"], "losses in another form")
    same(g, gradient, "gradient in another form")
    # Into an array, and in place.
    room = np.full(x.size + 8, 3, grad_dtype)
    shift = int(rng.integers(9))
    out = room[shift : shift + x.size].reshape(x.shape)
    _, g = fused(x, target, reduction="none", out=out, **options)
    same(g, gradient, "gradient in out")
    if (room[:shift] != 3).any() or (room[shift + x.size :] != 3).any():
        raise Found("written beside out")
    out[...] = x
    got, g = fused(out, target, reduction="none", out=out, **options)
    same(got, results["none"], "losses in place")
    same(g, gradient, "gradient in place")
    if (room[:shift] != 3).any() or (room[shift + x.size :] != 3).any():
        raise Found("written beside out in place")
    # Overlaps are errors.
    if x.size > 1:
        room = np.zeros(x.size + 1, grad_dtype)
        a, b = room[:-1].reshape(x.shape), room[1:].reshape(x.shape)
        a[...] = x
        copy = room.copy()
        try:
            fused(a, target, out=b, **options)
        except ValueError as error:
            if "overlap" not in str(error):
                raise Found(f"message {error}") from None
        else:
            raise Found("an overlap is no error")
        same(room, copy, "room after an overlap")
    # Upstream gradients.
    upstream = spot.get("upstream")
    if upstream is None:
        upstream = np.asarray(rng.standard_normal(results["none"].shape))
        if rng.random() < 0.2:
            upstream *= 10.0 ** rng.choice([-20, -10, 9, 10, 12, 20])
        if rng.random() < 0.2:
            upstream = np.where(rng.random(upstream.shape) < 0.3, 0.0, upstream)
        spot["upstream"] = upstream
        spot["scalar"] = float(rng.choice([1.0, -1.0, 0.3, 1e-3, 1e12]))
    results["upstream"], results["scalar"] = upstream, spot["scalar"]
    results["backward"] = back(upstream, x, target, reduction="none", **options)
    results["mean gradient"] = back(spot["scalar"], x, target, reduction="mean", **options)
    # Other samples beside a sample.
    rest = results["none"].shape
    n = int(np.prod(rest, dtype=int))
    if n > 1:
        classes = x.shape[axis]
        rows = np.moveaxis(x, axis, -1).reshape(n, classes)
        inner = int(np.prod(x.shape[axis + 1 :], dtype=int))
        picked = rng.integers(0, n, int(rng.integers(1, 2 * n + 1)))
        if picked.size > 1 or inner == 1:
            kept = {**options, "axis": 1 if inner == 1 else 0}

            def turn(a: np.ndarray, inner: int = inner) -> np.ndarray:
                return np.ascontiguousarray(a if inner == 1 else a.T)

            t = (
                turn(np.moveaxis(target, axis, -1).reshape(n, classes)[picked])
                if kind == "soft"
                else target.reshape(n)[picked]
            )
            if "sample_weight" in kept:
                kept["sample_weight"] = np.broadcast_to(kept["sample_weight"], rest).reshape(n)[
                    picked
                ]
            got, g = fused(turn(rows[picked]), t, reduction="none", **kept)
            same(got, results["none"].reshape(n)[picked], f"losses of samples {picked[:5]}")
            want = np.moveaxis(gradient, axis, -1).reshape(n, classes)[picked]
            same(g if inner == 1 else g.T, want, f"gradients of samples {picked[:5]}")
    return results


def one_call(levels: dict[str, ModuleType], seed: int, number: int, counts: Counter) -> None:
    problem = problem_of(np.random.default_rng([seed, number]))
    spot: dict[str, Any] = {}
    for level, fl in levels.items():
        rng = np.random.default_rng([seed, number, 1])
        label = f"--seed {seed} --only {number}"
        first: dict[str, Any] = {}
        for threads in rng.choice([1, 2, 3, 7], 2 if number % 4 == 0 else 1, replace=False):
            # However little there is to do.
            fl.special._threads.for_work = lambda elements, threads=int(threads): threads
            rng = np.random.default_rng([seed, number, 2])
            counts[problem.kind] += 1
            if problem.kind in NAMES:
                results = call_loss(fl, problem, rng, spot)
            else:
                results = call_building_block(fl, problem, rng)
            for name in results.keys() & first.keys() - {"upstream", "scalar"}:
                a, b = results[name], first[name]
                for one, other in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
                    same(one, other, f"{name}, {threads} threads")
            first = results
        if first:
            try:
                against_oracle(problem, first, label)
            except Found as error:
                raise Found(f"{level}: {error}") from None


def described(problem: Problem) -> str:
    options = {
        name: f"{value.dtype}{value.shape} from {value.min():.3g} to {value.max():.3g}"
        if isinstance(value, np.ndarray) and value.size
        else value
        for name, value in problem.options.items()
    }
    target = "" if problem.target is None else f" target {problem.target.dtype}"
    return (
        f"{problem.kind} {problem.x.dtype}{problem.x.shape} axis {problem.axis}{target} {options}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", choices=LEVELS, help="this instruction set alone")
    parser.add_argument("--only", type=int, help="the call of this number alone")
    parser.add_argument("--worst", action="store_true", help="print the worst errors, in ulp")
    parser.add_argument("--finds", type=int, default=20, help="stop after so many")
    arguments = parser.parse_args()
    levels = {}
    for level in [arguments.level] if arguments.level else LEVELS:
        try:
            levels[level] = load_level(level)
        except ImportError:
            if arguments.level:
                raise
    counts: Counter = Counter()
    finds, number = 0, arguments.only or 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        try:
            one_call(levels, arguments.seed, number, counts)
        except Exception as error:
            finds += 1
            problem = problem_of(np.random.default_rng([arguments.seed, number]))
            print(
                f"--seed {arguments.seed} --only {number}: {described(problem)}\n  {error}",
                flush=True,
            )
            if not isinstance(error, Found):
                traceback.print_exc()
            if finds >= arguments.finds:
                break
        if arguments.only is not None:
            break
        number += 1
    print(
        f"{number} problems on {', '.join(levels)},"
        f" {counts.total()} rounds of calls: {dict(counts)}"
    )
    for key, (ulps, label) in sorted(worst.items()) if arguments.worst else ():
        print(f"  {' '.join(key):45} {ulps:8.3f} ulp  {label}")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
