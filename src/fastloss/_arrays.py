"""All checks of arguments, all decisions about memory layout, and all errors about both.

Layout of this file: a) element types, b) one array at a time, c) options, d) arguments of losses
over classes, e) arguments of element-wise losses, f) errors that a kernel reports.

The kernels need native, aligned, C-contiguous arrays of float16, bfloat16, float32 or float64,
viewed as ``(outer, C, inner)`` if there is a class axis, with int64 targets and float64 weights.
An array of that form is used in place; any other array is copied once.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastloss._kernels import elements as _elements

#: NDArray[Any]; `numpy.typing`, which defines that, would be imported for this line alone.
Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]

# ---- a) element types ------------------------------------------------------------------------

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
INT64 = np.dtype(np.int64)


class Storage(NamedTuple):
    """How an element type is passed to the kernels."""

    #: The kernels' number for it.
    type: int
    #: Type that represents it there; None for the type itself.
    view: np.dtype[Any] | None
    #: Type of a loss.
    loss: np.dtype[Any]


#: The element types that are read in place.  bfloat16 is added when it is first used, because its
#: type belongs to ml_dtypes, which may not be installed.
STORAGE: dict[np.dtype[Any], Storage] = {
    FLOAT32: Storage(_elements.TYPES["float32"], None, FLOAT32),
    FLOAT64: Storage(_elements.TYPES["float64"], None, FLOAT64),
    FLOAT16: Storage(_elements.TYPES["float16"], np.dtype(np.uint16), FLOAT32),
}


def _admit_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether the type is bfloat16, and if so add it to `STORAGE`."""
    if dtype.name != "bfloat16" or dtype.itemsize != 2 or not dtype.isnative:
        return False
    STORAGE[dtype] = Storage(_elements.TYPES["bfloat16"], np.dtype(np.int16), FLOAT32)
    return True


def exported(x: Array) -> Array:
    """Return a view of `x` with the type that represents its own in the kernels."""
    view = STORAGE[x.dtype].view
    return x if view is None else x.view(view)


# ---- b) one array at a time ------------------------------------------------------------------


def floating(x: Any, name: str) -> Array:
    """Return `x` as a contiguous array of one of the `STORAGE` types."""
    if type(x) is np.ndarray and x.dtype in STORAGE:
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
    x = as_array(x, name)
    dtype = x.dtype
    if dtype not in STORAGE and not _admit_bfloat16(dtype):
        native = dtype.newbyteorder("=")
        if native in STORAGE or _admit_bfloat16(native):
            dtype = native
        elif dtype.kind in "biu":
            dtype = FLOAT64
        else:
            raise TypeError(
                f"{name} must be real numbers (float16, bfloat16, float32, float64, integers or"
                f" bool), got {_found_type(x, name)}"
            )
    return _in_order(x, dtype)


