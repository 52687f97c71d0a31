"""The command that perturbs cells and scores them again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpattern_bench.cli.options import (
    DatasetOption,
    Json,
    OfMethod,
    Seed,
    app,
    echo,
    examples,
    print_json,
    print_rows,
)


@app.command(
    "robustness",
    cls=OfMethod,
    epilog=examples(
        "robustness sprawl --dataset synthetic",
        "robustness bento --dataset synthetic --out runs/bento",
    ),
)
def robustness_(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method named below.")],
    dataset: DatasetOption,
    train_on: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A dataset that the run was fitted on; again for more."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; default runs/METHOD.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score perturbed test cells - rotated, moved, thinned, blurred - with a run's model."""
    from dataclasses import asdict

    from gpattern_bench.data.dataset import load_datasets
    from gpattern_bench.runs.robustness import run_robustness

    predicted, *training = load_datasets([dataset, *(train_on or ())])
    path, found = run_robustness(
        method,
        predicted,
        out or Path("runs") / method,
        train_on=training,
        seed=seed,
    )
    if as_json:
        print_json(asdict(found))
        return
    rows = [{"cells are": name} | asdict(one) for name, one in found.perturbations.items()]
    print_rows(rows)
    echo(
        f"\n{found.method}, test cells of {found.dataset}@{found.version} as they are: "
        f"F1 {found.f1_macro:.6f}, AUC {found.auc_macro:.6f}"
    )
    echo("drops: macro averages of the same pairs, as they are minus perturbed")
    echo(str(path))
