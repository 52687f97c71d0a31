"""Publishing: from submissions to the board's files, in the order of the functions here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpattern_bench.base.files import write_text
from gpattern_bench.base.validation import adapter
from gpattern_bench.board.advice import advice
from gpattern_bench.board.challenge import read_outcomes
from gpattern_bench.board.duplicates import flag_duplicates
from gpattern_bench.board.invariants import impossible
from gpattern_bench.board.leaderboard import Board, ReportedTable, build_board
from gpattern_bench.board.markdown import markdown
from gpattern_bench.board.overview import build_overview
from gpattern_bench.board.page import build_page
from gpattern_bench.board.rules import contradictions
from gpattern_bench.board.submission import Score, Skipped, Submission, rescore, results_text
from gpattern_bench.board.verified import read_verified, unverified
from gpattern_bench.errors import SubmissionError
from gpattern_bench.runs.cost import SCORING
from gpattern_bench.sources.registry import registry

__all__ = [
    "NewResults",
    "board_of",
    "drift",
    "problems_of",
    "read_reported",
    "read_versions",
    "score_again",
    "unmeasured",
    "write_board",
]

_PROVENANCE = ("date", "parameters", "device", "versions")


@dataclass(frozen=True)
class NewResults:
    """Results that differ from the stored ones, the files scored (method, path) and those not."""

    changed: list[tuple[Submission, list[Score]]]
    scored: list[tuple[str, str]]
    skipped: list[Skipped]

    def write(self) -> None:
        """Write the changed ``results.json``, except where a file is not listed as it is."""
        for submission, results in self.changed:
            if not submission.unlisted():
                submission.write_results(results)


def score_again(
    submissions: Sequence[Submission], *, jobs: int | None = None, cluster: str | None = None
) -> NewResults:
    """Score every test prediction file again, and flag duplicates; write nothing.

    Parameters
    ----------
    submissions : sequence of Submission
    jobs, cluster
        As in :func:`gpattern_bench.board.submission.rescore`.
    """
    again = rescore(submissions, jobs=jobs, cluster=cluster)
    scored = [(made, results) for made, (results, _) in zip(submissions, again, strict=True)]
    skipped = [each for _, missing in again for each in missing]
    names = {each.name for each in skipped}
    return NewResults(
        changed=[
            (made, results)
            for made, results in zip(submissions, flag_duplicates(scored), strict=True)
            if results_text(results) != (made.stored_text() or "[]\n")
        ],
        scored=[
            (made.metadata.method, name)
            for made in submissions
            for name in made.test_files()
            if f"{made.folder.name}/{name}" not in names
        ],
        skipped=skipped,
    )


def problems_of(submissions: Sequence[Submission]) -> list[str]:
    """Say why no board can be made.

    Files that are not listed, results that are stale, impossible or of other labels than the
    registry's, contradictions. Needs no dataset and no network.
    """
    problems = [text for submission in submissions for text in submission.unlisted()]
    problems += [text for submission in submissions for text in submission.stale()]
    problems += _unpinned_labels(submissions) + impossible(submissions)
    return problems + contradictions(submissions)


def unmeasured(submissions: Sequence[Submission]) -> list[str]:
    """Name submissions with results whose runs do not say when, where and with what they were made.

    Their scores are as good as any: a board can be made of them.
    """
    told = []
    for submission in submissions:
        lacking = [
            {key for key in _PROVENANCE if score.get(key) is None} for score in submission.results
        ]
        if number := sum(map(bool, lacking)):
            what = ", ".join(key for key in _PROVENANCE if key in set().union(*lacking))
            told.append(
                f"{submission.folder.name}: {number} of {len(lacking)} results lack {what}; run "
                "the method again, and submit that"
            )
    return told


def board_of(submissions: Sequence[Submission], folder: Path) -> Board:
    """Build the board, with what its folder holds: reported rows, versions, records, outcomes."""
    return build_board(
        submissions,
        read_reported(folder),
        read_versions(folder),
        unverified(submissions, read_verified(folder)),
        outcomes=read_outcomes(folder),
    )


def read_reported(folder: Path) -> list[ReportedTable]:
    """Read the paper's rows from ``reported.yaml`` in the board's folder; none without it."""
    path = folder / "reported.yaml"
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        return adapter(list[ReportedTable]).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise SubmissionError(str(path), [f"cannot be read: {error}"]) from error


def read_versions(folder: Path) -> str | None:
    """Read versions of what scores rest on, in ``versions.txt`` of a board's folder; else None.

    The file holds pip constraints, so that anybody can install the same. The board takes versions
    from there, not from the environment: it must be the same on every machine.
    """
    path = folder / "versions.txt"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    found = dict(re.findall(r"^([a-z0-9-]+)==([0-9][0-9a-z.]*)$", text, re.MULTILINE))
    missing = [f"no line {name}==VERSION" for name in SCORING if name not in found]
    if missing:
        raise SubmissionError(str(path), missing)
    return ", ".join(f"{name} {found[name]}" for name in SCORING)


def write_board(board: Board, submissions: Sequence[Submission], folder: Path) -> None:
    """Write the files of a board into its folder: those that :func:`drift` compares."""
    for name, text in _texts(board, submissions).items():
        write_text(folder / name, text)


def drift(board: Board, submissions: Sequence[Submission], folder: Path) -> list[str]:
    """Name the files of a folder that differ from what :func:`write_board` would write."""
    problems = []
    for name, text in _texts(board, submissions).items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.read_bytes() != text.encode():
            problems.append(f"{path} is not what the submissions give")
    return problems


def _unpinned_labels(submissions: Iterable[Submission]) -> list[str]:
    """Name results scored on other labels than the registry pins for their dataset version."""
    pinned = {
        (entry.name, entry.version): entry.content_sha256.get("labels") for entry in registry()
    }
    return [
        f"{submission.folder.name}/{entry['predictions']}: scored on labels "
        f"{entry['labels_sha256'][:12]}, the registry pins {expected[:12]}"
        for submission in submissions
        for entry in submission.results
        if (expected := pinned.get((entry["dataset"], entry["version"])))
        and expected != entry["labels_sha256"]
    ]


def _texts(board: Board, submissions: Sequence[Submission]) -> dict[str, str]:
    """Render every file of the board, by name."""
    overview = build_overview(board.tables)
    stored = board.to_json() | {"overview": overview and overview.to_json()}
    return {
        "LEADERBOARD.md": markdown(board),
        "WHICH_METHOD.md": advice(board),
        "leaderboard.json": json.dumps(_rounded(stored), indent=1, ensure_ascii=False) + "\n",
        "index.html": build_page(board, submissions),
    }


def _rounded(value: Any) -> Any:
    """Round all numbers to eight decimals: the last digits differ between versions of numpy."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 8) if isinstance(value, float) else value
