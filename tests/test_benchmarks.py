"""The benchmarks run and say what they must; never how long anything took."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from samples import PATIENCE_S, REPORTED

from gpattern_bench.evaluate.bootstrap import Resamples
from gpattern_bench.methods.boosted import method as boosted
from gpattern_bench.methods.gpsnet import method as gpsnet
from gpattern_bench.runs.saved_model import load_model

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "evaluator.py"
SCORES = {
    "n", "dtype", "ours_s", "sklearn_s", "sklearn_ap_s", "torchmetrics_s", "ratio_sklearn",
    "ratio_torchmetrics", "bytes_per_row", "max_difference", "torchmetrics_auc_difference",
}  # fmt: skip
JOIN = {
    "rows", "evaluator_s", "eval_s", "total_s", "cpu_s", "before_gib", "peak_gib", "file_mib",
}  # fmt: skip


def run(command: list[object]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout


@pytest.fixture
def folder(monkeypatch):
    """The scripts can be imported: each in a process of its own would import torch again."""
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)  # those of later tests


@pytest.fixture
def quick(folder, monkeypatch, capsys):
    """Run a script with `--quick`: what it printed."""

    def run(name: str, *options: object) -> str:
        monkeypatch.setattr("sys.argv", [f"{name}.py", "--quick", *map(str, options)])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    return run


def last(output: str) -> dict[str, Any]:
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def output() -> str:
    """Of the evaluator."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.syspath_prepend(BENCHMARK.parent)
        patch.setattr("sys.argv", ["evaluator.py", "--quick"])
        importlib.import_module("evaluator").main()
    return printed.getvalue()


def test_the_last_line_is_json_with_every_figure(output):
    def fail(name: str):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(output.splitlines()[-1], parse_constant=fail)
    assert set(found) == REPORTED | {"scores", "compile_s", "join"}
    assert [(row["n"], row["dtype"]) for row in found["scores"]] == [
        (n, dtype) for n in (1_000, 10_000) for dtype in ("float32", "float64")
    ]
    assert all(set(row) == SCORES for row in found["scores"])
    assert set(found["join"]) == JOIN
    assert found["join"]["rows"] == 10_000


def test_the_numbers_are_those_of_scikit_learn(output):
    rows = last(output)["scores"]
    assert all(0 <= row["max_difference"] <= 1e-12 for row in rows)


def test_there_is_a_table_for_every_part(output):
    assert "scikit-learn (s)" in output
    assert "The first call ever also compiles" in output
    assert "peak_gib" in output


def test_releases_are_drawn_written_curated_and_loaded(quick, tmp_path):
    found = last(quick("data", "--tmp", tmp_path))
    assert set(found) == REPORTED | {"drawing", "writing", "curating", "loading"}
    drawn, [release, tables] = found["drawing"][0], found["curating"]
    assert (drawn["cells"], drawn["genes"]) == (80, 48)
    assert release["molecules"] == drawn["molecules"]  # outside cells and controls come on top
    assert tables["molecules"] == drawn["molecules"]
    assert release["labelled_pairs"] < tables["labelled_pairs"]  # 5 molecules or more
    assert list(tmp_path.iterdir()) == []


def test_ranking_games_are_measured(quick):
    found = last(quick("games"))
    [copy] = found["copies"]
    assert copy["flagged"]
    assert {row["compared with"] for row in found["nearest"]} >= {
        "another method",
        "a variant of it",
    }
    flipped, mixed = found["near_labels"]
    assert flipped["auc_macro"] < 0.999 < flipped["auc_macro"] + 0.002
    assert mixed["f1_macro"] < flipped["f1_macro"]
    assert len(found["new_cells"]) == 1


@pytest.fixture(scope="module")
def costs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARK.parent)
        yield importlib.import_module("costs")


