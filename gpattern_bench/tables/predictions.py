"""Read, write and check prediction files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, ValidationError

from gpattern_bench.base.files import replacing
from gpattern_bench.base.validation import adapter, invalid_text, shorten
from gpattern_bench.base.version import __version__
from gpattern_bench.errors import PredictionError
from gpattern_bench.tables.parquet import (
    NOT_UTF8,
    codes_into,
    nested,
    oversized,
    without_views,
)

__all__ = [
    "FLOATS",
    "ORIGIN_KEY",
    "Checked",
    "Origin",
    "Protocol",
    "TrainedOn",
    "as_table",
    "check_predictions",
    "counted",
    "exported",
    "is_table",
    "name_clash",
    "only_pairs",
    "pair_positions",
    "read_origin",
    "read_predictions",
    "require_origin",
    "training_problems",
    "write_tables",
]

ORIGIN_KEY = b"gpattern_bench"
"""Key of a prediction file's metadata."""
CALLS_START = b'{"thresholds":'
"""How the value of that key begins in a file of calls."""

_EXAMPLES = 5
_ROWS = 1 << 20  # per row group, the default of pyarrow
_LARGEST_SEED = 2**53  # JSON holds no larger number everywhere
_METHOD = r"\w[\w.-]*"
_LONGEST_FOOTER = 1 << 24  # bytes; 10^7 pairs take a few thousand
_LONGEST_TEXT, _MOST_TEXTS = 1000, 4  # bytes of a name, columns of text
_MOST_COLUMNS = 1000
_MOST_ROWS, _MOST_VALUES = 1 << 27, 1 << 30  # where nothing says how many pairs there are
_MOST_TIMES, _MOST_MORE = 10, 10_000  # rows for each expected pair, and in any file
_USUAL_COLUMNS = 100  # more of them only with fewer rows
_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}

FLOATS = (pa.float32(), pa.float64())
"""Score types in memory; files hold the first."""

Protocol = Literal["fit", "untrained", "transfer", "simulation", "cv-cell"]
"""Trained on: the dataset's train split, with or without simulated datasets beside it; nothing;
real labels of another dataset; simulated cells alone; the other folds of cells."""


def _as_tuple(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


TrainedOn = Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple)]
"""Training datasets that a run names, ``name@version``, sorted; None if it names none. Files of
earlier versions hold a single one, as text: it is read as a list of one."""


@dataclass(frozen=True)
class Origin:
    """Origin of a prediction file, in its metadata under ``gpattern_bench``.

    Attributes
    ----------
    dataset, version, split : str
        The scored pairs.
    method : str
    seed : int
    protocol : str
        One of :data:`Protocol`.
    trained_on : tuple of str or None
        All datasets that the method was fitted on, ``name@version``, sorted, for ``transfer`` and
        ``simulation``, and for ``fit`` with simulated cells beside the own train split.
    package_version : str
        Version of the writer.
    """

    dataset: str
    version: str
    split: str
    method: str
    seed: int = 0
    protocol: Protocol = "fit"
    trained_on: TrainedOn = None
    package_version: str = __version__

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def to_metadata(self) -> dict[bytes, str]:
        """Return the metadata of a prediction file."""
        return {ORIGIN_KEY: json.dumps(asdict(self))}

    def stem(self, what: str | None = None) -> str:
        """Return the file name without suffix, or that of a sibling (``val``, ``run``).

        >>> Origin("d", "1.0.0", "test", "m", seed=3, protocol="cv-cell").stem("run")
        'run-seed3-cv-cell'
        >>> Origin("d", "1.0.0", "test", "m", trained_on=("d@1.0.0", "sim@2.0.0")).stem()
        'test-seed0-fit-sim'
        """
        named = self.trained_on or ()
        if self.protocol == "fit":  # always on the own train split: name what is beside it
            named = tuple(one for one in named if one != f"{self.dataset}@{self.version}")
        marks: list[str] = []
        if named or self.protocol not in ("fit", "untrained"):
            marks = [self.protocol, *_training_mark(named)]
        return "-".join([what or self.split, f"seed{self.seed}", *marks])


