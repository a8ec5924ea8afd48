"""What attacks the package, a session each: `nox -l` lists them, `nox -s races` runs one.

    pip install nox
    nox -s tests slow
    nox -s fuzz-calls -- --seconds 3600 --seed 7     # what follows -- goes to the command

Each session is one or two plain commands, and says so: they can be run without nox, in an
environment that has the package. `nox --no-venv -s SESSION` does that for you.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.3"
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

SANITIZED = "-g1 -fno-omit-frame-pointer"


def installed(session: nox.Session, *more: str, build: str = "release", **variables: str) -> None:
    """Build the package into a folder of its own, and install it with what the tests need."""
    if session.virtualenv.__class__.__name__ == "PassthroughEnv":
        return
    session.install(
        "-C", f"build-dir=build/{build}", "-C", "install.strip=false", ".[test]", *more,
        env=variables,
    )  # fmt: skip


def runtime_of(compiler: str, name: str) -> str:
    """A compiler's run-time library, to be loaded before Python."""
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def working(*libraries: str) -> str:
    """The first of some run-time libraries that a process survives: older ones fail on new kernels.

    clang's and gcc's ThreadSanitizer have the same functions.
    """
    for library in libraries:
        if not subprocess.run(["true"], env={**os.environ, "LD_PRELOAD": library}).returncode:
            return library
    raise RuntimeError(f"none of {libraries} works here")


def python_without_launcher(session: nox.Session) -> str:
    """Python's own file: valgrind and sanitizers follow no shell script."""
    return str(Path(session.bin) / "python") if session.bin else sys.executable


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite, on every level that the processor has."""
    installed(session)
    session.run("pytest", "-q", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """What takes minutes: exp, log and log1p of every float."""
    installed(session)
    session.run("pytest", "-q", "-m", "slow", *session.posargs)


@nox.session(name="fuzz-calls")
def fuzz_calls(session: nox.Session) -> None:
    """Random whole calls against an oracle, on all levels."""
    installed(session)
    session.run("python", "fuzz/calls.py", *(session.posargs or ["--seconds", "60"]))


@nox.session(name="fuzz-bridges")
def fuzz_bridges(session: nox.Session) -> None:
    """Random calls of fastloss.torch and fastloss.dask, where they can be had."""
    installed(session, "torch", "dask[array]")
    session.run("python", "fuzz/bridges.py", *(session.posargs or ["--seconds", "60"]))


@nox.session(name="fuzz-files")
def fuzz_files(session: nox.Session) -> None:
    """Damaged files of every kind."""
    installed(session)
    session.run("python", "fuzz/files.py", *(session.posargs or ["--seconds", "60"]))


@nox.session(name="fuzz-coverage", python="3.11")
def fuzz_coverage(session: nox.Session) -> None:
    """Raw bytes, guided by coverage, as calls and as files: a minute each."""
    installed(session, "atheris")
    targets = ["calls", "npy", "npz", "safetensors", "parquet", "arrow", "arrows"]
    for target in targets:
        session.run(
            "python", "fuzz/coverage.py", target, *(session.posargs or ["-max_total_time=60"])
        )


@nox.session
def sanitizers(session: nox.Session) -> None:
    """Addresses and undefined behaviour: the suite, and whole calls; then the slope of memory."""
    compiler = os.environ.get("CC", "cc")
    flags = f"-fsanitize=address,undefined -fno-sanitize-recover=undefined {SANITIZED}"
    clang = "clang" in compiler
    if clang:
        flags += " -shared-libasan"
    installed(session, build=f"sanitized-{Path(compiler).name}", CFLAGS=flags)
    runtime = runtime_of(compiler, "libclang_rt.asan-x86_64.so" if clang else "libasan.so")
    env = {
        "LD_PRELOAD": runtime,
        # Python keeps objects until it ends: the slope below is what tells of leaks.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    session.run("python", "fuzz/calls.py", "--seconds", "120", env=env)
    session.run("python", "fuzz/races.py", "--seconds", "30", env=env)
    # The shadow memory is beyond every limit on memory.
    session.run("pytest", "-q", "-k", "not memory and not allocation", *session.posargs, env=env)
    session.run("python", "fuzz/leaks.py", "--count", "200000")


@nox.session
def memcheck(session: nox.Session) -> None:
    """Valgrind, on AVX2 and on the baseline: what is read must have been written."""
    installed(session)
    chosen = session.posargs or ["tests/test_nll_loss.py", "tests/test_linear.py"]
    for level in ("avx2", "baseline"):
        session.run(
            "valgrind", "--error-exitcode=9", "--leak-check=no", "--num-callers=12",
            "--suppressions=fuzz/valgrind.supp", python_without_launcher(session), "-m", "pytest",
            "-q", "-p", "no:cacheprovider", "-k", level, *chosen,
            env={"PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "2"}, external=True,
        )  # fmt: skip


@nox.session
def threads(session: nox.Session) -> None:
    """ThreadSanitizer, by clang: LLVM's OpenMP runtime tells it through Archer who waits for whom.

    GNU's runtime does not, so that with gcc every end of a loop looks like a race.
    """
    compiler = os.environ.get("CC", "clang")
    command = [compiler, "-print-resource-dir"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    resources = Path(found.stdout.strip())
    installed(session, build="threads", CC=compiler, CFLAGS=f"-fsanitize=thread {SANITIZED}")
    env = {
        "LD_PRELOAD": working(
            runtime_of(compiler, "libclang_rt.tsan-x86_64.so"), runtime_of("gcc", "libtsan.so")
        ),
        "OMP_TOOL_LIBRARIES": str(resources.parents[1] / "libarcher.so"),
        # Python, NumPy and the OpenMP runtime itself are not compiled for it; what the kernels
        # touch is, and nothing of theirs has to be suppressed.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=0:exitcode=9",
    }
    session.run("python", "fuzz/threads.py", *session.posargs, env=env)


@nox.session
def parallel(session: nox.Session) -> None:
    """Every test by four threads at once."""
    installed(session, "pytest-run-parallel")
    session.run(
        "pytest", "-q", "--parallel-threads=4", "tests/test_cross_entropy.py",
        "tests/test_binary.py", "tests/test_nll_loss.py", "tests/test_divergence.py",
        "tests/test_special.py", "tests/test_second_order.py", "tests/test_criteria.py",
        "tests/test_streaming.py", *session.posargs,
    )  # fmt: skip


@nox.session
def races(session: nox.Session) -> None:
    """Arrays that other threads overwrite during calls."""
    installed(session)
    session.run("python", "fuzz/races.py", *(session.posargs or ["--seconds", "60"]))


@nox.session
def forks(session: nox.Session) -> None:
    """Forks at random moments, amid threads and signals."""
    installed(session)
    session.run("python", "fuzz/forks.py", *(session.posargs or ["--count", "1000"]))


@nox.session
def faults(session: nox.Session) -> None:
    """No memory, no threads, no disk, and no time."""
    installed(session)
    session.run("python", "fuzz/faults.py", *session.posargs)


@nox.session
def size(session: nox.Session) -> None:
    """More than 2**31 elements and samples; ten million classes."""
    installed(session)
    session.run("python", "fuzz/size.py", *session.posargs)


@nox.session
def accuracy(session: nox.Session) -> None:
    """The worst error of every function: what docs/numerics.md quotes."""
    installed(session)
    session.run("python", "fuzz/accuracy.py", *session.posargs)
