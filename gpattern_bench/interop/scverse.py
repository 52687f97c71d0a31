"""A dataset as scverse holds it: AnnData of pairs, SpatialData of molecules and outlines."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from gpattern_bench.curate.quality import COLUMNS
from gpattern_bench.curate.readers.geoparquet import CELL_IDS
from gpattern_bench.curate.readers.ids import plain_id
from gpattern_bench.curate.readers.transformations import moved, relative_map
from gpattern_bench.data.cells import read_cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MissingExtraError, SourceError
from gpattern_bench.predictions import check_file
from gpattern_bench.tables.parquet import codes_into, read_fovs
from gpattern_bench.tables.predictions import (
    FLOATS,
    as_table,
    check_predictions,
    pair_positions,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["add_pairs", "from_spatialdata", "table_of_cells", "to_anndata", "to_spatialdata"]

_REGION = "cell_boundaries"
_ROWS = 1_000_000  # of a partition of points


def to_anndata(
    dataset: Dataset, scores: str | Path | pd.DataFrame | pa.Table | None = None
) -> AnnData:
    """Give a dataset as cells by genes: counts, and labels and scores of the pairs as layers.

    All layers are sparse, so that 100,000 cells fit into memory. What a sparse layer lacks is 0,
    not unknown; therefore two masks say which pairs are known.

    ================= ==============================================================
    ``X``             molecules, int32
    ``obs``           one row per cell: ``fov``, ``split``, ``n_molecules``,
                      ``n_genes``, ``touches_border``
    ``obsm``          ``spatial``: centroids (cells, 2), slide-global micrometres
    ``layers``        ``labelled``: 1 where a pair has labels, uint8; ``label_<pattern>``:
                      1 where it has the pattern, uint8; ``scored`` and
                      ``score_<pattern>`` (float32) likewise, where scores are given
    ``uns``           ``gpattern_bench``: dataset, version, patterns, unit
    ================= ==============================================================

    Parameters
    ----------
    dataset : Dataset
    scores : str, pathlib.Path, pandas.DataFrame or pyarrow.Table, optional
        A prediction file of this dataset, or a file of ``gpattern-bench predict``; or a table with
        ``cell_id``, ``gene`` and one column per pattern, of any pairs of it.

    Returns
    -------
    anndata.AnnData

    Raises
    ------
    PredictionError
        The scores are not of this dataset, or break the prediction format.
    MissingExtraError
        anndata is not installed.
    """
    anndata = _extra("anndata")
    cells = read_cells(dataset.folder, dataset.fovs())
    split = {fov: name for name in dataset.splits for fov in dataset.fovs(name)}
    obs = pd.DataFrame(
        {
            "fov": pd.Categorical(cells["fov"].astype(str)),
            "split": pd.Categorical(cells["fov"].map(split).astype(str)),
            "n_molecules": cells["n_molecules"],
            "n_genes": cells["n_genes"],
            "touches_border": cells["touches_border"].astype("boolean"),
        }
    )
    obs.index = pd.Index(cells["cell_id"].to_numpy(object), dtype=object)
    genes = pd.Index(list(dataset.genes), dtype=object)
    pairs = _Pairs(obs.index, genes)
    layers: dict[str, sparse.csr_matrix] = {}
    if dataset.has_labels:
        labels = dataset.labels()
        values = {name: labels[name].to_numpy() for name in dataset.patterns}
        layers |= pairs.layers(labels, "labelled", "label", values)
    if scores is not None:
        layers |= pairs.layers(*_scored(dataset, scores))
    return anndata.AnnData(
        X=_counts(dataset, obs.index, genes),
        obs=obs,
        var=pd.DataFrame(index=genes),
        obsm={"spatial": cells[["x", "y"]].to_numpy(np.float64)},
        layers=layers,
        uns={"gpattern_bench": _about(dataset)},
    )


def add_pairs(
    table: AnnData,
    pairs: pd.DataFrame,
    mask: str,
    prefix: str,
    values: Mapping[str, NDArray[Any]],
) -> None:
    """Add layers to a table of :func:`to_anndata`: what is known of some pairs, and of which.

    Parameters
    ----------
    table : anndata.AnnData
    pairs : pandas.DataFrame
        (n,) ``cell_id`` and ``gene``, of cells and genes of the table.
    mask : str
        Name of the layer that is 1 where a pair is known.
    prefix : str
        The layers of the values are named ``<prefix>_<name>``.
    values : mapping of str to numpy.ndarray
        (n,) bool, stored as uint8 where true, or floats, stored as float32.
    """
    made = _Pairs(table.obs_names, table.var_names).layers(pairs, mask, prefix, values)
    for name, layer in made.items():
        table.layers[name] = layer


def table_of_cells(sdata: SpatialData, table: AnnData, cells: str) -> AnnData:
    """Tie a table of :func:`to_anndata` to the outlines of an object that it was made of.

    Parameters
    ----------
    sdata : spatialdata.SpatialData
        As :func:`from_spatialdata` read it, with the points ``transcripts``.
    table : anndata.AnnData
        Changed: its ``obs`` gets ``region``, and ``cell_id``, the outlines' index, of its type.
    cells : str
        The shapes that are the outlines.
    """
    models = _extra("spatialdata.models")
    shapes = sdata.shapes[cells]
    keys = sdata.points["transcripts"].attrs.get("spatialdata_attrs", {})
    ids = _ids_of(shapes, keys.get("instance_key"))
    at = {plain_id(str(name), cells, "cell_id"): k for k, name in enumerate(ids)}
    rows = [at[name] for name in table.obs_names]
    table.obs["region"] = pd.Categorical([cells] * len(table))
    table.obs["cell_id"] = shapes.index.to_numpy()[rows]
    return models.TableModel.parse(table, region=cells, region_key="region", instance_key="cell_id")


def to_spatialdata(dataset: Dataset) -> SpatialData:
    """Give a dataset as points, shapes and a table, all in slide-global micrometres.

    ============================== =================================================
    ``points/transcripts``         molecules: ``x``, ``y`` (``z`` where all have
                                   one), ``gene`` (feature key), ``cell_id``
                                   (instance key), ``fov``
    ``shapes/cell_boundaries``     outlines, indexed by the cells' names
    ``shapes/nucleus_boundaries``  the same, of the cells that have a nucleus
    ``tables/table``               :func:`to_anndata`, annotates ``cell_boundaries``
    ============================== =================================================

    The names are those that
    :func:`gpattern_bench.curate.readers.spatialdata.read_spatialdata` reads. The molecules are in
    memory at once.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    spatialdata.SpatialData

    Raises
    ------
    MissingExtraError
        spatialdata is not installed.
    """
    spatialdata, models = _extra("spatialdata"), _extra("spatialdata.models")
    geopandas = _extra("geopandas")
    cells = dataset.cells().set_index("cell_id")
    cells.index = pd.Index(cells.index.to_numpy(object), dtype=object)
    shapes = {}
    for name in ("cell_boundary", "nucleus_boundary"):
        outlines = cells[name].dropna()
        if len(outlines):
            frame = geopandas.GeoDataFrame(geometry=outlines.to_numpy(), index=outlines.index)
            shapes[name.replace("boundary", "boundaries")] = models.ShapesModel.parse(frame)
    table = to_anndata(dataset)
    table.obs["region"] = pd.Categorical([_REGION] * len(table))
    table.obs["cell_id"] = table.obs_names.to_numpy(object)
    molecules = dataset.molecules().to_pandas()
    if molecules["z"].isna().any():
        molecules = molecules.drop(columns="z")
    return spatialdata.SpatialData(
        points={
            "transcripts": models.PointsModel.parse(
                molecules, feature_key="gene", instance_key="cell_id", chunksize=_ROWS
            )
        },
        shapes=shapes,
        tables={
            "table": models.TableModel.parse(
                table, region=_REGION, region_key="region", instance_key="cell_id"
            )
        },
        attrs={"gpattern_bench": _about(dataset)},
    )


def from_spatialdata(
    sdata: SpatialData,
    *,
    points: str = "transcripts",
    cells: str = "cell_boundaries",
    nuclei: str | None = None,
    gene_column: str | None = None,
    cell_column: str | None = None,
    fov_column: str | None = None,
    **options: Any,
) -> Dataset:
    """Make a dataset of a SpatialData object in memory; see :meth:`Dataset.from_frames`.

    Reads elements as `gpattern-bench curate spatialdata` reads files: coordinates are the x and y
    of the points, and outlines in another frame are mapped there.

    Parameters
    ----------
    sdata : spatialdata.SpatialData
    points, cells, nuclei : str
        Elements of molecules and outlines. Nuclei: by default ``nucleus_boundaries``, if it is
        there and `cells` has its default.
    gene_column, cell_column : str, optional
        Columns of the points; default: their ``feature_key`` and ``instance_key``. An outline's id
        is the shapes' column of the same name as `cell_column`, else their index.
    fov_column : str, optional
        Column of the points with the field of view; default: tiles.
    **options
        `labels`, `name`, `patterns`, `unit_um` and `tile_um` of :meth:`Dataset.from_frames`.

    Raises
    ------
    SourceError
        An element or column is missing, or elements share no coordinate system; the text lists
        what is there.
    """
    if nuclei is None and cells == "cell_boundaries" and "nucleus_boundaries" in sdata.shapes:
        nuclei = "nucleus_boundaries"
    for kind, element in (("points", points), ("shapes", cells), ("shapes", nuclei)):
        if element is not None and element not in getattr(sdata, kind):
            raise SourceError(
                f"the object has no {kind} {element!r}; it has points {', '.join(sdata.points)} "
                f"and shapes {', '.join(sdata.shapes)}. Name yours (points, cells, nuclei)"
            )
    frame = sdata.points[points]
    keys = frame.attrs.get("spatialdata_attrs", {})
    named = {
        "gene": gene_column or keys.get("feature_key"),
        "cell_id": cell_column or keys.get("instance_key"),
    } | ({} if fov_column is None else {"fov": fov_column})
    there = ", ".join(map(str, frame.columns))
    for key, option in (("gene", "gene_column"), ("cell_id", "cell_column")):
        if named[key] is None:
            raise SourceError(f"{points} names no column of {key}; give {option}. It has {there}")
    if missing := [name for name in named.values() if name not in frame.columns]:
        raise SourceError(f"{points} lacks the columns {', '.join(missing)}; it has {there}")
    also = [name for name in ("x", "y", "z", *COLUMNS) if name in frame.columns]
    read = frame[list(dict.fromkeys([*also, *named.values()]))].compute()
    molecules = pd.DataFrame(
        {name: read[name] for name in also} | {key: read[name] for key, name in named.items()}
    )
    of_cells, of_nuclei = (
        None if element is None else _in_frame_of(sdata, element, points, named["cell_id"])
        for element in (cells, nuclei)
    )
    return Dataset.from_frames(molecules, of_cells, of_nuclei, **options)


def _in_frame_of(sdata: SpatialData, element: str, points: str, cell: str) -> pd.Series[Any]:
    """Give outlines in the frame of the points, indexed by the id of the cell."""
    shapes = sdata.shapes[element]
    if "radius" in shapes.columns:
        raise SourceError(f"{element} has circles, expected polygons; name another element")
    try:
        matrix = relative_map(_maps(shapes), _maps(sdata.points[points]))
    except ValueError as error:
        raise SourceError(
            f"{points} and {element} cannot be brought into one frame: {error}; set their "
            "transformations (spatialdata.transformations.set_transformation)"
        ) from error
    names = pd.Index(_ids_of(shapes, cell), dtype=object)
    return pd.Series(moved(shapes.geometry.to_numpy(), matrix), names, dtype=object)


def _ids_of(shapes: Any, cell: str | None) -> list[Any]:
    """Read the ids of outlines: of a column, `cell` by name if it is there, or of the index."""
    # As on disk: row numbers only where no column names the cells.
    columns = [cell, *(CELL_IDS if isinstance(shapes.index, pd.RangeIndex) else ())]
    named = next((name for name in columns if name in shapes.columns), None)
    # In SpatialData an index of numbers holds the ids, too.
    return list(shapes.index if named is None else shapes[named])


def _maps(element: Any) -> dict[str, NDArray[np.float64]]:
    """Read an element's transformations, by coordinate system: (3, 3) maps of (x, y, 1)."""
    found = _extra("spatialdata.transformations").get_transformation(element, get_all=True)
    axes = ("x", "y")
    return {name: step.to_affine_matrix(axes, axes) for name, step in found.items()}


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} cannot be imported ({error}); install "
            "gpattern-bench[spatial]"
        ) from error


