"""Prediction files: writing them, reading them, and every way in which one can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpattern_bench import __version__, schema
from gpattern_bench.dataset import Dataset
from gpattern_bench.errors import PredictionError
from gpattern_bench.files import replacing
from gpattern_bench.storage import codes_into

__all__ = [
    "Checked",
    "Origin",
    "Protocol",
    "check_predictions",
    "read_predictions",
    "write_predictions",
]

_KEY = b"gpattern_bench"
_EXAMPLES = 5

Protocol = Literal["fit", "untrained", "transfer", "simulation", "cv-cell"]
"""How the scores came to be: fitted on the dataset's own train split; by a method that learns
nothing; fitted on another real dataset; on a simulated one; out of fold, by cell."""


@dataclass(frozen=True)
class Origin:
    """Where a prediction file belongs: stored in its metadata under ``gpattern_bench``.

    Attributes
    ----------
    dataset, version, split : str
        Which pairs it scores.
    method : str
        Whose scores.
    seed : int
        Of the run.
    protocol : str
        One of :data:`Protocol`.
    package_version : str
        What wrote the file.
    """

    dataset: str
    version: str
    split: str
    method: str
    seed: int = 0
    protocol: Protocol = "fit"
    package_version: str = __version__


@dataclass(frozen=True)
class Checked:
    """A prediction table held against the pairs that it should score.

    Attributes
    ----------
    problems, warnings : list of str
        One paragraph each: how many, the first five, what to do.
    scores : numpy.ndarray or None
        (N, C) in the order of the expected pairs; None if there are problems.
    origin : Origin or None
        From the file's metadata.
    """

    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    scores: NDArray[np.floating[Any]] | None = None
    origin: Origin | None = None


def write_predictions(
    path: str | Path,
    scores: pd.DataFrame,
    dataset: Dataset,
    split: str,
    *,
    method: str,
    seed: int = 0,
    protocol: Protocol = "fit",
) -> Path:
    """Check scores and write them as a prediction file, whole or not at all.

    Parameters
    ----------
    path : str or pathlib.Path
        The file; replaced if it is there.
    scores : pandas.DataFrame
        Columns ``cell_id``, ``gene`` and one per pattern, in [0, 1]; one row per pair of
        ``dataset.pairs(split)``, in any order. Scores are stored as float32.
    dataset : Dataset
    split : str
    method : str
        Your method's name.
    seed : int
    protocol : str
        One of :data:`Protocol`.

    Raises
    ------
    PredictionError
        With every problem; nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from gpattern_bench import load_dataset
    >>> ds = load_dataset("synthetic")
    >>> scores = ds.pairs("test").assign(**dict.fromkeys(ds.patterns, 0.5))
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_predictions(folder / "mine.parquet", scores, ds, "test", method="mine").name
    'mine.parquet'
    """
    path = Path(path)
    wanted = schema.predictions(dataset.patterns)
    absent = [name for name in wanted.names if name not in scores.columns]
    if absent:
        raise PredictionError(f"scores for {path}", [_lacking(absent, list(scores.columns))])
    columns = {
        name: scores[name].astype("float32" if name in dataset.patterns else "str").to_numpy()
        for name in wanted.names
    }
    table = pa.table(columns).cast(pa.schema(list(wanted)))
    origin = Origin(dataset.name, dataset.version, split, method, seed, protocol)
    table = table.replace_schema_metadata({_KEY: json.dumps(asdict(origin))})
    checked = check_predictions(table, dataset.pairs(split), dataset.patterns)
    if checked.problems:
        raise PredictionError(f"scores for {path}", checked.problems)
    with replacing(path) as beside:
        pq.write_table(table, beside, compression="zstd")
    return path


def read_predictions(path: str | Path) -> tuple[pa.Table, Origin | None, list[str]]:
    """Read a prediction file.

    Returns
    -------
    table : pyarrow.Table
    origin : Origin or None
        None where the metadata is missing or unreadable.
    problems : list of str
        What is wrong with the metadata.

    Raises
    ------
    PredictionError
        The file is missing, truncated, or no Parquet file; the text says which.
    """
    path = Path(path)
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise PredictionError(str(path), [f"{what}; expected a prediction file (Parquet)"])
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(max(0, path.stat().st_size - 4))
        tail = file.read()
    if not head.startswith(b"PAR1"):
        start = head.lstrip()[:32]
        what = "is empty" if not head else f"begins with {start!r}"
        if start[:1] == b"<":
            what = "is an HTML page, as a server sends instead of a file"
        raise PredictionError(
            str(path), [f"not a Parquet file: it {what}; write it with write_predictions"]
        )
    if tail != b"PAR1":
        raise PredictionError(
            str(path), ["the Parquet file is truncated: its end is missing; copy it again"]
        )
    try:
        with pq.ParquetFile(path) as opened:
            table = opened.read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PredictionError(
            str(path), [f"the Parquet file is damaged ({error}); copy or write it again"]
        ) from error
    try:
        origin = Origin(**json.loads((table.schema.metadata or {})[_KEY]))
    except (KeyError, ValueError, TypeError) as error:
        why = "no" if isinstance(error, KeyError) else "unreadable"
        problem = (
            f"{why} metadata `gpattern_bench` (dataset, version, split, method, seed): without "
            "it nobody can tell what the file scores; write it with write_predictions"
        )
        return table, None, [problem]
    return table, origin, []


def check_predictions(
    table: pa.Table,
    pairs: pd.DataFrame,
    patterns: Sequence[str],
    *,
    origin: Origin | None = None,
    expected: Mapping[str, str] | None = None,
    dtypes: Sequence[pa.DataType] = (pa.float32(),),
) -> Checked:
    """Hold a prediction table against the pairs that it should score: all problems at once.

    Parameters
    ----------
    table : pyarrow.Table
        ``cell_id``, ``gene`` and one column per pattern, rows in any order.
    pairs : pandas.DataFrame
        The expected ``cell_id``, ``gene``, each pair once.
    patterns : sequence of str
    origin : Origin, optional
        The file's metadata, compared with `expected`.
    expected : mapping of str to str, optional
        Attributes of `origin` -> value that they must have.
    dtypes : sequence of pyarrow.DataType
        Allowed types of scores.
    """
    problems = [
        f"the metadata says {name} = {getattr(origin, name)!r}, expected {value!r}; score the "
        "pairs of that dataset, version and split"
        for name, value in (expected or {}).items()
        if origin is not None and getattr(origin, name) != value
    ]
    if origin is not None and origin.protocol not in get_args(Protocol):
        allowed = ", ".join(get_args(Protocol))
        problems.append(f"the metadata says protocol = {origin.protocol!r}; allowed: {allowed}")
    names = ["cell_id", "gene", *patterns]
    absent = [name for name in names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in names]
    repeated = sorted({name for name in names if table.column_names.count(name) > 1})
    if absent:
        problems.append(_lacking(absent, table.column_names))
    if extra:
        problems.append(f"{len(extra)} columns too many: {', '.join(map(str, extra))}; remove them")
    if repeated:
        problems.append(f"columns that occur more than once: {', '.join(repeated)}; keep one each")
    usable = [name for name in names if name not in absent and name not in repeated]
    warnings: list[str] = []
    columns = {}
    for name in (name for name in usable if name in patterns):
        kind = table[name].type
        if kind not in dtypes:
            allowed = " or ".join(map(str, dtypes))
            problems.append(f"column {name} is {kind}, expected {allowed}; cast the scores")
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            values = table[name].cast(pa.float64() if kind not in dtypes else kind)
            columns[name] = values.to_numpy()  # nulls become NaN
            problems += _value_problems(table, name, columns[name])
            if len(table) > 1 and (columns[name] == columns[name][0]).all():
                warnings.append(f"column {name} is constant ({columns[name][0]:g} for every pair)")
    position = None
    if "cell_id" in usable and "gene" in usable:
        wrong = [name for name in ("cell_id", "gene") if not _is_text(table[name].type)]
        problems += [f"column {n} is {table[n].type}, expected text; cast the ids" for n in wrong]
        if not wrong:
            position = pair_positions(table, pairs)
            problems += _pair_problems(table, position, pairs)
    if problems or position is None:
        return Checked(problems, warnings, None, origin)
    scores = np.stack([columns[name] for name in patterns], axis=1)
    aligned = np.empty_like(scores)
    aligned[position] = scores
    return Checked(problems, warnings, aligned, origin)


def pair_positions(table: pa.Table, pairs: pd.DataFrame) -> NDArray[np.int64]:
    """Row of `pairs` (each once) that every row of `table` names; -1 where there is none."""
    cells = pd.Index(pairs["cell_id"].astype(str).unique())
    genes = pd.Index(pairs["gene"].astype(str).unique())
    known = cells.get_indexer(pairs["cell_id"].astype(str)).astype(np.int64) * len(genes)
    known += genes.get_indexer(pairs["gene"].astype(str))
    cell, gene = codes_into(cells, table["cell_id"]), codes_into(genes, table["gene"])
    keys = np.where((cell < 0) | (gene < 0), -1, cell * len(genes) + gene)
    return np.asarray(pd.Index(known).get_indexer(keys), dtype=np.int64)


def _pair_problems(table: pa.Table, position: NDArray[np.int64], pairs: pd.DataFrame) -> list[str]:
    problems = []
    seen = np.bincount(position[position >= 0], minlength=len(pairs))
    missing = np.flatnonzero(seen == 0)
    if len(missing):
        examples = pairs.iloc[missing[:_EXAMPLES]]
        problems.append(
            f"{_count(missing, 'pair is', 'pairs are')} missing: {_named(examples, len(missing))}; "
            "score every pair of dataset.pairs(split)"
        )
    for rows, what, remedy in (
        (np.flatnonzero(position < 0), "not of this split", "remove these rows"),
        (np.flatnonzero(_repeats(position)), "given more than once", "keep one row per pair"),
    ):
        if len(rows):
            examples = table.select(["cell_id", "gene"]).take(pa.array(rows[:_EXAMPLES]))
            problems.append(
                f"{_count(rows, 'row is', 'rows are')} of pairs {what}: "
                f"{_named(examples.to_pandas(), len(rows))}; {remedy}"
            )
    return problems


def _repeats(position: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows whose pair an earlier row has."""
    first = np.unique(position, return_index=True)[1]
    repeats = position >= 0
    repeats[first] = False
    return repeats


