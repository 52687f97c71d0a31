"""Threads: how many processors this process may use, how its threads wait, work in several."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil
from multiprocessing import parent_process
from pathlib import Path
from typing import TypeVar

__all__ = [
    "calm_threads",
    "in_threads",
    "one_thread",
    "own_threads",
    "processors",
    "threads_of_workers",
]

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def processors() -> int:
    """Count the processors of this process: its affinity and its control group's quota.

    A container with a quota of two processors sees all those of its host; threads beyond the
    quota would stop each other.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        allowed = os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, ceil(quota)))


def own_threads() -> int:
    """Count the threads to compute with: one in worker processes, which share the processors."""
    return 1 if parent_process() is not None else processors()


def in_threads(
    make: Callable[[_Item], _Made], items: Iterable[_Item], workers: int
) -> Iterator[_Made]:
    """Apply `make` to items in threads, a few items ahead; yield results in order."""
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def calm_threads() -> None:
    """Let OpenMP threads sleep while they wait, and limit them to the processors.

    Threads that spin take the processor from the work that they wait for: on a busy machine,
    training takes many times as long. Call it before scikit-learn, PyTorch or numba is imported;
    what the user has set in the environment stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # OpenMP knows the affinity, not the quota.
    if (allowed := processors()) < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute with one thread, for the time of the `with`."""
    import torch  # slow to import

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_of_workers(count: int) -> dict[str, str]:
    """Give the limits of threads of `count` processes that divide the processors.

    A lower limit in the environment stays. A higher one is of a process that is alone, and often
    :func:`calm_threads` set it.
    """
    share = max(processors() // count, 1)
    found = {name: os.environ.get(name, "") for name in _LIMITS}
    return {
        name: limit if limit.isdigit() and int(limit) < share else str(share)
        for name, limit in found.items()
    }


def _quota() -> float | None:
    """Read the control group's quota, in processors; None without a limit."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # of version 2 and 1
        try:
            found = (_CGROUP / name).read_text().split()
            if len(found) == 1:
                found.append((_CGROUP / "cpu/cpu.cfs_period_us").read_text())
            quota, period = map(float, found)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return quota / period if quota > 0 else None  # -1: no limit
    return None
