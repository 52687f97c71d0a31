"""Cells as methods see them: one cloud of molecules each, streamed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from gpattern_bench.storage import dictionary_codes, read_fovs

if TYPE_CHECKING:
    from gpattern_bench.dataset import Dataset

__all__ = ["Cell", "Cells"]


@dataclass(frozen=True)
class Cell:
    """One cell, in its own frame: the centroid of its outline is the origin.

    Attributes
    ----------
    cell_id, fov : str
        Its name, and the field of view that it lies in.
    xy : numpy.ndarray
        (n, 2) float64, micrometres: the molecules, sorted by gene.
    gene : numpy.ndarray
        (n,) int32: codes of the molecules' genes, into the dataset's ``genes``.
    boundary : shapely geometry
        Outline, Polygon or MultiPolygon, in the same frame.
    nucleus : shapely geometry or None
        Outline of the nucleus; None where none was segmented.
    labels : numpy.ndarray or None
        (g, C) bool: labels of the genes present, in the order of `genes`; False where a pair is
        not labelled. None where labels are hidden or the dataset has none.
    labelled : numpy.ndarray or None
        (g,) bool: whether the pair counts.
    """

    cell_id: str
    fov: str
    xy: NDArray[np.float64]
    gene: NDArray[np.int32]
    boundary: BaseGeometry
    nucleus: BaseGeometry | None
    labels: NDArray[np.bool_] | None = None
    labelled: NDArray[np.bool_] | None = None

    @cached_property
    def genes(self) -> NDArray[np.int32]:
        """(g,) codes of the genes present, ascending: one pair each."""
        return np.unique(self.gene)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(g,) molecules of each gene present."""
        return np.unique(self.gene, return_counts=True)[1]

    def without_labels(self) -> Cell:
        """The same cell, its labels hidden."""
        return replace(self, labels=None, labelled=None)


class Cells:
    """The cells of a split, in the order of the tables; can be iterated any number of times.

    One row group of molecules (one FOV, at most about a million rows) is in memory at a time.

    Attributes
    ----------
    genes : tuple of str
        What the gene codes mean.
    patterns : tuple of str
        What the label columns mean.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str | None,
        *,
        keep: Collection[str] | None = None,
        labels: bool = True,
    ) -> None:
        self.genes = dataset.genes
        self.patterns = dataset.patterns
        self._dataset = dataset
        self._fovs = dataset.fovs(split)
        self._keep = None if keep is None else frozenset(keep)
        self._labels = labels and dataset.has_labels

    def without_labels(self) -> Cells:
        """The same cells, their labels hidden: what a method predicts from."""
        hidden = Cells(self._dataset, None, keep=self._keep, labels=False)
        hidden._fovs = self._fovs
        return hidden

    def __len__(self) -> int:
        outlines = self._dataset.read("cells", self._fovs, ["cell_id"])
        names = outlines["cell_id"].to_pylist()
        return len(names) if self._keep is None else sum(name in self._keep for name in names)

    def __iter__(self) -> Iterator[Cell]:
        path = self._dataset.folder / "molecules.parquet"
        columns = ["fov", "cell_id", "gene", "x", "y"]
        fov, outlines, labels = "", pd.DataFrame(), None
        for table in read_fovs(path, self._fovs, columns):
            here = table["fov"][0].as_py()
            if here != fov:
                fov = here
                outlines = self._dataset.cells_of([fov]).set_index("cell_id")
                labels = self._labels_of(fov) if self._labels else None
            yield from self._split_group(table, fov, outlines, labels)

    def _split_group(
        self, table: pa.Table, fov: str, outlines: pd.DataFrame, labels: pd.DataFrame | None
    ) -> Iterator[Cell]:
        names, starts = _runs(table["cell_id"])
        gene = self._dataset.gene_codes(table["gene"])
        xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.float64)
        for name, begin, end in zip(names, starts, [*starts[1:], len(gene)], strict=True):
            if self._keep is not None and name not in self._keep:
                continue
            outline = outlines.loc[name]
            origin = np.array([outline["x"], outline["y"]], dtype=np.float64)
            cell = Cell(
                cell_id=name,
                fov=fov,
                xy=xy[begin:end] - origin,
                gene=gene[begin:end],
                boundary=_moved(outline["cell_boundary"], origin),
                nucleus=_moved(outline["nucleus_boundary"], origin),
            )
            yield cell if labels is None else self._labelled(cell, labels)

    def _labels_of(self, fov: str) -> pd.DataFrame:
        table = self._dataset.read("labels", [fov])
        frame: pd.DataFrame = table.select(["cell_id", *self.patterns]).to_pandas()
        return frame.assign(gene=self._dataset.gene_codes(table["gene"])).set_index("cell_id")

    def _labelled(self, cell: Cell, labels: pd.DataFrame) -> Cell:
        values = np.zeros((len(cell.genes), len(self.patterns)), dtype=bool)
        labelled = np.zeros(len(cell.genes), dtype=bool)
        if cell.cell_id in labels.index:
            rows = labels.loc[[cell.cell_id]]
            at = np.searchsorted(cell.genes, rows["gene"].to_numpy())
            labelled[at] = True
            values[at] = rows[list(self.patterns)].to_numpy(bool)
        return replace(cell, labels=values, labelled=labelled)


def _runs(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """Values of a sorted text column, each once, and the rows at which they begin."""
    codes = dictionary_codes(column)
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    return column.take(pa.array(starts)).cast(pa.string()).to_pylist(), starts.tolist()


def _moved(shape: Any, origin: NDArray[np.float64]) -> Any:
    return None if shape is None else shapely.transform(shape, lambda xy: xy - origin)
