"""The configuration of this build and this process: `show_config`."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fastloss import _kernels, _threads
from fastloss._version import __version__

__all__ = ["config", "show_config"]


def config() -> dict[str, Any]:
    """Return the values that `show_config` prints, by name."""
    runtime = _kernels.runtime
    openmp = runtime.openmp_version()
    return {
        "fastloss": __version__,
        "instruction_set": _kernels.level,
        "instruction_sets_built": list(_kernels.built),
        "instruction_sets_supported": list(_kernels.supported),
        "threads": _threads.get_num_threads(),
        "processors": runtime.processors(),
        "openmp": openmp or None,
        "compiler": runtime.compiler(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def show_config() -> None:
    """Print the version, the instruction sets, the number of threads and the compiler.

    ``python -m fastloss`` prints the same.

    .. versionadded:: 0.1.0

    See Also
    --------
    get_num_threads : the number of threads alone.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.show_config()  # doctest: +ELLIPSIS
    fastloss                    ...
    instruction_set             ...
    """
    for name, value in config().items():
        if isinstance(value, list):
            value = ", ".join(value)
        if name == "openmp":
            value = f"specification of {value}" if value else "none: built without threads"
        print(f"{name:<28}{value}")
