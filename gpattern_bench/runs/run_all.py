"""Run many methods on one dataset, in shards: in parallel, and resumable after a crash."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from gpattern_bench.base.files import file_sha256, write_text
from gpattern_bench.base.launcher import process_number
from gpattern_bench.base.progress import Progress, duration
from gpattern_bench.base.workers import Workers, in_order, workers
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError
from gpattern_bench.methods import get_method
from gpattern_bench.methods.base import Method, Network
from gpattern_bench.runs.cost import Cost
from gpattern_bench.runs.run import fit_method, run_origins, write_run
from gpattern_bench.runs.saved_model import Model, load_model, save_model
from gpattern_bench.runs.shards import (
    Shard,
    cut_shards,
    is_whole,
    on_gpu,
    predict_shard,
    read_costs,
    read_shards,
    run_key,
)
from gpattern_bench.runs.training import choose_protocol
from gpattern_bench.tables.predictions import Origin

__all__ = ["Outcome", "run_all"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a method.

    Attributes
    ----------
    method : str
    outcome : {"done", "skipped", "failed"}
        Skipped: an earlier start had finished it, and its files are as they were written.
    shards : int
        Shards of predictions that this start wrote.
    kept : int
        Shards that an earlier start had written.
    why : str
        Why it failed.
    """

    method: str
    outcome: Literal["done", "skipped", "failed"]
    shards: int = 0
    kept: int = 0
    why: str = ""


def run_all(
    methods: Sequence[str],
    dataset: Dataset,
    out: str | Path,
    *,
    seed: int = 0,
    splits: Sequence[str] | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
) -> list[Outcome]:
    """Run several methods, each as :func:`gpattern_bench.runs.run.run_method` does.

    What `run_method` writes is in ``out/<method>``, the same bytes but for what was measured: a
    split's cost is the sum over its shards. Started again after a crash, or with more methods,
    it goes on where it was: fitted models and predicted shards are kept in
    ``out/<method>/<dataset>/shards-...`` until the method is done, and belong to one method, seed,
    content of the dataset and code of the package. Started twice at a time, the second waits for
    the first, method by method.

    Parameters
    ----------
    methods : sequence of str
        Names of :data:`gpattern_bench.methods.METHODS`.
    dataset : Dataset
    out : str or pathlib.Path
        Workers must see it, and the dataset's tables, under these paths.
    seed : int
    splits : sequence of str, optional
        What to predict; default: val and test.
    jobs : int, optional
        Processes that predict; default: one per core.
    cluster : str, optional
        Address of a Dask scheduler whose workers predict instead (extra ``[dask]``).

    Returns
    -------
    list of Outcome
        One per method; a failure does not stop the others.

    Raises
    ------
    UnknownMethodError
        Unknown method; nothing was run.
    MethodError
        The arguments contradict each other.
    WorkersError
        Both jobs and a cluster are given, or no scheduler answers.
    MissingExtraError
        A cluster is given, and Dask is not installed.
    """
    names = list(dict.fromkeys(methods))
    for name in names:
        get_method(name)  # all are known before the first begins
    if not names or seed < 0 or (jobs is not None and jobs < 1):
        raise MethodError(
            f"expected at least one method, a seed >= 0 and at least one job, got "
            f"{len(names)} methods, seed {seed} and {jobs} jobs"
        )
    if process_number() > 1:
        raise MethodError(
            "run-all starts its own processes: under accelerate's launcher train one network with "
            "`gpattern-bench run`"
        )
    outcomes = []
    with workers(jobs if jobs or cluster else -1, cluster) as pool:
        for k, name in enumerate(names, 1):
            began = time.monotonic()
            _log.info("%s, %d of %d", name, k, len(names))
            job = _Job(name, dataset, Path(out).absolute(), seed, splits, pool)
            try:
                outcomes.append(job.run())
            except Exception as error:  # noqa: BLE001 - the others go on, and the table tells
                why = str(error)
                if not isinstance(error, GPatternBenchError):
                    why = f"{type(error).__name__}: {error}"
                    _log.warning("%s failed", name, exc_info=True)  # unforeseen: show the traceback
                outcomes.append(Outcome(name, "failed", job.written, job.kept, why))
            outcome = outcomes[-1].outcome
            _log.info("%s: %s after %s", name, outcome, duration(time.monotonic() - began))
    return outcomes