def _training_mark(ids: Sequence[str]) -> list[str]:
    """Name training sets in a file name; of more than two the first, and a hash of all."""
    names = [one.partition("@")[0] for one in ids]
    if len(names) > 2:
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]
        names = [names[0], f"{len(names) - 1}-more-{digest}"]
    return ["-and-".join(names)] if names else []


@dataclass(frozen=True, repr=False)
class Checked:
    """Scores checked against the pairs to score, and aligned with them.

    Attributes
    ----------
    subject : str
        Path of the file, or name of the table.
    pairs : pandas.DataFrame
        The N pairs to score.
    problems, warnings : list of str
        A paragraph each: how many, the first five, what to do.
    scores : numpy.ndarray or None
        (N, C) in the order of `pairs`; None if there are problems.
    """

    subject: str
    pairs: pd.DataFrame
    problems: list[str]
    warnings: list[str] = field(default_factory=list)
    scores: NDArray[np.floating[Any]] | None = None

    def __repr__(self) -> str:
        found = _count(self.problems, "problem", "problems") if self.problems else "fine"
        return f"<Checked {self.subject}: {len(self.pairs):,} pairs, {found}>"

    def require(self) -> NDArray[np.floating[Any]]:
        """Return the scores.

        Raises
        ------
        PredictionError
            With every problem.
        """
        if self.scores is None:
            raise PredictionError(self.subject, self.problems)
        return self.scores


def write_tables(
    pieces: Iterable[pa.Table],
    path: Path,
    metadata: Mapping[str, str] | Mapping[bytes, str] | None = None,
) -> Path:
    """Concatenate one or more tables of one schema into a file, whole or not at all.

    The bytes depend only on the rows, not on the tables. `metadata` defaults to that of the first.
    """
    groups = _row_groups(pieces)
    first = next(groups)
    with replacing(path) as beside:
        named = first.schema if metadata is None else first.schema.with_metadata(metadata)
        with pq.ParquetWriter(beside, named, compression="zstd", write_page_checksum=True) as file:
            for group in chain([first], groups):
                file.write_table(group.cast(named))
    return path


