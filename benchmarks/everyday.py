"""What everybody does every day: loading and commands, also on a busy machine.

Two parts, each with a table; the last line is one JSON object with every figure.

*Startup*: whole processes on cached tables, in seconds of the processor (user + system).

*Busy*: `run boosted` and `demo` by the clock, alone and with one busy process on each processor;
with `--quick` a command that is soon done.

`--before CHECKOUT` measures another checkout of this project too, in turn with this one; `--parts`
chooses parts. Rerun: `python benchmarks/everyday.py` (ten minutes), or `--quick` (seconds).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timing import parsed, report, show

HERE = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "gpattern_bench"]
PREDICTIONS = HERE / "submissions" / "sprawl" / "predictions" / "synthetic" / "test-seed0.parquet"
PARTS = ("startup", "busy")
PYTHON = {
    'load_dataset("synthetic")': "gpattern_bench.load_dataset('synthetic')",
    'Evaluator("synthetic")': "gpattern_bench.Evaluator('synthetic')",
}
COMMANDS = {
    "list": ["list"],
    "info": ["info", "synthetic"],
    "evaluate": ["evaluate", str(PREDICTIONS), "--dataset", "synthetic"],
}


def main() -> None:
    """Run the parts, print their tables, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="Benchmark of everyday work.")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="measure this one too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="once, small, not warmed up, no demo")
    options = parsed(parser)
    homes = {"before": options.before.resolve()} if options.before else {}
    homes["now"] = HERE
    repeats = options.repeats
    busy = {"run boosted": ["run", "boosted", "--dataset", "synthetic"], "demo": ["demo"]}
    if options.quick:
        repeats = 1
        busy = {"datasheet": ["datasheet", "synthetic"]}
    with tempfile.TemporaryDirectory() as folder:
        if not options.quick:
            os.environ["GPATTERN_BENCH_DATA"] = str(Path(folder) / "data")
            for home in homes.values():  # tables made, all compiled
                spent([*COMMAND, *COMMANDS["evaluate"]], home, folder)
                if "busy" in options.parts:
                    spent([*COMMAND, *busy[next(iter(busy))], "--out", "warm"], home, folder)
        parts = {
            "startup": lambda: startup(homes, repeats, folder),
            "busy": lambda: contended(homes, busy, folder),
        }
        found = {name: parts[name]() for name in options.parts}
    report(found, options.record)


def startup(homes: dict[str, Path], repeats: int, folder: str) -> list[dict[str, Any]]:
    """Seconds of the processor of whole processes, the median of some runs."""
    commands = {name: [sys.executable, "-c", PYTHON[name]] for name in PYTHON}
    for command in commands.values():
        command[2] = f"import gpattern_bench; {command[2]}"
    commands |= {name: [*COMMAND, *COMMANDS[name]] for name in COMMANDS}
    rows = []
    for name, command in commands.items():
        runs: dict[str, list[float]] = {which: [] for which in homes}
        for _ in range(repeats):
            for which, home in homes.items():
                runs[which].append(spent(command, home, folder)[1])
        medians = {f"{which} (s)": statistics.median(runs[which]) for which in homes}
        rows.append({"whole process": name, **medians})
    show(rows)
    return rows


def contended(
    homes: dict[str, Path], commands: dict[str, list[str]], folder: str
) -> list[dict[str, Any]]:
    """Seconds by the clock, alone and with as many busy processes as processors."""
    rows = []
    for name, arguments in commands.items():
        for which, home in homes.items():
            call = [*COMMAND, *arguments, "--out"]
            quiet = spent([*call, f"{which}-quiet-{name}"], home, folder)
            with busy_processors():
                busy = spent([*call, f"{which}-busy-{name}"], home, folder)
            row = {"command": name, "checkout": which, "quiet (s)": quiet[0], "busy (s)": busy[0]}
            cpu = {"quiet (cpu s)": quiet[1], "busy (cpu s)": busy[1]}
            rows.append(row | {"ratio": busy[0] / quiet[0]} | cpu)
    show(rows)
    return rows


def spent(command: list[str], home: Path, folder: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor of a command of a checkout."""
    known = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    known["PYTHONPATH"] = str(home)
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, cwd=folder, env=known, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    clock, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system
    return clock, used - before.children_user - before.children_system


@contextmanager
def busy_processors() -> Iterator[None]:
    """Have one process that never waits on each processor."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]  # noqa: S603
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
