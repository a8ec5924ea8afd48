"""`fastloss.torch` against PyTorch itself.

Layout: a) PyTorch's own samples of each function, b) derivatives by differences, c) what is read in
place, d) who computes what, e) differences that are meant, f) modules, threads and workers,
g) training.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import fastloss
import fastloss.torch as ft
from fastloss import _threads
from fastloss.data import load_digits_logits

FUNCTIONS = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "kl_div",
    "linear_cross_entropy",
)
REDUCTIONS = ("mean", "sum", "none")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore:.*batchmean")


class Asked:
    """Stands for `torch.nn.functional` in `fastloss.torch`, and counts what is asked of it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattr__(self, name):
        function = getattr(F, name)

        def asked(*args, **kwargs):
            self.names.append(name)
            return function(*args, **kwargs)

        return asked


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Names of the functions that were left to PyTorch."""
    stand_in = Asked()
    monkeypatch.setattr(ft, "F", stand_in)
    return stand_in.names


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def arguments(name, dtype=torch.float32, rows=7, classes=5, seed=0):
    """Differentiable inputs of a function, and its other arguments."""
    g = generator(seed)
    x = torch.randn((rows, classes), generator=g, dtype=torch.float64)
    soft = torch.rand((rows, classes), generator=g, dtype=torch.float64)
    t = torch.randint(classes, (rows,), generator=g)
    if name == "linear_cross_entropy":
        w = torch.randn((6, classes), generator=g, dtype=torch.float64)
        b = torch.randn(6, generator=g, dtype=torch.float64)
        return [x.to(dtype), w.to(dtype)], [t], {"linear_bias": b.to(dtype)}
    if name in ("cross_entropy", "nll_loss"):
        x = x.log_softmax(1) if name == "nll_loss" else x
        return [x.to(dtype)], [t], {}
    if name == "binary_cross_entropy":
        x = x.sigmoid()
    elif name == "kl_div":
        x, soft = x.log_softmax(1), soft.softmax(1)
    return [x.to(dtype)], [soft.to(dtype)], {}


def call(module, name, x, others, **options):
    return getattr(module, name)(*x, *others, **options)


def loss_and_grads(module, name, x, others, upstream=None, **options):
    """The loss, and its gradients with respect to copies of `x`."""
    x = [a.detach().clone().requires_grad_() for a in x]
    loss = call(module, name, x, others, **options)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, x, upstream)


# ---- a) PyTorch's own samples ----------------------------------------------------------------


def opinfo_samples():
    """PyTorch's descriptions of the functions: (name, variant)."""
    pytest.importorskip("expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return [op for op in op_db if op.name.removeprefix("nn.functional.") in FUNCTIONS]


#: Samples that PyTorch computes here: of `kl_div` where target broadcasts, of
#: `linear_cross_entropy` those with options of its chunking and weights of more dimensions.
LEFT_TO_PYTORCH = {"linear_cross_entropy", "kl_div", "cross_entropy"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pytorchs_samples(name, dtype, asked):
    ops = [op for op in opinfo_samples() if op.name == f"nn.functional.{name}"]
    if not ops:
        pytest.skip(f"this PyTorch has no samples of {name}")
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {}
    count = left = 0
    for op in ops:
        if not op.supports_dtype(dtype, "cpu"):
            continue
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            asked.clear()
            args, kwargs = (sample.input, *sample.args), sample.kwargs
            got = getattr(ft, name)(*args, **kwargs)
            want = getattr(F, name)(*args, **kwargs)
            torch.testing.assert_close(got, want, equal_nan=True, **tolerance)
            left += bool(asked)
            inputs = [
                a for a in (*args, *kwargs.values()) if torch.is_tensor(a) and a.requires_grad
            ]
            if not want.requires_grad:
                assert not got.requires_grad
                continue
            upstream = torch.randn(want.shape, dtype=want.dtype, generator=generator(count))
            for one, other in zip(
                torch.autograd.grad(got, inputs, upstream, allow_unused=True),
                torch.autograd.grad(want, inputs, upstream, allow_unused=True),
                strict=True,
            ):
                assert (one is None) == (other is None)
                if one is not None:
                    torch.testing.assert_close(one, other, equal_nan=True, **tolerance)
            count += 1
    print(f"{name} {dtype}: {count} samples, {left} left to PyTorch")
    assert count > 0