def _in_order(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return `x` as a C-contiguous, aligned array of the type; copy it only if it is not."""
    # Not ascontiguousarray, which makes a 0-d array 1-d.
    x = np.asarray(x, dtype=dtype, order="C")
    return x if x.flags.aligned else x.copy()


def as_array(x: Any, name: str) -> Array:
    # Whoever has a masked array has imported numpy.ma, which takes NumPy some milliseconds.
    ma = sys.modules.get("numpy.ma")
    if ma is not None and isinstance(x, ma.MaskedArray) and ma.is_masked(x):
        # Otherwise the mask would be lost.
        raise TypeError(
            f"{name} is a masked array with masked elements, which losses do not support: set their"
            " target to ignore_index or their sample_weight to 0"
        )
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from None


def _found_type(x: Array, name: str) -> str:
    """Return what an array is that has the wrong type, and how to convert it if that is clear."""
    if x.dtype != object:
        return f"dtype {x.dtype}"
    first: Any = x.flat[0] if x.size else None
    if isinstance(first, (bool, int, float, np.number)):
        # A data frame's nullable types arrive like this.
        return f"dtype object (Python numbers): np.asarray({name}, dtype=float) converts them"
    if x.ndim == 0:
        return f"{first!r:.80}"
    if np.ndim(first):
        return (
            f"dtype object (a column of arrays): np.stack(np.asarray({name})) makes one array of it"
        )
    return "dtype object"


def as_float64(x: Any, name: str) -> Array:
    """Return `x` as a float64 array of any layout."""
    if isinstance(x, float):
        return np.asarray(x)
    x = as_array(x, name)
    if x.dtype.kind in "biuf" or _admit_bfloat16(x.dtype) or x.dtype in STORAGE:
        return x.astype(FLOAT64, copy=False)
    raise TypeError(f"{name} must be real numbers, got {_found_type(x, name)}")


def output(out: Any, x: Array, original: Any) -> Array:
    """Check ``out=`` against the logits `x`; return a new array if it is None.

    Parameters
    ----------
    out : ndarray or None
        The caller's array.
    x : ndarray
        The logits as the kernel will read them.
    original : array_like
        The logits as the caller passed them.
    """
    if out is None:
        return np.empty(x.shape, x.dtype)
    if not (
        type(out) is np.ndarray
        and out.dtype is x.dtype
        and out.shape == x.shape
        and out.flags.carray
        and original is x
    ):
        _check_output(out, x, original)
    return out


def pair(out: Any) -> tuple[Any, Any]:
    """Return the two arrays of an ``out=`` for gradient and second derivatives."""
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out must be a pair of arrays, (grad, hess), got {type(out).__name__}")
    return out


def bent(grad: Array, hess: Array, curve: float, floor: float) -> None:
    """Multiply second derivatives by `curve` and raise them to at least `floor`, in place.

    Where both derivatives are 0, the second one stays 0.
    """
    if curve != 1.0:
        hess *= curve
    if hess.size and not hess.min() >= floor:
        np.maximum(hess, floor, out=hess, where=(hess != 0) | (grad != 0))


def _check_output(out: Any, x: Array, original: Any) -> None:
    """Raise an error that says what is wrong with `out`, if anything is."""
    given = np.asarray(original).dtype
    if isinstance(out, np.ndarray) and out.dtype == x.dtype != given.newbyteorder("="):
        raise TypeError(
            f"out must have the logits' dtype, but the gradient of {given} logits is {x.dtype}:"
            " convert the logits first"
        )
    writable(out, x.shape, x.dtype, "logits'")


def writable(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], whose: str) -> None:
    """Raise unless `out` is a C-contiguous array of this shape and dtype that can be written."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out must have the {whose} dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have the {whose} shape {shape}, got {out.shape}")
    if not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, got strides {out.strides}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if not out.flags.aligned:
        raise ValueError("out must be aligned to its element size")


def overlapping() -> NoReturn:
    """Raise for an `out` that shares memory with another argument, as a kernel found."""
    raise ValueError("out overlaps another argument; only the logits as a whole may be overwritten")


# ---- c) options ------------------------------------------------------------------------------


def one_of(value: Any, allowed: tuple[str, ...], name: str) -> NoReturn:
    """Raise for an option that does not have one of its allowed values."""
    options = ", ".join(repr(a) for a in allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {options}, got {value!r}")
    raise ValueError(f"{name} must be one of {options}, got {value!r}")


REDUCTIONS = ("mean", "sum", "none")


def reduction(value: Any) -> None:
    """Check `reduction`."""
    if value not in REDUCTIONS:
        one_of(value, REDUCTIONS, "reduction")


def integer(value: Any, name: str) -> int:
    """Return an integer option that fits in 64 bits."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit in 64 bits, got {number}")
    return number


def number(value: Any, name: str) -> float:
    """Return a real option as a float."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, got {value!r}") from None


def fraction(value: Any, name: str) -> float:
    """Return an option between 0 and 1 as a float."""
    result = number(value, name)
    if not 0.0 <= result <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
    return result


def positive(value: Any, name: str) -> float:
    """Return a finite, positive option as a float."""
    result = number(value, name)
    if not 0.0 < result < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return result


