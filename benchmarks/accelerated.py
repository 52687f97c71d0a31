"""GPSNet trained by accelerate's launcher: two processes against one.

The same steps of the same cells, in one process and in two: seconds of a step by the clock and of
the processor, and the losses, which must be the same but for rounding. Two processes share each
step's cells; each computes with one thread. The last line is one JSON object.

Rerun: `python benchmarks/accelerated.py` (a minute), or `--quick` (few steps).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import parsed, report, show

LAUNCHER = (
    "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--cpu",
)  # fmt: skip


def main() -> None:
    """Train, print the table, and all figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description="GPSNet in two processes against one.")
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--dataset", default="synthetic", help="default: synthetic")
    options = parsed(parser)
    steps = 6 if options.quick else 400
    rows = []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(trained(options.dataset, steps, processes, Path(folder)))
    first = rows[0]["losses"]
    for row in rows:
        row["apart"] = max(
            abs(a - b) / a for a, b in zip(first, row["losses"], strict=True)
        )  # relative
    show([{key: row[key] for key in row if key != "losses"} for row in rows])
    report({"ways": rows}, options.record)


def trained(dataset: str, steps: int, processes: int, folder: Path) -> dict[str, Any]:
    """Train with the launcher, as docs/scale.md says."""
    run = (
        "gpattern_bench", "run", "gpsnet", "--dataset", dataset, "--out", str(folder),
        "--set", f"steps={steps}", "--name", "brief",
    )  # fmt: skip
    command = [sys.executable, "-m", *LAUNCHER, "--num_processes", str(processes), "-m", *run]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
    [made] = folder.glob("*/run-seed0.json")
    found = json.loads(made.read_text())
    history = json.loads((made.parent / "model-seed0" / "training.json").read_text())["history"]
    return {
        "processes": processes,
        "steps": steps,
        "ms_per_step": 1000 * found["seconds"]["fit"] / steps,
        "cpu_ms_per_step": 1000 * processes * found["cpu_seconds"]["fit"] / steps,  # of all
        "losses": [row["loss"] for row in history],
    }


if __name__ == "__main__":
    main()
