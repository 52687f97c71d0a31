"""The whole benchmark at the sizes of table 1: from files of the source formats to a board.

Simulated releases stand in for the published ones, under their names and versions, in a cache of
their own. Per dataset: files of the source format are drawn and written (not timed), curated, run
by one `run-all` of all methods on all splits, submitted, scored with intervals, put on a board.
Then the same `run-all` again, which skips what is done; one that gets SIGKILL in the middle and is
started again; and for `cosmx_lung` GPSNet (`small`), fitted on 300 cells, predicting test. Every
step is a process of its own: seconds by the clock and of the processor, and the peak of memory of
it and its children (proportional set size, sampled twice a second; Linux).
The last line is one JSON object.

Rerun: `python benchmarks/full.py` (about an hour, 12 GB of disk), `--like u2os` (that one only;
may be repeated), `--quick` (`synthetic`, some methods, a minute).
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
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import perf_counter, sleep, time
from typing import Any

import numpy as np
import yaml
from timing import parsed, report, show

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.base.files import file_sha256
from gpattern_bench.board.publish import board_of, write_board
from gpattern_bench.board.submission import read_submissions, rescore
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import PATTERNS, simulate_like
from gpattern_bench.curate.simulate.releases import write_bento_h5ad, write_cosmx
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods import get_method
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import counted, write_predictions
from gpattern_bench.runs.shards import cut_shards
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

SPAWN = multiprocessing.get_context("spawn")
LIKES = ("nih3t3", "u2os", "cosmx_lung")
CONTROLS = ["prevalence", "gene_prior", "molecule_count", "oracle"]
FULL = [*CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted"]
QUICK = ["prevalence", "oracle", "sprawl"]
SEED = 1  # of the releases
TRAINED_ON = {"cosmx_lung": 300, "synthetic": 10}  # GPSNet: cells
KILLED = "bento"  # where it is run
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
    parser.add_argument("--quick", action="store_true", help="`synthetic`, some methods")
    parser.add_argument("--like", action="append", choices=LIKES, help="only this; repeatable")
    parser.add_argument("--methods", help=f"default: {','.join(FULL)}")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    methods = options.methods.split(",") if options.methods else FULL
    if options.quick:
        methods = QUICK
    found = {}
    for like in ("synthetic",) if options.quick else options.like or LIKES:
        with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
            found[like] = whole(like, methods, Path(folder))
        show_all(like, found[like])
    report(found, options.record)


def whole(like: str, methods: list[str], folder: Path) -> dict[str, Any]:
    """One dataset, from its source files to its board."""
    steps: list[dict[str, Any]] = []
    entry = find_entry(like)
    tables = folder / "cache" / entry.name / entry.version
    if like in LIKES:
        watched(SPAWN.Process(target=write_source, args=(like, folder / "source")))
        process = SPAWN.Process(target=curate_source, args=(like, folder / "source", tables))
        steps.append({"step": "curate"} | watched(process)[0])
        shutil.rmtree(folder / "source")
    else:
        shutil.copytree(load_dataset(like).folder, tables)
    os.environ[CACHE] = str(folder / "cache")  # of the commands
    dataset = load_dataset(like, root=folder / "cache")
    runs = folder / "runs"
    run_all = ["run-all", "--dataset", str(dataset.folder), "--methods", ",".join(methods)]
    run_all += ["--splits", "train,val,test", "--out", str(runs)]
    began = time()
    cost, memory = watched(command(*run_all))
    steps.append({"step": "run-all"} | cost)
    rows = method_rows(methods, dataset, runs, began, memory)
    steps.append({"step": "run-all, again"} | watched(command(*run_all))[0])
    killed = KILLED if KILLED in methods else methods[-1]
    resumed = killed_and_resumed(dataset, runs, folder / "killed", killed)
    steps += board_steps(dataset, methods, folder)
    results = {
        name: json.loads(path.read_text())
        for name in methods
        if (path := folder / "submissions" / name / "results.json").is_file()
    }
    for row in rows:
        for result in results.get(row["method"], []):
            row |= {m: result["metrics"][f"{m}_macro"] for m in ("auc", "f1")}
    if like in TRAINED_ON:
        network = folder / "gpsnet.json"
        process = SPAWN.Process(target=run_gpsnet, args=(dataset.folder, TRAINED_ON[like], network))
        cost, _ = watched(process)
        rows.append({"method": "gpsnet", **cost, **json.loads(network.read_text())})
    return {"counts": dataset.counts, "steps": steps, "resumed": resumed, "methods": rows}


def write_source(like: str, folder: Path) -> None:
    """Draw a release and write it in the format of the published one."""
    folder.mkdir()
    pieces = simulate_like(like, SEED)
    if like == "cosmx_lung":
        write_cosmx(pieces, folder / "source")
    else:
        write_bento_h5ad(pieces, folder / "source", PATTERNS)


def curate_source(like: str, folder: Path, tables: Path) -> None:
    """Turn it into tables, by the recipe of the published one but for units and controls."""
    recipe = find_entry(like).recipe
    changed: dict[str, Any] = {"path": "source", "controls": "NegPrb", "unit_um": 0.18}
    if like != "cosmx_lung":
        changed = {"path": "source", "controls": "notarget|blank", "unit_um": 0.108}
    recipe = Recipe.model_validate(recipe.model_dump() | changed)
    curate(recipe, folder, tables, name=like, version=find_entry(like).version)


def method_rows(
    methods: list[str],
    dataset: Dataset,
    runs: Path,
    began: float,
    memory: list[tuple[float, float]],
) -> list[dict[str, Any]]:
    """What each method cost: its processes' seconds, those by the clock, and its peak of memory.

    By the clock a method takes from the mark that the one before it left to its own.
    """
    pairs = dataset.counts["pairs"]
    rows = []
    for name in methods:
        folder = runs / name / dataset.name
        report = json.loads((folder / "run-seed0.json").read_text())
        ended = (folder / "done-seed0.json").stat().st_mtime
        scoring = sum(seconds for what, seconds in report["seconds"].items() if what != "fit")
        rows.append(
            {
                "method": name,
                "fit_s": report["seconds"].get("fit"),
                "scoring_s": scoring,
                "seconds": ended - began,
                "pairs_per_s": pairs / scoring,
                "peak_gib": max(
                    (at for when, at in memory if began <= when <= ended), default=None
                ),
                "paper": paper_time(dataset.name, name),
            }
        )
        began = ended
    return rows


def paper_time(dataset: str, method: str) -> str | None:
    """The paper's validation time (table 2), on its own machines and cells."""
    for table in yaml.safe_load(REPORTED.read_text(encoding="utf-8")):
        for row in table["rows"]:
            if table["datasets"][0] == dataset and row["method"].split()[0] == PAPER.get(method):
                return str(row["time"])
    return None


