"""Fresh processes, seconds and memory: what the benchmarks of this folder measure with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import nan
from pathlib import Path
from typing import Any

from tabulate import tabulate

__all__ = ["fresh", "here", "resident", "show", "told"]


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
