"""Types of ``pairs.pyx``, whose comments say what each argument is."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Logits: TypeAlias = NDArray[Any]  # halves as the integers that stand for them
_Double: TypeAlias = NDArray[np.float64]

def evaluate(
    type: int,
    logits: _Logits,
    other_type: int,
    other: _Logits,
    shape: tuple[int, int, int],
    target: NDArray[np.int64] | None = None,
    factor: _Double | None = None,
    numbers: _Double | None = None,
    predicted: NDArray[np.int64] | None = None,
    losses: _Double | None = None,
    out: _Logits | None = None,
    value: bool = True,
    reverse: bool = False,
    ignore_index: int = -1,
    temperature: float = 1.0,
    scale: float = 1.0,
    mean: bool = False,
    threads: int = 1,
) -> tuple[int, int, float, float]: ...
