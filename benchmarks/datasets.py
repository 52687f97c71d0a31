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
from pathlib import Path

from tabulate import tabulate
from timing import parsed, report

from gpattern_bench import load_dataset
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.sources.cache import CACHE
from gpattern_bench.sources.fetch import MIRROR
from gpattern_bench.sources.registry import find_entry


def seconds(task) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def main() -> None:
    """Measure; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="`synthetic` only, without the demo")
    options = parsed(parser)
    quick = options.quick
    found = {"simulate, synthetic": seconds(lambda: simulate(find_entry("synthetic").recipe.seed))}
    with tempfile.TemporaryDirectory() as folder:
        names = ["synthetic"] if quick else ["synthetic", "synthetic_wide"]
        if os.environ.get(MIRROR) and not quick:
            names += ["nih3t3_gold", "u2os_gold", "u2os_sample"]
        elif not quick:
            print(f"{MIRROR} is not set: real datasets are left out")
        for name in names:
            found[f"load_dataset, {name}"] = seconds(
                lambda name=name: load_dataset(name, root=folder)
            )
        if not quick:
            out = str(Path(folder) / "demo")
            demo = [sys.executable, "-m", "gpattern_bench", "demo", "--out", out]
            environment = os.environ | {CACHE: str(Path(folder) / "empty")}
            found["demo, whole process"] = seconds(
                lambda: subprocess.run(demo, env=environment, check=True, capture_output=True)  # noqa: S603
            )
    print(tabulate(found.items(), headers=["what", "seconds"], tablefmt="github", floatfmt=".2f"))
    report({"seconds": {k: round(v, 3) for k, v in found.items()}}, options.record)


if __name__ == "__main__":
    main()
