"""Work in other processes, here and on Dask: the bytes, errors and warnings of one process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tifffile
from tasks import WORK, killed, squared, unless_odd

from gpattern_bench import load_dataset
from gpattern_bench.base.workers import in_order, workers
from gpattern_bench.board.metadata import Metadata
from gpattern_bench.board.submission import read_submissions, rescore, results_text
from gpattern_bench.board.submit import listed_files
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate import cells as simulate
from gpattern_bench.curate.simulate import releases as simulated
from gpattern_bench.curate.simulate.cells import simulate_like
from gpattern_bench.curate.simulate.releases import write_bento_h5ad, write_cosmx
from gpattern_bench.errors import PredictionError, SourceError, TableError, WorkersError
from gpattern_bench.methods import get_method
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import write_predictions
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import find_entry

pytestmark = pytest.mark.slow

COSMX = Recipe(
    format="cosmx",
    path="flat",
    patterns=("cytoplasmic", "membrane", "nuclear"),
    unit_um=0.18,
    controls="NegPrb",
)


@pytest.fixture(params=["processes", "dask"])
def where(request) -> dict[str, object]:
    """What has work done by two processes of this machine, or by a cluster."""
    if request.param == "processes":
        return {"jobs": 2}
    return {"jobs": None, "cluster": request.getfixturevalue("dask_cluster")}


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Releases of a size are small, and so are the images of CosMx."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "WIDTH", 3000)
        patch.setattr(simulated, "HEIGHT", 150)
        for like, size in {
            "cosmx_lung": {"n_fovs": 4, "n_cells": 150, "n_genes": 30},
            "u2os": {"n_fovs": 4, "n_cells": 20, "n_genes": 12},
        }.items():
            patch.setitem(simulate._SIZES, like, replace(simulate._SIZES[like], **size))
        yield


@pytest.fixture(scope="module")
def flat(small, tmp_path_factory) -> Path:
    """CosMx flat files of four fields of view."""
    return write_cosmx(simulate_like("cosmx_lung", 4), tmp_path_factory.mktemp("cosmx") / "flat")


@pytest.fixture(scope="module")
def single(flat, tmp_path_factory) -> dict[str, bytes]:
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("single") / "out"
    return everything(curate(COSMX, flat.parent, folder, name="c", version="0.0.0"))


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def calls(where, function, numbers):
    with workers(where["jobs"], where.get("cluster")) as backend:
        yield from in_order(backend, function, ((x,) for x in numbers))


class TestInOrder:
    def test_results_of_other_processes_in_the_order_of_the_tasks(self, where):
        results = list(calls(where, squared, range(20)))
        assert [square for square, _ in results] == [x * x for x in range(20)]
        assert os.getpid() not in {process for _, process in results}

    def test_one_job_is_this_process(self):
        assert set(calls({"jobs": 1}, squared, [2, 3])) == {(4, os.getpid()), (9, os.getpid())}

    def test_first_error_comes_after_what_was_before_it(self, where, caplog):
        found = []
        with pytest.raises(TableError) as caught:
            found.extend(calls(where, unless_odd, [0, 2, 1, 3, 5]))
        # Later ones fail sooner.
        assert caught.value.subject == "table 1"
        assert caught.value.problems == ("one problem", "another")
        assert found == [0, 2]
        told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == WORK]
        assert told == [("WARNING", f"about {x}") for x in (0, 2, 1)]

    def test_an_error_of_what_makes_the_tasks(self, where):
        def numbers():
            yield from range(0, 20, 2)
            raise SourceError("the csv ends")

        found = calls(where, unless_odd, numbers())
        assert [next(found) for _ in range(10)] == list(range(0, 20, 2))
        with pytest.raises(SourceError, match="the csv ends"):
            next(found)

    def test_a_worker_that_dies(self, where):
        with pytest.raises(WorkersError, match="a worker died"):
            list(calls(where, killed, range(2)))


class TestCuration:
    """What stops the workers comes last: it takes time until new ones have imported all."""

    def test_of_an_archive(self, flat, single, tmp_path, where):
        path = write_cosmx(simulate_like("cosmx_lung", 4), tmp_path / "sources", archive=True)
        recipe = COSMX.model_copy(update={"path": path.name})
        folder = curate(recipe, path.parent, tmp_path / "out", name="c", version="0.0.0", **where)
        found = everything(folder)
        assert len(found) == 5
        assert {name: found[name] for name in found if name != "manifest.json"} == {
            name: single[name] for name in single if name != "manifest.json"
        }
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sources"]

    @pytest.fixture(scope="class")
    @classmethod
    def real(cls, shared, tmp_path_factory) -> dict[str, bytes]:
        """What one process makes of the real extract."""
        entry, folder = find_entry("cosmx_lung_mini"), tmp_path_factory.mktemp("real") / "one"
        return everything(
            curate(entry.recipe, shared, folder, name=entry.name, version=entry.version)
        )

    def test_of_the_real_extract(self, shared, real, tmp_path, where):
        entry = find_entry("cosmx_lung_mini")
        folder = curate(
            entry.recipe,
            shared,
            tmp_path / "mini",
            name=entry.name,
            version=entry.version,
            pinned=entry.content_sha256,
            **where,
        )
        assert everything(folder) == real

    @pytest.fixture(scope="class")
    @classmethod
    def cells(cls, small, tmp_path_factory) -> tuple[Path, list[tuple[Recipe, dict[str, bytes]]]]:
        """Sources, recipes, and what one process makes of them."""
        folder = tmp_path_factory.mktemp("cells")
        drawn = Recipe(format="simulated", like="u2os", patterns=simulate.PATTERNS, seed=3)
        write_bento_h5ad(simulate_like("u2os", 3), folder / "cells.h5ad", simulate.PATTERNS)
        read = Recipe(format="bento-h5ad", path="cells.h5ad", patterns=simulate.PATTERNS)
        made = [
            curate(recipe, folder, folder / recipe.format, name="s", version="1")
            for recipe in (drawn, read)
        ]
        return folder, list(zip((drawn, read), map(everything, made), strict=True))

    def test_of_simulated_cells_and_of_what_is_in_memory(self, cells, tmp_path, where):
        sources, made = cells
        for recipe, one in made:
            out = tmp_path / recipe.format
            several = curate(recipe, sources, out, name="s", version="1", **where)
            assert everything(several) == one

    def test_the_command(self, flat, single, tmp_path, where, cli):
        words = ["curate", "cosmx", flat, "--unit-um", 0.18, "--controls", "NegPrb", "--name", "c"]
        words += ["--out", tmp_path / "out"]
        words += ["--jobs", 2] if where["jobs"] else ["--cluster", where["cluster"]]
        code, err = cli(*words)
        assert code == 0, err
        assert everything(tmp_path / "out") == single

    def test_an_error_is_that_of_one_process(self, flat, tmp_path, where):
        folder = Path(shutil.copytree(flat, tmp_path / "sources" / "flat"))
        for fov in (2, 4):
            [image] = folder.rglob(f"CellLabels_F00{fov}.tif")
            tifffile.imwrite(image, tifffile.imread(image) + 0.5)
        texts = []
        for how in ({}, where):
            with pytest.raises(SourceError, match=r"F002\.tif is not a label image") as caught:
                curate(COSMX, folder.parent, tmp_path / "out", name="c", version="1.0.0", **how)
            texts.append(str(caught.value))
            assert [path.name for path in tmp_path.iterdir()] == ["sources"]
        assert texts[0] == texts[1]

    def test_a_writer_that_fails_stops_the_workers(self, flat, tmp_path, where):
        with pytest.raises(TableError, match="differs from the registry"):
            curate(
                COSMX,
                flat.parent,
                tmp_path / "out",
                name="c",
                version="1.0.0",
                pinned={"cells": "0" * 64},
                **where,
            )
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def submitted(tmp_path_factory) -> Path:
    """Submissions of scores of `synthetic`, one with val."""
    folder = tmp_path_factory.mktemp("clone") / "submissions"
    dataset = load_dataset("synthetic")
    runs = {"sprawl": ["test", "val"], "gene_prior": ["test"], "molecule_count": ["test"]}
    for name, splits in runs.items():
        method = get_method(name)
        if method.about.learns:
            method.fit(dataset.iter_cells("train"), 0)
        for split in splits:
            scores = predict_cells(method, dataset.iter_cells(split), bar=False)
            path = folder / name / "predictions" / "synthetic" / f"{split}-seed0.parquet"
            protocol = "fit" if method.about.learns else "untrained"
            write_predictions(path, scores, dataset, split, method=name, protocol=protocol)
        metadata = Metadata.of(method.about).with_files(tuple(listed_files(folder / name)))
        metadata.write(folder / name)
    return folder


@pytest.fixture(scope="module")
def rescored(submitted) -> list[str]:
    """What one process finds."""
    found = [submission.rescored()[0] for submission in read_submissions(submitted)]
    assert [len(results) for results in found] == [1, 1, 1]
    return [results_text(results) for results in found]


@pytest.fixture(scope="module")
def damaged(submitted, tmp_path_factory) -> tuple[Path, str]:
    """The same with two files that lack pairs, and what one process says of them."""
    folder = Path(shutil.copytree(submitted, tmp_path_factory.mktemp("bad") / "submissions"))
    for name in ("molecule_count", "sprawl"):
        path = folder / name / "predictions" / "synthetic" / "test-seed0.parquet"
        pq.write_table(pq.read_table(path).slice(7), path)
    with pytest.raises(PredictionError, match="molecule_count") as caught:
        rescore(read_submissions(folder))
    return folder, str(caught.value)


class TestRescoring:
    def test_the_command_gives_the_results_of_one_process(
        self, submitted, rescored, where, tmp_path, monkeypatch, cli
    ):
        words = ["--jobs", "2"] if where["jobs"] else ["--cluster", where["cluster"]]
        shutil.copytree(submitted, tmp_path / "several")
        monkeypatch.chdir(tmp_path)  # where no worker of a cluster is
        options = ["--submissions", "several", "--out", "board", "--rescore", *words]
        code, err = cli("leaderboard", *options)
        assert code == 0, err
        files = sorted((tmp_path / "several").rglob("results.json"))
        assert [path.read_text() for path in files] == rescored

    def test_an_error_is_that_of_one_process(self, damaged, where):
        folder, text = damaged
        with pytest.raises(PredictionError) as caught:
            rescore(read_submissions(folder), **where)
        assert str(caught.value) == text

    def test_workers_without_rescoring_are_wrong_usage(self, cli):
        code, err = cli("leaderboard", "--jobs", "2")
        assert code == 2
        assert "--rescore" in err