def test_costs_have_points_and_exponents_along_every_axis(quick, costs, tmp_path):
    output = quick("costs", "--tmp", tmp_path)
    found = last(output)
    points = found["points"]
    assert [row["what"] for row in found["call"]] == ["call", "of this, curation"]
    assert all(row["cells"] == 30 and row["cpu_s"] > 0 for row in found["call"])
    of_all = {"curation", "evaluation", "evaluation with intervals", "predict, gene_prior"}
    assert {(point["what"], point["axis"]) for point in points} == {
        *((what, axis) for what in of_all for axis in ("base", *costs.AXES)),
        *(("fit, gene_prior", axis) for axis in ("base", *costs.AXES[1:])),
    }
    base = {point["what"]: point for point in points if point["axis"] == "base"}
    for point in points:
        assert point["cpu_s"] > 0
        for axis in costs.AXES:  # the others are as they were
            grown = point[axis] / base[point["what"]][axis]
            assert grown == pytest.approx(1 + (point["axis"] == axis), rel=0.1)
    lines = output.splitlines()
    cells = next(line.split("|")[4] for line in lines if line.startswith("| curation "))
    of_curation = [point for point in points if point["what"] == "curation"]
    assert float(cells) == pytest.approx(costs.exponent(of_curation, "cells", "cpu_s"), rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_an_exponent_is_that_of_the_power_law(costs):
    points = [
        {"axis": axis, "cells": 100 * k, "genes": 7, "cpu_s": 0.1 * k**1.5, "peak_mib": 1.0 * k}
        for axis, k in (("base", 1), ("cells", 2), ("cells", 4))
    ]
    assert costs.exponent(points, "cells", "cpu_s") == pytest.approx(1.5)
    assert costs.exponent(points, "cells", "peak_mib") is None  # too little to be told from noise
    assert costs.exponent(points, "genes", "cpu_s") is None  # a single point


def test_the_small_network_is_trained_scored_and_used(quick):
    found = last(quick("gpsnet_small"))
    small, unknown, upright, trees = found["scores"]
    assert set(small) == set(upright) == {"model", "fit_s", "fit_cpu_s", "test_s", "auc", "f1"}
    assert small["auc"] not in (unknown["auc"], upright["auc"])  # each is another model
    assert 0.7 < trees["auc"] < 0.95  # trees learn from little; a network in one epoch hardly
    assert (found["prediction"]["cells"], found["prediction"]["pairs"]) == (40, 1_822)


def test_attention_and_its_rivals_are_timed_and_agree(quick):
    printed = quick("gpsnet", "--repeats", "1")
    found = last(printed)
    own = {"forward", "backward", "growth", "small_cells", "whole_model", "threads"}
    assert set(found) == REPORTED | own
    assert set(found["forward"]["ratios"]) == {"gather", "full", "masked"}
    parts = [found["forward"], found["backward"][0], *found["whole_model"]]
    assert all(part["difference"] <= 1e-5 for part in parts)
    assert "187 M" in printed


def test_gpsnet_and_its_rival_are_trained_alike_and_compared(quick, monkeypatch, tmp_path):
    for module, name in ((gpsnet, "steps_for"), (boosted, "_TREES"), (boosted, "_ROUNDS")):
        monkeypatch.setattr(module, name, getattr(module, name))  # the script changes them
    parts = ["simulation", "calibration", "absence", "speed", "ablation"]
    found = last(quick("gpsnet_real", "--out", tmp_path, "--jobs", "1", "--parts", *parts))
    rows = {row["method"]: row for row in found["simulation"]}
    assert set(rows) == {"gpsnet", "boosted"}
    assert rows["boosted"]["AUC"] > 80
    low, high = (
        float(part) for part in rows["gpsnet"]["AUC - boosted"][:-1].split("[")[1].split(",")
    )
    assert low < rows["gpsnet"]["AUC"] - rows["boosted"]["AUC"] < high
    assert {row["method"] for row in found["calibration"]} == set(rows)
    for row in found["calibration"]:
        low, high = (float(part) for part in row["ECE all"][:-1].split("[")[1].split(","))
        assert 0 <= low < high < 0.5
        assert 0 < row["F1 at val thresholds"] <= rows[row["method"]]["F1"] + 0.1
    changed = {row["cells have"]: row["AUC"] for row in found["absence"]}
    assert changed["both outlines"] == rows["gpsnet"]["AUC"]
    assert len(set(changed.values())) == 4
    assert [row["setting"] for row in found["ablation"]] == ["gpsnet"]
    assert [row["cells"] for row in found["speed"]] == [40, 40, 40]
    for method in rows:
        assert (tmp_path / method / "synthetic" / "test-seed0.parquet").is_file()


def test_calls_are_measured_against_labels(quick):
    found = last(quick("calls"))
    ways = {row["probabilities"]: row for row in found["calibration"]}
    assert ways["logistic"]["Brier"] < ways["as they are"]["Brier"]  # val has the same settings
    assert found["reliability"][0]["pairs"] > 5_000  # most scores are low
    first, *others = [row for row in found["thresholds"] if row["table"] == "synthetic"]
    assert len(others) == 4
    assert first["F1 - first"] == "+0.000 [+0.000, +0.000]"
    assert all(0.5 < row["sensitivity"] < row["specificity"] < 1 for row in found["values"])
    counted, *_, likeliest, _ = found["quantification"][:8]
    assert likeliest["error"] < counted["error"]  # as text: both begin with 0.
    assert likeliest["its interval holds the share"] > 0.9
    called, sure = found["discoveries"]
    assert sure["called"] < called["called"]
    few, *_, many = [row for row in found["molecules"] if row["table"] == "synthetic"]
    assert few["calls right"] < many["calls right"]
    assert found["abstention"][0]["left"] == 1 > found["abstention"][1]["left"]


def test_calibration_is_that_of_the_pairs_one_by_one(folder):
    real = importlib.import_module("gpsnet_real")
    rng = np.random.default_rng(0)
    truth, scores = rng.random((60, 2)) < 0.3, rng.random((60, 2)).astype(np.float32)
    scores[:2] = 0, 1  # both ends have a bin
    cells = np.repeat([f"c{k}" for k in range(12)], 5)
    resamples = Resamples.draw(pd.DataFrame({"fov": "all", "cell_id": cells}), replicates=3)
    found = real.calibration_errors(truth, scores, resamples)
    draws = [np.ones(12, int), *resamples.weights.astype(int)]
    for row, weight in zip(found, draws, strict=True):
        pairs = np.repeat(np.arange(60), weight[resamples.of_pair])  # as drawn
        columns = [(scores[pairs, k], truth[pairs, k]) for k in range(2)]
        both = tuple(np.concatenate(part) for part in zip(*columns, strict=True))
        for error, (score, label) in zip(row, [both, *columns], strict=True):
            expected = 0.0
            for low in range(15):
                inside = (score >= low / 15) & ((score < (low + 1) / 15) | (low == 14))
                if inside.any():
                    gap = abs(score[inside].mean(dtype=float) - label[inside].mean())
                    expected += inside.mean() * gap
            assert error == pytest.approx(expected, abs=1e-6)


def test_the_whole_benchmark_goes_from_files_to_a_board(tmp_path):
    command = [sys.executable, str(BENCHMARK.with_name("full.py")), "--quick"]
    kept, work = tmp_path / "kept.json", tmp_path / "work"
    work.mkdir()
    rows = [{"step": "curate", "failed": "as before"}, {"step": "before", "seconds": 1.0}]
    before = {"counts": {}, "steps": rows, "methods": [], "jobs": [], "sessions": [{}]}
    kept.write_text(json.dumps({"cosmx_lung": before}))
    found = last(run([*command, "--tmp", work, "--keep", kept]))
    assert json.loads(kept.read_text()) == {"cosmx_lung": found["cosmx_lung"]}
    found = found["cosmx_lung"]
    assert found["bytes"]["source"] > found["bytes"]["tables"] > found["bytes"]["predictions"] > 0
    first, *others = found["steps"]
    assert first == rows[1]
    steps = {step["step"]: step for step in others}
    assert list(steps) == [
        "curate", "call", "run-all, again", "evaluate oracle", "submit (2)",
        "score, 1,000 replicates", "board",
    ]  # fmt: skip
    assert all(step["seconds"] > 0 and step["peak_gib"] > 0 for step in steps.values())
    prevalence, oracle, sprawl = found["methods"]
    assert prevalence["auc"] == 0.5 < sprawl["auc"]
    assert "auc" not in oracle  # evaluated where it cannot be submitted
    assert sprawl["pairs_per_s"] > 0
    rows = [(row["jobs"], row["start"]) for row in found["jobs"]]
    assert rows == [(1, "first"), (2, "first"), (2, "again")]
    assert found["jobs"][-1]["left"] >= 1  # shards that SIGKILL did not undo
    assert {
        row["session"] for part in (others, *map(found.get, ("methods", "jobs"))) for row in part
    } == {1}
    assert found["sessions"][1].keys() == {"commit", "date", "load_at_start", "machine", "versions"}
    assert list(work.iterdir()) == []


def test_the_time_of_a_cluster_is_divided(tmp_path):
    pytest.importorskip("distributed", reason="Dask is not installed")
    command = [sys.executable, BENCHMARK.with_name("dask_cluster.py"), "--quick"]
    found = last(run([*command, "--tmp", tmp_path]))
    [row] = found["methods"]
    assert row["tasks"] == found["counts"]["fovs"] == 3  # one a split
    of_workers = ("scoring", "rest of tasks", "transfer", "idle")
    assert all(row[name] > 0 for name in of_workers[:2])
    assert sum(row[name] for name in of_workers) == pytest.approx(2 * row["predict"])
    assert row["bytes received"] < 1_000  # scores go through files
    assert found["empty"]["ms of a task"] > 0
    one, ten, _ = found["samples"]
    assert ten["CPU h"] == pytest.approx(10 * one["CPU h"])
    assert list(tmp_path.iterdir()) == []


def test_everyday_work_is_measured_in_two_parts(quick):
    found = last(quick("everyday"))
    assert [row["whole process"] for row in found["startup"]] == [
        'load_dataset("synthetic")', 'Evaluator("synthetic")', "list", "info", "evaluate",
    ]  # fmt: skip
    assert all(row["now (s)"] > 0 for row in found["startup"])
    [row] = found["busy"]
    assert row["busy (s)"] / row["quiet (s)"] == pytest.approx(row["ratio"])


def test_methods_are_timed_on_drawn_cells(quick):
    found = last(quick("methods"))
    assert [row["what"] for row in found["drawn"]] == [
        "bento features", "sprawl peripheral", "sprawl punctate", "sprawl radial", "ella fit",
        "locfish features",
    ]  # fmt: skip
    scored = {row["method"]: row["pairs"] for row in found["scores"]}
    assert len(scored) == 6
    assert set(scored.values()) == {found["drawn"][0]["pairs"]}  # all score every pair


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # compiling takes a minute
def test_peers_are_measured_or_said_to_be_missing(quick, tmp_path):
    output = quick("peers")
    rows = last(output)["rows"]
    measured = {(row["part"], row["peer"]) for row in rows if row["theirs"] is not None}
    here = {"scikit-learn": "evaluator"} | dict.fromkeys(
        ("scipy's cKDTree", "gather", "SDPA, neighbours as a mask", "SDPA, all molecules",
         "FlexAttention"), "attention",
    )  # fmt: skip
    assert measured == {(part, peer) for peer, part in here.items()}
    for row in rows:
        assert row["ours"] > 0
        if row["theirs"] is not None:
            assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
        elif row["peer"] is not None:
            assert row["note"] == "not run: no --peers"
            assert f"{row['what']}, {row['peer']}: not run" in output
        if row["limit"] is not None:
            assert row["share"] == pytest.approx(row["limit"] / row["ours"])
    assert [row["units"] for row in rows if row["part"] == "features"] == [
        *(132, 132), 132, *(44, 44), *(48, 48), *(132, 132)  # pairs; every third cell; genes
    ]  # fmt: skip
    # a program that is not installed is the answer, not the end
    source, target = tmp_path / "cells.json", tmp_path / "found.json"
    source.write_text('{"cells": []}')
    run([sys.executable, BENCHMARK.with_name("upstream.py"), "ella", source, target])
    assert json.loads(target.read_text())["why"].startswith("PackageNotFoundError")


def test_forests_are_fitted_on_train_and_score_val(quick):
    rows = last(quick("forests"))["rows"]
    assert [(row["method"], row["trees"]) for row in rows] == [
        ("bento", 600), ("bento", 300), ("locfish", 600), ("locfish", 300),
    ]  # fmt: skip
    for most, default in zip(rows[::2], rows[1::2], strict=True):
        assert most["AUC - first"] == most["F1 - first"] == 0
        for name in ("AUC", "F1"):
            assert 0.8 < default[name] < 1
            assert default[f"{name} - first"] == default[name] - most[name] != 0


def test_the_bootstrap_is_that_of_numpy_alone(quick):
    found = last(quick("bootstrap"))
    assert found["pairs"] == 20_000
    assert found["largest_difference"] <= 1e-11
    assert [row["pairs"] for row in found["cells"]] == [5_000, 10_000, 20_000]


def test_the_studies_of_intervals_are_found_and_counted():
    command = [sys.executable, str(BENCHMARK.with_name("intervals.py")), "--runs", "4"]
    found = last(run([*command, "--clusters", "20"]))
    assert {study["clusters"] for study in found["studies"]} == {20}
    assert all(0 <= study["covered"] <= 1 for study in found["studies"])


def test_datasets_are_made_from_an_empty_cache(quick):
    rows = last(quick("datasets"))["rows"]
    assert [row["what"] for row in rows] == ["simulate, `synthetic`", '`load_dataset("synthetic")`']
    assert all(row["seconds"] > 0 < row["cpu_s"] for row in rows)


def test_models_of_the_package_are_made_again(quick, tmp_path, brief_training):
    found = last(quick("pretrained", "--only", "gpsnet-cosmx", "--out", tmp_path))
    [(name, card)] = found["models"].items()
    assert json.loads((tmp_path / name / "card.json").read_text()) == card
    assert set(card["thresholds"]) == set(card["rates"]) == {"cytoplasmic", "membrane", "nuclear"}
    assert load_model(tmp_path / name)[1].thresholds == card["thresholds"]


def test_a_device_is_measured_and_its_gradients_checked(quick):
    printed = quick("gpu")
    found = last(printed)
    for row in found["attention"]:
        assert (row["seconds"] is None) == bool(row["why"])
        if row["why"]:
            assert f"{row['attention']}, {row['precision']}: not run, {row['why']}" in printed
    assert found["attention"][0]["gradients apart"] <= 1e-3
    assert found["gradients"]["difference"] <= 1e-4
    assert [(row["training on"], row["steps"]) for row in found["training"]] == [("drawn", 2)]


def test_without_a_device_only_small_sizes_run(folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device here; --quick"):
        importlib.import_module("gpu").main()


@pytest.fixture(scope="module")
def differing():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARK.parent)
        yield importlib.import_module("differential")


def test_expression_fools_means_but_not_the_adjusted(differing):
    [row] = differing.simulator_part(1, differing.OLD_MODEL, 6, 24)
    assert row["without"][0] > 2 * row["with covariates"][0]
    assert row["with covariates"][0] < 0.1


def test_planted_shifts_are_found_and_a_test_over_cells_finds_donors(differing):
    pairs, cells, truth = differing.drawn(1, (5, 5), shifted=0.2, shift=3.0, genes=30, cells=80)
    table = differing.compare(pairs, cells)
    planted = truth["planted"].reindex(table.index) & table["p"].notna()
    hits = table["fdr"] < 0.05
    assert hits[planted].mean() > 0.5
    assert hits[~planted].mean() < 0.1
    null = differing.simple_tests(*differing.drawn(1, (5, 5), genes=30, cells=80)[:2], paired=False)
    assert differing.below(null["welch"]) < 0.1 < differing.below(null["cells"])
