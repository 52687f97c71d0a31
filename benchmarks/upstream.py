"""Run one upstream program on plain data and say what it cost; `peers.py` starts this.

    PYTHON upstream.py PROGRAM INPUT.json OUTPUT.json

PYTHON is an interpreter that has the program, and need not have this package: nothing of it is
imported. Programs are called through what they publish, and only their own work is timed: neither
imports nor the conversion of the cells. Seconds are of the processor, of this process and of those
that the program starts.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Cells = list[dict[str, Any]]
"""`name`, `gene` (n,), `xy` (n, 2), `boundary` and `nucleus` (WKB in hex; null: none)."""

Found = tuple[float, dict[str, Any]]
"""Seconds, and by "cell gene" (or gene) the values."""

PIXEL_NM = 100  # of the cells that big-fish gets
MARGIN = 3  # pixels around a cell, for its distance maps


def processor_s() -> float:
    """Seconds of the processor of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Time one call, and return its value."""
    began = processor_s()
    value = call()
    return processor_s() - began, value


def outline(cell: dict[str, Any], name: str = "boundary") -> Any:
    """Parse an outline."""
    import shapely

    return None if cell[name] is None else shapely.from_wkb(cell[name])


# Bento


def bento(cells: Cells, **given: Any) -> Found:
    """The 13 features of `bento.tl.lp`, computed in this process."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        return bento_as_shipped(cells, **given)


def bento_as_shipped(cells: Cells, **_given: Any) -> Found:
    """The same by dask's default for bags: one worker process, started for each of two calls."""
    import bento

    def features(data: Any) -> Any:  # as `lp` calls them
        of_cell = ["proximity", "asymmetry", "ripley", "point_dispersion_norm"]
        of_nucleus = ["proximity", "asymmetry", "shape_dispersion_norm"]
        for shape, names in (("cell_boundaries", of_cell), ("nucleus_boundaries", of_nucleus)):
            bento.tl.analyze_points(data, shape, names, groupby="feature_name", num_workers=1)
        return data.tables["table"].uns["cell_boundaries_feature_name_features"]

    features(spatial(cells[:1]))  # warm
    data = spatial(cells)
    spent, frame = seconds(lambda: features(data))
    names = [
        *(f"{shape}_{what}" for what in ("proximity", "asymmetry") for shape in
          ("cell_boundaries_inner", "nucleus_boundaries_inner", "nucleus_boundaries_outer")),
        *("l_max", "l_max_gradient", "l_min_gradient", "l_monotony", "l_half_radius"),
        *("point_dispersion_norm", "nucleus_boundaries_dispersion_norm"),
    ]  # fmt: skip
    keys = frame["cell_boundaries"].astype(str) + " " + frame["feature_name"].astype(str)
    return spent, dict(zip(keys, frame[names].to_numpy(float).tolist(), strict=True))


def spatial(cells: Cells) -> Any:
    """Make the prepared SpatialData of cells, side by side in whole pixels."""
    import bento
    import geopandas
    import pandas as pd
    from shapely.affinity import translate
    from spatialdata import SpatialData
    from spatialdata.models import PointsModel, ShapesModel

    shapes: dict[str, dict[str, Any]] = {"cell_boundaries": {}, "nucleus_boundaries": {}}
    frames = []
    for k, cell in enumerate(cells):
        right = 10_000 * k + 100
        for name, key in (("cell_boundaries", "boundary"), ("nucleus_boundaries", "nucleus")):
            shape = outline(cell, key)
            if shape is not None:
                shapes[name][cell["name"]] = translate(shape, right, 100)
        xy = np.asarray(cell["xy"]) + np.array([right, 100])
        columns = {"x": xy[:, 0], "y": xy[:, 1], "feature_name": cell["gene"]}
        frames.append(pd.DataFrame(columns | {"cell_boundaries": cell["name"]}))
    points = pd.concat(frames, ignore_index=True)
    points["feature_name"] = points["feature_name"].astype("category")
    data = SpatialData(
        points={
            "transcripts": PointsModel.parse(
                points, coordinates={"x": "x", "y": "y"}, feature_key="feature_name"
            )
        },
        shapes={
            name: ShapesModel.parse(
                geopandas.GeoDataFrame(geometry=list(found.values()), index=list(found))
            )
            for name, found in shapes.items()
        },
    )
    return bento.io.prep(data)


