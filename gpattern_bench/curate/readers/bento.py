"""Read h5ad files as Bento writes them (molecules in ``uns/points``), in any AnnData encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from gpattern_bench.base.outlines import parse_wkt
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.quality import COLUMNS
from gpattern_bench.curate.readers.hdf5 import dense, open_hdf5, values
from gpattern_bench.curate.readers.ids import plain_id
from gpattern_bench.curate.release import Release, reading
from gpattern_bench.errors import SourceError

__all__ = ["read_bento"]


def read_bento(path: Path, patterns: Sequence[str]) -> Release:
    """Read molecules, outlines and, if there are label layers, labels.

    Cells are the rows of ``obs`` with outlines as WKT (``None``: no nucleus); the field of view is
    the ``batch``. Layers named like the patterns hold 0/1 per (cell, gene), NaN for unlabelled
    pairs (what a sparse layer leaves out is 0); other layers (features, probabilities) are not
    read.

    Parameters
    ----------
    path : pathlib.Path
        The h5ad file.
    patterns : sequence of str
        Layers to read as labels; the file has all of them or none.

    Returns
    -------
    Release
        In the file's own unit (pixels).

    Raises
    ------
    SourceError
        Another kind of file; the message names what is missing.
    """
    if not path.is_file():
        raise SourceError(f"no file at {path}: expected a Bento h5ad")
    with reading(path, "a Bento h5ad"), open_hdf5(path) as file:
        expected = ("uns/points", "obs", "var")
        missing = [name for name in expected if not isinstance(file.get(name), h5py.Group)]
        if missing:
            raise SourceError(
                f"{path} is not a Bento h5ad: it lacks {', '.join(missing)}; expected molecules in "
                "uns/points (x, y, gene, cell, batch) and outlines in obs (cell_shape)"
            )
        cells = _cells(file, path)
        genes = _text(file["var"], file["var"].attrs.get("_index", "_index"), path)
        molecules, dropped = _molecules(file, path, genes)
        if "fov" not in cells:
            fov = (
                molecules.dropna(subset="cell_id").groupby("cell_id", observed=True)["fov"].first()
            )
            cells["fov"] = cells["cell_id"].map(fov.astype(str)).fillna("")
        labels = _labels(file, path, patterns, cells["cell_id"], genes)
    return Release(molecules, cells, labels, {"molecules": dropped})


def _column(group: h5py.Group, name: str, path: Path) -> Any:
    """Read a column of an AnnData data frame, in any of its encodings; null is None or NaN."""
    if name not in group:
        raise SourceError(
            f"{path}: {group.name} lacks the column {name}; it has {', '.join(sorted(group))}"
        )
    node = group[name]
    if "categories" in node.attrs:  # before AnnData 0.7: a reference to a group
        return pd.Categorical.from_codes(values(node), values(group[node.attrs["categories"]]))
    if isinstance(node, h5py.Dataset):
        return values(node)
    if "codes" in node:
        return pd.Categorical.from_codes(values(node["codes"]), _column(node, "categories", path))
    kind = str(node.attrs.get("encoding-type"))
    if not kind.startswith("nullable-"):
        raise SourceError(
            f"{path}: {node.name} is stored as {shorten(kind)}, expected an array, categorical or "
            "nullable array of text, numbers or bool; write it with anndata again"
        )
    column = values(node["values"]).astype(object)
    column[values(node["mask"])] = None
    return column


def _text(group: h5py.Group, name: str, path: Path) -> Any:
    """Read a column as text; what is missing is empty."""
    column = pd.Series(_column(group, name, path))
    return column.astype(object).where(column.notna(), "").to_numpy().astype(str)


def _ids(column: Any, path: Path, name: str) -> pd.Categorical:
    """Make plain ids of a column; null is what names nothing."""
    values = pd.Categorical(column)
    texts = [plain_id(str(value), path, name) for value in values.categories]
    return pd.Categorical(np.array([*texts, None], dtype=object)[values.codes])


def _cells(file: h5py.File, path: Path) -> pd.DataFrame:
    obs = file["obs"]
    index = obs.attrs.get("_index", "_index")
    names = _ids(_column(obs, index, path), path, index).astype(object)
    cells = pd.DataFrame({"cell_id": names})
    for column, source in (("cell_boundary", "cell_shape"), ("nucleus_boundary", "nucleus_shape")):
        wkt = _text(obs, source, path)
        with reading(path, f"outlines (WKT) in obs/{source}"):
            outlines = wkt.astype(object)
            outlines[np.isin(wkt, ("None", "nan", "<NA>", ""))] = None
            cells[column] = parse_wkt(outlines)
    if "batch" in obs:
        fov = pd.Series(_ids(_column(obs, "batch", path), path, "batch"), dtype=object)
        cells["fov"] = fov.fillna("").to_numpy()
    cells["touches_border"] = None
    return cells


def _molecules(file: h5py.File, path: Path, genes: Any) -> tuple[pd.DataFrame, dict[str, int]]:
    points = file["uns/points"]
    gene = pd.Categorical(_column(points, "gene", path)).rename_categories(str)
    cell, fov = (_ids(_column(points, name, path), path, name) for name in ("cell", "batch"))
    with reading(path, "molecules in uns/points, numbers in x and y, columns of one length"):
        xy = {axis: np.asarray(_column(points, axis, path), np.float64) for axis in ("x", "y")}
        frame = pd.DataFrame({"fov": fov, "cell_id": cell, "gene": gene, **xy})
    frame = frame.assign(
        **{name: _column(points, name, path) for name in COLUMNS if name in points}
    )
    foreign = (frame["cell_id"].notna() & ~frame["gene"].isin(genes)).to_numpy()
    return frame[~foreign], {"gene not in var": int(foreign.sum())}


def _labels(
    file: h5py.File, path: Path, patterns: Sequence[str], cells: pd.Series[str], genes: Any
) -> pd.DataFrame | None:
    layers = file.get("layers", {})
    present = [name for name in patterns if name in layers]
    if not present:
        return None
    if len(present) < len(patterns):
        missing = [name for name in patterns if name not in layers]
        raise SourceError(
            f"{path} has label layers {', '.join(present)} but lacks {', '.join(missing)}; name "
            "the layers of this file as patterns"
        )
    with reading(path, f"numbers, one per cell and gene, in the layers {', '.join(patterns)}"):
        shape = (len(cells), len(genes))
        marks = np.stack([dense(layers[name], shape) for name in patterns], axis=-1)
        known = ~np.isnan(marks)  # (cells, genes, patterns)
    labelled = known.any(axis=-1)
    odd = labelled & ~np.isin(marks, (0, 1)).all(axis=-1)
    if odd.any():
        row, column = np.argwhere(odd)[0]
        raise SourceError(
            f"{path}: expected 0 or 1 in the label layers, or NaN in all of them; cell "
            f"{cells[row]}, gene {genes[column]} has {marks[row, column].tolist()} "
            f"({int(odd.sum())} such pairs)"
        )
    i, j = np.nonzero(labelled)
    frame = pd.DataFrame({"cell_id": cells.to_numpy()[i], "gene": genes[j]})
    for k, name in enumerate(patterns):
        frame[name] = marks[i, j, k].astype(bool)
    return frame
