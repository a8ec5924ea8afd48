"""Compiled kernels, one folder per instruction-set level, and the choice between them.

``level`` is the name of the level in use, ``built`` the levels in this build, best last, and
``supported`` those of them that this processor can run.  The kernels are the modules of the chosen
level, have their names here, and are loaded when they are first used.

``FASTLOSS_ISA`` in the environment forces a level by its name.

To add a level: a line in `LEVELS` and one in ``FASTLOSS_LEVELS`` of ``CMakeLists.txt``.  To add a
kernel: its name in `KERNELS`, in ``FASTLOSS_KERNELS`` of ``CMakeLists.txt`` and in the imports
below, and a stub beside its source, for type checkers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The stubs lie beside the sources: all levels are alike.
    from fastloss._kernels import classes, elements, pairs, runtime, single, vecmath
else:
    from fastloss._kernels.baseline import runtime

__all__ = ["KERNELS", "LEVELS", "built", "level", "runtime", "supported"]
__all__ += ["classes", "elements", "pairs", "single", "vecmath"]

#: Instruction-set levels, worst first, each with a check that this processor and its operating
#: system have every feature that the level's compiler options allow.
LEVELS: dict[str, Callable[[], bool]] = {
    "baseline": lambda: True,
    "avx2": lambda: runtime.x86_64_level() >= 3,
    "avx512": lambda: runtime.x86_64_level() >= 4,
}

#: Modules that every level has.
KERNELS = ("classes", "elements", "pairs", "single", "vecmath")


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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        """Load a kernel of the chosen level."""
        if name not in KERNELS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{level}.{name}")
        globals()[name] = module
        return module
