"""Stream cells as methods see them: molecules and outlines, one cell at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.errors import TableError
from gpattern_bench.tables.parquet import codes_into, dictionary_codes, read_fovs, read_table

if TYPE_CHECKING:
    from gpattern_bench.base.geometry import CellGeometry

__all__ = ["Cell", "CellTables", "Cells", "read_cells"]

_MOLECULES = "molecules.parquet"


@dataclass(frozen=True, eq=False, repr=False)
class Cell:
    """One cell, in its own frame: the centroid of its outline is the origin.

    Attributes
    ----------
    cell_id, fov : str
        Its name and its field of view.
    xy : numpy.ndarray
        (n, 2) float64, micrometres: molecules, sorted by gene.
    gene : numpy.ndarray
        (n,) int32: gene codes, into the dataset's ``genes``.
    boundary : shapely geometry
        Cell outline, Polygon or MultiPolygon, in the same frame.
    nucleus : shapely geometry or None
        Nucleus outline; None without a segmented nucleus.
    labels : numpy.ndarray or None
        (g, C) bool: labels in the order of `genes`; False for unlabelled pairs. None if hidden or
        the dataset has none.
    labelled : numpy.ndarray or None
        (g,) bool: which pairs have labels.
    z : numpy.ndarray or None
        (n,) float64, micrometres, NaN where unknown: heights, if asked for by
        :meth:`Cells.with_depth`; None where no molecule has one.
    """

    cell_id: str
    fov: str
    xy: NDArray[np.float64]
    gene: NDArray[np.int32]
    boundary: BaseGeometry
    nucleus: BaseGeometry | None
    labels: NDArray[np.bool_] | None = None
    labelled: NDArray[np.bool_] | None = None
    z: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        nucleus = "no nucleus" if self.nucleus is None else "a nucleus"
        return (
            f"<Cell {self.cell_id} of FOV {self.fov}: {len(self.gene):,} molecules, "
            f"{len(self.genes):,} genes, {nucleus}>"
        )

    @cached_property
    def _present(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return np.unique(self.gene, return_counts=True)

    @property
    def genes(self) -> NDArray[np.int32]:
        """(g,) codes of the genes present, ascending; one pair each."""
        return self._present[0]

    @property
    def counts(self) -> NDArray[np.int64]:
        """(g,) molecules of each gene present."""
        return self._present[1]

    def rearranged(self, order: NDArray[np.intp]) -> Cell:
        """Give molecule k the place of molecule ``order[k]``."""
        return replace(self, xy=self.xy[order], z=None if self.z is None else self.z[order])

    def keeping(self, kept: NDArray[np.bool_]) -> Cell:
        """Return the cell with some of its molecules (n,), and the labels of their genes."""
        at = np.searchsorted(self.genes, np.unique(self.gene[kept]))
        return replace(
            self,
            xy=self.xy[kept],
            z=None if self.z is None else self.z[kept],
            gene=self.gene[kept],
            labels=None if self.labels is None else self.labels[at],
            labelled=None if self.labelled is None else self.labelled[at],
        )

    @cached_property
    def geometry(self) -> CellGeometry:
        """Geometry of the molecules and outlines, shared by all genes and methods."""
        from gpattern_bench.base.geometry import CellGeometry  # imports numba

        return CellGeometry(self.xy, self.boundary, self.nucleus)


@dataclass(frozen=True)
class CellTables:
    """The tables of one dataset, and which of its cells to read.

    Attributes
    ----------
    folder : pathlib.Path
    fovs : collection of str
        Fields of view.
    keep : frozenset of str or None
        Ids of the cells to yield; None: all.
    prefix : str
        Put before the names of cells and fields of view, which are unique in one dataset only.
    simulated : bool
        Whether the dataset is simulated.
    """

    folder: Path
    fovs: Collection[str]
    keep: frozenset[str] | None = None
    prefix: str = ""
    simulated: bool = False


class Cells:
    """Cells of some fields of view, in table order; iterable any number of times.

    Holds one row group of molecules (one FOV, at most about a million rows) in memory.

    Parameters
    ----------
    tables : sequence of CellTables
        Of one dataset, or of several to read one after the other.
    genes : tuple of str
        The dataset's; of several the union. Sorted.
    patterns : tuple of str
        The same in all of them.
    labels : bool
        Attach labels; all must have some.

    Attributes
    ----------
    genes : tuple of str
        Names of the gene codes.
    patterns : tuple of str
        Names of the label columns.
    """

    _tables: Sequence[CellTables] = ()
    _depth = False

    def __init__(
        self,
        tables: Sequence[CellTables],
        *,
        genes: tuple[str, ...],
        patterns: tuple[str, ...],
        labels: bool,
    ) -> None:
        self.genes = genes
        self.patterns = patterns
        self._tables = tables
        self._labels = labels
        self._change: Callable[[Cell], Cell] | None = None

    def __repr__(self) -> str:
        fovs = sum(len(tables.fovs) for tables in self._tables)
        labels = "with" if self._labels else "without"
        return (
            f"<Cells of {fovs:,} FOV{'s' * (fovs != 1)}: {len(self.genes):,} genes, "
            f"{len(self.patterns)} patterns, {labels} labels>"
        )

    @property
    def simulated(self) -> bool:
        """Whether all cells are of simulated datasets."""
        return bool(self._tables) and all(tables.simulated for tables in self._tables)

    @property
    def parts(self) -> tuple[Cells, ...]:
        """Cells of one dataset each, in order; this object itself if they are of one."""
        if len(self._tables) < 2:
            return (self,)
        return tuple(self._of([tables]) for tables in self._tables)

    def only_simulated(self) -> Cells:
        """Return the cells of the simulated datasets among several, with the same panel."""
        return self._of([tables for tables in self._tables if tables.simulated])

    def sampled(self, most: int, seed: int) -> Cells:
        """Return at most so many of the cells, drawn at random."""
        names = [(k, name) for k, one in enumerate(self._tables) for name in _names(one)]
        drawn = np.random.Generator(np.random.Philox(seed)).permutation(len(names))[:most]
        kept: list[set[str]] = [set() for _ in self._tables]
        for at in drawn:
            k, name = names[at]
            kept[k].add(name)
        return self._of(
            [replace(one, keep=frozenset(k)) for one, k in zip(self._tables, kept, strict=True)]
        )

    def bounded(self, most: int, seed: int) -> Cells:
        """Return at most so many cells of each dataset, drawn at random where it has more."""
        parts = (one if len(one) <= most else one.sampled(most, seed) for one in self.parts)
        return self._of([tables for one in parts for tables in one._tables])

    def first(self, most: int) -> Cells:
        """Return the first of the cells, at most so many."""
        some = []
        for one in self._tables:
            rows = _rows(one)
            rows, most = rows.head(most), most - len(rows.head(most))
            if len(rows):
                fovs, names = rows["fov"].unique(), rows["cell_id"]
                some.append(replace(one, fovs=fovs.tolist(), keep=frozenset(names)))
        return self._of(some)

    def _of(self, tables: Sequence[CellTables]) -> Cells:
        some = copy(self)
        some._tables = tables
        return some

    def without_labels(self) -> Cells:
        """Return the same cells without labels, as methods predict from them."""
        hidden = copy(self)
        hidden._labels = False
        return hidden

    @property
    def has_depth(self) -> bool:
        """Whether some molecule of the tables has a z."""
        return any(map(_has_depth, {tables.folder / _MOLECULES for tables in self._tables}))

    def with_depth(self) -> Cells:
        """Return the same cells with the heights of their molecules, which are read only so."""
        deep = copy(self)
        deep._depth = True
        return deep

    def mapped(self, change: Callable[[Cell], Cell]) -> Cells:
        """Return the same cells, each changed by a function when its turn comes."""
        mapped = copy(self)
        mapped._change = change
        return mapped

    def __len__(self) -> int:
        return sum(map(_count, self._tables))

    def labelled_counts(self) -> NDArray[np.int64]:
        """Count the labelled pairs of each cell in the tables, in order; read no molecules."""
        if not self._labels:
            return np.zeros(len(self), np.int64)
        return np.concatenate([np.zeros(0, np.int64), *map(_labelled_counts, self._tables)])

    def __iter__(self) -> Iterator[Cell]:
        for tables in self._tables:
            with _as_table_error(str(tables.folder)):
                found = self._read(tables)
                yield from found if self._change is None else map(self._change, found)

    def _read(self, tables: CellTables) -> Iterator[Cell]:
        folder, fovs = tables.folder, tables.fovs
        if tables.keep is not None and len(tables.keep) < len(fovs):  # some have none of them
            fovs = _rows(tables)["fov"].unique().tolist()
        # All tables are sorted by FOV: read them in step, each opened once.
        columns = ["fov", "cell_id", "gene", "x", "y"] + ["z"] * self._depth
        outlines = _by_fov(read_fovs(folder / "cells.parquet", fovs))
        labels: Iterator[tuple[str, pa.Table | None]] = iter(())
        if self._labels:
            labels = _by_fov(read_fovs(folder / "labels.parquet", fovs))
        here, outlined = "", pd.DataFrame()
        labelled_fov, labelled = next(labels, ("", None))
        for table in read_fovs(folder / _MOLECULES, fovs, columns):
            fov = table["fov"][0].as_py()
            if fov != here:
                _, rows = next(outlines, ("", None))
                if rows is None:
                    raise KeyError(f"cells of field of view {fov}")
                here, outlined = fov, rows.to_pandas().set_index("cell_id")
                while labelled is not None and labelled_fov < fov:
                    labelled_fov, labelled = next(labels, ("", None))
            truth = labelled if labelled_fov == fov else None
            yield from self._split_group(tables, table, fov, outlined, truth)

    @cached_property
    def _gene_index(self) -> pd.Index[str]:
        index: pd.Index[str] = pd.Index(list(self.genes))
        return index

    def _split_group(
        self,
        tables: CellTables,
        table: pa.Table,
        fov: str,
        outlined: pd.DataFrame,
        labelled: pa.Table | None,
    ) -> Iterator[Cell]:
        """Yield the cells of one row group, vectorised over all of them."""
        names, starts = _runs(table["cell_id"])
        gene = codes_into(self._gene_index, table["gene"]).astype(np.int32)
        xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.float64)
        z = table["z"].to_numpy().astype(np.float64) if self._depth else None
        cell = np.repeat(np.arange(len(names)), np.diff(starts, append=len(gene)))
        # Rows are sorted by cell and gene: a pair is one run of rows.
        pair = cell * len(self.genes) + gene
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        genes, counts = gene[first], np.diff(first, append=len(gene))
        bounds = np.searchsorted(first, [*starts, len(gene)]).tolist()
        truth = self._truth(names, pair[first], labelled) if self._labels else None
        rows = outlined.loc[names]
        origins = rows[["x", "y"]].to_numpy(np.float64)
        boundaries, nuclei = (
            _outlines(rows[name], origins, fov) for name in ("cell_boundary", "nucleus_boundary")
        )
        for k, (begin, end) in enumerate(pairwise([*starts, len(gene)])):
            if tables.keep is not None and names[k] not in tables.keep:
                continue
            pairs = slice(bounds[k], bounds[k + 1])
            found = Cell(
                cell_id=tables.prefix + names[k],
                fov=tables.prefix + fov,
                xy=xy[begin:end] - origins[k],
                gene=gene[begin:end],
                boundary=boundaries[k],
                nucleus=nuclei[k],
                labels=None if truth is None else truth[0][pairs],
                labelled=None if truth is None else truth[1][pairs],
                z=None if z is None or np.isnan(z[begin:end]).all() else z[begin:end],
            )
            vars(found)["_present"] = genes[pairs], counts[pairs]  # known already: fill the cache
            yield found

    def _truth(
        self, names: list[str], pair: NDArray[np.int64], labelled: pa.Table | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return labels (pairs, C) and which pairs are labelled (pairs,), for sorted pairs."""
        labels = np.zeros((len(pair), len(self.patterns)), dtype=bool)
        counts = np.zeros(len(pair), dtype=bool)
        if labelled is None:
            return labels, counts
        cell = codes_into(pd.Index(names), labelled["cell_id"])
        gene = codes_into(self._gene_index, labelled["gene"])
        known = cell >= 0  # the rest: other row groups
        at = np.searchsorted(pair, cell[known] * len(self.genes) + gene[known])
        counts[at] = True
        for k, name in enumerate(self.patterns):
            labels[at, k] = labelled[name].to_numpy(zero_copy_only=False)[known]
        return labels, counts


