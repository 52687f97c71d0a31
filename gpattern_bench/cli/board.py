"""Commands that make the board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpattern_bench.cli.options import app, examples


@app.command(epilog=examples("leaderboard --rescore", "leaderboard --check"))
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


_CONTROLS = ("prevalence", "gene_prior", "molecule_count", "oracle")
_DEMO = (*_CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted", "gpsnet")


@app.command(epilog=examples("demo --out demo"))
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
