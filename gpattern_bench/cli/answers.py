"""Commands for a slide: which genes are localised where, by a model of the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpattern_bench.cli.options import Json, app, echo, examples, print_json

if TYPE_CHECKING:
    from gpattern_bench.answers.answer import Answer


@app.command(
    epilog=examples(
        "call outs --out answer",
        "call Flat_files --unit-um 0.12028 --out answer",
    )
)
def call(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An instrument's folder or file, a folder of tables, or a dataset's name.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="One that `models` lists, or a model-... folder that `run` wrote. Default: that "
            "of the package for the patterns.",
        ),
    ] = None,
    unit_um: Annotated[
        float | None,
        typer.Option("--unit-um", help="Micrometres per unit, if the format does not state it."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="As the commands of `curate` are named. Default: told by the files.",
        ),
    ] = None,
    cells: Annotated[
        str | None, typer.Option(help="Of a table: file of outlines; of SpatialData: the element.")
    ] = None,
    nuclei: Annotated[str | None, typer.Option(help="The same for nuclei.")] = None,
    surrogate_outlines: Annotated[
        bool,
        typer.Option(
            "--surrogate-outlines", help="Of a table: draw outlines around the cells' molecules."
        ),
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.")
    ] = None,
) -> None:
    """Say which genes are localised where: curate if needed, score, call, summarise.

    Started again after an interruption, it goes on where it was.
    """
    from gpattern_bench.answers.call import call as make

    _tell(
        make(
            source,
            out,
            model=model,
            form=form,
            unit_um=unit_um,
            cells=cells,
            nuclei=nuclei,
            surrogate_outlines=surrogate_outlines,
            jobs=jobs,
        )
    )


def _tell(answer: Answer) -> None:
    """Print what the answer is, in a few lines."""
    from gpattern_bench.answers.answer import REPORT

    record = answer.record
    counts, scope = record["counts"], record["scope"]
    echo(repr(answer))
    echo(f"  not called: {record['not_called']} ({counts['not_called']:,} pairs)")
    for pattern, number in counts["of_pattern"].items():
        share = number / counts["called"] if counts["called"] else 0
        wrong = (record["expected_wrong"] or {}).get(pattern)
        doubt = "" if wrong is None else f"; {wrong:.0%} of these are expected to be wrong"
        echo(f"  {pattern}: {number:,} pairs, {share:.1%} of the called{doubt}")
    if scope["seen_in_training"] is not None:
        echo(f"  cells unlike those of the training: {scope['out_of_scope']:,}")
    echo(str(answer.folder / REPORT))


@app.command(epilog=examples("models", "models --json"))
def models(as_json: Json = False) -> None:
    """List the pretrained models of the package: what they call, and how well."""
    from gpattern_bench.answers.card import read_cards

    cards = read_cards()
    if as_json:
        print_json([{"name": card.name, **card.raw} for card in cards])
        return
    for card in cards:
        echo(f"{card.name}: {card.title}")
        echo(f"    patterns: {', '.join(card.thresholds)}; for {card.raw['for']}")
        trained = ", ".join(
            f"{part['dataset']} ({part['split']})" for part in card.raw["trained_on"]
        )
        echo(f"    trained on: {trained}")
        rows = [(row, "") for row in card.raw["scores"]]
        recipe = card.raw["recipe_scores"].get("rows", [])
        rows += [(row, f"the same training, {row['seeds']} seeds, ") for row in recipe]
        for row, what in rows:
            at = row.get("f1_at_thresholds")
            told = "" if at is None else f", {100 * at:.1f} at its thresholds"
            fields = f" {row['fields']}" if "fields" in row else ""
            echo(
                f"    {what}{row['dataset']}{fields}, {row['pairs']:,} pairs: AUC "
                f"{100 * row['auc_macro']:.1f}, F1 {100 * row['f1_macro']:.1f}{told}"
            )
        echo(f"    licence: {card.raw['licence']}")
    echo("\nmodels --json prints the whole cards: intervals, thresholds, known failures.")
