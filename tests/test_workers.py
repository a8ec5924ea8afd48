"""Processes and threads around fastloss: forks, pools, data loaders, limits on threads.

Each test runs a script in a process of its own with a time-out, since what it looks for is a hang.

Layout: a) running a script, b) forks, c) pools of processes, d) Python threads, e) how many threads
a call takes, f) the quota of a control group.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fastloss import _threads

# ---- a) running a script ---------------------------------------------------------------------

TIMEOUT = 60

#: What every script starts with: a call large enough for threads, and what it returns.
PRELUDE = """\
import os, sys, threading, time
import numpy as np
import fastloss

def arrays():
    x = np.random.default_rng(0).standard_normal((8192, 64)).astype(np.float32)
    return x, np.arange(8192) % 64

X, T = arrays()

def call(_=None):
    loss, grad = fastloss.cross_entropy_value_and_grad(X, T)
    return float(loss), float(np.abs(grad).sum(dtype=float))

def threads():
    return len(os.listdir("/proc/self/task"))

def finished(child, seconds=20):
    # Exit status of a child; a child that hangs is killed and fails.
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False

def fork(work):
    # Fork; the child works and must come to the end.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert finished(child), "a forked child hangs"
    with os.fdopen(reader) as file:
        return eval(file.read() or "None")

"""


def run(tmp_path: Path, script: str, first: str = "", **environment: str) -> str:
    """Run `first`, the prelude and a script; return what it prints.

    A time-out, or an exit status other than 0, fails the test.
    """
    path = tmp_path / "script.py"
    path.write_text(f"{first}\n{PRELUDE}{textwrap.dedent(script)}")
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the script hung for {TIMEOUT} s")
    finally:
        # Its children, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, err
    return out


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc and sets the affinity"
)
needs_openmp = pytest.mark.skipif(
    not _threads.runtime.openmp_version(), reason="built without OpenMP"
)


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


# ---- b) forks --------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("caller", ["main", "another", "another, meanwhile", "both"])
@pytest.mark.parametrize("number", [None, 2, 3])
def test_fork_after_threaded_calls(tmp_path, caller, number):
    """Whoever made threaded calls, even at that moment, and whatever the child does."""
    run(
        tmp_path,
        f"""
        fastloss.set_num_threads(2)
        caller, number = {caller!r}, {number!r}
        want = call()

        def work():
            first = call()
            if number is not None:
                fastloss.set_num_threads(number)
            return first, call(), fastloss.get_num_threads()

        stop = threading.Event()

        def loop():
            while not stop.is_set():
                assert call() == want

        # The call above ran in a thread pool of this thread; one of a new thread has none.
        def forks():
            for _ in range(8):
                if caller in ("main", "both"):
                    assert call() == want
                assert fork(work) == (want, want, number or 1)

        beside = threading.Thread(target=loop)
        if caller != "main":
            beside.start()
            time.sleep(0.05)
        if caller == "another":
            stop.set()
            beside.join()
        if caller.startswith("another"):
            forking = threading.Thread(target=forks)
            forking.start()
            forking.join()
        forks()
        stop.set()
        if beside.ident:
            beside.join()
        # The parent is as it was.
        assert fastloss.get_num_threads() == 2 and call() == want
        print("done")
        """,
    )


@needs_fork
def test_child_is_single_threaded_until_it_says_otherwise(tmp_path):
    out = run(
        tmp_path,
        """
        fastloss.set_num_threads(4)
        want = call()

        def grandchild():
            first = fastloss.get_num_threads()
            fastloss.set_num_threads(2)
            return first, call()

        def child():
            numbers = [fastloss.get_num_threads()]
            call()
            fastloss.set_num_threads(3)
            numbers.append(fastloss.get_num_threads())
            call()
            return numbers, fork(grandchild), fastloss.get_num_threads(), call()

        assert fork(child) == ([1, 3], (1, want), 3, want)
        print(fastloss.get_num_threads())
        """,
    )
    assert out.strip() == "4"


@needs_fork
@needs_linux
@needs_openmp
def test_child_starts_threads_of_its_own(tmp_path):
    """What a child asks for is what it gets: a pool of threads, not the ghost of its parent's."""
    run(
        tmp_path,
        """
        fastloss.set_num_threads(3)
        call()

        def child():
            call()
            alone = threads()
            fastloss.set_num_threads(3)
            call()
            return alone, threads()

        assert fork(child) == (1, 3)
        """,
    )


