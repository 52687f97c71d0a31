"""`run`, killed at some point: what is left is whole, and the next one gives the same bytes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from samples import apart, small_dataset

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.runs.run import run_method

pytestmark = pytest.mark.slow

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path

    import pyarrow.parquet as pq
    import accelerate, sklearn.ensemble, torch._dynamo  # once, not in each child

    from gpattern_bench.data.dataset import Dataset
    from gpattern_bench.methods import _forest
    from gpattern_bench.methods.gpsnet import method as gpsnet
    from gpattern_bench.methods.gpsnet.config import TRAININGS
    from gpattern_bench.runs.run import run_method

    tables, folder, *cases = sys.argv[1:]
    _forest._TREES = 30  # all as the fixture `brief_training` makes it
    gpsnet.steps_for = lambda cells: min(8, cells)
    TRAININGS["small"] = replace(TRAININGS["small"], epochs=1)

    def killing(function, call):
        seen = []
        def wrapped(*arguments, **options):
            seen.append(1)
            if len(seen) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return wrapped

    def run(method, point, call, out):
        if point == "a step of the fit":
            torch.optim.AdamW.step = killing(torch.optim.AdamW.step, call)
        elif point == "a half-written file":
            pq.ParquetWriter.close = killing(pq.ParquetWriter.close, call)
        else:
            Path.replace = killing(Path.replace, call)
        run_method(method, Dataset(Path(tables)), out)

    for case in cases:
        method, point, call = case.split(",")
        if not (child := os.fork()):
            run(method, point, int(call), Path(folder) / case)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, case
    """
)

CASES = [  # and how many files are left
    ("bento", "a half-written file", 1, 0),
    ("bento", "a renaming", 4, 1),  # of two: the files are written, one has its name
    ("gpsnet", "a step of the fit", 3, 0),
    ("gpsnet", "a renaming", 7, 1),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"), n_fovs=10)


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


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory) -> Path:
    """A folder with one of each case, killed -9."""
    folder = tmp_path_factory.mktemp("killed")
    cases = [f"{method},{point},{call}" for method, point, call, _ in CASES]
    done = apart("-c", SCRIPT, dataset.folder, folder, *cases)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("method", "point", "call", "left"), CASES)
def test_leaves_whole_files_and_is_made_good_by_the_next(
    dataset, undisturbed, brief_training, killed, method, point, call, left
):
    out = killed / f"{method},{point},{call}"
    found = files(out)
    assert len(found) == left
    assert found.items() <= undisturbed[method].items()
    assert not list(out.rglob("run-seed*"))  # the report is last
    run_method(method, dataset, out)
    assert files(out) == undisturbed[method]