def not_negative(value: Any, name: str) -> float:
    """Return a finite option that is not negative as a float."""
    result = number(value, name)
    if not 0.0 <= result < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    return result


def truth(value: Any, name: str) -> bool:
    """Return an option that is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def kept_weights(value: Any, name: str) -> Array:
    """Return a read-only copy of weights."""
    weights = np.array(as_float64(value, name))
    weights.setflags(write=False)
    return weights


def kept_class_weights(value: Any, name: str) -> Array:
    """Return a read-only copy of class weights, one number per class."""
    weights = kept_weights(value, name)
    if weights.ndim != 1:
        raise ValueError(f"{name} must have one number per class, shape (C,), got {weights.shape}")
    return weights


def alpha(value: Any, name: str) -> Any:
    """Return the weight of positives in a focal loss: a number, an array, or None; -1 is None."""
    if value is None or isinstance(value, (int, float, complex, str, bytes)):
        return None if value is None or value == -1 else fraction(value, name)
    weights = kept_weights(value, name)
    outside = weights[~((weights >= 0) & (weights <= 1))]
    if outside.size:
        raise ValueError(f"{name} must lie in [0, 1], got {outside[0]}")
    return weights if weights.shape else float(weights)


def class_axis(axis: Any, ndim: int, name: str) -> int:
    """Return the class axis as a non-negative number; None means PyTorch's class axis."""
    if ndim == 0:
        raise ValueError(f"{name} must have a class axis, got a 0-d array")
    if axis is None:
        return 1 if ndim > 1 else 0
    axis = integer(axis, "axis")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is out of range for {name} with {ndim} dimensions")
    return axis % ndim


def upstream(grad_output: Any, shape: tuple[int, ...]) -> Array | float:
    """Return the upstream gradient: a float for a scalar loss, otherwise a float64 array."""
    if type(grad_output) is float and not shape:
        return grad_output
    grad_output = as_float64(grad_output, "grad_output")
    if grad_output.shape != shape:
        raise ValueError(
            f"grad_output must have the shape of the loss, {shape}, got {grad_output.shape}"
        )
    return grad_output if shape else float(grad_output)


# ---- d) class-index losses -------------------------------------------------------------------


class Classes(NamedTuple):
    """Arguments of a loss over classes, in the form that its kernel takes."""

    #: Logits in their original shape.
    logits: Array
    #: Shape of the logits without the class axis.
    samples: tuple[int, ...]
    #: Shape of the logits as (outer, C, inner).
    shape: tuple[int, int, int]
    axis: int
    #: Class indices as int64 (outer, inner), or None if the target is probabilities.
    target: Array | None
    #: Class probabilities with the shape of the logits, or None.
    probabilities: Array | None
    #: Class weights, float64 (C,), or None.
    weight: Array | None
    #: Sample weights, float64 (outer, inner), or None.
    factor: Array | None


