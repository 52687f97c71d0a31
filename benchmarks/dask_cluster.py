"""Where the time of `run-all --cluster` goes, and what many samples would take.

A local Dask cluster of two workers with one thread each, its scheduler in a process of its own,
runs methods on tables as large as `cosmx_lung`, one after the other. Seconds by the clock:

- *fit* and *start, files* (hash the tables, prediction files from shards) are the main process;
- *predict* is from the first task's start to the last one's end, by Dask's task stream. The time of
  the workers in it is divided into *scoring* (by the run's own report), *rest of tasks* (load the
  model, write the shard), *transfer* (pack, send and unpack, by Dask's counters) and *idle*:
  waiting for the scheduler, and at the end for each other.

*Bytes sent* are those of a task, *received* those of its result: tables, models and scores go
through files. What the scheduler takes for a task is measured with empty ones. Many samples are
multiplied from these parts: in each run-all, what the main process does is one after the other, and
what workers do is divided by their number.

The last line is one JSON object. Rerun: `python benchmarks/dask_cluster.py` (fifteen minutes),
`--tables FOLDER` (of `simulate --like cosmx_lung`, not drawn again), `--quick` (30 cells).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time, time
from typing import Any

import psutil
from distributed import Client, LocalCluster
from timing import parsed, report, show

from gpattern_bench.base.workers import in_order, workers
from gpattern_bench.curate.build import curate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.runs.run_all import run_all
from gpattern_bench.runs.shards import cut_shards
from gpattern_bench.sources.patterns import THREE_PATTERNS
from gpattern_bench.sources.recipe import Recipe

SPAWN = multiprocessing.get_context("spawn")
WORKERS = 2
METHODS, QUICK = ["gene_prior", "sprawl", "ella", "bento"], ["sprawl"]
SAMPLES = (1, 10, 100)
EMPTY = {False: 1000, True: 50}  # tasks
CORES, AT_ONCE = 64, 8  # of the projection; run-alls at a time
TRANSFER = {"serialize", "deserialize", "compress", "decompress", "network"}


def main() -> None:
    """Run the methods, print the tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Where the time of run-all --cluster goes.")
    parser.add_argument("--quick", action="store_true", help="few cells, one method")
    parser.add_argument("--methods", help=f"default: {','.join(METHODS)}")
    parser.add_argument("--splits", default="train,val,test", help="what to predict")
    parser.add_argument("--tables", type=Path, help="folder; default: drawn")
    parser.add_argument("--tmp", type=Path, help="folder for the files, which are removed")
    options = parsed(parser)
    methods = QUICK if options.quick else METHODS
    if options.methods:
        methods = options.methods.split(",")
    with tempfile.TemporaryDirectory(dir=options.tmp) as name:
        folder, tables = Path(name), options.tables
        if tables is None:
            tables = folder / "tables"
            draw(tables, 30 if options.quick else None)
        dataset = Dataset(tables)
        ours, theirs = SPAWN.Pipe()
        cluster = SPAWN.Process(target=serve, args=(theirs,))
        cluster.start()
        try:
            address = ours.recv()
            with Client(address) as client:
                rows = [
                    measure(client, address, method, dataset, folder, options.splits)
                    for method in methods
                ]
                empty = nothing(address, cluster.pid, EMPTY[options.quick])
        finally:
            ours.send("stop")
            cluster.join()
    counts = dataset.counts
    show([{key: row[key] for key in row if key not in DETAILS} for row in rows])
    show([{"method": row["method"]} | {key: row[key] for key in DETAILS} for row in rows])
    show([empty])
    samples = projected(rows, empty)
    show(samples)
    found = {"counts": counts, "methods": rows, "empty": empty, "samples": samples}
    report(found, options.record)


def draw(out: Path, cells: int | None) -> None:
    """Make tables as large as `cosmx_lung`."""
    recipe = Recipe(
        format="simulated", like="cosmx_lung", patterns=THREE_PATTERNS, seed=1, n_cells=cells
    )
    curate(recipe, Path(), out, name="cosmx_lung_simulated", version="0.0.0")


