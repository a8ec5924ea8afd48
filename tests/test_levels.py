"""Which instruction-set level runs: all of the build's, one by name, the best by default.

Layout: a) what a level needs, b) which level a processor has, c) which level runs.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import LEVELS, load_level
from fastloss import _kernels
from fastloss._kernels import runtime

# ---- a) what a level needs -------------------------------------------------------------------

#: Every feature that a level adds: its register and bit, and its name in Linux's list, where it has
#: one. After the System V psABI for x86-64, section 3.1.1, and the processors' manuals; XSAVE is
#: what compilers add to the psABI's list.
FEATURES = [
    # level, register, bit, name
    (2, "leaf1_ecx", 0, "pni"),  # SSE3
    (2, "leaf1_ecx", 9, "ssse3"),
    (2, "leaf1_ecx", 13, "cx16"),  # CMPXCHG16B
    (2, "leaf1_ecx", 19, "sse4_1"),
    (2, "leaf1_ecx", 20, "sse4_2"),
    (2, "leaf1_ecx", 23, "popcnt"),
    (2, "ext1_ecx", 0, "lahf_lm"),
    (3, "leaf1_ecx", 12, "fma"),
    (3, "leaf1_ecx", 22, "movbe"),
    (3, "leaf1_ecx", 26, "xsave"),
    (3, "leaf1_ecx", 27, None),  # OSXSAVE
    (3, "leaf1_ecx", 28, "avx"),
    (3, "leaf1_ecx", 29, "f16c"),
    (3, "leaf7_ebx", 3, "bmi1"),
    (3, "leaf7_ebx", 5, "avx2"),
    (3, "leaf7_ebx", 8, "bmi2"),
    (3, "ext1_ecx", 5, "abm"),  # LZCNT
    (3, "xcr0", 1, None),  # SSE registers are saved
    (3, "xcr0", 2, None),  # AVX registers
    (4, "leaf7_ebx", 16, "avx512f"),
    (4, "leaf7_ebx", 17, "avx512dq"),
    (4, "leaf7_ebx", 28, "avx512cd"),
    (4, "leaf7_ebx", 30, "avx512bw"),
    (4, "leaf7_ebx", 31, "avx512vl"),
    (4, "xcr0", 5, None),  # mask registers
    (4, "xcr0", 6, None),  # upper halves of ZMM0 to 15
    (4, "xcr0", 7, None),  # ZMM16 to 31
]

#: The level of x86-64 that each of ours is compiled for.
X86_64_LEVELS = {"baseline": 1, "avx2": 3, "avx512": 4}


def registers(features) -> dict[str, int]:
    """The registers of a processor that has these features and no others."""
    found = dict.fromkeys(("leaf1_ecx", "leaf7_ebx", "ext1_ecx", "xcr0"), 0)
    for _, register, bit, _ in features:
        found[register] |= 1 << bit
    return found


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


on_x86_64_linux = pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="x86-64 Linux only"
)


# ---- b) which level a processor has ----------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_features_of_a_level_are_enough(level):
    assert runtime.x86_64_level_of(**registers(f for f in FEATURES if f[0] <= level)) == level


@pytest.mark.parametrize("missing", FEATURES, ids=lambda f: f"{f[1]}-{f[2]}-{f[3] or 'system'}")
def test_each_feature_is_needed(missing):
    """Whatever else a processor has, a level without one of its features is not chosen."""
    level, register, bit, _ = missing
    everything = dict.fromkeys(registers([]), 0xFFFFFFFF)
    assert runtime.x86_64_level_of(**everything) == 4
    everything[register] &= ~(1 << bit)
    assert runtime.x86_64_level_of(**everything) == level - 1


def test_features_of_a_high_level_alone_are_no_level():
    assert runtime.x86_64_level_of(**registers(f for f in FEATURES if f[0] > 2)) == 1
    assert runtime.x86_64_level_of(**registers(f for f in FEATURES if f[0] != 3)) == 2


@on_x86_64_linux
def test_features_of_this_processor():
    """The registers say what Linux says, and the level is the one that follows from it."""
    found, flags = runtime.cpu_registers(), processor_flags()
    for _, register, bit, name in FEATURES:
        if name is not None:
            assert bool(found[register] >> bit & 1) == (name in flags), name
    missing = [level for level, *_, name in FEATURES if name is not None and name not in flags]
    assert runtime.x86_64_level() == runtime.x86_64_level_of(**found)
    assert runtime.x86_64_level() == min(missing, default=5) - 1


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_levels_follow_from_the_processor(monkeypatch, level):
    monkeypatch.setattr(runtime, "x86_64_level", lambda: level)
    supported = [name for name, has in _kernels.LEVELS.items() if has()]
    assert supported == [name for name, least in X86_64_LEVELS.items() if least <= max(level, 1)]


# ---- c) which level runs ---------------------------------------------------------------------


@on_x86_64_linux
@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_this_processor_load(level, capsys):
    needs = {name for least, *_, name in FEATURES if name and least <= X86_64_LEVELS[level]}
    if level != "baseline" and not needs <= processor_flags():
        pytest.skip(f"the processor lacks {sorted(needs - processor_flags())}")
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


@on_x86_64_linux
def test_best_level_is_the_default():
    result = run("from fastloss import _kernels; print(_kernels.level)", FASTLOSS_ISA="")
    level = runtime.x86_64_level()
    fitting = [name for name in _kernels.built if X86_64_LEVELS[name] <= level]
    assert result.stdout.split() == fitting[-1:]
