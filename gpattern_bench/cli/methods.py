"""Commands that train methods and score cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpattern_bench.cli.options import (
    DatasetOption,
    Json,
    Name,
    OfMethod,
    Seed,
    app,
    echo,
    examples,
    print_json,
    print_rows,
)
from gpattern_bench.errors import MethodError

if TYPE_CHECKING:
    from gpattern_bench.methods.base import Method


Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of GPSNet: gpsnet, small, nih3t3, u2os or cosmx_lung."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of GPSNet or its training; again for more."
    ),
]


@app.command(
    cls=OfMethod,
    epilog=examples(
        "run sprawl --dataset synthetic",
        "run bento --dataset u2os_gold --train-on synthetic --train-on nih3t3_gold",
    ),
)
def run(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method named below.")],
    dataset: DatasetOption,
    train_on: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Fit on this dataset instead; again for more."),
    ] = None,
    cv: Annotated[
        Literal["cell"] | None, typer.Option(help="Out of fold by cell, without a train split.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Start from this model-... folder: fine-tune it."),
    ] = None,
    preset: Preset = None,
    settings: Settings = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of this variant: with --preset and --set."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Cells that a network scores together. In training: --set batch."),
    ] = None,
    sample_cells: Annotated[
        int | None,
        typer.Option(min=1, help="Fit on at most so many training cells, drawn at random."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder; default runs/METHOD or runs/NAME.")
    ] = None,
) -> None:
    """Fit a method, and write prediction files for val and test, with what the run cost."""
    from gpattern_bench.data.dataset import load_datasets
    from gpattern_bench.runs.run import run_method
    from gpattern_bench.runs.saved_model import find_model

    made: str | Method = method
    if preset is not None or settings or name is not None:
        made = _variant(method, preset, settings or [], name)
    predicted, *training = load_datasets([dataset, *(train_on or ())])
    files = run_method(
        made,
        predicted,
        out or Path("runs") / (name or method),
        train_on=training,
        cv=cv is not None,
        seed=seed,
        init=None if init is None else find_model(init),
        batch_size=batch_size,
        sample_cells=sample_cells,
    )
    for file in files:
        echo(str(file))


def _variant(base: str, preset: str | None, settings: list[str], name: str | None) -> Method:
    """Make a variant of GPSNet, before anything is fitted."""
    from gpattern_bench.methods import get_method
    from gpattern_bench.methods.gpsnet.variants import BASES, make_variant, parse_settings
    from gpattern_bench.tables.model_output import Variant

    if base not in BASES:
        get_method(base)  # an unknown name is told as such
        raise MethodError(
            f"{base} takes no --preset, --set and --name; those that do: {', '.join(BASES)}"
        )
    changes = parse_settings(settings)
    if preset is None and not changes:
        raise MethodError(
            f"--name {name} is for a variant of {base}: say by --preset or --set what differs, or "
            "leave out --name"
        )
    if name is None:
        raise MethodError(
            "--preset and --set make a variant, which needs a name of its own: add --name NAME"
        )
    own: str = preset or type(get_method(base)).own_preset  # type: ignore[attr-defined]
    return make_variant(Variant(base, own, changes), name)()


@app.command(
    "run-all",
    cls=OfMethod,
    epilog=examples(
        "run-all --dataset synthetic --methods prevalence,sprawl,bento --out runs",
        "run-all --dataset synthetic --methods ella --out runs --cluster tcp://host:8786",
    ),
)
def run_all_(
    dataset: DatasetOption,
    methods: Annotated[
        str, typer.Option(metavar="A,B,C", help="Methods named below, commas between.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder; each method has its own in it.")
    ],
    seed: Seed = 0,
    splits: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to predict. Default: val,test.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that predict. Default: one per core.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler; its workers predict.")
    ] = None,
) -> None:
    """Run several methods; a second start resumes. Exit code 1 if one failed."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.runs.run_all import run_all

    outcomes = run_all(
        [name for name in methods.split(",") if name],
        load_dataset(dataset),
        out,
        seed=seed,
        splits=splits.split(",") if splits else None,
        jobs=jobs,
        cluster=cluster,
    )
    print_rows(
        [
            {"method": o.method, "": o.outcome, "shards done": o.shards, "found done": o.kept}
            for o in outcomes
        ]
    )
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    for outcome in failed:
        echo(f"{outcome.method} failed: {outcome.why}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command(epilog=examples("methods", "methods --json"))
def methods(as_json: Json = False) -> None:
    """List the methods, those of other packages last: what they look at, learn and do."""
    from dataclasses import asdict

    from gpattern_bench.methods import METHODS, get_method, plugins

    found = [get_method(name).about for name in METHODS]
    for name in plugins():
        try:
            found.append(get_method(name).about)
        except MethodError as error:
            echo(f"warning: {error}", err=True)
    if as_json:
        print_json([asdict(about) for about in found])
        return
    for about in found:
        how = "learns" if about.learns else "learns nothing"
        looks = ", ".join(about.inputs) or "nothing"
        echo(f"{about.name}: {about.label}, a {about.kind}; {how}; looks at {looks}")
        echo(f"    {about.summary}")


@app.command(epilog=examples("features bento synthetic --out features.parquet"))
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
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.features import write_features

    echo(str(write_features(method, load_dataset(tables), out, unit_um=unit_um)))


@app.command(
    epilog=examples("predict synthetic --model runs/bento/synthetic --out a.parquet --calls")
)
def predict(
    tables: Name,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A model-... folder that `run` wrote, a folder with only one, or one that "
            "`models` lists.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file of scores.")],
    with_calls: Annotated[
        bool,
        typer.Option("--calls", help="Also write calls, by the model's thresholds, and genes."),
    ] = False,
) -> None:
    """Score every pair of a dataset, labelled or not, with a run's model."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.evaluate.calls import write_calls
    from gpattern_bench.runs.saved_model import load_model, predict_tables

    method, about = load_model(model)
    echo(str(predict_tables(method, about, load_dataset(tables), out)))
    if not with_calls:
        return
    if about.thresholds is None:
        raise MethodError(
            f"{out} is written, but calls are not: {model} has no thresholds for calls, because it "
            "was run on a dataset without a labelled val split. Use the scores, or choose "
            f"thresholds by `gpattern-bench calls {out} --val FILE`"
        )
    for path in write_calls(out, about.thresholds, out.with_name(f"{out.stem}-calls.parquet")):
        echo(str(path))


@app.command(
    epilog=examples(
        "ablation --quick --study depths --json > ablation.json",
        "ablation --dataset u2os --preset u2os --study neighbours",
    )
)
def ablation(
    dataset: DatasetOption = "synthetic",
    study: Annotated[
        list[str] | None,
        typer.Option(
            metavar="neighbours|depths|cells",
            help="What to change; again for more. Default: all.",
        ),
    ] = None,
    preset: Preset = "small",
    settings: Settings = None,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="What to score.")] = "val",
    seed: Seed = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="80 training cells and 6 epochs: some minutes.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder; settings that are done are kept there.")
    ] = Path("runs/ablation"),
    as_json: Json = False,
) -> None:
    """Train GPSNet with other K, depths and numbers of cells; the paper's figures beside ours.

    After a crash, the same command resumes.
    """
    from dataclasses import asdict

    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.methods.gpsnet.variants import parse_settings
    from gpattern_bench.runs.ablation import STUDIES, ablation_table, train_variants

    changes = parse_settings(settings or [])
    rows = list(
        train_variants(
            load_dataset(dataset),
            studies=study or STUDIES,
            preset=preset or "small",
            settings=changes,
            split=split,
            seed=seed,
            quick=quick,
            out=out,
        )
    )
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        echo(ablation_table(rows))