class _Job:
    """One method: fit, predict and write, resuming what an earlier start left."""

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        out: Path,
        seed: int,
        splits: Sequence[str] | None,
        pool: Workers | None,
    ) -> None:
        self.pool = pool
        self.splits = splits
        self.method: Method = get_method(name)
        self.dataset = dataset
        self.folder = out / name / dataset.name
        self.key = run_key(name, dataset, seed)
        self.seed = seed
        self.written = self.kept = 0
        digest = hashlib.sha256(json.dumps(self.key).encode()).hexdigest()[:12]
        self.shards = self.folder / f"shards-seed{seed}-{digest}"
        self.mark = self.folder / f"done-seed{seed}.json"

    def run(self) -> Outcome:
        name = self.method.about.name
        protocol = choose_protocol(self.method, self.dataset, (), cv=False)
        origins = run_origins(name, self.dataset, self.seed, protocol, splits=self.splits)
        with self._alone():
            return self._run(name, origins)

    def _run(self, name: str, origins: list[Origin]) -> Outcome:
        if self._is_done(origins):
            shutil.rmtree(self.shards, ignore_errors=True)  # killed just before it did so
            return Outcome(name, "skipped")
        costs = self._fit()
        peak, scores = 0.0, {}
        shards = [
            shard
            for origin in origins
            for shard in cut_shards(self.dataset, origin.split, per_cell=self.method.about.per_cell)
        ]
        self._predict(shards)
        for origin in origins:
            here = [shard for shard in shards if shard.split == origin.split]
            costs[origin.split], used = read_costs(here, self.shards)
            scores[origin.split] = read_shards(here, self.shards)
            peak = max(peak, used)
        _log.info("%s: writing prediction files of %s", name, ", ".join(scores))
        files = write_run(
            self.method, self.dataset, origins, scores, self.folder, costs=costs, peak_rss=peak
        )
        written = {file.name: file_sha256(file) for file in files}
        write_text(self.mark, json.dumps({"key": self.key, "files": written}, indent=1) + "\n")
        # Those of other keys too: nothing resumes them. A worker of a killed start may still write
        # there; its leftovers go next time.
        for folder in self.folder.glob(f"shards-seed{self.seed}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        return Outcome(name, "done", self.written, self.kept)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock this method, dataset and seed against other starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".seed{self.seed}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process works on %s: waiting for it", self.folder)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _is_done(self, origins: list[Origin]) -> bool:
        """Test whether an earlier start wrote these files, unchanged since."""
        try:
            mark = json.loads(self.mark.read_text(encoding="utf-8"))
            return bool(mark["key"] == self.key) and all(
                file_sha256(self.folder / file) == mark["files"][file]
                for file in (f"{origin.stem()}.parquet" for origin in origins)
            )
        except (OSError, ValueError, KeyError):
            return False

    def _fit(self) -> dict[str, Cost]:
        """Fit the method, or load it from an earlier start; return what it cost."""
        about, note = self.method.about, self.shards / "fit.json"
        if note.is_file():
            self.method, _ = load_model(self.shards / "model")
            if isinstance(self.method, Network):
                self.method.batch = 1  # as after a fit
            found = json.loads(note.read_text(encoding="utf-8"))
            _log.info("%s: found fitted", about.name)
            return {what: Cost(**cost) for what, cost in found.items()}
        costs = {}
        if about.learns:
            training = self.shards / "training.safetensors"
            costs["fit"] = fit_method(self.method, [self.dataset], self.seed, training)
        model = Model(about.name, list(self.dataset.patterns), None, None, self.seed)
        save_model(self.method, model, self.shards / "model")
        found = {what: asdict(cost) for what, cost in costs.items()}
        write_text(note, json.dumps(found) + "\n")
        return costs

    def _predict(self, shards: list[Shard]) -> None:
        """Predict the missing shards."""
        # Listed once: a network drive may remember for a while that a file was not there.
        there = {path.name for path in self.shards.iterdir()}
        missing = [
            shard
            for shard in shards
            if shard.file not in there or not is_whole(self.shards / shard.file)
        ]
        self.kept, name = len(shards) - len(missing), self.method.about.name
        if self.kept:
            _log.info("%s: found %d of %d shards done", name, self.kept, len(shards))
        tasks = [
            (self.shards / "model", shard.cells, self.shards / shard.file) for shard in missing
        ]
        pool = None if on_gpu(self.method) else self.pool
        results = in_order(pool, predict_shard, tasks)
        bar = Progress(name, len(shards), unit="shards", done=self.kept, every=0.0)
        for _ in bar.over(results):
            self.written += 1
