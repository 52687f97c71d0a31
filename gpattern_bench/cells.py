"""Cells as methods see them: one cloud of molecules each, streamed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from gpattern_bench.storage import codes_into, dictionary_codes, read_fovs, read_table

__all__ = ["Cell", "Cells", "read_cells"]

_Values = dict[str, tuple[NDArray[np.int64], NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
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
    def _present(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return np.unique(self.gene, return_counts=True)

    @property
    def genes(self) -> NDArray[np.int32]:
        """(g,) codes of the genes present, ascending: one pair each."""
        return self._present[0]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(g,) molecules of each gene present."""
        return self._present[1]


class Cells:
    """The cells of some fields of view, in the order of the tables; iterable any number of times.

    One row group of molecules (one FOV, at most about a million rows) is in memory at a time.

    Parameters
    ----------
    folder : pathlib.Path
        The dataset's tables.
    fovs : collection of str
        Fields of view to read.
    genes, patterns : tuple of str
        The dataset's.
    labels : bool
        Whether to attach labels, which the dataset must then have.
    keep : collection of str, optional
        Only the cells of these ids.

    Attributes
    ----------
    genes : tuple of str
        What the gene codes mean.
    patterns : tuple of str
        What the label columns mean.
    """

    def __init__(
        self,
        folder: Path,
        fovs: Collection[str],
        *,
        genes: tuple[str, ...],
        patterns: tuple[str, ...],
        labels: bool,
        keep: Collection[str] | None = None,
    ) -> None:
        self.genes = genes
        self.patterns = patterns
        self._folder = folder
        self._fovs = fovs
        self._labels = labels
        self._keep = None if keep is None else frozenset(keep)

    def without_labels(self) -> Cells:
        """The same cells, their labels hidden: what a method predicts from."""
        return Cells(
            self._folder,
            self._fovs,
            genes=self.genes,
            patterns=self.patterns,
            labels=False,
            keep=self._keep,
        )

    def __len__(self) -> int:
        names = read_table(self._folder / "cells.parquet", self._fovs, ["cell_id"])["cell_id"]
        if self._keep is None:
            return len(names)
        return sum(name in self._keep for name in names.to_pylist())

    def __iter__(self) -> Iterator[Cell]:
        # All tables are sorted by FOV, so they are read side by side, each opened once.
        columns = ["fov", "cell_id", "gene", "x", "y"]
        outlines = _by_fov(read_fovs(self._folder / "cells.parquet", self._fovs))
        labels: Iterator[tuple[str, pa.Table | None]] = iter(())
        if self._labels:
            labels = _by_fov(read_fovs(self._folder / "labels.parquet", self._fovs))
        here, cells, values = "", pd.DataFrame(), None
        labelled_fov, labelled = next(labels, ("", None))
        for table in read_fovs(self._folder / "molecules.parquet", self._fovs, columns):
            fov = table["fov"][0].as_py()
            if fov != here:
                here, cells = fov, _with_outlines(next(outlines)[1]).set_index("cell_id")
                while labelled is not None and labelled_fov < fov:
                    labelled_fov, labelled = next(labels, ("", None))
                values = self._values(labelled if labelled_fov == fov else None)
            yield from self._split_group(table, fov, cells, values)

    @cached_property
    def _gene_index(self) -> pd.Index[str]:
        index: pd.Index[str] = pd.Index(list(self.genes))
        return index

    def _split_group(
        self, table: pa.Table, fov: str, cells: pd.DataFrame, values: _Values | None
    ) -> Iterator[Cell]:
        names, starts = _runs(table["cell_id"])
        gene = codes_into(self._gene_index, table["gene"]).astype(np.int32)
        xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.float64)
        for name, begin, end in zip(names, starts, [*starts[1:], len(gene)], strict=True):
            if self._keep is not None and name not in self._keep:
                continue
            row = cells.loc[name]
            origin = np.array([row["x"], row["y"]], dtype=np.float64)
            cell = Cell(
                cell_id=name,
                fov=fov,
                xy=xy[begin:end] - origin,
                gene=gene[begin:end],
                boundary=_moved(row["cell_boundary"], origin),
                nucleus=_moved(row["nucleus_boundary"], origin),
            )
            yield cell if values is None else self._labelled(cell, values)

    def _values(self, table: pa.Table | None) -> _Values | None:
        """Labels of a FOV by cell: codes of the labelled genes, and their labels (g, C)."""
        if not self._labels:
            return None
        if table is None:
            return {}
        names, starts = _runs(table["cell_id"])
        genes = codes_into(self._gene_index, table["gene"])
        labels = np.stack([table[p].to_numpy(zero_copy_only=False) for p in self.patterns], axis=1)
        ends = [*starts[1:], len(genes)]
        return {
            name: (genes[begin:end], labels[begin:end])
            for name, begin, end in zip(names, starts, ends, strict=True)
        }

    def _labelled(self, cell: Cell, values: _Values) -> Cell:
        labels = np.zeros((len(cell.genes), len(self.patterns)), dtype=bool)
        labelled = np.zeros(len(cell.genes), dtype=bool)
        if cell.cell_id in values:
            genes, known = values[cell.cell_id]
            at = np.searchsorted(cell.genes, genes)
            labelled[at] = True
            labels[at] = known
        return replace(cell, labels=labels, labelled=labelled)


def _by_fov(pieces: Iterator[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Join the consecutive row groups of one field of view."""
    for fov, group in groupby(pieces, key=lambda table: str(table["fov"][0].as_py())):
        yield fov, pa.concat_tables(list(group)).unify_dictionaries()


def _with_outlines(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    for name in ("cell_boundary", "nucleus_boundary"):
        frame[name] = shapely.from_wkb(frame[name].to_numpy(object))
    return frame


def read_cells(folder: Path, fovs: Collection[str]) -> pd.DataFrame:
    """Read the table of cells of some fields of view, outlines as shapely geometries."""
    return _with_outlines(read_table(folder / "cells.parquet", fovs))


def _runs(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """Values of a sorted text column, each once, and the rows at which they begin."""
    codes = dictionary_codes(column)
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    return column.take(pa.array(starts)).cast(pa.string()).to_pylist(), starts.tolist()


def _moved(shape: Any, origin: NDArray[np.float64]) -> Any:
    return None if shape is None else shapely.transform(shape, lambda xy: xy - origin)
