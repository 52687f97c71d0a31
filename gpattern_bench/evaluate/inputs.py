"""Labels and scores in memory, whatever holds them: by name where there are names, or refused.

numpy takes tables, masked arrays and tensors too, and drops names, masks and gradients without a
word. Here nothing is dropped: what has names is aligned by them, and what cannot be is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.errors import EvaluationError
from gpattern_bench.tables.predictions import exported, is_table

__all__ = [
    "as_labels",
    "label_array",
    "label_columns",
    "paired",
    "paired_vectors",
    "plain_array",
    "score_array",
    "type_name",
]

_NAMED = (pd.Series, pd.DataFrame)
_NO_PATTERNS = ("fov", "cell_id", "gene", "n_molecules")  # of a table of labels


def type_name(value: object) -> str:
    """Name a type with its library.

    >>> type_name(pd.Series()), type_name(1)
    ('pandas.Series', 'int')
    """
    kind = type(value)
    library = kind.__module__.partition(".")[0]
    return kind.__qualname__ if library == "builtins" else f"{library}.{kind.__qualname__}"


def _as_frame(table: Any) -> pd.DataFrame:
    """Give a table in memory (:func:`~gpattern_bench.tables.predictions.is_table`) as pandas."""
    frame = table if isinstance(table, pd.DataFrame) else exported(table).to_pandas()
    if all(isinstance(name, str) for name in frame.columns):
        return frame
    return frame.set_axis(frame.columns.map(str), axis=1)


def plain_array(name: str, values: Any) -> NDArray[Any]:
    """Give values as an array, if nothing is lost by that.

    Parameters
    ----------
    name : str
        Of the values, in errors.
    values : array_like
        Also a masked array without masked values, and a torch tensor of any device.

    Raises
    ------
    EvaluationError
        Masked values, names of rows or columns, or a type that numpy does not hold.
    """
    if type(values) is np.ndarray:
        return values
    parts = values if isinstance(values, list | tuple) else [values]
    if any(issubclass(kind, np.ma.MaskedArray) for kind in set(map(type, parts))):
        masked = sum(int(np.ma.getmaskarray(part).sum()) for part in parts)
        if masked:
            raise EvaluationError(
                f"{name}: {masked:,} values are masked; leave out the rows that are not to be "
                "scored, in labels and scores alike"
            )
    elif any(issubclass(kind, _NAMED) for kind in set(map(type, parts))) or _has_names(values):
        raise EvaluationError(
            f"{name}: expected an array, got {type_name(values)}, whose names would be ignored; "
            "give a pandas.DataFrame, or an array if rows and columns are in the right order"
        )
    try:
        if hasattr(values, "detach") and hasattr(values, "numpy"):  # torch
            return np.asarray(values.numpy(force=True))
        found = np.asarray(values)
    except Exception as error:  # each library has its own errors
        kind = getattr(values, "dtype", type_name(values))
        raise EvaluationError(
            f"{name}: {kind} is no array for numpy ({error}); give a dense array of float32 or "
            "float64 (torch: x.float(), exact for bfloat16)"
        ) from error
    if found.shape == () and found.dtype == np.object_:  # a sparse matrix
        raise EvaluationError(
            f"{name}: {type_name(values)} is no array for numpy; give a dense array, such as "
            "x.toarray() of a sparse one"
        )
    return found


def _has_names(values: Any) -> bool:
    """Test for tables and labelled arrays of any library."""
    return any(hasattr(values, name) for name in ("columns", "coords", "iloc", "obs_names"))


def as_labels(values: NDArray[Any] | pd.Series[Any]) -> NDArray[np.bool_] | None:
    """Convert labels of any type that holds 0 and 1 or false and true; None if others are there.

    Examples
    --------
    >>> as_labels(pd.Series([True, False], dtype="boolean")).tolist()
    [True, False]
    >>> as_labels(np.array(["yes", "no"])), as_labels(np.array([1.0, np.nan]))
    (None, None)
    """
    if isinstance(values, pd.Series):
        plain = isinstance(values.dtype, np.dtype)
        values = values.to_numpy() if plain else np.asarray(values.array, dtype=object)
    if values.dtype.kind == "O":
        found = np.frompyfunc(_as_label, 1, 1)(values)
        return None if any(label is None for label in found.flat) else found.astype(np.bool_)
    if values.dtype == np.bool_:
        return values
    if values.dtype.kind not in "iuf" or not ((values == 0) | (values == 1)).all():
        return None
    return values.astype(np.bool_)


def _as_label(value: object) -> bool | None:
    known = isinstance(value, bool | np.bool_ | Number) and value in (0, 1)
    return bool(value) if known else None


def label_columns(table: Any) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, str]]:
    """Find the patterns of a table of labels: the columns that hold 0 and 1, of any type.

    Returns
    -------
    frame : pandas.DataFrame
        The table, its patterns as bool.
    patterns : tuple of str
    others : dict of str to str
        Column that is no pattern -> why; without ``fov``, ``cell_id``, ``gene``, ``n_molecules``.

    Raises
    ------
    EvaluationError
        Columns are missing or there twice; or one lacks labels of some pairs.
    """
    frame = _as_frame(table)
    if not frame.columns.is_unique:
        twice = ", ".join(frame.columns[frame.columns.duplicated()].unique())
        raise EvaluationError(
            f"the table of labels has columns that occur more than once: {twice}; keep one each"
        )
    patterns: dict[str, NDArray[np.bool_]] = {}
    others: dict[str, str] = {}
    for name in frame.columns.difference(list(_NO_PATTERNS), sort=False):
        column = frame[name]
        if column.dtype == bool:
            patterns[name] = column.to_numpy()
            continue
        known = column.dropna()
        labels = as_labels(known) if len(known) else None
        if labels is None:
            value = f"{known.iloc[0]!r:.40}" if len(known) else "nothing"
            others[name] = f"column {name} ({column.dtype}) is no pattern, it holds {value}"
        elif len(known) < len(column):
            raise EvaluationError(
                f"the table of labels: column {name} ({column.dtype}) has no label in "
                f"{len(column) - len(known):,} of {len(column):,} rows; leave these pairs out, or "
                "label them 0 or 1"
            )
        else:
            patterns[name] = labels
    if not patterns or not {"cell_id", "gene"} <= set(frame.columns):
        got = ", ".join(f"{name} ({kind})" for name, kind in frame.dtypes.items())
        raise EvaluationError(
            "a table of labels needs the columns cell_id, gene and one of 0 and 1, or false and "
            f"true, per pattern; got {got}"
        )
    for name in ("cell_id", "gene"):
        column = frame[name]
        coded = isinstance(column.dtype, pd.CategoricalDtype)
        values = column.cat.categories if coded else column.unique()
        kind = pd.api.types.infer_dtype(values, skipna=True)
        if column.isna().any() or kind not in ("string", "empty"):
            raise EvaluationError(
                f"the table of labels: column {name} ({column.dtype}) holds {kind} values, or none "
                "in some rows; expected text everywhere, as in the scores"
            )
    changed = {name: labels for name, labels in patterns.items() if frame[name].dtype != bool}
    return frame.assign(**changed) if changed else frame, tuple(patterns), others


def paired(
    y_true: Any, y_pred: Any, patterns: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]:
    """Give labels and scores as arrays (N, C) of the same pairs and patterns in the same order.

    Tables are aligned by the names of their columns with the patterns, and pandas' by their index
    with each other. Arrays, and tables with numbered columns, are in the order of the patterns.

    Raises
    ------
    EvaluationError
        Names that cannot be aligned, other shapes, or values other than labels and scores.
    """
    given = {"y_true": y_true, "y_pred": y_pred}
    tables = {name: values for name, values in given.items() if is_table(values)}
    frames = {name: _of_patterns(name, table, patterns) for name, table in tables.items()}
    named = [name for name, table in tables.items() if not _is_numbered(table)]
    if len(named) == 1 and list(frames[named[0]].columns) != list(patterns):
        raise EvaluationError(
            f"{named[0]} names its columns in another order than the patterns "
            f"({', '.join(patterns)}), and the other of y_true and y_pred names none: give both as "
            "tables with names, or both in the order of the patterns"
        )
    if len(frames) == 2 and all(map(_has_index, tables.values())):
        at = _rows_of(frames["y_true"].index, frames["y_pred"].index)
        if at is not None:
            frames["y_pred"] = frames["y_pred"].iloc[at]
    arrays = {
        name: frames[name] if name in frames else plain_array(name, values)
        for name, values in given.items()
    }
    shapes = [values.shape for values in arrays.values()]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != len(patterns):
        raise EvaluationError(
            f"y_true and y_pred: expected the shape (N, {len(patterns)}), columns "
            f"{', '.join(patterns)}; got {shapes[0]} and {shapes[1]}"
        )
    columns = list(patterns)
    truth, scores = arrays["y_true"], arrays["y_pred"]
    if isinstance(truth, pd.DataFrame):
        truth = np.array([label_array(f"y_true, column {p}", truth[p]) for p in columns]).T
    if isinstance(scores, pd.DataFrame):
        scores = np.array([score_array(f"y_pred, column {p}", scores[p]) for p in columns]).T
    return label_array("y_true", truth), score_array("y_pred", scores)


def label_array(name: str, values: NDArray[Any] | pd.Series[Any]) -> NDArray[np.bool_]:
    """Convert labels by :func:`as_labels`, or say why not."""
    labels = as_labels(values)
    if labels is None:
        raise EvaluationError(
            f"{name}: expected 0 or 1 everywhere (NaN is not a label), got other values of type "
            f"{values.dtype}"
        )
    return labels


def score_array(name: str, values: NDArray[Any] | pd.Series[Any]) -> NDArray[np.floating[Any]]:
    """Give scores in the precision that they have, float32 or float64."""
    kind = getattr(values.dtype, "numpy_dtype", values.dtype)  # of pandas' nullable types
    if kind not in (np.float32, np.float64):
        raise EvaluationError(
            f"{name}: expected float32 or float64 scores, got {values.dtype}; cast them"
        )
    if isinstance(values, np.ndarray):
        return values
    missing = int(values.isna().sum())
    if missing:
        raise EvaluationError(f"{name}: {missing:,} scores are missing; every pair needs a score")
    return values.to_numpy(kind)


def paired_vectors(
    y_true: Any, y_score: Any
) -> tuple[NDArray[Any], NDArray[np.floating[Any]] | NDArray[Any]]:
    """Give labels and scores of one pattern as arrays; two pandas.Series by their index."""
    if isinstance(y_true, pd.Series) and isinstance(y_score, pd.Series):
        at = _rows_of(y_true.index, y_score.index)
        y_score = y_score if at is None else y_score.iloc[at]
    if isinstance(y_true, pd.Series):
        y_true = label_array("y_true", y_true)
    if isinstance(y_score, pd.Series):
        y_score = score_array("y_score", y_score)
    return plain_array("y_true", y_true), plain_array("y_score", y_score)


def _of_patterns(name: str, table: Any, patterns: Sequence[str]) -> pd.DataFrame:
    """Give a table with the patterns as columns, in any order."""
    if _is_numbered(table):
        frame = _as_frame(table)
        return (
            frame.set_axis(list(patterns), axis=1) if len(frame.columns) == len(patterns) else frame
        )
    frame = _as_frame(table)
    if sorted(frame.columns) != sorted(patterns):
        raise EvaluationError(
            f"{name}: expected one column for each of {', '.join(patterns)}, got "
            f"{', '.join(frame.columns)}"
        )
    return frame


def _is_numbered(table: Any) -> bool:
    """Tell tables whose columns have no names: those that pandas makes of arrays."""
    return isinstance(table, pd.DataFrame) and table.columns.equals(pd.RangeIndex(table.shape[1]))


def _has_index(table: Any) -> bool:
    """Tell tables with names of rows: pandas' own, and Arrow's if made from them."""
    if isinstance(table, pd.DataFrame):
        return True
    return exported(table).schema.pandas_metadata is not None


def _rows_of(wanted: pd.Index[Any], given: pd.Index[Any]) -> NDArray[np.intp] | None:
    """Find the rows that bring an index in the order of another; None if they are the same."""
    if wanted.equals(given):
        return None
    # 0 to N-1 in order are no names: pandas gives them to rows that have none.
    unnamed = any(index.equals(pd.RangeIndex(len(index))) for index in (wanted, given))
    if len(wanted) == len(given) and wanted.is_unique and given.is_unique and not unnamed:
        at = given.get_indexer(wanted)
        if (at >= 0).all():
            return at
    raise EvaluationError(
        "labels and scores have other names of rows (index), one of them none (0, 1, ...), or one "
        "name more than once: they cannot be aligned. Give both the same index, or arrays "
        "(.to_numpy()) if their rows are in the same order"
    )
