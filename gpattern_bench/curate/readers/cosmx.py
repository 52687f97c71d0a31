"""Read CosMx flat files: a csv of molecules, label images of the cells and their compartments."""

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

from gpattern_bench.curate.readers.cosmx_csv import (
    GLOBAL,
    LOCAL,
    PATTERNS,
    TEXT,
    CosmxMolecules,
    read_positions,
)
from gpattern_bench.curate.readers.label_images import border_labels, label_image, outlines
from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.curate.release import Piece, Release, reading
from gpattern_bench.errors import SourceError, TableError
from gpattern_bench.sources.archive import members

__all__ = ["read_cosmx"]

_log = logging.getLogger(__name__)

_MOLECULES = re.compile(r"(?:.*_)?tx_file\.csv(?:\.gz)?", re.IGNORECASE)
_POSITIONS = re.compile(r"(?:.*_)?fov_positions_file\.csv(?:\.gz)?", re.IGNORECASE)
_IMAGE = re.compile(r"(CellLabels|CompartmentLabels)_F(\d+)\.tiff?", re.IGNORECASE)

_NO_ROWS = pa.schema(
    {
        "cell_id": pa.int32(),
        **dict.fromkeys(("x", "y"), pa.float64()),
        **dict.fromkeys(("target", "cellcomp"), TEXT),
    }
).empty_table()

_NUCLEUS = 1  # in CompartmentLabels; what its other codes mean is not documented
_HEIGHT = 3648  # rows of a whole image, where only a crop of it is there
_ENOUGH, _AGREE = 100, 0.5  # molecules to judge by; least share in the pixels of their cells


