"""The interface of a method: fit on labelled cells, then score pairs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gpattern_bench.data.cells import Cell, Cells

__all__ = ["About", "FitContext", "Method", "Network", "Scores", "Untrained", "fit_in_context"]

Scores = Iterator[tuple[Cell, NDArray[np.float32]]]
"""Per cell, in any order: the cell and its scores (g, C), rows as ``cell.genes``."""


@dataclass(frozen=True)
class About:
    """Description of a method.

    Attributes
    ----------
    name : str
        As on the command line and in prediction files.
    label : str
        As on the board.
    kind : {"control", "baseline", "model"}
        Controls cannot see positions (or, `oracle`, see the labels); the rest are candidates.
    summary, reference : str
        One sentence; where it comes from.
    inputs : tuple of str
        Of ``coordinates``, ``gene``, ``cell outline``, ``nucleus outline``, ``labels``.
    learns : bool
        Whether it is fitted on labels. If not, its scores are the same under every protocol.
    rules_for : tuple of str or None
        Patterns with a rule; others are scored 0. None: any pattern.
    per_cell : bool
        Whether, once it is fitted, the scores of a cell depend on that cell alone. If so, fields
        of view may be predicted apart from each other; if not, a split is predicted as a whole.
    """

    name: str
    label: str
    kind: Literal["control", "baseline", "model"]
    summary: str
    reference: str
    inputs: tuple[str, ...]
    learns: bool
    rules_for: tuple[str, ...] | None = None
    per_cell: bool = True

    @property
    def sees_labels(self) -> bool:
        """Whether it sees the labels to predict, as only the positive control does."""
        return "labels" in self.inputs


class Method(Protocol):
    """A method: ``fit`` or ``load``, then ``predict``; the same seed gives the same scores.

    If it has an attribute ``parameters``, the number of learnt values, a run records it. If its
    ``fit`` has a third parameter ``context``, it is given a :class:`FitContext`.
    """

    about: ClassVar[About]

    def fit(self, train: Cells, seed: int) -> None:
        """Learn from labelled cells; called once, and only if ``about.learns``."""

    def save(self, folder: Path) -> None:
        """Write what was learnt into a folder, as files that :meth:`load` reads; no pickles."""

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""

    def predict(self, cells: Cells) -> Scores:
        """Score every gene present in every cell.

        Codes in ``cell.gene`` mean ``cells.genes``, which may be another panel than that of
        the training cells; columns are ``cells.patterns``. Labels are hidden.

        Yields
        ------
        cell : Cell
        scores : numpy.ndarray
            (g, C) float32, finite and in [0, 1], rows as ``cell.genes``.
        """
        ...


@dataclass(frozen=True)
class FitContext:
    """What a run offers to ``fit``, for methods that train for long.

    Attributes
    ----------
    val : Cells or None
        Labelled cells to score after each epoch, to report; not to learn from.
    checkpoint : pathlib.Path or None
        File to write after each epoch, and to resume from if it exists.
    init : pathlib.Path or None
        Folder of a saved model to start from.
    """

    val: Cells | None = None
    checkpoint: Path | None = None
    init: Path | None = None


def fit_in_context(method: Method, train: Cells, seed: int, context: FitContext) -> None:
    """Fit a method, with the context if its ``fit`` has a parameter for it."""
    if "context" in inspect.signature(method.fit).parameters:
        method.fit(train, seed, context)  # type: ignore[call-arg]
    else:
        method.fit(train, seed)


@runtime_checkable
class Network(Protocol):
    """A method that scores several cells together, with all cores or a GPU.

    Runs score one cell at a time, and in one process: batches and threads show in the last digits.

    Attributes
    ----------
    batch : int
        Cells scored together.
    """

    batch: int


class Untrained:
    """Base of methods that learn nothing: fit, save and load do nothing."""

    def fit(self, train: Cells, seed: int) -> None:
        """Learn nothing."""

    def save(self, folder: Path) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""