def over_classes(
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    axis: Any,
    name: str,
    probabilities: bool,
) -> Classes:
    """Check the arrays of a loss over classes."""
    x = floating(logits, name)
    ndim = x.ndim
    if ndim == 2 and axis is None:
        outer, classes = x.shape
        samples: tuple[int, ...] = (outer,)
        inner = 1
        axis = 1
    else:
        axis = class_axis(axis, ndim, name)
        samples = x.shape[:axis] + x.shape[axis + 1 :]
        outer = math.prod(x.shape[:axis])
        classes = x.shape[axis]
        inner = math.prod(x.shape[axis + 1 :])
    shape = (outer, classes, inner)
    indices: Array | None = None
    soft: Array | None = None
    t = target if type(target) is np.ndarray else as_array(target, "target")
    kind = t.dtype.kind
    if kind in "iu" or (kind == "f" and t.size == 0 and t.shape == samples != x.shape):
        if t.shape != samples:
            wrong_target(t, x, samples, axis, name, probabilities)
        if t.dtype != INT64 or not (t.flags.c_contiguous and t.flags.aligned):
            if kind == "u" and t.dtype.itemsize == 8:
                _fits_int64(t, classes)
            t = _in_order(t, INT64)
        indices = t.reshape(outer, inner)
    elif probabilities and (kind == "f" or t.dtype in STORAGE or _admit_bfloat16(t.dtype)):
        if t.shape != x.shape:
            if t.shape == samples:
                no_indices(t.dtype, f"; class probabilities need the shape {x.shape}", t)
            wrong_target(t, x, samples, axis, name, probabilities)
        kept = t.dtype.newbyteorder("=")
        kept = kept if kept in (FLOAT32, FLOAT64) else FLOAT64
        if t.dtype.newbyteorder("=") == FLOAT16 or t.dtype.name == "bfloat16":
            kept = FLOAT32
        soft = _in_order(t, kept)
    else:
        if t.shape == samples and t.dtype.kind == "f":
            no_indices(t.dtype, values=t)
        what = "integers (class indices)"
        if probabilities:
            what += " or floating (class probabilities)"
        hint = ""
        if kind == "b":
            one_hot = t.shape == x.shape != samples
            hint = (
                _one_hot(axis, probabilities) if one_hot else "; .astype(int) makes classes of it"
            )
        raise TypeError(f"target must be {what}, got {_found_type(t, 'target')}{hint}")
    if weight is not None:
        weight = class_weights(weight, classes)
    if sample_weight is not None:
        sample_weight = _in_order(broadcast_weights(sample_weight, samples), FLOAT64)
        sample_weight = sample_weight.reshape(outer, inner)
    # The constructor of tuple itself: that of the class takes as long as starting a kernel.
    return tuple.__new__(Classes, (x, samples, shape, axis, indices, soft, weight, sample_weight))


def broadcast_weights(sample_weight: Any, samples: tuple[int, ...]) -> Array:
    """Return one float64 weight per sample, as a view of what was passed if that fits."""
    sample_weight = as_float64(sample_weight, "sample_weight")
    try:
        return np.broadcast_to(sample_weight, samples)
    except ValueError:
        raise ValueError(
            f"sample_weight must broadcast to the samples, shape {samples},"
            f" got {sample_weight.shape}"
        ) from None


class TwoLogits(NamedTuple):
    """Arguments of a comparison of two arrays of logits, in the form that its kernel takes."""

    logits: Array
    other: Array
    #: Shape of the logits without the class axis.
    samples: tuple[int, ...]
    #: Shape of both arrays as (outer, C, inner).
    shape: tuple[int, int, int]
    #: Class indices as int64 (outer, inner), or None.
    target: Array | None
    #: Sample weights, float64 (outer, inner), or None.
    factor: Array | None


def two_logits(
    logits: Any,
    other: Any,
    name: str,
    *,
    target: Any = None,
    sample_weight: Any = None,
    axis: Any = None,
) -> TwoLogits:
    """Check two arrays of logits, the second of which is called `name`; each keeps its type."""
    x, y = floating(logits, "logits"), floating(other, name)
    if y.shape != x.shape:
        raise ValueError(f"{name} must have the shape of logits, {x.shape}, got {y.shape}")
    axis = class_axis(axis, x.ndim, "logits")
    samples = x.shape[:axis] + x.shape[axis + 1 :]
    outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    if target is not None:
        target = over_classes(x, target, None, None, axis, "logits", False).target
    if sample_weight is not None:
        sample_weight = _in_order(broadcast_weights(sample_weight, samples), FLOAT64)
        sample_weight = sample_weight.reshape(outer, inner)
    return TwoLogits(x, y, samples, (outer, x.shape[axis], inner), target, sample_weight)


def class_weights(weight: Any, classes: int, name: str = "weight") -> Array:
    """Return one float64 weight per class."""
    weight = as_float64(weight, name)
    if weight.shape != (classes,):
        raise ValueError(
            f"{name} must have one number per class, shape ({classes},), got {weight.shape}"
        )
    return _in_order(weight, FLOAT64)


