"""The command line, ``gpattern-bench``: a thin layer over the library.

Exit codes: 0 fine; 1 the check failed (validate, verify, leaderboard --check); 2 wrong usage or
unreadable input. Libraries are imported by the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpattern_bench import __version__
from gpattern_bench.errors import GPatternBenchError, MethodError, PredictionError, TableError

if TYPE_CHECKING:
    from gpattern_bench.dataset import Dataset

app = typer.Typer(
    help="Benchmark of gene spatial pattern classification in subcellular spatial transcriptomics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
curate = typer.Typer(
    help="Turn a source release into a folder of tables, usable wherever a dataset's name is.",
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


class _Cv(StrEnum):
    cell = "cell"


_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name, name@version, or a folder.")]
_DatasetOption = Annotated[
    str, typer.Option("--dataset", metavar="NAME", help="Name, name@version, or a folder.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_debug = False


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


def main() -> None:
    """Run the command line; errors of this package become one paragraph on stderr."""
    try:
        app()
    except (GPatternBenchError, OSError) as error:
        if _debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


@app.command("list")
def list_(as_json: _Json = False) -> None:
    """List the datasets: what the registry says, and what is in the cache."""
    from gpattern_bench.dataset import Dataset
    from gpattern_bench.fetch import cache_root
    from gpattern_bench.registry import registry

    keys = ("molecules", "cells", "genes", "molecules_per_cell", "patterns")
    rows: list[dict[str, Any]] = []
    for entry in registry():
        folder = cache_root() / entry.name / entry.version
        cached, counts = "no", {}
        if (folder / "manifest.json").is_file():
            try:
                dataset = Dataset(folder)
                cached, counts = "yes", dict(dataset.counts)
                counts["molecules_per_cell"] = round(counts["molecules"] / counts["cells"])
                counts["patterns"] = len(dataset.patterns)
            except TableError:
                cached = "broken: see verify"
        row: dict[str, Any] = {"dataset": entry.id, "technology": entry.technology}
        for key in keys:
            published, here = entry.published.get(key), counts.get(key, entry.counts.get(key))
            row[key.replace("_", " ")] = published if here is None else here
            if published is not None and here not in (None, published):
                row[key.replace("_", " ")] = f"{here:,} (published {published:,})"
        rows.append(row | {"cached": cached})
    if as_json:
        _print_json(rows)
        return
    _print_rows(
        [{k: f"{v:,}" if isinstance(v, int) else v for k, v in row.items()} for row in rows]
    )
    typer.echo(
        "\nCounts are those of the cached tables, else the registry's or, for datasets of the "
        "paper's table 1, the published ones."
    )


@app.command()
def info(name: _Name, as_json: _Json = False) -> None:
    """Show what is known of a dataset; fetches nothing."""
    from gpattern_bench.dataset import Dataset
    from gpattern_bench.fetch import cache_root
    from gpattern_bench.registry import find_entry

    if (Path(name) / "manifest.json").is_file():
        facts: dict[str, Any] = dict(Dataset(Path(name)).manifest)
        facts.pop("genes")
    else:
        entry = find_entry(name)
        facts = entry.model_dump(mode="json")
        facts["folder"] = str(cache_root() / entry.name / entry.version)
    if as_json:
        _print_json(facts)
        return
    import yaml

    typer.echo(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100), nl=False)


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Datasets to make.")],
) -> None:
    """Fetch and curate datasets into the cache."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.datasheet import table1_check

    for name in names:
        dataset = load_dataset(name)
        typer.echo(f"{dataset.id}\t{dataset.folder}")
        check = table1_check(dataset.manifest)
        if check:
            typer.echo("Table 1 check:")
            _print_rows(check)


@app.command()
def cite(name: _Name) -> None:
    """Show what to cite for a dataset, its licence and where it comes from."""
    from gpattern_bench.registry import find_entry

    entry = find_entry(name)
    for what in ("citation", "release", "licence", "terms"):
        typer.echo(f"{what}: {getattr(entry, what)}")
    for address in dict.fromkeys(file.urls[0] for file in entry.files):
        typer.echo(f"address: {address}")


