"""A snapshot of the board: every result, and the hashes of what it was computed from, to cite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gpattern_bench.base.files import plain
from gpattern_bench.base.version import __version__
from gpattern_bench.board.submission import Submission

__all__ = ["snapshot_text"]

_KEPT = (
    "dataset",
    "version",
    "protocol",
    "trained_on",
    "seed",
    "date",
    "device",
    "parameters",
    "versions",
)


def snapshot_text(submissions: Sequence[Submission], versions: str | None) -> str:
    """Give a snapshot as JSON: the same bytes from the same submissions.

    Parameters
    ----------
    submissions : sequence of Submission
        Withdrawn ones are left out.
    versions : str or None
        Of the packages that reproduce the scores
        (:func:`gpattern_bench.board.publish.read_versions`).

    Returns
    -------
    str
        ``package_version``; ``date``, that of the newest result; ``versions``; ``labels``, of each
        dataset the SHA-256 of the values of its labels; ``results``, one per prediction file, with
        its SHA-256 and the macro metrics; and ``sha256``, that of all the rest, as compact JSON
        with sorted keys.
    """
    labels: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    for submission in submissions:
        about = submission.metadata
        if about.status == "withdrawn":
            continue
        for score in submission.results:
            labels[f"{score['dataset']}@{score['version']}"] = score["labels_sha256"]
            metrics = {k: v for k, v in score["metrics"].items() if isinstance(v, float | int)}
            results.append(
                {"method": about.method, "label": about.label}
                | {key: score.get(key) for key in _KEPT}
                | {"predictions": score["predictions"], "sha256": dict(score["sha256"])}
                | {"metrics": metrics}
            )
    results.sort(key=lambda row: (row["method"], row["predictions"]))
    found = {
        "name": "gpattern-bench leaderboard",
        "package_version": __version__,
        "date": max((row["date"] for row in results if row["date"]), default=None),
        "versions": versions,
        "labels": dict(sorted(labels.items())),
        "results": results,
    }
    found = plain(found)
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    found["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
