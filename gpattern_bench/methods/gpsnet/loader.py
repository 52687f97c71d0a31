"""Training data of GPSNet: cells as tokens, batches and augmentation."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.methods.context import GeneScores
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.gpsnet.model import Tokens, prepare, vocabulary_rows

__all__ = [
    "LabelledTokens",
    "drop_molecules",
    "epoch_batches",
    "generator",
    "mask_genes",
    "rotate",
]

_Ints = NDArray[np.int64]

KEPT = 2 << 30
"""Bytes of prepared cells kept between epochs; the other cells are prepared every epoch."""

_GROUPED = 16  # batches per group of cells sorted by length


class LabelledTokens:
    """Labelled cells of a split as tokens, cached up to :data:`KEPT` bytes.

    Parameters
    ----------
    cells : Cells
    config : Config
    counted : GeneScores, optional
        Of the training cells, for the context.
    held_out : bool
        Whether `cells` are others than those; else each cell's own pairs are left out.

    Attributes
    ----------
    cells : list of Cell
        Cells with a labelled pair.
    lengths : numpy.ndarray
        (N,) molecules of each.
    labelled : list of int
        (N,) labelled pairs of each.
    simulated : numpy.ndarray
        (datasets,) bool: whether each is simulated.
    """

    def __init__(
        self,
        cells: Cells,
        config: Config,
        counted: GeneScores | None = None,
        *,
        held_out: bool = False,
    ) -> None:
        parts = [[c for c in part if _is_labelled(c)] for part in cells.parts]
        self.cells = [cell for part in parts for cell in part]
        self.simulated = np.array([part.simulated for part in cells.parts])
        self._part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.lengths = np.array([len(c.gene) for c in self.cells], np.int64)
        self.labelled = [0 if c.labelled is None else int(c.labelled.sum()) for c in self.cells]
        self._config = config
        self._rows = vocabulary_rows(config.genes, cells.genes)
        self._counted = None if counted is None else counted.of_panel(cells.genes)
        self._held_out = held_out
        self._kept: dict[int, Tokens] = {}
        self._room = KEPT

    def tokens(self, index: int) -> Tokens:
        """Return cell `index` as tokens, cached; thread-safe."""
        if index in self._kept:
            return self._kept[index]
        tokens = self.prepared(index)
        plan = () if tokens.plan is None else (tokens.plan.keys, tokens.plan.bits)
        more = [t for t in (tokens.fields, tokens.z) if t is not None]
        size = sum(t.nbytes for t in (tokens.xy, tokens.row, *more, *plan))
        if size <= self._room:
            self._room -= size
            self._kept[index] = tokens
        return tokens

    def prepared(self, index: int, cell: Cell | None = None) -> Tokens:
        """Prepare cell `index`, or what an augmentation made of it."""
        whole, scores = self.cells[index], None
        if self._counted is not None:
            scores = self._counted.scores(None if self._held_out else whole)
        return prepare(cell or whole, self._rows, self._config, scores)

    def weights(self, real: float) -> NDArray[np.float64] | None:
        """Probability (N,) of each cell, of several datasets; None for one: each once an epoch.

        A dataset weighs as the square root of its number of cells. If `real` is above 0 and there
        are real and simulated datasets, the real ones weigh that share together.
        """
        if len(self.simulated) < 2:
            return None
        sizes = np.bincount(self._part, minlength=len(self.simulated))
        share = np.sqrt(sizes)
        if real and len(set(self.simulated[sizes > 0])) == 2:
            for kind, whole in ((self.simulated, 1 - real), (~self.simulated, real)):
                share[kind] *= whole / share[kind].sum()
        return np.asarray((share / share.sum() / np.maximum(sizes, 1))[self._part])

    def identity(self) -> str:
        """Hash the molecules, outlines and labels."""
        digest = hashlib.sha256()
        for cell in self.cells:
            for shape in (cell.boundary, cell.nucleus):
                digest.update(b"none" if shape is None else shape.wkb)
            for values in (cell.xy, self._rows[cell.gene], cell.labels, cell.labelled):
                digest.update(np.ascontiguousarray(values).tobytes())
            if cell.z is not None:
                digest.update(cell.z.tobytes())
        return digest.hexdigest()


def _is_labelled(cell: Cell) -> bool:
    return cell.labelled is not None and bool(cell.labelled.any())


def epoch_batches(
    lengths: _Ints,
    batch: int,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> list[_Ints]:
    """Divide an epoch into batches of cells of similar length, each once or drawn by `weights`.

    Parameters
    ----------
    lengths : numpy.ndarray
        (N,) molecules of each cell.
    batch : int
        Most cells in a batch; batches differ by at most one cell.
    seed, epoch : int
    weights : numpy.ndarray, optional
        (N,) probability of each cell, drawn with replacement.

    Examples
    --------
    >>> sorted(len(cells) for cells in epoch_batches(np.arange(10), 4, seed=0, epoch=0))
    [3, 3, 4]
    """
    rng = generator(seed, epoch, 0)
    steps = -(-len(lengths) // batch)
    n = len(lengths)
    cells = rng.permutation(n) if weights is None else rng.choice(n, n, p=weights)
    drawn = np.array_split(cells, -(-steps // _GROUPED))
    in_order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in drawn])
    batches = np.array_split(in_order, steps)
    return [batches[at] for at in rng.permutation(steps)]


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Make a generator for an epoch: stream 0 orders the cells, stream i + 1 is for cell i."""
    key = np.array([seed, (epoch << 32) + stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def drop_molecules(cell: Cell, rng: np.random.Generator, most: float, limit: int = 0) -> Cell:
    """Drop a random share of a labelled cell's molecules, up to `most`.

    With a `limit`, a cell of more molecules keeps between 30 and 100 per cent of as many as that.
    """
    n = len(cell.gene)
    draws, dropped = rng.random(n), most * rng.random()
    if limit and n > limit:
        dropped = max(dropped, 1 - limit / n * np.exp(rng.uniform(np.log(0.3), 0)))
    kept = draws >= dropped
    return cell.keeping(kept) if kept.any() else cell


def rotate(cell: Tokens, rng: np.random.Generator) -> Tokens:
    """Rotate a cell by a random angle; mirror it with probability 1/2."""
    angle, mirror = 2 * np.pi * rng.random(), rng.random() < 0.5
    cos, sin = np.cos(angle), np.sin(angle)
    return cell.mapped(np.array([[cos, -sin], [-sin, -cos] if mirror else [sin, cos]]))


def mask_genes(cell: Tokens, rng: np.random.Generator, unknown: int) -> Tokens:
    """Replace a random share of a cell's genes by the unknown gene."""
    share = rng.random()
    return cell.without_genes(rng.random(len(cell.query)) < share, unknown)
