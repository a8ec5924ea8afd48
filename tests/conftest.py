"""Fixtures and helpers that the tests share.

Layout: a) the package once per instruction-set level, b) hypothesis profiles.

The extension modules of all levels can live in one process, so a test that takes the fixture `fl`
runs once per level and calls its copy of the package: `fl.cross_entropy(...)`. A test that
pickles, forks or starts threads imports `fastloss` itself and runs on the best level.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from types import ModuleType

import pytest

from fastloss import _kernels

# ---- a) instruction-set levels ---------------------------------------------------------------

LEVELS = tuple(_kernels.LEVELS)


def load_level(level: str) -> ModuleType:
    """A copy of the package that runs on `level`, beside the one that `import fastloss` gives."""

    def forget() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] == "fastloss"]
        return {name: sys.modules.pop(name) for name in names}

    others, before = forget(), os.environ.get("FASTLOSS_ISA")
    os.environ["FASTLOSS_ISA"] = level
    try:
        package = importlib.import_module("fastloss")
        # What is imported when it is first asked for comes now, while this level is chosen.
        for name in (*package.__all__, "special", "evaluation"):
            getattr(package, name)
        for name in package._kernels.KERNELS:
            getattr(package._kernels, name)
        return package
    finally:
        forget()
        sys.modules.update(others)
        del os.environ["FASTLOSS_ISA"]
        if before is not None:
            os.environ["FASTLOSS_ISA"] = before


@pytest.fixture(scope="session", params=LEVELS)
def fl(request: pytest.FixtureRequest) -> ModuleType:
    """The package, on each level that this build and this processor have."""
    try:
        return load_level(request.param)
    except ImportError as error:
        if "FASTLOSS_ISA" not in str(error):
            raise
        # test_levels.py fails where a level is missing that ought to be there.
        pytest.skip(str(error))


# ---- b) hypothesis ---------------------------------------------------------------------------
# `pytest --hypothesis-profile=full` compares thousands of examples, the default a few.

with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("quick", max_examples=60, derandomize=True, **common)
    settings.register_profile("full", max_examples=2000, **common)
    settings.load_profile("quick")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many examples test_conformance.py compared."""
    counts = getattr(sys.modules.get("test_conformance"), "compared", None)
    if counts:
        parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        terminalreporter.write_line(f"compared with PyTorch: {counts.total()} examples ({parts})")
