"""Commands that turn a source release into a folder of tables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gpattern_bench.cli.options import (
    FOUR_PATTERNS,
    THREE_PATTERNS,
    Cluster,
    Seed,
    app,
    examples,
    tell,
)

curate = typer.Typer(
    help="Turn a source release into a folder of tables, usable wherever a dataset's name is.",
    epilog=examples("curate xenium outs --out mine", "curate cosmx --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(curate, name="curate")


class _Split(StrEnum):
    fov = "fov"
    test = "test"


class _Patternless(StrEnum):
    keep = "keep"
    drop = "drop"


_Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="The source release.")]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")]
_DatasetName = Annotated[
    str | None, typer.Option("--name", help="Name of the dataset; default: the folder's.")
]
_Unit = Annotated[float, typer.Option("--unit-um", help="Micrometres per unit (pixel size).")]
_Patterns = Annotated[str, typer.Option("--patterns", help="Patterns, separated by commas.")]
_Controls = Annotated[
    str, typer.Option("--controls", help="Regular expression for control targets to drop.")
]
_SplitOption = Annotated[
    _Split, typer.Option("--split", help="80:10:10 by whole FOVs, or everything in test.")
]
_PatternlessOption = Annotated[
    _Patternless, typer.Option("--patternless", help="Labelled pairs without a pattern.")
]
_TileUm = Annotated[
    float,
    typer.Option(min=0, help="Side of the tiles that serve as FOVs where there are none; 0 = one."),
]
_TILE_UM = 500.0
_Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes for the FOVs. Default: this one.")
]


@curate.command(
    "bento-h5ad", epilog=examples("curate bento-h5ad cells.h5ad --unit-um 0.103 --out mine")
)
def curate_bento(
    source: _Source,
    out: _Out,
    unit_um: _Unit,
    name: _DatasetName = None,
    patterns: _Patterns = FOUR_PATTERNS,
    controls: _Controls = "notarget|blank",
    split: _SplitOption = _Split.fov,
    patternless: _PatternlessOption = _Patternless.drop,
    seed: Seed = 0,
    jobs: _Jobs = None,
    cluster: Cluster = None,
) -> None:
    """Curate an h5ad file as Bento writes it; labels come from its layers."""
    _curate(
        source,
        out,
        name,
        jobs,
        cluster,
        format="bento-h5ad",
        patterns=tuple(patterns.split(",")),
        unit_um=unit_um,
        controls=controls,
        split=split.value,
        patternless=patternless.value,
        seed=seed,
    )


@curate.command(
    "spatialdata", epilog=examples("curate spatialdata sample.zarr --unit-um 0.108 --out mine")
)
def curate_spatialdata(
    source: _Source,
    out: _Out,
    unit_um: _Unit,
    name: _DatasetName = None,
    fov_column: Annotated[
        str | None, typer.Option(help="Column of the points that names the FOV; none = tiles.")
    ] = None,
    tile_um: _TileUm = _TILE_UM,
    labels: Annotated[
        Path | None, typer.Option(help="csv of labels: cell, gene and 0/1 per pattern.")
    ] = None,
    labels_where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Use only these csv rows.")
    ] = None,
    patterns: _Patterns = FOUR_PATTERNS,
    controls: _Controls = "notarget|blank",
    split: _SplitOption = _Split.fov,
    patternless: _PatternlessOption = _Patternless.drop,
    seed: Seed = 0,
    jobs: _Jobs = None,
    cluster: Cluster = None,
) -> None:
    """Curate a SpatialData zarr: points, shapes and, optionally, a csv of labels."""
    wrong = [text for text in labels_where or () if "=" not in text]
    if wrong:
        raise typer.BadParameter(f"expected COLUMN=VALUE, got {wrong[0]!r}")
    _curate(
        source,
        out,
        name,
        jobs,
        cluster,
        format="spatialdata",
        patterns=tuple(patterns.split(",")),
        unit_um=unit_um,
        controls=controls,
        split=split.value,
        patternless=patternless.value,
        seed=seed,
        fov_column=fov_column,
        tile_um=tile_um,
        labels=None if labels is None else str(labels.absolute()),
        labels_where=dict(text.split("=", 1) for text in labels_where or ()),
    )


@curate.command("cosmx", epilog=examples("curate cosmx Lung5_Rep1 --unit-um 0.18 --out mine"))
def curate_cosmx(
    source: _Source,
    out: _Out,
    unit_um: Annotated[
        float, typer.Option(help="um per pixel: 0.18 in the 2022 lung release, newer 0.12028.")
    ],
    name: _DatasetName = None,
    controls: _Controls = "NegPrb|Negative|SystemControl|FalseCode",
    split: _SplitOption = _Split.fov,
    patternless: _PatternlessOption = _Patternless.drop,
    seed: Seed = 0,
    jobs: _Jobs = None,
    cluster: Cluster = None,
) -> None:
    """Curate CosMx flat files, a folder or the tar.gz; labels come from CellComp, if there."""
    _curate(
        source,
        out,
        name,
        jobs,
        cluster,
        format="cosmx",
        patterns=tuple(THREE_PATTERNS.split(",")),
        unit_um=unit_um,
        controls=controls,
        split=split.value,
        patternless=patternless.value,
        seed=seed,
    )


@curate.command("xenium", epilog=examples("curate xenium outs --out mine"))
def curate_xenium(
    source: _Source,
    out: _Out,
    name: _DatasetName = None,
    min_qv: Annotated[float, typer.Option(help="Molecules of a lower quality are dropped.")] = 20.0,
    tile_um: _TileUm = _TILE_UM,
    patterns: _Patterns = FOUR_PATTERNS,
    controls: _Controls = "NegControl|BLANK|antisense_|Unassigned|Deprecated|Intergenic",
    split: _SplitOption = _Split.test,
    seed: Seed = 0,
    jobs: _Jobs = None,
    cluster: Cluster = None,
) -> None:
    """Curate the output folder of a Xenium run; there are no labels."""
    _curate(
        source,
        out,
        name,
        jobs,
        cluster,
        format="xenium",
        patterns=tuple(patterns.split(",")),
        min_qv=min_qv,
        tile_um=tile_um,
        controls=controls,
        split=split.value,
        seed=seed,
    )


@curate.command("merscope", epilog=examples("curate merscope region_0 --out mine"))
def curate_merscope(
    source: _Source,
    out: _Out,
    name: _DatasetName = None,
    tile_um: _TileUm = _TILE_UM,
    patterns: _Patterns = FOUR_PATTERNS,
    controls: _Controls = "blank",
    split: _SplitOption = _Split.test,
    seed: Seed = 0,
    jobs: _Jobs = None,
    cluster: Cluster = None,
) -> None:
    """Curate the output folder of a MERSCOPE run; there are no labels and no nuclei."""
    _curate(
        source,
        out,
        name,
        jobs,
        cluster,
        format="merscope",
        patterns=tuple(patterns.split(",")),
        tile_um=tile_um,
        controls=controls,
        split=split.value,
        seed=seed,
    )


def _curate(
    source: Path,
    out: Path,
    name: str | None,
    jobs: int | None,
    cluster: str | None,
    **rules: Any,
) -> None:
    from pydantic import ValidationError

    from gpattern_bench.curate.build import curate as make
    from gpattern_bench.sources.recipe import Recipe

    source = source.absolute()
    try:
        recipe = Recipe(path=source.name, **rules)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"--{option}: {wrong['msg']}, got {wrong['input']!r}") from error
    make(
        recipe,
        source.parent,
        out,
        name=name or out.absolute().name,
        version="0.0.0",
        jobs=jobs,
        cluster=cluster,
    )
    tell(out)
