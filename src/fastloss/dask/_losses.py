"""The losses of dask arrays, made from the losses' specifications.

A function here has the arguments of the NumPy function with its name, and its docstring refers to
that for what they mean.  The types are in the stub beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import fastloss
from fastloss import _names
from fastloss.dask._graphs import lazy
from fastloss.losses import _specification as losses
from fastloss.losses._specification import Specification

_LOSS = """\
{summary}: `fastloss.{name}`, chunk by chunk.

.. versionadded:: {since}

Parameters
----------
{x} : dask array or array_like
    As for `fastloss.{name}`, in any chunks{along}.
{target} : dask array or array_like
    As for `fastloss.{name}`.  Chunks that differ from those of `{x}` are unified with them.
{options} : see `fastloss.{name}`

Returns
-------
loss : dask array
    A 0-d array; with ``reduction="none"``, an array in the chunks of `{x}`.  It has the shape and
    the dtype of the result of `fastloss.{name}`.

Raises
------
TypeError, ValueError
    Immediately, if types, shapes, chunks or options are not valid.
{error}
    When the result is computed, if a target is not valid.  The message names the chunk.

See Also
--------
fastloss.{name} : formula and options.

Notes
-----
Weights and other arrays may be dask arrays, too.{whole}

Dask runs several chunks at the same time, so each chunk uses one thread unless
`fastloss.set_num_threads` or ``OMP_NUM_THREADS`` sets another number on the worker.

Examples
--------
"""

_VALUE_AND_GRAD = """\
{summary} and the gradient of its sum, in one pass over each chunk.

.. versionadded:: {since}

Parameters
----------
{arguments} : see `{name}`

Returns
-------
loss : dask array
    As `{name}` returns it.
grad : dask array
    Gradient with respect to `{x}`, with its shape and dtype.

Raises
------
TypeError, ValueError, IndexError
    As `{name}` raises them.

See Also
--------
{name} : the loss alone; describes the arguments.
fastloss.{name}_value_and_grad : the function over NumPy arrays.

Notes
-----
Compute both in one call, ``dask.compute(loss, grad)``.  If they are computed one after the other,
each takes a whole pass.  With ``reduction="mean"`` there may be a pass over the targets and weights
first, because the gradient of every chunk is divided by the sum of all weights.

Examples
--------
"""


def _functions(
    loss: Specification, summary: str, since: str, examples: tuple[str, str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the function of a loss, and the one that returns the gradient with it."""
    name = loss.name
    signature = inspect.signature(getattr(fastloss, name))
    x, target, *options = signature.parameters
    words = {
        "name": name, "summary": summary, "since": since, "x": x, "target": target,
        "arguments": ", ".join(signature.parameters), "options": ", ".join(options),
        "along": " along the sample axes and one chunk along the class axis"
        if loss.over_classes else "",
        "whole": "  Those of classes are passed whole to every chunk."
        if {"weight", "alpha"} & {*options} and loss.over_classes else "",
        "error": "ValueError" if loss.two_logits or not loss.over_classes else "IndexError",
    }  # fmt: skip

    def made(gradient: bool, template: str, example: str) -> Callable[..., Any]:
        def function(*arguments: Any, **given: Any) -> Any:
            others = {key: value for key, value in given.items() if key not in signature.parameters}
            if others:
                _names.unknown(function, others)
            try:
                bound = signature.bind(*arguments, **given)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            bound.apply_defaults()
            first, second, *_ = bound.arguments.values()
            options = {key: bound.arguments[key] for key in bound.kwargs}
            return lazy(loss, first, second, gradient=gradient, **options)

        function.__name__ = function.__qualname__ = f"{name}{'_value_and_grad' * gradient}"
        function.__module__ = "fastloss.dask"
        function.__doc__ = template.format(**words) + inspect.cleandoc(example) + "\n"
        _names.show(function, signature)
        return function

    return made(False, _LOSS, examples[0]), made(True, _VALUE_AND_GRAD, examples[1])


cross_entropy, cross_entropy_value_and_grad = _functions(
    losses.CROSS_ENTROPY,
    "Cross-entropy of dask arrays",
    "0.1.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0]], chunks=(2, 2))
        >>> loss = fastloss.dask.cross_entropy(logits, [0, 1, 1], weight=[1, 2])
        >>> print(loss.compute().round(4))
        0.3642
        """,
        """
        >>> import dask
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0]], chunks=(1, 2))
        >>> loss, grad = dask.compute(*fastloss.dask.cross_entropy_value_and_grad(logits, [0, 1]))
        >>> print(loss.round(4))
        0.7201
        >>> grad.round(4)
        array([[-0.3655,  0.3655],
               [ 0.0596, -0.0596]])
        """,
    ),
)

nll_loss, nll_loss_value_and_grad = _functions(
    losses.NLL_LOSS,
    "Negative log-likelihood of dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
        >>> print(fastloss.dask.nll_loss(log_probs, [0, 1]).compute())
        1.45
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> log_probs = da.from_array([[-0.5, -0.9], [-0.1, -2.4]], chunks=(1, 2))
        >>> loss, grad = fastloss.dask.nll_loss_value_and_grad(log_probs, [0, 1])
        >>> grad.compute()
        array([[-0.5,  0. ],
               [ 0. , -0.5]])
        """,
    ),
)

