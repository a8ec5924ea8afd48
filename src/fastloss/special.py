"""Building blocks: logsumexp, softmax and log_softmax over axes; sigmoid and its logarithm.

The first three have the signatures and, for real numbers, the results of `scipy.special`.  Each is
computed in one pass of a kernel in the type of the array (float16 and bfloat16 in float32), without
overflow, and with the precision of `cross_entropy`.  NumPy computes logsumexp with weights, in
float64.

Layout: a) samples and results, b) logsumexp with weights, c) functions over axes, d) functions of
each element.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, Never, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss._kernels import classes as _kernels
from fastloss._names import signed, unknown
from fastloss.losses._elementwise import Kind, function

__all__ = ["log_sigmoid", "log_softmax", "logsumexp", "sigmoid", "softmax", "softplus"]


def __dir__() -> list[str]:
    return __all__


Axes = int | tuple[int, ...] | None
F = TypeVar("F", np.float32, np.float64)
#: (outer, C, inner), the axes of the classes in ascending order, and the order of axes that gives
#: the array that shape, None if it has it already.
_Layout = tuple[tuple[int, int, int], tuple[int, ...], tuple[int, ...] | None]

# ---- a) samples and results ------------------------------------------------------------------


def _axes(axis: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Return the axes in ascending order: all of them for None."""
    if axis is None:
        return tuple(range(ndim))
    # As in NumPy, a 0-d array has an axis 0 if that is the only one named.
    places = ndim if isinstance(axis, tuple) else max(ndim, 1)
    named = axis if isinstance(axis, tuple) else (axis,)
    if isinstance(axis, list):
        raise TypeError(f"axis must be an integer or a tuple of integers, got {axis}")
    axes = sorted(_arrays.class_axis(_arrays.integer(a, "axis"), places, name) for a in named)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must name each axis once, got {axis}")
    return tuple(axes) if ndim else ()


def _layout(shape: tuple[int, ...], axis: Any, name: str) -> _Layout:
    """Return how an array of this shape is viewed as samples with their classes along the axes."""
    if axis is None:
        return (1, math.prod(shape), 1), tuple(range(len(shape))), None
    if type(axis) is int and shape:
        axis = _arrays.class_axis(axis, len(shape), name)
        parts = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        return parts, (axis,), None
    axes = _axes(axis, len(shape), name)
    # The position of axes of length 1 does not matter.
    long = [i for i in axes if shape[i] != 1]
    if not long:
        return (math.prod(shape), 1, 1), axes, None
    first, last = long[0], long[-1]
    classes = math.prod(shape[i] for i in axes)
    others = [i for i in range(len(shape)) if i not in axes]
    if all(shape[i] == 1 for i in others if first < i < last):
        parts = math.prod(shape[:first]), classes, math.prod(shape[last + 1 :])
        return parts, axes, None
    return (math.prod(shape[i] for i in others), classes, 1), axes, (*others, *axes)


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Return the shape of an array after a sum over the axes."""
    if len(axes) == 1:
        return shape[: axes[0]] + ((1,) if keepdims else ()) + shape[axes[0] + 1 :]
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _scalar(x: Array) -> Any:
    """Return a scalar in place of a 0-d array."""
    return x if x.shape else x[()]


def _rounded(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return a float64 array in the type of the result."""
    if dtype != _arrays.FLOAT16:
        return x.astype(dtype)
    with np.errstate(over="ignore"):  # a logarithm of several terms may exceed 65504
        return x.astype(dtype)


def _check_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Iterable[Array], whole: bool
) -> None:
    """Check an array for the result; with `whole`, it may be one of the inputs itself."""
    _arrays.writable(out, shape, dtype, "result's")
    for x in inputs:
        # All arrays are contiguous, so a comparison of their bounds is exact.
        same = x.shape == shape and x.dtype == dtype and x.ctypes.data == out.ctypes.data
        if np.may_share_memory(out, x) and not (whole and same):
            _arrays.overlapping()


