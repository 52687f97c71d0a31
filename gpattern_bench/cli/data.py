"""Commands about datasets: list, fetch, describe, export, simulate, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gpattern_bench.base.validation import printable
from gpattern_bench.cli.options import (
    Json,
    Name,
    app,
    echo,
    examples,
    print_json,
    print_rows,
    tell,
)
from gpattern_bench.errors import GPatternBenchError, TableError


@app.command("list", epilog=examples("list", "list --json"))
def list_(as_json: Json = False) -> None:
    """List the datasets of the registry, and which are in the cache."""
    from gpattern_bench.base.files import MANIFEST
    from gpattern_bench.sources.cache import cache_root
    from gpattern_bench.sources.registry import registry
    from gpattern_bench.tables.manifest import read_manifest

    keys = ("molecules", "cells", "genes", "molecules_per_cell", "patterns")
    rows: list[dict[str, Any]] = []
    for entry in registry():
        folder = cache_root() / entry.name / entry.version
        cached, counts = "no", dict(entry.counts)
        if (folder / MANIFEST).is_file():
            try:
                manifest = read_manifest(folder)
                cached, counts = "yes", manifest.counts.totals
                counts["genes"] = len(manifest.genes)
            except TableError:
                cached = "broken: see verify"
        if counts:
            counts["molecules_per_cell"] = round(counts["molecules"] / counts["cells"])
            counts["patterns"] = len(entry.recipe.patterns)
        row: dict[str, Any] = {"dataset": entry.id, "technology": entry.technology}
        for key in keys:
            published, here = entry.published.get(key), counts.get(key)
            row[key.replace("_", " ")] = published if here is None else here
            if published is not None and here not in (None, published):
                row[key.replace("_", " ")] = f"{here:,} (published {published:,})"
        fetched = {"download": entry.download, "licence": entry.licence}
        rows.append(row | {"cached": cached} | fetched)
    if as_json:
        print_json(rows)
        return
    hidden = ("download", "licence")
    print_rows(
        [
            {k: f"{v:,}" if isinstance(v, int) else v for k, v in row.items() if k not in hidden}
            for row in rows
        ]
    )
    echo(
        "\nCounts are those of the cached tables, else the registry's or, for datasets of the "
        "paper's table 1, the published ones."
    )
    if missing := [row for row in rows if row["cached"] != "yes"]:
        echo("\nWhat `gpattern-bench download NAME` would fetch, and the licence:")
        print_rows([{k: row[k] for k in ("dataset", *hidden)} for row in missing])


@app.command(epilog=examples("info synthetic"))
def info(name: Name, as_json: Json = False) -> None:
    """Show a dataset's entry or manifest; fetches nothing."""
    from gpattern_bench.base.files import MANIFEST
    from gpattern_bench.sources.cache import cache_root
    from gpattern_bench.sources.registry import find_entry, is_registered
    from gpattern_bench.tables.manifest import read_manifest

    if not is_registered(name) and (Path(name) / MANIFEST).is_file():
        facts = read_manifest(Path(name)).raw
        facts.pop("genes")
    else:
        entry = find_entry(name)
        facts = entry.model_dump(mode="json")
        facts["folder"] = str(cache_root() / entry.name / entry.version)
    if as_json:
        print_json(facts)
        return
    import yaml

    echo(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100), nl=False)


