"""The rules of curation, the same for every source: release and recipe -> tables, drops counted.

Why was this row dropped? It counts under the first reason that holds:

=========== ======================== =========================================================
table       reason                   rows
=========== ======================== =========================================================
molecules   quality (qv) below Q     the column ``qv`` says so
molecules   outside every cell       no cell id
molecules   cell without an outline  the cell is unknown, or was dropped for its outline
molecules   without a gene           no gene name
molecules   control target           the gene's name matches `controls` of the recipe, or the
                                     source says it is no gene (:mod:`~.quality`)
molecules   coordinate not finite    x or y is NaN or infinite
cells       without an outline       no outline, or one without area or with NaN in it
cells       without molecules        no molecule was kept
labels      pair without molecules   the source has no molecule of the pair
labels      control target           the gene's name matches `controls` of the recipe
labels      molecules dropped        the source has molecules of the pair; none was kept
labels      no pattern               all labels are 0, and the recipe says ``patternless: drop``
=========== ======================== =========================================================

Readers drop what the rules cannot see: ``gene not in var`` (Bento), ``without a field of view``
(CosMx), ``row of another dataset`` and ``duplicate row`` (labels from csv files); for large exports
they apply the first reasons above themselves. Bento's forest, where it makes the labels, leaves out
pairs of ``fewer than 5 molecules`` and those where ``a feature is missing (no nucleus)``
(:mod:`gpattern_bench.runs.label`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.geometry import polygonal
from gpattern_bench.curate.quality import COLUMNS, CONTROL, Quality
from gpattern_bench.curate.release import MISSING, Dropped, Release, keep_rows, refuse_repeated
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.tables import schema
from gpattern_bench.tables.parquet import used_codes
from gpattern_bench.tables.placement import measure_cells

__all__ = ["DIAMETER_UM", "Tables", "apply_rules", "unit_warnings"]

_log = logging.getLogger(__name__)

DIAMETER_UM = (3.0, 200.0)
"""Usual diameters (um) of a disk of the cell's area; others hint at a wrong unit."""

_GRID = 1024  # round centroids to 1/1024 um, so that every version of GEOS gives the same bytes


@dataclass(frozen=True)
class Tables:
    """The tables of some fields of view, in canonical order (:data:`schema.SORT_KEYS`).

    Attributes
    ----------
    molecules, cells : pyarrow.Table
        Columns of :mod:`gpattern_bench.tables.schema`.
    labels : pyarrow.Table or None
        None where the source has no labels.
    dropped : dict of str to dict of str to int
        Table -> reason -> dropped rows.
    measured : pandas.DataFrame
        (cells,) Their sizes, and what lies where
        (:func:`gpattern_bench.tables.placement.measure_cells`).
    """

    molecules: pa.Table
    cells: pa.Table
    labels: pa.Table | None
    dropped: Dropped
    measured: pd.DataFrame


@dataclass(frozen=True)
class _Pairs:
    """Sorted pairs of cell and gene, as keys: cell index * number of genes + gene index."""

    cells: pd.Index[str]
    genes: pd.Index[str]
    keys: NDArray[np.int64]

    def positions(self, cell: pd.Categorical, gene: pd.Categorical) -> NDArray[np.int64]:
        """Find the positions (n,) of pairs; -1 if absent."""
        c = np.append(self.cells.get_indexer(cell.categories), -1)[cell.codes]
        g = np.append(self.genes.get_indexer(gene.categories), -1)[gene.codes]
        key = np.where((c < 0) | (g < 0), -1, c * len(self.genes) + g)
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return np.where(self.keys[at] == key, at, -1) if len(self.keys) else np.full(len(key), -1)


@dataclass(frozen=True)
class _Molecules:
    """Kept molecules: index of the cell, index of the gene, coordinates in micrometres."""

    cell: NDArray[np.int64]
    gene: NDArray[np.int64]
    genes: pd.Index[str]
    xyz: dict[str, NDArray[np.float32]]


