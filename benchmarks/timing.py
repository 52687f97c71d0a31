"""What the benchmarks of this folder measure with, and how they tell and record what they found.

A record is ``results/<script>.json``: the figures, and which code found them, where and beside
how much other work. `docs/performance.py` makes the tables of `docs/performance.md` of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from math import nan
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gpattern_bench.base.files import plain, write_text
from gpattern_bench.base.version import __version__

__all__ = ["about", "fresh", "here", "parsed", "report", "resident", "show", "told"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numba", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "shapely", "torch")


def code() -> str | None:
    """The commit of this checkout, with "-dirty" if more than results and pages differs from it."""
    root, apart = RESULTS.parents[1], ("docs", "*.md", "benchmarks/results")

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        changes = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in apart))
        return git("rev-parse", "HEAD") + "-dirty" * bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy that is no checkout


# Taken before anything is measured; a child of the script has no say in it.
STARTED: dict[str, Any] = {}
if multiprocessing.parent_process() is None:
    STARTED = {
        "commit": code(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, to which `--record` is added: not beside `--quick`."""
    parser.add_argument(
        "--record", action="store_true", help="write what is found to benchmarks/results"
    )
    options = parser.parse_args()
    if options.record and getattr(options, "quick", False):
        parser.error("figures of --quick mean nothing: --record needs the full size")
    return options


def report(found: dict[str, Any], record: bool) -> None:
    """Print what a script found as JSON, in one line, and record it.

    Parameters
    ----------
    found : dict
        Figures. `versions` in it are of packages beside those that are always named.
    record : bool
        Write it to ``results/<script>.json``, too.
    """
    whole = found | {"benchmark": Path(sys.argv[0]).stem} | about()
    whole["versions"] |= found.get("versions", {})
    whole = plain(whole)
    if record:
        path = RESULTS / f"{whole['benchmark']}.json"
        write_text(path, json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(json.dumps(whole, allow_nan=False), flush=True)


def about() -> dict[str, Any]:
    """Say which code measures, on which day and machine, beside how much other work."""
    return {**STARTED, "machine": machine(), "versions": versions()}


def machine() -> dict[str, Any]:
    """Describe this machine: its processors and its memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures rest on."""
    found = {"python": platform.python_version(), "gpattern-bench": __version__}
    return found | {name: version(name) for name in PACKAGES}


def fresh(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own that has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def here(function: Callable[..., Any], *args: Any) -> Any:
    """Call it in this process: what `--quick` does, for which the figures need mean nothing."""
    return function(*args)


def resident(reset: bool = False) -> tuple[float, float]:
    """Bytes of this process in memory, now and at most (since the last reset); NaN if not told."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return nan, nan
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}
    return 1024.0 * kib["VmRSS"], 1024.0 * kib["VmHWM"]


def told(value: float) -> float | None:
    """A figure as JSON can hold it."""
    return None if value != value else value


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table of rows with the same keys."""
    table = tabulate(rows, "keys", tablefmt="github", floatfmt=".3g", intfmt=",", missingval="-")
    print(table, end="\n\n", flush=True)
