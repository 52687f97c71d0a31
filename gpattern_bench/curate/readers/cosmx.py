"""Read CosMx flat files: a csv of molecules, and label images or polygons of cells."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.curate.quality import COLUMNS as QUALITY
from gpattern_bench.curate.readers.cosmx_csv import (
    GLOBAL,
    LOCAL,
    PATTERNS,
    TEXT,
    CosmxMolecules,
    read_polygons,
    read_positions,
)
from gpattern_bench.curate.readers.group_by_fov import APART, first_apart, outlines_of_vertices
from gpattern_bench.curate.readers.label_images import border_labels, label_image, outlines
from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.curate.release import Piece, Release, reading, writing
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.archive import members

__all__ = ["read_cosmx"]

_log = logging.getLogger(__name__)

_MOLECULES = re.compile(r"(?:.*_)?tx_file\.csv(?:\.gz)?", re.IGNORECASE)
_POSITIONS = re.compile(r"(?:.*_)?fov_positions_file\.csv(?:\.gz)?", re.IGNORECASE)
_POLYGONS = re.compile(r"(?:.*[-_])?polygons\.csv(?:\.gz)?", re.IGNORECASE)
_IMAGE = re.compile(r"(CellLabels|CompartmentLabels)_F(\d+)\.tiff?", re.IGNORECASE)

_NO_ROWS = pa.schema(
    {
        "cell_id": pa.int32(),
        **dict.fromkeys(("x", "y"), pa.float64()),
        **dict.fromkeys(("target", "cellcomp"), TEXT),
    }
).empty_table()

_NUCLEUS = 1  # in CompartmentLabels; other codes are undocumented
_HEIGHT = 3648  # rows of a whole image, if the file is a crop


def read_cosmx(
    path: Path, scratch: Path, *, crops: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[Piece]:
    """Read the flat files of one CosMx sample, field of view by field of view.

    Finds files by name in any subfolder: ``*_tx_file.csv``, ``*_fov_positions_file.csv`` (also
    gzipped), ``CellLabels_F###.tif`` and, optionally, ``CompartmentLabels_F###.tif``, or
    ``*-polygons.csv``, as AtoMx exports it. Reads an archive once, as a stream.

    Molecules keep the global coordinates of the release; ``cell_ID`` 0 is outside every cell,
    whatever the compartment. Cells are named ``<cell_ID>-<fov>``; outlines follow the pixels of
    the label image, nuclei the pixels with 1 in the compartment image. A field of view without a
    label image has its outlines from the polygons, and no nuclei. ``z`` numbers planes and is not
    read.

    A pair has the pattern ``nuclear``, ``membrane`` or ``cytoplasmic`` if at least half of its
    molecules have that ``CellComp``; two patterns may tie. Only labels use ``CellComp``.

    Parameters
    ----------
    path : pathlib.Path
        The folder, or a tar archive of it.
    scratch : pathlib.Path
        Folder for molecules by field of view, and for the images of an archive.
    crops : mapping of str to (int, int), optional
        For label images that are crops: FOV -> column and row of their first pixel in the whole
        image of 3648 rows.

    Yields
    ------
    Piece
        One field of view, in pixels; ``labels`` is None without a column ``CellComp``. A call reads
        its images, and its molecules from `scratch`.

    Raises
    ------
    SourceError
        A file is missing, damaged or of another format.
    MissingExtraError
        Reading the images' compression needs another package.
    TableError
        The scratch folder cannot be written.

    Notes
    -----
    In an image of H rows, the centre of the pixel in column c and row r has local x = c and
    y = H - r, and global = local + position of the field of view. In newer exports local y counts
    rows (rounded), and global y = position - local y. The molecules tell which.
    """
    sample = _Sample(path, scratch, crops or {})
    with sample.spill, sample.vertices:
        for source, file in _files(path):
            sample.add(source, file)
        yield from sample.pieces()


def _files(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the files to read; yield their paths, for messages, and contents."""
    if path.is_file():
        for name, member in members(path):
            if _is_read(path / name):
                yield path / name, member
    elif not path.is_dir():
        raise SourceError(f"nothing at {path}: expected a folder of CosMx flat files or its tar.gz")
    else:
        for source in sorted(path.rglob("*")):
            if _is_read(source) and source.is_file():
                with reading(source, "a file"):
                    file = source.open("rb")
                with file:
                    yield source, file


def _is_read(source: Path) -> bool:
    kinds = (_MOLECULES, _POSITIONS, _POLYGONS, _IMAGE)
    return any(kind.fullmatch(source.name) for kind in kinds) and not source.name.startswith(".")


