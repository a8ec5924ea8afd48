"""Which instruction-set level runs: all of the build's, one by name, the best by default."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import LEVELS, load_level

NEEDS = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
    "avx512": {
        "avx2",
        "fma",
        "bmi2",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
    },
}


def processor_flags() -> set[str]:
    """The processor's features as Linux lists them, whatever the package believes."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="x86-64 Linux only"
)
@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_this_processor_load(level, capsys):
    if not NEEDS[level] <= processor_flags():
        pytest.skip(f"the processor lacks {sorted(NEEDS[level] - processor_flags())}")
    load_level(level).show_config()
    assert re.search(rf"^instruction_set +{level}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("level", LEVELS)
def test_environment_chooses_level(level):
    result = run("import fastloss; fastloss.show_config()", FASTLOSS_ISA=level)
    if result.returncode == 0:
        assert re.search(rf"^instruction_set +{level}$", result.stdout, re.MULTILINE)
    else:
        assert level in result.stderr.splitlines()[-1]
        assert "FASTLOSS_ISA" in result.stderr.splitlines()[-1]


def test_unknown_level_is_an_error_that_names_the_known():
    result = run("import fastloss", FASTLOSS_ISA="sse9")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert "ImportError" in last
    assert "sse9" in last
    assert "baseline" in last
