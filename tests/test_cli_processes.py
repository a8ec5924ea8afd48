"""The command line in processes of its own: memory, signals, streams, full disks, missing extras.

Layout: a) start and extras, b) memory, c) signals, d) standard streams, e) disks and folders.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastloss

pytest.register_assert_rewrite("cli_helpers")

from cli_helpers import LOGITS, SAMPLES, big_files, finish, start

pytest_plugins = ("cli_helpers",)


# ---- a) start and extras ---------------------------------------------------------------------


def test_python_m_fastloss_prints_the_configuration():
    status, out, err = finish(start())
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    status, out, err = finish(start("score", "--json"))
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 1797


@pytest.mark.parametrize("command", [["--version"], ["--version", "score"]])
def test_python_m_fastloss_prints_its_version(command):
    """With nothing else on the line, NumPy is enough for that."""
    assert finish(start(*command)) == (0, f"{fastloss.__version__}\n", "")


def with_first(folder: Path) -> dict[str, str]:
    """An environment in which Python looks into a folder first."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(tmp_path, missing):
    """The bare form needs NumPy alone; the command says what to install."""
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError('No module named {missing}')"
    )
    environment = with_first(tmp_path)
    status, out, err = finish(start(env=environment))
    assert (status, err) == (0, "")
    assert fastloss.__version__ in out
    assert finish(start("--version", env=environment))[0] == 0
    status, out, err = finish(start("score", env=environment))
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "fastloss: the fastloss command needs typer and rich: pip install 'fastloss[cli]',"
        " or typer and rich"
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
    environment = with_first(tmp_path)
    status, out, err = finish(start("score", *arguments, env=environment, cwd=tmp_path))
    assert (status, out) == (2, "")
    assert f"pip install 'fastloss[{extra}]'" in err
    assert len(err.splitlines()) == 1


# ---- b) memory -------------------------------------------------------------------------------