def wrong_target(
    t: Array, x: Array, samples: tuple[int, ...], axis: int, name: str, probabilities: bool
) -> NoReturn:
    text = (
        f"target of shape {t.shape} does not fit {name} of shape {x.shape} with class axis {axis}:"
        f" class indices need shape {samples}"
    )
    if probabilities:
        text += f", class probabilities (floating) need shape {x.shape}"
    if any(t.shape[:i] + t.shape[i + 1 :] == x.shape for i in range(t.ndim)):
        text += f"; {name} and target look swapped"
    elif t.shape == x.shape:
        text += _one_hot(axis, probabilities)
    elif t.ndim == x.ndim and t.shape[axis] == 1:
        text += f"; target.squeeze({axis}) drops its axis of length 1"
    raise ValueError(text)


def _one_hot(axis: int, probabilities: bool) -> str:
    """Say how to convert a one-hot target of integers or booleans."""
    if not probabilities:
        return f"; target.argmax({axis}) makes classes of a one-hot target"
    return (
        f"; a one-hot target has to be floating: target.astype(float), or its classes:"
        f" target.argmax({axis})"
    )


def no_indices(dtype: Any, otherwise: str = "", values: Array | None = None) -> NoReturn:
    """Raise for floating-point numbers in place of class indices."""
    remedy = "for example target.astype(int)"
    if values is not None and np.isnan(values).any():
        remedy = "but it contains NaN: replace NaN by ignore_index, then convert with .astype(int)"
    raise TypeError(f"target is {dtype}: class indices must be integers, {remedy}{otherwise}")


def _fits_int64(t: Array, classes: int) -> None:
    """Raise for an unsigned index that does not fit in int64."""
    large = t > np.iinfo(np.int64).max
    if large.any():
        wrong_index(t, int(np.flatnonzero(large)[0]), classes)


def wrong_index(target: Array, position: int, classes: int) -> NoReturn:
    """Raise for the class index at flat `position` of `target`."""
    where = tuple(int(i) for i in np.unravel_index(position, target.shape))
    value = int(target[where])
    place = "" if not where else f" at position {where[0] if len(where) == 1 else where}"
    if classes == 0:
        raise IndexError(f"target holds class {value}{place}, but there are no classes")
    raise IndexError(
        f"target holds class {value}{place}, outside [0, {classes}) for {classes} classes"
    )


def combined(a: Array | None, b: Array | float, shape: tuple[int, int]) -> Array | None:
    """Return sample weights times an upstream gradient, float64 of `shape`; None without arrays."""
    if not isinstance(b, np.ndarray):
        return a
    b = _in_order(b, FLOAT64).reshape(shape)
    return b if a is None else a * b


class Layer(NamedTuple):
    """Arguments of a linear layer's cross-entropy, with K further axes beside the classes."""

    input: Array  # (rows, features), in its own type
    linear_weight: Array  # (outputs, features), in its own type; outputs = classes * extents
    linear_bias: Array | None  # (outputs,), in the type of the products
    target: Array  # (rows, *extents) int64, or (rows, classes, *extents) probabilities
    weight: Array | None  # (classes,)
    factor: Array | None  # (rows, *extents) sample weights
    #: Type of the products.
    kind: np.dtype[Any]
    classes: int
    extents: tuple[int, ...]
    samples: tuple[int, ...]
    #: Denominator of the mean.
    weights: float
    #: Positions of the rows that count; None if all do.
    alive: Array | None