def _evaluate(kind: str, x: Array, shape: tuple[int, int, int], **results: Any) -> None:
    """Run the kernel over samples."""
    what, where, _, _ = _kernels.evaluate(
        _kernels.KINDS[kind],
        _arrays.STORAGE[x.dtype].type,
        _arrays.exported(x),
        shape,
        threads=_threads.for_work(x.size),
        **results,
    )
    _arrays.failed(what, where)


# ---- b) logsumexp with weights ---------------------------------------------------------------
# A weight b is m * 2**n with 1/2 <= m < 1.  All terms of a sum are divided by 2**n exp(a) of its
# largest term and added up in pairs of float64 numbers.  So nothing overflows, and the sum has no
# rounding errors but those of the exponentials.

#: log(2) in two parts.  The first has 33 bits: its product with the exponent of a weight is exact.
_LOG2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LOG2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
#: Number of elements in a block: temporary arrays have this size.
_BLOCK = 1 << 16


def _number_dtype(a: Any, b: Any) -> np.dtype[Any]:
    """Return the common type of both; a Python number takes the type of the other."""
    typed = [x for x in (a, b) if type(x) not in (bool, int, float)]
    dtypes = [np.asarray(x).dtype for x in typed]
    if not dtypes:
        return _arrays.FLOAT64
    try:
        dtype = np.result_type(*dtypes).newbyteorder("=")
    except TypeError:
        # NumPy has no common type for bfloat16 and float16, or for bfloat16 and wide integers.
        halves = all(dtype.itemsize == 2 and dtype.kind not in "iu" for dtype in dtypes)
        return _arrays.FLOAT32 if halves else _arrays.FLOAT64
    return dtype if dtype in _arrays.STORAGE else _arrays.FLOAT64


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """Return x + y and its rounding error."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _row_sums(x: Array) -> tuple[Array, Array]:
    """Return the sum of each row and its rounding error, as if added with twice the digits."""
    low = np.zeros_like(x)
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        total, error = _two_sum(x[:, :half], x[:, half : 2 * half])
        error += low[:, :half] + low[:, half : 2 * half]
        x = np.concatenate([total, x[:, 2 * half :]], axis=1)
        low = np.concatenate([error, low[:, 2 * half :]], axis=1)
    return _two_sum(x[:, 0], low[:, 0])


@np.errstate(all="ignore")
def _weighted_rows(a: Array, b: Array) -> tuple[Array, Array]:
    """Return log|sum(b exp(a))| and the sign of the sum, for each row of float64 arrays."""
    # 1. Terms that are infinite or NaN decide the result; terms with weight 0 or a = -inf are left
    #    out.
    counts = (b != 0) & ((a != -np.inf) | ~np.isfinite(b))
    finite = np.isfinite(a) & np.isfinite(b)
    decided = np.zeros(len(a))
    if not finite[counts].all():
        term = np.where(np.isnan(a) | np.isnan(b) | (a == -np.inf), np.nan, np.copysign(np.inf, b))
        decided = np.where(counts & ~finite, term, 0.0).sum(axis=1)
    counts &= finite
    a, b = np.where(counts, a, 0.0), np.where(counts, b, 0.0)
    # 2. The largest term; the first, with weight 0, if all are left out.  The logarithm of a weight
    #    would be lost beside a huge a, so the largest a is subtracted first.
    size = np.where(counts, a, -np.inf)
    size -= size.max(axis=1, keepdims=True)
    size = np.where(counts, size + np.log(np.abs(b)), -np.inf)
    largest = np.argmax(size, axis=1)[:, None]
    m, n = np.frexp(b)
    a0, n0 = np.take_along_axis(a, largest, 1), np.take_along_axis(n, largest, 1)
    n = np.where(counts, n - n0, 0)
    # 3. Each term as m * 2**n * exp(d + tail).  If exponents are far apart, 2**n is moved into the
    #    exponential, which might overflow without it.
    d, tail = _two_sum(a, -a0)
    if np.abs(d).max() > 300.0:
        nothing = ~counts | (d < -4000.0)
        m, d, tail = (np.where(nothing, 0.0, x) for x in (m, d, tail))
        folded = np.where(np.abs(d) > 300.0, n, 0)
        n -= folded
        d, error = _two_sum(d, folded * _LOG2_HIGH)
        d, tail = _two_sum(d, tail + (error + folded * _LOG2_LOW))
    term = np.ldexp(m, n) * np.exp(d)
    term += term * tail
    # 4. The sum is (s + error) * 2**n0 * exp(a0); 2**n0 is moved into s if it fits.
    s, error = _row_sums(term)
    correction = np.log1p(error / s)
    m, n = np.frexp(np.abs(s))
    n += n0[:, 0]
    kept = np.where(np.abs(n) < 1000, n, 0)
    n -= kept
    result, tail = _two_sum(a0[:, 0], np.log(np.ldexp(m, kept)))
    result, error = _two_sum(result, n * _LOG2_HIGH)
    result = result + (tail + (error + (correction + n * _LOG2_LOW)))
    result = np.where(s == 0, -np.inf, result)
    sign = np.sign(s)
    # 5. Infinities and NaN.
    apart = decided != 0
    return np.where(apart, np.abs(decided), result), np.where(apart, np.sign(decided), sign)


def _weighted(
    a: ArrayLike, b: ArrayLike, axis: Axes, keepdims: bool, out: Any
) -> tuple[Array, Array, np.dtype[Any]]:
    """Return the logarithm, the sign and the result's type for logsumexp with weights."""
    a_read, b_read = _arrays.floating(a, "a"), _arrays.floating(b, "b")
    dtype = _number_dtype(a, b)
    try:
        shape = np.broadcast_shapes(a_read.shape, b_read.shape) or (1,)
    except ValueError:
        raise ValueError(
            f"a and b must broadcast together, got the shapes {a_read.shape} and {b_read.shape}"
        ) from None
    axes = _axes(axis, len(shape), "a")
    left = _reduced(shape, axes, keepdims)
    if out is not None:
        _check_out(out, left, dtype, (a_read, b_read), whole=False)
    others = [i for i in range(len(shape)) if i not in axes]
    rows = math.prod(shape[i] for i in others)
    terms = math.prod(shape[i] for i in axes)
    logs, signs = np.full(rows, -np.inf), np.zeros(rows)
    if rows and terms:
        x, w = (
            np.broadcast_to(y, shape).transpose(*others, *axes).reshape(rows, terms)
            for y in (a_read, b_read)
        )
        step = max(1, _BLOCK // terms)
        for start in range(0, rows, step):
            block = slice(start, start + step)
            logs[block], signs[block] = _weighted_rows(
                x[block].astype(np.float64), w[block].astype(np.float64)
            )
    return logs.reshape(left), signs.reshape(left), dtype


# ---- c) functions over axes ------------------------------------------------------------------


@overload
def logsumexp(a: NDArray[F], axis: None = None) -> F: ...


@overload
def logsumexp(
    a: NDArray[F], axis: Axes = None, *, keepdims: Literal[True], out: NDArray[F] | None = None
) -> NDArray[F]: ...


@overload
def logsumexp(
    a: ArrayLike,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    *,
    out: Array | None = None,
) -> np.floating[Any] | Array: ...


@overload
def logsumexp(
    a: ArrayLike,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    return_sign: Literal[True],
    out: Array | None = None,
) -> tuple[np.floating[Any] | Array, np.floating[Any] | Array]: ...


@signed
def logsumexp(
    a: ArrayLike,
    axis: Axes = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    *,
    out: Array | None = None,
    **others: Never,
) -> Any:
    r"""Logarithm of a sum of exponentials, :math:`\log \sum_k b_k e^{a_k}`.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    a : array_like
        float16, bfloat16, float32 or float64; integers and booleans are treated as float64.
    axis : int or tuple of ints, optional
        Axes to sum over: all by default.
    b : array_like, optional
        Weights of the terms, of any sign; `a` and `b` are broadcast together.  A term with weight 0
        is left out, whatever its `a` is.

        .. versionadded:: 0.2.0
    keepdims : bool, default False
        Whether to keep the axes, with length 1.
    return_sign : bool, default False
        Whether to return the sign of the sum as well; the first result is then the logarithm of the
        absolute value of the sum.

        .. versionadded:: 0.2.0
    out : ndarray, optional
        Array for the logarithm: C-contiguous, with the shape and dtype of the result, and without
        memory in common with `a` or `b`.

        .. versionadded:: 0.2.0

    Returns
    -------
    result : scalar or ndarray
        The logarithm, with the shape of `a` without the axes.  Its dtype is that of `a`; with `b`
        it is the common type of both, for which a Python number takes the type of the other.  It is
        -inf if the sum is 0, which includes a sum of no elements or of -inf only.  Without
        `return_sign`, it is NaN if the sum is negative.
    sign : scalar or ndarray
        1, 0 or -1 (NaN if the sum is NaN), with the shape and dtype of `result`.  Only with
        `return_sign`.

    Raises
    ------
    TypeError
        If `a` or `b` are not real numbers, `axis` is not an integer or a tuple of integers, or
        `out` has the wrong dtype.
    ValueError
        If an axis is out of range or named twice, `b` does not broadcast with `a`, or `out` has the
        wrong shape or layout.

    See Also
    --------
    log_softmax : each element minus this logarithm.
    softmax : the exponentials divided by their sum.

    Notes
    -----
    The signature is that of ``scipy.special.logsumexp``.  For real numbers the results are the
    same, with these exceptions:

    - The sign of an empty sum is 0, not -1.
    - A weight of 0 always removes its term.  SciPy returns NaN if that term and the result are both
      infinite or NaN.
    - Large terms that cancel exactly give -inf.  A term with infinite weight gives inf, or NaN if
      its `a` is -inf.  SciPy returns NaN if an exponential overflows.
    - float16 and bfloat16 are computed in float32, or in float64 with `b`, and rounded once.

    Axes that are not adjacent require one copy of `a`.  No call warns.

    With `b`, NumPy computes the sum in float64.  This is slower than SciPy and needs several
    temporary arrays, as large as `a` if there is only one sum.  The error of the sum is at most
    :math:`4 \varepsilon \sum_k |b_k| e^{a_k}`, where :math:`\varepsilon` is the machine epsilon of
    float64.  The logarithm is within 4 ulp of the larger of itself and the `a` of the largest term.
    Terms with the same `a` are added with twice the digits of float64.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.logsumexp([1000.0, 1000.0]).round(4))
    1000.6931
    >>> fastloss.logsumexp([[0.0, 1.0], [2.0, 3.0]], axis=1).round(4)
    array([1.3133, 3.3133])

    The logarithm of :math:`|e^1 - e^2|`, and the sign of the difference:

    >>> result, sign = fastloss.logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> print(result.round(4), sign)
    1.5413 -1.0
    """
    if others:
        unknown(logsumexp, others)
    if b is not None:
        logs, signs, dtype = _weighted(a, b, axis, keepdims, out)
        if not return_sign:
            logs[signs < 0] = np.nan
    else:
        x = _arrays.floating(a, "a")
        x = x if x.ndim else x.reshape(1)
        shape, axes, order = _layout(x.shape, axis, "a")
        dtype = x.dtype
        left = _reduced(x.shape, axes, keepdims)
        if out is not None:
            _check_out(out, left, dtype, (x,), whole=False)
        if order is not None:
            x = np.ascontiguousarray(x.transpose(order))
        logs = np.full((shape[0], shape[2]), -np.inf)
        _evaluate("logsumexp", x, shape, numbers=logs)
        logs = logs.reshape(left)
        signs = np.where(np.isnan(logs), logs, logs > -np.inf) if return_sign else logs
    result = _rounded(logs, dtype)
    if out is None:
        answer = _scalar(result)
    else:
        out[...] = result
        answer = out
    return (answer, _scalar(signs.astype(dtype))) if return_sign else answer


def _softmax_like(kind: str, x: ArrayLike, axis: Axes, out: Array | None) -> Any:
    x = _arrays.floating(x, "x")
    shape, _, order = _layout(x.shape, axis, "x")
    if out is None:
        y = np.empty(x.shape, x.dtype)
    else:
        _check_out(out, x.shape, x.dtype, (x,), whole=True)
        y = out
    if order is None:
        _evaluate(kind, x, shape, out=_arrays.exported(y))
    else:
        # `copy` even where the order of axes is nothing to an array, of few elements, say.
        moved = x.transpose(order).copy()
        _evaluate(kind, moved, shape, out=_arrays.exported(moved))
        y.transpose(order)[...] = moved
    return _scalar(y) if out is None else out


@overload
def softmax(x: NDArray[F], axis: Axes = None, *, out: NDArray[F] | None = None) -> NDArray[F]: ...


@overload
def softmax(
    x: ArrayLike, axis: Axes = None, *, out: Array | None = None
) -> np.floating[Any] | Array: ...


@signed
def softmax(x: ArrayLike, axis: Axes = None, *, out: Array | None = None, **others: Never) -> Any:
    r"""Softmax :math:`e^{x_c} / \sum_k e^{x_k}` over one or more axes.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and booleans are treated as float64.
    axis : int or tuple of ints, optional
        Axes over which the result sums to 1: all by default.
    out : ndarray, optional
        Array for the result: C-contiguous, with the shape and dtype of `x`.  It may be `x` itself.

        .. versionadded:: 0.2.0

    Returns
    -------
    scalar or ndarray
        Array with the shape and dtype of `x`.  The result is NaN for a sample that contains NaN or
        +inf, or only -inf.

    Raises
    ------
    TypeError
        If `x` is not real numbers, `axis` is not an integer or a tuple of integers, or `out` has
        the wrong dtype.
    ValueError
        If an axis is out of range or named twice, or `out` has the wrong shape or layout or
        overlaps a part of `x`.

    See Also
    --------
    log_softmax : the logarithm, which keeps the digits of small probabilities.
    sigmoid : the counterpart for a single score.

    Notes
    -----
    The signature is that of ``scipy.special.softmax``.  For real numbers the results are the same,
    with these exceptions: integers of all sizes are treated as float64, and an empty array gives an
    empty result, not an error.  No call warns.

    Axes that are not adjacent require one copy of `x`.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.softmax([1.0, 2.0, 3.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    >>> fastloss.softmax([[1.0, 2.0], [3.0, 3.0]], axis=1).round(4)
    array([[0.2689, 0.7311],
           [0.5   , 0.5   ]])
    """
    if others:
        unknown(softmax, others)
    return _softmax_like("softmax", x, axis, out)


@overload
def log_softmax(
    x: NDArray[F], axis: Axes = None, *, out: NDArray[F] | None = None
) -> NDArray[F]: ...


@overload
def log_softmax(
    x: ArrayLike, axis: Axes = None, *, out: Array | None = None
) -> np.floating[Any] | Array: ...


@signed
def log_softmax(
    x: ArrayLike, axis: Axes = None, *, out: Array | None = None, **others: Never
) -> Any:
    r"""Logarithm of the softmax, :math:`x_c - \log \sum_k e^{x_k}`, over one or more axes.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    x, axis, out : see `softmax`

    Returns
    -------
    scalar or ndarray
        Array with the shape and dtype of `x`.  The result is NaN for a sample that contains NaN or
        +inf, or only -inf.

    Raises
    ------
    TypeError, ValueError
        As `softmax` raises them.

    See Also
    --------
    logsumexp : the logarithm of the sum alone.
    cross_entropy : the negative of this for the target class.

    Notes
    -----
    The signature is that of ``scipy.special.log_softmax``.  For real numbers the results are the
    same, with these exceptions: integers of all sizes are treated as float64; an empty array gives
    an empty result, not an error; +inf makes its whole sample NaN, where SciPy returns -inf for the
    other elements.  No call warns.

    Axes that are not adjacent require one copy of `x`.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.log_softmax([1.0, 2.0, 3.0]).round(4)
    array([-2.4076, -1.4076, -0.4076])
    >>> fastloss.log_softmax([1000.0, 1.0])
    array([   0., -999.])
    """
    if others:
        unknown(log_softmax, others)
    return _softmax_like("log_softmax", x, axis, out)


# ---- d) functions of each element ------------------------------------------------------------


def _each(kind: int, x: ArrayLike, out: Array | None) -> Any:
    x = _arrays.floating(x, "x")
    if out is not None:
        _check_out(out, x.shape, x.dtype, (x,), whole=True)
    return function(kind, x, out)


@overload
def sigmoid(x: NDArray[F], *, out: NDArray[F] | None = None) -> NDArray[F]: ...


@overload
def sigmoid(x: ArrayLike, *, out: Array | None = None) -> np.floating[Any] | Array: ...


@signed
def sigmoid(x: ArrayLike, *, out: Array | None = None, **others: Never) -> Any:
    r"""Logistic sigmoid :math:`1 / (1 + e^{-x})` of each element.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and booleans are treated as float64.
    out : ndarray, optional
        Array for the result: C-contiguous, with the shape and dtype of `x`.  It may be `x` itself.

        .. versionadded:: 0.2.0

    Returns
    -------
    scalar or ndarray
        Array with the shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is not real numbers, or `out` has the wrong dtype.
    ValueError
        If `out` has the wrong shape or layout, or overlaps a part of `x`.

    See Also
    --------
    log_sigmoid : its logarithm.
    softmax : the counterpart over several classes.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.sigmoid([-1000.0, 0.0, 1.0]).round(4)
    array([0.    , 0.5   , 0.7311])
    """
    if others:
        unknown(sigmoid, others)
    return _each(Kind.SIGMOID, x, out)


@overload
def log_sigmoid(x: NDArray[F], *, out: NDArray[F] | None = None) -> NDArray[F]: ...


@overload
def log_sigmoid(x: ArrayLike, *, out: Array | None = None) -> np.floating[Any] | Array: ...


@signed
def log_sigmoid(x: ArrayLike, *, out: Array | None = None, **others: Never) -> Any:
    r"""Logarithm of the sigmoid, :math:`-\log(1 + e^{-x})`, of each element.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    x, out : see `sigmoid`

    Returns
    -------
    scalar or ndarray
        Array with the shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid` raises them.

    See Also
    --------
    sigmoid : the sigmoid itself.
    softplus : minus ``log_sigmoid(-x)``.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.log_sigmoid([-100.0, 0.0]).round(4)
    array([-100.    ,   -0.6931])
    """
    if others:
        unknown(log_sigmoid, others)
    return _each(Kind.LOG_SIGMOID, x, out)


@overload
def softplus(x: NDArray[F], *, out: NDArray[F] | None = None) -> NDArray[F]: ...


@overload
def softplus(x: ArrayLike, *, out: Array | None = None) -> np.floating[Any] | Array: ...


@signed
def softplus(x: ArrayLike, *, out: Array | None = None, **others: Never) -> Any:
    r"""Softplus :math:`\log(1 + e^x)` of each element.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    x, out : see `sigmoid`

    Returns
    -------
    scalar or ndarray
        Array with the shape and dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid` raises them.

    See Also
    --------
    log_sigmoid : minus ``softplus(-x)``.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.softplus([0.0, 100.0]).round(4)
    array([  0.6931, 100.    ])
    """
    if others:
        unknown(softplus, others)
    return _each(Kind.SOFTPLUS, x, out)