@needs_fork
@needs("torch")
@pytest.mark.parametrize("first", ["import torch", "import fastloss"])
def test_fork_beside_torch(tmp_path, first):
    """PyTorch brings an OpenMP runtime; whichever came first, a fork after calls of both works."""
    run(
        tmp_path,
        """
        import torch

        fastloss.set_num_threads(2)
        torch.set_num_threads(2)
        big = torch.ones(2000, 2000)
        want = call()
        big.exp().sum()
        call()

        def child():
            first = call()
            fastloss.set_num_threads(2)
            return first, call()

        for _ in range(4):
            assert fork(child) == (want, want)
            big.exp().sum()
            call()
        """,
        first,
    )


@needs_fork
@needs("torch")
def test_data_loader_with_workers(tmp_path):
    out = run(
        tmp_path,
        """
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Scored(Dataset):
            # Each item's loss is worked out where it is loaded.
            def __len__(self):
                return 16

            def __getitem__(self, i):
                return i, call()[0] + i

        class Threaded(Scored):
            def __getitem__(self, i):
                fastloss.set_num_threads(2)
                return super().__getitem__(i)

        fastloss.set_num_threads(2)
        want = call()[0]
        for dataset in Scored(), Threaded():
            for _ in range(2):  # epochs: new workers each time
                loader = DataLoader(
                    dataset, batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=20
                )
                for i, loss in loader:
                    np.testing.assert_allclose(loss.numpy(), want + i.numpy(), rtol=1e-12)
                call()
        print("done")
        """,
    )
    assert out == "done\n"


# ---- c) pools of processes -------------------------------------------------------------------

METHODS = [
    pytest.param("fork", marks=needs_fork),
    "spawn",
    pytest.param("forkserver", marks=needs_fork),
]


@pytest.mark.parametrize("method", METHODS)
def test_multiprocessing_pool(tmp_path, method):
    run(
        tmp_path,
        f"""
        import multiprocessing

        if __name__ == "__main__":
            fastloss.set_num_threads(2)
            want = call()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map_async(call, range(8)).get(timeout=40) == [want] * 8
                assert call() == want
                assert pool.map_async(call, range(8)).get(timeout=40) == [want] * 8
        """,
    )


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(tmp_path, method):
    run(
        tmp_path,
        f"""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def two():
            fastloss.set_num_threads(2)

        if __name__ == "__main__":
            want = call()
            context = multiprocessing.get_context({method!r})
            with ProcessPoolExecutor(2, mp_context=context, initializer=two) as pool:
                assert list(pool.map(call, range(8), timeout=40)) == [want] * 8
        """,
    )


@needs_fork
def test_forked_pool_inside_threaded_parent(tmp_path):
    """Python threads make threaded calls, and each of them opens a forked pool meanwhile."""
    run(
        tmp_path,
        """
        import multiprocessing
        from concurrent.futures import ThreadPoolExecutor

        def pool_in_thread(_):
            assert call() == want
            with multiprocessing.get_context("fork").Pool(2) as pool:
                answer = pool.map_async(call, range(4)).get(timeout=40)
            assert call() == want
            return answer

        fastloss.set_num_threads(2)
        want = call()
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(call) for _ in range(20)]
            for answer in threads.map(pool_in_thread, range(3), timeout=50):
                assert answer == [want] * 4
            assert all(c.result() == want for c in calls)
        """,
    )


@needs("joblib")
def test_joblib(tmp_path):
    run(
        tmp_path,
        """
        from joblib import Parallel, delayed

        if __name__ == "__main__":
            want = call()
            for backend in ("loky", "threading", "multiprocessing"):
                got = Parallel(n_jobs=2, backend=backend)(delayed(call)() for _ in range(6))
                assert got == [want] * 6
        """,
    )


# ---- d) Python threads -----------------------------------------------------------------------


def test_concurrent_threads(tmp_path):
    """Many Python threads, each with threaded calls of its own, while numbers change."""
    run(
        tmp_path,
        """
        want = call()
        failures = []
        ready = threading.Barrier(8)

        def work(number):
            ready.wait()
            for i in range(10):
                if number < 2:
                    fastloss.set_num_threads(1 + (i + number) % 4)
                if call() != want:
                    failures.append(number)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures, failures
        """,
    )


