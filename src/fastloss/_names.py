"""Unknown arguments: a TypeError that gives the name here of an argument from another library.

A public function collects unknown arguments in ``**others`` and passes them to `unknown`.  Its
visible signature does not show them (`signed`), and a call takes a few nanoseconds more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

#: Names of options in other libraries, each with the name here or with the next name to look up.
OTHER_NAMES = {"dim": "axis", "class_weight": "weight", "weights": "weight", "weight": "alpha"}


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return the argument that corresponds to another library's name, if there is one."""
    known = tuple(known)
    found = OTHER_NAMES.get(name)
    while found is not None and found not in known:
        found = OTHER_NAMES.get(found)
    return found


def replacement(options: Mapping[str, Any]) -> str:
    """Return the `reduction` that corresponds to PyTorch's ``size_average`` and ``reduce``."""
    if options.get("reduce") is False:
        return "none"
    return "sum" if options.get("size_average") is False else "mean"


def signed(function: Function) -> Function:
    """Hide ``**others`` from the signature of a function."""
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    show(function, signature.replace(parameters=shown))
    return function


def show(function: Callable[..., Any], signature: inspect.Signature) -> None:
    """Make this the signature of a function, for `help`, editors and `inspect`."""
    # inspect reads this attribute, which type checkers do not know of functions.
    function.__signature__ = signature  # type: ignore[attr-defined]


def unknown(function: Callable[..., Any], others: Mapping[str, Any]) -> NoReturn:
    """Raise for an unknown argument; name the argument that was meant, if that is clear."""
    called = function.__name__
    known = list(inspect.signature(function).parameters)
    name, value = next(iter(others.items()))
    if name in ("size_average", "reduce") and "reduction" in known:
        raise TypeError(
            f"{called}() has no {name}={value!r}: write reduction={replacement(others)!r} instead"
        )
    other = meant(name, known)
    if other is not None:
        raise TypeError(f"{called}() has no argument {name!r}: it is called {other!r} here")
    raise TypeError(
        f"{called}() got an unexpected keyword argument {name!r}; it has {', '.join(known)}"
    )
