"""Types of ``elements.pyx``, whose comments say what each argument is."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Logits: TypeAlias = NDArray[Any]  # halves as the integers that stand for them
_Operand: TypeAlias = tuple[NDArray[Any], int, int, int]

KINDS: dict[str, int]
STATUS: dict[str, int]
TYPES: dict[str, int]

def evaluate(
    kind: int,
    type: int,
    x: _Logits,
    size: int,
    operands: tuple[_Operand | None, ...],
    gamma: float = 0.0,
    ignored: int | None = None,
    integral: bool = False,
    scale: float = 1.0,
    divide: bool = False,
    want_loss: bool = False,
    losses: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
    hess: NDArray[Any] | None = None,
    given: bool = False,
    threads: int = 1,
    floor: float = ...,
    narrowed: bool = False,
) -> tuple[int, int, float, float]: ...

# What a user gave, before any check: it may be of any type.
def usual(
    kind: int,
    x: object,
    target: object,
    out: object,
    reduction: object,
    gradient: bool,
    alpha: object,
    gamma: object,
    most: int,
) -> tuple[np.floating[Any], NDArray[Any] | None, tuple[float, float]] | None: ...
