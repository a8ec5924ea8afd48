"""How many threads a call takes, and that no other library in the process notices.

Layout: a) neighbours on the same OpenMP runtime, b) limits that others set, c) limits that we set,
d) the environment, e) the largest number, f) systems that have no threads to give.
"""

from __future__ import annotations

import os
import threading

import pytest

from fastloss import _threads, get_num_threads, set_num_threads
from fastloss._kernels import runtime
from test_workers import needs, needs_fork, needs_linux, needs_openmp, run


@pytest.fixture
def machine(monkeypatch):
    """A machine with 16 processors on which nobody has said anything; what is set goes away."""
    monkeypatch.setattr(_threads, "_chosen", None)
    monkeypatch.setattr(_threads, "_from_environment", 0)
    monkeypatch.setattr(_threads, "_quota", 16.0)
    monkeypatch.setattr(_threads, "_openmp_default", 16)
    monkeypatch.setattr(_threads.runtime, "processors", lambda: 16)
    monkeypatch.setattr(_threads.runtime, "openmp_threads", lambda: 16)
    return monkeypatch


# ---- a) neighbours ---------------------------------------------------------------------------

#: Before `import fastloss`: the runtime that the kernels are linked with, as another library sees
#: it. A library's handle finds the functions of the libraries that it needs.
NEIGHBOUR = f"""\
import ctypes, threading
openmp = ctypes.CDLL({runtime.__file__!r})

def neighbour():
    # The number that another library is told, and how many threads its parallel region gets.
    team = set()
    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: team.add(threading.get_native_id()))
    openmp.GOMP_parallel(region, None, 0, 0)
    return openmp.omp_get_max_threads(), len(team)

def elsewhere(work):
    # What `work` returns in a new Python thread.
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]
"""

#: The number that the neighbour sets for itself, none or one, and what it then has.
numbers = pytest.mark.parametrize(("own", "has"), [(None, 3), (5, 5)])


def beside_neighbour(tmp_path, own, script):
    """Run a script beside a neighbour that has set its own number of threads, on 3 processors."""
    setting = "" if own is None else f"openmp.omp_set_num_threads({own})\n"
    return run(tmp_path, script, NEIGHBOUR + setting, OMP_NUM_THREADS="3")


@needs_linux
@needs_openmp
@numbers
def test_set_num_threads_leaves_neighbours_alone(tmp_path, own, has):
    beside_neighbour(
        tmp_path,
        own,
        f"""
        assert neighbour() == ({has}, {has})
        for number in 1, 2, 4:
            fastloss.set_num_threads(number)
            assert fastloss.get_num_threads() == number
            call()
            assert neighbour() == ({has}, {has}), number
            assert elsewhere(neighbour) == (3, 3), number
        """,
    )


@needs_fork
@needs_linux
@needs_openmp
@numbers
def test_fork_leaves_neighbours_alone(tmp_path, own, has):
    """Neither the child's number nor the parent's changes, though the idle threads end."""
    beside_neighbour(
        tmp_path,
        own,
        f"""
        def child():
            before = neighbour()
            number = fastloss.get_num_threads()
            call()
            fastloss.set_num_threads(2)
            call()
            return before, number, neighbour(), fastloss.get_num_threads()

        for _ in range(2):
            call()
            neighbour()
            assert fork(child) == (({has}, {has}), 1, ({has}, {has}), 2)
            assert neighbour() == ({has}, {has})
        assert fastloss.get_num_threads() == 3
        """,
    )


@needs("dask")
@needs_linux
@needs_openmp
@numbers
def test_dask_leaves_neighbours_alone(tmp_path, own, has):
    """A chunk takes one thread; beside it, in the same Python thread, a neighbour takes its own."""
    out = beside_neighbour(
        tmp_path,
        own,
        f"""
        import dask.array as da
        import fastloss.dask
        from fastloss import _threads

        _threads._from_environment = 0  # the environment is the neighbour's alone
        for_work = _threads.for_work

        def spy(elements):
            print(for_work(1 << 20), *neighbour())
            return for_work(elements)

        lazy = fastloss.dask.cross_entropy(da.from_array(X, chunks=(4096, 64)), T)
        _threads.for_work = spy
        lazy.compute(scheduler="synchronous")
        _threads.for_work = for_work
        assert neighbour() == ({has}, {has})
        """,
    )
    assert out.splitlines() == [f"1 {has} {has}"] * 2