@app.command("datasheet")
def datasheet_(
    name: _Name,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of showing it.")
    ] = None,
) -> None:
    """Describe a dataset in Markdown: counts, table 1 check, quantiles, drops, provenance."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.datasheet import datasheet
    from gpattern_bench.files import write_text

    text = datasheet(load_dataset(name))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


@app.command()
def export(
    name: _Name,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
) -> None:
    """Write a dataset's finished tables, verified, for any address to serve."""
    from gpattern_bench.curate.build import export_tables
    from gpattern_bench.dataset import load_dataset

    dataset = load_dataset(name, verify=True)
    digest = export_tables(dataset.folder, out)
    typer.echo(
        f"{dataset.id} in {out}. Its entry in a registry, once an address serves the folder:"
    )
    typer.echo(f"  tables: {{urls: [ADDRESS], sha256: {digest}}}")


class _Like(StrEnum):
    synthetic = "synthetic"
    nih3t3 = "nih3t3"
    u2os = "u2os"
    cosmx_lung = "cosmx_lung"


class _As(StrEnum):
    tables = "tables"
    bento_h5ad = "bento-h5ad"
    cosmx = "cosmx"


@app.command("simulate")
def simulate_(
    like: Annotated[_Like, typer.Option(metavar="NAME", help="Dataset that it is like in size.")],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="What to make.")],
    form: Annotated[
        _As, typer.Option("--as", help="Tables, or a source release in one of the formats.")
    ] = _As.tables,
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
) -> None:
    """Draw a release of known patterns, at the size of one of the paper's datasets."""
    from gpattern_bench.curate.build import curate as make
    from gpattern_bench.curate.recipe import Recipe
    from gpattern_bench.curate.releases import write_bento_h5ad, write_cosmx
    from gpattern_bench.curate.simulate import simulate_like

    patterns = _THREE if like is _Like.cosmx_lung else _FOUR
    if form is _As.tables:
        recipe = Recipe(
            format="simulated", like=like.value, patterns=tuple(patterns.split(",")), seed=seed
        )
        make(recipe, Path(), out, name=f"{like.value}_simulated", version="0.0.0")
        _tell(out)
        return
    pieces = simulate_like(like.value, seed)
    if form is _As.cosmx:
        write_cosmx(pieces, out)
    else:
        write_bento_h5ad(pieces, out, patterns.split(","))
    typer.echo(str(out))


@app.command()
def verify(name: _Name) -> None:
    """Check a dataset's files, hashes and rules, and that no split knows another."""
    from gpattern_bench.dataset import load_dataset

    try:
        dataset = load_dataset(name, verify=True)
    except TableError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{dataset.id}: files, hashes, rules and splits are fine ({dataset.folder})")


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
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed.")]
_PatternlessOption = Annotated[
    _Patternless, typer.Option("--patternless", help="Labelled pairs without a pattern.")
]
_TileUm = Annotated[
    float,
    typer.Option(min=0, help="Side of the tiles that serve as FOVs where there are none; 0 = one."),
]
_TILE_UM = 500.0
_FOUR = "cell_edge,cytoplasmic,nuclear,nuclear_edge"
_THREE = "cytoplasmic,membrane,nuclear"


@curate.command("bento-h5ad")
def curate_bento(
    source: _Source,
    out: _Out,
    unit_um: _Unit,
    name: _DatasetName = None,
    patterns: _Patterns = _FOUR,
    controls: _Controls = "notarget|blank",
    split: _SplitOption = _Split.fov,
    patternless: _PatternlessOption = _Patternless.drop,
    seed: _Seed = 0,
) -> None:
    """Curate an h5ad file as Bento writes it; labels come from its layers."""
    _curate(
        source,
        out,
        name,
        format="bento-h5ad",
        patterns=tuple(patterns.split(",")),
        unit_um=unit_um,
        controls=controls,
        split=split.value,
        patternless=patternless.value,
        seed=seed,
    )


