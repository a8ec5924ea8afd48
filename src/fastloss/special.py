"""Building blocks: logsumexp, softmax and log_softmax over an axis; sigmoid and its logarithm.

Each is computed in one pass of a kernel in the array's own type (float16 and bfloat16 in float32),
without overflow, and with the precision of `cross_entropy`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _arrays, _threads
from fastloss._arrays import Array
from fastloss._kernels import classes as _kernels
from fastloss.losses._elementwise import Kind, function

__all__ = ["log_sigmoid", "log_softmax", "logsumexp", "sigmoid", "softmax", "softplus"]

_EVALUATE = {name: _kernels.evaluate[name] for name in _kernels.evaluate.__signatures__}


def _split(x: Array, axis: int) -> tuple[int, int, int]:
    """Return the shape as (outer, C, inner)."""
    return math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])


def _softmax_like(kind: int, x: ArrayLike, axis: int) -> Array:
    x = _arrays.floating(x, "x")
    axis = _arrays.class_axis(axis, x.ndim, "x")
    shape = _split(x, axis)
    y = np.empty(x.shape, x.dtype)
    _EVALUATE[_arrays.STORAGE[x.dtype].kernel](
        kind,
        _arrays.seen_by_kernel(x, shape),
        out=_arrays.seen_by_kernel(y, shape),
        threads=_threads.for_work(x.size),
    )
    return y


def logsumexp(x: ArrayLike, axis: int = -1, keepdims: bool = False) -> np.floating[Any] | Array:
    r"""Logarithm of the sum of exponentials, :math:`\log \sum_k e^{x_k}`.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.
    axis : int, default -1
        Axis to sum over.
    keepdims : bool, default False
        Whether to keep that axis, with length 1.

    Returns
    -------
    scalar or ndarray
        Shape of `x` without the axis, dtype of `x`.  -inf over no element or over -inf alone.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.
    ValueError
        If the axis is out of range.

    Examples
    --------
    >>> import fastloss
    >>> print(fastloss.logsumexp([1000.0, 1000.0]).round(4))
    1000.6931
    """
    x = _arrays.floating(x, "x")
    axis = _arrays.class_axis(axis, x.ndim, "x")
    shape = _split(x, axis)
    result = np.full((shape[0], shape[2]), -np.inf)
    _EVALUATE[_arrays.STORAGE[x.dtype].kernel](
        _kernels.KINDS["logsumexp"],
        _arrays.seen_by_kernel(x, shape),
        numbers=result[None],
        threads=_threads.for_work(x.size),
    )
    rest = (1,) if keepdims else ()
    answer = result.astype(x.dtype).reshape(x.shape[:axis] + rest + x.shape[axis + 1 :])
    return answer if answer.shape else answer[()]


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    r"""Softmax :math:`e^{x_c} / \sum_k e^{x_k}` over an axis.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.
    axis : int, default -1
        Axis that sums to 1.

    Returns
    -------
    ndarray
        Shape and dtype of `x`.  A NaN, a +inf or -inf alone make their own sample NaN.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.
    ValueError
        If the axis is out of range.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.softmax([1.0, 2.0, 3.0]).round(4)
    array([0.09  , 0.2447, 0.6652])
    """
    return _softmax_like(_kernels.KINDS["softmax"], x, axis)


def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    r"""Logarithm of the softmax, :math:`x_c - \log \sum_k e^{x_k}`, over an axis.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.
    axis : int, default -1
        Axis over which the exponentials of the result sum to 1.

    Returns
    -------
    ndarray
        Shape and dtype of `x`.  A NaN, a +inf or -inf alone make their own sample NaN.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.
    ValueError
        If the axis is out of range.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.log_softmax([1.0, 2.0, 3.0]).round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    return _softmax_like(_kernels.KINDS["log_softmax"], x, axis)


def sigmoid(x: ArrayLike) -> np.floating[Any] | Array:
    r"""Logistic sigmoid :math:`1 / (1 + e^{-x})` of each element.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.

    Returns
    -------
    scalar or ndarray
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.sigmoid([-1000.0, 0.0, 1.0]).round(4)
    array([0.    , 0.5   , 0.7311])
    """
    return function(Kind.SIGMOID, x)


def log_sigmoid(x: ArrayLike) -> np.floating[Any] | Array:
    r"""Logarithm of the sigmoid, :math:`-\log(1 + e^{-x})`, of each element.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.

    Returns
    -------
    scalar or ndarray
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.log_sigmoid([-100.0, 0.0]).round(4)
    array([-100.    ,   -0.6931])
    """
    return function(Kind.LOG_SIGMOID, x)


def softplus(x: ArrayLike) -> np.floating[Any] | Array:
    r"""Softplus :math:`\log(1 + e^x)` of each element.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64; integers and bool count as float64.

    Returns
    -------
    scalar or ndarray
        Shape and dtype of `x`.

    Raises
    ------
    TypeError
        If `x` holds no real numbers.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.softplus([0.0, 100.0]).round(4)
    array([  0.6931, 100.    ])
    """
    return function(Kind.SOFTPLUS, x)
