"""Compiled kernels, one folder per instruction-set level, and the choice between them.

``level`` is the name of the level in use, ``built`` the levels in this build, best last, and
``supported`` those of them that this processor can run.  The kernels are the modules of the chosen
level and have their names here.

``FASTLOSS_ISA`` in the environment forces a level by its name.

To add a level: a line in `LEVELS` and one in ``FASTLOSS_LEVELS`` of ``CMakeLists.txt``.  To add a
kernel: its name in `KERNELS` and in ``FASTLOSS_KERNELS`` of ``CMakeLists.txt``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from fastloss._kernels.baseline import runtime

__all__ = ["KERNELS", "LEVELS", "built", "level", "load", "runtime", "supported"]

#: Instruction-set levels, worst first, each with a check that this processor and its operating
#: system have every feature that the level's compiler options allow.
LEVELS: dict[str, Callable[[], bool]] = {
    "baseline": lambda: True,
    "avx2": lambda: runtime.x86_64_level() >= 3,
    "avx512": lambda: runtime.x86_64_level() >= 4,
}

#: Modules that every level has.
KERNELS = ("classes", "elements", "pairs", "single", "vecmath")


def load(level: str) -> dict[str, ModuleType]:
    """Return the kernels of a level by name."""
    return {name: importlib.import_module(f"{__name__}.{level}.{name}") for name in KERNELS}


def _is_built(level: str) -> bool:
    try:
        return find_spec(f"{__name__}.{level}.{KERNELS[0]}") is not None
    except ModuleNotFoundError:  # not even the folder
        return False


def _choose() -> str:
    wanted = os.environ.get("FASTLOSS_ISA", "").strip().lower()
    if not wanted:
        return supported[-1]
    if wanted not in LEVELS:
        raise ImportError(f"FASTLOSS_ISA={wanted!r} is not one of {', '.join(LEVELS)}")
    if wanted not in built:
        raise ImportError(
            f"FASTLOSS_ISA={wanted!r}: this build of fastloss has only {', '.join(built)}"
        )
    if wanted not in supported:
        raise ImportError(
            f"FASTLOSS_ISA={wanted!r}: this processor supports only {', '.join(supported)}"
        )
    return wanted


built = tuple(name for name in LEVELS if _is_built(name))
supported = tuple(name for name in built if LEVELS[name]())
level = _choose()
globals().update(load(level))

if TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        """The chosen level's modules, for `from fastloss._kernels import NAME`."""