# SPRAWL


def sprawl(cells: Cells, metric: str, variances: Any, **_given: Any) -> Found:
    """A score of `sprawl.scoring.iter_scores`, in one worker process.

    Variances are given, as its own files hold them: computing them takes it hours.
    """
    import h5py
    import shapely
    from sprawl import scoring
    from sprawl.hdf5 import HDF5

    path = Path("cells.hdf5")
    with h5py.File(path, "w") as file:
        file["cell_ids"] = np.array([cell["name"] for cell in cells], "S")
        file["genes"] = np.array(sorted({gene for cell in cells for gene in cell["gene"]}), "S")
        for cell, variance in zip(cells, variances, strict=True):
            group = file.create_group(f"cells/{cell['name']}")
            group.attrs["annotation"] = "cell"
            group.attrs["zslices"] = ["0"]
            group["boundaries/0"] = shapely.get_coordinates(outline(cell))
            group["spot_coords/0"] = np.asarray(cell["xy"])
            group["spot_genes/0"] = np.array(cell["gene"], "S")
            group["gene_vars"] = np.asarray(variance)
    read = HDF5(str(path)).cells()
    spent, frame = seconds(lambda: scoring.iter_scores(read, metric, processes=1))
    keys = frame["cell_id"].astype(str) + " " + frame["gene"].astype(str)
    return spent, dict(zip(keys, frame["score"].tolist(), strict=True))


# ELLA


def registered(kind: Any, cells: Cells) -> Any:
    """Run a kind of ELLA up to its fit."""
    import pandas as pd
    import shapely

    frames, polygons = [], {}
    for cell in cells:
        boundary, nucleus = outline(cell), outline(cell, "nucleus")
        middle = shapely.get_coordinates((nucleus or boundary).centroid)[0]
        xy = np.asarray(cell["xy"])
        columns = {"type": "cell", "cell": cell["name"], "gene": cell["gene"], "umi": 1}
        columns |= {"x": xy[:, 0], "y": xy[:, 1], "sc_total": len(xy)}
        frames.append(pd.DataFrame(columns | {"centerX": middle[0], "centerY": middle[1]}))
        polygons[cell["name"]] = shapely.get_coordinates(boundary.exterior)
    names = [cell["name"] for cell in cells]
    expression = pd.concat(frames, ignore_index=True)
    ella = kind()
    ella.load_data(
        {
            "types": ["cell"],
            "cells": {"cell": names},
            "cells_all": names,
            "genes": {"cell": sorted(expression["gene"].unique())},
            "expr": expression,
            "cell_poly": polygons,
        }
    )
    Path("output").mkdir(exist_ok=True)
    ella.register_cells()
    ella.nhpp_prepare()
    return ella


def ratios(ella: Any) -> dict[str, Any]:
    """Twice the gain in log-likelihood over the null of each gene, for 22 kernels."""
    gains = 2 * (ella.mll_est["cell"][:, :-1] - ella.mll_est["cell"][:, -1:])
    return dict(zip(ella.gene_list_dict["cell"], gains.tolist(), strict=True))


def ella(cells: Cells, **_given: Any) -> Found:
    """Registration, preparation and Newton fit of 22 kernels to every gene."""
    from ELLA import ELLA

    def fitted() -> Any:
        found = registered(ELLA, cells)
        found.nhpp_fit()
        return found

    spent, found = seconds(fitted)
    return spent, ratios(found)


def ella_adam(cells: Cells, genes: Any, **_given: Any) -> Found:
    """Fit of 22 kernels to a few genes by the optimiser of 2024, without registration."""
    import torch
    from ELLA import subset_prepared
    from ella_adam.ELLA import ELLA  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole = registered(ELLA, cells)
    prepared = ("r_tl", "c0_tl", "c0_tl_homo", "n_tl", "n_tl_homo")
    prepared += ("type_list", "gene_list_dict", "cell_list_dict", "cell_list_all")
    few = ELLA()
    few.load_nhpp_prepared(
        subset_prepared({name: getattr(whole, name) for name in prepared}, genes)
    )
    spent, _ = seconds(few.nhpp_fit)
    return spent, ratios(few)