def killed_and_resumed(dataset: Dataset, runs: Path, out: Path, method: str) -> dict[str, Any]:
    """Kill a run with half of its pieces done, and start it again: same bytes as without."""
    start = ["run-all", "--dataset", str(dataset.folder), "--methods", method, "--out", str(out)]
    pieces = sum(len(cut_shards(dataset, split, per_cell=True)) for split in ("val", "test"))
    process = command(*start)
    began = perf_counter()
    process.start()
    folder = out / method / dataset.name
    while process.exitcode is None and len(list(folder.glob("shards-*/*.parquet"))) < pieces // 2:
        sleep(0.05)
    for pid in _tree(process.pid):  # joblib's workers would idle for minutes, with our output open
        with suppress(ProcessLookupError):  # gone since
            os.kill(pid, signal.SIGKILL)
    process.join()
    before = perf_counter() - began
    left = len(list(folder.glob("shards-*/*.parquet")))
    cost, _ = watched(command(*start))
    for split in ("val", "test"):
        name = f"{split}-seed0.parquet"
        if file_sha256(folder / name) != file_sha256(runs / method / dataset.name / name):
            raise SystemExit(f"{method}: {name} after SIGKILL is not that of the run without")
    return {"method": method, "pieces": pieces, "left": left, "killed_s": before, **cost}


