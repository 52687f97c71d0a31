"""Commands that make the board."""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gpattern_bench.cli.options import Cluster, app, echo, examples

_CONTROLS = ("prevalence", "gene_prior", "molecule_count", "oracle")
_DEMO = (*_CONTROLS, "sprawl", "ella", "bento", "locfish", "boosted", "gpsnet")

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
        bool, typer.Option("--check", help="Write nothing; exit 1 if anything differs.")
    ] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the prediction files again first.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Maintainers: record what was scored, in verified.json."),
    ] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a snapshot to cite: results and hashes."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that score. Default: this one.")
    ] = None,
    cluster: Cluster = None,
) -> None:
    """Write the board's four files from the submissions' results.

    LEADERBOARD.md, WHICH_METHOD.md (guidance), leaderboard.json and index.html.

    --check alone needs no dataset. --check --rescore needs every dataset whose files have
    checksums, and fails if a file was not scored again. It warns of results whose run does not say
    date, parameters, device and versions.
    """
    from gpattern_bench.base.files import write_text
    from gpattern_bench.board.metadata import schema_drift, write_schema
    from gpattern_bench.board.publish import (
        board_of,
        drift,
        problems_of,
        score_again,
        unmeasured,
        write_board,
    )
    from gpattern_bench.board.snapshot import snapshot_text
    from gpattern_bench.board.submission import read_submissions
    from gpattern_bench.board.verified import record_verified

    if (jobs is not None or cluster is not None) and not rescore:
        raise typer.BadParameter("--jobs and --cluster need --rescore")
    if snapshot is not None and check:
        raise typer.BadParameter("--check writes nothing: leave out --snapshot")
    if record and (check or not rescore):
        raise typer.BadParameter("--record needs --rescore, and no --check")
    found = read_submissions(submissions)
    problems = []
    if rescore:
        new = score_again(found, jobs=jobs, cluster=cluster)
        if check:
            problems = [
                f"{made.folder.name}: scores differ from results.json" for made, _ in new.changed
            ]
            problems += [f"not scored: {each}" for each in new.skipped if each.pinned]
        else:
            new.write()
            found = read_submissions(submissions)
        echo(f"scored {len(new.scored)} prediction files; {len(new.skipped)} skipped")
        for each in new.skipped:
            echo(f"  skipped: {each}")
    problems += problems_of(found)
    if record and not problems:
        echo(f"recorded {record_verified(found, new.scored, out)} results")
    _refuse(problems)  # no board can be made of anything
    board = board_of(found, out)
    if check:
        _refuse(drift(board, found, out) + schema_drift(submissions))
        for text in unmeasured(found):
            echo(f"warning: {text}", err=True)
        echo("the board is what the submissions give")
    else:
        write_board(board, found, out)
        write_schema(submissions)
        echo(str(out / "LEADERBOARD.md"))
    if snapshot is not None:
        write_text(snapshot, snapshot_text(found, board.versions))
        echo(str(snapshot))


def _refuse(problems: list[str]) -> None:
    """Exit with the problems, if there are any."""
    if not problems:
        return
    for problem in problems:
        echo(f"error: {problem}", err=True)
    echo(
        "make the datasets that are not here, then run `gpattern-bench leaderboard --rescore` "
        "and commit what changes"
        if any(problem.startswith("not scored: ") for problem in problems)
        else "run `gpattern-bench leaderboard --rescore` and commit what changes",
        err=True,
    )
    raise typer.Exit(1)


@app.command(epilog=examples("submit runs/sprawl --to submissions/sprawl"))
def submit(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder given to `run --out`.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder: submissions/NAME.")],
) -> None:
    """Make or update a submission from a run: check everything, write all of it or nothing."""
    from gpattern_bench.board.submission import LARGEST
    from gpattern_bench.board.submit import submit_run

    metadata = submit_run(run, to)
    echo(f"{to}: {len(metadata.files)} prediction files are listed")
    for file in metadata.files:
        if file.bytes > LARGEST and file.url is None:
            echo(
                f"{file.path} has {file.bytes:,} bytes, too many for the repository: publish it, "
                "add its address as `url` to its entry in submission.yaml, and remove it here"
            )
    echo("next: gpattern-bench leaderboard --rescore, then commit the folder and the board")


@app.command(epilog=examples("demo --out demo"))
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("demo"),
) -> None:
    """Run controls, baselines, trees and GPSNet on `synthetic` (no download); print the board."""
    from gpattern_bench.base.progress import duration
    from gpattern_bench.board.markdown import markdown
    from gpattern_bench.board.metadata import write_schema
    from gpattern_bench.board.publish import board_of, score_again, write_board
    from gpattern_bench.board.submission import read_submissions
    from gpattern_bench.board.submit import submit_run
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.runs.run import run_method

    began = time.monotonic()
    dataset = load_dataset("synthetic")
    methods = list(_DEMO)
    if find_spec("accelerate") is None:
        methods.remove("gpsnet")
        echo("gpsnet is left out: pip install 'gpattern-bench[train]' to train it", err=True)
    for k, name in enumerate(methods, 1):
        at = time.monotonic()
        _log.info("%s, %d of %d", name, k, len(methods))
        run_method(name, dataset, out / "runs" / name)
        submit_run(out / "runs" / name, out / "submissions" / name)
        _log.info("%s: done after %s", name, duration(time.monotonic() - at))
    _log.info("scoring all of them")
    submissions, leaderboard = out / "submissions", out / "leaderboard"
    score_again(read_submissions(submissions)).write()
    found = read_submissions(submissions)
    board = board_of(found, leaderboard)
    write_board(board, found, leaderboard)
    write_schema(submissions)
    _log.info("the whole demo took %s", duration(time.monotonic() - began))
    echo(markdown(board))
    echo(f"Prediction files and board are in {out}/")
