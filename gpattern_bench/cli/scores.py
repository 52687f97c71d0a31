"""Commands about prediction files: validate, evaluate, compare, call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpattern_bench.cli.options import (
    DatasetOption,
    File,
    Json,
    app,
    echo,
    examples,
    print_json,
    print_rows,
)
from gpattern_bench.errors import PredictionError

if TYPE_CHECKING:
    from gpattern_bench.data.dataset import Dataset


@app.command(epilog=examples("validate test-seed0.parquet --dataset synthetic"))
def validate(file: File, dataset: DatasetOption) -> None:
    """Check a prediction file, of labelled pairs or, without labels, of all: every problem."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.predictions import check_file, scored_split

    found = load_dataset(dataset)
    split = scored_split(file, found)
    try:
        checked = check_file(file, found, split)
    except PredictionError as error:
        if not file.is_file():
            raise
        echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for warning in checked.warnings:
        echo(f"warning: {warning}", err=True)
    if checked.problems:
        subject = f"{file} (split {split})"
        echo(f"error: {PredictionError(subject, checked.problems)}", err=True)
        raise typer.Exit(1)
    echo(f"{file}: fine (split {split})")


Val = Annotated[Path | None, typer.Option(metavar="FILE", help="The method's predictions on val.")]
Replicates = Annotated[int, typer.Option(min=0, help="Bootstrap replicates; 0 = no intervals.")]


@app.command(
    epilog=examples(
        "evaluate test-seed0.parquet --dataset synthetic --val val-seed0.parquet",
        "evaluate test-seed0.parquet --dataset synthetic --by molecules",
    )
)
def evaluate(
    file: File,
    dataset: DatasetOption,
    val: Val = None,
    by: Annotated[
        Literal["molecules", "gene_seen", "cell_size"] | None,
        typer.Option(help="Break the result down."),
    ] = None,
    replicates: Replicates = 1000,
    as_json: Json = False,
) -> None:
    """Score a prediction file."""
    from gpattern_bench.evaluate.evaluator import Evaluator
    from gpattern_bench.tables.predictions import read_origin

    origin = read_origin(file)
    split = "test" if origin is None else origin.split
    evaluator = Evaluator(dataset, split)
    if by is not None:
        parts = evaluator.strata(file, by, val, replicates=replicates)
        if as_json:
            print_json(parts)
            return
        metrics = ["auc_macro", "ap_macro", "f1_macro", "acc_macro"]
        metrics += [] if val is None else ["f1_val_macro"]
        rows: list[dict[str, Any]] = [
            {by: name, "n": part["n"], "clusters": part.get("n_clusters")}
            | {metric.removesuffix("_macro"): _with_ci(part, metric) for metric in metrics}
            for name, part in parts.items()
        ]
        print_rows(rows)
        echo(f"\n{split}: macro averages, fractions [95 % interval]")
        return
    result = evaluator.eval(file, val, replicates=replicates)
    if as_json:
        print_json(result)
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
    print_rows(rows)
    echo(
        f"\n{split}: {result['n']:,} pairs, accuracy over all patterns of a pair "
        f"{_with_ci(result, 'accuracy_subset')}; fractions, thresholds chosen on these labels"
    )
    if val is not None:
        echo(
            "f1_val: at the thresholds chosen on val; gap of f1 " + _with_ci(result, "f1_gap_macro")
        )
    if ci:
        echo(
            f"from, to: 95 % intervals of the macro averages, over {result['n_clusters']} clusters "
            f"({result['clusters']})"
        )
    for metric, patterns in result.undefined.items():
        echo(f"undefined {metric}, left out of its mean: {', '.join(patterns)}")
    for warning in result["warnings"]:
        echo(f"warning: {warning}", err=True)


def _with_ci(result: dict[str, Any], metric: str) -> str:
    text = f"{result[metric]:.6f}"
    if "ci" in result:
        low, high = result["ci"][metric]
        text += f" [{low:.4f}, {high:.4f}]"
    return text


@app.command(epilog=examples("compare mine.parquet theirs.parquet"))
def compare(
    a: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of one method.")],
    b: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of another.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    replicates: Annotated[int, typer.Option(min=2, help="Bootstrap replicates.")] = 1000,
    as_json: Json = False,
) -> None:
    """Compare two prediction files on the same pairs: differences with intervals."""
    from gpattern_bench.evaluate.evaluator import Evaluator

    found = Evaluator(*scored_by(a, dataset)).compare(a, b, replicates=replicates)
    if as_json:
        print_json(found)
        return
    print_rows(
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
    echo(f"\na = {a}, b = {b}; paired bootstrap over {clusters} clusters, 95 % intervals")


@app.command(epilog=examples("calls test-seed0.parquet --val val-seed0.parquet"))
def calls(
    file: File,
    val: Annotated[Path, typer.Option(metavar="FILE", help="The method's predictions on val.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: FILE with -calls in its name.")
    ] = None,
) -> None:
    """Turn scores into calls, by the thresholds chosen on val, and sum them up per gene."""
    from gpattern_bench.evaluate.calls import val_thresholds, write_calls
    from gpattern_bench.predictions import check_file

    found, split = scored_by(file, dataset)
    check_file(file, found, split).require()
    beside = out or file.with_name(f"{file.stem}-calls.parquet")
    for path in write_calls(file, val_thresholds(found, val), beside):
        echo(str(path))


def scored_by(file: Path, dataset: str | None) -> tuple[Dataset, str]:
    """Dataset and split of a prediction file."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.tables.predictions import require_origin

    origin = require_origin(file)
    return load_dataset(dataset or f"{origin.dataset}@{origin.version}"), origin.split