def apply_rules(release: Release, recipe: Recipe) -> Tables:
    """Turn a release into tables: micrometres, valid outlines, no controls.

    Drops rows for the reasons at the top of this module and counts them. Cells without a nucleus
    stay.

    Raises
    ------
    SourceError
        A cell id or a labelled pair occurs twice, or a cell has no id or no field of view.
    """
    dropped: Dropped = {
        table: dict(release.dropped.get(table, {})) for table in ("molecules", "cells", "labels")
    }
    cells = _outlines(release.cells, recipe, dropped["cells"])
    molecules, raw = _molecules(release.molecules, cells, recipe, dropped["molecules"])
    count = np.bincount(molecules.cell, minlength=len(cells))
    kept = keep_rows({"without molecules": count == 0}, dropped["cells"])
    molecules = _sorted(replace(molecules, cell=(np.cumsum(kept) - 1)[molecules.cell]))
    cells, count = cells[kept].reset_index(drop=True), count[kept]
    unplaced = cells["cell_id"][_is_missing(cells["fov"])]
    if len(unplaced):
        raise SourceError(
            f"{len(unplaced)} cells are in no field of view, the first is {unplaced.iloc[0]}; name "
            "the field of view of all molecules or of none"
        )
    key = molecules.cell * len(molecules.genes) + molecules.gene
    first = np.flatnonzero(np.diff(key, prepend=-1))  # sorted: a pair is a run
    keys, n_molecules = key[first], np.diff(first, append=len(key))
    labels = None
    if release.labels is not None:
        pairs = _Pairs(pd.Index(cells["cell_id"]), molecules.genes, keys)
        labels = _labels(release.labels, raw, pairs, recipe, dropped["labels"])
        labels = _labels_table(labels, pairs, n_molecules, cells["fov"], recipe)
    n_genes = np.bincount(keys // max(len(molecules.genes), 1), minlength=len(cells))
    tables = _molecules_table(molecules, cells), _cells_table(cells, count, n_genes)
    return Tables(
        *tables,
        labels=labels,
        dropped={
            table: {reason: rows for reason, rows in reasons.items() if rows}
            for table, reasons in dropped.items()
        },
        measured=measure_cells(*tables),
    )


def _outlines(cells: pd.DataFrame, recipe: Recipe, dropped: dict[str, int]) -> pd.DataFrame:
    """Repair outlines and scale them to micrometres; drop cells without one."""
    nameless = _is_missing(cells["cell_id"])
    if nameless.any():
        raise SourceError(
            f"{int(nameless.sum())} of {len(cells)} cells have no id; give each cell of a release "
            "its own id"
        )
    refuse_repeated(cells)
    boundary = [polygonal(shape) for shape in cells["cell_boundary"]]
    nucleus = [polygonal(shape) for shape in cells["nucleus_boundary"]]
    missing = np.array([shape is None for shape in boundary], dtype=bool)
    kept = keep_rows({"without an outline": missing}, dropped)
    outlined = pd.DataFrame(
        {
            "fov": cells["fov"].astype(str),
            "cell_id": cells["cell_id"].astype(str),
            "touches_border": cells["touches_border"],
            "cell_boundary": _scaled(boundary, recipe.unit_um),
            "nucleus_boundary": _scaled(nucleus, recipe.unit_um),
        }
    )
    return outlined[kept].sort_values(["fov", "cell_id"], ignore_index=True)


def _is_missing(names: pd.Series) -> pd.Series:
    return names.isna() | names.astype(str).str.strip().isin(MISSING)


def _scaled(shapes: list[shapely.Geometry | None], factor: float) -> NDArray[np.object_]:
    array = np.array(shapes, dtype=object)
    return array if factor == 1 else shapely.transform(array, lambda xy: xy * factor)


def _molecules(
    frame: pd.DataFrame, cells: pd.DataFrame, recipe: Recipe, dropped: dict[str, int]
) -> tuple[_Molecules, _Pairs]:
    """Drop molecules by the rules; also list the pairs of the source."""
    gene, cell = _categorical(frame["gene"]), _categorical(frame["cell_id"])
    gene = gene.remove_categories([name for name in gene.categories if not name.strip()])
    cell = cell.remove_categories([name for name in cell.categories if name.strip() in MISSING])
    quality, columns = Quality.of(recipe), {name: frame[name] for name in COLUMNS if name in frame}
    z = frame["z"].to_numpy(np.float64) if "z" in frame else np.full(len(frame), np.nan)
    xyz = {"x": frame["x"].to_numpy(), "y": frame["y"].to_numpy(), "z": z}
    with np.errstate(over="ignore"):  # too large for float32: infinite, so dropped below
        xyz = {axis: (um * recipe.unit_um).astype(np.float32) for axis, um in xyz.items()}
    # Code -1, a missing name, reads the last item.
    at = np.array([*pd.Index(cells["cell_id"]).get_indexer(cell.categories), -1], dtype=np.int64)
    no_gene = quality.controls(columns).get(CONTROL, False)
    reasons = {
        **quality.low(columns),
        "outside every cell": cell.codes == -1,
        "cell without an outline": at[cell.codes] == -1,
        "without a gene": gene.codes == -1,
        CONTROL: _is_control(gene, recipe) | no_gene,
        "coordinate not finite": ~(np.isfinite(xyz["x"]) & np.isfinite(xyz["y"])),
    }
    keep = keep_rows(reasons, dropped)
    used, codes = used_codes(gene.codes[keep], len(gene.categories))
    kept = _Molecules(
        cell=at[cell.codes[keep]],
        gene=codes,
        genes=gene.categories[used],
        xyz={axis: um[keep] for axis, um in xyz.items()},
    )
    named = (cell.codes >= 0) & (gene.codes >= 0)
    keys = cell.codes[named].astype(np.int64) * len(gene.categories) + gene.codes[named]
    keys = np.sort(keys)  # 20 times as fast as np.unique, which hashes
    keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
    return kept, _Pairs(cell.categories, gene.categories, keys)


def _is_control(gene: pd.Categorical, recipe: Recipe) -> NDArray[np.bool_]:
    """Mark rows (n,) of control targets; a missing name is none."""
    match = re.compile(recipe.controls, re.IGNORECASE).match
    named = [bool(recipe.controls) and match(name) is not None for name in gene.categories]
    return np.asarray(np.array([*named, False])[gene.codes])


def _categorical(values: pd.Series) -> pd.Categorical:
    """Convert to categories of sorted text: codes then sort like the text."""
    column = pd.Categorical(values).rename_categories(str)
    return column.reorder_categories(sorted(column.categories))


def _sorted(molecules: _Molecules) -> _Molecules:
    """Sort by cell, gene and coordinates; cells and genes have the order of their names."""
    x, y, z = (molecules.xyz[axis] for axis in "xyz")
    keys = [y, x, molecules.cell * len(molecules.genes) + molecules.gene]
    order = np.lexsort(keys if np.isnan(z).all() else [z, *keys])
    xyz = {axis: um[order] for axis, um in molecules.xyz.items()}
    return replace(molecules, cell=molecules.cell[order], gene=molecules.gene[order], xyz=xyz)


def _labels(
    labels: pd.DataFrame, raw: _Pairs, pairs: _Pairs, recipe: Recipe, dropped: dict[str, int]
) -> pd.DataFrame:
    """Drop labels by the rules and sort them; add ``pair``, the position in `pairs`."""
    cell, gene = _categorical(labels["cell_id"]), _categorical(labels["gene"])
    key = cell.codes.astype(np.int64) * len(gene.categories) + gene.codes
    first = np.unique(key, return_index=True)[1]
    if len(first) < len(key):
        again = np.setdiff1d(np.arange(len(key)), first)
        raise SourceError(
            f"labels repeat {len(again)} pairs, the first is cell {cell[again[0]]}, gene "
            f"{gene[again[0]]}; keep one row per pair, and give each cell its own id"
        )
    at = pairs.positions(cell, gene)
    patternless = ~labels[list(recipe.patterns)].to_numpy(bool).any(axis=1)
    reasons = {
        "pair without molecules": raw.positions(cell, gene) < 0,
        CONTROL: _is_control(gene, recipe),
        "molecules dropped": at < 0,
        "no pattern": np.asarray(patternless & (recipe.patternless == "drop")),
    }
    keep = keep_rows(reasons, dropped)
    kept = labels.loc[keep, list(recipe.patterns)].assign(pair=at[keep])
    return kept.sort_values("pair", ignore_index=True)


def _labels_table(
    labels: pd.DataFrame,
    pairs: _Pairs,
    n_molecules: NDArray[np.int64],
    fov: pd.Series[str],
    recipe: Recipe,
) -> pa.Table:
    pair = labels["pair"].to_numpy(np.int64)
    cell, gene = np.divmod(pairs.keys[pair], max(len(pairs.genes), 1))
    columns = [
        *_fov_and_cell(cell, fov, pairs.cells),
        _coded(gene, pairs.genes),
        pa.array(n_molecules[pair].astype(np.int32)),
        *(pa.array(labels[name].to_numpy(bool)) for name in recipe.patterns),
    ]
    return pa.Table.from_arrays(columns, schema=schema.labels(recipe.patterns))


def _molecules_table(molecules: _Molecules, cells: pd.DataFrame) -> pa.Table:
    columns = [
        *_fov_and_cell(molecules.cell, cells["fov"], cells["cell_id"]),
        _coded(molecules.gene, molecules.genes),
    ]
    for axis in "xyz":
        um = molecules.xyz[axis]
        columns.append(pa.array(um, mask=~np.isfinite(um) if axis == "z" else None))
    return pa.Table.from_arrays(columns, schema=schema.MOLECULES)


def _fov_and_cell(
    cell: NDArray[np.int64], fov: pd.Series[str], cell_id: pd.Index[str] | pd.Series[str]
) -> tuple[pa.DictionaryArray, pa.DictionaryArray]:
    """Make the columns fov and cell_id of rows in these cells."""
    names, of_cell = np.unique(fov.to_numpy(object), return_inverse=True)
    return _coded(of_cell[cell], names), _coded(cell, cell_id)


def _coded(codes: NDArray[np.int64], names: Any) -> pa.DictionaryArray:
    dictionary = pa.array(np.asarray(names, dtype=object), pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), dictionary)


