"""How many threads a call uses, and what a fork does to them.

A call asks `for_work` with its number of elements.  Small work gets one thread without asking
anybody.  Otherwise the count comes from, first match wins:

1. `set_num_threads`,
2. ``OMP_NUM_THREADS``, read by the OpenMP runtime when it starts,
3. the smaller of the process's affinity and its control group's processor quota.

A limit that someone sets in the OpenMP runtime itself, as threadpoolctl does, caps all three for
the Python thread that set it.

The threads of the GNU OpenMP runtime do not survive a fork: a child that starts a parallel region
waits for ever for threads it does not have.  So the forking thread's OpenMP threads are ended just
before a fork (they are started anew when next needed), and a child uses one thread until it calls
`set_num_threads` itself.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from fastloss._kernels import runtime

__all__ = ["for_work", "get_num_threads", "set_num_threads"]

#: Elements below which starting threads costs more than it gains.
SMALL = 1 << 16

#: What OpenMP gave this process before anybody changed it.
_openmp_at_import: int = runtime.openmp_threads()
_from_environment = bool(os.environ.get("OMP_NUM_THREADS", "").strip())

_chosen: int | None = None
#: What `set_num_threads` put into OpenMP, which counts each Python thread by itself.
_put = threading.local()


def cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self/cgroup")
) -> float:
    """Processors that the control group grants, infinity where there is no limit.

    Parameters
    ----------
    root : Path
        Where the control group file system is mounted.
    proc : Path
        File that names the process's groups.

    Returns
    -------
    float
        Smallest quota over the process's group and all above it, version 2 (``cpu.max``) or
        1 (``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``).
    """
    folders: list[Path] = []
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        base = root if not controllers else root / controllers
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        folders += [group, *(p for p in group.parents if p == base or base in p.parents)]
        if controllers:
            folders += [root / "cpu" / path.lstrip("/"), root / "cpu"]
    folders += [root, root / "cpu"]
    quota = float("inf")
    for folder in dict.fromkeys(folders):
        try:
            granted, period = (folder / "cpu.max").read_text().split()[:2]
        except (OSError, ValueError):
            try:
                granted = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            except OSError:
                continue
        try:
            if granted != "max" and float(granted) > 0 and float(period) > 0:
                quota = min(quota, float(granted) / float(period))
        except ValueError:
            continue
    return quota


_quota = cgroup_quota()


def set_num_threads(n: int) -> None:
    """Set how many threads fastloss uses, in all Python threads of this process.

    Parameters
    ----------
    n : int
        At least 1.  More than there are processors is allowed and seldom helps.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is below 1 or above 65,536.

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
        n = n.__index__()
    except AttributeError:
        raise TypeError(f"number of threads must be an integer, got {n!r}") from None
    if not 1 <= n <= 65536:
        raise ValueError(f"number of threads must be between 1 and 65536, got {n}")
    runtime.set_openmp_threads(n)
    _chosen = _put.threads = n


def get_num_threads() -> int:
    """Return how many threads a large call made now, from this Python thread, would use.

    Returns
    -------
    int
        See `set_num_threads`; without it ``OMP_NUM_THREADS``, else the smaller of the
        process's affinity and its control group's quota.  A limit set by threadpoolctl counts.

    Examples
    --------
    >>> import fastloss
    >>> fastloss.get_num_threads() >= 1
    True
    """
    openmp = runtime.openmp_threads()
    if _chosen is not None:
        # Where OpenMP holds what we put there, or what it started with, nobody limited it.
        limited = openmp != getattr(_put, "threads", _openmp_at_import)
        return min(_chosen, openmp) if limited else _chosen
    if openmp != _openmp_at_import or _from_environment:
        return openmp
    return max(1, min(openmp, runtime.processors(), int(min(_quota, 65536.0))))


def for_work(elements: int) -> int:
    """Return the number of threads for a call on this many elements."""
    return 1 if elements < SMALL else get_num_threads()


def _after_fork_in_child() -> None:
    global _chosen
    runtime.set_openmp_threads(1)
    _chosen = _put.threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=runtime.release_threads, after_in_child=_after_fork_in_child)
