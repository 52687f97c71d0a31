"""Commands that turn a source release into a folder of tables."""

from __future__ import annotations

import re
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gpattern_bench.cli.options import (
    Cluster,
    Group,
    Name,
    Seed,
    app,
    examples,
    tell,
)
from gpattern_bench.sources.controls import CONTROLS
from gpattern_bench.sources.patterns import FOUR_PATTERNS, THREE_PATTERNS

curate = typer.Typer(
    cls=Group,
    help="Turn a source release into a folder of tables, usable wherever a dataset's name is.",
    epilog=examples("curate xenium outs --out mine", "curate cosmx --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(curate, name="curate")

_REQUIRED = Parameter.empty
_FOUR, _THREE = ",".join(FOUR_PATTERNS), ",".join(THREE_PATTERNS)
_ALL = {
    "source": _REQUIRED,
    "out": _REQUIRED,
    "name": None,
    "min_qv": 20.0,
    "controls": CONTROLS,
    "seed": 0,
    "jobs": None,
    "cluster": None,
}
"""Parameters of every command, and their defaults."""

_PARAMETERS: dict[str, Any] = {
    "source": Annotated[Path, typer.Argument(metavar="SOURCE", help="The source release.")],
    "out": Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    "unit_um": Annotated[
        float, typer.Option("--unit-um", help="Micrometres per unit (pixel size).")
    ],
    "name": Annotated[
        str | None, typer.Option("--name", help="Name of the dataset; default: the folder's.")
    ],
    "min_qv": Annotated[
        float, typer.Option(help="Drop molecules of a lower quality (qv), where it is stated.")
    ],
    "points": Annotated[
        str | None, typer.Option(help="Element of the molecules; default: transcripts.")
    ],
    "cells": Annotated[
        str | None, typer.Option(help="Element of the cells; default: cell_boundaries.")
    ],
    "nuclei": Annotated[
        str | None,
        typer.Option(
            help="Element of the nuclei; default: nucleus_boundaries or, with --cells, none."
        ),
    ],
    "gene_column": Annotated[
        str | None, typer.Option(help="Column of the points: gene; default: their feature_key.")
    ],
    "cell_column": Annotated[
        str | None, typer.Option(help="Column of the points: cell; default: their instance_key.")
    ],
    "cells_file": Annotated[
        Path | None,
        typer.Option("--cells", help="Outlines of cells: GeoJSON, GeoParquet, or csv with WKT."),
    ],
    "nuclei_file": Annotated[
        Path | None, typer.Option("--nuclei", help="Outlines of nuclei, with the ids of the cells.")
    ],
    "surrogate_outlines": Annotated[
        bool,
        typer.Option("--surrogate-outlines", help="Draw outlines around the cells' molecules."),
    ],
    "x": Annotated[str | None, typer.Option(help="Column of x; default: x.")],
    "y": Annotated[str | None, typer.Option(help="Column of y; default: y.")],
    "gene": Annotated[str | None, typer.Option(help="Column of genes; default: gene.")],
    "cell": Annotated[
        str | None,
        typer.Option(
            help="Column of cells; default: cell_id or, without it, the outlines say which."
        ),
    ],
    "fov": Annotated[str | None, typer.Option(help="Column that names the FOV; none = tiles.")],
    "fov_column": Annotated[
        str | None, typer.Option(help="Column of the points that names the FOV; none = tiles.")
    ],
    "tile_um": Annotated[
        float, typer.Option(min=0, help="Side of the tiles that serve as FOVs; 0 = one FOV.")
    ],
    "crops": Annotated[
        list[str] | None,
        typer.Option(
            "--crop",
            metavar="FOV=COLUMN,ROW",
            help="The FOV's label image is a crop that begins at this pixel of the whole image.",
        ),
    ],
    "labels": Annotated[
        Path | None, typer.Option(help="csv of labels: cell, gene and 0/1 per pattern.")
    ],
    "labels_where": Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Use only these csv rows.")
    ],
    "patterns": Annotated[str, typer.Option(help="Patterns, separated by commas.")],
    "controls": Annotated[
        str, typer.Option(help="Regular expression for control targets to drop; '' keeps all.")
    ],
    "split": Annotated[
        Literal["auto", "fov", "test"],
        typer.Option(
            help="80:10:10 by whole FOVs, or everything in test; auto: by FOVs if there are labels."
        ),
    ],
    "patternless": Annotated[
        Literal["keep", "drop"], typer.Option(help="Labelled pairs without a pattern.")
    ],
    "seed": Seed,
    "jobs": Annotated[
        int | None, typer.Option(min=1, help="Processes for the FOVs. Default: this one.")
    ],
    "cluster": Cluster,
}
"""All parameters, in the order of the help."""


def _add(form: str, example: str, text: str, **options: Any) -> None:
    """Add the command for a format: `options` are its own and their defaults."""
    defaults = _ALL | options

    def command(**given: Any) -> None:
        _curate(form, **given)

    # Typer reads both.
    command.__annotations__ = {name: _PARAMETERS[name] for name in _PARAMETERS if name in defaults}
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
            for name, annotation in command.__annotations__.items()
        ]
    )
    curate.command(form, help=text, epilog=examples(f"curate {form} {example} --out mine"))(command)


