"""The gallery: test cells of `synthetic`, with the truth and each method's calls.

Simulated cells only: coordinates of real datasets are never redistributed, not even as pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from gpattern_bench.board.submission import Score, Submission
from gpattern_bench.data.dataset import load_dataset
from gpattern_bench.errors import UnknownDatasetError
from gpattern_bench.evaluate.calls import makes_calls
from gpattern_bench.evaluate.evaluator import Evaluator

__all__ = ["Call", "Gallery", "Picture", "build_gallery"]

DATASET = "synthetic"
_PROTOCOLS = ("fit", "untrained")
_MOLECULES = (20, 80)  # per pair: enough to show a pattern, few enough to see each

_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Call:
    """A method's calls of one pair, per pattern; None where its scores are constant."""

    method: str
    label: str
    kind: str
    called: tuple[bool | None, ...]


@dataclass(frozen=True)
class Picture:
    """One pair of a cell and a gene.

    Attributes
    ----------
    pattern : str
    easy : bool
        Picked because most candidates find `pattern`; else, because most miss it.
    cell_id, gene : str
    right, callers : int
        Candidates that are right about `pattern`, and all that make calls of it.
    truth : tuple of bool
        Per pattern.
    calls : tuple of Call
        Candidates, then controls, by label; methods that see the labels are left out.
    molecules, others : list of (float, float)
        Positions of the gene's and of the cell's other molecules, um from the cell's centroid.
    boundary, nucleus : list of list of (float, float)
        Rings of the outlines; empty without a nucleus.
    """

    pattern: str
    easy: bool
    cell_id: str
    gene: str
    right: int
    callers: int
    truth: tuple[bool, ...]
    calls: tuple[Call, ...]
    molecules: _Points
    others: _Points
    boundary: list[_Points]
    nucleus: list[_Points]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one dataset version: per pattern an easy pair and a hard one."""

    version: str
    patterns: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class _Calls:
    """A method's calls (N, C), and the patterns that it makes calls of (C,)."""

    label: str
    kind: str
    called: NDArray[np.bool_]
    makes: NDArray[np.bool_]


def build_gallery(submissions: Sequence[Submission]) -> Gallery | None:
    """Pick two pairs per pattern, and collect every method's calls of them.

    For each pattern: the pair that most candidates find, and the one that most miss, among test
    pairs that have it, with 20 to 80 molecules in a cell with a nucleus. Ties go to more molecules,
    then to the first cell and gene; no pair is shown twice. Calls are those of each method's first
    seed, at the thresholds in its results (largest F1).

    Parameters
    ----------
    submissions : sequence of Submission
        Files at an address are left out: the page must not depend on what was fetched.

    Returns
    -------
    Gallery or None
        None without predictions of `synthetic`.
    """
    found = [
        (score["version"], submission, score)
        for submission in submissions
        for score in submission.results
        if score["dataset"] == DATASET and score["protocol"] in _PROTOCOLS
    ]
    if not found:
        return None
    newest = max((version for version, _, _ in found), key=_version_key)
    try:
        evaluator = Evaluator(load_dataset(f"{DATASET}@{newest}"), "test")
    except UnknownDatasetError:
        return None
    # Of a method: fitted on the train split alone before others, then by seed.
    first: dict[str, tuple[Submission, Score]] = {}
    for version, submission, score in sorted(
        found,
        key=lambda item: (item[1].metadata.method, bool(item[2]["trained_on"]), item[2]["seed"]),
    ):
        if version == newest and "labels" not in submission.metadata.inputs:
            first.setdefault(submission.metadata.method, (submission, score))
    calls = {
        name: read
        for name, (s, score) in first.items()
        if (read := _read_calls(s, score, evaluator))
    }
    return Gallery(newest, evaluator.patterns, tuple(_pictures(calls, evaluator)))


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _read_calls(submission: Submission, score: Score, evaluator: Evaluator) -> _Calls | None:
    path = submission.folder / score["predictions"]
    scores = evaluator.check(path).scores if path.is_file() else None
    if scores is None:
        return None
    called = np.zeros(scores.shape, dtype=bool)
    for k, pattern in enumerate(evaluator.patterns):
        threshold = score["metrics"]["per_pattern"][pattern]["threshold"]
        if threshold is not None:
            called[:, k] = scores[:, k] >= scores.dtype.type(threshold)
    about = submission.metadata
    return _Calls(about.label, about.kind, called, makes_calls(scores))