def test_thread_pool_executor(tmp_path):
    """Different losses at once, into the halves of one array."""
    run(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor

        fastloss.set_num_threads(2)
        out = np.zeros((2, *X.shape), np.float32)
        B = (np.arange(X.size).reshape(X.shape) % 2).astype(np.float32)

        def classes(_):
            return fastloss.cross_entropy_value_and_grad(X, T, out=out[0])[0]

        def binary(_):
            return fastloss.binary_cross_entropy_with_logits_value_and_grad(X, B, out=out[1])[0]

        want = [classes(0), binary(0)]
        grads = out.copy()
        out[:] = 0
        with ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                futures = [pool.submit(classes, 0), pool.submit(binary, 0)]
                assert [f.result(timeout=40) for f in futures] == want
        assert (out == grads).all()
        """,
    )


@needs("dask")
@pytest.mark.parametrize("number", [None, 2])
def test_under_dasks_threads(tmp_path, number):
    """Threaded calls, or `fastloss.dask`, on the threads of dask's own scheduler."""
    run(
        tmp_path,
        f"""
        import dask
        import dask.array as da
        import fastloss.dask

        if {number!r} is not None:
            fastloss.set_num_threads({number!r})
        want = call()
        with dask.config.set(scheduler="threads", num_workers=4):
            assert dask.compute(*[dask.delayed(call)(i) for i in range(16)]) == (want,) * 16
            loss, grad = dask.compute(*fastloss.dask.cross_entropy_value_and_grad(
                da.from_array(X, chunks=(1500, 64)), T
            ))
        np.testing.assert_allclose(loss, want[0], rtol=2e-7)
        np.testing.assert_allclose(np.abs(grad).sum(dtype=float), want[1], rtol=1e-6)
        assert fastloss.get_num_threads() == ({number!r} or fastloss.get_num_threads())
        """,
    )


@needs_linux
def test_ctrl_c_waits_for_the_call(tmp_path):
    """KeyboardInterrupt comes when the kernel has ended: `out` is complete."""
    run(
        tmp_path,
        """
        import signal

        fastloss.set_num_threads(1)
        x = np.zeros((4000, 2000), np.float32)
        t = np.zeros(4000, int)
        interrupted = 0
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        for delay in np.geomspace(1e-4, 3e-2, 12):
            out = np.full_like(x, 7)
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                fastloss.cross_entropy_value_and_grad(x, t, out=out)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
                assert (out != 7).all() or (out == 7).all()
        assert interrupted
        """,
    )


# ---- e) how many threads a call takes --------------------------------------------------------


@needs_linux
@needs_openmp
@pytest.mark.parametrize("number", [1, 2, 5])
def test_omp_num_threads(tmp_path, number):
    run(
        tmp_path,
        f"""
        before = threads()
        assert fastloss.get_num_threads() == {number}
        call()
        assert threads() - before == {number} - 1
        """,
        OMP_NUM_THREADS=str(number),
    )


@needs_linux
@needs_openmp
def test_set_num_threads_overrides_the_environment(tmp_path):
    run(
        tmp_path,
        """
        before = threads()
        call()
        assert threads() - before == 1
        fastloss.set_num_threads(4)
        call()
        assert threads() - before == 3
        """,
        OMP_NUM_THREADS="2",
    )


@needs_openmp
def test_last_number_wins(tmp_path):
    """`set_num_threads` speaks for all Python threads, whichever one calls it."""
    run(
        tmp_path,
        """
        def elsewhere(work):
            answer = []
            thread = threading.Thread(target=lambda: answer.append(work()))
            thread.start()
            thread.join()
            return answer[0]

        for here, there in (2, 6), (6, 2), (8, 3), (3, 8):
            fastloss.set_num_threads(here)
            assert elsewhere(fastloss.get_num_threads) == here
            elsewhere(lambda: fastloss.set_num_threads(there))
            assert fastloss.get_num_threads() == there, (here, there)
            assert elsewhere(fastloss.get_num_threads) == there
        """,
        OMP_NUM_THREADS="8",
    )


@needs_linux
@needs_openmp
@needs("threadpoolctl")
@pytest.mark.parametrize("chosen", [None, 4])
def test_threadpoolctl(tmp_path, chosen):
    """A limit holds in its block, for the calls too, and the number comes back after it."""
    run(
        tmp_path,
        f"""
        import threadpoolctl

        if {chosen!r}:
            fastloss.set_num_threads({chosen!r})
        number = fastloss.get_num_threads()
        assert number == ({chosen!r} or 3)
        runtimes = [r["user_api"] for r in threadpoolctl.threadpool_info()]
        assert "openmp" in runtimes
        before = threads()
        with threadpoolctl.threadpool_limits(1):
            assert fastloss.get_num_threads() == 1
            call()
            assert threads() == before
        assert fastloss.get_num_threads() == number
        with threadpoolctl.threadpool_limits(2, user_api="openmp"):
            assert fastloss.get_num_threads() == 2
            call()
            assert threads() == before + 1
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            assert fastloss.get_num_threads() == number
        assert fastloss.get_num_threads() == number
        """,
        OMP_NUM_THREADS="3",
    )


@needs_linux
def test_affinity(tmp_path):
    """Without another word there are no more threads than processors, as they are at the call."""
    run(
        tmp_path,
        """
        processors = sorted(os.sched_getaffinity(0))
        assert fastloss.get_num_threads() <= len(processors)
        os.sched_setaffinity(0, processors[:1])
        assert fastloss.get_num_threads() == 1
        before = threads()
        call()
        assert threads() == before
        os.sched_setaffinity(0, processors)
        assert fastloss.get_num_threads() <= len(processors)
        fastloss.set_num_threads(len(processors) + 1)
        os.sched_setaffinity(0, processors[:1])
        assert fastloss.get_num_threads() == len(processors) + 1  # what was asked for
        assert call() == call()
        """,
    )


@needs_linux
@needs_openmp
def test_small_calls_start_no_threads(tmp_path):
    run(
        tmp_path,
        """
        fastloss.set_num_threads(4)
        before = threads()
        fastloss.cross_entropy(X[:10], T[:10])
        assert threads() == before
        """,
    )


# ---- f) the quota of a control group ---------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        # Version 2: one hierarchy.
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3.0),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, math.inf),
        # In a container the path is often that of the host, and the mount shows the group itself.
        ("0::/not/visible\n", {"cpu.max": "250000 100000"}, 2.5),
        # Version 1: a hierarchy for each controller.
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "70000", "cpu,cpuacct/a/cpu.cfs_period_us": "20000"},
            3.5,
        ),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        (
            "4:cpu:/a\n0::/\n",
            {
                "cpu/a/cpu.cfs_quota_us": "-1",
                "cpu/a/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "100000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            1.0,
        ),
        # Nonsense is no limit.
        ("0::/\n", {"cpu.max": ""}, math.inf),
        ("0::/\n", {"cpu.max": "many 100000"}, math.inf),
        ("0::/\n", {"cpu.max": "100000 0"}, math.inf),
        ("garbage\n", {}, math.inf),
    ],
)
def test_cgroup_quota(tmp_path, groups, files, quota):
    proc = tree(tmp_path, {"proc": groups}) / "proc"
    assert _threads.cgroup_quota(tree(tmp_path / "cgroup", files), proc) == quota


def test_no_control_groups(tmp_path):
    assert _threads.cgroup_quota(tmp_path / "absent", tmp_path / "absent too") == math.inf


@pytest.mark.parametrize(("quota", "number"), [(0.5, 1), (1.0, 1), (2.9, 2), (math.inf, 16)])
def test_quota_limits_threads(monkeypatch, quota, number):
    monkeypatch.setattr(_threads, "_quota", quota)
    monkeypatch.setattr(_threads, "_chosen", None)
    monkeypatch.setattr(_threads, "_from_environment", 0)
    monkeypatch.setattr(_threads, "_openmp_default", 16)
    monkeypatch.setattr(_threads.runtime, "openmp_threads", lambda: 16)
    monkeypatch.setattr(_threads.runtime, "processors", lambda: 16)
    assert _threads.get_num_threads() == number
    monkeypatch.setattr(_threads, "_chosen", 7)  # what was asked for counts more
    assert _threads.get_num_threads() == 7
