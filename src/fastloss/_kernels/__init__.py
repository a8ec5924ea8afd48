"""Compiled kernels, one folder per instruction-set level, and the choice between them.

``level`` is the name of the level in use, ``built`` the levels in this build, best last, and
``supported`` those of them that this processor can run.  The kernels themselves are the modules
of the chosen level, bound here by name (``categorical``, ``binary`` …).

``FASTLOSS_ISA=baseline|avx2|avx512`` in the environment forces a level.
"""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from types import ModuleType

from fastloss._kernels.baseline import runtime

__all__ = ["KERNELS", "LEVELS", "built", "level", "load", "runtime", "supported"]

#: Instruction-set levels, worst first, with the x86-64 micro-architecture level each needs.
LEVELS = {"baseline": 0, "avx2": 3, "avx512": 4}

#: Modules that every level has.
KERNELS = ("categorical", "elements", "soft", "softmax", "vecmath")


def load(level: str) -> dict[str, ModuleType]:
    """Return the kernels of a level by name."""
    return {name: importlib.import_module(f"{__name__}.{level}.{name}") for name in KERNELS}


def _find_built() -> tuple[str, ...]:
    found = []
    for name in LEVELS:
        try:
            if find_spec(f"{__name__}.{name}.{KERNELS[0]}") is not None:
                found.append(name)
        except ModuleNotFoundError:
            continue
    return tuple(found)


def _choose() -> str:
    wanted = os.environ.get("FASTLOSS_ISA", "").strip().lower()
    if not wanted:
        return supported[-1]
    if wanted not in LEVELS:
        raise ImportError(f"FASTLOSS_ISA={wanted!r} is none of {', '.join(LEVELS)}")
    if wanted not in built:
        raise ImportError(
            f"FASTLOSS_ISA={wanted!r}: this build of fastloss has only {', '.join(built)}"
        )
    if wanted not in supported:
        raise ImportError(
            f"FASTLOSS_ISA={wanted!r}: this processor supports only {', '.join(supported)}"
        )
    return wanted


built = _find_built()
supported = tuple(name for name in built if LEVELS[name] <= runtime.x86_64_level())
level = _choose()

# The chosen level's modules, for `from fastloss._kernels import categorical`.
categorical: ModuleType
elements: ModuleType
soft: ModuleType
softmax: ModuleType
vecmath: ModuleType
globals().update(load(level))