def board_steps(dataset: Dataset, methods: list[str], folder: Path) -> list[dict[str, Any]]:
    """Submit, score with intervals, write the board.

    The oracle cannot be submitted where data pass for real: it is evaluated, and must be perfect.
    `leaderboard` would refuse files of more than 20 MiB that lie in the repository, as those of two
    million pairs do; what it calls is called here.
    """
    submissions, board = folder / "submissions", folder / "board"
    board.mkdir()
    shutil.copy(REPORTED, board / REPORTED.name)
    simulated = dataset.manifest.is_simulated
    shown = [name for name in methods if simulated or not get_method(name).about.sees_labels]
    for name in set(methods) - set(shown):
        path = folder / "runs" / name / dataset.name / "test-seed0.parquet"
        found = Evaluator(dataset, "test").eval(path, replicates=0)
        if found["f1_macro"] != 1:
            raise SystemExit(f"{name} sees the labels and has F1 {found['f1_macro']}")
    costs = [
        watched(command("submit", str(folder / "runs" / name), "--to", str(submissions / name)))[0]
        for name in shown
    ]
    whole = {
        "seconds": sum(cost["seconds"] for cost in costs),
        "cpu_s": sum(cost["cpu_s"] for cost in costs),
        "peak_gib": max(cost["peak_gib"] for cost in costs),
    }
    scoring = SPAWN.Process(target=score, args=(submissions,))
    showing = SPAWN.Process(target=show_board, args=(submissions, board))
    return [
        {"step": f"submit ({len(shown)})"} | whole,
        {"step": "score, 1,000 replicates"} | watched(scoring)[0],
        {"step": "board"} | watched(showing)[0],
    ]


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


def run_gpsnet(tables: Path, cells: int, out: Path) -> None:
    """Fit GPSNet on some training cells; predict and score the whole test split."""
    from gpattern_bench.methods.gpsnet.config import TRAININGS
    from gpattern_bench.methods.gpsnet.method import GPSNetMethod

    dataset = Dataset(tables)
    rng = np.random.default_rng(SEED)
    names = dataset.cells("train")["cell_id"].to_numpy()
    keep = rng.permutation(names)[:cells].tolist()
    quick = replace(TRAININGS["gpsnet"], steps=20) if dataset.name == "synthetic" else None
    method = GPSNetMethod(training=quick)
    began = perf_counter()
    method.fit(dataset.iter_cells("train", keep=keep), 0)
    fitted = perf_counter() - began
    began = perf_counter()
    scores = predict_cells(method, dataset.iter_cells("test"))
    predicted = perf_counter() - began
    path = out.with_suffix(".parquet")
    labelled = counted(scores, dataset.pairs("test"))
    write_predictions(path, labelled, dataset, "test", method="gpsnet")
    found = Evaluator(dataset, "test").eval(path, replicates=0)
    row = {
        "fit_s": fitted,
        "scoring_s": predicted,
        "pairs_per_s": len(scores) / predicted,
        "paper": paper_time(dataset.name, "gpsnet"),
        "auc": found["auc_macro"],
        "f1": found["f1_macro"],
    }
    out.write_text(json.dumps(row))


def command(*arguments: str) -> BaseProcess:
    """A command of the package, not started yet."""
    return SPAWN.Process(target=_command, args=arguments)


def _command(*arguments: str) -> None:
    os.dup2(2, 1)  # what it prints is no part of the tables
    os.execv(sys.executable, [sys.executable, "-m", "gpattern_bench", *arguments])  # noqa: S606


def watched(process: BaseProcess) -> tuple[dict[str, float], list[tuple[float, float]]]:
    """Run a process to its end.

    Returns
    -------
    cost : dict
        Seconds by the clock, of the processor, and the peak of memory, GiB.
    memory : list of (float, float)
        Time and GiB of each sample.
    """
    cpu, began = _children_cpu(), perf_counter()
    memory = []
    process.start()
    while process.exitcode is None:
        memory.append((time(), sum(map(_pss, _tree(process.pid))) / 2**20))
        process.join(0.5)
    process.join()
    if process.exitcode:
        raise SystemExit(f"a step failed with exit code {process.exitcode}: see above")
    seconds = perf_counter() - began
    peak = max(held for _, held in memory)
    cost = {"seconds": seconds, "cpu_s": _children_cpu() - cpu, "peak_gib": peak}
    return cost, memory


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


def show_all(like: str, found: dict[str, Any]) -> None:
    """Print the tables of one dataset."""
    counts = ", ".join(f"{value:,} {what}" for what, value in found["counts"].items())
    print(f"{like}: {counts}\n")
    for rows in (found["steps"], found["methods"], [found["resumed"]]):
        show(rows)


if __name__ == "__main__":
    main()
