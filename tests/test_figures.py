"""Figures: what is in them, the same bytes every time, and how wrong input is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from samples import PATIENCE_S, dataset_of, small_dataset
from shapely import box

from gpattern_bench import figures as plots
from gpattern_bench import load_dataset
from gpattern_bench.curate.release import Release
from gpattern_bench.errors import GPatternBenchError, MissingExtraError, PredictionError
from gpattern_bench.predictions import write_predictions
from gpattern_bench.runs.ablation import REPORTED, AblationRow
from gpattern_bench.runs.run import run_method

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.transforms import Bbox


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("synthetic")


@pytest.fixture(scope="module")
def files(dataset, tmp_path_factory):
    """Test predictions of `synthetic`, by method."""
    folder = tmp_path_factory.mktemp("runs")
    names = ("oracle", "sprawl")
    return {name: run_method(name, dataset, folder / name)[-1] for name in names}


@pytest.fixture(scope="module")
def elsewhere(files, tmp_path_factory):
    """What a process with another date, and another order of sets, prints and draws."""
    folder = tmp_path_factory.mktemp("elsewhere")
    given = {"splits": (), "patterns": (), "cell": (str(files["sprawl"]),)}
    outs = {folder / f"{kind}{end}": kind for kind in given for end in plots.SUFFIXES}
    lines = [["plot", kind, "synthetic", *given[kind], "--out", str(p)] for p, kind in outs.items()]
    code = (
        "import json, sys, gpattern_bench.figures\n"
        "from gpattern_bench.cli import main\n"
        "assert 'matplotlib' not in sys.modules\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['x', *line]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        env=os.environ | {"PYTHONHASHSEED": "1", "SOURCE_DATE_EPOCH": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout, list(outs)


@pytest.fixture
def ablation():
    rows = []
    for study, reported in REPORTED.items():
        for k, setting in enumerate(reported["u2os"]):
            paper = {name: found[setting] for name, found in reported.items()}
            score = (0.8 + k / 100, 0.7 + k / 100, 0.6 + k / 100)
            rows.append(AblationRow(study, setting, 320, *score, paper))
    rows += [AblationRow("cells", "all", 320, 0.9, 0.8, 0.7)]
    rows += [AblationRow("cells", "1/2", 160, 0.8, 0.7, 0.6)]
    return json.loads(json.dumps([asdict(row) for row in rows]))


@pytest.fixture
def model(tmp_path):
    """What a plot needs of a model folder."""

    def make(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        history = [
            {"epoch": k, "loss": 1 / k, "val_loss": 1.1 / k, "val_auc": 0.9, "val_f1": None}
            | changes
            for k in (1, 2, 3)
        ]
        (folder / "training.json").write_text(json.dumps({"training": {}, "history": history}))
        about = {"method": "gpsnet", "fitted_on": "synthetic@1.0.0", "seed": 0}
        (folder / "model.json").write_text(json.dumps(about))
        return folder

    return make


def texts(figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def drawn(figure) -> Iterator[tuple[str, Artist]]:
    """Texts, panels' outlines and the scale bar, each with a name of its own."""
    from matplotlib.text import Text

    found = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    found += [axes.lines[0] for axes in figure.axes]
    found += [line for axes in figure.axes for line in axes.lines if not line.get_clip_on()]
    yield from ((f"{k}: {one}", one) for k, one in enumerate(found))


def contains(outer: Bbox, inner: Bbox) -> bool:
    return all(outer.contains(*corner) for corner in inner.corners())


def panel_titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


class TestSplits:
    def test_bars_are_the_cells_of_each_split(self, dataset):
        cells, molecules, genes = plots.plot_splits(dataset).axes
        heights = [bar.get_height() for bar in cells.patches]
        assert heights == [len(dataset.cells(split)) for split in ("train", "val", "test")]
        labels = [axes.get_ylabel() for axes in (cells, molecules, genes)]
        assert labels == ["cells", "molecules per cell", "genes per cell"]

    def test_boxes_have_the_quartiles_and_the_median(self, dataset):
        axes = plots.plot_splits(dataset).axes[1]
        boxes = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches]
        medians = [line[0, 1] for line in axes.collections[1].get_segments()]
        for k, split in enumerate(("train", "val", "test")):
            values = dataset.cells(split)["n_molecules"]
            assert boxes[k] == pytest.approx(tuple(values.quantile([0.25, 0.75])))
            assert medians[k] == values.median()


