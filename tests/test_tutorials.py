"""The tutorials run as they are, in a folder with real files of their platform."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from exports import positions, vertices, write_cosmx, write_merscope, write_xenium

from gpattern_bench import load_dataset
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import PATTERNS
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.sources.recipe import Recipe

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"


def write_outs(shared: Path) -> None:
    """The Xenium crop, as the instrument writes it."""
    pytest.importorskip("anndata", reason="anndata is not installed (extra: spatial)")
    source = shared / "xenium_breast" / "bt_small_data.zarr"
    rules = {"patterns": PATTERNS, "split": "test", "tile_um": 500.0}
    recipe = Recipe(format="spatialdata", path=source.name, **rules)
    crop = Dataset(curate(recipe, source.parent, Path("crop"), name="crop", version="1.0.0"))
    names = {"gene": "feature_name", "x": "x_location", "y": "y_location"}
    molecules = crop.molecules().to_pandas().rename(columns=names)
    molecules = molecules[["cell_id", *names.values()]].assign(
        transcript_id=np.arange(len(molecules)), overlaps_nucleus=0, z_location=0.0, qv=40.0
    )
    cells = crop.cells().set_index("cell_id")
    rings = [
        vertices(cells[name].dropna().items()) for name in ("cell_boundary", "nucleus_boundary")
    ]
    write_xenium(Path("outs"), molecules, *rings)


def write_flat_files(shared: Path, unit_um: float = 0.12028) -> None:
    """A corner of a CosMx field, as AtoMx writes it."""
    made = load_dataset("cosmx_lung_mini")
    molecules = made.molecules().to_pandas().astype({"cell_id": str, "fov": str})
    cells = made.cells().astype({"cell_id": str, "fov": str})
    molecules, cells = (frame[frame["fov"] == frame["fov"].min()] for frame in (molecules, cells))
    corners = shapely.get_coordinates(cells["cell_boundary"].to_numpy(), return_index=True)
    rings = pd.DataFrame(corners[0], columns=["x", "y"])
    rings["cell_id"] = cells["cell_id"].to_numpy()[corners[1]]
    for frame in (molecules, rings):
        frame[["cell", "fov"]] = frame["cell_id"].str.split("-", expand=True).astype(int)
        for axis in "xy":
            frame[f"{axis}_global_px"] = frame[f"{axis}_local_px"] = frame[axis] / unit_um
    columns = ["x_local_px", "y_local_px", "x_global_px", "y_global_px"]
    fovs = dict.fromkeys(sorted({*molecules["fov"]}), (0.0, 0.0))
    write_cosmx(
        Path("Flat_files"),
        molecules.rename(columns={"cell": "cell_ID", "gene": "target"})[
            ["fov", "cell_ID", *columns, "target"]
        ],
        listed=positions(fovs).rename(columns={"fov": "FOV"}),
        images={},
        polygons=rings.rename(columns={"cell": "cellID"})[["fov", "cellID", *columns]],
    )


def write_region(shared: Path) -> None:
    """A part of the MERSCOPE slide."""
    folder = shared / "merscope_mouse_brain"
    outlines = []
    for plane in (0, 1):
        path = folder / "cell_boundaries" / f"z{plane}_polygons.gz"
        table = pd.read_csv(path, dtype={"poly_ID": str})
        for name, group in table.groupby("poly_ID", sort=True):
            corners = group[["x", "y"]].to_numpy() * [1, -1]  # y is negated in this extract
            outlines.append((name, plane, shapely.Polygon(corners)))
    molecules = pd.read_csv(folder / "vizgen_transcripts.gz").assign(barcode_id=0, x=0.0, y=0.0)
    some = {*sorted({name for name, *_ in outlines})[:160]}
    write_merscope(Path("region_0"), molecules, [one for one in outlines if one[0] in some])


SOURCES: dict[str, Callable[[Path], None]] = {
    "xenium": write_outs,
    "cosmx": write_flat_files,
    "merscope": write_region,
}


def cells_of(name: str) -> list[dict]:
    return json.loads((TUTORIALS / f"{name}.ipynb").read_text("utf-8"))["cells"]


def test_each_platform_has_one_and_it_is_small() -> None:
    assert sorted(path.stem for path in TUTORIALS.glob("*.ipynb")) == sorted(SOURCES)
    for name in SOURCES:
        for cell in cells_of(name):
            assert not cell.get("outputs")
        text = (TUTORIALS / f"{name}.ipynb").read_text("utf-8")
        assert len(text) < 20_000
        assert not re.search(r"/(home|root|tmp|Users|work)/", text)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.usefixtures("mirror")
@pytest.mark.slow
def test_it_runs_as_printed(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SOURCES[name](shared)
    seen: dict = {"__name__": "notebook"}
    for k, cell in enumerate(cells_of(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {k}", "exec"), seen)
    assert (tmp_path / "answer" / "report.html").is_file()
    assert seen["answer"].record["counts"]["called"] > 0
    assert len(seen["genes"]) > 0
