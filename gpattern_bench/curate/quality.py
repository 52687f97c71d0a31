"""What an export says of its molecules' quality and targets: the same columns, the same rules.

============================ ================================================================
column                       dropped
============================ ================================================================
``qv``                       quality below `min_qv`, or NaN: ``quality (qv) below Q``
``is_gene``                  not true: ``control target``
``codeword_category``        no kind of gene (``predesigned_gene``, ``custom_gene``), where
                             ``is_gene`` is missing or true: ``control target``
============================ ================================================================

Readers of large exports apply them block by block; the others hand the columns on to
:func:`gpattern_bench.curate.rules.apply_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import SourceError
from gpattern_bench.sources.recipe import Recipe

__all__ = ["COLUMNS", "CONTROL", "NUMBERS", "TEXTS", "Quality", "read_columns"]

NUMBERS, TEXTS = ("qv",), ("is_gene", "codeword_category")
"""Columns of numbers, and those to read as text, whatever their type."""

COLUMNS = NUMBERS + TEXTS

CONTROL = "control target"

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0")
_MISSING = ("", "nan", "none", "<na>")


@dataclass(frozen=True)
class Quality:
    """The rules with their options.

    Attributes
    ----------
    min_qv : float
        Phred-scaled quality.
    genes_only : bool
        False: keep control targets (``controls: ""`` in the recipe).
    """

    min_qv: float = 20.0
    genes_only: bool = True

    @classmethod
    def of(cls, recipe: Recipe) -> Quality:
        """Take the options of a recipe."""
        return cls(recipe.min_qv, bool(recipe.controls))

    def low(self, columns: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
        """Mark molecules (n,) of low quality, by reason; nothing without the column."""
        if "qv" not in columns:
            return {}
        qv = np.asarray(columns["qv"], dtype=np.float64)
        return {f"quality (qv) below {self.min_qv:g}": ~(qv >= self.min_qv)}

    def controls(self, columns: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
        """Mark molecules (n,) of control targets, by reason; nothing without a column.

        Raises
        ------
        SourceError
            ``is_gene`` is neither true nor false.
        """
        if not self.genes_only or not any(name in columns for name in TEXTS):
            return {}
        gene, kind = (_texts(columns[name]) if name in columns else None for name in TEXTS)
        if gene is None:
            return {CONTROL: ~_each(kind, _is_kind_of_gene)}
        is_gene = _each(gene, _is_true)
        if kind is not None:
            of_gene, unsaid = _each(kind, _is_kind_of_gene), _each(kind, _is_missing)
            is_gene = np.where(_each(gene, _is_missing), of_gene, is_gene & (of_gene | unsaid))
        return {CONTROL: ~is_gene}


def read_columns(dataset: pq.ParquetDataset) -> dict[str, pd.Series]:
    """Read those of the columns that a Parquet dataset has."""
    names = [name for name in COLUMNS if name in dataset.schema.names]
    if not names:
        return {}
    return dict(dataset.read(columns=names, use_pandas_metadata=False).to_pandas().items())


def _texts(values: Any) -> pd.Categorical:
    values = values.to_pandas() if hasattr(values, "to_pandas") else values  # of Arrow
    return pd.Categorical(values)


def _each(texts: Any, test: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Test every value (n,) as text in lower case; a missing one is empty."""
    found = [test(str(text).strip().lower()) for text in texts.categories]
    return np.asarray(np.array([*found, test("")])[texts.codes])


def _is_true(text: str) -> bool:
    if text in _TRUE or text in _FALSE or _is_missing(text):
        return text in _TRUE
    raise SourceError(f"is_gene has the value {shorten(text)}, expected true or false")


def _is_kind_of_gene(text: str) -> bool:
    return text.endswith("gene")


def _is_missing(text: str) -> bool:
    return text in _MISSING
