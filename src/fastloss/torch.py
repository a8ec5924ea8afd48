"""PyTorch's classification losses on CPU tensors, computed by fastloss.

Each function has the name and signature of a function in `torch.nn.functional`, and each class
those of a class in `torch.nn`.  Tensors are read in place, including bfloat16.  The gradient is
computed together with the loss, in one pass, and scaled in the backward pass.

Calls that fastloss does not support are passed to PyTorch's own function unchanged: tensors on
other devices, subclasses, gradients with respect to a target or a weight, second derivatives,
``torch.compile`` and ``torch.func``.

Layout: a) which calls fastloss computes, b) tensors and arrays, c) the losses as autograd
functions, d) the cross-entropy of a linear layer, e) the public functions, f) the modules.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss.losses import _layer
from fastloss.losses import _specification as losses
from fastloss.losses._specification import Specification

try:
    import torch
except ImportError as error:
    raise ImportError(
        "fastloss.torch needs PyTorch, which is not installed: pip install 'fastloss[torch]'"
    ) from error

import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "NLLLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "kl_div",
    "linear_cross_entropy",
    "nll_loss",
]


def __dir__() -> list[str]:
    return __all__


Tensor = Any  # torch.Tensor, which carries no types where PyTorch is absent

# ---- a) which calls fastloss computes --------------------------------------------------------

_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *_HALVES)
_TYPES = frozenset((*_FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))


def _ours(input: Tensor, *others: Tensor | None) -> bool:
    """Return whether fastloss can read these tensors and nothing has to intercept the call.

    `others` are tensors for which fastloss has no gradient.
    """
    # The tracer of torch.compile stops here.
    if torch.compiler.is_compiling() or _watched() or input.dtype not in _FLOATS:
        return False
    graph = torch.is_grad_enabled()
    for tensor in (input, *others):
        if tensor is None:
            continue
        if not _plain(tensor) or (graph and tensor is not input and tensor.requires_grad):
            return False
    return True


def _watched() -> bool:
    """Return whether something traces, transforms or replaces calls of PyTorch's functions."""
    inside = torch._C
    return bool(
        inside._are_functorch_transforms_active()
        or inside._len_torch_dispatch_stack()
        or inside._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or (
            inside._len_torch_function_stack()
            # ``with torch.device(...)`` is such a mode, too, but has no effect on a loss.
            and any(
                not isinstance(inside._get_function_stack_at(i), DeviceContext)
                for i in range(inside._len_torch_function_stack())
            )
        )
    )


def _plain(tensor: Tensor) -> bool:
    """Return whether this is a plain tensor, not a subclass, in the memory of the CPU."""
    return bool(
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_nested
        # A view with a pending sign: PyTorch's ``x.conj().imag``.
        and not tensor.is_neg()
        and tensor.dtype in _TYPES
        and (tensor.dtype is not torch.bfloat16 or _bfloat16() is not None)
    )


@lru_cache(maxsize=1)
def _bfloat16() -> Any:
    """Return NumPy's bfloat16, None where there is none: it belongs to ml_dtypes."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def _autocast(input: Tensor) -> bool:
    """Whether PyTorch would turn this half-precision input of a loss into float32."""
    return input.dtype in _HALVES and torch.is_autocast_enabled("cpu")


def _one_type(input: Tensor, *others: Tensor | None) -> bool:
    """Whether a result of these has the input's type, or float32 by autocast."""
    mixed = [t.dtype for t in others if t is not None and t.dtype is not input.dtype]
    if not mixed:
        return True
    return _autocast(input) and all(t in (torch.float32, *_HALVES) for t in mixed)


# ---- b) tensors and arrays -------------------------------------------------------------------


def _array(tensor: Tensor) -> Array:
    """Return a tensor's own memory as an array.

    Gradients are off, or the tensor needs none.
    """
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_bfloat16())
    return tensor.numpy()


def _tensor(array: Any, dtype: Any) -> Tensor:
    """Return an array or a NumPy number as a tensor of a type, over its own memory if it can."""
    array = np.asarray(array)
    if array.dtype.kind != "f":  # bfloat16, which PyTorch does not know as a NumPy type
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    made = torch.from_numpy(array)
    return made if made.dtype is dtype else made.to(dtype)


def _torchs_threads() -> AbstractContextManager[None]:
    """Let the number of ``torch.set_num_threads`` count for fastloss."""
    return _threads.at_most(torch.get_num_threads())