def _value_problems(table: pa.Table, name: str, values: NDArray[Any]) -> list[str]:
    problems = []
    finite = np.isfinite(values)
    for rows, what, remedy in (
        (~finite, "that are NaN, null or infinite", "every pair needs a score"),
        (
            finite & ((values < 0) | (values > 1)),
            "outside [0, 1]",
            "map them, for example with a logistic function; nothing is clipped here",
        ),
    ):
        at = np.flatnonzero(rows)
        if len(at):
            keys = [key for key in ("cell_id", "gene") if key in table.column_names]
            picked = table.select(keys).take(pa.array(at[:_EXAMPLES])).to_pandas()
            examples = picked.assign(value=values[at[:_EXAMPLES]])
            problems.append(
                f"column {name} has {_count(at, 'score', 'scores')} {what}: "
                f"{_named(examples, len(at))}; {remedy}"
            )
    return problems


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _lacking(absent: Sequence[str], present: Sequence[str]) -> str:
    one = len(absent) == 1
    return (
        f"{len(absent)} column{' is' if one else 's are'} missing: {', '.join(absent)} (there are: "
        f"{', '.join(map(str, present))}); add {'it' if one else 'them'}"
    )


def _count(rows: NDArray[Any], one: str, many: str) -> str:
    return f"{len(rows):,} {one if len(rows) == 1 else many}"


def _named(examples: pd.DataFrame, total: int) -> str:
    shown = ", ".join(
        f"({', '.join(map(str, row))})" for row in examples.itertuples(index=False, name=None)
    )
    more = total - len(examples)
    return f"{shown} and {more:,} more" if more else shown
