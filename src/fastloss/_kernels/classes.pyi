"""Types of ``classes.pyx``, whose comments say what each argument is."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Logits: TypeAlias = NDArray[Any]  # halves as the integers that stand for them
_Double: TypeAlias = NDArray[np.float64]
_Index: TypeAlias = NDArray[np.int64]

KINDS: dict[str, int]
SCORES: tuple[str, ...]
STATUS: dict[str, int]

def evaluate(
    kind: int,
    type: int,
    logits: _Logits,
    shape: tuple[int, int, int],
    target: _Index | None = None,
    out: _Logits | None = None,
    losses: NDArray[Any] | None = None,
    weight: _Double | None = None,
    factor: _Double | None = None,
    p32: NDArray[np.float32] | None = None,
    p64: _Double | None = None,
    hess: _Logits | None = None,
    numbers: _Double | None = None,
    scores: tuple[NDArray[Any] | None, ...] | None = None,
    ignore_index: int = -1,
    scale: float = 1.0,
    mean: bool = False,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    gamma: float = 0.0,
    temperature: float = 1.0,
    softcap: float = 0.0,
    threads: int = 1,
    curve: float = 1.0,
    floor: float = ...,
    narrowed: bool = False,
    top_k: int = 0,
    wide: bool = False,
) -> tuple[int, int, float, float]: ...

# What a user gave, before any check: it may be of any type.
def usual(
    kind: int,
    x: object,
    target: object,
    out: object,
    reduction: object,
    ignore_index: object,
    gradient: bool,
    smoothing: object,
    z_loss: object,
    gamma: object,
    temperature: object,
    most: int,
) -> tuple[np.floating[Any], NDArray[Any] | None, tuple[float, float]] | None: ...
