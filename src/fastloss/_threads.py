"""How many threads a call uses, and what a fork does to them.

A call asks `for_work` with its number of elements, and hands the answer to its kernel, which names
it with its parallel region.  Small work gets one thread without asking anybody.  Otherwise the
count comes from, first match wins:

1. `set_num_threads`,
2. ``OMP_NUM_THREADS``, as it was at import,
3. the smaller of the process's affinity and its control group's processor quota.

Two limits cap it for one Python thread: `at_most`, for code that keeps the processors busy with
Python threads of its own, and the number that someone set in the OpenMP runtime, as threadpoolctl
does.  OpenMP keeps that number for each Python thread.  A thread for which nobody has set it has
the runtime's default, and threadpoolctl ends a limit by setting the default again; so any other
number is a limit, and the default is none.

A system may have no more threads to give: a limit on processes, a container's, or memory for their
stacks.  GNU's OpenMP runtime then ends the process.  So each Python thread first starts as many
that do nothing, whenever it wants more than before, and makes do with what it gets.

Nothing here sets a number in the OpenMP runtime: other libraries share it, and theirs would change.

The threads of the GNU OpenMP runtime do not survive a fork: a child that starts a parallel region
waits for ever for threads it does not have.  So the forking thread's OpenMP threads are ended just
before a fork (they are started anew when next needed), and a child uses one thread until it calls
`set_num_threads` itself.

Layout: a) what the machine and the environment say, b) the public functions, c) what calls ask,
d) forks.
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

#: Elements below which starting threads costs more than it gains.
SMALL = 1 << 16

#: Most threads of a call.  More than a few for each processor never help, and each takes memory.
MOST_THREADS = max(64, 8 * (os.cpu_count() or 1))

# ---- a) what the machine and the environment say ---------------------------------------------


def _text(path: str) -> str:
    """Return what a file holds, nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def cgroup_quota(
    root: str | os.PathLike[str] = "/sys/fs/cgroup",
    proc: str | os.PathLike[str] = "/proc/self/cgroup",
) -> float:
    """Processors that the control group grants, infinity where there is no limit.

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
    # Not pathlib, whose import takes as long as all of fastloss's own.
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
    """Return what OpenMP gives a Python thread for which nobody has set a number.

    A thread that has just started says it; the importing one may have a limit already.
    """
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(runtime.openmp_threads()))
    try:
        thread.start()
    except RuntimeError:  # no more threads here, as in an interpreter that shuts down
        return runtime.openmp_threads()
    thread.join()
    return answers[0]


_openmp_default = openmp_default()


def number_in_environment() -> int:
    """Return the first number of ``OMP_NUM_THREADS``, 0 where there is none.

    The others are for parallel regions within parallel regions, which fastloss has none of.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not (first.isdecimal() and runtime.openmp_version()):
        return 0
    return min(int(first), MOST_THREADS)


_from_environment = number_in_environment()

#: What `set_num_threads` was told.
_chosen: int | None = None

# ---- b) the public functions -----------------------------------------------------------------


def set_num_threads(n: int) -> None:
    """Set how many threads fastloss uses, in all Python threads of this process.

    Other libraries keep their numbers.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    n : int
        From 1 to 64, or to eight times the machine's processors where that is more.  More than
        there are processors is allowed and seldom helps.

    Raises
    ------
    TypeError
        If `n` is no integer.
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
    """Return how many threads a large call made now, from this Python thread, would use.

    .. versionadded:: 0.1.0

    Returns
    -------
    int
        See `set_num_threads`; without it ``OMP_NUM_THREADS``, else the smaller of the
        process's affinity and its control group's quota.  A limit set by threadpoolctl counts.

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


# ---- c) what calls ask -----------------------------------------------------------------------


class _Here(threading.local):
    """What holds for the current Python thread."""

    limit = MOST_THREADS
    #: As many as this Python thread has asked the system for, and as many as it was given.
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
    """Return whether `set_num_threads` or ``OMP_NUM_THREADS`` says how many threads a call uses."""
    return bool(_chosen or _from_environment)


@contextmanager
def at_most(number: int) -> Iterator[None]:
    """Let no call of this Python thread use more threads than `number`.

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
    # The threads are gone, and the child may have other limits.
    _here.asked = _here.given = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=runtime.release_threads, after_in_child=_after_fork_in_child)
