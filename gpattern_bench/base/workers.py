"""Other processes that do part of the work: on this machine, or those of a Dask cluster."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from joblib import Parallel, delayed, parallel_config

from gpattern_bench.errors import GPatternBenchError, MissingExtraError, WorkersError

__all__ = ["Backend", "in_order", "workers"]

Backend = Callable[[], AbstractContextManager[Any]]
"""Gives what joblib is to send calls to, for a `with` around them and nothing else.

Around a fit it would send scikit-learn's trees to other processes too.
"""

_package = logging.getLogger("gpattern_bench")


@contextmanager
def workers(jobs: int | None, cluster: str | None) -> Iterator[Backend]:
    """Have workers while the `with` lasts.

    Parameters
    ----------
    jobs : int, optional
        Processes on this machine, -1 = as many as there are cores; default: this process itself.
    cluster : str, optional
        Address of a Dask scheduler, whose workers are taken instead (extra ``[dask]``).

    Raises
    ------
    WorkersError
        Both are given, or no scheduler answers.
    MissingExtraError
        A cluster is given, and Dask is not installed.
    """
    if cluster is None:
        yield partial(parallel_config, "loky", n_jobs=jobs or 1)
        return
    if jobs is not None:
        raise WorkersError("a cluster has as many jobs as its workers have threads: give no --jobs")
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
        yield partial(parallel_config, _dask_backend(client))


def _dask_backend(client: Any) -> Any:
    """joblib's, which would wait for ever for a task that Dask gives up (joblib 1.6)."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            future.add_done_callback(lambda done: done.exception() and callback(done.exception()))
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise out
            return super().retrieve_result_callback(out)

    return Backend(client=client)


def in_order(
    backend: Backend, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """Yield ``function(*task)`` of every task, in their order, as if it were called here.

    What workers log is logged here. Of several calls that raise one of this package's errors, the
    first in the order of the tasks is raised, after the results before it. Tasks are taken a few
    at a time; results are not waited for, so they should be small.

    Raises
    ------
    WorkersError
        A worker died.
    """
    broken: list[Exception] = []

    def calls() -> Iterator[Any]:
        # joblib may take tasks in a thread of its own, where an error would be lost.
        try:
            for task in tasks:
                yield delayed(_report)(function, task)
        except Exception as error:  # noqa: BLE001 - is raised below
            broken.append(error)

    with backend():
        # max_nbytes: arrays are sent as they are, not as files that can only be read.
        parallel = Parallel(return_as="generator", max_nbytes=None)
    with _closing(parallel(calls())) as reports, _alive():
        for report in reports:
            for record in report.records:
                logging.getLogger(record.name).handle(record)
            if report.error is not None:
                raise report.error
            yield report.result
    if broken:
        raise broken[0]


@contextmanager
def _closing(reports: Any) -> Iterator[Any]:
    """Stop the workers at the end; joblib warns of what they had in hand after an error."""
    try:
        yield reports
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            reports.close()


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Dask's is known by its name only: it may not be installed.
        if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":
            raise WorkersError(
                f"a worker died ({error}); if it ran out of memory, have fewer at a time"
            ) from error
        raise


@dataclass(frozen=True)
class _Report:
    """What a call gave, or the error of ours that it raised, and what it logged."""

    result: Any
    error: GPatternBenchError | None
    records: list[logging.LogRecord]


def _report(function: Callable[..., Any], task: tuple[Any, ...]) -> _Report:
    with _noted() as records:
        try:
            return _Report(function(*task), None, records)
        except GPatternBenchError as error:
            return _Report(None, error, records)


@contextmanager
def _noted() -> Iterator[list[logging.LogRecord]]:
    """Note what this thread logs instead of showing it: a worker's output is seen by nobody."""
    note = _Note()
    propagate, _package.propagate = _package.propagate, False
    _package.addHandler(note)
    try:
        yield note.records
    finally:
        _package.removeHandler(note)
        _package.propagate = propagate


class _Note(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            plain = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            self.records.append(logging.makeLogRecord(plain | {"msg": record.getMessage()}))
