"""Seconds until datasets are there, from an empty cache, and until the demo has shown its board.

Real sets are measured where GPATTERN_BENCH_MIRROR is set, else left out.

Rerun: `python benchmarks/datasets.py` (minutes), or `--quick` (`synthetic` only, seconds).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timing import parsed, report, show

from gpattern_bench import load_dataset
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.fetch import MIRROR
from gpattern_bench.sources.registry import find_entry


def cost(what: str, task: Callable[[], object]) -> dict[str, Any]:
    """Seconds of a call by the clock and of the processor, those of its processes included."""
    clock, before = time.perf_counter(), os.times()
    task()
    clock, after = time.perf_counter() - clock, os.times()
    cpu = sum(after[:4]) - sum(before[:4])  # user and system, here and in children
    return {"what": what, "seconds": round(clock, 3), "cpu_s": round(cpu, 3)}


def main() -> None:
    """Measure; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="`synthetic` only, without the demo")
    options = parsed(parser)
    quick = options.quick
    seed = find_entry("synthetic").recipe.seed
    rows = [cost("simulate, `synthetic`", lambda: simulate(seed))]
    with tempfile.TemporaryDirectory() as folder:
        names = ["synthetic"] if quick else ["synthetic", "synthetic_wide"]
        if os.environ.get(MIRROR) and not quick:
            names += ["nih3t3_gold", "u2os_gold", "u2os_sample"]
        elif not quick:
            print(f"{MIRROR} is not set: real datasets are left out")
        for name in names:
            made = partial(load_dataset, name, root=folder)
            rows.append(cost(f'`load_dataset("{name}")`', made))
        if not quick:
            out = str(Path(folder) / "demo")
            demo = [sys.executable, "-m", "gpattern_bench", "demo", "--out", out]
            environment = os.environ | {CACHE: str(Path(folder) / "empty")}
            run = partial(subprocess.run, demo, env=environment, check=True, capture_output=True)
            rows.append(cost("`gpattern-bench demo`: ten methods", run))
    show(rows)
    report({"rows": rows}, options.record)


if __name__ == "__main__":
    main()
