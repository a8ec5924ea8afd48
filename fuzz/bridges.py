"""Random calls of fastloss.torch and fastloss.dask, held to those of the same numbers as arrays.

    python fuzz/bridges.py --seconds 60 [torch] [dask] [--seed 1] [--only 1234]

torch: losses and gradients of tensors in any memory layout, for upstream gradients, twice, with
inputs as they were. dask: losses, gradients and scores of arrays in random chunks, which must have
the bits of one call; and means, which must have its digits. What the arrays' own functions give is
held to exact numbers by calls.py. What is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time
import traceback
import warnings
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np

import common  # noqa: F401 -- first: it finds the folder of the tests
import fastloss
import over_classes
import over_elements
import over_pairs
from common import BFLOAT16, Found, Generator, exact, same

calls: Counter[str] = Counter()


def close(
    got: Any, want: Any, dtype: np.dtype, what: str, size: Any = 0.0, times: float = 8
) -> None:
    """Within some ulp of the type, of the number or of `size`."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise Found(f"{what}: shape {got.shape} instead of {want.shape}")
    info = ml_dtypes.finfo(dtype)
    a, b = exact(got), exact(want)
    with np.errstate(all="ignore"):
        least = float(np.finfo(np.float32).tiny) if dtype != np.float64 else float(info.tiny)
        off = np.abs(a - b) > times * float(info.eps) * np.maximum(np.abs(b), size) + max(
            least, float(info.smallest_subnormal)
        )
        # Next to the largest number, rounding may go either way.
        off &= ~(
            (np.abs(a) > float(info.max) / 2) & (np.abs(b) > float(info.max) / 2) & (a * b > 0)
        )
    off &= ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if off.any():
        i = int(np.flatnonzero(off.reshape(-1))[0])
        raise Found(f"{what}: {got.reshape(-1)[i]!r} instead of {want.reshape(-1)[i]!r}")


# ---- a) PyTorch ------------------------------------------------------------------------------

TORCH = ["cross_entropy", "soft", "nll_loss", "binary_cross_entropy",
         "binary_cross_entropy_with_logits", "kl_div"]  # fmt: skip


def tensor_of(torch: Any, a: np.ndarray) -> Any:
    if a.dtype == BFLOAT16:
        return torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(a.copy())


def array_of(torch: Any, t: Any) -> np.ndarray:
    t = t.detach().contiguous()
    if t.dtype is torch.bfloat16:
        return t.view(torch.int16).numpy().view(BFLOAT16)
    return t.numpy()


def laid_out(torch: Any, rng: Generator, t: Any) -> Any:
    """The same tensor in another layout."""
    way = rng.integers(6)
    if way == 0 and t.dim() > 1:  # channels last
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if way == 1 and t.dim() > 1:
        return t.movedim(1, 0).contiguous().movedim(0, 1)
    if way == 2 and t.dim():
        return torch.stack([t, t], dim=-1)[..., 0]
    if way == 3 and t.dim() > 1:
        return t.mT.contiguous().mT
    if way == 4 and t.numel():
        return torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape)
    return t


