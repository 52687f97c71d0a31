"""Groups of cells: the condition and the sample of each cell, and which samples are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.readers.columns import as_text, column_names, read_blocks
from gpattern_bench.curate.readers.ids import plain_id
from gpattern_bench.curate.release import MISSING
from gpattern_bench.errors import EvaluationError

__all__ = ["MIN_SAMPLES", "Comparison", "Groups", "read_groups"]

MIN_SAMPLES = 3
"""Fewest samples of each group for a p-value."""

_MOST_GROUPS = 30
_DATE = re.compile(
    r"\d{1,2}[-. ]+[^\W\d]{3,5}\.?|[^\W\d]{3,5}\.?[-. ]+\d{2}"  # 12-Jan, Jan-45
    r"|(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})( .*)?"
)
_LIKE_A_DATE = re.compile(r"\d{1,2}-\d{1,4}")
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Groups:
    """Group and sample of the cells of an answer.

    Attributes
    ----------
    names, samples : tuple of str
        Groups, sorted as text, and samples; one sample of no name if none were asked for.
    group, sample : numpy.ndarray
        (cells,) int64 positions in these, in the order of the answer's cells; -1 = in no group.
    left_out : dict of str to int
        Cells that are in no group, by reason, and rows without a cell of the answer.
    """

    names: tuple[str, ...]
    samples: tuple[str, ...]
    group: NDArray[np.int64]
    sample: NDArray[np.int64]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """A group and the reference, and the samples that speak for them.

    Attributes
    ----------
    reference, group : str
    of_reference, of_group : numpy.ndarray
        Strata (group times number of samples, plus sample); of paired samples, in the same order.
    paired : bool
        Whether these samples are in both groups, and are compared within.
    left_out : int
        Samples that are in one group only, of a paired comparison; or in both, where they are fewer
        than three and each group has three others.
    """

    reference: str
    group: str
    of_reference: NDArray[np.int64]
    of_group: NDArray[np.int64]
    paired: bool
    left_out: int

    @classmethod
    def of(cls, groups: Groups, reference: int, group: int) -> Comparison:
        """Find the samples of two groups, and those that are in both."""
        first, other = (np.unique(groups.sample[groups.group == k]) for k in (reference, group))
        n_both, left_out = len(np.intersect1d(first, other)), 0
        alone = np.setdiff1d(first, other), np.setdiff1d(other, first)
        few = n_both < MIN_SAMPLES <= min(map(len, alone))
        paired = n_both > 0 and not few and len(groups.samples) > 1
        if paired:
            left_out = len(alone[0]) + len(alone[1])
            first = other = np.intersect1d(first, other)
        elif few:
            left_out = n_both
            first, other = alone
        n = len(groups.samples)
        return cls(
            groups.names[reference],
            groups.names[group],
            reference * n + first,
            group * n + other,
            paired,
            left_out,
        )

    @property
    def samples(self) -> tuple[int, int]:
        """Number of samples of the reference and of the group."""
        return len(self.of_reference), len(self.of_group)

    @property
    def over_fovs(self) -> bool:
        """Whether samples are too few to say how they differ."""
        return min(self.samples) < 2

    @property
    def unit(self) -> str:
        """What intervals are over."""
        return (
            "fields of view" if self.over_fovs else "paired samples" if self.paired else "samples"
        )

    def note(self, *, named: bool) -> str:
        """Say what is compared how; `named`: the samples have names."""
        text = f"{shorten(self.group)} against {shorten(self.reference)}: "
        if not named:
            return text + (
                "no samples were named (--sample), so there is no p, and intervals are over fields "
                "of view: they say how well these cells were measured, not whether other donors "
                "would show the same"
            )
        few = min(self.samples) < MIN_SAMPLES
        if self.paired:
            text += f"compared within the {self.samples[0]} samples that both groups have"
            if self.left_out:
                text += f"; {self.left_out} that only one of them has are left out"
            text += " (samples that are not the same donor need different names)"
        else:
            text += f"{self.samples[1]} against {self.samples[0]} samples"
            if self.left_out:
                text += f"; {self.left_out} that both groups have are left out, too few to pair"
        if few:
            text += f"; no p, which needs {MIN_SAMPLES} samples a group"
        if self.over_fovs:
            text += (
                "; intervals are over fields of view and say how well these samples were measured, "
                "not whether others would show the same"
            )
        return text


def read_groups(
    source: str | Path | pd.DataFrame, cells: pd.Index, by: str, sample: str | None = None
) -> Groups:
    """Read which group each cell is in.

    Parameters
    ----------
    source : str, pathlib.Path or pandas.DataFrame
        A csv, tsv or Parquet file, or a table: ``cell_id`` and the columns `by` and `sample`, one
        row per cell. Ids are text: ``007`` is not ``7``. In a table they may be the index.
    cells : pandas.Index
        Ids of the answer's cells, each once.
    by, sample : str
        Names of columns.

    Raises
    ------
    EvaluationError
        A column is missing; a cell has two rows that differ; no cell, or fewer than two groups, are
        of the answer; ids have lost their leading zeros, or became dates.
    SourceError
        The file cannot be read, or ids are rounded numbers.
    """
    where = "the table of groups" if isinstance(source, pd.DataFrame) else str(source)
    columns = list(dict.fromkeys(["cell_id", by, *([] if sample is None else [sample])]))
    table = _texts(source, columns, where)
    ids: dict[str | None, str | None] = {
        text: plain_id(text, where, "cell_id") for text in table["cell_id"].unique()
    }
    table["cell_id"] = table["cell_id"].map(ids)
    left_out = {"rows without a cell_id": int(table["cell_id"].isna().sum())}
    table = table.dropna(subset=["cell_id"])
    rows = len(table)
    table = table.drop_duplicates()
    left_out["rows that repeat another one"] = rows - len(table)
    twice = table["cell_id"][table["cell_id"].duplicated()].unique()
    if len(twice):
        raise EvaluationError(
            f"{where}: {len(twice):,} cells have rows that differ, the first is "
            f"{shorten(twice[0])}; keep one row per cell"
        )
    at = cells.get_indexer(pd.Index(table["cell_id"], dtype=object))
    unknown = table["cell_id"][at < 0].to_numpy()
    _need_whole_ids(where, unknown, cells, len(table))
    left_out["cells that are not in the answer"] = len(unknown)
    table, at = table[at >= 0], at[at >= 0]
    left_out["cells of the answer that have no row"] = len(cells) - len(at)
    lacking = pd.Series(False, index=table.index)
    for name in columns[1:]:
        here = table[name].isna() & ~lacking
        left_out[f"cells without a {name}"] = int(here.sum())
        lacking |= here
    table, at = table[~lacking], at[~lacking.to_numpy()]
    names = tuple(sorted(table[by].unique()))
    if len(names) < 2:
        found = f"only {shorten(names[0])}" if names else "none"
        raise EvaluationError(
            f"{where}: the {len(table):,} cells of the answer that it groups need two or more "
            f"groups in column {by} (--by), got {found}; {_told(left_out)}"
        )
    if len(names) > _MOST_GROUPS:
        raise EvaluationError(
            f"{where}: column {by} (--by) has {len(names):,} values ({_some(names)}), expected "
            f"at most {_MOST_GROUPS} groups; give a column of conditions"
        )
    samples = ("",) if sample is None else tuple(sorted(table[sample].unique()))
    group, of_sample = np.full((2, len(cells)), -1, np.int64)
    group[at] = pd.Index(names).get_indexer(table[by])
    of_sample[at] = 0 if sample is None else pd.Index(samples).get_indexer(table[sample])
    return Groups(names, samples, group, of_sample, {k: n for k, n in left_out.items() if n})


def _texts(source: str | Path | pd.DataFrame, columns: list[str], where: str) -> pd.DataFrame:
    """Read columns as text, never as numbers; None = missing."""
    if isinstance(source, pd.DataFrame):
        if source.index.name == "cell_id" and "cell_id" not in source.columns:
            source = source.reset_index()
        _need_columns(where, columns, [str(name) for name in source.columns])
        blocks = [_arrow(source[columns], where)]
    else:
        path = Path(source)
        if not path.exists():
            raise EvaluationError(
                f"no file {path} (--groups): expected a table with the columns {', '.join(columns)}"
            )
        _need_columns(where, columns, column_names(path, columns))
        blocks = list(read_blocks(path, text=columns))
    parts = [
        pd.DataFrame({name: as_text(block[name]).to_pylist() for name in columns}, dtype=object)
        for block in blocks
    ]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    for name in columns[1:]:
        table[name] = table[name].where(~table[name].isin([*MISSING, "NA"]), None)
    return table


def _arrow(table: pd.DataFrame, where: str) -> pa.Table:
    columns = {}
    for name in table.columns:
        try:
            column = pa.Table.from_pandas(table[[name]], preserve_index=False)[0]
            columns[str(name)] = as_text(column)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise EvaluationError(
                f"{where}: column {name} holds values of several kinds, or lists; write it as text "
                "(astype(str))"
            ) from error
    return pa.table(columns)


def _need_columns(where: str, columns: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in columns if found.count(name) != 1]
    if missing:
        raise EvaluationError(
            f"{where}: expected the columns {', '.join(columns)} once each (cell_id, --by, "
            f"--sample), missing or repeated: {', '.join(missing)}; it has {_some(found, 30)}"
        )


def _need_whole_ids(where: str, unknown: NDArray[np.object_], cells: pd.Index, rows: int) -> None:
    """Refuse ids that lost their leading zeros, and files of other cells."""
    if not len(unknown):
        return
    bare = {name.lstrip("0") or "0": name for name in cells if name[:1] == "0"}
    lost = [name for name in unknown if name in bare]
    if lost:
        raise EvaluationError(
            f"{where}: {len(lost):,} ids are those of the answer without leading zeros, the first "
            f"is {lost[0]} for {bare[lost[0]]}; a program read them as numbers: write the ids as "
            "text"
        )
    dates = [name for name in unknown if _DATE.fullmatch(name)]
    if dates and (like := next((name for name in cells if _LIKE_A_DATE.fullmatch(name)), None)):
        raise EvaluationError(
            f"{where}: {len(dates):,} ids are dates, the first is {dates[0]}, those of the answer "
            f"are like {like}; a spreadsheet took them for dates: write the ids as text"
        )
    if len(unknown) == rows:
        raise EvaluationError(
            f"{where}: none of its {rows:,} cells is in the answer; its ids are like "
            f"{_some(unknown)}, those of the answer like {_some(cells)}; give the ids of the answer"
        )


def _some(names: Sequence[str] | pd.Index | NDArray[np.object_], most: int = _SHOWN) -> str:
    shown = ", ".join(shorten(name) for name in names[:most])
    return shown + (", ..." if len(names) > most else "")


def _told(left_out: dict[str, int]) -> str:
    told = "; ".join(f"{n:,} {reason}" for reason, n in left_out.items() if n)
    return f"left out: {told}" if told else "no cell was left out"