def _about(dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "version": dataset.version,
        "patterns": list(dataset.patterns),
        "unit": "um",
    }


def _counts(dataset: Dataset, cells: pd.Index, genes: pd.Index) -> sparse.csr_matrix:
    """Molecules per cell and gene; the tables have the order of the matrix."""
    keys, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    molecules = dataset.folder / "molecules.parquet"
    for group in read_fovs(molecules, dataset.fovs(), ["cell_id", "gene"]):
        pair = codes_into(cells, group["cell_id"]) * len(genes) + codes_into(genes, group["gene"])
        key, count = np.unique(pair, return_counts=True)
        keys.append(key)
        counts.append(count)
    cell, gene = np.divmod(np.concatenate(keys), max(len(genes), 1))
    values = np.concatenate(counts).astype(np.int32)
    return sparse.csr_matrix((values, (cell, gene)), shape=(len(cells), len(genes)))


class _Pairs:
    """Where pairs stand in a matrix of cells by genes."""

    def __init__(self, cells: pd.Index, genes: pd.Index) -> None:
        self._cells, self._genes = cells, genes

    def layers(
        self, pairs: pd.DataFrame, mask: str, prefix: str, values: Mapping[str, NDArray[Any]]
    ) -> dict[str, sparse.csr_matrix]:
        """Which pairs are known, and one matrix per pattern of what is known of them."""
        cell = self._cells.get_indexer(pd.Index(pairs["cell_id"].astype(object)))
        gene = self._genes.get_indexer(pd.Index(pairs["gene"].astype(object)))

        def matrix(values: NDArray[Any], used: Any = slice(None)) -> sparse.csr_matrix:
            shape = (len(self._cells), len(self._genes))
            return sparse.csr_matrix((values[used], (cell[used], gene[used])), shape=shape)

        layers = {mask: matrix(np.ones(len(pairs), np.uint8))}
        for name, column in values.items():
            if column.dtype == bool:
                layers[f"{prefix}_{name}"] = matrix(column.astype(np.uint8), column)
            else:
                layers[f"{prefix}_{name}"] = matrix(column.astype(np.float32))
        return layers


def _scored(
    dataset: Dataset, scores: str | Path | pd.DataFrame | pa.Table
) -> tuple[pd.DataFrame, str, str, dict[str, NDArray[Any]]]:
    """Arguments of :meth:`_Pairs.layers` for checked scores."""
    if isinstance(scores, str | Path):
        checked = check_file(scores, dataset)
    else:  # any pairs may be scored
        table = as_table(scores)
        pairs = dataset.pairs(labelled=False)
        names = table.column_names
        if names.count("cell_id") == names.count("gene") == 1:
            at = pair_positions(table, pairs)
            pairs = pairs.iloc[np.unique(at[at >= 0])]
        subject = f"scores for {dataset.id}"
        checked = check_predictions(table, pairs, dataset.patterns, subject=subject, dtypes=FLOATS)
    columns = dict(zip(dataset.patterns, checked.require().T, strict=True))
    return checked.pairs, "scored", "score", columns