class TestPatterns:
    def test_shares_add_up_and_are_the_labels(self, dataset):
        [axes] = plots.plot_patterns(dataset).axes
        heights = np.array([bar.get_height() for bar in axes.patches]).reshape(3, -1)
        np.testing.assert_allclose(heights.sum(axis=1), 100)
        test = dataset.labels("test")[list(dataset.patterns)].to_numpy(bool)
        assert heights[2, -1] == pytest.approx(100 * (test.sum(axis=1) == 0).mean())
        assert heights[2, -2] == pytest.approx(100 * (test.sum(axis=1) > 1).mean())
        names = [tick.get_text() for tick in axes.get_xticklabels()]
        assert names == ["cell edge", "cytoplasmic", "nuclear", "nuclear edge", "several", "none"]
        assert axes.get_ylabel() == "labelled pairs (%)"


class TestCell:
    def test_rows_are_genes_and_columns_truth_and_methods(self, dataset, files):
        figure = plots.plot_cell(dataset, predictions=list(files.values()))
        assert len(figure.axes) == 5 * 3
        seen = texts(figure)
        assert {"truth", "oracle", "sprawl", "cell edge", "no pattern", "nucleus"} <= set(seen)
        assert any(text.startswith("5 µm") for text in seen)
        assert any("thresholds of largest F1 on test" in text for text in seen)

    def test_the_oracle_is_right_everywhere(self, dataset, files):
        titles = panel_titles(plots.plot_cell(dataset, predictions=[files["oracle"]]))
        truth, oracle = titles[::2], titles[1::2]
        assert oracle == [f"{text} (right)" for text in truth]
        # One gene per pattern, and one with several.
        assert truth[:4] == ["cell edge", "cytoplasmic", "nuclear", "nuclear edge"]
        assert " + " in truth[4]

    def test_a_pattern_without_a_rule_is_not_called(self, dataset, files):
        titles = panel_titles(plots.plot_cell(dataset, predictions=[files["sprawl"]]))[1::2]
        assert not any("nuclear edge" in text for text in titles)

    def test_cell_and_genes_that_are_asked_for(self, dataset):
        cell = next(iter(dataset.iter_cells("train")))
        genes = [dataset.genes[code] for code in cell.genes[[3, 1]]]
        figure = plots.plot_cell(dataset, cell.cell_id, genes)
        assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes] == genes
        xy = figure.axes[0].lines[-1].get_xydata()
        np.testing.assert_array_equal(xy, cell.xy[cell.gene == cell.genes[3]])

    def test_without_labels_there_are_molecules(self, tmp_path):
        figure = plots.plot_cell(small_dataset(tmp_path, "bare", labels=False))
        assert "molecules" in texts(figure)
        assert not {"truth", "no pattern", "not labelled"} & set(texts(figure))

    @pytest.mark.parametrize("shape", [(40, 4), (4, 40)])
    def test_nothing_overlaps_or_is_cut_off(self, tmp_path, shape):
        """Ids as MERSCOPE gives them, long names, and every pattern called at once."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        width, height = shape
        cell, genes = "208397895882226602091337444681646330990", ("Gene" * 12, "B", "C")
        molecules = pd.DataFrame({"gene": np.repeat(genes, 12), "cell_id": cell}).assign(
            x=np.linspace(0.1, width - 0.1, 36), y=np.linspace(0.1, height - 0.1, 36)
        )
        patterns = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")
        labels = pd.DataFrame({"cell_id": cell, "gene": genes, **dict.fromkeys(patterns, 1)})
        outline = {"cell_boundary": [box(0, 0, width, height)], "nucleus_boundary": [None]}
        cells = pd.DataFrame({"cell_id": cell, "fov": "1", "touches_border": False, **outline})
        made = dataset_of(
            tmp_path / "tables",
            Release(molecules.assign(fov="1"), cells, labels),
            split="test",
            name="a_rather_long_name_of_own",
        )
        method = "a_method_with_a_name_that_is_long"
        scores = made.pairs("test")[["cell_id", "gene"]].assign(
            **dict.fromkeys(patterns, np.float32(0.5))
        )
        paths = [
            write_predictions(tmp_path / f"{k}.parquet", scores, made, "test", method=method)
            for k in range(2)
        ]
        for given in ([], paths):
            figure = plots.plot_cell(made, cell, genes, given)
            FigureCanvasAgg(figure).draw()
            boxes = {name: found.get_window_extent() for name, found in drawn(figure)}
            assert len(boxes) > 4 * (1 + len(given))
            inside = figure.bbox.padded(1)
            assert [name for name, b in boxes.items() if not contains(inside, b)] == []
            overlapping = [
                (one, other)
                for (one, a), (other, b) in combinations(boxes.items(), 2)
                if a.padded(-1).overlaps(b.padded(-1))
            ]
            assert overlapping == []

    def test_patterns_of_any_dataset_have_colours_of_their_own(self, dataset):
        for names in (dataset.patterns, ("nuclear", "membrane", "cytoplasmic"), ("a", "b")):
            other = type("Other", (), {"patterns": names})
            assert len({plots._pattern_colour(other, name) for name in names}) == len(names)

    def test_no_such_cell_or_gene(self, dataset, files):
        with pytest.raises(GPatternBenchError, match=r"no cell 'x' in synthetic.*the first cells"):
            plots.plot_cell(dataset, "x")
        train = next(iter(dataset.iter_cells("train"))).cell_id
        with pytest.raises(GPatternBenchError, match="in test of synthetic"):
            plots.plot_cell(dataset, train, predictions=[files["sprawl"]])
        with pytest.raises(GPatternBenchError, match=r"no molecules of NoGene.*genes with most"):
            plots.plot_cell(dataset, genes=["NoGene"])

    def test_prediction_files_of_two_splits(self, dataset, files):
        both = [files["sprawl"], files["sprawl"].with_name("val-seed0.parquet")]
        with pytest.raises(GPatternBenchError, match="files of one split"):
            plots.plot_cell(dataset, predictions=both)

    def test_prediction_files_that_are_wrong(self, dataset, files, tmp_path):
        with pytest.raises(PredictionError, match="no such file"):
            plots.plot_cell(dataset, predictions=[tmp_path / "no.parquet"])
        other = small_dataset(tmp_path, "other")
        scores = other.pairs("test").assign(**dict.fromkeys(other.patterns, 0.5))
        path = write_predictions(tmp_path / "o.parquet", scores, other, "test", method="m")
        with pytest.raises(PredictionError):
            plots.plot_cell(dataset, predictions=[path])


class TestAblation:
    def test_ours_beside_the_papers(self, ablation):
        figure = plots.plot_ablation(ablation)
        assert len(figure.axes) == 9
        auc = figure.axes[0]
        ours, nih3t3, u2os = (line.get_ydata() for line in auc.lines)
        assert ours[0] == pytest.approx(80)
        assert list(nih3t3) == [row[0] for row in REPORTED["neighbours"]["nih3t3"].values()]
        assert list(u2os) == [row[0] for row in REPORTED["neighbours"]["u2os"].values()]
        assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["AUC (%)", "ACC (%)", "F1 (%)"]
        [legend] = figure.legends
        named = [text.get_text() for text in legend.get_texts()]
        assert named == ["ours", "the paper, nih3t3", "the paper, u2os", "the paper's choice"]

    def test_a_learning_curve_goes_from_few_to_many(self, ablation):
        axes = plots.plot_ablation(ablation).axes[-1]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["160", "320"]
        assert list(axes.lines[0].get_ydata()) == pytest.approx([60, 70])

    def test_undefined_scores_are_gaps(self, ablation):
        ablation[0]["f1"] = None  # as JSON has NaN
        assert np.isnan(plots.plot_ablation(ablation).axes[2].lines[0].get_ydata()[0])

    @pytest.mark.parametrize("rows", [[{"study": "x"}], {"a": 1}, 3, ["x"], None])
    def test_something_else(self, rows):
        with pytest.raises(GPatternBenchError, match="ablation --json"):
            plots.plot_ablation(rows)

    def test_nothing(self):
        with pytest.raises(GPatternBenchError, match="no rows"):
            plots.plot_ablation([])


class TestTraining:
    def test_curves_of_several_runs(self, model):
        figure = plots.plot_training([model("a"), model("b")])
        losses, aucs, f1s = figure.axes
        assert [len(axes.lines) for axes in (losses, aucs, f1s)] == [4, 2, 0]
        assert list(losses.lines[0].get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3])
        assert list(aucs.lines[0].get_ydata()) == pytest.approx([90] * 3)
        assert aucs.get_xlabel() == "epoch"
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(set(named)) == 2  # told apart by their folders

    def test_without_val(self, model):
        folder = model("a", val_loss=None, val_auc=None)
        assert [len(axes.lines) for axes in plots.plot_training([folder]).axes] == [1, 0, 0]

    def test_a_folder_without(self, tmp_path):
        with pytest.raises(GPatternBenchError, match=r"training\.json: no readable"):
            plots.plot_training([tmp_path])

    @pytest.mark.parametrize("text", ["{", "[]", '{"history": 3}', '{"history": [{"epoch": 1}]}'])
    def test_a_damaged_one(self, tmp_path, text):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(GPatternBenchError, match=r"training\.json"):
            plots.plot_training([tmp_path])

    def test_no_folder(self):
        with pytest.raises(GPatternBenchError, match="no model folder"):
            plots.plot_training([])


class TestFiles:
    @pytest.mark.slow
    def test_the_same_bytes_in_another_process(self, elsewhere, command, files, tmp_path):
        told, there = elsewhere
        assert told == "".join(f"{path}\n" for path in there)
        for path in there[-len(plots.SUFFIXES) :]:
            out = tmp_path / path.name
            words = ("plot", "cell", "synthetic", files["sprawl"], "--out", out)
            assert command(*words) == (0, f"{out}\n", "")
            assert out.read_bytes() == path.read_bytes()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["splits", "patterns", "ablation", "training"])
    def test_the_same_bytes_twice_whatever_the_users_settings(
        self, dataset, ablation, model, tmp_path, kind
    ):
        import matplotlib

        given = dataset if kind in ("splits", "patterns") else ablation
        given = [model("a")] if kind == "training" else given
        found = []
        for k, size in enumerate((10, 23)):
            with matplotlib.rc_context({"font.size": size, "axes.grid": size == 23}):
                path = plots.save_figure(
                    getattr(plots, f"plot_{kind}")(given), tmp_path / f"{k}.svg"
                )
            found.append(path.read_bytes())
        assert found[0] == found[1]
        assert found[0].startswith(b"<?xml")

    @pytest.mark.parametrize("name", ["a.jpg", "a", "a.svg.gz"])
    def test_other_kinds_are_refused_and_nothing_is_written(self, dataset, tmp_path, name):
        with pytest.raises(GPatternBenchError, match=r"\.svg, \.pdf, \.png"):
            plots.save_figure(plots.plot_splits(dataset), tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_nothing_half_written(self, dataset, tmp_path, monkeypatch):
        figure = plots.plot_splits(dataset)

        def fail(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr(figure, "savefig", fail)
        with pytest.raises(OSError, match="disk full"):
            plots.save_figure(figure, tmp_path / "a.svg")
        assert not list(tmp_path.iterdir())


class TestMatplotlib:
    @pytest.mark.slow
    def test_is_imported_when_something_is_drawn_and_pyplot_never(self, elsewhere):
        _, there = elsewhere  # where this is asserted
        assert all(path.is_file() for path in there)

    def test_where_it_lacks_the_extra_is_named(self, dataset, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'gpattern-bench\[plots\]'"):
            plots.plot_splits(dataset)