def layer(
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any,
    weight: Any,
    sample_weight: Any,
    ignored: int,
) -> Layer:
    """Check the arrays of a linear layer's cross-entropy."""
    x = _factor(input, "input")
    w = _factor(linear_weight, "linear_weight")
    if x.ndim == 0 or w.ndim < 2 or x.shape[-1] != w.shape[-1]:
        raise ValueError(
            "input must have shape (..., features) and linear_weight (classes, features) or"
            f" (classes, d1, ..., dK, features), got {x.shape} and {w.shape}"
        )
    classes, extents = w.shape[0], w.shape[1:-1]
    outputs = classes * math.prod(extents)
    kind = np.dtype(np.float64 if np.float64 in (x.dtype, w.dtype) else np.float32)
    bias = None
    if linear_bias is not None:
        bias = floating(linear_bias, "linear_bias")
        if bias.shape != w.shape[:-1]:
            raise ValueError(f"linear_bias must have shape {w.shape[:-1]}, got {bias.shape}")
        bias = bias.reshape(outputs).astype(kind, copy=False)
    before = x.shape[:-1]
    samples = before + extents
    rows = math.prod(before)
    shape = (rows, *extents)
    if weight is not None:
        weight = class_weights(weight, classes)
    factor = None
    if sample_weight is not None:
        factor = broadcast_weights(sample_weight, samples).reshape(shape)
    t = as_array(target, "target")
    full = (*before, classes, *extents)
    if t.dtype.kind in "iu" or (t.shape == samples and t.shape != full):
        t = _indices(t, x, samples, full, classes, ignored).reshape(shape)
        alive = t != ignored
        weights = np.zeros(shape)
        weights[alive] = 1.0 if weight is None else weight[t[alive]]
    else:
        t = floating(t, "target")
        if t.shape != full:
            raise ValueError(
                f"target of shape {t.shape} does not fit input of shape {x.shape}: class indices"
                f" need shape {samples}, class probabilities (floating) {full}"
            )
        if ignored >= 0:
            raise ValueError(
                f"ignore_index={ignored} has no meaning for class probabilities: it must be"
                " negative"
            )
        t = t.reshape(rows, classes, *extents)
        alive, weights = np.ones(shape, bool), np.ones(shape)
    if factor is not None:
        alive &= factor != 0
        weights[alive] *= factor[alive]
        weights[~alive] = 0.0
    # The values of a row that does not count, such as NaN, must not reach the weights' gradient.
    living = alive.reshape(rows, math.prod(extents)).any(axis=1)
    return Layer(
        x.reshape(rows, x.shape[-1]), w.reshape(outputs, w.shape[-1]), bias, t, weight, factor,
        kind, classes, extents, samples, float(weights.sum()),
        None if living.all() else np.flatnonzero(living),
    )  # fmt: skip


def _factor(x: Any, name: str) -> Array:
    """Return a factor of a product: as `floating`, but without copying a transposed matrix."""
    if type(x) is np.ndarray and x.dtype in STORAGE and x.ndim == 2:
        flags = x.flags
        if flags.f_contiguous and flags.aligned:
            return x
    return floating(x, name)


def _indices(
    t: Array, x: Array, samples: tuple[int, ...], full: tuple[int, ...], classes: int, ignored: int
) -> Array:
    """Check class indices and return them as int64."""
    if t.dtype.kind not in "iu" and (t.size or t.dtype.kind != "f"):
        if t.dtype.kind == "f":
            no_indices(t.dtype, f"; class probabilities need the shape {full}", t)
        raise TypeError(f"target must be integers (class indices), got dtype {t.dtype}")
    if t.shape != samples:
        raise ValueError(
            f"target of shape {t.shape} does not fit input of shape {x.shape}:"
            f" class indices need shape {samples}"
        )
    bad = np.flatnonzero((t != ignored) & ((t < 0) | (t >= classes)))
    if bad.size:
        wrong_index(t, int(bad[0]), classes)
    return t.astype(np.int64, copy=False)


# ---- e) element-wise losses ------------------------------------------------------------------

#: Codes of the types of operands that are read in place.
_CODES = {np.dtype(name): code for name, code in _elements.TYPES.items() if name != "bfloat16"}

#: (array, type, div, mod): element i of the result uses element (i // div) % mod.
Operand = tuple[Array, int, int, int]