@app.command(epilog=examples("download synthetic u2os_gold"))
def download(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Datasets to make.")],
) -> None:
    """Fetch and curate datasets into the cache. What fails stops no other."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.data.datasheet import table1_check

    failed = []
    for name in names:
        try:
            dataset = load_dataset(name)
        except (GPatternBenchError, OSError) as error:
            if len(names) == 1:
                raise
            failed.append(name)
            echo(printable(f"error: {name}: {error}"), err=True)
            continue
        echo(f"{dataset.id}\t{dataset.folder}")
        check = table1_check(dataset.manifest)
        if check:
            echo("Table 1 check:")
            print_rows(check)
    if failed:
        raise GPatternBenchError(
            f"{len(failed)} of {len(names)} datasets are not there, see above: {', '.join(failed)}"
        )


@app.command(epilog=examples("cite nih3t3_gold"))
def cite(name: Name) -> None:
    """Show what to cite for a dataset, its licence and where it comes from."""
    from gpattern_bench.base.files import MANIFEST
    from gpattern_bench.sources.registry import find_entry, is_registered

    if not is_registered(name) and (Path(name) / MANIFEST).is_file():
        raise GPatternBenchError(
            f"{name} is a folder of tables that was curated here: cite what its source asks for, "
            f"see `gpattern-bench info {name}`, and this package (CITATION.cff)"
        )
    entry = find_entry(name)
    for what in ("citation", "release", "licence", "terms"):
        echo(f"{what}: {getattr(entry, what)}")
    for address in dict.fromkeys(file.urls[0] for file in entry.files if file.urls):
        echo(f"address: {address}")
    for made in dict.fromkeys(file.made for file in entry.files if file.made):
        echo(f"one file is {made}")


@app.command(
    "datasheet", epilog=examples("datasheet synthetic", "datasheet synthetic --out synthetic.md")
)
def datasheet_(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of showing it.")
    ] = None,
) -> None:
    """Describe a dataset in Markdown: counts, table 1 check, quantiles, drops, provenance."""
    from gpattern_bench.base.files import write_text
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.data.datasheet import datasheet

    text = datasheet(load_dataset(name))
    if out is None:
        echo(text, nl=False)
    else:
        write_text(out, text)


@app.command(epilog=examples("export synthetic --out tables/synthetic"))
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
) -> None:
    """Write a dataset's finished tables, verified, for any address to serve."""
    from gpattern_bench.curate.build import export_tables
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.data.entry import entry_text

    dataset = load_dataset(name, verify=True)
    digest = export_tables(dataset.folder, out)
    echo(
        f"{dataset.id} in {out}. Its entry in the registry (gpattern_bench/sources/datasets.yaml),"
    )
    echo("once an address serves the folder and <...> is filled in:\n")
    echo(entry_text(dataset, digest), nl=False)


@app.command(
    "simulate",
    epilog=examples(
        "simulate --like cosmx_lung --cells 5000 --out lung",
        "simulate --like cosmx_lung --as cosmx --out release",
    ),
)
def simulate_(
    like: Annotated[
        Literal["synthetic", "nih3t3", "u2os", "cosmx_lung"],
        typer.Option(metavar="NAME", help="Dataset whose size to match."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="What to make.")],
    form: Annotated[
        Literal["tables", "bento-h5ad", "cosmx"],
        typer.Option("--as", help="Tables, or a source release in one of the formats."),
    ] = "tables",
    seed: Annotated[int, typer.Option(min=0, help="Seed.")] = 0,
    cells: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Draw N cells, in fewer fields of view. Default: as many as it has."
        ),
    ] = None,
) -> None:
    """Draw a release of known patterns, at the size of one of the paper's datasets or smaller."""
    from gpattern_bench.curate.build import curate as make
    from gpattern_bench.curate.simulate.cells import simulate_like
    from gpattern_bench.curate.simulate.releases import write_bento_h5ad, write_cosmx
    from gpattern_bench.sources.patterns import FOUR_PATTERNS, THREE_PATTERNS
    from gpattern_bench.sources.recipe import Recipe

    patterns = THREE_PATTERNS if like == "cosmx_lung" else FOUR_PATTERNS
    if form == "tables":
        recipe = Recipe(
            format="simulated",
            like=like,
            patterns=patterns,
            patternless="keep" if like == "synthetic" else "drop",  # as that dataset has them
            seed=seed,
            n_cells=cells,
        )
        make(recipe, Path(), out, name=f"{like}_simulated", version="0.0.0")
        tell(out)
        return
    pieces = simulate_like(like, seed, cells)
    if form == "cosmx":
        write_cosmx(pieces, out)
    else:
        write_bento_h5ad(pieces, out, patterns)
    echo(str(out))


@app.command(epilog=examples("verify synthetic"))
def verify(name: Name) -> None:
    """Check a dataset's files, hashes and rules, and that splits do not overlap."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.tables.placement import placement_text, placement_warnings

    try:
        dataset = load_dataset(name)
        placement = dataset.verify()
    except TableError as error:
        echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    echo(f"{dataset.id}: files, hashes, rules and splits are fine ({dataset.folder})")
    echo(f"  {placement_text(placement)}")
    for warning in placement_warnings(placement):
        echo(f"warning: {warning}", err=True)
