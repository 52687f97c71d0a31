"""Scores of every pair of a dataset by a saved model: what `predict` notes in its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from gpattern_bench.base.validation import adapter
from gpattern_bench.base.version import __version__
from gpattern_bench.tables.predictions import (
    ORIGIN_KEY,
    Checked,
    TrainedOn,
    check_predictions,
    only_pairs,
    read_predictions,
)

__all__ = ["Model", "ModelOutput", "Variant", "read_checked", "read_model_output"]

_KEY = b"gpattern_bench_model"


@dataclass(frozen=True)
class Variant:
    """What a method is a variant of.

    Attributes
    ----------
    base, preset : str
        The method, and its preset.
    settings : dict of str to bool, int, float, str or list of float
        What differs from the preset.
    """

    base: str
    preset: str
    settings: dict[str, bool | int | float | str | tuple[float, ...]]


@dataclass(frozen=True)
class Model:
    """Metadata of a model folder.

    Attributes
    ----------
    method : str
    patterns : list of str
        Columns of its scores.
    fitted_on : tuple of str or None
        Datasets whose labels it was fitted on, ``name@version``, sorted; None if on none.
    thresholds : dict of str to float or None
        Chosen on the val split of the dataset that it was run on; None without a val split, and
        for a pattern without positives there.
    seed : int
    package_version : str
    variant : Variant or None
        None: the method is one of the package, or your own.
    """

    method: str
    patterns: list[str]
    fitted_on: TrainedOn
    thresholds: dict[str, float | None] | None
    seed: int
    package_version: str = __version__
    variant: Variant | None = None

    def record(self) -> dict[str, Any]:
        """Give it as JSON holds it: `variant` only where there is one."""
        found = asdict(self)
        return found if self.variant else {k: v for k, v in found.items() if k != "variant"}


@dataclass(frozen=True)
class ModelOutput:
    """Origin of a file of `predict`: every pair of a dataset, scored by a saved model.

    Attributes
    ----------
    dataset : str
        ``name@version``.
    model : Model
    """

    dataset: str
    model: Model

    def to_metadata(self) -> dict[bytes, str]:
        """Return the metadata of the file."""
        return {_KEY: json.dumps({"dataset": self.dataset, "model": self.model.record()})}


def read_model_output(source: str | Path | Mapping[bytes, bytes] | None) -> ModelOutput | None:
    """Read the origin of a file of `predict`, or of a table's metadata; None if it is none."""
    try:
        found = pq.read_schema(source).metadata if isinstance(source, str | Path) else source
        if found is None or ORIGIN_KEY in found:
            return None
        return adapter(ModelOutput).validate_json(found[_KEY])
    except (OSError, KeyError, ValueError, ValidationError, pa.ArrowException):
        return None


def read_checked(
    path: str | Path,
    pairs: pd.DataFrame,
    patterns: Sequence[str],
    expected: Mapping[str, str] | None = None,
    *,
    whole: bool = False,
) -> Checked:
    """Read a file of scores; check its table and metadata.

    Of a file of `predict`, which scores every pair of a dataset, take the scores of `pairs`, unless
    `whole` says that these are all it may hold.

    Parameters are those of :func:`~gpattern_bench.tables.predictions.check_predictions`, errors
    those of :func:`~gpattern_bench.tables.predictions.read_predictions`.
    """
    output = read_model_output(path)
    table, origin, problems = read_predictions(path, pairs=None if output else len(pairs))
    if output is not None:
        table, problems = table if whole else only_pairs(table, pairs), []
        wanted = f"{expected['dataset']}@{expected['version']}" if expected else output.dataset
        if output.dataset != wanted:
            problems = [f"the metadata says dataset = {output.dataset}, expected {wanted}"]
    found = check_predictions(
        table, pairs, patterns, subject=str(path), origin=origin, expected=expected
    )
    if problems:
        return replace(found, problems=problems + found.problems, scores=None)
    return found
