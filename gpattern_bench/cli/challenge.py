"""Commands for maintainers: cells with labels that nobody has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gpattern_bench.cli.options import Group, Json, app, echo, examples, print_json, print_rows

challenge = typer.Typer(
    cls=Group,
    help="For maintainers: draw new cells of a simulation by a secret seed, score methods on them.",
    epilog=examples("challenge draw --out challenge", "challenge score --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(challenge, name="challenge")

Simulated = Annotated[
    Literal["synthetic", "synthetic_wide"],
    typer.Option("--dataset", metavar="NAME", help="synthetic or synthetic_wide."),
]


@challenge.command("draw", epilog=examples("challenge draw --out challenge"))
def draw(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder; gets cells/ and, secret, labels/.")
    ],
    seed: Annotated[
        int | None, typer.Option(help="At least 2**60. Default: drawn, and printed.")
    ] = None,
    dataset: Simulated = "synthetic",
) -> None:
    """Draw new cells: tables without labels to hand out, and the same with labels to keep."""
    from gpattern_bench.board.challenge import draw_challenge, new_seed

    chosen = new_seed() if seed is None else seed
    cells = draw_challenge(dataset, chosen, out / "cells")
    draw_challenge(dataset, chosen, out / "labels", labels=True)
    echo(f"hand out {cells.folder}: {cells!r}, without labels")
    echo(f"keep secret {out / 'labels'}, and the seed: {chosen}")


@challenge.command(
    "score",
    epilog=examples(
        "challenge score test-seed0.parquet --seed 1729382256910270464",
        "challenge score --model model-seed0 --seed 1729382256910270464",
    ),
)
def score(
    seed: Annotated[int, typer.Option(help="That of `challenge draw`.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Prediction files.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A model-... folder that `run` wrote; again for more."),
    ] = None,
    dataset: Simulated = "synthetic",
    board: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Board's folder: add to its challenge.json."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the cells again and score prediction files or models on them."""
    from gpattern_bench.board.challenge import record, score_challenge

    if not files and not model:
        raise typer.BadParameter("give prediction files, or --model")
    outcomes = score_challenge(dataset, seed, files or (), model or ())
    if as_json:
        print_json(outcomes)
    else:
        print_rows(
            [
                {"method": one["method"], "pairs": one["n"]}
                | {key: one[f"{key}_macro"] for key in ("auc", "acc", "f1", "ap")}  # type: ignore[literal-required]
                | {"f1 from": one["ci"]["f1_macro"][0], "to": one["ci"]["f1_macro"][1]}
                for one in outcomes
            ]
        )
    if board is not None:
        echo(f"added to {record(outcomes, board)}; next: gpattern-bench leaderboard", err=True)
