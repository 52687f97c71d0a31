"""Describe a dataset in Markdown: contents, provenance and drops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from tabulate import tabulate

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.tables.manifest import Counts, Manifest
from gpattern_bench.tables.placement import measure_placement, placement_text

__all__ = ["datasheet", "table1_check"]

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def table1_check(manifest: Manifest) -> list[dict[str, Any]]:
    """Compare a dataset's counts with the paper's table 1.

    Parameters
    ----------
    manifest : Manifest

    Returns
    -------
    list of dict
        Rows with ``what``, ``published``, ``obtained`` and ``obtained / published``; empty for
        datasets outside table 1. The published RNA count may cover labelled pairs only: the check
        has both.
    """
    published, counts = manifest.published, manifest.counts
    if not published:
        return []
    obtained = {
        "molecules": counts.molecules,
        "molecules of labelled pairs": counts.labelled_molecules,
        "cells": counts.cells,
        "genes": len(manifest.genes),
        "molecules_per_cell": round(counts.molecules / counts.cells),
        "patterns": len(manifest.patterns),
    }
    stated = {"molecules of labelled pairs": published["molecules"], **published}
    return [
        {
            "what": what.replace("_", " "),
            "published": stated[what],
            "obtained": value,
            "obtained / published": round(value / stated[what], 4),
        }
        for what, value in obtained.items()
        if value is not None
    ]


def datasheet(dataset: Dataset) -> str:
    """Describe a dataset: counts, quantiles, drops, licence and provenance.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    str
        Markdown.
    """
    manifest = dataset.manifest
    parts = [f"# {dataset.id}", manifest.raw.get("title", "")]
    parts += [f"Patterns: {', '.join(dataset.patterns)}. {len(dataset.genes):,} genes."]
    parts += [_labels(manifest)]
    check = table1_check(manifest)
    if check:
        parts += ["## Table 1 check", _table(check)]
    parts += ["## Counts", _counts(manifest.counts)]
    parts += ["## Molecules per cell and per labelled pair", _quantiles(dataset)]
    parts += ["## Size of the cells, and molecules outside", _sizes(dataset), _outside(dataset)]
    parts += ["## Fields of view", _fovs(dataset)]
    drops = [
        {"table": table, "reason": reason, "rows": rows}
        for table, reasons in manifest.dropped.items()
        for reason, rows in reasons.items()
    ]
    parts += ["## Left out", _table(drops) if drops else "Nothing."]
    parts += [f"Warning: {warning}" for warning in manifest.warnings]
    parts += ["## Licence", _text(manifest.raw, "licence", "terms")]
    parts += ["## Citation", _text(manifest.raw, "citation")]
    parts += ["## Provenance", _provenance(manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _labels(manifest: Manifest) -> str:
    """Say where the labels come from, if a classifier made them or there are none."""
    if not manifest.has_labels:
        return (
            f"No labels. `gpattern-bench label {manifest.name} --with MODEL --out DIR` makes some, "
            "the calls of a classifier."
        )
    if manifest.labelled_by is None:
        return ""
    fitted = manifest.labelled_by.fitted_on
    return (
        f"**Labelled by a classifier, not by people**: {manifest.labelled_by.text}"
        + (f"; fitted on {', '.join(fitted)}" if fitted else "")
        + ". A score on these labels says how well a method imitates it."
    )


def _table(rows: list[dict[str, Any]]) -> str:
    shown = [
        {key: f"{value:,}" if isinstance(value, int) else value for key, value in row.items()}
        for row in rows
    ]
    numbers = [isinstance(value, int | float) for value in rows[0].values()]
    return tabulate(
        shown,
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
        colalign=["right" if number else "left" for number in numbers],
    )


def _counts(counts: Counts) -> str:
    rows = []
    for split, part in [*counts.splits.items(), ("all", counts)]:
        totals = {name.replace("_", " "): n for name, n in part.totals.items()}
        rows.append({"split": split, **totals, **part.patterns})
    return _table(rows)


def _quantiles(dataset: Dataset) -> str:
    cells = dataset.cells(columns=["n_molecules", "n_genes"])
    values = {"molecules per cell": cells["n_molecules"], "genes per cell": cells["n_genes"]}
    if dataset.has_labels:
        values["molecules per labelled pair"] = dataset.labels(columns=["n_molecules"])[
            "n_molecules"
        ]
    return _quantile_table({what: column.to_numpy() for what, column in values.items()}, None)


def _sizes(dataset: Dataset) -> str:
    area = shapely.area(dataset.cells(columns=["cell_boundary"])["cell_boundary"].to_numpy())
    values = {"diameter (um)": 2 * np.sqrt(area / np.pi), "area (um2)": area}
    return (
        f"{_quantile_table(values, 1)}\n\nThe diameter is that of a disk of the cell's area. One "
        f"unit of the source is {dataset.manifest.unit_um:g} um."
    )


def _outside(dataset: Dataset) -> str:
    manifest = dataset.manifest
    placement = manifest.placement or measure_placement(dataset.folder, dataset.fovs())
    dropped = manifest.dropped.get("molecules", {})
    source = manifest.counts.molecules + sum(dropped.values())
    outside = dropped.get("outside every cell", 0)
    return (
        f"{outside / source:.1%} of the source's {source:,} molecules are outside every cell and "
        f"left out. Of those kept, {placement_text(placement)}."
    )


def _quantile_table(values: Mapping[str, NDArray[Any]], digits: int | None) -> str:
    rows = []
    for what, column in values.items():
        numbers = np.quantile(column, _QUANTILES)
        found = {
            f"{q:.0%}": round(v, digits) for q, v in zip(_QUANTILES, numbers.tolist(), strict=True)
        }
        rows.append({"": what} | found)
    return _table(rows)


def _fovs(dataset: Dataset) -> str:
    cells = dataset.cells(columns=["fov", "n_molecules", "n_genes"]).groupby("fov")
    table = cells.agg(
        cells=("n_genes", "size"), molecules=("n_molecules", "sum"), pairs=("n_genes", "sum")
    )
    if dataset.has_labels:
        labels = dataset.labels(columns=["fov"])["fov"].astype(str)
        table["labelled pairs"] = labels.value_counts().reindex(table.index, fill_value=0)
    splits = dataset.split_of
    rows = [
        {"fov": str(fov), "split": splits[str(fov)]}
        | {str(key): int(value) for key, value in row.items()}
        for fov, row in table.iterrows()
    ]
    return _table(rows)


def _text(facts: Mapping[str, Any], *keys: str) -> str:
    return "\n\n".join(str(facts[key]) for key in keys if facts.get(key)) or "Not stated."


def _provenance(manifest: Manifest) -> str:
    recipe = manifest.raw["curation"]
    curated = (
        f"Curated by gpattern-bench {recipe['package_version']} from {recipe['format']}: "
        f"{recipe['unit_um']:g} um per unit, controls `{recipe['controls']}`, labelled pairs "
        f"without a pattern: {recipe['patternless']}, split: "
        f"{'named' if recipe['splits'] else recipe['split']}, seed {recipe['seed']}."
    )
    sources = [
        {
            "file": file["path"],
            "bytes": file["bytes"],
            "checksum": file["sha256"]
            or file["git_blob"]
            or file.get("arrays_sha256")
            or "not published",
            "address": file["urls"][0] if file["urls"] else file["made"],
        }
        for file in manifest.raw.get("source", ())
    ]
    tables = [
        {"table": name, "rows": file.rows, "content SHA-256": file.content_sha256}
        for name, file in manifest.files.items()
    ]
    parts = [manifest.raw.get("release"), curated, sources and _table(sources), _table(tables)]
    return "\n\n".join(part for part in parts if part)