# ---- b) limits that others set ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "environment", "openmp", "number"),
    [
        (None, 0, 16, 16),  # nobody said anything
        (None, 0, 4, 4),
        (None, 0, 32, 16),  # a limit above what there is, is none
        (None, 3, 16, 3),
        (None, 3, 2, 2),
        (None, 3, 8, 3),
        (5, 3, 16, 5),
        (5, 3, 4, 4),
        (5, 3, 8, 5),
        (24, 0, 16, 24),  # OpenMP's default is no limit: it is what ends one
        (24, 0, 15, 15),
        (24, 0, 20, 20),
    ],
)
def test_number_in_openmp_is_a_limit(machine, chosen, environment, openmp, number):
    machine.setattr(_threads, "_chosen", chosen)
    machine.setattr(_threads, "_from_environment", environment)
    machine.setattr(_threads.runtime, "openmp_threads", lambda: openmp)
    assert get_num_threads() == number


@needs_linux
@needs_openmp
@needs("threadpoolctl")
def test_threadpoolctl_limits_its_own_python_thread(tmp_path):
    run(
        tmp_path,
        """
        import threadpoolctl

        fastloss.set_num_threads(4)
        with threadpoolctl.threadpool_limits(2, user_api="openmp"):
            assert neighbour()[0] == 2
            assert fastloss.get_num_threads() == 2
            assert elsewhere(fastloss.get_num_threads) == 4
            fastloss.set_num_threads(5)  # says nothing about the limit
            assert fastloss.get_num_threads() == 2
            fastloss.set_num_threads(1)
            assert fastloss.get_num_threads() == 1
        assert fastloss.get_num_threads() == 1
        fastloss.set_num_threads(4)
        assert fastloss.get_num_threads() == 4
        """,
        NEIGHBOUR,
        OMP_NUM_THREADS="3",
    )


@needs_linux
@needs_openmp
def test_limit_before_import(tmp_path):
    """The number that the importing thread has is a limit of that thread, not the default."""
    run(
        tmp_path,
        """
        before = threads()
        assert fastloss.get_num_threads() == 1
        call()
        assert threads() == before
        assert elsewhere(fastloss.get_num_threads) == 3
        openmp.omp_set_num_threads(3)
        assert fastloss.get_num_threads() == 3
        """,
        NEIGHBOUR + "openmp.omp_set_num_threads(1)",
        OMP_NUM_THREADS="3",
    )


def test_default_where_no_thread_can_start(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(_threads.runtime, "openmp_threads", lambda: 7)
    assert _threads.openmp_default() == 7


# ---- c) limits that we set -------------------------------------------------------------------


def test_at_most(machine):
    set_num_threads(8)
    with _threads.at_most(4):
        assert get_num_threads() == 4
        with _threads.at_most(6):
            assert get_num_threads() == 4
        with _threads.at_most(2):
            assert _threads.for_work(1 << 30) == 2
            assert _threads.for_work(100) == 1
        assert get_num_threads() == 4
        set_num_threads(3)
        assert get_num_threads() == 3
        set_num_threads(8)
    assert get_num_threads() == 8


def test_at_most_ends_with_an_error(machine):
    with pytest.raises(KeyError), _threads.at_most(2):
        raise KeyError
    assert get_num_threads() == 16


def test_at_most_holds_for_its_python_thread(machine):
    answers = []
    with _threads.at_most(2):
        thread = threading.Thread(target=lambda: answers.append(get_num_threads()))
        thread.start()
        thread.join()
    assert answers == [16]


# ---- d) the environment ----------------------------------------------------------------------


@needs_openmp
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        (" 3 ", 3),
        ("3,2", 3),
        ("100000", _threads.MOST_THREADS),
        ("9" * 30, _threads.MOST_THREADS),
        ("", 0),
        ("0", 0),
        ("-1", 0),
        ("many", 0),
        (",2", 0),
    ],
)
def test_number_in_environment(monkeypatch, text, number):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert _threads.number_in_environment() == number