def _pictures(calls: dict[str, _Calls], evaluator: Evaluator) -> list[Picture]:
    dataset, labels = evaluator.dataset, evaluator.labels
    assert dataset is not None  # the evaluator was made with one
    pairs = labels[["cell_id", "gene"]].astype(str)
    names: list[tuple[str, str]] = list(zip(pairs["cell_id"], pairs["gene"], strict=True))
    truth = labels[list(evaluator.patterns)].to_numpy(bool)
    molecules = labels["n_molecules"].to_numpy()
    cells = dataset.cells("test").set_index("cell_id")
    nuclei = set(cells.index[cells["nucleus_boundary"].notna()].astype(str))
    shown = (molecules >= _MOLECULES[0]) & (molecules <= _MOLECULES[1])
    shown &= pairs["cell_id"].isin(nuclei).to_numpy()
    candidates = [c for c in calls.values() if c.kind != "control"]
    picked: list[tuple[int, int, bool, int, int]] = []
    for k in range(len(evaluator.patterns)):
        voters = [c.called[:, k] == truth[:, k] for c in candidates if c.makes[k]]
        if not voters:
            continue
        votes = np.sum(voters, axis=0)
        rows = np.flatnonzero(shown & truth[:, k])
        for sign, easy in ((-1, True), (1, False)):
            left = [int(row) for row in rows if row not in {p[0] for p in picked}]
            if left:
                row = min(
                    left,
                    key=lambda i: (sign * int(votes[i]), -int(molecules[i]), *names[i]),
                )
                picked.append((row, k, easy, int(votes[row]), len(voters)))
    wanted = {names[row][0] for row, *_ in picked}
    drawn = {cell.cell_id: cell for cell in dataset.iter_cells("test", keep=wanted)}
    ordered = sorted(calls.items(), key=lambda item: (item[1].kind == "control", item[1].label))
    pictures = []
    for row, k, easy, right, callers in picked:
        cell_id, gene = names[row]
        cell = drawn[cell_id]
        of_gene = cell.gene == dataset.genes.index(gene)
        pictures.append(
            Picture(
                pattern=evaluator.patterns[k],
                easy=easy,
                cell_id=cell_id,
                gene=gene,
                right=right,
                callers=callers,
                truth=tuple(truth[row].tolist()),
                calls=tuple(
                    Call(name, c.label, c.kind, _pair_calls(c, row)) for name, c in ordered
                ),
                molecules=_points(cell.xy[of_gene]),
                others=_points(cell.xy[~of_gene]),
                boundary=_rings(cell.boundary),
                nucleus=_rings(cell.nucleus),
            )
        )
    return pictures


def _pair_calls(calls: _Calls, row: int) -> tuple[bool | None, ...]:
    return tuple(
        bool(called) if makes else None
        for called, makes in zip(calls.called[row], calls.makes, strict=True)
    )


def _points(xy: NDArray[Any]) -> _Points:
    """Round positions to 0.1 um; each once, in a fixed order."""
    return [(float(x), float(y)) for x, y in np.unique(np.round(xy, 1) + 0.0, axis=0)]


def _rings(shape: BaseGeometry | None) -> list[_Points]:
    if shape is None:
        return []
    return [
        [(round(x, 1) + 0.0, round(y, 1) + 0.0) for x, y in part.exterior.coords]
        for part in shapely.get_parts(shape)
    ]