@curate.command("spatialdata")
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
    patterns: _Patterns = _FOUR,
    controls: _Controls = "notarget|blank",
    split: _SplitOption = _Split.fov,
    patternless: _PatternlessOption = _Patternless.drop,
    seed: _Seed = 0,
) -> None:
    """Curate a SpatialData zarr: points, shapes and, optionally, a csv of labels."""
    wrong = [text for text in labels_where or () if "=" not in text]
    if wrong:
        raise typer.BadParameter(f"expected COLUMN=VALUE, got {wrong[0]!r}")
    _curate(
        source,
        out,
        name,
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


@curate.command("cosmx")
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
    seed: _Seed = 0,
) -> None:
    """Curate CosMx flat files, a folder or the tar.gz; labels come from CellComp, if there."""
    _curate(
        source,
        out,
        name,
        format="cosmx",
        patterns=tuple(_THREE.split(",")),
        unit_um=unit_um,
        controls=controls,
        split=split.value,
        patternless=patternless.value,
        seed=seed,
    )


@curate.command("xenium")
def curate_xenium(
    source: _Source,
    out: _Out,
    name: _DatasetName = None,
    min_qv: Annotated[float, typer.Option(help="Molecules of a lower quality are dropped.")] = 20.0,
    tile_um: _TileUm = _TILE_UM,
    patterns: _Patterns = _FOUR,
    controls: _Controls = "NegControl|BLANK|antisense_|Unassigned|Deprecated|Intergenic",
    split: _SplitOption = _Split.test,
    seed: _Seed = 0,
) -> None:
    """Curate the output folder of a Xenium run; there are no labels."""
    _curate(
        source,
        out,
        name,
        format="xenium",
        patterns=tuple(patterns.split(",")),
        min_qv=min_qv,
        tile_um=tile_um,
        controls=controls,
        split=split.value,
        seed=seed,
    )


@curate.command("merscope")
def curate_merscope(
    source: _Source,
    out: _Out,
    name: _DatasetName = None,
    tile_um: _TileUm = _TILE_UM,
    patterns: _Patterns = _FOUR,
    controls: _Controls = "blank",
    split: _SplitOption = _Split.test,
    seed: _Seed = 0,
) -> None:
    """Curate the output folder of a MERSCOPE run; there are no labels and no nuclei."""
    _curate(
        source,
        out,
        name,
        format="merscope",
        patterns=tuple(patterns.split(",")),
        tile_um=tile_um,
        controls=controls,
        split=split.value,
        seed=seed,
    )


def _curate(source: Path, out: Path, name: str | None, **rules: Any) -> None:
    from pydantic import ValidationError

    from gpattern_bench.curate.build import curate as make
    from gpattern_bench.curate.recipe import Recipe

    source = source.absolute()
    try:
        recipe = Recipe(path=source.name, **rules)
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"--{option}: {wrong['msg']}, got {wrong['input']!r}") from error
    make(recipe, source.parent, out, name=name or out.absolute().name, version="0.0.0")
    _tell(out)


def _tell(folder: Path) -> None:
    """Say what is in a folder of tables, and what was left out of it."""
    from gpattern_bench.dataset import Dataset

    dataset = Dataset(folder)
    typer.echo(f"{dataset!r} in {folder}")
    for table, reasons in dataset.manifest["dropped"].items():
        for reason, rows in reasons.items():
            typer.echo(f"  dropped from {table}: {rows:,} ({reason})")