def serve(pipe: Connection) -> None:
    """Hold a cluster until told to stop."""
    with LocalCluster(
        n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        pipe.send(cluster.scheduler_address)
        pipe.recv()


# Measuring

DETAILS = ("tasks", "bytes sent", "bytes received", "main CPU s", "workers CPU s")


def measure(
    client: Client, address: str, method: str, dataset: Dataset, out: Path, splits: str
) -> dict[str, Any]:
    """Run a method on the cluster; where its time went."""
    client.get_task_stream()  # from now on
    before, of_workers = counters(client), workers_cpu(client)
    began, clock, cpu = time(), perf_counter(), process_time()
    [outcome] = run_all([method], dataset, out, splits=splits.split(","), cluster=address)
    seconds, cpu = perf_counter() - clock, process_time() - cpu
    if outcome.outcome != "done":
        raise SystemExit(f"{method}: {outcome.why}")
    spans = [
        (step["start"], step["stop"])
        for task in client.get_task_stream(start=began)
        for step in task["startstops"]
        if step["action"] == "compute"
    ]
    predict = max(stop for _, stop in spans) - min(start for start, _ in spans)
    found = {key: value - before.get(key, 0) for key, value in counters(client).items()}
    run = out / method / dataset.name / "run-seed0.json"
    spent = json.loads(run.read_text())["seconds"]
    scoring = sum(value for what, value in spent.items() if what != "fit")
    computing = sum(stop - start for start, stop in spans)
    transfer = sum(
        value for key, value in found.items() if key[-1] == "seconds" and TRANSFER & set(key)
    )
    moved = sum(value for key, value in found.items() if key[-1] == "bytes")
    shards = cut_shards(dataset, splits.split(",")[-1], per_cell=True)
    return {
        "method": method,
        "seconds": seconds,
        "fit": spent.get("fit", 0.0),
        "predict": predict,
        "start, files": seconds - spent.get("fit", 0.0) - predict,
        "scoring": scoring,
        "rest of tasks": computing - scoring,
        "transfer": transfer,
        "idle": WORKERS * predict - computing - transfer,
        "tasks": len(spans),
        "bytes sent": sum(map(len, map(pickle.dumps, shards))) / len(shards),
        "bytes received": moved / len(spans),
        "main CPU s": cpu,
        "workers CPU s": workers_cpu(client) - of_workers,
    }


def nothing(address: str, scheduler: int | None, tasks: int) -> dict[str, Any]:
    """What an empty task takes."""
    with workers(None, address) as pool:
        began, cpu = perf_counter(), cpu_of(scheduler)
        for _ in in_order(pool, abs, ((k,) for k in range(tasks))):
            pass
        seconds, cpu = perf_counter() - began, cpu_of(scheduler) - cpu
    return {
        "empty tasks": tasks,
        "ms of a task": 1000 * seconds / tasks,
        "CPU ms of the scheduler": 1000 * cpu / tasks,
    }


def counters(client: Client) -> dict[tuple[str, ...], float]:
    """Dask's counters of what its workers did, so far."""
    found = client.run_on_scheduler(
        lambda dask_scheduler: list(dask_scheduler.cumulative_worker_metrics.items())
    )
    return {key: value for key, value in found if isinstance(key, tuple)}


def workers_cpu(client: Client) -> float:
    """Processor seconds of the workers, so far."""
    return float(sum(client.run(cpu_of).values()))


def cpu_of(pid: int | None = None) -> float:
    """Processor seconds of a process (this one), so far."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def projected(rows: list[dict[str, Any]], empty: dict[str, Any]) -> list[dict[str, Any]]:
    """What samples like this one take, by all methods: hours."""
    serial = sum(row["fit"] + row["start, files"] for row in rows)
    parallel = sum(row["scoring"] + row["rest of tasks"] + row["transfer"] for row in rows)
    used = sum(row["main CPU s"] + row["workers CPU s"] for row in rows)
    scheduled = sum(row["tasks"] for row in rows) * empty["CPU ms of the scheduler"] / 1000
    hour = 3600.0
    return [
        {
            "samples": n,
            "CPU h": n * used / hour,
            f"h, {WORKERS} workers": n * (serial + parallel / WORKERS) / hour,
            f"h, {CORES} workers": n * (serial + parallel / CORES) / hour,
            f"h, {CORES} workers, {AT_ONCE} at a time": (
                -(-n // AT_ONCE) * (serial + parallel * min(n, AT_ONCE) / CORES) / hour
            ),
            "CPU s of the scheduler": n * scheduled,
        }
        for n in SAMPLES
    ]


if __name__ == "__main__":
    main()