def torch_call(rng: Generator, torch: Any, ft: Any) -> None:
    kind = str(rng.choice(TORCH))
    dtype = over_classes.dtype_of(rng)
    n, c = int(rng.choice([0, 1, 2, 5, 33, 65])), int(rng.choice([1, 2, 3, 10, 33, 130]))
    more = tuple(int(k) for k in rng.choice([1, 2, 3, 7], int(rng.choice([0, 0, 0, 1, 2]))))
    shape = (n, c, *more) if rng.random() < 0.9 else (c,)
    name = "cross_entropy" if kind == "soft" else kind
    reduction = str(rng.choice(["none", "sum", "mean"]))
    options: dict[str, Any] = {"reduction": reduction}
    size = int(np.prod(shape, dtype=int))
    samples = shape[:1] + shape[2:] if len(shape) > 1 else ()
    x = over_classes.values_of(rng, size // c, c, dtype)
    x = np.ascontiguousarray(np.moveaxis(x.reshape(*samples, c), -1, min(1, len(shape) - 1)))
    arrays: dict[str, Any] = {}
    if kind in ("cross_entropy", "nll_loss"):
        target: Any = np.asarray(rng.integers(0, c, samples))
        target = np.where(rng.random(samples) < 0.2, -100, target)
        options["ignore_index"] = -100
        if kind == "cross_entropy" and rng.random() < 0.3:
            options["label_smoothing"] = 0.1
    elif kind == "soft":
        target = over_elements.fractions_of(rng, shape, dtype)
    else:
        target = over_elements.fractions_of(rng, shape, dtype)
        if kind == "binary_cross_entropy":
            x = over_elements.fractions_of(rng, shape, dtype)
        elif kind == "kl_div":
            x = np.minimum(x, -x)
            x = np.where(np.isfinite(x), x, np.asarray(-1, dtype))
            if rng.random() < 0.3:
                reduction = options["reduction"] = "batchmean"
    if kind in ("cross_entropy", "soft", "nll_loss"):
        if rng.random() < 0.4:
            arrays["weight"] = rng.uniform(0.2, 3, c).astype(dtype)
    elif kind != "kl_div":
        if rng.random() < 0.4:
            arrays["weight"] = rng.uniform(0.2, 3, shape[-1:]).astype(dtype)
        if kind.endswith("logits") and rng.random() < 0.4:
            arrays["pos_weight"] = rng.uniform(0.2, 3, shape).astype(dtype)
    if reduction == "batchmean" and len(shape) == 1:
        return
    given = {key: laid_out(torch, rng, tensor_of(torch, value)) for key, value in arrays.items()}
    tensor = laid_out(torch, rng, tensor_of(torch, x)).requires_grad_(bool(rng.random() < 0.8))
    t = laid_out(torch, rng, tensor_of(torch, np.asarray(target)))
    loss = getattr(ft, name)(tensor, t, **given, **options)
    calls[f"torch.{name}"] += 1
    with torch.no_grad():
        again = getattr(ft, name)(tensor, t, **given, **options)
    same(array_of(torch, loss), array_of(torch, again), "without a gradient")
    want = getattr(fastloss, name)(x, target, **arrays, **options)
    if loss.dtype is not tensor.dtype:
        raise Found(f"{loss.dtype} of {tensor.dtype}")
    with np.errstate(over="ignore", under="ignore"):
        want = np.asarray(want).astype(dtype)
    close(array_of(torch, loss), want, dtype, "loss", size=1e-3 if kind == "kl_div" else 0.0)
    same(array_of(torch, tensor), x, "the input afterwards")
    if not tensor.requires_grad:
        return
    upstream = np.asarray(rng.standard_normal(want.shape)).astype(dtype)
    if rng.random() < 0.2:
        upstream = np.ones_like(upstream)
    back = getattr(fastloss, f"{name}_backward")
    g = back(upstream.astype(float), x, target, **arrays, **options)
    # The largest of two terms: a share of the weights, the upstream gradient and the target.
    scale = 9 * np.abs(upstream.astype(float)).max(initial=0)
    if kind in ("binary_cross_entropy",):
        scale = 0.0
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, tensor, tensor_of(torch, upstream), retain_graph=True)
        close(array_of(torch, found), g, dtype, "gradient", size=scale)
        if found.dtype is not tensor.dtype or found.shape != tensor.shape:
            raise Found("type of the gradient")
        found.zero_()  # it belongs to the caller
    same(array_of(torch, tensor), x, "the input after backward")


# ---- b) dask ---------------------------------------------------------------------------------


def chunked(rng: Generator, da: Any, a: np.ndarray, whole: int | None) -> Any:
    """An array in random chunks, with axis `whole` in one."""
    chunks = []
    for axis, n in enumerate(a.shape):
        cuts = np.unique(rng.integers(0, n + 1, rng.integers(0, 4))) if axis != whole else []
        edges = [0, *[int(k) for k in cuts if 0 < k < n], n]
        chunks.append(tuple(b - a for a, b in itertools.pairwise(edges)))
    return da.from_array(a, chunks=tuple(chunks))


