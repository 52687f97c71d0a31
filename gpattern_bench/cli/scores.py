"""Commands about prediction files: validate, evaluate, compare, call."""

from __future__ import annotations

from collections.abc import Mapping
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
from gpattern_bench.errors import GPatternBenchError, PredictionError

if TYPE_CHECKING:
    from gpattern_bench.data.dataset import Dataset
    from gpattern_bench.tables.model_output import ModelOutput


@app.command(epilog=examples("validate test-seed0.parquet --dataset synthetic"))
def validate(file: File, dataset: DatasetOption) -> None:
    """Check a prediction file, or a file of `predict`: every problem."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.predictions import check_file, scored_split
    from gpattern_bench.tables.model_output import read_model_output

    found = load_dataset(dataset)
    every = read_model_output(file) is not None
    of = "every pair" if every else f"split {scored_split(file, found)}"
    try:
        checked = check_file(file, found)
    except PredictionError as error:
        if not file.is_file():
            raise
        echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for warning in checked.warnings:
        echo(f"warning: {warning}", err=True)
    if checked.problems:
        subject = f"{file} ({of})"
        echo(f"error: {PredictionError(subject, checked.problems)}", err=True)
        raise typer.Exit(1)
    echo(f"{file}: fine ({of})")


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
    genes: Annotated[
        bool, typer.Option("--genes", help="Score genes: their patterns, and mean scores.")
    ] = False,
    replicates: Replicates = 1000,
    as_json: Json = False,
) -> None:
    """Score a prediction file, or a file of `predict`: its labelled pairs of the test split."""
    from gpattern_bench.evaluate.evaluator import Evaluator

    found, split = scored_by(file, dataset)
    evaluator = Evaluator(found, split)
    if by is not None and genes:
        raise GPatternBenchError("--by breaks pairs down, --genes scores genes: give one of them")
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
    score = evaluator.eval_genes if genes else evaluator.eval
    result = score(file, val, replicates=replicates)
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
    if result.get("n_ambiguous"):
        told = result["ambiguous"]
        rows.append({"pattern": "two or more"} | {name: told.get(name, "") for name in columns})
    print_rows(rows)
    of = "gene" if genes else "pair"
    echo(
        f"\n{split}: {result['n']:,} {of}s, accuracy over all patterns of a {of} "
        f"{_with_ci(result, 'accuracy_subset')}; fractions, thresholds chosen on these labels"
    )
    if genes:
        echo(
            f"a gene has the patterns of at least {result['share']:.0%} of its labelled cells, and "
            f"the mean of their scores; {result['n_ambiguous']:,} have two or more"
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


@app.command(
    epilog=examples(
        "compare mine.parquet theirs.parquet",
        "compare a.parquet b.parquet --val-a a-val.parquet --val-b b-val.parquet",
    )
)
def compare(
    a: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of one method.")],
    b: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions of another.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    val_a: Val = None,
    val_b: Val = None,
    replicates: Annotated[int, typer.Option(min=2, help="Bootstrap replicates.")] = 1000,
    as_json: Json = False,
) -> None:
    """Compare two prediction files on the same pairs: differences with intervals."""
    from gpattern_bench.evaluate.evaluator import Evaluator

    evaluator = Evaluator(*scored_by(a, dataset))
    found = evaluator.compare(a, b, val_a, val_b, replicates=replicates)
    if as_json:
        print_json({**found, "per_pattern": found.per_pattern})
        return
    print_rows(
        [
            {
                "pattern": row.pattern,
                "metric": row.metric,
                "a": row.a,
                "b": row.b,
                "a - b": row.difference,
                "from": row.low,
                "to": row.high,
                "": "tied" if row.tied else "differ",
            }
            for row in found.to_frame().itertuples()
        ]
    )
    clusters = next(iter(found.values()))["n_clusters"]
    echo(f"\na = {a}, b = {b}; paired bootstrap over {clusters} clusters, 95 % intervals")


@app.command(
    epilog=examples(
        "calls test-seed0.parquet --val val-seed0.parquet",
        "calls scores.parquet --dataset mine",
    )
)
def calls(
    file: File,
    val: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The method's predictions on val. Default, of `predict`: the model's thresholds.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the one that the file names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: FILE with -calls in its name.")
    ] = None,
) -> None:
    """Turn scores into calls, by the thresholds chosen on val, and sum them up per gene."""
    from gpattern_bench.evaluate.calls import write_calls
    from gpattern_bench.predictions import check_file
    from gpattern_bench.tables.model_output import read_model_output

    found, split = scored_by(file, dataset)
    output = read_model_output(file)
    check_file(file, found, None if output else split).require()
    thresholds = _thresholds(file, output, val, found)
    beside = out or file.with_name(f"{file.stem}-calls.parquet")
    for path in write_calls(file, thresholds, beside):
        echo(str(path))


def _thresholds(
    file: Path, output: ModelOutput | None, val: Path | None, dataset: Dataset
) -> Mapping[str, float | None]:
    """Choose thresholds on val; scores of `predict` may have the model's, or its dataset's val."""
    from gpattern_bench.evaluate.calls import val_thresholds
    from gpattern_bench.sources.registry import is_registered
    from gpattern_bench.tables.predictions import read_origin

    if val is None:
        if output is not None and output.model.thresholds is not None:
            return output.model.thresholds
        why = "" if output is None else ", for the model has no thresholds"
        raise GPatternBenchError(
            f"{file}: calls need --val FILE, the same method's predictions on a labelled val "
            f"split{why}"
        )
    origin = read_origin(val)
    (one, seed), (other, its) = (_scorer(path) for path in (file, val))
    if (one, seed) != (other, its):
        raise GPatternBenchError(
            f"{val} has scores of {other}, seed {its}; {file} of {one}, seed {seed}: a threshold "
            "holds for one model, give its predictions on val"
        )
    if output is None or origin is None or f"{origin.dataset}@{origin.version}" == dataset.id:
        return val_thresholds(dataset, val)
    if not is_registered(origin.dataset):
        raise GPatternBenchError(
            f"{val} scores {origin.dataset}@{origin.version}, whose labels are not at hand: leave "
            "out --val for the model's own thresholds"
        )
    home, _ = scored_by(val, None)
    if home.patterns != dataset.patterns:
        raise GPatternBenchError(
            f"{val} has the patterns {', '.join(home.patterns)}; {file} has "
            f"{', '.join(dataset.patterns)}"
        )
    return val_thresholds(home, val)


def _scorer(file: Path) -> tuple[str, int]:
    """Method and seed that gave the scores of a file."""
    from gpattern_bench.tables.model_output import read_model_output
    from gpattern_bench.tables.predictions import read_origin, read_predictions

    output = read_model_output(file)
    named = read_origin(file) if output is None else output.model
    if named is None:
        raise PredictionError(str(file), read_predictions(file)[2])
    return named.method, named.seed


def scored_by(file: Path, dataset: str | None) -> tuple[Dataset, str]:
    """Dataset and split of a file of scores."""
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.predictions import scored_split
    from gpattern_bench.sources.registry import is_registered
    from gpattern_bench.tables.model_output import read_model_output
    from gpattern_bench.tables.predictions import read_origin, read_predictions

    if dataset is None:
        origin, output = read_origin(file), read_model_output(file)
        if origin is not None:
            dataset = f"{origin.dataset}@{origin.version}"
        elif output is not None:
            dataset = output.dataset
        else:  # says so if the file cannot be read at all
            raise PredictionError(str(file), read_predictions(file)[2])
        if not is_registered(dataset):
            raise GPatternBenchError(
                f"{file} scores {dataset}, which is not in the registry: give its folder with "
                "--dataset"
            )
    found = load_dataset(dataset)
    return found, scored_split(file, found)