def anonymous_memory(process: int) -> int:
    """Bytes that a process has by itself, without what it maps of files."""
    status = Path(f"/proc/{process}/status").read_text()
    return sum(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_bounded(files):
    big_files(2)
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.npy", "--json")
    most = 0
    while process.poll() is None:
        most = max(most, anonymous_memory(process.pid))
        time.sleep(0.01)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["samples"] == 2**31 // 4096
    assert report["mean_loss"] == pytest.approx(math.log(1024), rel=1e-6)
    assert 0 < most < 300e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("order", ["Fortran order", "axis 0"])
def test_memory_stays_bounded_across_the_order_of_a_file(files, order):
    """Of classes first, little of each lies together: the longest way through a file."""
    shape, options = (
        ((2**15, 2**13), []) if order == "Fortran order" else ((2**13, 2**15), ["--axis", "0"])
    )
    np.lib.format.open_memmap("big.npy", "w+", np.float32, shape, order == "Fortran order")
    np.save("big_targets.npy", np.zeros(2**15, np.int64))
    process = start("score", "big.npy", "big_targets.npy", "--json", "--threads", "2", *options)
    most = 0
    while process.poll() is None:
        most = max(most, anonymous_memory(process.pid))
        time.sleep(0.01)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert json.loads(out)["mean_loss"] == pytest.approx(math.log(2**13), rel=1e-6)
    assert 0 < most < 500e6  # the file has 1 GB


# ---- c) signals ------------------------------------------------------------------------------


def start_by_default(numbers: list[int], *arguments, **options) -> subprocess.Popen:
    """Start with signals as a terminal would leave them.

    A shell that runs the tests in the background has them, and what they start, ignore SIGINT.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        return start(*arguments, **options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_output(process: subprocess.Popen, folder: Path) -> None:
    """Wait until a good part of the result is written."""
    deadline = time.monotonic() + 120
    while not any(
        path.name.startswith(".fastloss-") and path.stat().st_size > 50_000
        for path in folder.iterdir()
    ):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"nothing was written: {finish(process)}")
        time.sleep(0.02)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_half_file(files, name):
    number = getattr(signal, name)
    big_files(60)
    before = set(files.iterdir())
    command = ("score", "big.npy", "big_targets.npy", "--output", "out.csv", "--plot", "p.png")
    process = start_by_default([number], *command)
    wait_for_output(process, files)
    process.send_signal(number)
    # The second comes while the first is at work.
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 128 + number
    assert out == ""
    assert err == ("fastloss: interrupted\n" if name == "SIGINT" else "")
    assert set(files.iterdir()) == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_under_nohup_a_run_goes_on(files):
    big_files(1)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("score", "big.npy", "big_targets.npy", "--json", "--output", "out.csv")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_output(process, files)
    process.send_signal(signal.SIGHUP)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert json.loads(out)["samples"] == 2**18


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_killed_at_any_moment_there_is_no_half_output(files):
    """What can't be caught may leave a .part, and nothing else."""
    inputs = {path: path.read_bytes() for path in files.iterdir()}
    rng = random.Random(4)
    for _ in range(6):
        process = start("score", "logits.npy", "targets.npy", "--output", "out.npy")
        time.sleep(rng.uniform(0.1, 1.5))
        process.kill()
        finish(process)
        if Path("out.npy").exists():
            assert len(np.load("out.npy")) == SAMPLES
            Path("out.npy").unlink()
        for path in files.iterdir():
            assert path in inputs or path.suffix == ".part"
        assert {path: path.read_bytes() for path in inputs} == inputs


@pytest.mark.skipif(os.name != "posix", reason="a file that is open can't be cut off elsewhere")
@pytest.mark.parametrize("what", ["C order", "Fortran order", "axis 0", "targets"])
def test_a_file_that_is_cut_off_while_it_is_read(files, what):
    rows, options = 2**23, ["--axis", "0"] if what == "axis 0" else []
    shape = (1024, rows) if what == "axis 0" else (rows, 1024)
    np.lib.format.open_memmap("big.npy", "w+", np.float32, shape, what == "Fortran order")
    np.lib.format.open_memmap("big_targets.npy", "w+", np.int64, (rows,))
    before = set(files.iterdir())
    name = "big_targets.npy" if what == "targets" else "big.npy"
    process = start("score", "big.npy", "big_targets.npy", "--output", "out.csv", *options)
    wait_for_output(process, files)
    os.truncate(name, 4096)
    status, out, err = finish(process)
    assert (status, out) == (2, "")
    assert err == f"fastloss: {name} was cut off while it was read\n"
    assert set(files.iterdir()) == before


# ---- d) standard streams ---------------------------------------------------------------------


def shell(command: str, **options) -> subprocess.CompletedProcess:
    """Run a line of a shell in which ``fastloss`` is the command."""
    fastloss_ = f"'{sys.executable}' -m fastloss"
    line = command.replace("fastloss", fastloss_, 1)
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("streams", ["2>&-", "<&- 2>&-"])
def test_without_standard_error_nothing_goes_to_standard_output(files, streams):
    result = shell(f"fastloss score nowhere.npy targets.npy {streams}")
    assert (result.returncode, result.stdout) == (2, "")
    # And no file gets the number of the stream.
    result = shell(f"fastloss score logits.npy targets.npy --json --output out.npy {streams}")
    assert result.returncode == 0
    assert json.loads(result.stdout)["samples"] == SAMPLES
    assert len(np.load("out.npy")) == SAMPLES


def test_a_terminal_without_the_letters(files):
    process = start("score", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert "float32 1,797 ? 10" in out


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.parametrize("stream", [">&-", "> /dev/full", "| true"])
def test_standard_output_that_takes_nothing(files, form, stream):
    if "full" in stream and not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    status = 'echo "status $?" >&2'
    result = shell(f"(fastloss score logits.npy targets.npy {form}; {status}) {stream}")
    *lines, last = result.stderr.splitlines()
    if stream == "| true" and not lines:
        assert last == "status 0"  # the pipe was not closed yet
        return
    assert last == "status 2"
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fastloss: ") and "standard output" in lines[0]


# ---- e) disks and folders --------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
@pytest.mark.parametrize("name", ["out.npy", "out.csv", "out.parquet", "p.png", "p.svg", "p.pdf"])
def test_a_full_disk_leaves_no_half_file(files, name):
    """A limit on the size of files fails a write as a full disk does."""
    pytest.importorskip({"parquet": "pyarrow"}.get(name[4:], "matplotlib"))
    option = "--plot" if name.startswith("p.") else "--output"
    np.save("logits.npy", np.tile(LOGITS, (20, 1)))
    np.save("targets.npy", np.arange(20 * SAMPLES) % LOGITS.shape[1])
    inputs = {path: path.read_bytes() for path in files.iterdir()}
    # A font cache that matplotlib could not write would be no fault of the plot.
    environment = {**os.environ, "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(files.parent))}
    for size in (0, 8):  # in the header; behind it, in blocks of 512 bytes
        line = f"ulimit -f {size}; fastloss score logits.npy targets.npy {option} {name}"
        result = shell(line, env=environment)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"fastloss: cannot write {name}: ") and "File too large" in line
        assert {path: path.read_bytes() for path in files.iterdir()} == inputs


def drop_the_right_to_write_anywhere() -> None:
    """A process of root gives up CAP_DAC_OVERRIDE, once it executes another program."""
    pr_capbset_drop, cap_dac_override = 24, 1
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="root is held back as Linux does")
@pytest.mark.parametrize("arguments", [["--output", "closed/out.csv"], ["--plot", "closed/p.png"]])
def test_a_folder_that_is_not_writable(files, arguments):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    Path("closed").mkdir()
    Path("closed").chmod(0o555)
    process = start("score", *arguments, preexec_fn=drop_the_right_to_write_anywhere)
    status, out, err = finish(process)
    assert (status, out) == (2, "")
    assert err == f"fastloss: cannot write {arguments[1]}: Permission denied\n"
    assert list(Path("closed").iterdir()) == []