def dask_call(rng: Generator, da: Any, fd: Any) -> None:
    way = rng.integers(4)
    if way == 0:
        problem: Any = over_classes.make(rng)
        names = over_classes.NAMES
    elif way == 1:
        problem, names = over_elements.make(rng), over_elements.NAMES
    elif way == 2:
        problem, names = over_pairs.make(rng), {"distil": "distillation_loss"}
    else:
        problem, names = over_classes.make(rng), {"index": "score_samples"}
    x = problem.x
    if problem.kind not in names or problem.wrong or not x.size or x.size > 4000 or not x.ndim:
        return
    name, axis = names[problem.kind], getattr(problem, "axis", None)
    target = problem.y if name == "distillation_loss" else problem.target
    options = dict(problem.options)
    if axis is not None:
        options["axis"] = axis
    if name == "score_samples":
        keep = ("axis", "ignore_index", "temperature", "softcap")
        options = {key: value for key, value in options.items() if key in keep}
    calls[f"dask.{name}"] += 1
    lazy = {}
    for key, value in options.items():
        full = np.ndim(value) and np.shape(value) == x.shape and axis is None
        lazy[key] = chunked(rng, da, value, None) if full and rng.random() < 0.5 else value
    parts = chunked(rng, da, x, axis)
    t = target
    if rng.random() < 0.5:
        t = chunked(rng, da, target, axis if np.shape(target) == x.shape else None)
    if name == "score_samples":
        found, want = (
            fd.score_samples(parts, t, **lazy),
            fastloss.score_samples(x, target, **options),
        )
        for field, a, b in zip(want._fields, found, want, strict=True):
            if b is not None:
                same_but_layout(a.compute(), b, f"{field} of chunks")
        return
    for reduction in ("none", "mean", "sum"):
        fused = getattr(fd, f"{name}_value_and_grad")
        value, grad = fused(parts, t, reduction=reduction, **lazy)
        fused = getattr(fastloss, f"{name}_value_and_grad")
        with np.errstate(all="ignore"):
            want, g = fused(x, target, reduction=reduction, **options)
            got, h = value.compute(), grad.compute()
        dtype = np.asarray(want).dtype
        if reduction == "none":
            same_but_layout(got, want, "losses of chunks")
        else:
            terms = getattr(fastloss, name)(x, target, reduction="none", **options)
            terms = np.abs(exact(terms))
            size = float(np.where(np.isfinite(terms), terms, 0).sum())
            if reduction == "mean" and np.isfinite(exact(want)) and want:
                sums = fastloss_sum(name, x, target, options)
                size = size * abs(float(want) / sums) if sums else size
            close(got, want, dtype, reduction, size)
        if reduction == "mean":
            same_but_layout(h, g, "gradient of the mean of chunks", 1.0)
        else:
            same_but_layout(h, g, f"gradient of chunks, {reduction}", 1.0)


def fastloss_sum(name: str, x: Any, target: Any, options: dict[str, Any]) -> float:
    return float(getattr(fastloss, name)(x, target, reduction="sum", **options))


def same_but_layout(got: Any, want: Any, what: str, share: float = 1e-3) -> None:
    """The same numbers up to the last digits: a chunk may lie in memory in another way.

    `share`: of the largest number, that the terms of any may have.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.dtype != want.dtype:
        raise Found(f"{what}: {got.dtype} instead of {want.dtype}")
    if got.dtype.kind in "iub":
        same(got, want, what)
        return
    finite = np.abs(np.where(np.isfinite(exact(want)), exact(want), 0)).max(initial=0)
    close(got, want, got.dtype, what, size=finite * share)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bridges", nargs="*", default=["torch", "dask"], metavar="bridge")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    known: list[Any] = []
    for bridge in arguments.bridges:
        try:
            own = importlib.import_module(f"fastloss.{bridge}")
        except ImportError as error:
            print(f"left out: {error}")
            continue
        other = importlib.import_module("torch" if bridge == "torch" else "dask.array")
        known.append((torch_call if bridge == "torch" else dask_call, other, own))
    if not known:
        return 0
    if any(function is dask_call for function, *_ in known):
        importlib.import_module("dask").config.set(scheduler="synchronous")
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    finds, number = 0, arguments.only or 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end and finds < 10:
        function, *modules = known[number % len(known)]
        rng = np.random.default_rng([arguments.seed, number])
        try:
            function(rng, *modules)
        except Exception as error:
            finds += 1
            print(
                f"--seed {arguments.seed} --only {number}: {function.__name__}: {error}", flush=True
            )
            if not isinstance(error, Found):
                traceback.print_exc()
        number += 1
        if arguments.only is not None:
            break
    print(f"{number:,} problems, {calls.total():,} calls, {finds} finds: {dict(calls)}")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
