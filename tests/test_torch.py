"""`fastloss.torch` against PyTorch itself.

Layout: a) PyTorch's own samples of each function, b) derivatives by differences, c) what is read in
place, d) who computes what, e) differences that are meant, f) modules, threads and workers,
g) training.
"""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import fastloss
import fastloss.torch as ft
from fastloss import _arrays, _threads
from fastloss.data import load_digits_logits
from fastloss.losses import _layer

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
    t = torch.randint(min(classes, 6), (rows,), generator=g)
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


def opinfo(name):
    """PyTorch's descriptions of a function, one for each variant of its samples."""
    pytest.importorskip("expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    found = [op for op in op_db if op.name == f"nn.functional.{name}"]
    if not found:
        pytest.skip(f"this PyTorch has no samples of {name}")
    return found


def own_copies(tensors, differentiable):
    return {
        key: value.detach().clone().requires_grad_(key in differentiable)
        if torch.is_tensor(value)
        else value
        for key, value in tensors.items()
    }


def compare(name, given, seed):
    """Hold loss and gradients to PyTorch's, for half precision to those in float64."""
    results = []
    differentiable = [k for k, v in given.items() if torch.is_tensor(v) and v.requires_grad]
    half = given["input"].dtype is torch.bfloat16
    for module in (ft, F):
        own = own_copies(given, differentiable)
        if half and module is F:
            own = {
                k: v.detach().double().requires_grad_(k in differentiable)
                if torch.is_tensor(v) and v.is_floating_point()
                else v
                for k, v in own.items()
            }
        loss = getattr(module, name)(**own)
        grads = ()
        if loss.requires_grad:
            upstream = torch.randn(loss.shape, generator=generator(seed)).to(given["input"].dtype)
            inputs = [own[key] for key in differentiable]
            grads = torch.autograd.grad(loss, inputs, upstream.to(loss.dtype), allow_unused=True)
        results.append((loss.detach(), grads))
    (got, got_grads), (want, want_grads) = results
    tolerance = {"rtol": 1.6e-2, "atol": 1e-3} if half else {}
    torch.testing.assert_close(got, want.to(got.dtype), equal_nan=True, **tolerance)
    for one, other in zip(got_grads, want_grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other.to(one.dtype), equal_nan=True, **tolerance)


@pytest.mark.filterwarnings("ignore:.*options.*ignored")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_pytorchs_samples(name, dtype, asked):
    """Each sample as it comes, and with no derivatives but those that fastloss makes.

    Samples want the gradient of the target, too, which sends them to PyTorch.
    """
    if name == "linear_cross_entropy":
        names = ["input", "linear_weight", "target"]
        ours = {"input", "linear_weight", "linear_bias"}
    else:
        names, ours = ["input", "target"], {"input"}
    count = 0
    for op in opinfo(name):
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            given = dict(zip(names, (sample.input, *sample.args), strict=True)) | sample.kwargs
            if dtype is not torch.bfloat16:
                compare(name, given, count)
            plain = own_copies(given, ours)
            # How PyTorch cuts its rows is PyTorch's.
            plain.pop("options", None)
            asked.clear()
            getattr(ft, name)(**plain)
            assert not asked, (asked, plain)
            compare(name, plain, count)
            if name == "linear_cross_entropy":
                compare_with_arrays(plain)
            count += 1
    print(f"{name}, {dtype}: {count} samples")
    assert count >= 10


def compare_with_arrays(given):
    """Hold the function of arrays to the same sample."""
    half = given["input"].dtype is torch.bfloat16
    tensors = {k: v.detach().double() for k, v in given.items() if torch.is_tensor(v)}
    tensors["target"] = given["target"] if not given["target"].is_floating_point() else None
    if tensors["target"] is None:
        tensors["target"] = given["target"].detach().double()
    names = [n for n in ("input", "linear_weight", "linear_bias") if n in given]
    for n in names:
        tensors[n].requires_grad_()
    others = {k: v for k, v in given.items() if not torch.is_tensor(v)}
    want = F.linear_cross_entropy(**tensors, **others)
    grads = torch.autograd.grad(want.sum(), [tensors[n] for n in names])
    arrays = {
        k: v.detach().float().numpy().astype(ml_dtypes.bfloat16)
        if v.dtype is torch.bfloat16
        else v.detach().numpy()
        for k, v in given.items()
        if torch.is_tensor(v)
    }
    single = given["input"].dtype is torch.float32
    near = {"rtol": 1.6e-2 if half else 1e-4 if single else 1e-7, "atol": 1e-2 if half else 1e-4}
    loss, made = fastloss.linear_cross_entropy_value_and_grad(**arrays, **others)
    np.testing.assert_allclose(np.float64(loss), want.detach().numpy(), **near)
    for n, grad in zip(names, grads, strict=True):
        np.testing.assert_allclose(getattr(made, n).astype(np.float64), grad.numpy(), **near)


# ---- b) derivatives by differences -----------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives(name, reduction, asked):
    x, others, options = arguments(name, torch.float64)
    options["reduction"] = reduction
    if name == "linear_cross_entropy":
        x.append(options.pop("linear_bias"))
    x = [a.requires_grad_() for a in x]

    def loss(*x):
        if name == "linear_cross_entropy":
            return ft.linear_cross_entropy(x[0], x[1], *others, linear_bias=x[2], **options)
        return call(ft, name, x, others, **options)

    assert torch.autograd.gradcheck(loss, x)
    assert not asked
    assert torch.autograd.gradgradcheck(loss, x)
    assert asked


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_probabilities_and_weights(reduction):
    g = generator(3)
    x = torch.randn((4, 5, 3), generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, generator=g, dtype=torch.float64)
    for target in (
        torch.rand((4, 5, 3), generator=g, dtype=torch.float64),
        torch.randint(5, (4, 3), generator=g),
    ):
        assert torch.autograd.gradcheck(
            lambda x, target=target: ft.cross_entropy(
                x, target, weight, reduction=reduction, label_smoothing=0.2
            ),
            [x],
        )


def test_gradient_penalty_is_pytorchs():
    """A second derivative through a net, as gradient penalties take it."""
    results = []
    for module in (ft, F):
        layer = torch.nn.Linear(4, 3, dtype=torch.float64)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                p.normal_(generator=generator(5))
        x = torch.randn((6, 4), generator=generator(6), dtype=torch.float64, requires_grad=True)
        loss = module.cross_entropy(layer(x), torch.arange(6) % 3)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + grad.square().sum()).backward()
        results.append([x.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_that_is_kept_gives_the_gradient_again(name, dtype):
    x, others, options = arguments(name, dtype)
    for reduction in REDUCTIONS:
        x = [a.detach().requires_grad_() for a in x]
        loss = call(ft, name, x, others, **options, reduction=reduction)
        ones = torch.ones_like(loss)
        first = torch.autograd.grad(loss, x, ones, retain_graph=True)
        kept = [a.clone() for a in first]
        for a in first:
            a.fill_(7.0)  # it is the receiver's
        again = torch.autograd.grad(loss, x, ones * 2, retain_graph=True)
        tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype is not torch.float32 else {}
        for a, b in zip(again, kept, strict=True):
            torch.testing.assert_close(a, b * 2, **tolerance)
        torch.autograd.grad(loss, x, ones)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, x, ones)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_upstream_gradients_scale(name):
    x, others, options = arguments(name)
    for factor in (0.0, -2.5, 1.0, math.inf):
        for reduction in ("mean", "sum"):
            upstream = torch.tensor(factor)
            got = loss_and_grads(ft, name, x, others, upstream, reduction=reduction, **options)
            want = loss_and_grads(F, name, x, others, upstream, reduction=reduction, **options)
            if factor == math.inf:
                # Products of infinities in a layer are NaN or infinite, as their order has it.
                got, want = ([g.isfinite() for g in r[1]] for r in (got, want))
            torch.testing.assert_close(got, want, equal_nan=True)


def test_an_ignored_sample_stays_0_under_any_upstream_gradient():
    x = torch.randn((3, 4), generator=generator(), requires_grad=True)
    target = torch.tensor([1, -100, 2])
    for module in (ft, F):
        for upstream in (math.inf, math.nan):
            loss = module.cross_entropy(x, target)
            (grad,) = torch.autograd.grad(loss, x, torch.tensor(upstream))
            assert (grad[1] == 0).all()
            loss = module.cross_entropy(x, target, reduction="none")
            (grad,) = torch.autograd.grad(loss, x, torch.tensor([1.0, upstream, 1.0]))
            assert (grad[1] == 0).all()
            assert grad.isfinite().all()


def test_float16_gradients_survive_until_they_are_scaled():
    """A gradient of a mean over many samples would vanish in float16 before a scaler's factor."""
    x = torch.zeros((40000, 2), dtype=torch.float16)
    x[:, 0] = 7.0
    x.requires_grad_()
    loss = ft.cross_entropy(x, torch.zeros(40000, dtype=torch.int64))
    (grad,) = torch.autograd.grad(loss, x, torch.tensor(32768.0, dtype=torch.float16))
    want = 32768.0 / 40000 / (1 + math.exp(7.0))
    torch.testing.assert_close(grad[0, 1].item(), want, rtol=1e-3, atol=0)


# ---- c) what is read in place ----------------------------------------------------------------


# ---- c) what is read in place ----------------------------------------------------------------


def evaluated_by(specification, evaluate):
    """A copy of a loss's specification with another `evaluate`."""
    changed = copy.copy(specification)
    changed.evaluate = evaluate
    return changed


@pytest.fixture
def given(monkeypatch) -> list[tuple[int, int]]:
    """Addresses of logits and target, as the kernels of `cross_entropy` read them."""
    addresses: list[tuple[int, int]] = []
    original = ft.losses.CROSS_ENTROPY

    def evaluate(x, target, **options):
        a = _arrays.over_classes(x, target, None, None, options.get("axis"), "logits", True)
        t = a.target if a.target is not None else a.probabilities
        addresses.append(tuple(array.__array_interface__["data"][0] for array in (a.logits, t)))
        return original.evaluate(x, target, **options)

    monkeypatch.setattr(ft.losses, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    monkeypatch.setattr(_layer, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    return addresses


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "columns"])
def test_tensors_are_read_where_they_lie(dtype, layout, given):
    g = generator()
    if layout == "contiguous":
        x = torch.randn((6, 5), generator=g).to(dtype)
    elif layout == "columns":
        x = torch.randn((5, 6), generator=g).to(dtype).t()
    elif layout == "transposed":  # as a language model's (batch, time, classes) are passed
        x = torch.randn((2, 3, 5), generator=g).to(dtype).transpose(1, 2)
    else:
        x = torch.randn((2, 5, 3, 4), generator=g).to(dtype).to(memory_format=torch.channels_last)
    t = torch.randint(5, x.select(1, 0).shape, generator=g)
    x.requires_grad_()
    loss = ft.cross_entropy(x, t)
    loss.backward()
    assert given == [(x.data_ptr(), t.data_ptr())] * len(given)
    assert given
    exact = x.detach().double().requires_grad_()
    want = F.cross_entropy(exact, t)
    want.backward()
    assert loss.dtype is x.grad.dtype is dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if dtype in ft._HALVES else {}
    torch.testing.assert_close(loss.detach(), want.detach().to(dtype), **tolerance)
    torch.testing.assert_close(x.grad, exact.grad.to(dtype), **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(ft.cross_entropy(x, t), loss)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides_of_any_kind(name):
    """Every second row and column, and rows that are one."""
    x, others, options = arguments(name, rows=12, classes=10)
    for cut in (lambda a: a[::2], lambda a: a[:1].expand_as(a)):
        some = [cut(x[0])] + x[1:]
        others_too = [cut(a) for a in others]
        for reduction in REDUCTIONS:
            results = []
            for module in (ft, F):
                inputs = [a.detach().requires_grad_() for a in some]
                loss = call(module, name, inputs, others_too, **options, reduction=reduction)
                upstream = torch.arange(loss.numel(), dtype=loss.dtype).reshape(loss.shape)
                results.append((loss, torch.autograd.grad(loss, inputs, upstream)))
            torch.testing.assert_close(*results)


def test_channels_last_class_probabilities(asked):
    g = generator()
    x = torch.randn((2, 5, 3, 4), generator=g).to(memory_format=torch.channels_last)
    t = torch.rand((2, 5, 3, 4), generator=g)
    got, want = (loss_and_grads(m, "cross_entropy", [x], [t]) for m in (ft, F))
    torch.testing.assert_close(got, want)
    assert not asked


def test_no_grad_makes_no_gradient(monkeypatch):
    wanted = []
    original = ft.losses.CROSS_ENTROPY

    def evaluate(*args, **options):
        wanted.append(options.get("gradient", False))
        return original.evaluate(*args, **options)

    monkeypatch.setattr(ft.losses, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    monkeypatch.setattr(_layer, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    x = torch.randn((6, 5), requires_grad=True)
    t = torch.arange(6) % 5
    with torch.no_grad():
        assert not ft.cross_entropy(x, t).requires_grad
    with torch.inference_mode():
        assert ft.cross_entropy(x, t).is_inference()
    assert not ft.cross_entropy(x.detach(), t).requires_grad
    assert wanted == [False] * 3
    assert ft.cross_entropy(x, t).requires_grad
    assert wanted[-1] is True


def test_linear_makes_only_the_gradients_that_are_wanted():
    x, others, options = arguments("linear_cross_entropy")
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        layer = [
            a.detach().requires_grad_(on)
            for a, on in zip([*x, options["linear_bias"]], wanted, strict=True)
        ]
        results = []
        for module in (ft, F):
            loss = module.linear_cross_entropy(*layer[:2], *others, linear_bias=layer[2])
            results.append(torch.autograd.grad(loss, [layer[wanted.index(True)]]))
        torch.testing.assert_close(*results)


def test_linear_over_several_blocks_with_ignored_rows(monkeypatch, asked):
    monkeypatch.setattr(_layer, "LEAST_MEMORY", 600)
    x, others, options = arguments("linear_cross_entropy", torch.float64, rows=20)
    others[0][::3] = -100
    x[0][3] = math.nan  # an ignored row may hold anything
    got, want = [], []
    for reduction in REDUCTIONS:
        got.append(
            loss_and_grads(ft, "linear_cross_entropy", x, others, reduction=reduction, **options)
        )
    assert not asked
    x[0][3] = 0.0
    for reduction in REDUCTIONS:
        want.append(
            loss_and_grads(F, "linear_cross_entropy", x, others, reduction=reduction, **options)
        )
    torch.testing.assert_close(got, want)


# ---- d) who computes what --------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fastloss_computes_the_usual_call(name, dtype, asked):
    x, others, options = arguments(name, dtype)
    for reduction in REDUCTIONS:
        loss_and_grads(ft, name, x, others, reduction=reduction, **options)
    if name == "kl_div":
        ft.kl_div(*x, *others, reduction="batchmean")
    with torch.device("cpu"):
        call(ft, name, x, others, **options)
    assert not asked


class Marked(torch.Tensor):
    """A subclass, as libraries have them for units, names or shards."""


def left_to_pytorch():
    x, t = torch.randn((6, 5), generator=generator()), torch.arange(6) % 5
    soft = torch.rand((6, 5), generator=generator())

    def grad_of(f):
        return lambda m: torch.func.grad(lambda x: f(m, x))(x)

    return {
        "subclass": lambda m: m.cross_entropy(x.as_subclass(Marked), t),
        "target that broadcasts": lambda m: m.kl_div(x, soft[:1], reduction="sum"),
        "gradient of the target": lambda m: m.cross_entropy(x, soft.clone().requires_grad_()),
        "mixed types": lambda m: m.binary_cross_entropy_with_logits(x, soft.double()),
        "size_average": lambda m: m.cross_entropy(x, t, size_average=False),
        "reduce": lambda m: m.nll_loss(x, t, reduce=False),
        "vmap": lambda m: torch.vmap(lambda x, t: m.cross_entropy(x, t))(x, t),
        "func.grad": grad_of(lambda m, x: m.cross_entropy(x, t)),
        "hessian": lambda m: torch.func.hessian(lambda x: m.cross_entropy(x, t))(x),
        "jvp": lambda m: torch.func.jvp(lambda x: m.cross_entropy(x, t), (x,), (x,))[1],
        "pending sign": lambda m: m.cross_entropy(
            torch.complex(x, x).conj().imag, t, reduction="sum"
        ),
        "chunking of a layer": lambda m: m.linear_cross_entropy(
            x, torch.eye(5), t, options=torch.nn.LinearCrossEntropyOptions()
        ),
    }


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
@pytest.mark.parametrize("case", left_to_pytorch())
def test_pytorch_computes_the_rest(case, asked):
    if case == "chunking of a layer" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this PyTorch has no options of linear_cross_entropy")
    run = left_to_pytorch()[case]
    got = run(ft)
    assert asked
    torch.testing.assert_close(got, run(F))


def test_forward_mode_derivatives(asked):
    from torch.autograd import forward_ad

    x, t = torch.randn((6, 5), generator=generator()), torch.arange(6) % 5
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        got = forward_ad.unpack_dual(ft.cross_entropy(dual, t, reduction="none")).tangent
        want = forward_ad.unpack_dual(F.cross_entropy(dual, t, reduction="none")).tangent
    torch.testing.assert_close(got, want)
    assert asked


@pytest.mark.parametrize("name", FUNCTIONS)
def test_meta_tensors(name, asked):
    x, others, options = arguments(name)
    x, others = ([a.to("meta") for a in part] for part in (x, others))
    options = {key: value.to("meta") for key, value in options.items()}
    loss = call(ft, name, [a.requires_grad_() for a in x], others, **options, reduction="none")
    assert asked == [name]
    want = call(F, name, x, others, **options, reduction="none")
    assert (loss.is_meta, loss.shape, loss.dtype) == (True, want.shape, want.dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tracing(name):
    x, others, options = arguments(name)
    want = call(F, name, x, others, **options)
    traced = torch.jit.trace(
        lambda *x: call(ft, name, x, others, **options), tuple(x), check_trace=False
    )
    # Other logits: a result that was computed while tracing would stay as it was.
    other = [a * 0.5 for a in x]
    torch.testing.assert_close(traced(*other), call(F, name, other, others, **options))
    torch.testing.assert_close(traced(*x), want)
    graph = torch.fx.experimental.proxy_tensor.make_fx(
        lambda *x: call(ft, name, x, others, **options)
    )(*x)
    torch.testing.assert_close(graph(*other), call(F, name, other, others, **options))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_compile_sees_pytorchs_function(name):
    """One graph without a break, with nothing of fastloss in it."""
    x, others, options = arguments(name)
    x = [a.requires_grad_() for a in x]
    compiled = torch.compile(
        lambda *x: call(ft, name, x, others, **options), backend="aot_eager", fullgraph=True
    )
    got, want = compiled(*x), call(F, name, x, others, **options)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "linear_cross_entropy"])
def test_autocast_gives_float32(name, dtype, asked):
    x, others, options = arguments(name, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_and_grads(ft, name, x, others, **options)
        assert not asked
        want = loss_and_grads(F, name, x, others, **options)
        assert got[0].dtype is want[0].dtype is torch.float32
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)
        if others[0].is_floating_point():
            mixed = loss_and_grads(ft, name, x, [others[0].float()], **options)
            torch.testing.assert_close(mixed, got)
            assert not asked
        leaf = x[0].detach().requires_grad_()
        loss = call(ft, name, [leaf], others, **options)
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    torch.testing.assert_close(grad.detach(), got[1][0], rtol=1e-2, atol=1e-3)
    layer = torch.nn.Linear(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ft.linear_cross_entropy(x[0].float(), layer.weight, torch.arange(7) % 3)
        want = F.cross_entropy(F.linear(x[0].float(), layer.weight), torch.arange(7) % 3)
    torch.testing.assert_close(loss, want)


WRONG = {
    "target's shape": lambda m: m.cross_entropy(torch.zeros(3, 4), torch.zeros(2).long()),
    "weight's shape": lambda m: m.nll_loss(torch.zeros(3, 4), torch.zeros(3).long(), torch.ones(5)),
    "reduction": lambda m: m.cross_entropy(
        torch.zeros(3, 4), torch.zeros(3).long(), reduction="avg"
    ),
    "label_smoothing": lambda m: m.cross_entropy(
        torch.zeros(3, 4), torch.zeros(3).long(), label_smoothing=2.0
    ),
    "probabilities": lambda m: m.binary_cross_entropy(torch.full((3,), 2.0), torch.zeros(3)),
    "targets": lambda m: m.binary_cross_entropy(torch.zeros(3), torch.full((3,), -1.0)),
    "a weight's gradient": lambda m: m.binary_cross_entropy_with_logits(
        torch.zeros(3), torch.zeros(3), pos_weight=torch.ones(3, requires_grad=True)
    ),
    "elements": lambda m: m.binary_cross_entropy_with_logits(torch.zeros(3), torch.zeros(4)),
    "dimensions": lambda m: m.linear_cross_entropy(
        torch.zeros(3, 4), torch.zeros(5, 6), torch.zeros(3).long()
    ),
    "integers": lambda m: m.cross_entropy(torch.zeros((3, 4)).long(), torch.zeros(3).long()),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_has_pytorchs_error(case):
    errors = []
    for module in (ft, F):
        with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
            WRONG[case](module)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "linear_cross_entropy"])
def test_a_class_out_of_range_has_its_position(name):
    x, (t,), options = arguments(name, rows=7)
    t[3] = 9
    for wanted in (False, True):
        with pytest.raises(IndexError, match=r"class 9 at position 3, outside \[0, "):
            call(ft, name, [a.detach().requires_grad_(wanted) for a in x], [t], **options)


def test_missing_pytorch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import fastloss.torch"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: fastloss.torch needs PyTorch, which is not installed:"
        " pip install 'fastloss[torch]'"
    )


def test_bfloat16_without_ml_dtypes_is_pytorchs(monkeypatch, asked):
    monkeypatch.setattr(ft, "_bfloat16", lambda: None)
    x, others, _ = arguments("cross_entropy", torch.bfloat16)
    got = call(ft, "cross_entropy", x, others)
    assert asked == ["cross_entropy"]
    torch.testing.assert_close(got, call(F, "cross_entropy", x, others))


# ---- e) differences that are meant -----------------------------------------------------------


def test_a_confident_sample_keeps_its_digits():
    x, t = torch.tensor([[20.0, 0.0, -1.0]]), torch.tensor([0])
    assert F.cross_entropy(x, t).item() == 0.0
    exact = math.log1p(math.exp(-20.0) + math.exp(-21.0))
    assert ft.cross_entropy(x, t).item() == pytest.approx(exact, rel=4e-7)


def test_an_ignored_sample_of_nan_has_gradient_0():
    x = torch.tensor([[1.0, 2.0], [math.nan, 1.0]])
    t = torch.tensor([0, -100])
    _, (grad,) = loss_and_grads(ft, "cross_entropy", [x], [t])
    assert grad.isfinite().all() and (grad[1] == 0).all()
    _, (theirs,) = loss_and_grads(F, "cross_entropy", [x], [t])
    assert theirs[1].isnan().any()


def test_targets_of_any_integer_type():
    x, (t,), _ = arguments("cross_entropy")
    want = ft.cross_entropy(*x, t)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert ft.cross_entropy(*x, t.to(dtype)) == want


def test_kl_div_warns_of_mean_as_pytorch_does():
    x, others, _ = arguments("kl_div")
    with pytest.warns(UserWarning, match="batchmean") as caught:
        ft.kl_div(*x, *others)
    assert caught[0].filename == __file__


# ---- f) modules, threads and workers ---------------------------------------------------------

MODULES = {
    "CrossEntropyLoss": ("cross_entropy", {"label_smoothing": 0.1, "ignore_index": 2}),
    "NLLLoss": ("nll_loss", {"ignore_index": 1}),
    "BCELoss": ("binary_cross_entropy", {}),
    "BCEWithLogitsLoss": ("binary_cross_entropy_with_logits", {"pos_weight": torch.arange(5.0)}),
    "KLDivLoss": ("kl_div", {"log_target": True}),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_drop_in(name, asked):
    function, options = MODULES[name]
    x, others, _ = arguments(function)
    if name != "KLDivLoss":
        options = options | {"weight": torch.linspace(0.5, 2.0, 5)}
    for reduction in REDUCTIONS:
        ours = getattr(ft, name)(reduction=reduction, **options)
        theirs = getattr(torch.nn, name)(reduction=reduction, **options)
        assert isinstance(ours, type(theirs))
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        ours.load_state_dict(theirs.state_dict())
        want = theirs(*x, *others)
        for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            torch.testing.assert_close(module(*x, *others), want)
    assert not asked


def test_torchs_number_of_threads_counts(monkeypatch):
    used = []
    original = ft.losses.CROSS_ENTROPY

    def evaluate(x, *args, **options):
        used.append(_threads.for_work(x.size))
        return original.evaluate(x, *args, **options)

    monkeypatch.setattr(ft.losses, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    monkeypatch.setattr(_layer, "CROSS_ENTROPY", evaluated_by(original, evaluate))
    x = torch.randn((2000, 100), generator=generator(), requires_grad=True)
    t = torch.randint(100, (2000,), generator=generator())
    before, ours = torch.get_num_threads(), fastloss.get_num_threads()
    fastloss.set_num_threads(4)
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            used.clear()
            ft.cross_entropy(x, t).backward()
            ft.cross_entropy(x, t, reduction="none").sum().backward()
            ft.linear_cross_entropy(x, torch.zeros(1000, 100), t)
            assert set(used) == {number}
        assert fastloss.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
        fastloss.set_num_threads(ours)


class Losses(torch.utils.data.Dataset):
    """Computes the loss of an item where the item is loaded: in a worker."""

    def __init__(self):
        self.x = torch.randn((8, 300, 300), generator=generator())
        self.t = torch.randint(300, (8, 300), generator=generator())

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].clone().requires_grad_()
        loss = ft.cross_entropy(x, self.t[i])
        loss.backward()
        return loss.detach(), x.grad


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_the_workers_of_a_data_loader(start):
    data = Losses()
    want = [data[i] for i in range(len(data))]  # with threads that do not survive a fork
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=100
    )
    torch.testing.assert_close(list(loader), [list(pair) for pair in want])


# ---- g) training -----------------------------------------------------------------------------


def train(module, steps=150):
    """Train a small net on the digits' logits, and return the losses that it went through."""
    logits, labels = load_digits_logits()
    x, t = torch.from_numpy(logits), torch.from_numpy(labels).long()
    net = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.3, generator=generator(p.numel()))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        part = slice(step * 128 % 1700, step * 128 % 1700 + 128)
        optimizer.zero_grad()
        loss = module.cross_entropy(net(x[part]), t[part], label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_training_run_goes_where_pytorchs_goes():
    ours, theirs = train(ft), train(F)
    np.testing.assert_allclose(ours[:20], theirs[:20], rtol=1e-3)
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.02)
    assert ours[-1] < 0.3 * ours[0]


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs the source tree")
def test_the_example():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train_torch.py", "--epochs", "8"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (ours, theirs) = (line.split() for line in done.stdout.splitlines()[1:])
    assert (ours[0], theirs[0]) == ("fastloss", "PyTorch")
    assert float(ours[1]) == pytest.approx(float(theirs[1]), rel=0.02)
    assert float(ours[2]) == pytest.approx(float(theirs[2]), abs=0.02)
    assert float(ours[2]) > 0.9
