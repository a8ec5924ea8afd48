"""Types of ``vecmath.pyx``."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Real = TypeVar("_Real", np.float32, np.float64)

EXP_LANES: int

def over_array(
    name: str, type: int, x: NDArray[_Real], out: NDArray[_Real], n: int, m: float = 0.0
) -> int: ...
