"""The golden numbers: computed by an independent script on the real files, never to change.

Metrics to 1e-4, SPRAWL's to 2e-3 (upstream breaks rank ties by chance), counts exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.sprawl.method import median_rank_variance, peripheral_central
from gpattern_bench.runs.run import run_method

PATTERNS = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")


@pytest.fixture
def u2os(mirror: Path) -> Dataset:
    return load_dataset("u2os_gold")


@pytest.fixture
def nih3t3(mirror: Path) -> Dataset:
    return load_dataset("nih3t3_gold")


COUNTS = {
    "nih3t3_gold": {
        "cells": 15,
        "genes": 161,
        "molecules": 25_869,
        "pairs": 1_708,
        "labelled_pairs": 164,
    },
    "u2os_gold": {
        "cells": 15,
        "genes": 130,
        "molecules": 174_523,
        "pairs": 1_937,
        "labelled_pairs": 192,
    },
    "u2os_sample": {"cells": 15, "genes": 130, "molecules": 220_725},
    "cosmx_lung_mini": {
        "cells": 120,
        "genes": 960,
        "molecules": 18_783,
        "pairs": 11_648,
        "labelled_pairs": 11_648,
    },
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(mirror: Path, name: str) -> None:
    counts = load_dataset(name).counts
    assert {key: counts[key] for key in COUNTS[name]} == COUNTS[name]


def test_labels_of_nih3t3(nih3t3: Dataset) -> None:
    assert nih3t3.manifest.counts.patterns == {
        "cell_edge": 9,
        "cytoplasmic": 125,
        "nuclear": 6,
        "nuclear_edge": 21,
        "none": 6,
        "several": 3,
    }
    assert nih3t3.manifest.dropped == {"molecules": {}, "cells": {}, "labels": {}}


def test_labels_of_u2os(u2os: Dataset) -> None:
    assert u2os.manifest.counts.patterns == {
        "cell_edge": 9,
        "cytoplasmic": 28,
        "nuclear": 33,
        "nuclear_edge": 33,
        "none": 100,
        "several": 11,
    }


def test_cosmx_lung_mini(mirror: Path) -> None:
    dataset = load_dataset("cosmx_lung_mini")
    assert dataset.manifest.counts.patterns == {
        "nuclear": 7_651,
        "cytoplasmic": 3_412,
        "membrane": 993,
        "several": 444,
        "none": 36,
    }
    # 25,825 rows, of which 18,965 in cells, 182 of them of negative probes.
    dropped = dataset.manifest.dropped
    assert dropped["molecules"] == {"outside every cell": 6_860, "control target": 182}
    assert dropped["cells"] == {}
    assert dataset.split_of == {"2": "test", "3": "train"}
    labels = dataset.labels()
    assert (labels["n_molecules"] == 1).mean() == pytest.approx(0.76, abs=0.005)
    cells = dataset.cells()
    assert (~cells["touches_border"].astype(bool)).sum() == 85
    assert [shape.geom_type for shape in cells["cell_boundary"]].count("MultiPolygon") == 1
    assert cells["nucleus_boundary"].isna().all()


def test_every_dropped_row_of_u2os_has_a_reason(u2os: Dataset) -> None:
    assert u2os.manifest.dropped == {
        "molecules": {"control target": 304},
        "cells": {},
        # 403 rows of the csv = 165 + 238; 238 = 22 duplicates + 22 without molecules + 194 that
        # join; of these, 2 are of control targets. (The 23rd duplicate is an NIH/3T3 row.)
        "labels": {
            "row of another dataset": 165,
            "duplicate row": 22,
            "pair without molecules": 22,
            "control target": 2,
        },
    }


def test_u2os_outlines_and_pairs(u2os: Dataset) -> None:
    cells = u2os.cells()
    assert cells["cell_boundary"].notna().sum() == 15
    assert cells["nucleus_boundary"].notna().sum() == 13
    pairs = u2os.molecules().group_by(["cell_id", "gene"]).aggregate([([], "count_all")])
    assert sum(n >= 5 for n in pairs["count_all"].to_pylist()) == 1_830


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_molecules_lie_inside_their_own_outline(mirror: Path, name: str) -> None:
    inside = [
        # 1e-3 um: coordinates are stored as float32, and some molecules lie on the outline
        shapely.dwithin(shapely.points(cell.xy), cell.boundary, 1e-3)
        for cell in load_dataset(name).iter_cells()
    ]
    # The rest lie at the edge of the crops that the masks of cosmx_lung_mini are.
    expected = 0.9986 if name == "cosmx_lung_mini" else 1
    assert np.concatenate(inside).mean() == pytest.approx(expected, abs=2e-4)


METRICS = [  # dataset, method, auc, f1, acc, ap, tolerance
    ("u2os_gold", "sprawl", 0.5467, 0.3045, 0.4896, 0.1762, 2e-3),
    ("u2os_gold", "molecule_count", 0.348587, 0.236983, 0.170573, 0.108764, 1e-4),
    ("nih3t3_gold", "sprawl", 0.6845, 0.5576, 0.7027, 0.4492, 2e-3),
    ("nih3t3_gold", "molecule_count", 0.474074, 0.351858, 0.649390, 0.265324, 1e-4),
]


@pytest.mark.parametrize(("name", "method", "auc", "f1", "acc", "ap", "tolerance"), METRICS)
def test_metrics_of_methods(
    mirror: Path,
    tmp_path: Path,
    name: str,
    method: str,
    auc: float,
    f1: float,
    acc: float,
    ap: float,
    tolerance: float,
) -> None:
    dataset = load_dataset(name)
    (path,) = run_method(method, dataset, tmp_path)
    result = Evaluator(dataset).eval(path)
    got = [result[f"{metric}_macro"] for metric in ("auc", "f1", "acc", "ap")]
    assert got == pytest.approx([auc, f1, acc, ap], abs=tolerance)


@pytest.mark.parametrize(("name", "floor"), [("u2os_gold", 0.232691), ("nih3t3_gold", 0.316678)])
def test_floor(mirror: Path, name: str, floor: float) -> None:
    evaluator = Evaluator(name)
    pairs = evaluator.labels[["cell_id", "gene"]]
    result = evaluator.eval(pairs.assign(**dict.fromkeys(PATTERNS, 1.0)))
    assert result["auc_macro"] == 0.5
    assert result["f1_macro"] == pytest.approx(floor, abs=1e-6)


def test_published_forest_of_bento(u2os: Dataset, shared: Path) -> None:
    scores = pd.read_parquet(shared / "reference" / "bento_proba.parquet")
    scores = scores.rename(columns={"cell": "cell_id"} | {f"p_{p}": p for p in PATTERNS})
    evaluator = Evaluator(u2os)
    keys = ["cell_id", "gene"]
    pairs = evaluator.labels[keys].astype(str)
    result = evaluator.eval(pairs.merge(scores[[*keys, *PATTERNS]], on=keys))
    got = [result[f"{metric}_macro"] for metric in ("auc", "f1", "acc", "ap")]
    assert got == pytest.approx([0.752625, 0.455999, 0.825521, 0.370138], abs=1e-6)
    expected = {
        "auc": [0.647237, 0.680205, 0.863541, 0.819516],
        "f1": [0.222222, 0.351648, 0.657534, 0.592593],
        "acc": [0.854167, 0.692708, 0.869792, 0.885417],
    }
    for metric, values in expected.items():
        got = [result.per_pattern[pattern][metric] for pattern in PATTERNS]
        assert got == pytest.approx(values, abs=1e-6)


SPRAWL = {  # cell, gene -> molecules, peripheral, central
    ("10-0", "AFAP1"): (17, 0.610589, -0.202660),
    ("13-0", "TLN1"): (384, 0.254563, -0.250194),
    ("14-0", "AFF4"): (69, -0.066420, -0.167748),
}


def test_values_of_sprawl(u2os: Dataset) -> None:
    found = {}
    for cell in u2os.iter_cells():
        peripheral, central = peripheral_central(cell)
        for k, code in enumerate(cell.genes):
            pair = cell.cell_id, u2os.genes[code]
            if pair in SPRAWL:
                found[pair] = int(cell.counts[k]), peripheral[k], central[k]
    assert found.keys() == SPRAWL.keys()
    for pair, values in SPRAWL.items():
        assert found[pair] == pytest.approx(values, abs=1e-4)


def test_null_variance_of_sprawl() -> None:
    m, n = 17, 7_684
    variance = median_rank_variance(pd.array([m]).to_numpy(int), n)[0]
    assert variance == pytest.approx((n + 1) * (n - m) / ((m + 2) * (n - 1) ** 2), rel=1e-14)
