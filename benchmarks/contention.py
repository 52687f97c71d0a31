"""Several processes on one cache and in one output folder: no wrong byte, no growing process.

Threads of this script start commands of the command line, none again before all were drawn, in a
folder that all share and in one of their own; some are killed (SIGKILL) at a random moment and run
again. Beside them, processes that live as long as the script use the Python API. Now and then
somebody removes a dataset from the cache. All begin with an empty cache at the same moment. What
each command prints and writes is compared with what it gave alone, before, in another folder; but
for what is measured (seconds, memory, date, device).

Wrong are: other bytes; an exit code or a text on stderr that is none of this package's errors; an
error that nothing that others do explains (`EXCUSES`), or one that a command run again
`TRIES` times does not get over; a command that takes `LONGEST_S`; a process of a killed command
that does not end; a file that is left over in the cache or in the folders. After `kill -9` a
file `.NAME-xxxxxxxx` may stay in an output folder: nobody else can tell that its writer is gone.
In the cache none may stay: who makes the dataset next removes it.

A process grows if, between the second and the last quarter of the time, the most that it had after
any call grew by more than 5 % and 30 MiB, or by more than two files, threads or children.

Linux only. The exit code is 1 if anything was wrong; the last line is one JSON object. Real
datasets take part where GPATTERN_BENCH_MIRROR is set.

Rerun: `python benchmarks/contention.py` (forty minutes), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate
from timing import parsed, report

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import exports

import gpattern_bench
from gpattern_bench import load_dataset
from gpattern_bench.base.files import plain
from gpattern_bench.curate.simulate.cells import simulate_tissue
from gpattern_bench.curate.simulate.releases import write_cosmx
from gpattern_bench.errors import GPatternBenchError
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.fetch import MIRROR
from gpattern_bench.sources.registry import find_entry

TRIES = 20
LONGEST_S = 1800
MARK = "GPATTERN_BENCH_CONTENTION"
"""In the environment of every process that is started here."""
EXCUSES = {
    "a dataset that somebody removes": (
        r"manifest\.json is missing or not readable|it is not there|the folder is not empty|"
        r"cannot be read|the tables are damaged or do not fit|"
        r"no dataset named '/\S+/\d+\.\d+\.\d+', and no folder of tables at that path"
    ),
    "a folder that somebody makes": r"the folder is not empty|Directory not empty",
    "a model that somebody fits": (
        r"holds no readable model|must be fitted, and there is no|training\.json"
    ),
    "a submission that somebody renews": r"has no file submission\.yaml|No such file or directory",
    "an answer that somebody makes": r"holds no finished answer|changed since the answer was",
}
_WAITS = ": waiting for it"
_TOLD = re.compile(r"error|warning|traceback", re.IGNORECASE)
"""Lines on stderr that are more than progress, which is never the same twice."""
_MEASURED = {
    "seconds", "cpu_seconds", "seconds_by_batch", "cpu_seconds_by_batch", "peak_rss_mib", "date",
    "device", "versions",  # of torch, if anything in the process has loaded it
}  # fmt: skip
_LEFT = re.compile(r"\.[^/]+-[a-z0-9_]{8}(/|$)")
_TIMED = re.compile(r"demo/(leaderboard|submissions)/|answer[^/]*/(answer\.json|report\.html)")
"""Files whose bytes are others each time: boards show times, answers name the folder of tables."""
_SCORES = tuple(f"{split}-seed0.parquet" for split in ("val", "test"))


@dataclass(frozen=True)
class Command:
    """A command line, and what it makes in the folder in which it is run.

    Attributes
    ----------
    line : str
        After ``gpattern-bench``.
    makes : tuple of str
        Files and folders below the current one, whose bytes are compared.
    removed : bool
        What it makes must not be there before, in whichever folder.
    starts : int
        How many start at the same moment in one folder; one of them must succeed.
    prints : bool
        Whether it prints the same each time.
    weight : int
    first : callable, optional
        Makes what it needs and no command makes, from the folder and what the commands before it
        gave; once, when it is run alone.
    """

    line: str
    makes: tuple[str, ...] = ()
    removed: bool = False
    starts: int = 1
    prints: bool = True
    weight: int = 1
    first: Callable[[Path, dict[str, dict[str, str]]], object] | None = None


def _run(method: str, options: str = "", name: str = "") -> Command:
    name = name or method
    return Command(
        f"run {method} --dataset synthetic --out runs/{name} {options}",
        tuple(f"runs/{name}/synthetic/{file}" for file in (*_SCORES, "run-seed0.json")),
    )


def _makes(line: str, *names: str, **more: Any) -> Command:
    """A command with ``--out`` and the first name, which is a folder that must not be there."""
    return Command(f"{line} --out {names[0]}", names, removed=True, **more)


def _submitted(place: Path, _: object) -> None:
    """Copy the submission to where the board looks."""
    shutil.copytree(place / "submitted", place / "board" / "submissions")


def _grouped(place: Path, _: object) -> None:
    """Put the cells of the answer into two groups of three samples each."""
    cells = pd.read_parquet(place / "answer" / "cells.parquet", columns=["cell_id"])
    sample = np.arange(len(cells)) % 6
    cells.assign(sample=sample, group=sample % 2).to_csv(place / "groups.csv", index=False)


def _ablated(place: Path, wanted: dict[str, dict[str, str]]) -> None:
    """Keep what `ablation` printed."""
    (place / "ablation.json").write_text(wanted["ablation"]["stdout"])


_SCORED = "runs/sprawl/synthetic"
_MODEL = f"{_SCORED}/model-seed0"
_SEED = 2**60 + 1  # of the challenge
_TINY = (
    "--preset small --set epochs=1 --set width=48 --set heads=2 --set encoder_depth=1 "
    "--set decoder_depth=1"
)
_ALL = "run-all --dataset synthetic --methods gene_prior,sprawl,molecule_count --out all --jobs 2"
_DEMO = "prevalence gene_prior molecule_count oracle sprawl ella bento locfish boosted gpsnet"
QUICK = {
    "download": Command("download synthetic", weight=2),
    "datasheet": Command("datasheet synthetic --out sheet.md", ("sheet.md",)),
}
FULL = QUICK | {
    "run sprawl": _run("sprawl"),
    "simulate": _makes("simulate --like synthetic", "simulated"),
    "list": Command("list", prints=False),
    "info": Command("info synthetic --json"),
    "cite": Command("cite synthetic"),
    "export": _makes("export synthetic", "exported"),
    "simulate --as": Command(
        "simulate --like synthetic --as bento-h5ad --out release.h5ad", ("release.h5ad",)
    ),
    "verify": Command("verify synthetic", weight=2),
    "label": _makes(f"label synthetic --with {_MODEL} --split test", "labelled"),
    "call": Command(
        "call synthetic --jobs 2 --out answer",
        ("answer",),
        weight=2,
    ),
    "call, of a release": Command(
        "call given/cosmx --unit-um 0.18 --jobs 2 --out answer-cosmx",
        ("answer-cosmx",),
        weight=2,
    ),
    "models": Command("models"),
    "differential": Command(
        "differential answer --groups groups.csv --by group --sample sample --out differential.csv",
        ("differential.csv",),
        first=_grouped,
    ),
    "run gene_prior": _run("gene_prior"),
    "run gpsnet": _run("gpsnet", f"--name gpsnet_tiny --sample-cells 20 {_TINY}", "gpsnet_tiny"),
    "run-all, two starts": Command(
        _ALL,
        tuple(
            f"all/{method}/synthetic/{name}"
            for method in ("gene_prior", "sprawl", "molecule_count")
            for name in (*_SCORES, "run-seed0.json")
        ),
        starts=2,
        prints=False,
        weight=2,
    ),
    "methods": Command("methods"),
    "features": Command("features sprawl synthetic --out features.parquet", ("features.parquet",)),
    "predict": Command(
        f"predict synthetic --model {_MODEL} --out scores.parquet --calls",
        ("scores.parquet", "scores-calls.parquet", "scores-calls-genes.csv"),
    ),
    "ablation": Command(
        f"ablation --study neighbours --quick {_TINY} --out ablation --json", ("ablation",)
    ),
    "robustness": Command(
        "robustness gene_prior --dataset synthetic --out runs/gene_prior",
        ("runs/gene_prior/synthetic/robustness-seed0.json",),
    ),
    "validate": Command(f"validate {_SCORED}/test-seed0.parquet --dataset synthetic"),
    "evaluate": Command(
        f"evaluate {_SCORED}/test-seed0.parquet --val {_SCORED}/val-seed0.parquet "
        "--dataset synthetic --json --replicates 200",
        weight=2,
    ),
    "compare": Command(
        f"compare {_SCORED}/test-seed0.parquet runs/gene_prior/synthetic/test-seed0.parquet "
        "--replicates 100"
    ),
    "calls": Command(
        f"calls {_SCORED}/test-seed0.parquet --val {_SCORED}/val-seed0.parquet --out calls.parquet",
        ("calls.parquet", "calls-genes.csv"),
    ),
    "submit": Command(
        "submit runs/sprawl --to submitted/sprawl",
        (
            "submitted/sprawl/submission.yaml",
            *(f"submitted/sprawl/predictions/synthetic/{name}" for name in _SCORES),
        ),
        weight=2,
    ),
    "leaderboard --rescore": Command(
        "leaderboard --rescore --submissions board/submissions --out board/out",
        ("board/out", "board/submissions/sprawl/results.json"),
        first=_submitted,
    ),
    "leaderboard --check": Command(
        "leaderboard --check --submissions board/submissions --out board/out"
    ),
    "demo": Command(
        "demo --out demo",
        tuple(f"demo/runs/{name}/synthetic/test-seed0.parquet" for name in _DEMO.split()),
        prints=False,
    ),
    "curate bento-h5ad": _makes("curate bento-h5ad release.h5ad --unit-um 0.108", "curated"),
    "curate spatialdata": _makes(
        "curate spatialdata given/spatialdata --unit-um 1 --name mine", "curated-spatialdata"
    ),
    "curate cosmx": _makes("curate cosmx given/cosmx --unit-um 0.18 --split test", "curated-cosmx"),
    "curate xenium": _makes("curate xenium given/xenium", "curated-xenium"),
    "curate merscope": _makes("curate merscope given/merscope", "curated-merscope"),
    "curate table": _makes(
        "curate table given/table.csv --unit-um 1 --surrogate-outlines", "curated-table"
    ),
    "plot splits": Command("plot splits synthetic --out splits.svg", ("splits.svg",)),
    "plot patterns": Command("plot patterns synthetic --out patterns.svg", ("patterns.svg",)),
    "plot cell": Command(
        f"plot cell synthetic {_SCORED}/test-seed0.parquet --out cell.svg", ("cell.svg",)
    ),
    "plot ablation": Command(
        "plot ablation ablation.json --out ablation.svg", ("ablation.svg",), first=_ablated
    ),
    "plot training": Command(
        "plot training runs/gpsnet_tiny/synthetic/model-seed0 --out training.svg",
        ("training.svg",),
    ),
    "challenge draw": _makes(f"challenge draw --seed {_SEED}", "challenge"),
    "challenge score": Command(f"challenge score --seed {_SEED} --model {_MODEL} --json"),
}
"""Every command of the program, one that others need before them."""
REAL = {
    "cosmx_lung_mini": Command("download cosmx_lung_mini"),
    "u2os_gold": Command("download u2os_gold"),
    "verify nih3t3_gold": Command("verify nih3t3_gold"),
}


def give(folder: Path) -> None:
    """Write releases as instruments do."""
    folder.mkdir(parents=True)
    pieces = simulate_tissue(1, n_fovs=2, n_cells=150, n_genes=60, mean_molecules=100)
    write_cosmx(pieces, folder / "cosmx")
    cells = exports.CELLS
    steps = [(k % 5 * 0.5, k // 5 * 0.5) for k in range(25)]
    rows = [(*of, x + dx, y + dy) for *of, x, y in exports.INSIDE for dx, dy in steps]
    exports.write_xenium(
        folder / "xenium", exports.transcripts(rows), exports.vertices(cells.items())
    )
    detected = [(gene, x, y) for _, gene, x, y in rows]
    exports.write_merscope(folder / "merscope", exports.detected(detected), exports.FLAT)
    molecules = pd.DataFrame(rows, columns=["cell", "gene", "x", "y"])
    columns = {name: molecules[name].to_numpy() for name in ("x", "y", "gene", "cell")}
    exports.write_spatialdata(folder / "spatialdata", columns, {"cell_boundaries": cells})
    molecules.rename(columns={"cell": "cell_id"}).to_csv(folder / "table.csv", index=False)


# Each imports what it needs: torch, for one, which --quick does without.


def _loaded(place: Path) -> str:  # noqa: ARG001 - all calls have the folder of their files
    dataset = load_dataset("synthetic", verify=True)
    return f"{dataset!r} {dataset.labels_sha256}"


def _cells(place: Path) -> str:  # noqa: ARG001
    digest = hashlib.sha256()
    for cell in load_dataset("synthetic").iter_cells("test"):
        for values in (cell.xy, cell.gene, cell.labels):
            digest.update(values.tobytes())
        digest.update(cell.boundary.wkb)
    return digest.hexdigest()


def _made(place: Path) -> str:
    with tempfile.TemporaryDirectory(dir=place) as root:
        return digest_of(load_dataset("synthetic", root=root).folder)


def _ran(place: Path) -> str:
    from gpattern_bench.runs.run import run_method

    out = place / "api-runs"
    run_method("sprawl", load_dataset("synthetic"), out)
    return " ".join(digest_of(out / "synthetic" / name) for name in _SCORES)


def _predicted(place: Path) -> str:
    from gpattern_bench.runs.saved_model import load_model, predict_tables

    method, model = load_model(place / _SCORED / "model-seed0")
    path = place / f"api-scores-{os.getpid()}.parquet"
    try:
        return digest_of(predict_tables(method, model, load_dataset("synthetic"), path))
    finally:
        path.unlink(missing_ok=True)


def _evaluated(place: Path) -> str:
    from gpattern_bench import Evaluator

    result = Evaluator("synthetic").eval(place / _SCORED / "test-seed0.parquet", replicates=100)
    return json.dumps(plain(dict(result)), default=str)


def _paged(place: Path) -> str:
    from gpattern_bench.board.leaderboard import build_board
    from gpattern_bench.board.page import build_page
    from gpattern_bench.board.submission import read_submissions

    found = read_submissions(place / "board" / "submissions")
    return hashlib.sha256(build_page(build_board(found), found).encode()).hexdigest()


def _called(place: Path) -> str:
    from gpattern_bench import call

    with tempfile.TemporaryDirectory(dir=place) as out:
        return digest_of(call("synthetic", Path(out) / "answer", jobs=1).folder / "pairs.parquet")


def _drawn(place: Path) -> str:
    from gpattern_bench.figures import plot_cell, save_figure

    return digest_of(save_figure(plot_cell(load_dataset("synthetic")), place / "api.svg"))


QUICK_CALLS: dict[str, Callable[[Path], str]] = {
    "load_dataset(verify=True)": _loaded,
    "iter_cells": _cells,
}
FULL_CALLS = QUICK_CALLS | {
    "load_dataset, empty root": _made,
    "run_method": _ran,
    "predict_tables": _predicted,
    "Evaluator.eval": _evaluated,
    "page": _paged,
    "plot_cell": _drawn,
    "call": _called,
}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, but for what runs measure, or of all files of a folder.

    Not of what a killed command left in the folder: `settle` counts that.
    """
    if path.is_dir():
        names = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [
            f"{name} {digest_of(file)}"
            for file in names
            if not _TIMED.match(name := file.relative_to(path.parent).as_posix())
            if not _LEFT.search(name)
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    data = path.read_bytes()
    if path.name.startswith(("run-seed", "training.json")):
        data = json.dumps(unmeasured(json.loads(data))).encode()
    return hashlib.sha256(data).hexdigest()


def unmeasured(value: Any) -> Any:
    """The value without what is another each time."""
    if isinstance(value, dict):
        return {key: unmeasured(one) for key, one in value.items() if key not in _MEASURED}
    return [unmeasured(one) for one in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path; not of locks, nor of what has times."""
    return {
        name: digest_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
        if not _TIMED.match(name := path.relative_to(folder).as_posix())
    }


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Ways in which one tree is not another."""
    return [f"{name} is left over" for name in sorted(found.keys() - wanted)] + [
        f"{name} " + ("has other bytes" if name in found else "is not there")
        for name, digest in wanted.items()
        if found.get(name) != digest
    ]


def excused(text: str) -> bool:
    """Whether an error of this package is one that others explain."""
    return any(re.search(pattern, text) for pattern in EXCUSES.values())


@dataclass
class Row:
    """What became of one command, or of one call, in all."""

    times: int = 0
    killed: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)


class Arena:
    """A cache, folders in which commands are run, and what all that happens there is held to.

    Parameters
    ----------
    root : pathlib.Path
    mix : dict of str to Command
    environment : dict of str to str
        For commands, beyond that of this process.
    """

    def __init__(self, root: Path, mix: dict[str, Command], environment: dict[str, str]) -> None:
        self.cache = root / "cache"
        self.root, self.mix = root, mix
        here = str(Path(gpattern_bench.__file__).parents[1])  # the package that is imported here
        self.environment = os.environ | environment | {CACHE: str(self.cache), "PYTHONPATH": here}
        self.rows: dict[str, Row] = {name: Row() for name in mix}
        self.wrong: list[str] = []
        self.refusals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def start(self, command: Command, place: Path, logs: Path) -> subprocess.Popen[bytes]:
        """Start a command; what it prints goes to two files, which outlive it."""
        arguments = [sys.executable, "-m", "gpattern_bench", *command.line.split()]
        with (logs / "out").open("wb") as out, (logs / "err").open("wb") as err:
            return subprocess.Popen(  # noqa: S603
                arguments, cwd=place, env=self.environment, stdout=out, stderr=err
            )

    def once(
        self, command: Command, place: Path, kill_after: float | None = None
    ) -> tuple[list[int], list[str], list[str]]:
        """Start it as often as it says, kill one, and wait: exit codes, stdout, stderr."""
        with tempfile.TemporaryDirectory() as folder:
            logs = [Path(folder) / str(k) for k in range(command.starts)]
            for log in logs:
                log.mkdir()
            started = [self.start(command, place, log) for log in logs]
            if kill_after is not None:
                time.sleep(kill_after)
                started[-1].send_signal(signal.SIGKILL)
            codes = []
            for process in started:
                try:
                    codes.append(process.wait(LONGEST_S))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    codes.append(124)
            texts = [
                [
                    text.replace(str(self.cache), "CACHE").replace(str(place), "PLACE")
                    for text in ((log / kind).read_text() for log in logs)
                ]
                for kind in ("out", "err")
            ]
        return codes, texts[0], texts[1]

    def note(self, name: str, problem: str) -> None:
        """Keep, and say, that something was wrong."""
        with self._lock:
            self.rows.setdefault(name, Row()).wrong += 1
            self.wrong.append(f"{name}: {problem}")
        print(f"WRONG: {name}: {problem}", file=sys.stderr, flush=True)

    def excuse(self, text: str) -> None:
        """Count an error that others explain."""
        for reason, pattern in EXCUSES.items():
            if re.search(pattern, text):
                with self._lock:
                    self.refusals[reason] += 1
                return

    def until_done(
        self,
        name: str,
        place: Path,
        wanted: dict[str, str],
        rng: random.Random,
        *,
        kill: bool,
    ) -> None:
        """Run a command as people do who see it killed or refused: again, until it is done."""
        command, row = self.mix[name], self.rows[name]
        shared = place.name == "shared"
        mean = sum(row.seconds) / len(row.seconds) if row.seconds else 3.0
        kill_after = rng.uniform(0, mean) if kill else None
        if command.removed or not shared:
            remove(place, command.makes)
        for _ in range(TRIES):
            began = time.monotonic()
            codes, out, err = self.once(command, place, kill_after)
            with self._lock:
                row.times += 1
                row.killed += -signal.SIGKILL in codes
                if kill_after is None:
                    row.seconds.append(time.monotonic() - began)
            refused = ""
            for code, text in zip(codes, err, strict=True):
                # What is there already is not made, and nobody is warned, again.
                # The second of two starts of run-all says that it waits for the first.
                lines = [line for line in text.splitlines() if _TOLD.search(line)]
                told = {line for line in lines if not line.endswith(_WAITS)}
                if code == 0 and told <= set(wanted["stderr"].splitlines()):
                    continue
                if code == -signal.SIGKILL and kill_after is not None:
                    continue
                if code not in (1, 2) or "Traceback" in text or not excused(text):
                    self.note(name, f"in {place.name}, exit code {code}, stderr:\n{text}")
                    return
                refused = text
                self.excuse(text)
            kill_after = None
            if 0 in codes:
                try:
                    found = self.result(command, place, out[codes.index(0)])
                except FileNotFoundError:
                    if not (command.removed and shared):
                        raise
                    found = wanted  # somebody makes it anew
                for what in wanted:
                    if what != "stderr" and found[what] != wanted[what]:
                        self.note(name, f"in {place.name}, {what} has other bytes than alone")
                return
            if refused:
                row.refused += 1
                if command.removed:
                    remove(place, command.makes)
                time.sleep(rng.uniform(0.1, 1))
        self.note(name, f"refused {TRIES} times, the last time:\n{refused}")

    @staticmethod
    def result(command: Command, place: Path, stdout: str) -> dict[str, str]:
        """What is compared of a command that is done."""
        found = {name: digest_of(place / name) for name in command.makes}
        return found | {"stdout": stdout if command.prints else ""}


def remove(place: Path, names: tuple[str, ...]) -> None:
    """Remove files and folders, whether or not they are there."""
    subprocess.run(["rm", "-rf", *names], cwd=place, check=False)  # noqa: S603, S607


def reference(
    arena: Arena, calls: dict[str, Callable[[Path], str]]
) -> tuple[Path, dict[str, dict[str, str]], dict[str, str]]:
    """Run everything alone, once: the folder, what commands give, what calls give."""
    place = arena.root / "shared"
    give(place / "given")
    wanted: dict[str, dict[str, str]] = {}
    for name, command in arena.mix.items():
        if command.first is not None:
            command.first(place, wanted)
        alone = replace(command, starts=1)
        began = time.monotonic()
        codes, out, err = arena.once(alone, place)
        arena.rows[name].seconds.append(time.monotonic() - began)
        if codes != [0]:
            raise SystemExit(f"{command.line} alone: exit code {codes[0]}\n{err[0]}")
        wanted[name] = arena.result(command, place, out[0]) | {"stderr": err[0]}
    with pool(1, arena) as alone_pool:
        known = {name: alone_pool.submit(call, place).result() for name, call in calls.items()}
    return place, wanted, known


def pool(processes: int, arena: Arena) -> ProcessPoolExecutor:
    """Processes that have done nothing before and use the cache of an arena."""
    os.environ[CACHE] = str(arena.cache)  # as new processes begin
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def sample() -> dict[str, float]:
    """What this process has now."""
    status = Path("/proc/self/status").read_text()

    def of(key: str) -> int:
        return int(re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]

    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {
        "rss_mib": of("VmRSS") / 1024,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": of("Threads"),
        "children": sum(map(len, children)),
    }


def live(
    k: int,
    calls: dict[str, Callable[[Path], str]],
    known: dict[str, str],
    places: tuple[Path, ...],
    seconds: float,
    seed: int,
) -> tuple[dict[str, Row], list[tuple[float, dict[str, float]]], list[str]]:
    """Use the API for some time, every call in turn: rows, samples after each call, problems."""
    rng = random.Random(f"{seed} worker {k}")  # noqa: S311
    rows: dict[str, Row] = {name: Row() for name in calls}
    samples: list[tuple[float, dict[str, float]]] = []
    wrong: list[str] = []
    began = time.monotonic()
    names = list(calls)  # the first is load_dataset, from an empty cache
    while time.monotonic() < began + seconds:
        for name in names:
            row, started, problem = rows[name], time.monotonic(), ""
            for _ in range(TRIES):
                row.times += 1
                try:
                    if calls[name](rng.choice(places)) != known[name]:
                        problem = "other values than alone"
                    break
                except GPatternBenchError as error:
                    if not excused(str(error)):
                        problem = repr(error)
                        break
                    row.refused += 1
                    time.sleep(rng.uniform(0.1, 1))
                except Exception:  # noqa: BLE001 - any other is what is looked for
                    problem = traceback.format_exc()
                    break
            else:
                problem = f"refused {TRIES} times"
            if problem:
                row.wrong += 1
                wrong.append(f"worker {k}, {name}: {problem}")
            row.seconds.append(time.monotonic() - started)
            samples.append((time.monotonic() - began, sample()))
        rng.shuffle(names)
    return rows, samples, wrong


def grown(samples: list[tuple[float, dict[str, float]]], calls: int) -> list[str] | None:
    """What a process has more of in the last quarter of the time than in the second.

    None if it is too short to tell: in the second quarter, and in the last, not every call was
    made.
    """
    end = max(when for when, _ in samples)

    def most(low: float, high: float) -> dict[str, float] | None:
        found = [values for when, values in samples if low * end <= when <= high * end]
        if len(found) < calls:
            return None
        return {key: max(values[key] for values in found) for key in found[0]}

    before, after = most(0.25, 0.5), most(0.75, 1)
    if before is None or after is None:
        return None
    limits = {key: before[key] + 2 for key in ("files", "threads", "children")}
    limits["rss_mib"] = before["rss_mib"] + max(0.05 * before["rss_mib"], 30)
    return [
        f"{key} grew from {before[key]:.0f} to {after[key]:.0f}"
        for key, limit in limits.items()
        if after[key] > limit
    ]


def marked(mark: str) -> Iterator[int]:
    """Processes that were started here and still run, but for this one's."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            continue


def contend(
    minutes: float,
    processes: int,
    seed: int,
    base: Path,
    mix: dict[str, Command],
    calls: dict[str, Callable[[Path], str]],
    killed: int,
) -> tuple[Arena, dict[str, Row], list[dict[str, Any]]]:
    """Make the reference, contend, and compare; one of `killed` commands is."""
    mark = uuid.uuid4().hex
    before = Arena(base / "reference", mix, {})
    began = time.monotonic()
    place, wanted, known = reference(before, calls)
    print(f"alone, {len(mix)} commands and {len(calls)} calls: {time.monotonic() - began:.0f} s")
    arena = Arena(base / "contended", mix, {MARK: mark})
    for name, row in before.rows.items():
        arena.rows[name].seconds.extend(row.seconds)  # until there are others: when to kill
    workers = max(1, processes // 2)
    drivers = max(1, processes - workers)
    places = [arena.root / name for name in ("shared", *(f"own-{k}" for k in range(drivers)))]
    for each in places:
        shutil.copytree(place, each)
        remove(each, ("answer-cosmx",))  # names the folder of the release
    until = time.monotonic() + 60 * minutes
    datasets = [name for name in ("synthetic", "u2os_gold") if (before.cache / name).is_dir()]
    deck: list[str] = []  # of all drivers: none is drawn again before all were

    def drive(k: int) -> None:
        rng = random.Random(f"{seed} driver {k}")  # noqa: S311
        name = "download"
        for n in count(k):
            if time.monotonic() >= until:
                break
            where = rng.choice((places[0], places[k + 1]))
            arena.until_done(name, where, wanted[name], rng, kill=n % killed == 0)
            if rng.random() < 0.15:
                gone = rng.choice(datasets)
                remove(arena.cache, (f"{gone}/{find_entry(gone).version}",))
                with arena._lock:
                    arena.rows.setdefault("rm -rf CACHE/NAME/VERSION", Row()).times += 1
            with arena._lock:
                if not deck:
                    deck.extend(n for n, command in mix.items() for _ in range(command.weight))
                    rng.shuffle(deck)
                name = deck.pop()

    with pool(workers, arena) as living, ThreadPoolExecutor(drivers) as threads:
        left = until - time.monotonic()
        futures = [
            living.submit(live, k, calls, known, (places[0],), left, seed) for k in range(workers)
        ]
        for driver in [threads.submit(drive, k) for k in range(drivers)]:
            driver.result()
        lived = [future.result() for future in futures]
    settle(arena, before, places, wanted, mark)
    rows: dict[str, Row] = {name: Row() for name in calls}
    reports = []
    for k, (of_worker, samples, wrong) in enumerate(lived):
        for name, one in of_worker.items():
            row = rows[name]
            row.times, row.refused = row.times + one.times, row.refused + one.refused
            row.wrong, row.seconds = row.wrong + one.wrong, row.seconds + one.seconds
        arena.wrong += wrong
        growth = grown(samples, len(calls))
        arena.wrong += [f"worker {k}: {text}" for text in growth or ()]
        reports.append(worker_row(k, samples) | {"grown": growth})
    for name in mix:
        del arena.rows[name].seconds[:1]
    return arena, rows, reports


def settle(
    arena: Arena, before: Arena, places: list[Path], wanted: dict[str, Any], mark: str
) -> None:
    """Look at what is left when all is over."""
    waited = time.monotonic() + 60
    while (still := list(marked(mark))) and time.monotonic() < waited:
        time.sleep(0.5)
    if still:
        arena.note("processes", f"{len(still)} outlive the killed commands by a minute")
    rng = random.Random(0)  # noqa: S311
    for name in wanted:
        if name.startswith(("download", "verify", *REAL)):
            arena.until_done(name, places[0], wanted[name], rng, kill=False)
    for place in places:  # the next start removes what a killed one leaves
        if any(place.glob("all/*/*/shards-*")):
            name = "run-all, two starts"
            arena.until_done(name, place, wanted[name], rng, kill=False)
        name = "call, of a release"
        if name in wanted and not (place / "answer-cosmx" / "answer.json").is_file():
            arena.until_done(name, place, wanted[name], rng, kill=False)
    for problem in differences(tree(arena.cache), tree(before.cache)):
        if ".fetch/" not in problem:
            arena.note("cache", problem)
    kills = sum(row.killed for row in arena.rows.values())
    left: set[str] = set()
    for place in places:
        for problem in differences(tree(place), tree(before.root / "shared")):
            name = problem.removesuffix(" is left over")
            found = _LEFT.search(name) if name != problem else None
            if found:
                left.add(f"{place.name}/{name[: found.end()]}")
            else:
                arena.note(place.name, problem)
    print(f"left by {kills} killed commands: {len(left)} files or folders .NAME-xxxxxxxx")
    if len(left) > 2 * kills:  # a command writes one at a time, in a folder of the same kind
        arena.note("files", f"left over are {', '.join(sorted(left))}")


def worker_row(k: int, samples: list[tuple[float, dict[str, float]]]) -> dict[str, Any]:
    """A worker's memory and what else it has, at a quarter, at half and at the end."""
    end = max(when for when, _ in samples)
    found: dict[str, Any] = {"worker": k, "calls": len(samples)}
    for label, share in (("1/4", 0.25), ("1/2", 0.5), ("end", 1.0)):
        values = [v for when, v in samples if when <= share * end] or [samples[0][1]]
        found[f"MiB at {label}"] = round(values[-1]["rss_mib"], 1)
    for key in ("files", "threads", "children"):
        found[f"{key} at the end"] = samples[-1][1][key]
    return found


def table(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Rows as they are printed."""
    return [
        {
            "": name,
            "times": row.times,
            "killed": row.killed,
            "refused": row.refused,
            "wrong": row.wrong,
            "seconds": sum(row.seconds) / len(row.seconds) if row.seconds else None,
        }
        for name, row in rows.items()
    ]


def main() -> int:
    """Contend; print tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Several processes on one cache.")
    parser.add_argument("--minutes", type=float, help="default 30; with --quick 0.05")
    parser.add_argument("--processes", type=int, help="default 6; with --quick 3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few commands, in seconds")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    minutes = options.minutes or (0.05 if options.quick else 30.0)
    processes = options.processes or (3 if options.quick else 6)
    mix = dict(QUICK if options.quick else FULL)
    if os.environ.get(MIRROR) and not options.quick:
        mix |= REAL
    with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
        base = Path(folder).resolve()
        arena, calls, workers = contend(
            minutes,
            processes,
            options.seed,
            base,
            mix,
            QUICK_CALLS if options.quick else FULL_CALLS,
            killed=2 if options.quick else 5,
        )
    commands = table(arena.rows)
    for rows in (commands, table(calls), workers):
        print(tabulate(rows, "keys", tablefmt="github", floatfmt=".1f"), end="\n\n")
    for reason, times in arena.refusals.items():
        print(f"refused, because of {reason}: {times}")
    for problem in arena.wrong:
        print(f"WRONG: {problem}")
    found = {
        "minutes": minutes,
        "processes": processes,
        "seed": options.seed,
        "commands": commands,
        "calls": table(calls),
        "workers": workers,
        "refusals": arena.refusals,
        "not_drawn": [name for name in mix if not arena.rows[name].times],
        "wrong": arena.wrong,
    }
    report(found, options.record)
    return int(bool(arena.wrong))


if __name__ == "__main__":
    sys.exit(main())
