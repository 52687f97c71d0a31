"""Small exports as instruments and SpatialData write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import tifffile
from shapely import box

from gpattern_bench.sources.recipe import Recipe

# CosMx

PLACES = {1: (1000.25, -5000.5), 2: (7000.0, -5000.5), 10: (1000.25, -9000.0)}
H, W = 12, 20

# Three cells; in FOV 2 the third is absent.
IMAGE = np.zeros((H, W), np.uint16)
IMAGE[2:6, 3:9] = 1
IMAGE[7:11, 10:20] = 2
IMAGE[8, 12] = 0
IMAGE[7:10, 2:5] = 7
IMAGES = {1: IMAGE, 2: np.where(IMAGE == 7, 0, IMAGE), 10: IMAGE}


def make_molecules(seed: int = 0, n: int = 400) -> pd.DataFrame:
    """Molecules all over the images, each in the cell whose pixel it is in, FOVs mixed."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"fov": rng.choice(list(IMAGES), n)})
    column, row = rng.integers(0, W, n), rng.integers(0, H, n)
    cell = [IMAGES[f][r, c] for f, r, c in zip(frame["fov"], row, column, strict=True)]
    frame["cell_ID"] = np.array(cell, int)
    x, y = column + rng.uniform(-0.49, 0.49, n), H - row + rng.uniform(-0.49, 0.49, n)
    place = np.array([PLACES[fov] for fov in frame["fov"]])
    frame["x_global_px"], frame["y_global_px"] = x + place[:, 0], y + place[:, 1]
    frame["x_local_px"], frame["y_local_px"] = x, y
    frame["z"] = rng.integers(0, 8, n)
    frame["target"] = rng.choice(["CD3E", "KRT8", "NegPrb1"], n)
    frame["CellComp"] = rng.choice(["Nuclear", "Membrane", "Cytoplasm", "0"], n)
    return frame


def positions(places: dict[int, tuple[float, float]] = PLACES) -> pd.DataFrame:
    rows = [(fov, *place) for fov, place in places.items()]
    return pd.DataFrame(rows, columns=["fov", "x_global_px", "y_global_px"])


def write_cosmx(
    folder: Path,
    molecules: pd.DataFrame | str | None = None,
    *,
    listed: pd.DataFrame | None = None,
    images: dict[int, Any] = IMAGES,
    compartments: dict[int, Any] | None = None,
    polygons: pd.DataFrame | None = None,
) -> Path:
    inner = folder / "S1" / "S1-Flat_files_and_images"
    for name, of_fov in (("CellLabels", images), ("CompartmentLabels", compartments or {})):
        (inner / name).mkdir(parents=True)
        for fov, image in of_fov.items():
            tifffile.imwrite(inner / name / f"{name}_F{fov:03}.tif", image)
    molecules = make_molecules() if molecules is None else molecules
    text = molecules if isinstance(molecules, str) else molecules.to_csv(index=False)
    (inner / "S1_tx_file.csv").write_text(text)
    if listed is not None:
        listed.to_csv(inner / "S1_fov_positions_file.csv", index=False)
    if polygons is not None:
        polygons.to_csv(inner / "S1-polygons.csv.gz", index=False)
    return folder


