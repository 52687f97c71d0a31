"""Worker processes: on this machine or on a Dask cluster."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from gpattern_bench.base.threads import processors, threads_of_workers
from gpattern_bench.errors import GPatternBenchError, MissingExtraError, WorkersError

__all__ = ["Workers", "in_order", "workers"]

_package = logging.getLogger("gpattern_bench")


@dataclass(frozen=True)
class Workers:
    """Other processes.

    Attributes
    ----------
    executor : callable
        Gives the executor, a new one after `stop`.
    stop : callable
        Drops the calls that an executor holds, whose futures it is given.
    held : int
        Calls that it may hold.
    """

    executor: Callable[[], Executor]
    stop: Callable[[Any, Iterable[Future[Any]]], None]
    held: int


@contextmanager
def workers(jobs: int | None, cluster: str | None) -> Iterator[Workers | None]:
    """Give workers, for the time of the `with`.

    Parameters
    ----------
    jobs : int, optional
        Processes on this machine, -1 = one per core; default: this process itself, None is given.
    cluster : str, optional
        Address of a Dask scheduler; its workers do the work instead (extra ``[dask]``).

    Raises
    ------
    WorkersError
        Both are given, no scheduler answers, or it has no workers.
    MissingExtraError
        A cluster is given, and Dask is not installed.
    """
    if cluster is not None:
        if jobs is not None:
            raise WorkersError("a cluster's workers say how many jobs there are: leave out --jobs")
        with _connect(cluster) as client:
            held = 2 * sum(client.nthreads().values())
            # Not pure: two equal calls are both made.
            executor = partial(client.get_executor, pure=False)
            yield Workers(executor, _cancel, held)
        return
    count = processors() if jobs == -1 else jobs or 1
    if count == 1:
        yield None
        return
    from joblib.externals.loky import get_reusable_executor

    # loky starts a worker again whose memory grew by 300 MB, which a large field of view does.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    # Not the standard library's: it imports `__main__` again, so scripts would need a guard.
    threads = threads_of_workers(count)
    executor = partial(get_reusable_executor, count, timeout=300, env=threads)
    # After a success they stay for the next call, and end when idle or with this process.
    yield Workers(executor, _kill, 2 * count)


def _kill(executor: Any, waiting: Iterable[Future[Any]]) -> None:
    # loky's thread fails on calls that it has not sent yet (joblib 1.6).
    while not all(future.running() or future.done() for future in waiting):
        time.sleep(0.01)
    executor.shutdown(kill_workers=True)


def _cancel(executor: Any, waiting: Iterable[Future[Any]]) -> None:  # noqa: ARG001
    executor.shutdown(wait=False)


@contextmanager
def _connect(cluster: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtraError(
            f"a cluster needs Dask ({error}): pip install 'gpattern-bench[dask]'"
        ) from error
    try:
        client = Client(cluster)
    except (OSError, ValueError) as error:
        raise WorkersError(
            f"no Dask scheduler answers at {cluster} ({error}); expected an address such as "
            "tcp://host:8786, which `dask scheduler` prints"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=10)
        except TimeoutError as error:
            raise WorkersError(
                f"the Dask scheduler at {cluster} has no workers: start some with "
                f"`dask worker {cluster}`"
            ) from error
        yield client


def in_order(
    pool: Workers | None, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield ``function(*task)`` of every task, in their order, as if called here.

    What workers log is logged here. If several calls raise one of this package's errors, the first
    in the order of the tasks is raised, after the results before it. Workers hold a few tasks at a
    time; results wait in memory, so they should be small.

    Raises
    ------
    WorkersError
        A worker died.
    """
    if pool is None:
        for task in tasks:
            yield function(*task)
        return
    executor = pool.executor()
    futures = _submitted(executor, function, tasks)
    waiting = deque(islice(futures, pool.held))
    finished = False
    try:
        while waiting:
            report = _received(waiting.popleft())
            waiting.extend(islice(futures, 1))
            for record in report.records:
                logging.getLogger(record.name).handle(record)
            if report.error is not None:
                raise report.error
            yield report.result
        finished = True
    finally:
        if not finished:
            pool.stop(executor, waiting)


def _submitted(
    executor: Executor, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[Future[_Report]]:
    """Submit tasks; an error in making one comes in its turn."""
    try:
        for task in tasks:
            yield executor.submit(partial(_report, function, task))
    except Exception as error:  # noqa: BLE001 - raised when its turn comes
        failed: Future[_Report] = Future()
        failed.set_exception(error)
        yield failed


def _received(future: Future[_Report]) -> _Report:
    try:
        return future.result()
    except Exception as error:
        # Dask may not be installed, so its error is known by name.
        died = isinstance(error, BrokenExecutor | CancelledError)
        if died or type(error).__name__ == "KilledWorker":
            raise WorkersError(
                f"a worker died ({error}); if it ran out of memory, have fewer at a time"
            ) from error
        raise


@dataclass(frozen=True)
class _Report:
    """Result of a call, or the error of this package that it raised, and its log."""

    result: Any
    error: GPatternBenchError | None
    records: list[logging.LogRecord]


def _report(function: Callable[..., Any], task: tuple[Any, ...]) -> _Report:
    with _recorded() as records:
        try:
            return _Report(function(*task), None, records)
        except GPatternBenchError as error:
            return _Report(None, error, records)


@contextmanager
def _recorded() -> Iterator[list[logging.LogRecord]]:
    """Record this thread's log instead of showing it: nobody sees a worker's output."""
    recorder = _Recorder()
    propagate, _package.propagate = _package.propagate, False
    _package.addHandler(recorder)
    try:
        yield recorder.records
    finally:
        _package.removeHandler(recorder)
        _package.propagate = propagate


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            plain = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            self.records.append(logging.makeLogRecord(plain | {"msg": record.getMessage()}))
