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

__all__ = [
    "About",
    "FitContext",
    "Method",
    "Network",
    "Scores",
    "Untrained",
    "fit_in_context",
    "takes_context",
]

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
        Controls do not use positions (`oracle` uses the labels).
    summary, reference : str
        One sentence; the source.
    inputs : tuple of str
        Some of ``coordinates``, ``gene``, ``cell outline``, ``nucleus outline``, ``labels``.
    learns : bool
        Fitted on labels. If False, the scores are the same under every protocol.
    rules_for : tuple of str or None
        Patterns with a rule; others get the score 0. None: any pattern.
    per_cell : bool
        A cell's scores depend, after the fit, on that cell alone, so fields of view may be
        predicted separately. If False, a split is predicted as a whole.
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
        """True only for the positive control."""
        return "labels" in self.inputs


class Method(Protocol):
    """A method: ``fit`` or ``load``, then ``predict``; the same seed gives the same scores.

    Optional: an attribute ``parameters``, how many numbers the fitted method keeps (docs:
    Contracts), for a run to record; a third parameter ``context`` of ``fit``, to receive a
    :class:`FitContext`; a method ``features``, for
    :func:`gpattern_bench.features.compute_features`.
    """

    about: ClassVar[About]

    def fit(self, train: Cells, seed: int) -> None:
        """Learn from labelled cells; called at most once, and only if ``about.learns``."""

    def save(self, folder: Path) -> None:
        """Write the fitted state into a folder, without pickles."""

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""

    def predict(self, cells: Cells) -> Scores:
        """Score every gene present in every cell.

        ``cell.gene`` indexes ``cells.genes``, perhaps another panel than that of the training
        cells; columns are ``cells.patterns``. Labels are hidden.

        Yields
        ------
        cell : Cell
        scores : numpy.ndarray
            (g, C) float32, finite and in [0, 1], rows as ``cell.genes``.
        """
        ...


@dataclass(frozen=True)
class FitContext:
    """Val cells and a checkpoint, for methods with a long ``fit``.

    Attributes
    ----------
    val : Cells or None
        Labelled cells to score after each epoch; never to learn from.
    checkpoint : pathlib.Path or None
        File to write after each epoch; resume from it if it exists.
    init : pathlib.Path or None
        Folder of a saved model to start from.
    """

    val: Cells | None = None
    checkpoint: Path | None = None
    init: Path | None = None


def fit_in_context(method: Method, train: Cells, seed: int, context: FitContext) -> None:
    """Fit a method; pass the context if its ``fit`` has that parameter."""
    if takes_context(method):
        method.fit(train, seed, context)  # type: ignore[call-arg]
    else:
        method.fit(train, seed)


def takes_context(method: Method) -> bool:
    """Test whether the ``fit`` of a method has a parameter for the context."""
    return "context" in inspect.signature(method.fit).parameters


@runtime_checkable
class Network(Protocol):
    """A method that scores several cells together, on cores or a GPU.

    Runs score one cell at a time: batches change the last digits.

    Attributes
    ----------
    batch : int
        Cells scored together.
    """

    batch: int


class Untrained:
    """Base of methods that learn nothing: fit, save and load do nothing."""

    parameters: int = 0

    def fit(self, train: Cells, seed: int) -> None:
        """Learn nothing."""

    def save(self, folder: Path) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""
