"""Splits are seeded, FOV-disjoint and stratified; every kind of leak is found."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpattern_bench.curate.splits import SHARES, split_fovs
from gpattern_bench.errors import SourceError
from gpattern_bench.tables.leaks import Read, copied_cells, find_leaks
from gpattern_bench.tables.schema import SPLIT_NAMES

PATTERNS = ["cell_edge", "nuclear"]


def fields(n: int, seed: int = 0) -> pd.DataFrame:
    """FOVs of different size, whose share of each pattern differs a lot."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(5, 30, n)
    pairs = cells * 10
    columns = {name: rng.binomial(pairs, rng.uniform(0.05, 0.6, n)) for name in PATTERNS}
    index = [f"F{i:03d}" for i in range(n)]
    return pd.DataFrame({"cells": cells, "pairs": pairs, **columns}, index=index)


def shares(fovs: pd.DataFrame, split: dict[str, str]) -> pd.DataFrame:
    """Per split: share of the cells, and share of its pairs that has each pattern."""
    sums = fovs.groupby(pd.Series(split)).sum()
    patterns = sums[PATTERNS].div(sums["pairs"], axis=0)
    return patterns.assign(cells=sums["cells"] / sums["cells"].sum()).loc[list(SPLIT_NAMES)]


def disagreement(fovs: pd.DataFrame, split: dict[str, str]) -> float:
    """Largest relative deviation of a split's pattern share from that of all FOVs."""
    overall = fovs[PATTERNS].sum() / fovs["pairs"].sum()
    return float((shares(fovs, split)[PATTERNS] / overall - 1).abs().to_numpy().max())


# Splitting


def test_same_seed_same_split():
    assert split_fovs(fields(30), seed=7) == split_fovs(fields(30), seed=7)


def test_other_seed_other_split():
    assert split_fovs(fields(30), seed=7) != split_fovs(fields(30), seed=8)


def test_order_of_the_fovs_does_not_matter():
    shuffled = fields(30).sample(frac=1, random_state=0)
    assert split_fovs(shuffled, seed=7) == split_fovs(fields(30), seed=7)


def test_order_of_the_columns_does_not_matter():
    columns = [*PATTERNS, "pairs", "cells"]
    assert split_fovs(fields(30)[columns], seed=7) == split_fovs(fields(30), seed=7)


