"""Cards of models: how far to believe their scores, and from which score on to call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
)

from gpattern_bench.answers.scope import Scope
from gpattern_bench.base.validation import invalid_text
from gpattern_bench.errors import EvaluationError, MethodError
from gpattern_bench.evaluate.calibration import Calibration
from gpattern_bench.runs.pretrained import PRETRAINED, pretrained_names

__all__ = ["CARD", "Card", "read_card", "read_cards"]

CARD = "card.json"


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("expected the smaller number first")
    return ends


_Range = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_rising)]
_Share = Annotated[float, Field(ge=0, le=1)]  # NaN is none


class _Rates(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sensitivity: _Share
    specificity: _Share
    prevalence: float = Field(gt=0, lt=1)


class _Scope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    area_um2: _Range
    n_molecules: _Range
    without_nucleus: _Share


class _Curves(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    slopes: dict[str, float]
    intercepts: dict[str, float]


class _File(BaseModel):
    """What of a card the package computes with; the rest is for people."""

    model_config = ConfigDict(frozen=True, extra="allow")

    title: str
    patterns: tuple[str, ...]
    calibration: _Curves
    thresholds: dict[str, _Share | None]
    rates: dict[str, _Rates]
    min_molecules: int = Field(ge=1)
    scope: _Scope


@dataclass(frozen=True)
class Card:
    """What is known of a model beside its weights.

    Attributes
    ----------
    name : str
        Name of the model's folder.
    title : str
    calibration : Calibration
        From scores to probabilities.
    thresholds : dict of str to float or None
        Least score of a call, by pattern.
    rates : dict of str to dict of str to float
        By pattern: ``sensitivity`` and ``specificity`` of the calls, and ``prevalence``, the share
        of the pairs with the pattern, of those to which the calibration was fitted.
    min_molecules : int
        Pairs of fewer molecules are not called.
    scope : Scope
        Of the training cells.
    raw : dict
        The whole file: training data, scores, known failures, licence.
    """

    name: str
    title: str
    calibration: Calibration
    thresholds: dict[str, float | None]
    rates: dict[str, dict[Literal["sensitivity", "specificity", "prevalence"], float]]
    min_molecules: int
    scope: Scope
    raw: Mapping[str, Any]

    @property
    def prevalence(self) -> dict[str, float]:
        """That of each pattern, of `rates`."""
        return {name: of["prevalence"] for name, of in self.rates.items()}


def read_card(folder: Path) -> Card | None:
    """Read the card of a model folder; None if it has none.

    Raises
    ------
    MethodError
        It is damaged.
    """
    path = folder / CARD
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = _File.model_validate(raw)
        calibration = Calibration(found.calibration.slopes, found.calibration.intercepts)
    except (OSError, ValueError, RecursionError, EvaluationError) as error:
        why = invalid_text(error, 3) if isinstance(error, ValidationError) else str(error)
        raise MethodError(
            f"{path} is no readable card ({why}): copy the model's whole folder again"
        ) from error
    for what, of in (
        ("calibration", calibration.slopes),
        ("thresholds", found.thresholds),
        ("rates", found.rates),
    ):
        if sorted(of) != sorted(found.patterns):
            raise MethodError(
                f"{path}: {what} are of {', '.join(of) or 'no pattern'}, the model's patterns are "
                f"{', '.join(found.patterns)}: copy the model's whole folder again"
            )
    scope = Scope(**found.scope.model_dump())
    rates = {name: found.rates[name].model_dump() for name in found.patterns}
    return Card(
        folder.name,
        found.title,
        calibration,
        {name: found.thresholds[name] for name in found.patterns},
        rates,  # type: ignore[arg-type]
        found.min_molecules,
        scope,
        raw,
    )


def read_cards() -> list[Card]:
    """Read the cards of the models of the package, sorted by name."""
    cards = (read_card(PRETRAINED / name) for name in pretrained_names())
    return [card for card in cards if card is not None]