@app.command()
def run(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method.")],
    dataset: _DatasetOption,
    train_on: Annotated[
        str | None, typer.Option(metavar="NAME", help="Fit on this dataset instead.")
    ] = None,
    cv: Annotated[
        _Cv | None, typer.Option(help="Out of fold by cell, without a train split.")
    ] = None,
    seed: _Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder; default runs/METHOD.")
    ] = None,
) -> None:
    """Fit a method, and write prediction files for val and test, with what the run cost."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.run import run_method

    files = run_method(
        method,
        load_dataset(dataset),
        out or Path("runs") / method,
        train_on=load_dataset(train_on) if train_on else None,
        cv=cv is not None,
        seed=seed,
    )
    for file in files:
        typer.echo(str(file))


@app.command()
def features(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="bento, ella, locfish, locfish_2018, sprawl.")
    ],
    tables: Annotated[str, typer.Argument(metavar="TABLES", help="Name, or a folder of tables.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Parquet file to write.")],
    unit_um: Annotated[
        float | None,
        typer.Option(help="um per unit in which to compute, such as the source's pixel size."),
    ] = None,
) -> None:
    """Write a method's raw features: one row per pair (ELLA: per gene and kernel)."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.features import write_features

    typer.echo(str(write_features(method, load_dataset(tables), out, unit_um=unit_um)))


_File = Annotated[Path, typer.Argument(metavar="FILE", help="A prediction file.")]