def _row_groups(pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Regroup rows into tables of `_ROWS`; the last may be shorter."""
    held: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        held.append(piece)
        rows += len(piece)
        while rows > _ROWS:
            together = pa.concat_tables(held)
            yield together.slice(0, _ROWS).combine_chunks()
            held, rows = [together.slice(_ROWS)], rows - _ROWS
    yield pa.concat_tables(held).combine_chunks()


def is_table(value: Any) -> bool:
    """Test whether it is a table in memory: of pandas, Arrow, or a library that exports Arrow."""
    return isinstance(value, pd.DataFrame) or (
        hasattr(value, "columns") and hasattr(value, "__arrow_c_stream__")
    )


def as_table(predictions: Any) -> pa.Table:
    """Convert a table in memory (:func:`is_table`) to Arrow, repeated columns included.

    Raises
    ------
    PredictionError
        Arrow cannot hold a column; the message names it.
    """
    if not isinstance(predictions, pd.DataFrame):
        return _without_views(exported(predictions))
    columns = []
    for i, name in enumerate(predictions.columns):
        try:
            columns.append(pa.chunked_array(pa.array(predictions.iloc[:, i], from_pandas=True)))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            problem = (
                f"column {name} has values of several types, or beyond 64 bit ({error}); give it "
                "one type"
            )
            raise PredictionError("predictions", [problem]) from error
    names = [str(name) for name in predictions.columns]
    return _without_views(pa.Table.from_arrays(columns, names=names))


def exported(table: Any) -> pa.Table:
    """Take over a table of a library that exports Arrow.

    pyarrow's own are not exported: where text was cast to views, versions 18.0 and 23.0, at least,
    die of that.
    """
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    return table if isinstance(table, pa.Table) else pa.table(table)


def _without_views(table: pa.Table) -> pa.Table:
    """Give text in Arrow's view types, which newer libraries write, the types of all others."""
    wanted = _plain_text(table.schema)
    return table if wanted is table.schema else table.cast(wanted)


def _plain_text(found: pa.Schema) -> pa.Schema:
    fields = [field.with_type(without_views(field.type)) for field in found]
    return pa.schema(fields, found.metadata)


def read_origin(path: str | Path) -> Origin | None:
    """Read only the origin of a prediction file; None without a readable one."""
    try:
        return require_origin(path)
    except PredictionError:
        return None


def name_clash(path: Path, origin: Origin) -> str | None:
    """Say whether a file of this name holds scores after other training, which it must keep.

    Names of files tell training sets without their versions, and of three or more not all.
    """
    other = read_origin(path)
    if other is None or other.trained_on == origin.trained_on:
        return None
    there, new = (" and ".join(one.trained_on or ("the train split",)) for one in (other, origin))
    return f"{path} holds scores after training on {there}; those after {new} have the same name"


def read_predictions(
    path: str | Path, *, pairs: int | None = None
) -> tuple[pa.Table, Origin | None, list[str]]:
    """Read a prediction file.

    Parameters
    ----------
    path : str or pathlib.Path
    pairs : int, optional
        How many there should be; a file of many more is refused before it is read.

    Returns
    -------
    table : pyarrow.Table
    origin : Origin or None
        None if the metadata are missing or wrong.
    problems : list of str
        Problems of the metadata.

    Raises
    ------
    PredictionError
        The file is missing, truncated, damaged, far too large, or not Parquet; the message says
        which.
    """
    path = Path(path)
    with _reading(path):
        metadata = _footer(path)
        rows, values = _MOST_ROWS, _MOST_VALUES
        if pairs is not None:
            rows = _MOST_TIMES * pairs + _MOST_MORE
            values = rows * _USUAL_COLUMNS
        if (metadata.metadata or {}).get(ORIGIN_KEY, b"").startswith(CALLS_START):
            raise _refused(
                path, "it holds calls (true or false): give the file of scores they were made of"
            )
        if flaw := oversized(path, metadata, rows=rows, columns=_MOST_COLUMNS, values=values):
            raise _refused(path, flaw)
        table = _read_columns(path)
        table.validate(full=True)
    return (table, *_origin(table.schema.metadata))


def require_origin(path: str | Path) -> Origin:
    """Read only the origin of a prediction file.

    Raises
    ------
    PredictionError
        The file is not Parquet, or its metadata do not say.
    """
    path = Path(path)
    with _reading(path):
        origin, problems = _origin(_footer(path).metadata)
    if origin is None:
        raise PredictionError(str(path), problems)
    return origin


def _refused(path: Path, problem: str) -> PredictionError:
    return PredictionError(str(path), [problem])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise PredictionError for a damaged file."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise _refused(path, NOT_UTF8) from error
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = f"the Parquet file is damaged ({error}); copy or write it again"
        raise _refused(path, problem) from error


def _footer(path: Path) -> pq.FileMetaData:
    """Read the footer, if the file begins and ends as Parquet does."""
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise _refused(path, f"{what}; expected a prediction file (Parquet)")
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read()
    if not head.startswith(b"PAR1"):
        start = head.lstrip()[:32]
        what = "is empty" if not head else f"begins with {start!r}"
        if start[:1] == b"<":
            what = "is an HTML page, as a server sends instead of a file"
        raise _refused(path, f"not a Parquet file: it {what}; write it with write_predictions")
    if tail[4:] != b"PAR1":
        raise _refused(path, "the Parquet file is truncated: its end is missing; copy it again")
    if int.from_bytes(tail[:4], "little") > _LONGEST_FOOTER:  # Arrow would allocate it
        raise _refused(path, "the Parquet file is damaged (its footer is too long); copy it again")
    return pq.read_metadata(path)


def _read_columns(path: Path) -> pa.Table:
    """Read all columns; text comes as a dictionary first, for one long value may be in all rows.

    Lists and structs come as nulls, whatever they hold: they are neither ids nor scores.
    """
    with pq.ParquetFile(path) as opened:
        wanted, lists = _plain_text(opened.schema_arrow), nested(opened)
        columns = [opened.schema.column(i) for i in range(len(opened.schema))]
        text = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        if len(text) > _MOST_TEXTS:
            problem = f"{len(text)} columns of text, expected cell_id and gene; remove the others"
            raise _refused(path, problem)
    with pq.ParquetFile(path, read_dictionary=text, page_checksum_verification=True) as opened:
        flat = [name for name in wanted.names if name not in lists]
        table = opened.read(flat if lists else None)
    if table.column_names != flat:
        raise _refused(path, f"columns that occur more than once, beside lists: {shorten(flat)}")
    for name, column in zip(table.column_names, table.columns, strict=True):
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            if _is_bytes(chunk.dictionary.type) and len(chunk.dictionary):
                longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
                if longest > _LONGEST_TEXT:
                    raise _refused(
                        path,
                        f"column {shorten(name)} has a value of {longest:,} bytes; names of cells "
                        f"and genes have at most {_LONGEST_TEXT:,}",
                    )
    rest = iter(table.columns)
    arrays = [
        pa.nulls(len(table), field.type) if field.name in lists else next(rest).cast(field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, names=wanted.names, metadata=wanted.metadata)


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _origin(metadata: Mapping[bytes, bytes] | None) -> tuple[Origin | None, list[str]]:
    remedy = "nothing else names the scored pairs; write the file with write_predictions"
    try:
        return adapter(Origin).validate_json((metadata or {})[ORIGIN_KEY], strict=True), []
    except KeyError:
        what = "no metadata `gpattern_bench` (dataset, version, split, method, seed)"
    except ValidationError as error:
        what = f"unreadable metadata `gpattern_bench` ({invalid_text(error)})"
    return None, [f"{what}: {remedy}"]


def check_predictions(
    table: pa.Table,
    pairs: pd.DataFrame,
    patterns: Sequence[str],
    *,
    subject: str = "predictions",
    origin: Origin | None = None,
    expected: Mapping[str, str] | None = None,
    dtypes: Sequence[pa.DataType] = (pa.float32(),),
) -> Checked:
    """Check a prediction table against the pairs to score and align it; report all problems.

    Parameters
    ----------
    table : pyarrow.Table
        ``cell_id``, ``gene`` and one column per pattern, rows in any order.
    pairs : pandas.DataFrame
        The expected ``cell_id``, ``gene``, each pair once; other columns are ignored.
    patterns : sequence of str
    subject : str
        Name of the table in errors.
    origin : Origin, optional
        The file's metadata, compared with `expected`.
    expected : mapping of str to str, optional
        Attribute of `origin` -> required value.
    dtypes : sequence of pyarrow.DataType
        Allowed score types.
    """
    problems = [] if origin is None else _origin_problems(origin, expected or {})
    names = ["cell_id", "gene", *patterns]
    absent = [name for name in names if name not in table.column_names]
    extra = [str(name) for name in table.column_names if name not in names]
    repeated = sorted({name for name in names if table.column_names.count(name) > 1})
    if absent:
        present = ", ".join(map(str, table.column_names))
        problems.append(
            f"{_count(absent, 'column is', 'columns are')} missing: {', '.join(absent)} (there "
            f"are: {present}); add them"
        )
    if extra:
        many = _count(extra, "column", "columns")
        problems.append(f"{many} too many: {', '.join(extra)}; remove what is no pattern")
    if repeated:
        problems.append(f"columns that occur more than once: {', '.join(repeated)}; keep one each")
    usable = [name for name in names if name not in absent and name not in repeated]
    ids = table.select([name for name in usable if name in ("cell_id", "gene")])
    warnings: list[str] = []
    columns = {}
    for name in usable[ids.num_columns :]:
        kind = table[name].type
        if kind not in dtypes:
            allowed = " or ".join(map(_type_name, dtypes))
            problems.append(
                f"column {name} is {_type_name(kind)}, expected {allowed}; cast the scores"
            )
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            values = table[name] if kind in dtypes else table[name].cast(pa.float64(), safe=False)
            columns[name] = values.to_numpy()  # nulls become NaN
            problems += _value_problems(ids, name, columns[name])
            if len(table) > 1 and (columns[name] == columns[name][0]).all():
                warnings.append(f"column {name} is constant ({columns[name][0]:g} for every pair)")
    all_text = True
    for name in ids.column_names:
        if not _is_text(ids[name].type):
            all_text = False
            problems.append(
                f"column {name} is {_type_name(ids[name].type)}, expected text; cast the ids"
            )
        elif ids[name].null_count:
            problems.append(
                f"column {name} is null in {ids[name].null_count:,} rows; name them all"
            )
    if not all_text or ids.num_columns < 2:
        return Checked(subject, pairs, problems, warnings)
    position = pair_positions(ids, pairs)
    problems += _pair_problems(ids, position, pairs)
    if problems:
        return Checked(subject, pairs, problems, warnings)
    # Column-major: metrics read one pattern at a time.
    aligned = np.empty((len(patterns), len(pairs)), dtype=np.result_type(*columns.values())).T
    for k, name in enumerate(patterns):
        aligned[position, k] = columns[name]
    return Checked(subject, pairs, problems, warnings, aligned)


def pair_positions(table: pa.Table, pairs: pd.DataFrame) -> NDArray[np.int64]:
    """Find the row in `pairs` (no repeats) of every row of `table`; -1: not there."""
    cell_of, cells = pd.factorize(pairs["cell_id"])
    gene_of, genes = pd.factorize(pairs["gene"])
    known = cell_of.astype(np.int64) * len(genes) + gene_of
    cell = codes_into(pd.Index(cells.astype(object)), table["cell_id"])
    gene = codes_into(pd.Index(genes.astype(object)), table["gene"])
    keys = np.where((cell < 0) | (gene < 0), -1, cell * len(genes) + gene)
    return np.asarray(pd.Index(known).get_indexer(keys), dtype=np.int64)


def only_pairs(table: pa.Table, pairs: pd.DataFrame) -> pa.Table:
    """Keep the rows of some pairs, if the table names pairs at all."""
    for name in ("cell_id", "gene"):
        if table.column_names.count(name) != 1 or not _is_text(table[name].type):
            return table
    return table.filter(pa.array(pair_positions(table, pairs) >= 0))


def counted(scores: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Select the scores of some pairs.

    Parameters
    ----------
    scores : pandas.DataFrame
        ``cell_id``, ``gene`` and one column per pattern, rows in any order.
    pairs : pandas.DataFrame
        ``cell_id``, ``gene`` of the pairs to select, each once.

    Returns
    -------
    pandas.DataFrame
        In the order of `pairs`, indexed by their row numbers, without unscored pairs.

    Raises
    ------
    PredictionError
        `scores` has a pair more than once.

    Examples
    --------
    >>> scores = pd.DataFrame({"cell_id": ["1", "1", "2"], "gene": ["A", "B", "A"], "p": [1, 2, 3]})
    >>> pairs = pd.DataFrame({"cell_id": ["2", "2", "1"], "gene": ["A", "B", "A"]})
    >>> counted(scores, pairs)["p"].to_dict()
    {0: 3, 2: 1}
    """
    table = pa.Table.from_pandas(scores[["cell_id", "gene"]], preserve_index=False)
    position = pair_positions(table, pairs)
    kept, position = scores[position >= 0], position[position >= 0]
    order = np.argsort(position, kind="stable")
    repeats = kept.iloc[order[1:][np.diff(position[order]) == 0]]
    if len(repeats):
        examples = _examples(repeats[:_EXAMPLES][["cell_id", "gene"]], len(repeats))
        problem = f"rows of pairs given more than once: {examples}; keep one row per pair"
        raise PredictionError("scores", [problem])
    return kept.iloc[order].set_index(position[order])


def _origin_problems(origin: Origin, expected: Mapping[str, str]) -> list[str]:
    problems = []
    if not 0 <= origin.seed <= _LARGEST_SEED or not re.fullmatch(_METHOD, origin.method):
        problems.append(
            f"the metadata says method = {origin.method!r}, seed = {origin.seed}; expected a name "
            "of letters, digits and _ . - and a seed of 0 to 2**53"
        )
    problems += [
        f"the metadata says {name} = {getattr(origin, name)!r}, expected {value!r}; score the "
        "pairs of that dataset, version and split"
        for name, value in expected.items()
        if getattr(origin, name) != value
    ]
    if origin.protocol not in get_args(Protocol):
        allowed = ", ".join(get_args(Protocol))
        problems.append(f"protocol = {origin.protocol!r}; allowed: {allowed}")
    else:
        problems += training_problems(origin)
    return problems


def training_problems(origin: Origin) -> list[str]:
    """Say where the protocol and the training datasets do not fit each other."""
    named = origin.trained_on
    shown = None if named is None else list(named)
    if named is not None and list(named) != sorted(set(named)):
        return [f"trained_on = {shown}; sort the names, each once: {sorted(set(named))}"]
    own = f"{origin.dataset}@{origin.version}"
    others = [one for one in named or () if one != own]
    fits = {
        "transfer": bool(others),
        "simulation": bool(others) and own not in (named or ()),
        "fit": named is None or (bool(others) and own in named),
        "cv-cell": named is None or own not in named,
    }.get(origin.protocol, named is None)
    if fits:
        return []
    problem = (
        f"protocol = {origin.protocol!r} with trained_on = {shown}; transfer and simulation name "
        f"their training datasets, simulation without {own}; fit names {own} with others or none "
        "at all; cv-cell names what stands beside the folds; untrained names none"
    )
    return [problem]


def _pair_problems(ids: pa.Table, position: NDArray[np.int64], pairs: pd.DataFrame) -> list[str]:
    problems = []
    seen = np.bincount(position[position >= 0], minlength=len(pairs))
    missing = np.flatnonzero(seen == 0)
    if len(missing):
        examples = _examples(pairs.iloc[missing[:_EXAMPLES]][["cell_id", "gene"]], len(missing))
        problems.append(
            f"{_count(missing, 'pair is', 'pairs are')} missing: {examples}; score every pair of "
            "dataset.pairs(split)"
        )
    twice = np.flatnonzero(_repeats(position)) if (seen > 1).any() else np.empty(0, np.int64)
    for rows, what, remedy in (
        (np.flatnonzero(position < 0), "not of this split", "keep those of dataset.pairs(split)"),
        (twice, "given more than once", "keep one row per pair"),
    ):
        if len(rows):
            named = _named(ids, rows[:_EXAMPLES])
            examples = _examples(named[["cell_id", "gene"]], len(rows))
            many = _count(rows, "row is", "rows are")
            problems.append(f"{many} of pairs {what}: {examples}; {remedy}")
    return problems


def _repeats(position: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark rows whose pair is in an earlier row."""
    first = np.unique(position, return_index=True)[1]
    repeats = position >= 0
    repeats[first] = False
    return repeats


def _value_problems(ids: pa.Table, name: str, values: NDArray[Any]) -> list[str]:
    problems = []
    finite = np.isfinite(values)
    for rows, verb, what, remedy in (
        (~finite, ("that is", "that are"), "NaN, null or infinite", "every pair needs a score"),
        (
            finite & ((values < 0) | (values > 1)),
            ("", ""),
            "outside [0, 1]",
            "map them, for example with a logistic function; scores are never clipped",
        ),
    ):
        at = np.flatnonzero(rows)
        if len(at):
            named = _named(ids, at[:_EXAMPLES])
            examples = _examples(named.assign(value=values[at[:_EXAMPLES]]), len(at))
            many = _count(at, f"score {verb[0]}", f"scores {verb[1]}").rstrip()
            problems.append(f"column {name} has {many} {what}: {examples}; {remedy}")
    return problems


def _named(ids: pa.Table, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return the ids of some rows, if text or numbers, for messages."""
    shown = [
        name
        for name in ids.column_names
        if _is_text(kind := ids[name].type)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
    ]
    # Without pandas, which refuses dictionaries with repeated values.
    values = {name: ids[name].take(pa.array(rows)).to_pylist() for name in shown}
    return pd.DataFrame(values, index=range(len(rows)), dtype=object)


def _count(things: Sequence[Any] | NDArray[Any], one: str, many: str) -> str:
    return f"{len(things):,} {one if len(things) == 1 else many}"


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _type_name(kind: pa.DataType) -> str:
    return _NUMPY_NAMES.get(str(kind), str(kind))


def _examples(rows: pd.DataFrame, total: int) -> str:
    shown = ", ".join(
        f"({', '.join(map(str, row))})" for row in rows.itertuples(index=False, name=None)
    )
    more = total - len(rows)
    return f"{shown} and {more:,} more" if more else shown
