"""The number of threads of a call, and what happens to threads in a fork.

A call passes its number of elements to `for_work` and hands the answer to its kernel, which uses it
for its parallel region.  Small calls use one thread.  For all others the number comes from the
first of these that is set:

1. `set_num_threads`,
2. ``OMP_NUM_THREADS``, as it was at import,
3. the smaller of the process's affinity and the processor quota of its control group.

Two limits apply to a single Python thread: `at_most`, for code that keeps the processors busy with
its own Python threads, and the number that another library such as threadpoolctl set in the OpenMP
runtime.  OpenMP keeps that number for each Python thread.  A Python thread for which nobody has set
it has the runtime's default, and threadpoolctl ends a limit by setting the default again.  So the
default does not count as a limit, and any other number does.

The system may refuse to start more threads because of a limit on processes, a container, or too
little memory for stacks.  GNU's OpenMP runtime then ends the process.  Therefore, whenever a Python
thread needs more threads than before, it first starts that number of idle threads as a test, and
uses only as many as could be started.

Nothing here sets a number in the OpenMP runtime, because other libraries share it.

The threads of the GNU OpenMP runtime do not survive a fork: a child that starts a parallel region
waits for them forever.  So the OpenMP threads of the forking thread are ended just before a fork
and started again when they are next needed, and a child uses one thread until it calls
`set_num_threads` itself.

Layout: a) machine and environment, b) the public functions, c) the number for a call, d) forks.
"""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastloss._kernels import runtime

__all__ = ["at_most", "chosen", "for_work", "get_num_threads", "set_num_threads"]

#: Number of elements below which starting threads costs more time than it saves.
SMALL = 1 << 16

#: Largest number of threads of a call.  More than a few per processor never help, and each needs
#: memory.
MOST_THREADS = max(64, 8 * (os.cpu_count() or 1))

# ---- a) machine and environment --------------------------------------------------------------


def _text(path: str) -> str:
    """Return the text of a file, or nothing if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def cgroup_quota(
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
    proc: str | os.PathLike[str] = "/proc/self/cgroup",
) -> float:
    """Return the number of processors that the control group grants; infinity without a limit.

    Parameters
    ----------
    root : path
        Where the control group file system is mounted.
    proc : path
        File that names the process's groups.

    Returns
    -------
    float
        Smallest quota over the process's group and all above it, version 2 (``cpu.max``) or
        1 (``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``).
    """
    # Not pathlib: its import takes as long as that of fastloss itself.
    root = os.fspath(root)
    folders: list[str] = []
    for line in _text(os.fspath(proc)).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        base = root if not controllers else os.path.join(root, controllers)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = os.path.join(base, path.strip("/")).rstrip("/")
        while group.startswith(base):
            folders.append(group)
            group = os.path.dirname(group)
        if controllers:
            folders += [os.path.join(root, "cpu", path.strip("/")), os.path.join(root, "cpu")]
    folders += [root, os.path.join(root, "cpu")]
    quota = math.inf
    for folder in dict.fromkeys(folders):
        found = _text(os.path.join(folder, "cpu.max")).split()[:2]
        if len(found) < 2:
            found = [
                _text(os.path.join(folder, f"cpu.cfs_{name}_us")).strip()
                for name in ("quota", "period")
            ]
        granted, period = found
        try:
            if granted != "max" and float(granted) > 0 and float(period) > 0:
                quota = min(quota, float(granted) / float(period))
        except ValueError:
            continue
    return quota


_quota = cgroup_quota()


def openmp_default() -> int:
    """Return the number that OpenMP gives a Python thread for which nobody has set one.

    A new thread is asked, because the importing thread may have a limit already.
    """
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(runtime.openmp_threads()))
    try:
        thread.start()
    except RuntimeError:  # no new threads can start, for example while the interpreter shuts down
        return runtime.openmp_threads()
    thread.join()
    return answers[0]


_openmp_default = openmp_default()


def number_in_environment() -> int:
    """Return the first number of ``OMP_NUM_THREADS``, 0 if there is none.

    The other numbers are for nested parallel regions, which fastloss does not have.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not (first.isdecimal() and runtime.openmp_version()):
        return 0
    return min(int(first), MOST_THREADS)


_from_environment = number_in_environment()

#: The number that was passed to `set_num_threads`.
_chosen: int | None = None

# ---- b) the public functions -----------------------------------------------------------------


def set_num_threads(n: int) -> None:
    """Set the number of threads that fastloss uses, for all Python threads of this process.

    Other libraries are not affected.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    n : int
        Number from 1 to 64, or to eight times the number of processors if that is more.  More
        threads than processors are allowed but rarely help.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is below 1 or too large.

    See Also
    --------
    get_num_threads : the number that a call would use.

    Examples
    --------
    >>> import fastloss
    >>> before = fastloss.get_num_threads()
    >>> fastloss.set_num_threads(1)
    >>> fastloss.get_num_threads()
    1
    >>> fastloss.set_num_threads(before)
    """
    global _chosen
    try:
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"number of threads must be an integer, got {n!r}") from None
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"number of threads must be between 1 and {MOST_THREADS}, got {number}")
    _chosen = number


def get_num_threads() -> int:
    """Return the number of threads that a large call from this Python thread would use.

    .. versionadded:: 0.1.0

    Returns
    -------
    int
        The number set by `set_num_threads`, or else by ``OMP_NUM_THREADS``, or else the smaller of
        the process's affinity and the quota of its control group.  A limit that threadpoolctl has
        set is respected.

    See Also
    --------
    set_num_threads : sets the number.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.get_num_threads() >= 1
    True
    """
    number = _chosen or _from_environment
    if not number:
        number = max(1, int(min(runtime.processors(), _quota, MOST_THREADS)))
    openmp = runtime.openmp_threads()
    if openmp != _openmp_default:
        number = min(number, openmp)
    return min(number, _here.limit)


# ---- c) the number for a call ----------------------------------------------------------------


class _Here(threading.local):
    """State of the current Python thread."""

    limit = MOST_THREADS
    #: Number of threads that were requested from the system, and number that could be started.
    asked = 1
    given = 1


_here = _Here()


def for_work(elements: int) -> int:
    """Return the number of threads for a call on this many elements."""
    if elements < SMALL:
        return 1
    number = get_num_threads()
    if number > _here.asked:
        _here.given = runtime.startable(number)
        _here.asked = number
    return number if number <= _here.given else _here.given


def chosen() -> bool:
    """Return whether `set_num_threads` or ``OMP_NUM_THREADS`` sets the number of threads."""
    return bool(_chosen or _from_environment)


@contextmanager
def at_most(number: int) -> Iterator[None]:
    """Limit the calls of this Python thread to `number` threads.

    Parameters
    ----------
    number : int
        At least 1.
    """
    before = _here.limit
    _here.limit = min(number, before)
    try:
        yield
    finally:
        _here.limit = before


# ---- d) forks --------------------------------------------------------------------------------


def _after_fork_in_child() -> None:
    global _chosen
    _chosen = 1
    # The threads do not exist in the child, which may have other limits.
    _here.asked = _here.given = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=runtime.release_threads, after_in_child=_after_fork_in_child)