# ---- c) the losses as autograd functions -----------------------------------------------------


class _Call(NamedTuple):
    """A call of a loss, without its tensors."""

    loss: Specification
    #: PyTorch's function with its options; of the input and the target.
    own: Callable[[Tensor, Tensor], Tensor]
    #: Names of the tensors after the input.
    names: tuple[str, ...]
    reduction: str
    options: dict[str, Any]
    #: Type of the result.
    dtype: Any
    autocast: bool

    def evaluate(
        self, input: Tensor, others: Sequence[Tensor | None], **wanted: Any
    ) -> tuple[Any, Tensor | None]:
        """Return the loss as NumPy has it, and the gradient as a tensor; None if not wanted."""
        x = _array(input)
        arguments = self.options | wanted
        for name, tensor in zip(self.names, others, strict=True):
            if tensor is not None:
                arguments[name] = _array(tensor)
        place = None
        if self.loss.over_classes and not x.flags.c_contiguous:
            place = _place_of_classes(x)
        if place is not None:
            x = np.moveaxis(x, 1, place)
            if arguments["target"].dtype.kind not in "iu":
                arguments["target"] = np.moveaxis(arguments["target"], 1, place)
            arguments["axis"] = place
        if x.size < _threads.SMALL:
            value, grad, _ = self.loss.evaluate(x, reduction=self.reduction, **arguments)
        else:
            with _torchs_threads():
                value, grad, _ = self.loss.evaluate(x, reduction=self.reduction, **arguments)
        if grad is None:
            return value, None
        if place is not None:
            grad = np.moveaxis(grad, place, 1)
        return value, _tensor(grad, input.dtype)


def _place_of_classes(x: Array) -> int | None:
    """Return where axis 1 goes to make `x` contiguous, as in channels-last memory."""
    for place in (-1, 0) if x.ndim > 1 else ():
        if np.moveaxis(x, 1, place).flags.c_contiguous:
            return place
    return None


class _Loss(torch.autograd.Function):  # type: ignore[misc]  # PyTorch may be absent
    """A loss whose gradient is made in the forward pass, if its scale can wait.

    It cannot for "none", where each sample has an upstream gradient of its own, nor in float16,
    where a gradient that is still to be scaled up could vanish.  Then the backward pass makes it.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, call: _Call, others: Sequence[Tensor | None]) -> Tensor:
        now = call.reduction != "none" and input.dtype is not torch.float16
        value, grad = call.evaluate(input, others, gradient=now)
        ctx.call = call
        # Saved as they are: PyTorch says so if one is changed before the backward pass reads it.
        ctx.save_for_backward(input, *others)
        if grad is not None:
            ctx.grad = grad
        return _tensor(value, call.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        call: _Call = ctx.call
        if torch.is_grad_enabled():  # create_graph=True
            input, target, *_ = ctx.saved_tensors
            with torch.autocast("cpu", enabled=call.autocast):
                loss = call.own(input, target)
            loss = loss.to(upstream.dtype)
            return *torch.autograd.grad(loss, input, upstream, create_graph=True), None, None
        grad, factor = _made(ctx, upstream)
        if grad is not None:
            return grad if factor == 1.0 else grad.mul_(factor), None, None
        input, *others = ctx.saved_tensors
        scale = factor if factor is not None else _array(upstream)
        _, grad = call.evaluate(input, others, gradient=True, value=False, upstream=scale)
        return grad, None, None


def _made(ctx: Any, upstream: Tensor) -> tuple[Any, float | None]:
    """Return what the forward pass made of the gradient, once, and a scalar's upstream gradient.

    The receiver owns it and may scale it in place.  Another backward pass makes its own, and so
    does one whose upstream gradient would turn zeros of ignored samples into NaN.
    """
    made = vars(ctx).pop("grad", None)
    if ctx.call.reduction == "none":
        return None, None
    factor = upstream.item()
    return (made if math.isfinite(factor) else None), factor


def _evaluated(
    loss: Specification,
    own: Callable[[Tensor, Tensor], Tensor],
    input: Tensor,
    tensors: dict[str, Tensor | None],
    reduction: str,
    **options: Any,
) -> Tensor:
    """Return a loss of tensors that are `_ours`, or PyTorch's where the arguments do not fit."""
    autocast = _autocast(input)
    call = _Call(
        loss, own, tuple(tensors), reduction, options,
        torch.float32 if autocast else input.dtype, autocast,
    )  # fmt: skip
    others = tuple(tensors.values())
    try:
        if input.requires_grad and torch.is_grad_enabled():
            return _Loss.apply(input, call, others)
        return _tensor(call.evaluate(input, others)[0], call.dtype)
    except (TypeError, ValueError):
        # PyTorch accepts the call or raises its own error.
        return own(input, tensors["target"])