def test_split_is_pinned():
    # A changed draw would make another dataset of the same release and seed.
    table = {"cells": [9, 4, 7, 5, 6], "pairs": [90, 40, 70, 50, 60], "nuclear": [9, 8, 7, 20, 6]}
    fovs = pd.DataFrame(table, index=list("abcde"))
    assert split_fovs(fovs, seed=0) == {
        "a": "train",
        "b": "val",
        "c": "train",
        "d": "train",
        "e": "test",
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_of_cells_are_near_80_10_10(seed):
    fovs = fields(60)
    got = shares(fovs, split_fovs(fovs, seed))["cells"].to_numpy()
    np.testing.assert_allclose(got, SHARES, atol=0.02)


def test_patterns_agree_better_than_in_random_partitions():
    fovs = fields(60)
    rng = np.random.default_rng(0)
    names = np.repeat(SPLIT_NAMES, [48, 6, 6])
    drawn = [
        disagreement(fovs, dict(zip(fovs.index, rng.permutation(names), strict=True)))
        for _ in range(50)
    ]
    assert disagreement(fovs, split_fovs(fovs, 0)) < 0.5 * np.median(drawn)


@settings(max_examples=25)
@given(
    cells=st.lists(st.integers(1, 10_000), min_size=3, max_size=8),
    labelled=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_fov_has_a_split_and_every_split_a_fov(cells, labelled, seed):
    index = [f"F{i}" for i in range(len(cells))]
    fovs = pd.DataFrame({"cells": cells, "pairs": 0}, index=index)
    if labelled:
        fovs = fovs.assign(pairs=[2 * n for n in cells], nuclear=cells, absent=0)
    split = split_fovs(fovs, seed)
    assert sorted(split) == index
    assert set(split.values()) == set(SPLIT_NAMES)


def test_one_huge_fov_goes_to_train():
    fovs = pd.DataFrame({"cells": [1000, 10, 10], "pairs": 0}, index=["big", "b", "c"])
    assert split_fovs(fovs, 0)["big"] == "train"


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_fovs_cannot_be_split(n):
    with pytest.raises(SourceError, match=rf"has {n} \(F000.*--split test"):
        split_fovs(fields(n), 0)


# Leaks


def cloud(
    cell_id: str, fov: str, *, at: tuple[float, float] = (0.0, 0.0), seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A cell and its 40 molecules around a place; the same seed gives the same cloud."""
    rng = np.random.default_rng(seed)
    molecules = pd.DataFrame(
        {
            "fov": fov,
            "cell_id": cell_id,
            "gene": rng.choice(["A", "B", "C"], 40),
            "x": at[0] + rng.integers(-160, 160, 40) / 16,
            "y": at[1] + rng.integers(-160, 160, 40) / 16,
        }
    )
    cells = pd.DataFrame({"fov": [fov], "cell_id": [cell_id], "x": at[0], "y": at[1]})
    return cells, molecules


def whole(molecules: pa.Table) -> Read:
    """Reads all molecules, cell by cell, whatever is asked."""
    names = molecules["cell_id"].cast(pa.string())
    return lambda _: [molecules.filter(pc.equal(names, name)) for name in names.unique()]


def tissue(*clouds: tuple[pd.DataFrame, pd.DataFrame]) -> tuple[pd.DataFrame, pa.Table]:
    cells = pd.concat([cells for cells, _ in clouds], ignore_index=True)
    molecules = pd.concat([molecules for _, molecules in clouds], ignore_index=True)
    return cells, pa.Table.from_pandas(molecules, preserve_index=False)


def leaks(splits: dict[str, str], cells: pd.DataFrame, molecules: pa.Table) -> list[str]:
    return find_leaks(splits, cells, whole(molecules))


SPLITS = {"a": "train", "b": "val", "c": "test"}
SOUND = (cloud("1", "a", seed=1), cloud("2", "b", seed=2), cloud("3", "c", seed=3))


def test_sound_splits_have_no_leaks():
    assert leaks(SPLITS, *tissue(*SOUND)) == []


def test_dictionary_columns_have_no_leaks_either():
    cells, molecules = tissue(*SOUND)
    for i, name in enumerate(("fov", "cell_id", "gene")):
        molecules = molecules.set_column(i, name, molecules[name].dictionary_encode())
    assert leaks(SPLITS, cells, molecules) == []


def test_fov_without_a_split_is_found():
    [problem] = leaks(SPLITS, *tissue(*SOUND, cloud("4", "d", seed=4)))
    assert problem == "fields of view without a split: d"


def test_unknown_split_is_found():
    [problem] = leaks({**SPLITS, "c": "holdout"}, *tissue(*SOUND))
    assert "unknown splits: holdout" in problem
    assert "train, val, test" in problem


def test_cell_id_in_two_splits_is_found():
    [problem] = leaks(SPLITS, *tissue(*SOUND, cloud("1", "c", seed=4)))
    assert problem == "cell ids that occur more than once: 1"


def test_molecules_in_another_fov_than_their_cell_are_found():
    cells, molecules = tissue(*SOUND)
    fov = molecules["fov"].to_pylist()
    fov[0] = "c"
    [problem] = leaks(SPLITS, cells, molecules.set_column(0, "fov", pa.array(fov)))
    assert "in another field of view: 1" in problem


def test_molecules_of_an_unknown_cell_are_called_that():
    cells, molecules = tissue(*SOUND)
    [problem] = leaks(SPLITS, cells.iloc[:2], molecules)
    assert "3" in problem
    assert "in another field of view" not in problem


@pytest.mark.parametrize("at", [(0.0, 0.0), (512.0, -64.25)])
def test_copy_of_a_cell_in_another_split_is_found(at):
    [problem] = leaks(SPLITS, *tissue(*SOUND, cloud("copy", "c", at=at, seed=1)))
    assert "the same molecules in different splits: 1 (train) and copy (test)" in problem


def test_copy_of_a_cell_in_its_own_split_is_no_leak():
    assert leaks(SPLITS, *tissue(*SOUND, cloud("copy", "a", at=(99.0, 0.0), seed=1))) == []


def test_copy_moved_by_an_arbitrary_distance_is_found():
    # As tables hold them: coordinates in float32, the centroid on a grid of 1/1024 um.
    rng = np.random.default_rng(0)
    offsets, genes = rng.uniform(-10, 10, (400, 2)), rng.choice(["A", "B"], 400)

    def cell(cell_id: str, fov: str, at: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
        xy = (at + offsets).astype(np.float32).astype(np.float64)
        x, y = np.round(at * 1024) / 1024
        return (
            pd.DataFrame({"fov": [fov], "cell_id": [cell_id], "x": x, "y": y}),
            pd.DataFrame(
                {"fov": fov, "cell_id": cell_id, "gene": genes, "x": xy[:, 0], "y": xy[:, 1]}
            ),
        )

    here, there = np.array([10.0, 10.0]), np.array([10 + 2048 * 0.108, 10 + 30_000 * 0.108])
    [problem] = leaks(SPLITS, *tissue(cell("1", "a", here), cell("copy", "c", there)))
    assert "the same molecules in different splits: 1 (train) and copy (test)" in problem


def test_problems_name_five_and_count_the_rest():
    clouds = [cloud(f"cell{i}", "d", seed=i) for i in range(8)]
    fovs = [f"d{i}" for i in range(8)]
    cells, molecules = tissue(*clouds)
    molecules = molecules.set_column(0, "fov", pa.array(np.repeat(fovs, 40)))
    [problem] = leaks(SPLITS, cells.assign(fov=fovs), molecules)
    assert problem.endswith("d0, d1, d2, d3, d4 and 3 more")


# Copies


def copies(molecules: pd.DataFrame, other: pd.DataFrame, **place: object) -> bool:
    """Whether a cell with the other molecules, named "other", counts as a copy of cell "1"."""
    here, _ = cloud("1", "a", seed=1)
    there, _ = cloud("other", "c", seed=1, **place)
    both = pd.concat([molecules, other.assign(cell_id="other", fov="c")], ignore_index=True)
    table = pa.Table.from_pandas(both, preserve_index=False)
    found = copied_cells(pd.concat([here, there], ignore_index=True), whole(table))
    assert found in ([], [("1", "other")])
    return bool(found)


def test_copy_is_found_whatever_its_order_place_and_name():
    _, molecules = cloud("1", "a", seed=1)
    assert copies(molecules, molecules.sample(frac=1, random_state=0))
    _, moved = cloud("other", "c", at=(1000.5, -3.0), seed=1)
    assert copies(molecules, moved, at=(1000.5, -3.0))


@pytest.mark.parametrize("change", ["gene", "x", "y", "one less", "one twice", "swapped axes"])
def test_cell_that_differs_in_anything_is_no_copy(change):
    _, molecules = cloud("1", "a", seed=1)
    other = molecules.copy()
    if change == "gene":
        other.loc[0, "gene"] = "D"
    elif change in ("x", "y"):
        other.loc[0, change] += 0.25
    elif change == "one less":
        other = other.iloc[1:]
    elif change == "one twice":
        other = pd.concat([other, other.iloc[:1]])
    else:
        other = other.rename(columns={"x": "y", "y": "x"})
    assert not copies(molecules, other)


def test_cell_whose_genes_are_exchanged_is_no_copy():
    _, molecules = cloud("1", "a", seed=1)
    assert not copies(
        molecules, molecules.assign(gene=molecules["gene"].replace({"A": "B", "B": "A"}))
    )


def test_cells_of_few_molecules_can_agree_by_chance():
    _, molecules = cloud("1", "a", seed=1)
    assert not copies(molecules.iloc[:4], molecules.iloc[:4])
