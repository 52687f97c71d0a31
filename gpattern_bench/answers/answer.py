"""Finished answers: a folder of tables, and what was done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from gpattern_bench.base.validation import invalid_text
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import GPatternBenchError
from gpattern_bench.evaluate.calls import text_of_cell

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "ANSWER",
    "BEGUN",
    "CELLS",
    "FILES",
    "GENES",
    "PAIRS",
    "REPORT",
    "SCORES",
    "TABLES",
    "Answer",
    "read_answer",
]

ANSWER = "answer.json"
BEGUN = "begun.json"
"""What is being answered, until it is."""
TABLES = "tables"
SCORES, PAIRS, CELLS = "scores.parquet", "pairs.parquet", "cells.parquet"
GENES = "genes.csv"
REPORT = "report.html"
FILES = (SCORES, PAIRS, CELLS, GENES)


class _Named(BaseModel):
    name: str


class _Counts(BaseModel):
    cells: int
    genes: int
    pairs: int
    called: int
    not_called: int
    of_pattern: dict[str, int]


class _Scope(BaseModel):
    seen_in_training: dict[str, Any] | None
    out_of_scope: int


class _Record(BaseModel):
    """What of ``answer.json`` is read again; the rest is for people."""

    request: dict[str, Any]
    dataset: str
    tables: str
    model: _Named
    patterns: list[str]
    not_called: str
    counts: _Counts
    expected_wrong: dict[str, float | None] | None
    scope: _Scope
    warnings: list[str]
    files: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes
    ----------
    folder : pathlib.Path
    record : dict
        Contents of ``answer.json``.
    """

    folder: Path
    record: dict[str, Any]

    def __repr__(self) -> str:
        counts = self.record["counts"]
        return (
            f"<Answer {self.record['dataset']} by {self.record['model']['name']}: "
            f"{counts['cells']:,} cells, {counts['genes']:,} genes, {counts['called']:,} of "
            f"{counts['pairs']:,} pairs called, in {self.folder}>"
        )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of the calls."""
        return tuple(self.record["patterns"])

    @property
    def warnings(self) -> list[str]:
        """What to know before the answer is believed."""
        return list(self.record["warnings"])

    @property
    def dataset(self) -> Dataset:
        """The tables that were asked of."""
        if self.record["tables"] == TABLES:
            return Dataset(self.folder / TABLES)
        return load_dataset(self.record["tables"])

    def to_anndata(self) -> AnnData:
        """Give the answer as cells by genes (extra ``[spatial]``).

        That of :func:`gpattern_bench.interop.scverse.to_anndata`, and:

        ========== ====================================================================
        ``layers`` ``scored`` and ``called``: 1 where a pair has probabilities, and where it
                   has calls; ``probability_<pattern>``, float32; ``call_<pattern>``, uint8,
                   1 where it is called
        ``obs``    ``area_um2``, ``has_nucleus``, ``in_scope``, ``out_of_scope``
        ``var``    ``cells``, ``called``, ``not_called``, and the share called by pattern
        ``uns``    ``gpattern_bench``: also model, thresholds, rule, counts and warnings
        ========== ====================================================================
        """
        from gpattern_bench.answers.annotate import answer_to_anndata

        return answer_to_anndata(self)

    def pairs(self) -> pd.DataFrame:
        """Read all pairs: molecules and, per pattern, call (NA: not called) and probability."""
        table = pq.read_table(self.folder / PAIRS)
        found: pd.DataFrame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
        return found

    def cells(self) -> pd.DataFrame:
        """Read all cells: size, molecules, and whether the model has seen such cells."""
        found: pd.DataFrame = pq.read_table(self.folder / CELLS).to_pandas()
        return found

    def genes(self) -> pd.DataFrame:
        """Read all genes: the share of cells in which each pattern is called, with intervals."""
        # no name is a number, and none is missing: there is a gene NA
        text = {"gene": str, "patterns": str}
        table = pd.read_csv(self.folder / GENES, dtype=text, keep_default_na=False, na_values=[""])
        table = table.rename(columns=text_of_cell)
        return table.assign(
            **{name: table[name].map(text_of_cell, na_action="ignore") for name in text}
        )


def read_answer(folder: str | Path, files: Sequence[str] = FILES) -> Answer:
    """Read a finished answer; `files`: those of it that must be as they were written.

    Raises
    ------
    GPatternBenchError
        The folder holds none, or one that is not finished or not whole.
    """
    folder = Path(folder).expanduser()
    try:
        record = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        written = _Record.model_validate(record).files
        sizes = {name: (folder / name).stat().st_size for name in files}
    except (OSError, ValueError, RecursionError) as error:
        why = invalid_text(error, 3) if isinstance(error, ValidationError) else str(error)
        raise GPatternBenchError(
            f"{folder} holds no finished answer ({why}): expected a folder that `gpattern-bench "
            "call SOURCE --out FOLDER` wrote; run it again, it goes on where it was"
        ) from error
    if changed := [name for name, size in sizes.items() if size != written.get(name)]:
        raise GPatternBenchError(
            f"{folder}: {', '.join(changed)} changed since the answer was written: remove the "
            "folder and call again"
        )
    return Answer(folder, record)