# ---- d) the cross-entropy of a linear layer --------------------------------------------------


class _Products:
    """PyTorch's matrix products, and their threads, for arrays."""

    @staticmethod
    def into(left: Array, right: Array, out: Array) -> None:
        """Write ``left @ right`` to `out`."""
        torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))

    @staticmethod
    def add(left: Array, right: Array, out: Array, step: int) -> None:
        """Add ``left @ right`` to `out`."""
        torch.from_numpy(out).addmm_(torch.from_numpy(left), torch.from_numpy(right))


class _Layer(NamedTuple):
    """A call of `linear_cross_entropy`, without its tensors."""

    #: PyTorch's function with its options; of input, weight and bias of the layer, and target.
    own: Callable[..., Tensor]
    reduction: str
    options: dict[str, Any]
    dtype: Any

    def evaluate(
        self,
        layer: Sequence[Tensor | None],
        target: Tensor,
        weight: Tensor | None,
        wanted: Sequence[bool],
        upstream: Any = None,
    ) -> tuple[Any, list[Tensor | None]]:
        """Return the loss, and the gradients of the layer's three tensors that are wanted.

        With an upstream gradient the loss is None.
        """
        x, w, bias = (None if t is None else _array(t) for t in layer)
        weights = None if weight is None else _array(weight)
        options = losses.CROSS_ENTROPY.defaults() | self.options
        a = _arrays.layer(x, w, _array(target), bias, weights, None, options["ignore_index"])
        none = self.reduction == "none"
        scale = 1.0 if upstream is None else _arrays.upstream(upstream, a.samples if none else ())
        with torch.no_grad(), _torchs_threads():
            value, grads = _layer.evaluate(
                a, _Products, reduction=self.reduction, wanted=wanted, upstream=scale,
                value=upstream is None, **options,
            )  # fmt: skip
        made = (
            None if t is None or grad is None else _tensor(grad.reshape(t.shape), self.dtype)
            for t, grad in zip(layer, grads, strict=True)
        )
        return value, list(made)


class _LinearLoss(torch.autograd.Function):  # type: ignore[misc]  # PyTorch may be absent
    """The cross-entropy of a layer; `_Loss` says when its gradients are made."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        call: _Layer,
        target: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        layer = input, linear_weight, linear_bias
        ctx.call = call
        ctx.save_for_backward(*layer, target, weight)
        now = call.reduction != "none" and call.dtype is not torch.float16
        wanted = ctx.needs_input_grad[:3] if now else (False,) * 3
        value, grads = call.evaluate(layer, target, weight, wanted)
        if now:
            ctx.grad = grads
        return _tensor(value, call.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        call: _Layer = ctx.call
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # create_graph=True
            *layer, target, _ = ctx.saved_tensors
            loss = call.own(*layer, target)
            of = [t for t, needed in zip(layer, wanted, strict=True) if needed]
            found = iter(torch.autograd.grad(loss, of, upstream, create_graph=True))
            return *(next(found) if needed else None for needed in wanted), None, None, None
        grads, factor = _made(ctx, upstream)
        if grads is None:
            *layer, target, weight = ctx.saved_tensors
            scale = factor if factor is not None else _array(upstream)
            _, grads = call.evaluate(layer, target, weight, wanted, scale)
        elif factor != 1.0:
            grads = [None if grad is None else grad.mul_(factor) for grad in grads]
        return *grads, None, None, None


def _own_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    *,
    ignore_index: int | None,
    options: Any,
    **others: Any,
) -> Tensor:
    """Return PyTorch's `linear_cross_entropy`, or the same from its parts in older versions."""
    if hasattr(F, "linear_cross_entropy"):
        return F.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, ignore_index=ignore_index,
            **({} if options is None else {"options": options}), **others,
        )  # fmt: skip
    if options is not None:
        raise TypeError(f"options need a PyTorch that has linear_cross_entropy, got {options!r}")
    if linear_weight.dim() != 2:
        raise ValueError(
            "linear_weight must have the shape (classes, features) in this version of PyTorch, got"
            f" {tuple(linear_weight.shape)}"
        )
    logits = F.linear(input, linear_weight, linear_bias)
    ignore_index = -100 if ignore_index is None else ignore_index
    return F.cross_entropy(logits, target, ignore_index=ignore_index, **others)


