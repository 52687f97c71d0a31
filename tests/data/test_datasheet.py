"""Datasheets say what the tables hold; the check of table 1 hides no difference."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely

from gpattern_bench import load_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.data.datasheet import datasheet, table1_check


@pytest.fixture(scope="module")
def synthetic() -> Dataset:
    return load_dataset("synthetic")


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n\n", 1)[1].split("\n\n## ", 1)[0]


def rows(table: str) -> list[list[str]]:
    """Cells of a Markdown table, without its header."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_counts_are_those_of_the_tables(synthetic: Dataset):
    text = datasheet(synthetic)
    counted = rows(section(text, "Counts"))
    assert [row[0] for row in counted] == ["train", "val", "test", "all"]
    for row, split in zip(counted, ["train", "val", "test", None], strict=True):
        labels = synthetic.labels(split)
        assert [int(cell.replace(",", "")) for cell in row[1:7]] == [
            len(synthetic.fovs(split)),
            len(synthetic.cells(split)),
            len(synthetic.molecules(split)),
            len(synthetic.pairs(split)),
            len(labels),
            labels["n_molecules"].sum(),
        ]
        assert int(row[7].replace(",", "")) == labels["cell_edge"].sum()


def test_every_field_of_view_has_a_row(synthetic: Dataset):
    listed = rows(section(datasheet(synthetic), "Fields of view"))
    assert [row[:2] for row in listed] == [[f, synthetic.split_of[f]] for f in synthetic.fovs()]
    molecules = sum(int(row[3].replace(",", "")) for row in listed)
    assert molecules == synthetic.counts["molecules"]


def test_quantiles_are_those_of_the_cells(synthetic: Dataset):
    per_cell = rows(section(datasheet(synthetic), "Molecules per cell and per labelled pair"))[0]
    column = synthetic.cells(columns=["n_molecules"])["n_molecules"]
    assert [int(cell.replace(",", "")) for cell in per_cell[1:]] == [
        round(column.quantile(q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    ]


def test_sizes_and_molecules_outside_are_those_of_the_tables(synthetic: Dataset):
    text = section(datasheet(synthetic), "Size of the cells, and molecules outside")
    area = shapely.area(synthetic.cells()["cell_boundary"].to_numpy())
    quantiles = np.quantile(area, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    diameter, of_area = rows(text)
    assert [float(cell) for cell in of_area[1:]] == [round(value, 1) for value in quantiles]
    assert float(diameter[4]) == round(2 * np.sqrt(quantiles[3] / np.pi), 1)
    assert "100.0% of the 194,553 molecules lie in their cells (within 1 um)" in text
    assert "One unit of the source is 1 um" in text


@pytest.mark.slow
def test_tables_of_older_versions_have_their_molecules_counted(synthetic: Dataset, monkeypatch):
    old = synthetic.manifest.model_copy(update={"placement": None})
    monkeypatch.setattr(synthetic, "manifest", old)
    assert "100.0% of the 194,553 molecules lie in their cells" in datasheet(synthetic)


def test_datasheet_is_plain_markdown(synthetic: Dataset):
    text = datasheet(synthetic)
    assert text.startswith("# synthetic@1.0.0\n")
    assert "Table 1 check" not in text
    assert not re.search(r"\bnan\b|None", text)


@pytest.fixture
def published(tmp_path: Path, synthetic: Dataset) -> Dataset:
    """The tables of `synthetic` with published counts, one of which is not what is there."""
    folder = Path(shutil.copytree(synthetic.folder, tmp_path / "tables"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["published"] = {
        "molecules": 100_000,
        "cells": 400,
        "genes": 48,
        "molecules_per_cell": 250,
        "patterns": 4,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Dataset(folder)


def test_table_1_check_shows_each_difference(published: Dataset):
    check = {row["what"]: row for row in table1_check(published.manifest)}
    assert check["cells"]["obtained / published"] == 1
    assert check["molecules"]["obtained"] == 194_553
    assert check["molecules"]["obtained / published"] == 1.9455
    labelled = check["molecules of labelled pairs"]
    assert (labelled["published"], labelled["obtained"]) == (100_000, 194_553)
    assert "1.9455" in section(datasheet(published), "Table 1 check")


def test_datasets_outside_table_1_have_no_check(synthetic: Dataset):
    assert table1_check(synthetic.manifest) == []
