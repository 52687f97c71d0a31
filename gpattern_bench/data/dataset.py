"""Load datasets: folders of validated tables, read by split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gpattern_bench.base.files import MANIFEST
from gpattern_bench.base.html import html_table
from gpattern_bench.errors import GPatternBenchError, TableError, UnknownDatasetError
from gpattern_bench.sources.cache import cache_root
from gpattern_bench.sources.registry import find_entry, is_registered
from gpattern_bench.tables import schema
from gpattern_bench.tables.manifest import Placement, read_manifest
from gpattern_bench.tables.parquet import read_table, read_whole

# Functions import pandas, shapely and curation: loading a dataset stays quick.
if TYPE_CHECKING:
    import pandas as pd

    from gpattern_bench.data.cells import Cells
    from gpattern_bench.data.torch import TorchCells

__all__ = ["Dataset", "load_dataset", "load_datasets"]


def load_dataset(
    name: str | Path,
    *,
    root: str | Path | None = None,
    download: bool = True,
    verify: bool = False,
) -> Dataset:
    """Load a dataset by name; make it first if the cache lacks it.

    Parameters
    ----------
    name : str or pathlib.Path
        ``"name"`` (its newest version), ``"name@version"``, or a folder of tables. No folder
        takes the place of a registered name: ``"./synthetic"`` is the folder.
    root : str or pathlib.Path, optional
        Cache folder; default ``GPATTERN_BENCH_DATA``, else the system's cache folder.
    download : bool
        False: fetch nothing; the error names the missing file and where to put it.
    verify : bool
        True: check every file, hash and rule (:meth:`Dataset.verify`); False: file sizes only.

    Returns
    -------
    Dataset

    Raises
    ------
    UnknownDatasetError
        No such name or version; the text gives the nearest names and the whole list.
    FetchError
        A source file is missing and cannot be fetched.
    TableError
        The folder's tables are incomplete or break a rule.

    Examples
    --------
    >>> ds = load_dataset("synthetic")
    >>> ds.patterns
    ('cell_edge', 'cytoplasmic', 'nuclear', 'nuclear_edge')
    """
    folder = Path(name).expanduser()
    if _is_name(name):
        entry = find_entry(str(name))
        folder = cache_root(root) / entry.name / entry.version
        if not (folder / MANIFEST).is_file():
            from gpattern_bench.curate.build import build

            build(entry, cache_root(root), download=download)
    dataset = Dataset(folder)
    if verify:
        dataset.verify()
    return dataset


def load_datasets(names: Sequence[str | Path]) -> list[Dataset]:
    """Load several datasets, each as :func:`load_dataset`, once all of them are known.

    Raises
    ------
    UnknownDatasetError
        With every unknown name; nothing was made.
    """
    unknown = []
    for name in filter(_is_name, names):
        try:
            find_entry(str(name))
        except UnknownDatasetError as error:
            unknown.append(str(error))
    if unknown:
        raise UnknownDatasetError("\n".join(unknown))
    return [load_dataset(name) for name in names]


def _is_name(name: str | Path) -> bool:
    """Test whether it names a registered dataset, not a folder of tables."""
    # What lies in the current folder never changes what a registered name means.
    known = isinstance(name, str) and is_registered(name)
    return not str(name) or known or not Path(name).expanduser().is_dir()


class Dataset:
    """One dataset version: molecules, outlines, labels and splits in a folder of Parquet tables.

    Reads only the row groups of the requested split.

    Parameters
    ----------
    folder : pathlib.Path
        A folder written by curation.

    Attributes
    ----------
    folder : pathlib.Path
    manifest : gpattern_bench.tables.manifest.Manifest
        Contents of ``manifest.json``.
    name, version : str
    patterns, genes : tuple of str
        The classes, and all genes in sorted order.
    splits : tuple of str
        Splits with cells, in the order train, val, test.
    split_of : dict of str to str
        Field of view -> split.

    Raises
    ------
    TableError
        No manifest, or files of other sizes than in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.manifest = read_manifest(folder)
        self.name, self.version = self.manifest.name, self.manifest.version
        self.patterns, self.genes = self.manifest.patterns, self.manifest.genes
        self.has_labels = self.manifest.has_labels
        splits = read_whole(self.folder / "splits.parquet")
        if not splits.schema.equals(schema.SPLITS) or any(c.null_count for c in splits.columns):
            problem = f"splits.parquet: expected columns {schema.SPLITS}, got {splits.schema}"
            raise TableError(f"{folder} ({self.id})", [problem])
        self.split_of = dict(
            zip(splits["fov"].to_pylist(), splits["split"].to_pylist(), strict=True)
        )
        self.splits = tuple(s for s in schema.SPLIT_NAMES if s in self.split_of.values())

    @classmethod
    def from_frames(
        cls,
        molecules: pd.DataFrame | pa.Table,
        cells: pd.DataFrame | pd.Series[Any] | None,
        nuclei: pd.DataFrame | pd.Series[Any] | None = None,
        labels: pd.DataFrame | None = None,
        *,
        name: str = "mine",
        patterns: Sequence[str] | None = None,
        unit_um: float = 1.0,
        tile_um: float = 500.0,
    ) -> Dataset:
        """Make a dataset of tables in memory, by the rules of `gpattern-bench curate table`.

        Its tables lie in a temporary folder until Python ends (`folder`), so that everything that
        takes a dataset takes it, workers in other processes included.

        Parameters
        ----------
        molecules : pandas.DataFrame or pyarrow.Table
            One row each: ``x``, ``y``, ``gene``, and ``cell_id`` (missing, empty, ``-1`` or
            ``UNASSIGNED``: outside every cell). Without the column, the outlines say which cell.
            Where they are there, also ``z``, ``fov`` (else square tiles), ``qv``, ``is_gene`` and
            ``codeword_category``.
        cells : geopandas.GeoDataFrame, geopandas.GeoSeries, pandas.DataFrame or Series, or None
            Outlines as shapely geometries (``geometry``), named by a column ``cell_id`` or by the
            index; an index of row numbers is refused. None: an outline is drawn around each cell's
            molecules (:func:`gpattern_bench.base.geometry.surrogate_outline`).
        nuclei : the same, optional
            Outlines of nuclei, named as their cells.
        labels : pandas.DataFrame, optional
            Labelled pairs: ``cell_id``, ``gene`` and a column of 0 and 1 per pattern. With labels,
            whole fields of view are split into train, val and test; without, all are test.
        name : str
        patterns : sequence of str, optional
            Default: the columns of `labels`, else cell_edge, cytoplasmic, nuclear, nuclear_edge.
        unit_um : float
            Micrometres per unit of the coordinates.
        tile_um : float
            Side of the tiles, um; 0: one field of view.

        Raises
        ------
        SourceError
            A column is missing or of another type, ids are missing or repeat, or fewer than half
            of the molecules lie in their cells.

        Examples
        --------
        >>> import pandas as pd
        >>> from shapely import box
        >>> molecules = pd.DataFrame(
        ...     {"x": [1, 2, 11], "y": [1, 2, 1], "gene": ["A", "B", "A"], "cell_id": [7, 7, 8]}
        ... )
        >>> cells = pd.Series([box(0, 0, 5, 5), box(10, 0, 15, 5)], index=[7, 8])
        >>> Dataset.from_frames(molecules, cells)
        <Dataset mine@0.0.0: 2 cells, 2 genes>
        """
        from gpattern_bench.curate.frames import curate_frames

        rules = {"unit_um": unit_um, "tile_um": tile_um}
        return cls(
            curate_frames(molecules, cells, nuclei, labels, name=name, patterns=patterns, **rules)
        )

    @classmethod
    def from_spatialdata(cls, sdata: Any, **options: Any) -> Dataset:
        """Make a dataset of a SpatialData object in memory (extra ``[spatial]``).

        See :func:`gpattern_bench.interop.scverse.from_spatialdata` for the options: elements,
        columns, and those of :meth:`from_frames`.
        """
        from gpattern_bench.interop.scverse import from_spatialdata

        return from_spatialdata(sdata, **options)

    def __repr__(self) -> str:
        return f"<Dataset {self.id}: {self.manifest.counts.cells} cells, {len(self.genes)} genes>"

    def _repr_html_(self) -> str:
        """Render counts per split and the patterns for notebooks."""
        counts = self.manifest.counts
        keys = list(counts.totals)
        parts = [*counts.splits.items(), ("all", counts)]
        rows = [[name, *(part.totals.get(key) for key in keys)] for name, part in parts]
        heads = ["split", *(key.replace("_", " ") for key in keys)]
        note = f"{len(self.genes):,} genes; patterns: {', '.join(self.patterns)}"
        return html_table(self.id, heads, rows, note if self.has_labels else f"{note}; no labels")

    @property
    def id(self) -> str:
        """``name@version``."""
        return self.manifest.id

    @property
    def labels_sha256(self) -> str:
        """Hash of the label values, stored with every score."""
        self._need_labels()
        return self.manifest.files["labels.parquet"].content_sha256

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of FOVs, cells, genes, molecules, pairs and, with labels, labelled pairs."""
        return {"genes": len(self.genes), **self.manifest.counts.totals}

    def molecules(self, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the molecules of a split (None: all splits).

        All columns: :data:`gpattern_bench.tables.schema.MOLECULES`.
        """
        return self._read("molecules", split, columns)

    def labels(
        self, split: str | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Read the labelled pairs of a split: fov, cell_id, gene, n_molecules, bool per pattern.

        Raises
        ------
        TableError
            The dataset has no labels.
        """
        self._need_labels()
        frame: pd.DataFrame = self._read("labels", split, columns).to_pandas()
        return frame

    def cells(self, split: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the cells of a split, outlines as shapely geometries in global micrometres."""
        from gpattern_bench.data.cells import read_cells

        return read_cells(self.folder, self.fovs(split), columns)

    def pairs(
        self,
        split: str | None = None,
        *,
        labelled: bool = True,
        labels: bool = False,
        fovs: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read the pairs to predict: the labelled or, without labels, all.

        Parameters
        ----------
        split : str or None
            None: all splits.
        labelled : bool
            False: all pairs, labelled or not.
        labels : bool
            Add one column per pattern. It merges with features by ``cell_id`` and ``gene``, the
            only columns that both have.
        fovs : collection of str, optional
            Replaces `split`.

        Returns
        -------
        pandas.DataFrame
            ``cell_id``, ``gene`` and, with `labels`, a bool column per pattern: False means that
            the pair was labelled and does not have the pattern. With ``labelled=False`` the columns
            are float32: 1, 0, or NaN for a pair that was not labelled, of which nothing is known.

        Raises
        ------
        TableError
            Labels are asked for and the dataset has none.

        Examples
        --------
        Straight into scikit-learn, whose trees on histograms take NaN in features:

        >>> from sklearn.ensemble import HistGradientBoostingClassifier
        >>> from gpattern_bench import load_dataset
        >>> from gpattern_bench.features import compute_features
        >>> ds = load_dataset("synthetic")
        >>> known = ds.pairs("val", labels=True).merge(compute_features("bento", ds, "val"))
        >>> X, y = known.drop(columns=["cell_id", "gene", *ds.patterns]), known["nuclear"]
        >>> HistGradientBoostingClassifier(max_iter=5).fit(X, y).score(X, y) > 0.8
        True
        """
        if labels:
            self._need_labels()
        keys, read = ["cell_id", "gene"], self.fovs(split) if fovs is None else fovs
        patterns = list(self.patterns) if labels else []
        of_labels = self.folder / "labels.parquet"
        if self.has_labels and labelled:
            found: pd.DataFrame = read_table(of_labels, read, keys + patterns).to_pandas()
            return found.drop_duplicates(keys, ignore_index=True)
        found = read_table(self.folder / "molecules.parquet", read, keys).to_pandas()
        found = found.drop_duplicates(ignore_index=True)
        if labels:
            import numpy as np

            from gpattern_bench.tables.predictions import pair_positions

            known = read_table(of_labels, read, keys + patterns)
            at = pair_positions(known, found)
            for name in patterns:
                values = np.full(len(found), np.nan, np.float32)
                values[at] = known[name].to_numpy(zero_copy_only=False)
                found[name] = values
        return found

    def iter_cells(self, split: str | None = None, *, keep: Collection[str] | None = None) -> Cells:
        """Stream the cells of a split, with one row group of molecules in memory.

        Parameters
        ----------
        split : str or None
            None: all splits.
        keep : collection of str, optional
            Ids of the cells to yield; default all.
        """
        from gpattern_bench.data.cells import Cells, CellTables

        kept = None if keep is None else frozenset(keep)
        return Cells(
            [CellTables(self.folder, self.fovs(split), kept, simulated=self.manifest.is_simulated)],
            genes=self.genes,
            patterns=self.patterns,
            labels=self.has_labels,
        )

    def torch(self, split: str | None = None) -> TorchCells:
        """Return the cells of a split as a ``torch.utils.data.Dataset``.

        See :class:`gpattern_bench.data.torch.TorchCells`: items, batches, and the way back from
        scores to a prediction table.
        """
        from gpattern_bench.data.torch import TorchCells

        return TorchCells(self.iter_cells(split))

    def fovs(self, split: str | None = None) -> list[str]:
        """List the fields of view of a split (None: all).

        Raises
        ------
        GPatternBenchError
            The dataset has no such split.
        """
        if split is not None and split not in self.splits:
            raise GPatternBenchError(
                f"{self.id} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return sorted(f for f, s in self.split_of.items() if split is None or s == split)

    def to_anndata(self, scores: Any = None) -> Any:
        """Return counts, labels and optional scores as an AnnData (extra ``[spatial]``).

        See :func:`gpattern_bench.interop.scverse.to_anndata`.
        """
        from gpattern_bench.interop.scverse import to_anndata

        return to_anndata(self, scores)

    def to_spatialdata(self) -> Any:
        """Return molecules, outlines, counts and labels as a SpatialData (extra ``[spatial]``).

        See :func:`gpattern_bench.interop.scverse.to_spatialdata`.
        """
        from gpattern_bench.interop.scverse import to_spatialdata

        return to_spatialdata(self)

    def verify(self) -> Placement:
        """Check every file, hash and rule (:func:`gpattern_bench.tables.verify.find_problems`).

        Returns
        -------
        gpattern_bench.tables.manifest.Placement
            How many molecules lie in their cells.

        Raises
        ------
        TableError
            With every problem found.
        """
        from gpattern_bench.tables.verify import find_problems

        problems, placement = find_problems(self.folder, self.manifest)
        if problems or placement is None:
            raise TableError(f"{self.folder} ({self.id})", problems)
        return placement

    def check_labels(self) -> None:
        """Compare labels and splits with their hashes, by value, once per process.

        See :func:`gpattern_bench.tables.verify.check_labels`.

        Raises
        ------
        TableError
            The values are others than those curated, or there are no labels.
        """
        from gpattern_bench.tables.verify import check_labels

        self._need_labels()
        check_labels(self.folder, self.manifest)

    def _read(
        self, table: str, split: str | None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        return read_table(self.folder / f"{table}.parquet", self.fovs(split), columns)

    def _need_labels(self) -> None:
        if not self.has_labels:
            raise TableError(
                f"{self.folder} ({self.id})",
                ["this dataset has no labels: predict, or make labels (`gpattern-bench label`)"],
            )