_MAY_BE_LABELLED: dict[str, Any] = {
    "unit_um": _REQUIRED,
    "split": "auto",
    "patternless": "drop",
}
_LABELS_CSV: dict[str, Any] = {
    "tile_um": 500.0,
    "labels": None,
    "labels_where": None,
    "patterns": _FOUR,
}
"""Options that formats share, and their defaults."""


_add(
    "bento-h5ad",
    "cells.h5ad --unit-um 0.103",
    "Curate an h5ad file as Bento writes it; labels come from its layers.",
    patterns=_FOUR,
    **_MAY_BE_LABELLED,
)
_add(
    "spatialdata",
    "sample.zarr --unit-um 0.108",
    "Curate a SpatialData zarr: points, shapes and, optionally, a csv of labels.",
    points=None,
    cells=None,
    nuclei=None,
    gene_column=None,
    cell_column=None,
    fov_column=None,
    **_LABELS_CSV,
    **_MAY_BE_LABELLED,
)
_add(
    "cosmx",
    "Lung5_Rep1 --unit-um 0.18",
    "Curate CosMx flat files, a folder or the tar.gz; labels come from CellComp, if there. A pixel "
    "is 0.18 um in the lung release of 2022, 0.12028 um in newer ones.",
    crops=None,
    **_MAY_BE_LABELLED,
)
_add(
    "xenium",
    "outs",
    "Curate the output folder of a Xenium run; there are no labels.",
    tile_um=500.0,
    patterns=_FOUR,
    split="test",
)
_add(
    "merscope",
    "region_0",
    "Curate the output folder of a MERSCOPE run; there are no labels.",
    tile_um=500.0,
    patterns=_FOUR,
    split="test",
)


_add(
    "table",
    "molecules.csv --cells cells.geojson --unit-um 1",
    "Curate a table of molecules, one row each (csv, tsv or Parquet), and files of outlines.",
    cells_file=None,
    nuclei_file=None,
    surrogate_outlines=False,
    x=None,
    y=None,
    gene=None,
    cell=None,
    fov=None,
    **_LABELS_CSV,
    **_MAY_BE_LABELLED,
)

_COLUMNS = ("x", "y", "gene", "cell", "fov")


def _curate(
    form: str,
    *,
    source: Path,
    out: Path,
    name: str | None,
    jobs: int | None,
    cluster: str | None,
    patterns: str = _THREE,
    labels: Path | None = None,
    labels_where: list[str] | None = None,
    cells_file: Path | None = None,
    nuclei_file: Path | None = None,
    crops: list[str] | None = None,
    **rules: Any,
) -> None:
    from pydantic import ValidationError

    from gpattern_bench.curate.build import curate as make
    from gpattern_bench.sources.recipe import Recipe

    where = _pairs("--labels-where", "COLUMN=VALUE", "(.*?)=(.*)", labels_where)
    corners = _pairs("--crop", "FOV=COLUMN,ROW", r"(.+)=(\d+,\d+)", crops)
    source = source.absolute()
    for key, file in (("cells", cells_file), ("nuclei", nuclei_file)):
        if file is not None:
            rules[key] = str(file.absolute())
    rules |= {f"{key}_column": rules.pop(key) for key in _COLUMNS if key in rules}
    try:
        recipe = Recipe.model_validate(
            {
                "format": form,
                "path": source.name,
                "patterns": tuple(patterns.split(",")),
                "labels": None if labels is None else str(labels.absolute()),
                "labels_where": where,
                "crops": {fov: tuple(corner.split(",")) for fov, corner in corners.items()},
            }
            | rules
        )
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


@app.command(
    epilog=examples(
        "label mine --with runs/boosted/synthetic --out labelled",
        "label u2os_sample --with rnaforest --out labelled --split test",
    )
)
def label(
    tables: Name,
    classifier: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MODEL_OR_ARRAYS",
            help="A model-... folder that `run` wrote, a folder with only one, or one that "
            "`models` lists; rnaforest (Bento's published forest), or a file of its arrays.",
        ),
    ],
    out: Annotated[Path, _PARAMETERS["out"].__metadata__[0]],
    name: Annotated[str | None, _PARAMETERS["name"].__metadata__[0]] = None,
    split: Annotated[
        Literal["auto", "fov", "test"],
        typer.Option(
            help="80:10:10 by whole FOVs, or everything in test; auto: as TABLES name it, else by "
            "FOVs."
        ),
    ] = "auto",
    patternless: Annotated[
        Literal["keep", "drop"], typer.Option(help="Pairs for which nothing is called.")
    ] = "drop",
    seed: Seed = 0,
) -> None:
    """Make a dataset whose labels are a classifier's calls: scores on it measure imitation."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.runs.label import label as make

    make(
        load_dataset(tables),
        classifier,
        out,
        name=name,
        split=split,
        patternless=patternless,
        seed=seed,
    )
    tell(out)


def _pairs(option: str, form: str, pattern: str, texts: list[str] | None) -> dict[str, str]:
    """Split the values of an option into keys and values."""
    pairs = {}
    for text in texts or ():
        found = re.fullmatch(pattern, text)
        if found is None:
            raise typer.BadParameter(f"{option}: expected {form}, got {text!r}")
        pairs[found[1]] = found[2]
    return pairs
