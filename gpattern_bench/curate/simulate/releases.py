"""Simulated releases as files, laid out as Bento and NanoString publish real ones.

Beside what was simulated they hold what curation must drop: molecules outside cells and control
targets, in about the shares seen in real files. All of it is drawn from Philox generators, one per
field of view: the same pieces give the same bytes.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import shapely
import tifffile
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.base.files import replacing
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate.cells import N_VERTICES, compartments, membrane_edge
from gpattern_bench.errors import SourceError

__all__ = ["write_bento_h5ad", "write_cosmx"]

BENTO_OUTSIDE = 0.3  # share of a file's molecules that lie outside cells: 15 M points of 10.6 M
BENTO_CONTROLS = ("blank001", "blank002", "blank003", "notarget001", "notarget002")
BENTO_LABELLED = 5  # molecules that a pair needs to have labels
COSMX_OUTSIDE = 0.18
COSMX_CONTROLS = tuple(f"NegPrb{k}" for k in range(1, 21))
CONTROL = 0.01  # molecules of control targets, as a share of those in cells

SAMPLE = "Lung5_Rep1"
ARCHIVE = f"{SAMPLE}+SMI+Flat+data.tar.gz"
PIXEL_UM = 0.18
WIDTH, HEIGHT = 5472, 3648  # pixels of an image
COMPARTMENT_NAMES = ("Nuclear", "Membrane", "Cytoplasm", "0")
COMPARTMENT_OUTSIDE = (0.06, 0.16)  # cumulative shares of the first two, outside cells

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class _Field:
    """One field of view, unpacked; molecules and cells in the order of the release."""

    fov: str
    cell_ids: list[str]
    genes: list[str]
    cell: Ints  # (molecules,) row of the cells
    gene: Ints  # (molecules,) row of the genes
    xy: Floats  # (molecules, 2) um
    compartment: Ints  # (molecules,), see `compartments`
    boundary: Floats  # (cells, N_VERTICES, 2) um
    nucleus: Floats  # likewise, NaN = none
    origin: Floats  # (cells, 2) um, where the rays of a cell start
    rng: np.random.Generator

    def with_controls(self, controls: Sequence[str]) -> tuple[Ints, Ints]:
        """Row and target (genes, then controls) of each molecule in cells, ordered by cell.

        Molecules of control targets lie where some other molecule does.
        """
        n = len(self.cell)
        picked = np.floor(self.rng.random(round(n * CONTROL)) * n).astype(np.intp)
        control = np.floor(self.rng.random(len(picked)) * len(controls)).astype(np.intp)
        row = np.concatenate([np.arange(n), picked])
        target = np.concatenate([self.gene, len(self.genes) + control])
        order = np.argsort(self.cell[row], kind="stable")
        return row[order], target[order]


def write_bento_h5ad(
    pieces: Iterable[Release], path: Path, patterns: Sequence[str], *, unit_um: float = 0.108
) -> None:
    """Write a simulated release as an h5ad in Bento's old encoding.

    Molecules are in ``uns/points``, outlines as WKT in ``obs``, counts in ``X`` and labels in
    ``layers``: 0/1 for each pattern and ``none``, NaN where a pair has fewer than five molecules.
    Three in ten molecules lie outside cells (cell ``-1``), one in a hundred of the others belongs
    to one of five controls (``blank*``, ``notarget*``). Memory holds one piece.

    Parameters
    ----------
    pieces : iterable of Release
        Of :func:`~gpattern_bench.curate.simulate.cells.simulate_like`: one field of view each.
    path : pathlib.Path
        The file; replaced if it is there.
    patterns : sequence of str
        Label columns to write as layers.
    unit_um : float
        Micrometres per pixel of the file. Times this, coordinates are, as float32, exactly those
        of the pieces.

    Raises
    ------
    SourceError
        A piece holds no field of view or several.
    """
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        points = _Points(file)
        obs: dict[str, list[str]] = {"cell": [], "cell_shape": [], "nucleus_shape": [], "batch": []}
        targets: list[str] = []
        for k, piece in enumerate(pieces):
            field = _unpack(piece, k)
            targets = [*field.genes, *BENTO_CONTROLS]
            row, target = field.with_controls(BENTO_CONTROLS)
            _append_points(points, field, row, target, unit_um)
            _append_layers(file, piece, field.cell[row], target, len(targets), patterns)
            obs["cell"] += field.cell_ids
            obs["batch"] += [field.fov] * len(field.cell_ids)
            for column in ("cell", "nucleus"):
                outline = piece.cells[f"{column}_boundary"].to_numpy()
                wkt = shapely.to_wkt(
                    shapely.transform(outline, lambda xy: xy / unit_um), rounding_precision=-1
                )
                obs[f"{column}_shape"] += ["None" if text is None else text for text in wkt]
        points.finish()
        _frame(file.create_group("obs"), "cell", ["cell_shape", "nucleus_shape", "batch"])
        for column in ("cell", "cell_shape", "nucleus_shape"):
            file["obs"][column] = np.array(obs[column], dtype=object)
        batch = pd.Categorical(obs["batch"])
        file["obs/batch"] = batch.codes
        _categories(file["obs"], "batch", batch.categories.tolist())
        _frame(file.create_group("var"), "gene", [])
        file["var/gene"] = np.array(targets, dtype=object)


def write_cosmx(pieces: Iterable[Release], folder: Path, archive: bool = False) -> Path:
    """Write a simulated release as CosMx flat files.

    Transcripts, positions of the fields of view, metadata of cells, and per field of view two
    images: the cell of each pixel (a cell has every pixel that its outline touches) and its
    compartment (1 nucleus, 2 membrane, 3 cytoplasm, by the pixel's centre). A molecule's pixel is
    ``column = floor(x_local + 0.5)``, ``row = floor(3648 - y_local + 0.5)``. 18 % of the molecules
    lie outside cells (``cell_ID`` 0), one in a hundred of the others belongs to one of 20 negative
    probes. Fields of view are numbered by the digits at the end of their names, cells from 1.

    Parameters
    ----------
    pieces : iterable of Release
        Of :func:`~gpattern_bench.curate.simulate.cells.simulate_like`: one field of view each.
    folder : pathlib.Path
        Must not exist, or be empty.
    archive : bool
        Put all files into one archive in the folder, laid out as NanoString's.

    Returns
    -------
    pathlib.Path
        The folder, or the archive in it.

    Raises
    ------
    SourceError
        The folder is in use; a piece holds no field of view or several; its name has no number;
        it does not fit into an image of 5472 x 3648 pixels of 0.18 um.

    Notes
    -----
    Coordinates lose nothing: times 0.18 um, those of the csv are, as float32, exactly those of the
    pieces, and ``CellComp`` is the compartment by the outlines, not by pixels.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(f"{folder} is there and not empty; choose another one or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        flat = beside / "flat" if archive else beside
        _write_flat(pieces, flat)
        if archive:
            _pack(flat, beside / ARCHIVE)
            shutil.rmtree(flat)
        beside.chmod(0o755)  # mkdtemp makes folders private
        beside.replace(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder / ARCHIVE if archive else folder


def _unpack(piece: Release, index: int) -> _Field:
    """Take the `index`-th piece apart."""
    molecules, cells = piece.molecules, piece.cells
    fovs = cells["fov"].unique()
    if len(fovs) != 1:
        raise SourceError(f"a piece must hold one field of view, this one holds {len(fovs)}")
    boundary = _vertices(cells["cell_boundary"].to_numpy())
    nucleus = _vertices(cells["nucleus_boundary"].to_numpy())
    # Vertex 0 lies on the ray along x, a quarter further is the ray along y.
    origin = np.stack([boundary[:, N_VERTICES // 4, 0], boundary[:, 0, 1]], axis=1)
    code = pd.Index(cells["cell_id"]).get_indexer(molecules["cell_id"].cat.categories)
    cell = code.astype(np.intp)[molecules["cell_id"].cat.codes]
    xy = molecules[["x", "y"]].to_numpy()
    centred = (outline - origin[:, None] for outline in (boundary, nucleus))
    # Streams of the upper half: none that `simulate` draws from.
    key = np.array([0, 2**64 - 1 - index], dtype=np.uint64)
    return _Field(
        str(fovs[0]),
        cells["cell_id"].tolist(),
        molecules["gene"].cat.categories.tolist(),
        cell,
        np.asarray(molecules["gene"].cat.codes, np.intp),
        xy,
        compartments(xy - origin[cell], cell, *centred),
        boundary,
        nucleus,
        origin,
        np.random.Generator(np.random.Philox(key=key)),
    )


def _vertices(outlines: NDArray[np.object_]) -> Floats:
    """Vertices of simulated outlines, (cells, N_VERTICES, 2), NaN where there is none."""
    there = ~shapely.is_missing(outlines)
    vertices = np.full((len(outlines), N_VERTICES, 2), np.nan)
    rings = shapely.get_coordinates(outlines[there]).reshape(-1, N_VERTICES + 1, 2)
    vertices[there] = rings[:, :-1]
    return vertices


def _empty_spots(rng: np.random.Generator, image: NDArray[Any], n: int) -> Floats:
    """Positions anywhere in the pixels that are 0: (n, 2), column and row with fractions."""
    empty = np.flatnonzero(image == 0)
    row, column = np.divmod(
        empty[np.floor(rng.random(n) * len(empty)).astype(np.intp)], len(image[0])
    )
    return np.stack([column, row], axis=1) + rng.random((n, 2))


@njit(cache=True)
def _paint(image, rings, values, touched):  # type: ignore[no-untyped-def]
    """Set the pixels whose centre lies in a ring, or all that it touches, to the ring's value.

    rings (n, vertices, 2): column and row with fractions; a pixel is where their floor is the same.
    """
    height, width = image.shape
    crossings = np.empty(rings.shape[1])
    for k in range(len(rings)):
        ring = rings[k]
        top = max(floor(ring[:, 1].min()), 0)
        bottom = min(floor(ring[:, 1].max()), height - 1)
        for row in range(top, bottom + 1):
            found = 0
            for i in range(len(ring)):
                x0, y0 = ring[i - 1]
                x1, y1 = ring[i]
                slope = 0.0 if y0 == y1 else (x1 - x0) / (y1 - y0)
                middle = row + 0.5
                if (y0 <= middle) != (y1 <= middle):
                    crossings[found] = x0 + (middle - y0) * slope
                    found += 1
                low, high = max(min(y0, y1), row), min(max(y0, y1), row + 1)
                if touched and low <= high:  # what of the edge lies in this row
                    a = x0 if y0 == y1 else x0 + (low - y0) * slope
                    b = x1 if y0 == y1 else x0 + (high - y0) * slope
                    first, last = floor(min(a, b)), floor(max(a, b))
                    image[row, max(first, 0) : max(min(last + 1, width), 0)] = values[k]
            crossings[:found].sort()
            for i in range(0, found, 2):
                first, last = ceil(crossings[i] - 0.5), ceil(crossings[i + 1] - 0.5)
                image[row, max(first, 0) : max(min(last, width), 0)] = values[k]


# CosMx


def _write_flat(pieces: Iterable[Release], folder: Path) -> None:
    for name in ("CellLabels", "CompartmentLabels"):
        (folder / name).mkdir(parents=True)
    cells, positions = [], []
    with (folder / f"{SAMPLE}_tx_file.csv").open("wb") as file:
        header = "fov,cell_ID,x_global_px,y_global_px,x_local_px,y_local_px,z,target,CellComp\n"
        file.write(header.encode())
        for k, piece in enumerate(pieces):
            field = _unpack(piece, k)
            fov = _number(field.fov)
            corner = np.floor(field.boundary.min(axis=(0, 1))) - 1.0
            labels, parts = _images(field, corner)
            _write_transcripts(file, field, fov, corner, labels)
            cells.append(_metadata(field, fov, corner, labels))
            positions.append((fov, *(corner / PIXEL_UM)))
            for name, image in (("CellLabels", labels), ("CompartmentLabels", parts)):
                tif = folder / name / f"{name}_F{fov:03d}.tif"
                tifffile.imwrite(tif, image, compression="zlib", metadata=None)
    pd.concat(cells).to_csv(folder / f"{SAMPLE}_metadata_file.csv", index=False)
    frame = pd.DataFrame(positions, columns=["fov", "x_global_px", "y_global_px"])
    frame.to_csv(folder / f"{SAMPLE}_fov_positions_file.csv", index=False)


def _number(fov: str) -> int:
    digits = re.search(r"\d+$", fov)
    if digits is None:
        raise SourceError(f"CosMx numbers fields of view; {fov!r} does not end with a number")
    return int(digits.group())


def _images(field: _Field, corner: Floats) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Cell and compartment of each pixel; `corner` (um) is where local coordinates start."""
    boundary = _pixels(field.boundary, corner)
    if boundary.min() < 0 or (boundary.max(axis=(0, 1)) > (WIDTH, HEIGHT)).any():
        raise SourceError(
            f"field of view {field.fov} does not fit into an image of {WIDTH} x {HEIGHT} pixels of "
            f"{PIXEL_UM} um: its cells need {np.ceil(np.ptp(boundary, axis=(0, 1))).tolist()}"
        )
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    _paint(labels, boundary, np.arange(1, len(boundary) + 1, dtype=np.uint16), True)
    parts = np.where(labels > 0, np.uint16(2), np.uint16(0))
    centre = field.origin[:, None]
    inner = membrane_edge(field.boundary - centre) + centre
    nucleus = field.nucleus[~np.isnan(field.nucleus[:, 0, 0])]
    for outline, value in ((inner, 3), (nucleus, 1)):
        values = np.full(len(outline), value, np.uint16)
        _paint(parts, _pixels(outline, corner), values, False)
    return labels, parts


def _pixels(um: Floats, corner: Floats) -> Floats:
    """Column and row with fractions, so that their floor is the pixel; rows run against y."""
    local = (um - corner) / PIXEL_UM
    return np.stack([local[..., 0] + 0.5, HEIGHT - local[..., 1] + 0.5], axis=-1)


def _write_transcripts(
    file: IO[bytes], field: _Field, fov: int, corner: Floats, labels: NDArray[np.uint16]
) -> None:
    """Append the rows of a field of view: molecules outside cells first, then cell by cell."""
    row, target = field.with_controls(COSMX_CONTROLS)
    rng, inside = field.rng, len(row)
    outside = round(inside * COSMX_OUTSIDE / (1.0 - COSMX_OUTSIDE))
    spot = _empty_spots(rng, labels, outside)
    stray = np.stack([spot[:, 0] - 0.5, HEIGHT - spot[:, 1] + 0.5], axis=1)
    part = np.searchsorted(COMPARTMENT_OUTSIDE, rng.random(outside), side="right")
    stray_gene = field.gene[np.floor(rng.random(outside) * len(field.gene)).astype(np.intp)]

    def text(names: Sequence[str], *codes: Ints) -> pa.Array:
        return pa.array(list(names)).take(pa.array(np.concatenate(codes)))

    xy = field.xy[row]
    overall = np.concatenate([stray + corner / PIXEL_UM, xy / PIXEL_UM])
    local = np.concatenate([stray, (xy - corner) / PIXEL_UM])
    table = pa.table(
        {
            "fov": np.full(outside + inside, fov),
            "cell_ID": np.concatenate([np.zeros(outside, np.intp), field.cell[row] + 1]),
            "x_global_px": overall[:, 0],
            "y_global_px": overall[:, 1],
            "x_local_px": local[:, 0],
            "y_local_px": local[:, 1],
            "z": np.floor(rng.random(outside + inside) * 9).astype(np.intp),
            "target": text([*field.genes, *COSMX_CONTROLS], stray_gene, target),
            "CellComp": text(
                COMPARTMENT_NAMES, np.where(part == 2, 3, part), field.compartment[row]
            ),
        }
    )
    options = pa.csv.WriteOptions(include_header=False, quoting_style="none")
    pa.csv.write_csv(table, file, options)


def _metadata(field: _Field, fov: int, corner: Floats, labels: NDArray[np.uint16]) -> pd.DataFrame:
    """Size and place of each cell, in pixels."""
    n = len(field.cell_ids)
    local = (field.boundary - corner) / PIXEL_UM
    size = np.ceil(np.ptp(local, axis=1)).astype(np.intp)
    centre = np.rint(local.mean(axis=1))
    overall = centre + corner / PIXEL_UM
    return pd.DataFrame(
        {
            "fov": fov,
            "cell_ID": np.arange(1, n + 1),
            "Area": np.bincount(labels[labels > 0], minlength=n + 1)[1:],
            "AspectRatio": np.round(size[:, 0] / size[:, 1], 2),
            "CenterX_local_px": centre[:, 0].astype(np.intp),
            "CenterY_local_px": centre[:, 1].astype(np.intp),
            "CenterX_global_px": overall[:, 0],
            "CenterY_global_px": overall[:, 1],
            "Width": size[:, 0],
            "Height": size[:, 1],
        }
    )


def _pack(folder: Path, path: Path) -> None:
    """Put all files of a folder into an archive, without anything of this time or machine."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime = info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o644
        return info

    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = f"{SAMPLE}/{SAMPLE}-Flat_files_and_images/{file.relative_to(folder).as_posix()}"
            tar.add(file, name, filter=plain)


# Bento


class _Points:
    """``uns/points``, which grows piece by piece; categories are known at its end."""

    _CATEGORICAL = ("gene", "cell", "nucleus", "batch")

    def __init__(self, file: h5py.File) -> None:
        self.group = file.create_group("uns/points")
        _frame(self.group, "_index", ["x", "y", *self._CATEGORICAL])
        types = {"_index": "i8", "x": "f8", "y": "f8"} | dict.fromkeys(self._CATEGORICAL, "i4")
        for name, dtype in types.items():
            self.group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(2**16,))
        self.cells: list[str] = ["-1"]
        self.batches: list[str] = []
        self.genes: list[str] = []
        self.most_cells = 0

    def finish(self) -> None:
        """Write the categories."""
        whole = all(name.isdecimal() for name in self.batches)
        _categories(self.group, "gene", self.genes)
        _categories(self.group, "cell", self.cells)
        _categories(self.group, "nucleus", [-1, *range(self.most_cells)])
        _categories(self.group, "batch", [int(k) for k in self.batches] if whole else self.batches)


def _append_points(points: _Points, field: _Field, row: Ints, target: Ints, unit_um: float) -> None:
    """Append molecules in cells, then those outside."""
    first, n = len(points.group["x"]), len(row)
    outside = round(n * BENTO_OUTSIDE / (1.0 - BENTO_OUTSIDE))
    outline = field.boundary / unit_um
    corner = np.floor(outline.min(axis=(0, 1)))
    width, height = np.ceil(outline.max(axis=(0, 1)) - corner).astype(int)
    image = np.zeros((height, width), np.uint16)
    _paint(image, outline - corner, np.ones(len(outline), np.uint16), True)
    stray = _empty_spots(field.rng, image, outside) + corner
    stray_gene = field.gene[np.floor(field.rng.random(outside) * len(field.gene)).astype(np.intp)]

    xy = np.concatenate([field.xy[row] / unit_um, stray])
    cell, none = field.cell[row], np.zeros(outside, np.intp)
    values = {
        "_index": np.arange(first, first + len(xy)),
        "x": xy[:, 0],
        "y": xy[:, 1],
        "gene": np.concatenate([target, stray_gene]),
        "cell": np.concatenate([len(points.cells) + cell, none]),
        "nucleus": np.concatenate([np.where(field.compartment[row] == 0, cell + 1, 0), none]),
        "batch": np.full(len(xy), len(points.batches)),
    }
    for name, column in values.items():
        _append(points.group[name], column)
    points.cells += field.cell_ids
    points.batches.append(field.fov)
    points.genes = [*field.genes, *BENTO_CONTROLS]
    points.most_cells = max(points.most_cells, len(field.cell_ids))


def _append_layers(
    file: h5py.File,
    piece: Release,
    cell: Ints,
    target: Ints,
    n_targets: int,
    patterns: Sequence[str],
) -> None:
    """Append the cells' rows to ``X`` and to the layers of labels."""
    assert piece.labels is not None, "simulated pieces have labels"
    shape = (len(piece.cells), n_targets)
    counts = np.bincount(cell * n_targets + target, minlength=shape[0] * n_targets).reshape(shape)
    labelled = counts >= BENTO_LABELLED
    rows = pd.Index(piece.cells["cell_id"]).get_indexer(piece.labels["cell_id"])
    pair = (rows, piece.labels["gene"].cat.codes)
    layers = {}
    for pattern in patterns:
        layers[pattern] = np.zeros(shape, dtype=bool)
        layers[pattern][pair] = piece.labels[pattern]
    layers["none"] = ~np.logical_or.reduce(list(layers.values()))
    matrices = {f"layers/{name}": np.where(labelled, v, np.nan) for name, v in layers.items()}
    for name, matrix in {"X": counts.astype(np.float32), **matrices}.items():
        if name not in file:
            file.create_dataset(
                name,
                (0, n_targets),
                matrix.dtype,
                maxshape=(None, n_targets),
                chunks=(16, n_targets),
            )
        _append(file[name], matrix)


def _append(dataset: h5py.Dataset, values: NDArray[Any]) -> None:
    n = len(dataset)
    dataset.resize(n + len(values), axis=0)
    dataset[n:] = values


def _frame(group: h5py.Group, index: str, columns: Sequence[str]) -> None:
    """Mark a group as a data frame."""
    attributes = {"_index": index, "encoding-type": "dataframe", "encoding-version": "0.1.0"}
    group.attrs.update(attributes)
    group.attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())


def _categories(group: h5py.Group, column: str, names: Sequence[str | int]) -> None:
    """Give a column of codes its categories, as AnnData did before 0.7."""
    text = any(isinstance(name, str) for name in names)
    path = f"__categories/{column}"
    group[path] = np.array(names, dtype=object if text else np.int64)
    group[path].attrs["ordered"] = False
    group[column].attrs["categories"] = group[path].ref