def _has_depth(path: Path) -> bool:
    with _as_table_error(str(path)):
        found = pq.read_metadata(path)
    for k in range(found.num_row_groups):
        group = found.row_group(k)
        columns = [group.column(c) for c in range(group.num_columns)]
        for column in columns:
            known = column.statistics
            if column.path_in_schema == "z" and (
                known is None or not known.has_null_count or known.null_count < group.num_rows
            ):
                return True
    return False


def _names(tables: CellTables) -> list[str]:
    """Name the cells to yield, as their table does."""
    names = read_table(tables.folder / "cells.parquet", tables.fovs, ["cell_id"])["cell_id"]
    return [name for name in names.to_pylist() if tables.keep is None or name in tables.keep]


def _rows(tables: CellTables) -> pd.DataFrame:
    """Name the field of view and the id of the cells to yield, in table order."""
    table = read_table(tables.folder / "cells.parquet", tables.fovs, ["fov", "cell_id"])
    rows: pd.DataFrame = table.to_pandas().astype(str)
    return rows if tables.keep is None else rows[rows["cell_id"].isin(tables.keep)]


def _count(tables: CellTables) -> int:
    """Count the cells to yield."""
    if tables.keep is None:
        return len(read_table(tables.folder / "cells.parquet", tables.fovs, ["cell_id"]))
    return len(_names(tables))