def atomx(down: bool = True) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Molecules, vertices and positions as AtoMx exports them; `down`: local y counts rows.

    Two fields of view, the second without a third cell: 100 molecules in each, and 5 outside.
    """
    rng, molecules, vertices = np.random.default_rng(0), [], []
    for fov, cell in ((1, 1), (1, 2), (1, 3), (12, 1), (12, 2)):
        shape = box(100 * cell, 50, 100 * cell + 60, 90)
        local = [100 * cell, 50] + rng.uniform(0, 1, (105, 2)) * [60, 40]
        local[100:] += [0, 200]
        named = np.where(np.arange(105) < 100, cell, 0)
        molecules += [(fov, c, x, y) for c, (x, y) in zip(named, local, strict=True)]
        ring = shapely.get_coordinates(shape)[:-1]
        vertices += [(fov, cell, x, y) for x, y in ring]  # not closed
    columns = ["fov", "cell_ID", "x_local_px", "y_local_px"]
    frames = [pd.DataFrame(rows, columns=columns) for rows in (molecules, vertices)]
    places = {1: (5000.0, 106000.0), 12: (9000.0, 106000.0)}
    for frame in frames:
        place = np.array([places[fov] for fov in frame["fov"]])
        frame["x_global_px"] = place[:, 0] + frame["x_local_px"]
        frame["y_global_px"] = place[:, 1] + frame["y_local_px"] * (-1 if down else 1)
    frames[0] = frames[0].assign(z=3, target="KRT8", CellComp="Cytoplasm")
    listed = positions(places).rename(columns={"fov": "FOV"})
    return frames[0], frames[1].rename(columns={"cell_ID": "cellID"}), listed


# Xenium

FOUR = ("nuclear", "nuclear_edge", "cytoplasmic", "cell_edge")
XENIUM = Recipe(format="xenium", patterns=FOUR, controls="NegControl|BLANK|antisense", split="test")
MERSCOPE = Recipe(format="merscope", patterns=FOUR, controls="blank", split="test")
CELLS = {"a": box(0, 0, 10, 10), "b": box(10, 0, 20, 10), "c": box(0, 30, 10, 40)}


def vertices(outlines, **more):
    """A table of boundaries from (cell, outline): one ring after the other."""
    rows = [
        (name, label, x, y)
        for name, shape in outlines
        for label, ring in enumerate(shapely.get_exterior_ring(shapely.get_parts(shape)), 1)
        for x, y in shapely.get_coordinates(ring).tolist()
    ]
    frame = pd.DataFrame(rows, columns=["cell_id", "label_id", "vertex_x", "vertex_y"])
    return frame.astype({"vertex_x": "float32", "vertex_y": "float32"}).assign(**more)


def transcripts(rows, **more):
    """A table of transcripts from (cell, gene, x, y)."""
    frame = pd.DataFrame(rows, columns=["cell_id", "feature_name", "x_location", "y_location"])
    frame = frame.assign(transcript_id=range(len(frame)), overlaps_nucleus=0, z_location=3.5, qv=40)
    numbers = ("x_location", "y_location", "z_location", "qv")
    return frame.astype(dict.fromkeys(numbers, "float32")).assign(**more)


def write_xenium(folder, molecules, cells, nuclei=None, ending=".parquet"):
    folder.mkdir(parents=True)
    tables = {"transcripts": molecules, "cell_boundaries": cells, "nucleus_boundaries": nuclei}
    for name, table in tables.items():
        if table is not None and ending == ".parquet":
            table = pa.Table.from_pandas(table, preserve_index=False)
            pq.write_table(table, folder / f"{name}.parquet")
        elif table is not None:
            with gzip.open(folder / f"{name}{ending}", "wt") as file:
                table.to_csv(file, index=False)
    return folder


INSIDE = [("a", "G1", 1, 1), ("a", "G2", 2, 2), ("b", "G1", 11, 1), ("c", "G2", 1, 31)]


# MERSCOPE


def detected(rows, **more):
    """A table of detected transcripts from (gene, x, y), columns as documented."""
    frame = pd.DataFrame(rows, columns=["gene", "global_x", "global_y"])
    frame = frame.assign(
        barcode_id=0, global_z=range(len(frame)), x=0.5, y=0.5, transcript_id="ENST0"
    )
    return frame.assign(**more)


def write_merscope(folder, molecules, outlines, hdf5=False):
    """`outlines`: rows of (cell, plane, outline)."""
    folder.mkdir(parents=True)
    molecules.to_csv(folder / "detected_transcripts.csv")  # the first column has no name
    if not hdf5:
        frame = pd.DataFrame(outlines, columns=["EntityID", "ZIndex", "Geometry"])
        frame["Geometry"] = shapely.to_wkb(frame["Geometry"].to_numpy(object))
        frame = frame.assign(ID=range(len(frame)), Type="cell", ZLevel=1.5 * (frame["ZIndex"] + 1))
        pq.write_table(pa.Table.from_pandas(frame), folder / "cell_boundaries.parquet")
        return folder
    (folder / "cell_boundaries").mkdir()
    for i, fov in enumerate(("0", "1")):
        with h5py.File(folder / f"cell_boundaries/feature_data_{fov}.hdf5", "w") as file:
            file.create_group("featuredata")
            for name, plane, shape in outlines:
                if sum(map(ord, str(name))) % 2 == i:  # a cell's planes are in one file
                    group = file.require_group(f"featuredata/{name}/zIndex_{plane}")
                    file[f"featuredata/{name}"].attrs["z"] = 0
                    for k, ring in enumerate(shapely.get_exterior_ring(shapely.get_parts(shape))):
                        xy = shapely.get_coordinates(ring)
                        group.create_dataset(f"p_{k}/coordinates", data=xy[None])
    return folder


FLAT = [(name, z, shape) for name, shape in CELLS.items() for z in range(3)]
DETECTED = [("G1", 1, 1), ("G2", 2, 2), ("G1", 11, 1), ("G2", 1, 31), ("G1", 5, 20)]


# SpatialData


def ngff(axes="xy", system="global", **step):
    """A transformation of these axes as SpatialData writes it; the identity without `step`."""
    named = [{"name": axis, "type": "space", "unit": "unit"} for axis in axes]
    ends = {"input": {"name": axes, "axes": named}, "output": {"name": system, "axes": named}}
    return {**(step or {"type": "identity"}), **ends}


def write_spatialdata(folder, points, shapes, *, steps=None, keys=None):
    """A SpatialData without zarr arrays, which another package would have to read.

    `points`: columns of `points/transcripts`. `shapes`: element -> outlines by cell, a table of
    `shapes.parquet`, or a GeoDataFrame. `steps`: element -> its transformations.
    """
    keys = {"feature_key": "gene", "instance_key": "cell"} if keys is None else keys
    tables = {"points/transcripts": points if isinstance(points, pa.Table) else pa.table(points)}
    for name, outlines in shapes.items():
        if isinstance(outlines, dict):
            wkb = shapely.to_wkb(np.array(list(outlines.values()), object))
            outlines = pa.Table.from_pandas(pd.DataFrame({"geometry": wkb}, list(outlines)))
        tables[f"shapes/{name}"] = outlines
    for element, table in tables.items():
        (folder / element).mkdir(parents=True)
        attributes = {"coordinateTransformations": (steps or {}).get(element, [ngff()])}
        if element == "points/transcripts":
            attributes["spatialdata_attrs"] = keys
        (folder / element / ".zattrs").write_text(json.dumps(attributes))
        if element == "points/transcripts":
            (folder / element / "points.parquet").mkdir()
            pq.write_table(table, folder / element / "points.parquet/part.0.parquet")
        elif isinstance(table, pa.Table):
            pq.write_table(table, folder / element / "shapes.parquet")
        else:
            table.to_parquet(folder / element / "shapes.parquet")
    return folder
