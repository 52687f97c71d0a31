"""Controls: scores without positions, and the best possible score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from gpattern_bench.base.files import write_text
from gpattern_bench.data.cells import Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._state import Share, read_state
from gpattern_bench.methods.base import About, Scores, Untrained

__all__ = ["GenePrior", "MoleculeCount", "Oracle", "Prevalence"]

_STATE = "state.json"


class _Shares(TypedDict):
    share: list[Share]


class _GeneShares(TypedDict):
    unseen: list[Share]
    share: dict[str, list[Share]]


class Prevalence:
    """Score every pair by how common the pattern is in the training cells."""

    about: ClassVar = About(
        name="prevalence",
        label="Prevalence",
        kind="control",
        summary="Share of the training pairs that have the pattern; the same score for every pair.",
        reference="this package",
        inputs=(),
        learns=True,
    )

    def fit(self, train: Cells, seed: int) -> None:  # noqa: ARG002 - draws nothing
        """Count the patterns of the labelled pairs."""
        self._share = _PatternCounts(train).share.tolist()

    @property
    def parameters(self) -> int:
        """Number of shares."""
        return len(self._share)

    def save(self, folder: Path) -> None:
        """Write the shares as JSON."""
        write_text(folder / _STATE, json.dumps({"share": self._share}) + "\n")

    def load(self, folder: Path) -> None:
        """Read the shares."""
        self._share = read_state(folder / _STATE, _Shares)["share"]

    def predict(self, cells: Cells) -> Scores:
        """Score each pair with the training shares."""
        for cell in cells:
            yield cell, np.tile(np.array(self._share, np.float32), (len(cell.genes), 1))


class GenePrior:
    """Score a pair by its gene's share of training pairs with the pattern.

    The share over all genes counts as one more pair of each gene, and is the score of new genes.
    """

    about: ClassVar = About(
        name="gene_prior",
        label="Gene prior",
        kind="control",
        summary="Share of the gene's training pairs that have the pattern; no coordinates.",
        reference="this package",
        inputs=("gene",),
        learns=True,
    )

    def fit(self, train: Cells, seed: int) -> None:  # noqa: ARG002 - draws nothing
        """Count the patterns of the labelled pairs, gene by gene."""
        counts = _PatternCounts(train)
        self._unseen = counts.share.tolist()
        shares = (counts.positive + counts.share) / (counts.pairs[:, None] + 1)
        self._share = dict(zip(train.genes, shares.tolist(), strict=True))

    @property
    def parameters(self) -> int:
        """Number of shares, of all genes."""
        return len(self._unseen) * (1 + len(self._share))

    def save(self, folder: Path) -> None:
        """Write the shares of every gene as JSON."""
        state = {"unseen": self._unseen, "share": self._share}
        write_text(folder / _STATE, json.dumps(state) + "\n")

    def load(self, folder: Path) -> None:
        """Read the shares."""
        state = read_state(folder / _STATE, _GeneShares)
        self._unseen, self._share = state["unseen"], state["share"]

    def predict(self, cells: Cells) -> Scores:
        """Look the genes up by name."""
        table = np.array([self._share.get(gene, self._unseen) for gene in cells.genes])
        table = table.astype(np.float32)
        for cell in cells:
            yield cell, table[cell.genes]


class MoleculeCount(Untrained):
    """Score a pair by its number of molecules over the largest number of any pair."""

    about: ClassVar = About(
        name="molecule_count",
        label="Molecule count",
        kind="control",
        summary="Molecules of the pair over the largest number, the same score for every pattern.",
        reference="this package",
        inputs=("gene",),
        learns=False,
        per_cell=False,
    )

    def predict(self, cells: Cells) -> Scores:
        """Find the largest number first, then score."""
        largest = max((int(cell.counts.max()) for cell in cells), default=1)
        for cell in cells:
            score = (cell.counts / largest).astype(np.float32)
            yield cell, np.repeat(score[:, None], len(cells.patterns), axis=1)


class Oracle(Untrained):
    """Give the labels as scores: the positive control, the top of any board."""

    about: ClassVar = About(
        name="oracle",
        label="Oracle",
        kind="control",
        summary="The labels themselves: what a perfect method would reach.",
        reference="this package",
        inputs=("labels",),
        learns=False,
    )

    def predict(self, cells: Cells) -> Scores:
        """Copy the labels."""
        for cell in cells:
            if cell.labels is None:
                raise MethodError("oracle must see the labels, and these cells have none")
            yield cell, cell.labels.astype(np.float32)


class _PatternCounts:
    """Counts of labelled pairs and positives per gene, and the overall shares."""

    def __init__(self, train: Cells) -> None:
        self.pairs: NDArray[np.int64] = np.zeros(len(train.genes), dtype=np.int64)
        self.positive: NDArray[np.int64] = np.zeros(
            (len(train.genes), len(train.patterns)), dtype=np.int64
        )
        for cell in train:
            if cell.labels is not None and cell.labelled is not None:
                self.pairs[cell.genes] += cell.labelled
                self.positive[cell.genes] += cell.labels
        self.share = self.positive.sum(axis=0) / max(int(self.pairs.sum()), 1)