def _labelled_counts(tables: CellTables) -> NDArray[np.int64]:
    """Count the labelled pairs of the cells to yield."""
    counts: Counter[str] = Counter()
    for labels in read_fovs(tables.folder / "labels.parquet", tables.fovs, ["cell_id"]):
        names, starts = _runs(labels["cell_id"])
        for name, count in zip(names, np.diff(starts, append=len(labels)).tolist(), strict=True):
            counts[name] += count
    return np.array([counts[name] for name in _names(tables)], np.int64)


@contextmanager
def _as_table_error(what: str) -> Iterator[None]:
    """Raise TableError for values that curation never writes."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, pa.ArrowException, ShapelyError) as error:
        problem = (
            f"the tables are damaged or do not fit each other ({error!r}); see `gpattern-bench "
            "verify`. Remove the folder and make it again"
        )
        raise TableError(what, [problem]) from error


def _outlines(wkb: pd.Series[Any], origins: NDArray[np.float64], fov: str) -> NDArray[np.object_]:
    """Parse outlines, each in the frame of its cell; None stays."""
    with _as_table_error(f"{wkb.name} of field of view {fov}"):
        shapes = parse_wkb(wkb.to_numpy(object))
    shifts = np.repeat(origins, shapely.get_num_coordinates(shapes), axis=0)
    moved: NDArray[np.object_] = shapely.transform(shapes, lambda xy: xy - shifts)
    return moved


def _by_fov(pieces: Iterator[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Join consecutive row groups of one field of view."""
    for fov, group in groupby(pieces, key=lambda table: str(table["fov"][0].as_py())):
        yield fov, pa.concat_tables(list(group)).unify_dictionaries()


def read_cells(
    folder: Path, fovs: Collection[str], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read the cells table of some fields of view, outlines as shapely geometries."""
    frame: pd.DataFrame = read_table(folder / "cells.parquet", fovs, columns).to_pandas()
    for name in frame.columns.intersection(["cell_boundary", "nucleus_boundary"]):
        with _as_table_error(str(folder / "cells.parquet")):
            frame[name] = parse_wkb(frame[name].to_numpy(object))
    return frame


def _runs(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """Return the distinct values of a sorted text column and their first rows."""
    codes = dictionary_codes(column)
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    return column.take(pa.array(starts)).cast(pa.string()).to_pylist(), starts.tolist()
