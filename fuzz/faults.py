"""What happens where the system gives less than is asked: memory, threads, disk, time.

    python fuzz/faults.py [memory] [threads] [disk] [kills] [--count 200]

memory: each allocation of a call fails in turn, Python's, NumPy's and the kernels' own (a shim
before malloc counts them): MemoryError, `out` as it was or complete, and the next call right.
threads: none can be started (RLIMIT_NPROC). disk: outputs of the command on a full disk and in a
folder that may not be written. kills: `fastloss score`, `compare` and `calibrate` are killed at
random moments, half of them while a file is being written. No half output, and inputs untouched.

Needs Linux, a C compiler for the shim, and the right to mount a small disk or /dev/full.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

SHIM = r"""
#include <errno.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
static volatile long left; /* the allocation that fails, counted from now; 0: none */
void fail_at(long n) { left = n; }
long until_failure(void) { return left; }
static int fails(void) {
    if (left <= 0) return 0;
    if (__sync_sub_and_fetch(&left, 1) != 0) return 0;
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t m, size_t n) { return fails() ? NULL : __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { return fails() ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
    if (fails()) return ENOMEM;
    *p = __libc_memalign(a, n);
    return *p ? 0 : ENOMEM;
}
"""

MEMORY = r"""
import ctypes, sys
import numpy as np, fastloss
from leaks import works
libc = ctypes.CDLL(None)
fail_at, left = libc.fail_at, libc.until_failure
left.restype = ctypes.c_long
x = np.random.default_rng(0).standard_normal((40, 3000)).astype(np.float32)
t, p = np.arange(40), np.full((40, 3000), 1 / 3000, np.float32)
out = np.empty_like(x)
f = fastloss
fused = f.cross_entropy_value_and_grad
large = [
    lambda: fused(x, t, out=out),
    lambda: fused(x, p, out=out),
    lambda: fused(x, t, temperature=2.0, softcap=9.0, out=out),
    lambda: fused(x, t, sample_weight=np.geomspace(1, 1e20, 40), out=out),
    lambda: f.cross_entropy_grad_and_hess(x, t),
    lambda: f.softmax_focal_loss_value_and_grad(x.T, t, axis=0),
    lambda: f.sigmoid_focal_loss_value_and_grad(x, p, out=out),
    lambda: f.score_samples(x, t),
    lambda: f.score_samples(x, t, top_k=100),
    lambda: f.distillation_loss_value_and_grad(x, p, out=out),
    lambda: f.compare_logits(x.T, p.T, t, axis=0),
    lambda: f.linear_cross_entropy_value_and_grad(x[:, :50], x[:, :50], t),
]
def parts(result):
    if isinstance(result, tuple):
        return [one for part in result for one in parts(part)]
    return [] if result is None else [np.array(result)]
failures = errors = 0
for threads in (1, 2):
    fastloss.set_num_threads(threads)
    fastloss.special._threads.for_work = lambda elements: threads
    for number, work in enumerate(works() + large):
        try:
            want = parts(work())
        except (TypeError, ValueError, IndexError) as error:
            want = type(error)
        for n in range(1, 100_000):
            out[...] = 7
            refused = None
            fail_at(n)
            try:
                work()
            except MemoryError:
                refused = MemoryError
            except SystemError as error:
                # NumPy forgets to say so in some of its functions.
                assert "exception" in str(error), error
                refused = MemoryError
            except (TypeError, ValueError, IndexError) as error:
                refused = type(error)
            finished = left() > 0
            fail_at(0)
            if finished:
                break
            failures += 1
            if refused is MemoryError:
                errors += 1
                # Python may want memory for the result when all is done.
                whole = number < len(works()) or any(np.array_equal(out, one) for one in want)
                assert (out == 7).all() or whole, (number, n, "out is half written")
            elif refused is not None:
                assert refused is want, (number, n, refused)
            try:
                got = parts(work())
            except (TypeError, ValueError, IndexError) as error:
                got = type(error)
            if isinstance(want, list):
                assert all(map(lambda a, b: np.array_equal(a, b, equal_nan=True), got, want)), (
                    number, n, "the next call is wrong")
            else:
                assert got is want
print(f"{failures} failed allocations, {errors} MemoryErrors, every next call right")
"""

THREADS = r"""
import datetime, os, resource, threading
import numpy as np, numpy.random, fastloss
x, t = np.random.default_rng(0).standard_normal((8192, 64)), np.arange(8192) % 64
fastloss.set_num_threads(1)
want = fastloss.cross_entropy(x, t)
if os.getuid() == 0:  # root is above that limit
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    pass
else:
    raise SystemExit("threads can be started all the same")
for threads in (2, 4, 16):
    fastloss.set_num_threads(threads)
    assert fastloss.cross_entropy(x, t) == want
    assert fastloss.cross_entropy_value_and_grad(x, t)[0] == want
print("no thread can be started: all calls right")
"""


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"ended with {done.returncode}: {done.stdout}{done.stderr[-2000:]}")
    return done.stdout.strip()


def memory(count: int, folder: Path) -> None:
    (folder / "shim.c").write_text(SHIM)
    shim = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, folder / "shim.c"], check=True)
    print(child(MEMORY, LD_PRELOAD=str(shim), PYTHONMALLOC="malloc", OPENBLAS_NUM_THREADS="1"))


def threads(count: int, folder: Path) -> None:
    print(child(THREADS))


def files(folder: Path) -> tuple[list[str], dict[Path, str]]:
    """Inputs of the command, and their digests."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40_000, 50)).astype(np.float32)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "other.npy", logits + rng.standard_normal(logits.shape).astype(np.float32))
    # Drawn from the logits, so that there is a best temperature.
    np.save(folder / "targets.npy", (logits + rng.gumbel(size=logits.shape)).argmax(axis=1))
    arguments = [str(folder / "logits.npy"), str(folder / "targets.npy")]
    return arguments, {path: digest(path) for path in folder.glob("*.npy")}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def command(name: str, *arguments: str, **options: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fastloss", name, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def disk(count: int, folder: Path) -> None:
    arguments, before = files(folder)
    small = folder / "small"
    small.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True
    ).returncode
    places = [small] if mounted else []
    closed = folder / "closed"
    closed.mkdir(mode=0o500)
    if os.getuid():
        places.append(closed)
    seen = 0
    try:
        for place in places:
            for option, name in [("--output", "losses.npy"), ("--output", "losses.csv")]:
                run = command("score", *arguments, option, str(place / name))
                error = run.communicate()[1]
                lines = [line for line in error.splitlines() if line.strip()]
                usage = "Usage" in error or "Traceback" in error
                if run.returncode != 2 or usage or not lines:
                    sys.exit(f"{option} {name} in {place}: status {run.returncode}: {error}")
                if list(place.iterdir()):
                    sys.exit(f"{option}: left {list(place.iterdir())}")
                seen += 1
    finally:
        if mounted:
            subprocess.run(["umount", small], check=True)
    check(before)
    print(f"{seen} outputs on a full disk or where nothing may be written: status 2, nothing left")


#: What is killed: a command, and the files that it writes, by option.
KILLED = [
    ("score", {"--output": "losses.npy"}),
    ("score", {"--output": "losses.csv", "--output-groups": "groups.json"}),
    ("compare", {"--output": "changes.npy", "--output-groups": "groups.csv"}),
    ("compare", {"--output": "changes.csv"}),
    ("calibrate", {"--output": "log_probs.npy"}),
]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Killed:
    """A command that is killed, and what it leaves where it is not."""

    def __init__(self, name: str, outputs: dict[str, str], folder: Path):
        inputs = ["logits.npy", *(["other.npy"] if name == "compare" else []), "targets.npy"]
        self.name, self.folder = name, folder
        self.targets = [folder / output for output in outputs.values()]
        self.arguments = [str(folder / one) for one in inputs]
        if "--output-groups" in outputs:
            self.arguments += ["--group-by", self.arguments[-1]]
        for option, target in zip(outputs, self.targets, strict=True):
            self.arguments += [option, str(target)]
        start = time.monotonic()
        error = (run := command(name, *self.arguments)).communicate()[1]
        if run.returncode:
            sys.exit(f"{name}: status {run.returncode}: {error}")
        self.took = time.monotonic() - start
        self.whole = [target.read_bytes() for target in self.targets]

    def parts(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if ".part" in path.name]

    def kill(self, rng: random.Random, old: bool, seen: Counter[str]) -> None:
        """Kill it once; `old`: with outputs of before."""
        number = rng.choice(SIGNALS)
        for target, content in zip(self.targets, self.whole, strict=True):
            target.unlink(missing_ok=True)
            if old:
                target.write_bytes(content)
        run = command(self.name, *self.arguments, start_new_session=True)
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.9) * self.took)
        else:  # while it writes
            while run.poll() is None and not self.parts():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02) * self.took)
        seen["runs"] += 1
        seen["writing"] += bool(self.parts())
        running = run.poll() is None
        run.send_signal(number)
        run.communicate()
        if running and run.returncode != 0:
            seen["ended"] += 1
            seen[self.name] += 1
        what = f"{self.name} {number.name}"
        for target, content in zip(self.targets, self.whole, strict=True):
            if target.exists() and target.read_bytes() != content:
                sys.exit(f"{what}: {target.name} is half an output")
            if old and not target.exists():
                sys.exit(f"{what}: the old {target.name} is gone")
        left = self.parts()
        if left and number != signal.SIGKILL:
            sys.exit(f"{what}: left {left}")
        for path in left:
            path.unlink()


def kills(count: int, folder: Path) -> None:
    _, before = files(folder)
    cases = [Killed(name, outputs, folder) for name, outputs in KILLED]
    rng, seen = random.Random(count), Counter[str]()
    # Some come to their end before the signal.
    while seen["ended"] < count:
        cases[seen["runs"] % len(cases)].kill(rng, seen["runs"] % 2 == 0, seen)
    check(before)
    names = ", ".join(f"{name} {seen[name]}" for name in ("score", "compare", "calibrate"))
    print(
        f"{seen['ended']} runs killed ({names}) of {seen['runs']}, {seen['writing']} while a file"
        " was being written: no half output, inputs untouched"
    )


def check(before: dict[Path, str]) -> None:
    if any(digest(path) != known for path, known in before.items()):
        sys.exit("an input was changed")


def main() -> None:
    parts = {"memory": memory, "threads": threads, "disk": disk, "kills": kills}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(parts))
    parser.add_argument("--count", type=int, default=200, help="runs that are killed")
    arguments = parser.parse_args()
    for name in arguments.parts or parts:
        folder = Path(tempfile.mkdtemp())
        try:
            parts[name](arguments.count, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
