"""The rules of curation, the same for every source: release and recipe -> tables, drops counted."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench import schema
from gpattern_bench.curate.recipe import Recipe
from gpattern_bench.curate.release import Release
from gpattern_bench.errors import SourceError
from gpattern_bench.geometry import polygonal
from gpattern_bench.splits import split_fovs

__all__ = ["DIAMETER_UM", "Tables", "apply_rules"]

_log = logging.getLogger(__name__)

DIAMETER_UM = (3.0, 200.0)
"""Diameters (um, of a disk as large) beyond which a cell hints at a wrong unit."""

_GRID = 1024  # centroids lie on multiples of 1/1024 um, so that every GEOS finds the same


@dataclass(frozen=True)
class Tables:
    """The tables of one dataset, in canonical order (:data:`gpattern_bench.schema.SORT_KEYS`).

    Attributes
    ----------
    molecules, cells, splits : pyarrow.Table
        As :mod:`gpattern_bench.schema` says.
    labels : pyarrow.Table or None
        None where the source has no labels.
    dropped : dict of str to dict of str to int
        Table -> reason -> rows left out.
    warnings : list of str
        What a person should look at.
    """

    molecules: pa.Table
    cells: pa.Table
    splits: pa.Table
    labels: pa.Table | None
    dropped: dict[str, dict[str, int]]
    warnings: list[str] = field(default_factory=list)


def apply_rules(release: Release, recipe: Recipe) -> Tables:
    """Turn a release into tables: micrometres, valid outlines, no controls, one row per thing.

    Molecules outside cells, in cells without an outline, of control targets, or at coordinates
    that are not finite are dropped; so are cells without an outline or without molecules, and
    labels of control targets or of pairs without molecules. Every dropped row is counted by
    reason; a cell without a nucleus stays.

    Raises
    ------
    SourceError
        Nothing is left, a cell id occurs twice, or the release cannot be split as asked.
    """
    dropped: dict[str, dict[str, int]] = {
        table: dict(release.dropped.get(table, {})) for table in ("molecules", "cells", "labels")
    }
    cells = _outlines(release.cells, recipe, dropped["cells"])
    raw_pairs = release.molecules[["cell_id", "gene"]].drop_duplicates()
    molecules = _molecules(release.molecules, cells, recipe, dropped["molecules"])
    empty = ~cells["cell_id"].isin(molecules["cell_id"].cat.categories)
    dropped["cells"]["without molecules"] = int(empty.sum())
    cells = cells[~empty].sort_values(["fov", "cell_id"], ignore_index=True)
    if cells.empty:
        raise SourceError(
            "nothing is left of the release after curation; dropped rows by reason: "
            f"{dropped}. Check the path, the recipe's `controls` and the cell ids."
        )
    # A molecule lies in the FOV of its cell, whatever the source wrote beside it.
    fov = pd.Categorical(cells.set_index("cell_id")["fov"].reindex(molecules["cell_id"]))
    molecules = _sorted(molecules.assign(fov=fov), "molecules")
    pairs = (
        molecules.groupby(["fov", "cell_id", "gene"], observed=True, sort=True)
        .size()
        .rename("n_molecules")
        .reset_index()
    )
    cells = cells.assign(
        n_molecules=pairs.groupby("cell_id", observed=True)["n_molecules"]
        .sum()[cells["cell_id"]]
        .array,
        n_genes=pairs.groupby("cell_id", observed=True).size()[cells["cell_id"]].array,
    )
    labels = None
    if release.labels is not None:
        labels = _labels(release.labels, raw_pairs, pairs, recipe, dropped["labels"])
    split = _split(cells, labels, recipe)
    kept = {
        table: {reason: rows for reason, rows in reasons.items() if rows}
        for table, reasons in dropped.items()
    }
    return Tables(
        molecules=pa.Table.from_pandas(molecules, schema.MOLECULES, preserve_index=False),
        cells=_cells_table(cells),
        splits=pa.table(
            {"fov": sorted(split), "split": [split[fov] for fov in sorted(split)]},
            schema=schema.SPLITS,
        ),
        labels=None
        if labels is None
        else pa.Table.from_pandas(labels, schema.labels(recipe.patterns), preserve_index=False),
        dropped=kept,
        warnings=_unit_warnings(cells, recipe),
    )


def _outlines(cells: pd.DataFrame, recipe: Recipe, dropped: dict[str, int]) -> pd.DataFrame:
    """Valid outlines in micrometres; cells without any go, nuclei without any become None."""
    repeated = cells["cell_id"][cells["cell_id"].duplicated()]
    if len(repeated):
        raise SourceError(
            f"cell ids must be unique in a release: {repeated.iloc[0]} occurs more than once "
            f"({repeated.nunique()} such ids)"
        )
    boundary = [polygonal(shape) for shape in cells["cell_boundary"]]
    nucleus = [polygonal(shape) for shape in cells["nucleus_boundary"]]
    lacking = np.array([shape is None for shape in boundary], dtype=bool)
    dropped["without an outline"] = int(lacking.sum())
    return pd.DataFrame(
        {
            "fov": cells["fov"].astype(str),
            "cell_id": cells["cell_id"].astype(str),
            "touches_border": cells["touches_border"],
            "cell_boundary": _scaled(boundary, recipe.unit_um),
            "nucleus_boundary": _scaled(nucleus, recipe.unit_um),
        }
    )[~lacking]


def _scaled(shapes: list[shapely.Geometry | None], factor: float) -> NDArray[np.object_]:
    array = np.array(shapes, dtype=object)
    return array if factor == 1 else shapely.transform(array, lambda xy: xy * factor)


def _molecules(
    molecules: pd.DataFrame, cells: pd.DataFrame, recipe: Recipe, dropped: dict[str, int]
) -> pd.DataFrame:
    gene = _categorical(molecules["gene"])
    cell = _categorical(molecules["cell_id"])
    z = molecules["z"].to_numpy(np.float64) if "z" in molecules else np.full(len(molecules), np.nan)
    xyz = {"x": molecules["x"].to_numpy(), "y": molecules["y"].to_numpy(), "z": z}
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is dropped
        xyz = {axis: (um * recipe.unit_um).astype(np.float32) for axis, um in xyz.items()}
    # The last place is read by code -1, a missing name.
    control = np.array([*(_is_control(name, recipe) for name in gene.categories), False])
    outlined = np.array([*cell.categories.isin(cells["cell_id"]), False])
    reasons = {
        "outside every cell": cell.codes == -1,
        "cell without an outline": ~outlined[cell.codes],
        "without a gene": gene.codes == -1,
        "control target": control[gene.codes],
        "coordinate not finite": ~(np.isfinite(xyz["x"]) & np.isfinite(xyz["y"])),
    }
    keep = np.ones(len(molecules), dtype=bool)
    for reason, rows in reasons.items():
        dropped[reason] = int((keep & rows).sum())
        keep &= ~rows
    frame = pd.DataFrame({"cell_id": cell[keep], "gene": gene[keep]})
    for name, values in xyz.items():
        frame[name] = values[keep]
    frame["z"] = frame["z"].where(np.isfinite(frame["z"]))
    for name in ("cell_id", "gene"):
        frame[name] = frame[name].cat.remove_unused_categories()
    return frame


def _is_control(gene: str, recipe: Recipe) -> bool:
    return bool(recipe.controls) and re.match(recipe.controls, gene, re.IGNORECASE) is not None


def _categorical(values: pd.Series) -> pd.Categorical:
    """Categories as sorted text: their codes then sort like the text itself."""
    column = pd.Categorical(values).rename_categories(str)
    return column.reorder_categories(sorted(column.categories))


def _sorted(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    keys = [frame[name] for name in schema.SORT_KEYS[table]]
    arrays = [key.cat.codes if isinstance(key.dtype, pd.CategoricalDtype) else key for key in keys]
    order = np.lexsort([np.asarray(array) for array in reversed(arrays)])
    return frame.iloc[order].reset_index(drop=True)


def _labels(
    labels: pd.DataFrame,
    raw_pairs: pd.DataFrame,
    pairs: pd.DataFrame,
    recipe: Recipe,
    dropped: dict[str, int],
) -> pd.DataFrame:
    keys = ["cell_id", "gene"]
    labels = labels.astype(dict.fromkeys(keys, str))
    repeated = labels[labels.duplicated(keys)]
    if len(repeated):
        raise SourceError(
            f"labels have {len(repeated)} rows of pairs that occur before, the first is "
            f"{tuple(repeated.iloc[0][keys])}; cell ids and gene names must be unique"
        )
    known = pd.MultiIndex.from_frame(raw_pairs.astype(dict.fromkeys(keys, str)))
    absent = ~pd.MultiIndex.from_frame(labels[keys]).isin(known)
    control = ~absent & labels["gene"].map(lambda gene: _is_control(gene, recipe)).to_numpy(bool)
    patternless = ~labels[list(recipe.patterns)].to_numpy(bool).any(axis=1)
    patternless &= recipe.patternless == "drop"
    merged = labels.merge(pairs.astype(dict.fromkeys(["fov", *keys], str)), how="left", on=keys)
    gone = ~absent & ~control & merged["n_molecules"].isna().to_numpy()
    dropped["pair without molecules"] = int(absent.sum())
    dropped["control target"] = int(control.sum())
    dropped["molecules dropped"] = int(gone.sum())
    dropped["no pattern"] = int((~absent & ~control & ~gone & patternless).sum())
    kept = merged[~(absent | control | gone | patternless)]
    if kept.empty:
        raise SourceError(
            f"none of the {len(labels)} labelled pairs is left after curation; dropped by reason: "
            f"{dropped}. Check that labels and molecules use the same cell ids and gene names."
        )
    kept = kept[["fov", *keys, "n_molecules", *recipe.patterns]].astype({"n_molecules": "int32"})
    for name in ("fov", *keys):
        kept[name] = _categorical(kept[name])
    return _sorted(kept, "labels")


def _split(cells: pd.DataFrame, labels: pd.DataFrame | None, recipe: Recipe) -> dict[str, str]:
    if recipe.split == "test":
        return dict.fromkeys(cells["fov"].unique(), "test")
    fovs = cells.groupby("fov").size().rename("cells").to_frame()
    fovs["pairs"] = 0
    if labels is not None:
        grouped = labels.groupby("fov", observed=True)
        fovs["pairs"] = grouped.size().reindex(fovs.index, fill_value=0)
        sums = grouped[list(recipe.patterns)].sum().reindex(fovs.index, fill_value=0)
        fovs = fovs.join(sums)
    return split_fovs(fovs, recipe.seed)


def _cells_table(cells: pd.DataFrame) -> pa.Table:
    centroid = shapely.get_coordinates(shapely.centroid(cells["cell_boundary"].to_numpy()))
    centroid = np.round(centroid * _GRID) / _GRID
    table = pd.DataFrame(
        {
            "fov": cells["fov"],
            "cell_id": cells["cell_id"],
            "x": centroid[:, 0].astype(np.float32),
            "y": centroid[:, 1].astype(np.float32),
            "n_molecules": cells["n_molecules"].astype("int32"),
            "n_genes": cells["n_genes"].astype("int32"),
            "touches_border": cells["touches_border"].astype("boolean"),
            "cell_boundary": shapely.to_wkb(cells["cell_boundary"].to_numpy(), byte_order=1),
            "nucleus_boundary": shapely.to_wkb(cells["nucleus_boundary"].to_numpy(), byte_order=1),
        }
    )
    return pa.Table.from_pandas(table, schema.CELLS, preserve_index=False)


def _unit_warnings(cells: pd.DataFrame, recipe: Recipe) -> list[str]:
    diameter = 2 * np.sqrt(shapely.area(cells["cell_boundary"].to_numpy()) / np.pi)
    odd = (diameter < DIAMETER_UM[0]) | (diameter > DIAMETER_UM[1])
    if not odd.any():
        return []
    worst = int(np.argmax(np.abs(np.log(diameter / np.sqrt(DIAMETER_UM[0] * DIAMETER_UM[1])))))
    text = (
        f"{int(odd.sum())} of {len(cells)} cells have a diameter outside {DIAMETER_UM[0]:g}-"
        f"{DIAMETER_UM[1]:g} um, the oddest is {cells['cell_id'].iloc[worst]} with "
        f"{diameter[worst] / recipe.unit_um:.4g} source units (px) = {diameter[worst]:.4g} um at "
        f"{recipe.unit_um:g} um per unit; check the unit (--unit-um)"
    )
    _log.warning("%s", text)
    return [text]
