"""Verified results: a maintainer's record of scores that nobody else can be expected to compute.

The check of a pull request makes every dataset whose sources have checksums, and scores its files
again. Of other datasets, such as the paper's full releases, it cannot; their results are shown but
not ranked, unless `verified.json` beside the board says that a maintainer scored the same file and
got the same result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gpattern_bench.base.files import alone, write_text
from gpattern_bench.base.validation import adapter
from gpattern_bench.base.version import __version__
from gpattern_bench.board.metadata import Sha256
from gpattern_bench.board.submission import Score, Submission, results_text
from gpattern_bench.errors import SubmissionError, UnknownDatasetError
from gpattern_bench.sources.registry import find_entry

__all__ = ["VERIFIED", "read_verified", "record_verified", "unverified"]

VERIFIED = "verified.json"


class _Record(BaseModel):
    """One result that was computed again: of which file and labels, when, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    predictions: str
    dataset: str
    sha256: dict[str, Sha256]
    labels_sha256: Sha256
    result_sha256: Sha256
    date: str = Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    package_version: str

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.predictions


def read_verified(folder: Path) -> dict[tuple[str, str], str]:
    """Read the records in a board's folder: method and file -> hash of the result.

    Raises
    ------
    SubmissionError
        The file is damaged.
    """
    return {record.key: record.result_sha256 for record in _read(folder)}


def unverified(
    submissions: Iterable[Submission], verified: dict[tuple[str, str], str]
) -> frozenset[tuple[str, str]]:
    """Name results (method, file) that neither the check can compute nor a record vouches for."""
    return frozenset(
        key
        for submission in submissions
        for score in submission.results
        if not _is_pinned(score)
        and verified.get(key := (submission.metadata.method, score["predictions"]))
        != _result_sha256(score)
    )


def record_verified(
    submissions: Sequence[Submission], scored: Iterable[tuple[str, str]], folder: Path
) -> int:
    """Record results that were just computed, of datasets that the check cannot make.

    Parameters
    ----------
    submissions : sequence of Submission
        With their new results. Records of results that they no longer have are dropped.
    scored : iterable of (str, str)
        Method and file of the results that were computed.
    folder : pathlib.Path
        The board's.

    Returns
    -------
    int
        Number of results that were recorded.
    """
    now = set(scored)
    with alone(folder / VERIFIED):
        kept = {record.key: record for record in _read(folder)}
        records, added = [], 0
        for submission in submissions:
            for score in submission.results:
                key = submission.metadata.method, score["predictions"]
                if key in now and not _is_pinned(score):
                    kept[key] = _record(submission, score)
                    added += 1
                if key in kept:
                    records.append(kept[key])
        ordered = sorted(records, key=lambda record: record.key)
        text = json.dumps([record.model_dump() for record in ordered], indent=1) + "\n"
        write_text(folder / VERIFIED, text)
    return added


def _read(folder: Path) -> list[_Record]:
    path = folder / VERIFIED
    if not path.is_file():
        return []
    try:
        return adapter(list[_Record]).validate_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise SubmissionError(str(path), [f"cannot be read: {error}"]) from error


def _record(submission: Submission, score: Score) -> _Record:
    return _Record(
        method=submission.metadata.method,
        predictions=score["predictions"],
        dataset=f"{score['dataset']}@{score['version']}",
        sha256={str(what): digest for what, digest in score["sha256"].items()},
        labels_sha256=score["labels_sha256"],
        result_sha256=_result_sha256(score),
        date=datetime.now(UTC).date().isoformat(),
        package_version=__version__,
    )


def _result_sha256(score: Score) -> str:
    """Hash a result, without its flags: another submission may add one."""
    return hashlib.sha256(results_text([{**score, "flags": []}]).encode()).hexdigest()


def _is_pinned(score: Score) -> bool:
    try:
        return find_entry(f"{score['dataset']}@{score['version']}").is_pinned
    except UnknownDatasetError:
        return False
