"""Read labels of pairs from a csv file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.readers.columns import delimiter
from gpattern_bench.curate.readers.ids import plain_id
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = ["labelled_pairs", "read_labels_csv"]


def read_labels_csv(
    path: Path, patterns: Sequence[str], where: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """Read a table of labels: one row per labelled pair.

    Parameters
    ----------
    path : pathlib.Path
        A csv with columns ``cell`` or ``cell_id``, ``gene`` and, for each pattern, 0 or 1, true
        or false; separated as :func:`.columns.read_blocks` says.
    patterns : sequence of str
        The label columns.
    where : mapping of str to str
        Column -> value; other rows are dropped.

    Returns
    -------
    labels : pandas.DataFrame
        Columns ``cell_id``, ``gene`` and the patterns (bool); each pair once.
    dropped : dict
        ``{"labels": {reason: rows}}``.

    Raises
    ------
    SourceError
        A column is missing, a value is not 0 or 1, or two rows of a pair differ.
    """
    if not path.is_file():
        raise SourceError(f"no labels at {path}: expected a csv of labelled pairs")
    with reading(path, "a csv of labels"):
        # As text: a gene may be called NA, and rows of other datasets may hold anything.
        sign = delimiter(path, ("cell", "cell_id", "gene", *patterns))
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=sign)
    if not isinstance(table.index, pd.RangeIndex):  # pandas makes surplus columns the index
        raise SourceError(
            f"{path}: rows have more values than the header has names "
            f"({', '.join(table.columns)}); name every column"
        )
    return labelled_pairs(table, patterns, where, str(path))


def labelled_pairs(
    table: pd.DataFrame, patterns: Sequence[str], where: Mapping[str, str], source: str
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """Check a table of labels, all text; parameters and errors of :func:`read_labels_csv`.

    `source` names it in messages.
    """
    if "cell" not in table.columns:
        table = table.rename(columns={"cell_id": "cell"})
    missing = [name for name in ("cell", "gene", *where, *patterns) if name not in table.columns]
    if missing:
        raise SourceError(
            f"{source} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    used = pd.Series(True, index=table.index)
    for name, value in where.items():
        used &= table[name] == value
    if not used.any():
        asked = ", ".join(f"{name} = {value}" for name, value in where.items()) or "any row"
        raise SourceError(
            f"{source} has no row with {asked} among its {len(table)} rows; check the recipe's "
            "`labels_where`"
        )
    kept = table.loc[used, ["cell", "gene", *patterns]].rename(columns={"cell": "cell_id"})
    for name in ("cell_id", "gene"):
        kept[name] = kept[name].str.strip()
    kept["cell_id"] = [plain_id(name, source, "cell") or "" for name in kept["cell_id"]]
    values = kept[list(patterns)].apply(lambda texts: texts.str.strip().str.lower())
    values = values.replace({"true": "1", "false": "0"}).apply(pd.to_numeric, errors="coerce")
    wrong = ~values.isin([0, 1]).all(axis=1) | (kept[["cell_id", "gene"]] == "").any(axis=1)
    if wrong.any():
        row = kept.index[wrong][0]
        raise SourceError(
            f"{source}, data row {row + 1}: expected a cell, a gene and 0 or 1 for each pattern, "
            f"got {shorten(str(kept.loc[row].to_dict()), 300)} ({int(wrong.sum())} such rows)"
        )
    kept[list(patterns)] = values.astype(bool)
    unique = kept.drop_duplicates()
    clash = unique[unique.duplicated(["cell_id", "gene"])].drop_duplicates(["cell_id", "gene"])
    if len(clash):
        pair = clash.iloc[0]
        raise SourceError(
            f"{source}: {len(clash)} pairs have rows that differ, the first is cell "
            f"{shorten(pair['cell_id'])}, gene {shorten(pair['gene'])}; keep one row per pair"
        )
    dropped = {
        "row of another dataset": int((~used).sum()),
        "duplicate row": len(kept) - len(unique),
    }
    labels = unique.astype(dict.fromkeys(patterns, bool)).reset_index(drop=True)
    return labels, {"labels": dropped}
