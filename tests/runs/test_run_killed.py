"""`run`, killed at some point: what is left is whole, and the next one gives the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from samples import PATIENCE_S, small_dataset

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.runs.run import run_method

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path

    import pyarrow.parquet as pq

    from gpattern_bench.data.dataset import Dataset
    from gpattern_bench.methods import _forest
    from gpattern_bench.runs.run import run_method

    method, tables, out, point, call = sys.argv[1:]
    seen = []

    def killing(function):
        def wrapped(*arguments, **options):
            seen.append(1)
            if len(seen) == int(call):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped

    _forest._TREES = 30  # all as the fixture `brief_training` makes it
    if method == "gpsnet":
        import torch
        from gpattern_bench.methods.gpsnet import method as gpsnet
        from gpattern_bench.methods.gpsnet.config import TRAININGS
        gpsnet.steps_for = lambda cells: min(8, cells)
        TRAININGS["small"] = replace(TRAININGS["small"], epochs=1)
    if point == "a step of the fit":
        torch.optim.AdamW.step = killing(torch.optim.AdamW.step)
    elif point == "a half-written file":
        pq.ParquetWriter.close = killing(pq.ParquetWriter.close)
    else:
        Path.replace = killing(Path.replace)
    run_method(method, Dataset(Path(tables)), out)
    """
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), n_fovs=20)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory, brief_training) -> dict[str, dict[str, bytes]]:
    found = {}
    for method in ("bento", "gpsnet"):
        out = tmp_path_factory.mktemp(method)
        run_method(method, dataset, out)
        found[method] = files(out)
    return found


def files(folder: Path) -> dict[str, bytes]:
    """All that has its own name, but for what was measured and what a fit keeps to resume."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "run-seed", "training-seed"))
    }


@pytest.mark.parametrize(
    ("method", "point", "call", "left"),
    [
        ("bento", "a half-written file", 1, 0),
        ("bento", "a renaming", 4, 1),  # of two: the files are written, one has its name
        ("gpsnet", "a step of the fit", 3, 0),
        ("gpsnet", "a renaming", 6, 1),
    ],
)
def test_leaves_whole_files_and_is_made_good_by_the_next(
    dataset, undisturbed, brief_training, tmp_path, method, point, call, left
):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, method, dataset.folder, tmp_path, point, str(call)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = files(tmp_path)
    assert len(found) == left
    assert found.items() <= undisturbed[method].items()
    assert not list(tmp_path.rglob("run-seed*"))  # the report is last
    run_method(method, dataset, tmp_path)
    assert files(tmp_path) == undisturbed[method]