def operand(value: Any, name: str, shape: tuple[int, ...], like: str, exact: bool) -> Operand:
    """Return an array that is combined element by element with another, as the kernel reads it.

    Parameters
    ----------
    value : array_like
        Real numbers of any type.
    name : str
        Name of the argument.
    shape : tuple of int
        Shape of the array that it is combined with.
    like : str
        Name of that array.
    exact : bool
        Whether the shapes must be equal; otherwise `value` is broadcast.
    """
    a = value if type(value) is np.ndarray else as_array(value, name)
    code = _CODES.get(a.dtype)
    if code is None:
        # Numbers in foreign byte order are converted to the machine's own.
        native = a.dtype.newbyteorder("=")
        code = _CODES.get(native)
        if code is None and native.name == "bfloat16":
            code = _elements.TYPES["bfloat16"]
        if code is None:
            a = as_float64(a, name)
            code = _elements.TYPES["float64"]
        else:
            a = a.astype(native, copy=False)
    if a.shape == shape:
        div, mod = 1, a.size
    elif exact:
        raise ValueError(f"{name} must have the shape of {like}, {shape}, got {a.shape}")
    else:
        a, div, mod = _repeated(a, name, shape, like)
    flags = a.flags
    if not (flags.c_contiguous and flags.aligned):
        a = _in_order(a, a.dtype)
    return a, code, div, mod


def _repeated(a: Array, name: str, shape: tuple[int, ...], like: str) -> tuple[Array, int, int]:
    """Return an array to be broadcast, and the (div, mod) that broadcast it."""
    full = (1,) * (len(shape) - a.ndim) + a.shape
    if len(full) != len(shape) or any(n not in (1, m) for n, m in zip(full, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to {like} of shape {shape}, got {a.shape}")
    varying = [i for i, n in enumerate(full) if n != 1]
    if not varying:
        return a, 1, 1
    first, last = varying[0], varying[-1]
    if full[first : last + 1] != shape[first : last + 1]:
        # It is constant along an axis between two axes along which it varies.
        a = np.ascontiguousarray(np.broadcast_to(a, shape))
        return a, 1, a.size
    return a, math.prod(shape[last + 1 :]), a.size


# ---- f) errors that a kernel reports ---------------------------------------------------------

FINE: int = _elements.STATUS["FINE"]
NO_MEMORY: int = _elements.STATUS["NO_MEMORY"]
OVERLAPS: int = _elements.STATUS["OVERLAPS"]
WRONG_INDEX: int = _elements.STATUS["WRONG_INDEX"]
WRONG_TARGET: int = _elements.STATUS["WRONG_TARGET"]
PROBS_OUTSIDE: int = _elements.STATUS["PROBS_OUTSIDE"]
TARGET_OUTSIDE: int = _elements.STATUS["TARGET_OUTSIDE"]


def failed(what: int, where: int, **context: Any) -> None:
    """Raise the error that a kernel reports; do nothing for FINE.

    Parameters
    ----------
    what : int
        A number of the kernels' STATUS.
    where : int
        Flat position of the wrong element in its array.
    **context
        The arrays `target` and `probs`, the name `name` of the latter, the number of `classes` and
        `ignore_index`, as far as this kernel checks them.
    """
    if what == FINE:
        return
    if what == NO_MEMORY:
        raise MemoryError("not enough memory for the scratch space of this call")
    if what == OVERLAPS:
        overlapping()
    if what == WRONG_INDEX:
        wrong_index(context["target"], where, context["classes"])
    if what == WRONG_TARGET:
        ignored = context["ignore_index"]
        allowed = "0 or 1" if ignored is None else f"0, 1 or ignore_index={ignored}"
        raise ValueError(
            f"an integer target must be {allowed}, got {_found(context['target'], where)}"
        )
    name, array = "target", "target"
    if what == PROBS_OUTSIDE:
        name, array = context["name"], "probs"
    raise ValueError(f"{name} must lie in [0, 1], got {_found(context[array], where)}")


def _found(array: Array, position: int) -> str:
    """Return the number at a flat position of an array and the position, as text."""
    where = tuple(int(i) for i in np.unravel_index(position, array.shape))
    value = array[where]
    value = int(value) if array.dtype.kind in "iu" else float(value)
    return (
        f"{value}" if not where else f"{value} at position {where[0] if len(where) == 1 else where}"
    )
