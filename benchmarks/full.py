"""The whole benchmark at the sizes of table 1: from files of the source formats to a board.

Simulated releases stand in for the published ones, under their names and versions, in a cache of
their own. Files of the source format are drawn and written (not timed) and curated, in one process
and in two, which must give the same bytes. Then, in parts:

- *call*: an answer, from the source files to its report, by the pretrained model of the patterns;
- *methods*: a `run-all` of each method on all splits; all of them again, which skips what is done;
- *jobs*: one method on test with `--jobs 1` and `--jobs 2`, and one that gets SIGKILL in the middle
  and is started again; all three must give the same bytes;
- *board*: submit, score with intervals, write the board.

Every step is a process of its own: seconds by the clock and of the processor, and the peak of
memory of it and its children (proportional set size, sampled twice a second; Linux). A step
that fails is noted, and the others still run. The last line is one JSON object.

Rerun: `python benchmarks/full.py` (under two hours, 12 GB of disk). In pieces: `--like u2os`,
`--methods gpsnet,bento` and `--parts call methods`, with `--keep FILE`, where the figures are
after each step, beside those of other sessions; each row names its own. `--quick`: 30 cells, three
methods, half a minute.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import yaml
from joblib.externals.loky import get_reusable_executor
from timing import about, parsed, report, show

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.base.files import file_sha256, write_text
from gpattern_bench.board.publish import board_of, write_board
from gpattern_bench.board.submission import read_submissions, rescore
from gpattern_bench.cli import main as gpattern_bench
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate_like
from gpattern_bench.curate.simulate.releases import write_bento_h5ad, write_cosmx
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods import get_method
from gpattern_bench.runs.shards import cut_shards
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

FORK = multiprocessing.get_context("fork")  # to become a command at once
FRESH = multiprocessing.get_context("spawn")
LIKES = ("nih3t3", "u2os", "cosmx_lung")
PARTS = ("call", "methods", "jobs", "board")
CONTROLS = ["prevalence", "gene_prior", "molecule_count", "oracle"]
FULL = [*CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted", "gpsnet"]
QUICK = ["prevalence", "oracle", "sprawl"]
QUICK_CELLS = 30
SEED = 1  # of the releases
IN_JOBS, QUICKLY_IN_JOBS = "bento", "sprawl"
TEST = "test-seed0.parquet"
SOURCE = {"nih3t3": "source.h5ad", "u2os": "source.h5ad", "cosmx_lung": "source"}
REPORTED = Path(__file__).resolve().parents[1] / "leaderboard" / "reported.yaml"
PAPER = {
    "bento": "Bento",
    "ella": "ELLA",
    "gpsnet": "GPSNet",
    "locfish": "locFISH",
    "sprawl": "SPRAWL",
}
"""Ours -> the paper's row, without its footnote mark."""


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="The whole benchmark at the sizes of table 1.")
    parser.add_argument("--quick", action="store_true", help="few cells, some methods")
    parser.add_argument("--like", action="append", choices=LIKES, help="only this; repeatable")
    parser.add_argument("--methods", help=f"default: {','.join(FULL)}")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--keep", type=Path, help="JSON file of the figures, written as they come")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    methods = QUICK if options.quick else FULL
    if options.methods:
        methods = options.methods.split(",")
    found: dict[str, Any] = {}
    if options.keep and options.keep.exists():
        found = json.loads(options.keep.read_text())

    def keep() -> None:
        if options.keep:
            write_text(options.keep, json.dumps(found) + "\n")

    for like in options.like or (("cosmx_lung",) if options.quick else LIKES):
        mine = found.setdefault(like, {"counts": {}, "steps": [], "methods": [], "jobs": []})
        mine.setdefault("sessions", []).append(about())
        with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
            size = Size(like, methods, Path(folder), options.quick, mine, keep)
            size.run(options.parts)
        print_size(like, mine)
    report(found, options.record)
    if any("failed" in row for of in found.values() for rows in of.values() for row in rows):
        raise SystemExit("some steps failed: see above")