@app.command()
def validate(file: _File, dataset: _DatasetOption) -> None:
    """Check a prediction file, of labelled pairs or, without labels, of all: every problem."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.predictions import check_predictions, expected_origin, read_predictions

    found = load_dataset(dataset)
    try:
        table, origin, problems = read_predictions(file)
    except PredictionError as error:
        if not file.is_file():
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    split = origin.split if origin is not None and origin.split in found.splits else "test"
    checked = check_predictions(
        table,
        found.pairs(split),
        found.patterns,
        origin=origin,
        expected=expected_origin(found, split),
    )
    for warning in checked.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if problems + checked.problems:
        subject = f"{file} (split {split})"
        typer.echo(f"error: {PredictionError(subject, problems + checked.problems)}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{file}: fine (split {split})")


class _By(StrEnum):
    molecules = "molecules"
    gene_seen = "gene_seen"
    cell_size = "cell_size"


_Val = Annotated[Path | None, typer.Option(metavar="FILE", help="The method's predictions on val.")]
_Replicates = Annotated[int, typer.Option(min=0, help="Bootstrap replicates; 0 = no intervals.")]


@app.command()
def evaluate(
    file: _File,
    dataset: _DatasetOption,
    val: _Val = None,
    by: Annotated[_By | None, typer.Option(help="Break the result down.")] = None,
    replicates: _Replicates = 1000,
    as_json: _Json = False,
) -> None:
    """Score a prediction file."""
    from gpattern_bench.evaluator import Evaluator
    from gpattern_bench.predictions import read_origin

    origin = read_origin(file)
    split = "test" if origin is None else origin.split
    evaluator = Evaluator(dataset, split)
    if by is not None:
        parts = evaluator.strata(file, by.value, val, replicates=replicates)
        if as_json:
            _print_json(parts)
            return
        metrics = ["auc_macro", "ap_macro", "f1_macro", "acc_macro"]
        metrics += [] if val is None else ["f1_val_macro"]
        rows: list[dict[str, Any]] = [
            {by.value: name, "n": part["n"], "clusters": part.get("n_clusters")}
            | {metric.removesuffix("_macro"): _with_ci(part, metric) for metric in metrics}
            for name, part in parts.items()
        ]
        _print_rows(rows)
        typer.echo(f"\n{split}: macro averages, fractions [95 % interval]")
        return
    result = evaluator.eval(file, val, replicates=replicates)
    if as_json:
        _print_json(result)
        return
    names = "auc acc f1 f1_val ap precision recall threshold floor n_positive"
    columns = [name for name in names.split() if val is not None or name != "f1_val"]
    rows = [
        {"pattern": pattern} | {name: values[name] for name in columns}
        for pattern, values in result.per_pattern.items()
    ]
    rows.append({"pattern": "macro"} | {name: result.get(f"{name}_macro", "") for name in columns})
    ci = result.get("ci", {})
    for end, label in enumerate(("from", "to")):
        if ci:
            bounds = {n: ci[f"{n}_macro"][end] if f"{n}_macro" in ci else "" for n in columns}
            rows.append({"pattern": label} | bounds)
    _print_rows(rows)
    typer.echo(
        f"\n{split}: {result['n']:,} pairs, accuracy over all patterns of a pair "
        f"{_with_ci(result, 'accuracy_subset')}; fractions, thresholds chosen on these labels"
    )
    if val is not None:
        typer.echo(
            "f1_val: at the thresholds chosen on val; gap of f1 " + _with_ci(result, "f1_gap_macro")
        )
    if ci:
        typer.echo(
            f"from, to: 95 % intervals of the macro averages, over {result['n_clusters']} clusters "
            f"({result['clusters']})"
        )
    for metric, patterns in result.undefined.items():
        typer.echo(f"undefined {metric}, left out of its mean: {', '.join(patterns)}")
    for warning in result["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def _with_ci(result: dict[str, Any], metric: str) -> str:
    text = f"{result[metric]:.6f}"
    if "ci" in result:
        low, high = result["ci"][metric]
        text += f" [{low:.4f}, {high:.4f}]"
    return text


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of one method.")],
    b: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of another.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=2, help="Bootstrap replicates.")] = 1000,
    as_json: _Json = False,
) -> None:
    """Compare two prediction files on the same pairs: differences with intervals."""
    from gpattern_bench.evaluator import Evaluator

    found = Evaluator(*_scored_by(a, dataset)).compare(a, b, replicates=replicates)
    if as_json:
        _print_json(found)
        return
    _print_rows(
        [
            {
                "metric": metric,
                "a": values["a"],
                "b": values["b"],
                "a - b": values["difference"],
                "from": values["ci"][0],
                "to": values["ci"][1],
                "": "tied" if values["tied"] else "differ",
            }
            for metric, values in found.items()
        ]
    )
    clusters = next(iter(found.values()))["n_clusters"]
    typer.echo(f"\na = {a}, b = {b}; paired bootstrap over {clusters} clusters, 95 % intervals")


@app.command()
def calls(
    file: _File,
    val: Annotated[Path, typer.Option(metavar="FILE", help="The method's predictions on val.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: FILE with -calls in its name.")
    ] = None,
) -> None:
    """Turn scores into calls, by the thresholds chosen on val, and sum them up per gene."""
    from gpattern_bench.calls import val_thresholds, write_calls
    from gpattern_bench.evaluator import Evaluator

    found, split = _scored_by(file, dataset)
    checked = Evaluator(found, split).check(file)
    if checked.problems:
        raise PredictionError(str(file), checked.problems)
    beside = out or file.with_name(f"{file.stem}-calls.parquet")
    for path in write_calls(file, val_thresholds(found, val), beside):
        typer.echo(str(path))


def _scored_by(file: Path, dataset: str | None) -> tuple[Dataset, str]:
    """Dataset and split of a prediction file."""
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.predictions import read_origin, read_predictions

    origin = read_origin(file)
    if origin is None:
        problems = read_predictions(file)[2]  # says so if the file cannot be read at all
        raise PredictionError(str(file), problems)
    return load_dataset(dataset or f"{origin.dataset}@{origin.version}"), origin.split


@app.command()
def predict(
    tables: _Name,
    model: Annotated[
        Path, typer.Option(metavar="DIR", help="A model-... folder that `run` wrote.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file of scores.")],
    with_calls: Annotated[
        bool,
        typer.Option("--calls", help="Also write calls, by the model's thresholds, and genes."),
    ] = False,
) -> None:
    """Score every pair of a dataset, labelled or not, with a model that a run left."""
    from gpattern_bench.calls import write_calls
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.model import load_model, predict_tables

    method, about = load_model(model)
    thresholds = about.thresholds if with_calls else None
    if with_calls and thresholds is None:
        raise MethodError(
            f"{model} has no thresholds for calls: it was run on a dataset without a val split"
        )
    written = [predict_tables(method, about, load_dataset(tables), out)]
    if thresholds is not None:
        written += write_calls(out, thresholds, out.with_name(f"{out.stem}-calls.parquet"))
    for path in written:
        typer.echo(str(path))


@app.command()
def leaderboard(
    submissions: Annotated[Path, typer.Option(metavar="DIR", help="Submissions.")] = Path(
        "submissions"
    ),
    out: Annotated[Path, typer.Option(metavar="DIR", help="The board's folder.")] = Path(
        "leaderboard"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 on any drift.")
    ] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the prediction files again first.")
    ] = False,
) -> None:
    """Make LEADERBOARD.md and leaderboard.json from the submissions' stored results."""
    from gpattern_bench.board import build_board, drift, read_reported, unpinned_labels, write_board
    from gpattern_bench.submission import read_submissions, results_text

    found = read_submissions(submissions)
    problems = []
    if rescore:
        skipped, scored = [], 0
        for submission in found:
            results, missing = submission.rescored()
            skipped += missing
            scored += len(list(submission.test_files())) - len(missing)
            if results_text(results) != results_text(submission.results):
                if check:
                    problems.append(f"{submission.folder.name}: scores differ from results.json")
                else:
                    submission.write_results(results)
        typer.echo(f"scored {scored} prediction files; {len(skipped)} skipped, dataset not here")
        found = found if check else read_submissions(submissions)
    problems += [text for submission in found for text in submission.stale()]
    problems += unpinned_labels(found)
    board = build_board(found, read_reported(out))
    if not problems and check:
        problems = drift(board, out)
    if problems:
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
        typer.echo("run `gpattern-bench leaderboard --rescore` and commit what changes", err=True)
        raise typer.Exit(1)
    if check:
        typer.echo("the board is what the submissions give")
    else:
        write_board(board, out)
        typer.echo(str(out / "LEADERBOARD.md"))