class _Sample:
    """Files of one sample, added in any order, yielded by field of view.

    Workers get a copy with every piece, so it holds no rows and no pixels.
    """

    def __init__(self, path: Path, scratch: Path, crops: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.scratch, self.crops = path, scratch, crops
        self.spill = Spill(scratch / "cosmx-molecules.arrow")
        self.vertices = Spill(scratch / "cosmx-vertices.arrow")
        self.of_vertices: set[str] = set()  # columns
        self.molecules: CosmxMolecules | None = None
        self.positions: dict[str, tuple[float, float]] = {}
        self.cells: dict[str, Path] = {}  # FOV -> label image
        self.compartments: dict[str, Path] = {}
        self._added: dict[str, Path] = {}

    def add(self, source: Path, file: BinaryIO) -> None:
        image = _IMAGE.fullmatch(source.name)
        if image:
            kind, fov = image[1], str(int(image[2]))
            self._require_first(f"{kind} of FOV {fov}", source)
            images = self.cells if kind.lower() == "celllabels" else self.compartments
            images[fov] = source
            if not self.path.is_dir():
                images[fov] = self.scratch / f"{kind.lower()}-{fov}.tif"
                with writing(images[fov]), images[fov].open("wb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
        elif _POSITIONS.fullmatch(source.name):
            self._require_first("positions of the fields of view", source)
            self.positions = read_positions(file, source)
        elif _POLYGONS.fullmatch(source.name):
            self._require_first("polygons", source)
            self.of_vertices = read_polygons(file, source, self.vertices)
        else:
            self._require_first("molecules", source)
            self.molecules = CosmxMolecules(file, source, self.spill)

    def _require_first(self, what: str, source: Path) -> None:
        first = self._added.setdefault(what, source)
        if first is not source:
            raise SourceError(f"{what}: in both {first} and {source}; curate one sample at a time")

    def pieces(self) -> Iterator[Piece]:
        if self.molecules is None or not (self.cells or self.of_vertices):
            lacking = "*_tx_file.csv"
            if self.molecules:
                lacking = "CellLabels_F###.tif and no *-polygons.csv"
            raise SourceError(
                f"{self.path} has no {lacking}; CosMx flat files are a csv of molecules and, of "
                "the cells, a csv of polygons or a label image for each field of view, in one "
                "folder or archive"
            )
        foreign = sorted(set(self.crops) - set(self.cells))
        if foreign:
            raise SourceError(
                f"{self.path}: crops name FOV {', '.join(foreign)}, which has no CellLabels; name "
                "FOVs of this sample"
            )
        inside = set(self.spill.fovs)
        outlined = set(self.cells) | set(self.vertices.fovs)
        bare = sorted(inside - outlined)
        if bare:
            _log.warning("%s has no CellLabels of FOV %s; its cells are dropped", self.path, bare)
        self.molecules.infer_direction(self.positions)
        self.spill.close()
        self.vertices.close()
        without_fov = self.molecules.without_fov
        for fov in sorted(inside | outlined | set(self.molecules.outside)):
            yield partial(self._piece, fov, self.molecules, without_fov)
            without_fov = 0  # counted once

    def _piece(self, fov: str, molecules: CosmxMolecules, without_fov: int) -> Release:
        rows = self.spill.rows(fov) if fov in self.spill.fovs else _NO_ROWS
        dropped = {
            "molecules": {
                "outside every cell": molecules.outside[fov],
                "without a field of view": without_fov,
            }
        }
        if fov not in self.cells and fov in self.vertices.fovs:
            frame = _molecule_frame(fov, rows)
            cells = self._polygons(fov, molecules, frame)
            labels = _labels(frame, rows) if "cellcomp" in molecules.columns else None
            return Release(frame, cells, labels, dropped)
        image, nuclei = self._images(fov)
        column, row = self.crops.get(fov, (0, 0))
        height = _HEIGHT if fov in self.crops else len(image)
        position = molecules.position(fov, height) or self.positions.get(fov)
        if position is None:
            if len(rows):
                raise _no_position(molecules.source, fov)
            dropped["cells"] = {"without molecules": len(np.unique(image[image > 0]))}
            image, nuclei, position = image[:0], None, (0.0, 0.0)
        corner = (position[0] + column - 0.5, position[1] + height - row + 0.5)
        frame, cells = _molecule_frame(fov, rows), _cell_frame(fov, image, nuclei, corner)
        if not molecules.columns.issuperset(GLOBAL):
            frame["x"] += position[0]
            frame["y"] += position[1]
        labels = _labels(frame, rows) if "cellcomp" in molecules.columns else None
        return Release(frame, cells, labels, dropped)

    def _polygons(self, fov: str, molecules: CosmxMolecules, frame: pd.DataFrame) -> pd.DataFrame:
        """Outline the cells of a field of view; place `frame` if its coordinates are local."""
        rows = self.vertices.rows(fov)
        local = not molecules.columns.issuperset(GLOBAL)
        pair = LOCAL if local or not self.of_vertices.issuperset(GLOBAL) else GLOBAL
        xy: NDArray[np.float64] | None = None
        if self.of_vertices.issuperset(pair):
            xy = np.stack([rows[name].to_numpy() for name in pair], axis=1)
            if local and fov in self.positions:
                x, y = self.positions[fov]
                xy, frame["x"], frame["y"] = xy + np.array([x, y]), frame["x"] + x, frame["y"] + y
            elif local and len(frame):
                raise _no_position(molecules.source, fov)
            elif pair is LOCAL:
                xy = molecules.to_global(fov, xy)
        if xy is None and len(frame):
            raise SourceError(
                f"{molecules.source} and the polygons of FOV {fov} have no coordinates in common; "
                f"expected {', '.join(GLOBAL)} or {', '.join(LOCAL)} in both"
            )
        ids, cell = np.unique(rows["cell_id"].to_numpy(), return_inverse=True)
        if (apart := first_apart(cell)) is not None:
            raise SourceError(
                f"{self.path}: the vertices of cell {ids[apart]} of FOV {fov} {APART}"
            )
        outline = np.full(len(ids), None, object)
        if xy is not None:
            outline = outlines_of_vertices(xy, cell, np.zeros_like(cell), len(ids))
        return pd.DataFrame(
            {
                "fov": fov,
                "cell_id": _names(ids, fov),
                "cell_boundary": outline,
                "nucleus_boundary": None,
                "touches_border": None,  # the size of the image is unknown
            }
        )

    def _images(self, fov: str) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
        """Read the labels of the cells, and of the nuclei if there is a compartment image."""
        if fov not in self.cells:
            return np.zeros((0, 0), np.int32), None
        cells = label_image(self.cells[fov])
        if fov not in self.compartments:
            return cells, None
        compartments = label_image(self.compartments[fov])
        if compartments.shape != cells.shape:
            raise SourceError(
                f"{self.compartments[fov]} has {compartments.shape} rows and columns, but "
                f"{self.cells[fov]} has {cells.shape}; both must show the same field of view"
            )
        return cells, np.where(compartments == _NUCLEUS, cells, 0)


def _no_position(source: Path, fov: str) -> SourceError:
    return SourceError(
        f"{source}: FOV {fov} has no position; expected the columns "
        f"{', '.join((*GLOBAL, *LOCAL))}, or its row in *_fov_positions_file.csv"
    )


def _molecule_frame(fov: str, rows: pa.Table) -> pd.DataFrame:
    ids, cell = np.unique(rows["cell_id"].to_numpy(), return_inverse=True)
    gene = rows["target"].combine_chunks().to_pandas()
    return pd.DataFrame(
        {
            "fov": pd.Categorical.from_codes(np.zeros(len(rows), np.int8), pd.Index([fov])),
            "cell_id": pd.Categorical.from_codes(cell, _names(ids, fov)),
            "gene": gene.cat.set_categories([name for name in gene.cat.categories if name]),
            "x": rows["x"].to_numpy(),
            "y": rows["y"].to_numpy(),
            **{name: rows[name].to_pandas() for name in QUALITY if name in rows.column_names},
        }
    )


def _names(ids: NDArray[np.int32], fov: str) -> pd.Index[str]:
    return pd.Index([f"{cell}-{fov}" for cell in ids.tolist()], dtype=str)


def _cell_frame(
    fov: str,
    image: NDArray[np.int32],
    nuclei: NDArray[np.int32] | None,
    corner: tuple[float, float],
) -> pd.DataFrame:
    ids, boundary = outlines(image, corner)
    nucleus = np.full(len(ids), None, object)
    if nuclei is not None:
        with_nucleus, outline = outlines(nuclei, corner)
        nucleus[np.searchsorted(ids, with_nucleus)] = outline
    return pd.DataFrame(
        {
            "fov": fov,
            "cell_id": _names(ids, fov),
            "cell_boundary": boundary,
            "nucleus_boundary": nucleus,
            "touches_border": np.isin(ids, border_labels(image)),
        }
    )


def _labels(molecules: pd.DataFrame, rows: pa.Table) -> pd.DataFrame:
    """Label every pair with the compartments of at least half of its molecules."""
    known = molecules["gene"].notna().to_numpy()
    cell, gene = (molecules[name].cat for name in ("cell_id", "gene"))
    keys = cell.codes.to_numpy(np.int64)[known] * len(gene.categories)
    keys += gene.codes.to_numpy()[known]
    pairs, pair = np.unique(keys, return_inverse=True)
    total = np.bincount(pair)
    compartment = rows["cellcomp"].to_pandas().array[known]
    columns: dict[str, Any] = {
        "cell_id": pd.Categorical.from_codes(pairs // len(gene.categories), cell.categories),
        "gene": pd.Categorical.from_codes(pairs % len(gene.categories), gene.categories),
    }
    for name, value in PATTERNS.items():
        there = np.bincount(pair[compartment == value], minlength=len(total))
        columns[name] = 2 * there >= total
    return pd.DataFrame(columns)