# big-fish


def bigfish(cells: Cells, every: int, protrusion: bool, **_given: Any) -> Found:
    """`compute_features` of every so-manieth pair; masks hold the pixels with their centre inside.

    The image is constant, as transcripts come without one. The protrusions ask scikit-image for a
    keyword that 0.20 removed, and no older one has a build for Python 3.11: it is passed on by its
    new name.
    """
    import shapely
    from bigfish.classification import compute_features, features
    from skimage.morphology import binary_opening

    features.binary_opening = lambda image, selem: binary_opening(image, selem)

    groups = ("distance", "intranuclear", "dispersion", "topography", "area")
    wanted = {f"compute_{group}": True for group in groups} | {"compute_protrusion": protrusion}
    total, found, at = 0.0, {}, 0
    for cell in cells:
        shapes = [outline(cell), outline(cell, "nucleus")]
        if shapes[1] is None:  # upstream raises TypeError
            continue
        pixel = np.floor(np.asarray(cell["xy"]) + 1e-6).astype(np.int64)
        bounds = shapely.total_bounds(shapes).reshape(2, 2)
        low = np.minimum(np.floor(bounds[0]), pixel.min(axis=0)).astype(np.int64) - MARGIN
        high = np.maximum(np.ceil(bounds[1]), pixel.max(axis=0) + 1).astype(np.int64) + MARGIN
        x, y = (np.arange(low[k], high[k]) + 0.5 for k in (0, 1))
        masks = [shapely.contains_xy(shape, *np.meshgrid(x, y)) for shape in shapes]
        image = np.ones(masks[0].shape, np.uint8)
        genes = np.array(cell["gene"])
        for gene in sorted(set(cell["gene"])):
            at += 1
            if at % every:
                continue
            here = (pixel[genes == gene] - low)[:, ::-1]
            spots = np.column_stack([here, np.full(len(here), -1)])
            spent, values = seconds(
                lambda masks=masks, spots=spots, image=image: compute_features(
                    *masks, 2, spots, smfish=image, voxel_size_yx=PIXEL_NM, **wanted
                )
            )
            total += spent
            found[f"{cell['name']} {gene}"] = values.tolist()
    return total, found


# torchmetrics


def torchmetrics(true: str, scores: str, **_given: Any) -> Found:
    """Exact AUC and precision-recall curve of each pattern."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_precision_recall_curve

    torch.set_num_threads(1)
    truth = torch.from_numpy(np.load(true).astype(np.int64))
    values = torch.from_numpy(np.load(scores))

    def areas(rows: int) -> list[float]:
        found = []
        for k in range(values.shape[1]):
            column = values[:rows, k], truth[:rows, k]
            found.append(float(binary_auroc(*column)))
            binary_precision_recall_curve(*column)
        return found

    areas(100)
    spent, found = seconds(lambda: areas(len(values)))
    return spent, {"auc": found}


PROGRAMS: dict[str, tuple[str, Callable[..., Found], dict[str, Any]]] = {
    "bento": ("bento-tools", bento, {}),
    "bento, as shipped": ("bento-tools", bento_as_shipped, {}),
    "sprawl peripheral": ("subcellular-sprawl", sprawl, {"metric": "peripheral"}),
    "sprawl punctate": ("subcellular-sprawl", sprawl, {"metric": "punctate"}),
    "sprawl radial": ("subcellular-sprawl", sprawl, {"metric": "radial"}),
    "ella": ("ELLA", ella, {}),
    "ella, Adam": ("ELLA", ella_adam, {}),
    "big-fish": ("big-fish", bigfish, {"protrusion": True}),
    "big-fish, without protrusion": ("big-fish", bigfish, {"protrusion": False}),
    "torchmetrics": ("torchmetrics", torchmetrics, {}),
}


def main() -> None:
    """Run the program; write what it cost and found, or why it does not run here."""
    program, source, target = sys.argv[1:]
    package, run, settings = PROGRAMS[program]
    given = json.loads(Path(source).read_text())
    answer: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer["version"] = f"{package} {version(package)}"
            spent, values = run(**given, **settings)
            answer |= {"cpu_s": spent, "values": values}
        except Exception as error:  # noqa: BLE001 - whatever an old program says today
            answer["why"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    Path(target).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