class _Study(StrEnum):
    neighbours = "neighbours"
    depths = "depths"
    cells = "cells"


@app.command()
def ablation(
    dataset: _DatasetOption = "synthetic",
    study: Annotated[
        list[_Study] | None, typer.Option(help="What to change; again for more. Default: all.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="What to score.")] = "val",
    seed: _Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="80 training cells and 6 epochs: some minutes.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Train GPSNet with other K, depths and numbers of cells; the paper's figures beside ours."""
    from dataclasses import asdict

    from gpattern_bench.ablation import STUDIES, ablation_table, train_variants
    from gpattern_bench.dataset import load_dataset

    rows = list(
        train_variants(
            load_dataset(dataset), studies=study or STUDIES, split=split, seed=seed, quick=quick
        )
    )
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        typer.echo(ablation_table(rows))


_CONTROLS = ("prevalence", "gene_prior", "molecule_count", "oracle")
_DEMO = (*_CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted", "gpsnet")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what it makes.")] = Path(
        "demo"
    ),
) -> None:
    """Run controls, baselines, trees and GPSNet on `synthetic` (no download); show the board."""
    from gpattern_bench.board import build_board, markdown, write_board
    from gpattern_bench.dataset import load_dataset
    from gpattern_bench.methods import get_method
    from gpattern_bench.run import run_method
    from gpattern_bench.submission import Metadata, read_submissions

    dataset = load_dataset("synthetic")
    for name in _DEMO:
        folder = out / "submissions" / name
        Metadata.of(get_method(name).about).write(folder)
        run_method(name, dataset, folder / "predictions")
    for submission in read_submissions(out / "submissions"):
        submission.write_results(submission.rescored()[0])
    board = build_board(read_submissions(out / "submissions"))
    write_board(board, out / "leaderboard")
    typer.echo(markdown(board))
    typer.echo(f"Prediction files and board are in {out}/")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from tabulate import tabulate

    typer.echo(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".6f", missingval="-"))


def _print_json(value: Any) -> None:
    import json

    from gpattern_bench.files import plain

    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False))
