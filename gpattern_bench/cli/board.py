"""Commands that make the board."""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gpattern_bench.cli.options import Cluster, app, examples

_log = logging.getLogger(__name__)


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
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that score. Default: this one.")
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Make LEADERBOARD.md, leaderboard.json and index.html from the submissions' stored results."""
    from gpattern_bench.board.duplicates import flag_duplicates
    from gpattern_bench.board.leaderboard import build_board
    from gpattern_bench.board.metadata import schema_drift, write_schema
    from gpattern_bench.board.publish import (
        drift,
        read_reported,
        read_versions,
        unpinned_labels,
        write_board,
    )
    from gpattern_bench.board.submission import read_submissions, results_text
    from gpattern_bench.board.submission import rescore as score_again

    if (jobs is not None or cluster is not None) and not rescore:
        raise typer.BadParameter("--jobs and --cluster are of --rescore")
    found = read_submissions(submissions)
    problems = [text for submission in found for text in submission.unlisted()]
    if rescore:
        again = score_again(found, jobs=jobs, cluster=cluster)
        skipped = sum(len(missing) for _, missing in again)
        scored = [(made, results) for made, (results, _) in zip(found, again, strict=True)]
        for (submission, _), results in zip(scored, flag_duplicates(scored), strict=True):
            if results_text(results) != results_text(submission.results):
                if check:
                    problems.append(f"{submission.folder.name}: scores differ from results.json")
                elif not submission.unlisted():  # what is scored is what is listed
                    submission.write_results(results)
        total = sum(len(submission.test_files()) for submission in found)
        typer.echo(
            f"scored {total - skipped} prediction files; {skipped} skipped, "
            "the dataset or the file is not here"
        )
        found = found if check else read_submissions(submissions)
    problems += [text for submission in found for text in submission.stale()]
    problems += unpinned_labels(found)
    board = build_board(found, read_reported(out), read_versions(out))
    if not problems and check:
        problems = drift(board, found, out) + schema_drift(submissions)
    if problems:
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
        typer.echo("run `gpattern-bench leaderboard --rescore` and commit what changes", err=True)
        raise typer.Exit(1)
    if check:
        typer.echo("the board is what the submissions give")
    else:
        write_board(board, found, out)
        write_schema(submissions)
        typer.echo(str(out / "LEADERBOARD.md"))


@app.command(epilog=examples("submit runs/sprawl --to submissions/sprawl"))
def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="What `run --out` was given.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder: submissions/NAME.")],
) -> None:
    """Make or update a submission from a run: checks everything, writes all of it or nothing."""
    from gpattern_bench.board.submission import LARGEST
    from gpattern_bench.board.submit import submit_run

    metadata = submit_run(run, to)
    typer.echo(f"{to}: {len(metadata.files)} prediction files are listed")
    for file in metadata.files:
        if file.bytes > LARGEST and file.url is None:
            typer.echo(
                f"{file.path} has {file.bytes:,} bytes, too many for the repository: publish it, "
                "add its address as `url` to its entry in submission.yaml, and remove it here"
            )
    typer.echo("next: gpattern-bench leaderboard --rescore, then commit the folder and the board")


_CONTROLS = ("prevalence", "gene_prior", "molecule_count", "oracle")
_DEMO = (*_CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted", "gpsnet")


@app.command(epilog=examples("demo --out demo"))
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for what it makes.")] = Path(
        "demo"
    ),
) -> None:
    """Run controls, baselines, trees and GPSNet on `synthetic` (no download); show the board."""
    from gpattern_bench.base.progress import duration
    from gpattern_bench.board.duplicates import flag_duplicates
    from gpattern_bench.board.leaderboard import build_board
    from gpattern_bench.board.markdown import markdown
    from gpattern_bench.board.metadata import write_schema
    from gpattern_bench.board.publish import write_board
    from gpattern_bench.board.submission import read_submissions, rescore
    from gpattern_bench.board.submit import submit_run
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.runs.run import run_method

    began = time.monotonic()
    dataset = load_dataset("synthetic")
    methods = list(_DEMO)
    if not all(find_spec(name) for name in ("accelerate", "safetensors")):
        methods.remove("gpsnet")
        typer.echo("gpsnet is left out: pip install 'gpattern-bench[train]' to train it", err=True)
    for k, name in enumerate(methods, 1):
        at = time.monotonic()
        _log.info("%s, %d of %d", name, k, len(methods))
        run_method(name, dataset, out / "runs" / name)
        submit_run(out / "runs" / name, out / "submissions" / name)
        _log.info("%s: done after %s", name, duration(time.monotonic() - at))
    _log.info("scoring all of them")
    write_schema(out / "submissions")
    found = read_submissions(out / "submissions")
    scored = [(made, scores) for made, (scores, _) in zip(found, rescore(found), strict=True)]
    for (made, _), results in zip(scored, flag_duplicates(scored), strict=True):
        made.write_results(results)
    found = read_submissions(out / "submissions")
    board = build_board(found)
    write_board(board, found, out / "leaderboard")
    _log.info("the whole demo took %s", duration(time.monotonic() - began))
    typer.echo(markdown(board))
    typer.echo(f"Prediction files and board are in {out}/")