def test_no_number_in_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _threads.number_in_environment() == 0


# ---- e) the largest number -------------------------------------------------------------------


@pytest.mark.parametrize("many", [_threads.MOST_THREADS + 1, 65536, 10**30])
def test_more_than_the_largest_is_an_error(machine, many):
    set_num_threads(2)
    message = rf"^number of threads must be between 1 and {_threads.MOST_THREADS}, got {many}$"
    with pytest.raises(ValueError, match=message):
        set_num_threads(many)
    assert get_num_threads() == 2


@pytest.mark.parametrize("bad", [2.0, "2", None, int])
def test_no_integer_is_an_error(machine, bad):
    with pytest.raises(TypeError, match=r"^number of threads must be an integer, got "):
        set_num_threads(bad)
    assert get_num_threads() == 16


def test_largest_is_a_small_multiple_of_the_processors(machine):
    most = max(64, 8 * (os.cpu_count() or 1))
    assert most == _threads.MOST_THREADS
    set_num_threads(most)
    assert get_num_threads() == most


@needs_openmp
def test_calls_work_with_the_largest_number(tmp_path):
    run(
        tmp_path,
        """
        from fastloss import _threads

        assert fastloss.get_num_threads() == _threads.MOST_THREADS
        want = call()
        fastloss.set_num_threads(_threads.MOST_THREADS)
        assert call() == want
        fastloss.set_num_threads(1)
        assert call() == want
        """,
        OMP_NUM_THREADS="100000",
    )


# ---- f) no threads to give -------------------------------------------------------------------

#: Without the right to do so all the same, which root has.
ORDINARY = """
if os.getuid() == 0:
    import datetime, numpy.random  # what is imported later cannot be read any more
    os.setgid(65534)
    os.setuid(65534)
"""


@needs_linux
@needs_openmp
def test_a_limit_on_processes(tmp_path):
    """GNU's OpenMP runtime would end the process where it cannot start a thread."""
    run(
        tmp_path,
        f"""
        import resource

        want = call()
        before = threads()
        elsewhere = threading.Thread(target=lambda: answers.append(call()))
        answers = []
        {ORDINARY.strip().replace(chr(10), chr(10) + " " * 8)}
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        try:
            elsewhere.start()
        except RuntimeError:
            pass
        else:
            raise AssertionError("the limit does not hold")
        fastloss.set_num_threads(3)
        for _ in range(3):
            assert call() == want
        assert threads() == before
        """,
        OMP_NUM_THREADS="1",
    )


@needs_linux
@needs_openmp
def test_no_memory_for_stacks(tmp_path):
    """As many threads as there is room for, and the same answer."""
    run(
        tmp_path,
        """
        import resource

        want = call()
        before = threads()
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
        stack = 8 << 20 if stack == resource.RLIM_INFINITY else stack
        room = int(3.75 * stack)
        resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
        fastloss.set_num_threads(12)
        for _ in range(3):
            assert call() == want
        assert threads() < before + 4
        """,
        OMP_NUM_THREADS="1",
    )


def test_asked_once_for_each_python_thread(machine):
    asked = []
    machine.setattr(_threads.runtime, "startable", lambda n: asked.append(n) or min(n, 5))
    machine.setattr(_threads, "_here", _threads._Here())
    for number, given in [(4, 4), (3, 3), (4, 4), (8, 5), (8, 5), (2, 2), (16, 5)]:
        set_num_threads(number)
        assert _threads.for_work(1 << 20) == given
    assert asked == [4, 8, 16]
    thread = threading.Thread(target=lambda: _threads.for_work(1 << 20))
    thread.start()
    thread.join()
    assert asked == [4, 8, 16, 16]