@dataclass(frozen=True)
class Size:
    """One dataset, from its source files to its board.

    `found` has its figures so far; `keep` is called after each step.
    """

    like: str
    methods: list[str]
    folder: Path
    quick: bool
    found: dict[str, Any]
    keep: Callable[[], None]

    def run(self, parts: list[str]) -> None:
        """Make the tables, then what is asked for."""
        tables = self.folder / "cache" / self.like / find_entry(self.like).version
        source = self.folder / "source"
        cells = QUICK_CELLS if self.quick else None
        watched(self.function(write_source, self.like, source, cells))
        made = self.step("curate", self.function(curate_source, self.like, source, tables))
        if made and not self.quick:
            self.note("steps", {"step": "curate, two processes"}, lambda: self.in_two(tables))
        if "call" in parts:
            unit = str(published(self.like).unit_um)
            words = ("call", str(source / SOURCE[self.like]), "--unit-um", unit)
            words += ("--jobs", "1" if self.quick else "2", "--out", str(self.folder / "answer"))
            self.step("call", self.command(*words))
        stored = self.found.setdefault("bytes", {})  # of sessions before, too
        stored |= {"source": bytes_of(source), "tables": bytes_of(tables)}
        shutil.rmtree(source)
        if not made:
            return
        os.environ[CACHE] = str(self.folder / "cache")  # of the commands
        dataset = load_dataset(self.like, root=self.folder / "cache")
        self.found["counts"] |= dataset.counts
        if "methods" in parts:
            self.run_methods(dataset)
        if "jobs" in parts:
            self.run_in_jobs(dataset)
        if "board" in parts and "methods" in parts:
            self.make_board(dataset)

    def function(self, function: Callable[..., None], *args: Any) -> BaseProcess:
        """A process that calls a function, not started yet."""
        return (FORK if self.quick else FRESH).Process(target=function, args=args)

    def command(self, *arguments: str) -> BaseProcess:
        """A command of the package; `--quick` imports nothing again for it."""
        return FORK.Process(target=called, args=arguments) if self.quick else command(*arguments)

    def step(self, what: str, process: BaseProcess) -> bool:
        """Note what a step cost, or that it failed; return whether it did not."""
        return self.note("steps", {"step": what}, lambda: watched(process))

    def note(self, table: str, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> bool:
        """Add a row to a table, or replace it: what is measured now or why that failed."""
        rows = self.found[table]
        rows[:] = [other for other in rows if not row.items() <= other.items()]
        try:
            row |= measure()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the other figures stay
            row["failed"] = str(error) or type(error).__name__
        rows.append(row | {"session": len(self.found["sessions"]) - 1})
        self.keep()
        return "failed" not in row

    def in_two(self, tables: Path) -> dict[str, Any]:
        """Curate in two processes: the same tables."""
        other = self.folder / "two" / self.like
        source = self.folder / "source"
        cost = watched(self.function(curate_source, self.like, source, other, 2))
        for path in tables.glob("*.parquet"):
            if file_sha256(path) != file_sha256(other / path.name):
                raise SystemExit(f"{path.name} is not that of one process")
        shutil.rmtree(other)
        return cost

    # parts

    def run_methods(self, dataset: Dataset) -> None:
        """A row per method: its processes' seconds, those by the clock, its peak of memory."""
        every = ("--splits", "train,val,test")
        for name in self.methods:
            start = self.run_all(dataset, name, self.folder / "runs", *every)
            self.note("methods", {"method": name}, lambda: self.of_method(dataset, name, start))  # noqa: B023 - called now
        runs = [self.folder / "runs" / name for name in self.methods]
        most = max(bytes_of(run, "*-seed0.parquet") for run in runs)
        self.found["bytes"]["predictions"] = most
        again = self.run_all(dataset, ",".join(self.methods), self.folder / "runs", *every)
        self.step("run-all, again", again)

    def run_all(self, dataset: Dataset, methods: str, out: Path, *more: str) -> BaseProcess:
        """Start `run-all`; by default with a process per core."""
        if self.quick and "--jobs" not in more:
            more = (*more, "--jobs", "1")
        words = ("run-all", "--dataset", str(dataset.folder), "--methods", methods)
        return self.command(*words, "--out", str(out), *more)

    def of_method(self, dataset: Dataset, name: str, start: BaseProcess) -> dict[str, Any]:
        """What a method's `run-all` cost, as its own report divides it."""
        cost = watched(start)
        run = self.folder / "runs" / name / dataset.name / "run-seed0.json"
        seconds = json.loads(run.read_text())["seconds"]
        scoring = sum(spent for what, spent in seconds.items() if what != "fit")
        return {
            **cost,
            "fit_s": seconds.get("fit"),
            "scoring_s": scoring,  # of all processes
            "pairs_per_s": dataset.counts["pairs"] / scoring,
            "paper": paper_time(dataset.name, name),
        }

    def run_in_jobs(self, dataset: Dataset) -> None:
        """Predict test in one process, in two, and in two that are killed: the same bytes."""
        method = QUICKLY_IN_JOBS if self.quick else IN_JOBS
        first: list[str] = []

        def run(jobs: int, killed: bool) -> dict[str, Any]:
            out = self.folder / f"jobs-{jobs}-{killed}"
            options = ("--splits", "test", "--jobs", str(jobs))
            found: dict[str, Any] = {}
            if killed:
                found = kill(self.run_all(dataset, method, out, *options), out, dataset)
            found |= watched(self.run_all(dataset, method, out, *options))
            first.append(file_sha256(out / method / dataset.name / TEST))
            if first[-1] != first[0]:
                raise SystemExit(f"{TEST} is not that of the first row")
            return found

        for jobs, killed in ((1, False), (2, False), (2, True)):
            row = {"method": method, "jobs": jobs, "start": "again" if killed else "first"}
            self.note("jobs", row, lambda: run(jobs, killed))  # noqa: B023 - called now

    def make_board(self, dataset: Dataset) -> None:
        """Submit, score with intervals, write the board.

        The oracle cannot be submitted where data pass for real: it is evaluated, and must be
        perfect. `leaderboard` would refuse files of more than 20 MiB that lie in the repository,
        as those of two million pairs do; what it calls is called here.
        """
        submissions, board = self.folder / "submissions", self.folder / "board"
        board.mkdir()
        shutil.copy(REPORTED, board / REPORTED.name)
        paths = {name: self.folder / "runs" / name / dataset.name / TEST for name in self.methods}
        done = [name for name, path in paths.items() if path.exists()]
        shown = [name for name in done if not get_method(name).about.sees_labels]
        for name in set(done) - set(shown):
            self.step(f"evaluate {name}", self.function(perfect, dataset.folder, paths[name]))

        def submit() -> dict[str, Any]:
            costs = []
            for name in shown:
                words = ("submit", str(self.folder / "runs" / name))
                costs.append(watched(self.command(*words, "--to", str(submissions / name))))
            return {
                "seconds": sum(cost["seconds"] for cost in costs),
                "cpu_s": sum(cost["cpu_s"] for cost in costs),
                "peak_gib": max(cost["peak_gib"] for cost in costs),
            }

        self.note("steps", {"step": f"submit ({len(shown)})"}, submit)
        self.step("score, 1,000 replicates", self.function(score, submissions))
        self.step("board", self.function(show_board, submissions, board))
        for row in self.found["methods"]:
            path = submissions / row["method"] / "results.json"
            for result in json.loads(path.read_text()) if path.is_file() else []:
                row |= {m: result["metrics"][f"{m}_macro"] for m in ("auc", "f1")}
        self.keep()


# Jobs of processes


def write_source(like: str, folder: Path, cells: int | None) -> None:
    """Draw a release and write it in the format of the published one."""
    folder.mkdir()
    pieces = simulate_like(like, SEED, cells)
    if like == "cosmx_lung":
        write_cosmx(pieces, folder / SOURCE[like])
    else:
        write_bento_h5ad(pieces, folder / SOURCE[like], PATTERNS)


def published(like: str) -> Recipe:
    """The recipe of the published release, but for path, units and controls."""
    changed: dict[str, Any] = {"controls": "NegPrb", "unit_um": 0.18}
    if like != "cosmx_lung":
        changed = {"controls": "notarget|blank", "unit_um": 0.108}
    recipe = find_entry(like).recipe.model_dump() | {"path": SOURCE[like]}
    return Recipe.model_validate(recipe | changed)


def curate_source(like: str, folder: Path, tables: Path, jobs: int | None = None) -> None:
    """Turn it into tables."""
    version = find_entry(like).version
    curate(published(like), folder, tables, name=like, version=version, jobs=jobs)
    if jobs:
        get_reusable_executor().shutdown(kill_workers=True)  # else they idle, waited for


def bytes_of(folder: Path, names: str = "*") -> int:
    """Bytes of the files in a folder, or of those with such names."""
    return sum(path.stat().st_size for path in folder.rglob(names) if path.is_file())


def perfect(tables: Path, scores: Path) -> None:
    """Evaluate scores that are the labels."""
    found = Evaluator(Dataset(tables), "test").eval(scores, replicates=0)
    if found["f1_macro"] != 1:
        raise SystemExit(f"{scores} are the labels, and their F1 is {found['f1_macro']}")


def score(submissions: Path) -> None:
    """Score all prediction files, with intervals, and store the results."""
    found = read_submissions(submissions)
    for submission, (results, missing) in zip(found, rescore(found), strict=True):
        if missing:
            raise SystemExit(f"not scored: {', '.join(missing)}")
        submission.write_results(results)


def show_board(submissions: Path, out: Path) -> None:
    """Write the board of the stored results."""
    found = read_submissions(submissions)
    write_board(board_of(found, out), found, out)


def executed(*arguments: str) -> None:
    """Become a command of the package."""
    os.dup2(2, 1)  # what it prints is no part of the tables
    os.execv(sys.executable, [sys.executable, "-m", "gpattern_bench", *arguments])  # noqa: S606


def called(*arguments: str) -> None:
    """Do what a command of the package does."""
    os.dup2(2, 1)
    sys.argv[1:] = arguments
    try:
        gpattern_bench()
    finally:
        get_reusable_executor().shutdown(kill_workers=True)  # else they idle, waited for


def command(*arguments: str) -> BaseProcess:
    """A command of the package, not started yet."""
    return FORK.Process(target=executed, args=arguments)


# Measuring


def paper_time(dataset: str, method: str) -> str | None:
    """The paper's validation time (table 2), on its own machines and cells."""
    for table in yaml.safe_load(REPORTED.read_text(encoding="utf-8")):
        for row in table["rows"]:
            if table["datasets"][0] == dataset and row["method"].split()[0] == PAPER.get(method):
                return str(row["time"])
    return None


def kill(process: BaseProcess, out: Path, dataset: Dataset) -> dict[str, Any]:
    """Kill a run of one method on test when half of its shards are done."""
    shards = len(cut_shards(dataset, "test", per_cell=True))
    began = perf_counter()
    process.start()
    written = f"*/{dataset.name}/shards-*/*.parquet"
    while process.exitcode is None and len(list(out.glob(written))) < max(shards // 2, 1):
        sleep(0.01)
    for pid in _tree(process.pid):  # joblib's workers would idle for minutes, with our output open
        with suppress(ProcessLookupError):  # gone since
            os.kill(pid, signal.SIGKILL)
    process.join()
    left = len(list(out.glob(written)))
    return {"shards": shards, "left": left, "killed_s": perf_counter() - began}


def watched(process: BaseProcess) -> dict[str, float]:
    """Run a process to its end: seconds by the clock, of the processor, and peak memory, GiB."""
    cpu, began = _children_cpu(), perf_counter()
    peak, due = 0.0, began
    process.start()
    while process.exitcode is None:  # `join` would wait for the end: `exec` closes its pipe
        if perf_counter() >= due:
            peak, due = max(peak, sum(map(_pss, _tree(process.pid))) / 2**20), perf_counter() + 0.5
        sleep(0.05)
    if process.exitcode:
        raise SystemExit(f"exit code {process.exitcode}: see above")
    seconds = perf_counter() - began
    return {"seconds": seconds, "cpu_s": _children_cpu() - cpu, "peak_gib": peak}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tree(root: int | None) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone
            continue
    found: set[int | None] = set()
    new = {root}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new}
    return parents.keys() & found


def _pss(pid: int) -> int:
    """Memory of a process, KiB; what it shares is divided among those that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def print_size(like: str, found: dict[str, Any]) -> None:
    """Print the tables of one dataset."""
    counts = ", ".join(f"{value:,} {what}" for what, value in found["counts"].items())
    sizes = ", ".join(f"{what} {value / 1e6:,.1f} MB" for what, value in found["bytes"].items())
    print(f"{like}: {counts}; {sizes}\n")
    for table in ("steps", "methods", "jobs"):
        show(found[table])


if __name__ == "__main__":
    main()