def read_cosmx(
    path: Path, scratch: Path, *, crops: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[Piece]:
    """Read the flat files of one CosMx sample, field of view by field of view.

    Files are found by their names wherever they lie: ``*_tx_file.csv`` and
    ``*_fov_positions_file.csv`` (also gzipped), ``CellLabels_F###.tif`` and, if there are any,
    ``CompartmentLabels_F###.tif``. An archive is read once, as a stream.

    Molecules keep the global coordinates of the release; those of ``cell_ID`` 0 are outside every
    cell, whatever their compartment, and left out. A cell is ``<cell_ID>-<fov>``; its outline runs
    along the pixels of its label image, its nucleus is where the compartment image has 1 in it.
    ``z`` counts planes, not a length, and is left out.

    A pair has the pattern ``nuclear``, ``membrane`` or ``cytoplasmic`` if at least half of all its
    molecules have that ``CellComp``; so two patterns may tie. The column itself goes no further.

    Parameters
    ----------
    path : pathlib.Path
        The folder, or a tar archive of it.
    scratch : pathlib.Path
        Folder for molecules by field of view, and for the images of an archive.
    crops : mapping of str to (int, int), optional
        FOV -> column and row, in the whole image of 3648 rows, of the first pixel of its label
        images, where they are crops.

    Yields
    ------
    Piece
        One field of view, in pixels; ``labels`` is None if there is no column ``CellComp``. Its
        images, and its molecules from `scratch`, are read when it is called.

    Raises
    ------
    SourceError
        A file is missing, broken or of another format, or molecules and images do not fit.
    MissingExtraError
        An image is compressed in a way that needs another package.
    TableError
        The scratch folder cannot be written.

    Notes
    -----
    The middle of the pixel in column c and row r of an image of H rows is at local x = c and
    y = H - r, and global = local + place of the field of view. In newer exports local y counts
    the rows, rounded, and global y = place - local y. Which one holds is read from the molecules;
    either is checked: at least half of them must lie in the pixels of their cells.
    """
    flat = _Flat(path, scratch, crops or {})
    with flat.spill:
        for source, file in _files(path):
            flat.take(source, file)
        yield from flat.pieces()


def _files(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open the files to read, with names for messages."""
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
    kinds = (_MOLECULES, _POSITIONS, _IMAGE)
    return any(kind.fullmatch(source.name) for kind in kinds) and not source.name.startswith(".")


class _Flat:
    """Files of one sample, read in any order, yielded by field of view.

    It goes with every piece to the process that reads it, so it holds no rows and no pixels.
    """

    def __init__(self, path: Path, scratch: Path, crops: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.scratch, self.crops = path, scratch, crops
        self.spill = Spill(scratch / "cosmx-molecules.arrow")
        self.molecules: CosmxMolecules | None = None
        self.positions: dict[str, tuple[float, float]] = {}
        self.cells: dict[str, Path] = {}  # FOV -> label image
        self.compartments: dict[str, Path] = {}
        self._taken: dict[str, Path] = {}

    def take(self, source: Path, file: BinaryIO) -> None:
        image = _IMAGE.fullmatch(source.name)
        if image:
            kind, fov = image[1], str(int(image[2]))
            self._once(f"{kind} of FOV {fov}", source)
            images = self.cells if kind.lower() == "celllabels" else self.compartments
            images[fov] = source
            if not self.path.is_dir():
                images[fov] = self.scratch / f"{kind.lower()}-{fov}.tif"
                _copy(file, images[fov])
        elif _POSITIONS.fullmatch(source.name):
            self._once("positions of the fields of view", source)
            self.positions = read_positions(file, source)
        else:
            self._once("molecules", source)
            self.molecules = CosmxMolecules(file, source, self.spill)

    def _once(self, what: str, source: Path) -> None:
        first = self._taken.setdefault(what, source)
        if first is not source:
            raise SourceError(
                f"{what}: both in {first} and in {source}; curate one sample at a time"
            )

    def pieces(self) -> Iterator[Piece]:
        if self.molecules is None or not self.cells:
            lacking = "CellLabels_F###.tif" if self.molecules else "*_tx_file.csv"
            raise SourceError(
                f"{self.path} has no {lacking}; CosMx flat files are a csv of molecules and a "
                "label image of the cells for each field of view, in one folder or archive"
            )
        foreign = sorted(set(self.crops) - set(self.cells))
        if foreign:
            raise SourceError(f"{self.path}: crops of FOV {', '.join(foreign)}, without CellLabels")
        inside = set(self.spill.fovs)
        bare = sorted(inside - set(self.cells))
        if bare:
            _log.warning("%s has no CellLabels of FOV %s: no outlines there", self.path, bare)
        self.molecules.settle(self.positions)
        self.spill.close()
        nowhere = self.molecules.nowhere
        for fov in sorted(inside | set(self.cells) | set(self.molecules.outside)):
            yield partial(self._piece, fov, self.molecules, nowhere)
            nowhere = 0  # warned once

    def _piece(self, fov: str, molecules: CosmxMolecules, nowhere: int) -> Release:
        rows = self.spill.rows(fov) if fov in self.spill.fovs else _NO_ROWS
        image, nuclei = self._images(fov)
        column, row = self.crops.get(fov, (0, 0))
        height = _HEIGHT if fov in self.crops else len(image)
        place = molecules.place(fov, height) or self.positions.get(fov)
        dropped = {
            "molecules": {
                "outside every cell": molecules.outside[fov],
                "without a field of view": nowhere,
            }
        }
        if place is None:
            if len(rows):
                raise SourceError(
                    f"{molecules.source}: nothing tells where FOV {fov} lies; expected the columns "
                    f"{', '.join((*GLOBAL, *LOCAL))}, or its row in *_fov_positions_file.csv"
                )
            dropped["cells"] = {"without molecules": len(np.unique(image[image > 0]))}
            image, nuclei, place = image[:0], None, (0.0, 0.0)  # of nothing
        corner = (place[0] + column - 0.5, place[1] + height - row + 0.5)
        frame, cells = _molecule_frame(fov, rows), _cell_frame(fov, image, nuclei, corner)
        if not molecules.columns.issuperset(GLOBAL):
            frame["x"] += place[0]
            frame["y"] += place[1]
        share = _share_in_place(rows["cell_id"].to_numpy(), frame, cells, image, corner)
        if share < _AGREE:
            raise SourceError(
                f"{self.cells[fov]} does not fit {molecules.source}: only {share:.1%} of the "
                f"molecules in cells of FOV {fov} lie in the pixels of their cells. Does it show "
                "another field of view, or is it a crop whose place is not given (crops)?"
            )
        labels = _labels(frame, rows) if "cellcomp" in molecules.columns else None
        return Release(frame, cells, labels, dropped)

    def _images(self, fov: str) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
        """Labels of the cells, and of the nuclei if there is an image of compartments."""
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


def _copy(file: BinaryIO, target: Path) -> None:
    try:
        with target.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    except OSError as error:
        raise TableError(
            str(target), [f"cannot be written ({error}); make room on that disk and try again"]
        ) from error


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


def _share_in_place(
    cell: NDArray[np.int32],
    molecules: pd.DataFrame,
    cells: pd.DataFrame,
    image: NDArray[np.int32],
    corner: tuple[float, float],
) -> float:
    """Share of molecules in the pixels of their cells; 1 if there are too few to judge."""
    compared = molecules["cell_id"].isin(cells["cell_id"]).to_numpy()
    if compared.sum() < _ENOUGH:
        return 1.0
    column = np.floor(molecules["x"].to_numpy()[compared] - corner[0])
    row = np.floor(corner[1] - molecules["y"].to_numpy()[compared])
    shown = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
    label = image[row[shown].astype(np.intp), column[shown].astype(np.intp)]
    return float(np.count_nonzero(label == cell[compared][shown]) / len(shown))


def _labels(molecules: pd.DataFrame, rows: pa.Table) -> pd.DataFrame:
    """Patterns of every pair: the compartments of at least half of its molecules."""
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
