"""Types of ``elements.pyx``, whose comments say what each argument is."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Logits: TypeAlias = NDArray[Any]  # one-dimensional; halves as the integers that stand for them
_Operand: TypeAlias = tuple[NDArray[Any], int, int, int]

KINDS: dict[str, int]
STATUS: dict[str, int]
TYPES: dict[str, int]

class _Evaluate(Protocol):
    def __call__(
        self,
        kind: int,
        x: _Logits,
        operands: tuple[_Operand | None, ...],
        gamma: float,
        ignored: int | None,
        integral: bool,
        scale: float,
        divide: bool,
        want_loss: bool,
        losses32: NDArray[np.float32] | None,
        losses64: NDArray[np.float64] | None,
        grad: _Logits | None,
        hess: _Logits | None,
        given: bool,
        threads: int,
        floor: float = ...,
        grad32: NDArray[np.float32] | None = None,
        hess32: NDArray[np.float32] | None = None,
    ) -> tuple[int, int, float, float]: ...

class _Specialised(Protocol):
    """A function of Cython's fused types: one for each type of logits, by name."""

    __signatures__: Mapping[str, _Evaluate]
    def __getitem__(self, storage: str) -> _Evaluate: ...

evaluate: _Specialised