def _cells_table(
    cells: pd.DataFrame, n_molecules: NDArray[np.int64], n_genes: NDArray[np.int64]
) -> pa.Table:
    centroid = shapely.get_coordinates(shapely.centroid(cells["cell_boundary"].to_numpy()))
    centroid = np.round(centroid * _GRID) / _GRID
    table = pd.DataFrame(
        {
            "fov": cells["fov"],
            "cell_id": cells["cell_id"],
            "x": centroid[:, 0].astype(np.float32),
            "y": centroid[:, 1].astype(np.float32),
            "n_molecules": n_molecules.astype(np.int32),
            "n_genes": n_genes.astype(np.int32),
            "touches_border": cells["touches_border"].astype("boolean"),
            "cell_boundary": shapely.to_wkb(cells["cell_boundary"].to_numpy(), byte_order=1),
            "nucleus_boundary": shapely.to_wkb(cells["nucleus_boundary"].to_numpy(), byte_order=1),
        }
    )
    return pa.Table.from_pandas(table, schema.CELLS, preserve_index=False)


def unit_warnings(
    diameters: NDArray[np.float64], cells: Sequence[str], unit_um: float
) -> list[str]:
    """Log and return a warning, at most one, if cell diameters (um) hint at a wrong unit."""
    odd = (diameters < DIAMETER_UM[0]) | (diameters > DIAMETER_UM[1])
    if not odd.any():
        return []
    middle = np.sqrt(DIAMETER_UM[0] * DIAMETER_UM[1])
    worst = int(np.argmax(np.abs(np.log(diameters / middle))))
    text = (
        f"{int(odd.sum())} of {len(cells)} cells have a diameter outside {DIAMETER_UM[0]:g}-"
        f"{DIAMETER_UM[1]:g} um, the farthest is {cells[worst]} with "
        f"{diameters[worst] / unit_um:.4g} source units (px) = {diameters[worst]:.4g} um at "
        f"{unit_um:g} um per unit; check the unit (--unit-um)"
    )
    _log.warning("%s", text)
    return [text]