# ---- e) the public functions -----------------------------------------------------------------


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits: `torch.nn.functional.cross_entropy` by fastloss.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor, shape (N, C), (C,) or (N, C, d1, ..., dK)
        Logits in float16, bfloat16, float32 or float64.
    target : Tensor
        Class indices of any integer type, with the shape of the input without the class axis; or
        class probabilities, with the shape of the input.
    weight : Tensor, shape (C,), optional
        Weight of each class.
    size_average, reduce : bool, optional
        Deprecated in PyTorch, which computes any call that has one of them.
    ignore_index : int, default -100
        Samples with this class index have loss 0, and a gradient of exactly 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights of the samples that are not ignored.
    label_smoothing : float, default 0.0
        Fraction, in [0, 1], of the target that is spread evenly over all classes.

    Returns
    -------
    loss : Tensor
        A scalar; with ``reduction="none"``, a tensor with the shape of the input without the class
        axis.  It has the type of the input, or float32 for half precision under ``torch.autocast``.

    Raises
    ------
    IndexError
        If a class index is outside [0, C) and is not `ignore_index`.  The message gives its
        position.
    RuntimeError, ValueError, TypeError
        If an argument is not valid; these are PyTorch's errors.

    See Also
    --------
    fastloss.cross_entropy : formula and options.

    Notes
    -----
    The gradient is computed with the loss, unless gradients are disabled.  So evaluate under
    ``torch.no_grad()``, which saves that time.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 3.0]], requires_grad=True)
    >>> loss = fastloss.torch.cross_entropy(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> print(round(loss.item(), 4))
    1.5755
    >>> logits.grad
    tensor([[-0.1072,  0.0876,  0.0196],
            [ 0.0247, -0.4728,  0.4481]])
    """
    own = partial(
        F.cross_entropy, weight=weight, size_average=size_average, ignore_index=ignore_index,
        reduce=reduce, reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip
    if size_average is reduce is None and _ours(input, target, weight):
        return _evaluated(
            losses.CROSS_ENTROPY, own, input, {"target": target, "weight": weight}, reduction,
            ignore_index=ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
    return own(input, target)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood: `torch.nn.functional.nll_loss` by fastloss.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor, shape (N, C), (C,) or (N, C, d1, ..., dK)
        Log-probabilities.
    target : Tensor
        Class indices of any integer type, with the shape of the input without the class axis.
    weight, size_average, ignore_index, reduce, reduction
        As `cross_entropy` takes them.

    Returns
    -------
    loss : Tensor
        As `cross_entropy` returns it.

    Raises
    ------
    IndexError, RuntimeError, ValueError, TypeError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.nll_loss : formula and options.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> log_probs = torch.tensor([[-0.5, -0.9], [-0.1, -2.4]])
    >>> fastloss.torch.nll_loss(log_probs, torch.tensor([0, 1]))
    tensor(1.4500)
    """
    own = partial(
        F.nll_loss, weight=weight, size_average=size_average, ignore_index=ignore_index,
        reduce=reduce, reduction=reduction,
    )  # fmt: skip
    if size_average is reduce is None and _ours(input, target, weight):
        return _evaluated(
            losses.NLL_LOSS, own, input, {"target": target, "weight": weight}, reduction,
            ignore_index=ignore_index,
        )  # fmt: skip
    return own(input, target)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of probabilities: `torch.nn.functional.binary_cross_entropy`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor
        Probabilities of any shape.
    target : Tensor
        Targets with the shape and type of the input.
    weight : Tensor, optional
        Multiplies each loss; broadcasts to the input.
    size_average, reduce : bool, optional
        Deprecated in PyTorch, which computes any call that has one of them.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the number of elements.

    Returns
    -------
    loss : Tensor
        A scalar; with ``reduction="none"``, a tensor with the shape of the input.  It has the type
        of the input.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        If an argument is not valid or a probability is outside [0, 1]; these are PyTorch's errors.

    See Also
    --------
    fastloss.binary_cross_entropy : formula and options.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> probs, target = torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0])
    >>> fastloss.torch.binary_cross_entropy(probs, target)
    tensor(0.1643)
    """
    own = partial(
        F.binary_cross_entropy, weight=weight, size_average=size_average, reduce=reduce,
        reduction=reduction,
    )  # fmt: skip
    if (
        size_average is reduce is None
        and _ours(input, target, weight)
        and _one_type(input, target, weight)
    ):
        return _evaluated(
            losses.BINARY_CROSS_ENTROPY, own, input, {"target": target, "weight": weight}, reduction
        )
    return own(input, target)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy: `torch.nn.functional.binary_cross_entropy_with_logits` by fastloss.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor
        Logits of any shape.
    target : Tensor
        Targets with the shape and type of the input, usually in [0, 1].
    weight : Tensor, optional
        Multiplies each loss; broadcasts to the input.
    size_average, reduce, reduction
        As `binary_cross_entropy` takes them.
    pos_weight : Tensor, optional
        Weight of the positive term; broadcasts to the input.

    Returns
    -------
    loss : Tensor
        As `binary_cross_entropy` returns it.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        If an argument is not valid; these are PyTorch's errors.

    See Also
    --------
    fastloss.binary_cross_entropy_with_logits : formula and options.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> logits, target = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    >>> fastloss.torch.binary_cross_entropy_with_logits(logits, target)
    tensor(0.2201)
    """
    own = partial(
        F.binary_cross_entropy_with_logits, weight=weight, size_average=size_average,
        reduce=reduce, reduction=reduction, pos_weight=pos_weight,
    )  # fmt: skip
    if (
        size_average is reduce is None
        and _ours(input, target, weight, pos_weight)
        and _one_type(input, target, weight, pos_weight)
    ):
        return _evaluated(
            losses.BINARY_CROSS_ENTROPY_WITH_LOGITS, own, input,
            {"target": target, "weight": weight, "pos_weight": pos_weight}, reduction,
        )  # fmt: skip
    return own(input, target)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence: `torch.nn.functional.kl_div` by fastloss.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor
        Log-probabilities of any shape.
    target : Tensor
        Probabilities with the shape and type of the input, or their logarithms with `log_target`.
    size_average, reduce : bool, optional
        Deprecated in PyTorch, which computes any call that has one of them.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        "batchmean" divides by the length of the first axis, as in the definition of the divergence.
        "mean" divides by the number of elements, with PyTorch's warning.
    log_target : bool, default False
        Whether `target` holds logarithms.

    Returns
    -------
    loss : Tensor
        As `binary_cross_entropy` returns it.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        If an argument is not valid; these are PyTorch's errors.

    See Also
    --------
    fastloss.kl_div : formula and options.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> log_probs, target = torch.tensor([[-0.5, -0.9]]), torch.tensor([[0.3, 0.7]])
    >>> fastloss.torch.kl_div(log_probs, target, reduction="batchmean")
    tensor(0.1691)
    """
    own = partial(
        F.kl_div, size_average=size_average, reduce=reduce, reduction=reduction,
        log_target=log_target,
    )  # fmt: skip
    if size_average is reduce is None and _ours(input, target) and _one_type(input, target):
        if reduction == "mean":
            warnings.warn(
                "reduction='mean' divides by the number of elements: the definition of the"
                " Kullback-Leibler divergence is reduction='batchmean'",
                stacklevel=2,
            )
        return _evaluated(
            losses.KL_DIV, own, input, {"target": target}, reduction, log_target=log_target
        )
    return own(input, target)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """Cross-entropy of a linear layer's outputs, without storing all of them.

    This is `torch.nn.functional.linear_cross_entropy`, which PyTorch has since version 2.13.  The
    logits are computed one block of rows at a time, without ignored rows.  Apart from the
    gradients, a call needs 64 MiB of memory, or half the size of the weight if that is more.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    input : Tensor, shape (N, features) or (features,)
        Inputs of the layer.
    linear_weight : Tensor, shape (C, features) or (C, d1, ..., dK, features)
        Weight of the layer.
    target : Tensor
        Class indices, shape (N,), () or (N, d1, ..., dK); or class probabilities, shape (N, C),
        (C,) or (N, C, d1, ..., dK).
    linear_bias : Tensor, shape (C,) or (C, d1, ..., dK), optional
        Bias of the layer.
    weight : Tensor, shape (C,), optional
        Weight of each class.
    reduction, label_smoothing
        As `cross_entropy` takes them.
    ignore_index : int, optional
        Samples with this class index have loss 0; -100 by default.
    options : torch.nn.LinearCrossEntropyOptions, optional
        How PyTorch splits the rows.  PyTorch computes any call that has it.

    Returns
    -------
    loss : Tensor
        As `cross_entropy` returns it.

    Raises
    ------
    IndexError, RuntimeError, ValueError, TypeError
        As `cross_entropy` raises them.

    See Also
    --------
    fastloss.linear_cross_entropy : the same for arrays.

    Notes
    -----
    Half-precision tensors are multiplied in float32, a few classes at a time.  Under
    ``torch.autocast`` PyTorch computes the call.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> hidden, weight = torch.tensor([[1.0, 2.0]]), torch.eye(2)
    >>> fastloss.torch.linear_cross_entropy(hidden, weight, torch.tensor([0]))
    tensor(1.3133)
    """
    own = partial(
        _own_linear_cross_entropy, weight=weight, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, options=options,
    )  # fmt: skip
    layer = input, linear_weight, linear_bias
    if not (
        options is None
        # A single sample cannot have further axes.
        and linear_weight.dim() >= 2
        and (input.dim() == 2 or (input.dim() == 1 and linear_weight.dim() == 2))
        and all(_ours(t, target, weight) and t.dtype is input.dtype for t in layer if t is not None)
        and not torch.is_autocast_enabled("cpu")
        # PyTorch raises an error for this.
        and (ignore_index is None or not target.is_floating_point())
    ):
        return own(*layer, target)
    call = _Layer(
        own, reduction,
        {
            "ignore_index": -100 if ignore_index is None else ignore_index,
            "label_smoothing": label_smoothing,
        },
        input.dtype,
    )  # fmt: skip
    try:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in layer):
            return _LinearLoss.apply(*layer, call, target, weight)
        return _tensor(call.evaluate(layer, target, weight, (False,) * 3)[0], input.dtype)
    except (TypeError, ValueError):
        # PyTorch accepts the call or raises its own error.
        return own(*layer, target)


# ---- f) the modules --------------------------------------------------------------------------


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):  # type: ignore[misc]  # PyTorch may be absent
    """`cross_entropy` as a module, in place of `torch.nn.CrossEntropyLoss`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As `cross_entropy` takes them.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> criterion = fastloss.torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> criterion(torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([0]))
    tensor(0.3913)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return cross_entropy(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


class NLLLoss(torch.nn.NLLLoss):  # type: ignore[misc]  # PyTorch may be absent
    """`nll_loss` as a module, in place of `torch.nn.NLLLoss`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction
        As `nll_loss` takes them.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.NLLLoss()(torch.tensor([[-0.5, -0.9]]), torch.tensor([1]))
    tensor(0.9000)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return nll_loss(
            input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class BCELoss(torch.nn.BCELoss):  # type: ignore[misc]  # PyTorch may be absent
    """`binary_cross_entropy` as a module, in place of `torch.nn.BCELoss`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    weight, size_average, reduce, reduction
        As `binary_cross_entropy` takes them.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.BCELoss()(torch.tensor([0.9, 0.2]), torch.tensor([1.0, 0.0]))
    tensor(0.1643)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):  # type: ignore[misc]  # PyTorch may be absent
    """`binary_cross_entropy_with_logits` as a module, for `torch.nn.BCEWithLogitsLoss`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        As `binary_cross_entropy_with_logits` takes them.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> criterion = fastloss.torch.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    >>> criterion(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
    tensor(0.3470)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class KLDivLoss(torch.nn.KLDivLoss):  # type: ignore[misc]  # PyTorch may be absent
    """`kl_div` as a module, in place of `torch.nn.KLDivLoss`.

    .. versionadded:: 0.2.0

    Parameters
    ----------
    size_average, reduce, reduction, log_target
        As `kl_div` takes them.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> criterion = fastloss.torch.KLDivLoss(reduction="batchmean")
    >>> criterion(torch.tensor([[-0.5, -0.9]]), torch.tensor([[0.3, 0.7]]))
    tensor(0.1691)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
