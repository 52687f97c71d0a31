"""Labels of pairs from the forms in which sources publish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from gpattern_bench.errors import SourceError

__all__ = ["read_labels_csv"]


def read_labels_csv(
    path: Path, patterns: Sequence[str], where: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """Read a table of labels: one row per labelled pair.

    Parameters
    ----------
    path : pathlib.Path
        A csv with columns ``cell``, ``gene`` and one 0/1 column per pattern.
    patterns : sequence of str
        The label columns.
    where : mapping of str to str
        Only rows whose columns equal these values are used.

    Returns
    -------
    labels : pandas.DataFrame
        Columns ``cell_id``, ``gene`` and the patterns (bool); each pair once.
    dropped : dict
        ``{"labels": {reason: rows}}``.

    Raises
    ------
    SourceError
        A column is missing, a value is not 0 or 1, or rows of one pair disagree.
    """
    if not path.is_file():
        raise SourceError(f"no labels at {path}: expected a csv of labelled pairs")
    try:
        table = pd.read_csv(path, dtype={"cell": str, "gene": str, **dict.fromkeys(where, str)})
    except (ValueError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as csv: {error}") from error
    missing = [name for name in ("cell", "gene", *where, *patterns) if name not in table.columns]
    if missing:
        raise SourceError(
            f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}"
        )
    used = pd.Series(True, index=table.index)
    for name, value in where.items():
        used &= table[name] == value
    kept = table.loc[used, ["cell", "gene", *patterns]].rename(columns={"cell": "cell_id"})
    wrong = ~kept[list(patterns)].isin([0, 1]).all(axis=1)
    if wrong.any():
        row = kept.index[wrong][0]
        raise SourceError(
            f"{path}, data row {row + 1}: labels must be 0 or 1, got "
            f"{kept.loc[row, list(patterns)].to_dict()} ({int(wrong.sum())} such rows)"
        )
    unique = kept.drop_duplicates()
    clash = unique.duplicated(["cell_id", "gene"])
    if clash.any():
        pair = unique.loc[clash].iloc[0]
        raise SourceError(
            f"{path}: {int(clash.sum())} pairs have rows that disagree, the first is cell "
            f"{pair['cell_id']}, gene {pair['gene']}; keep one row per pair"
        )
    dropped = {
        "row of another dataset": int((~used).sum()),
        "duplicate row": len(kept) - len(unique),
    }
    labels = unique.astype(dict.fromkeys(patterns, bool)).reset_index(drop=True)
    return labels, {"labels": dropped}