softmax_focal_loss, softmax_focal_loss_value_and_grad = _functions(
    losses.SOFTMAX_FOCAL_LOSS,
    "Focal loss over classes of dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0], [1.0, 3.0]], chunks=(1, 2))
        >>> fastloss.dask.softmax_focal_loss(logits, [0, 1], reduction="none").compute().round(4)
        array([0.7019, 0.0018])
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0]], chunks=(1, 2))
        >>> loss, grad = fastloss.dask.softmax_focal_loss_value_and_grad(logits, [0])
        >>> grad.compute().round(4)
        array([[-0.7682,  0.7682]])
        """,
    ),
)

distillation_loss, distillation_loss_value_and_grad = _functions(
    losses.DISTILLATION_LOSS,
    "Distillation loss of dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0], [0.0, 0.5]], chunks=(1, 2))
        >>> teacher = [[3.0, 2.0], [0.0, 1.0]]
        >>> loss = fastloss.dask.distillation_loss(logits, teacher, temperature=2)
        >>> print(loss.compute().round(4))
        0.2599
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1.0, 2.0]], chunks=(1, 2))
        >>> loss, grad = fastloss.dask.distillation_loss_value_and_grad(logits, [[3.0, 2.0]])
        >>> grad.compute().round(4)
        array([[-0.4621,  0.4621]])
        """,
    ),
)

binary_cross_entropy, binary_cross_entropy_value_and_grad = _functions(
    losses.BINARY_CROSS_ENTROPY,
    "Binary cross-entropy of probabilities in dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> loss = fastloss.dask.binary_cross_entropy(da.from_array([0.9, 0.2], chunks=1), [1, 0])
        >>> print(loss.compute().round(4))
        0.1643
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> probs = da.from_array([0.9, 0.2], chunks=1)
        >>> fastloss.dask.binary_cross_entropy_value_and_grad(probs, [1, 0])[1].compute().round(4)
        array([-0.5556,  0.625 ])
        """,
    ),
)

binary_cross_entropy_with_logits, binary_cross_entropy_with_logits_value_and_grad = _functions(
    losses.BINARY_CROSS_ENTROPY_WITH_LOGITS,
    "Binary cross-entropy of logits in dask arrays",
    "0.1.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([[1, 2], [2, 2], [3, 4], [4, 5]], chunks=1)
        >>> target = [[1, 0], [1, 0], [0, 1], [0, 1]]
        >>> loss = fastloss.dask.binary_cross_entropy_with_logits(logits, target, pos_weight=3)
        >>> print(loss.compute().round(4))
        1.5895
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([2.0, -1.0], chunks=1)
        >>> both = fastloss.dask.binary_cross_entropy_with_logits_value_and_grad(logits, [1, 1])
        >>> both[1].compute().round(4)
        array([-0.0596, -0.3655])
        """,
    ),
)

sigmoid_focal_loss, sigmoid_focal_loss_value_and_grad = _functions(
    losses.SIGMOID_FOCAL_LOSS,
    "Focal loss of yes-or-no questions in dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> loss = fastloss.dask.sigmoid_focal_loss(da.from_array([2.0, -1.0], chunks=1), [1, 1])
        >>> print(loss.compute().round(4))
        0.088
        """,
        """
        >>> import dask.array as da
        >>> import fastloss.dask
        >>> logits = da.from_array([2.0, -1.0], chunks=1)
        >>> fastloss.dask.sigmoid_focal_loss_value_and_grad(logits, [1, 1])[1].compute().round(4)
        array([-0.0006, -0.096 ])
        """,
    ),
)

kl_div, kl_div_value_and_grad = _functions(
    losses.KL_DIV,
    "Kullback-Leibler divergence of dask arrays",
    "0.2.0",
    (
        """
        >>> import dask.array as da
        >>> import numpy as np
        >>> import fastloss.dask
        >>> log_probs = da.from_array(np.log([[0.5, 0.5], [0.9, 0.1]]), chunks=(1, 2))
        >>> target = [[0.25, 0.75], [0.9, 0.1]]
        >>> loss = fastloss.dask.kl_div(log_probs, target, reduction="batchmean")
        >>> print(loss.compute().round(4))
        0.0654
        """,
        """
        >>> import dask.array as da
        >>> import numpy as np
        >>> import fastloss.dask
        >>> log_probs = da.from_array(np.log([[0.5, 0.5]]), chunks=1)
        >>> both = fastloss.dask.kl_div_value_and_grad(log_probs, [[0.25, 0.75]], reduction="sum")
        >>> both[1].compute()
        array([[-0.25, -0.75]])
        """,
    ),
)
