"""The command line in processes of its own: memory, signals, streams, full disks, missing extras.

Layout: a) start and extras, b) memory, c) signals, d) standard streams, e) disks and folders.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest

import fastloss

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import (
    big_files,
    finish,
    start,
)

pytest_plugins = ("cli_helpers",)


# ---- a) start and extras ---------------------------------------------------------------------


def test_python_m_fastloss_prints_the_configuration():
    status, out, err = finish(start())
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    status, out, err = finish(start("score", "--json"))
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 1797


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(tmp_path, missing):
    """The bare form needs NumPy alone; the command says what to install."""
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    status, out, err = finish(start(env=environment))
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    status, out, err = finish(start("score", env=environment))
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "fastloss: the fastloss command needs typer and rich: pip install 'fastloss[cli]'"
    ]


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("pyarrow", "arrow", ["--output", "out.parquet"]),
        ("matplotlib", "plot", ["--plot", "p.png"]),
    ],
)
def test_without_other_extras(tmp_path, missing, extra, arguments):
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    status, out, err = finish(start("score", *arguments, env=environment, cwd=tmp_path))
    assert (status, out) == (2, "")
    assert f"pip install 'fastloss[{extra}]'" in err
    assert len(err.splitlines()) == 1


# ---- b) memory -------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_bounded(files):
    big_files(2)
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.npy", "--json")
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]) * 1024)
        time.sleep(0.01)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["samples"] == 2**31 // 4096
    assert report["mean_loss"] == pytest.approx(math.log(1024), rel=1e-6)
    assert 0 < most < 300e6


# ---- c) signals ------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_half_file(files, name):
    number = getattr(signal, name)
    big_files(60)
    before = set(files.iterdir())
    # A shell that runs the tests in the background has them, and what they start, ignore SIGINT.
    handler = signal.signal(number, signal.SIG_DFL)
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.csv", "--plot", "p.png")
    signal.signal(number, handler)
    deadline = time.monotonic() + 60
    while not any(
        path.name.startswith(".fastloss-") and path.stat().st_size > 50_000
        for path in files.iterdir()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 128 + number
    assert out == ""
    assert len(err.splitlines()) <= 1
    assert set(files.iterdir()) == before
