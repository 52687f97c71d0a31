"""Read the csv files of CosMx: molecules and vertices, streamed to disk by field of view."""

from __future__ import annotations

import csv
import gzip
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from gpattern_bench.curate.quality import COLUMNS as QUALITY
from gpattern_bench.curate.quality import NUMBERS, TEXTS
from gpattern_bench.curate.readers.columns import DELIMITERS
from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = [
    "GLOBAL",
    "LOCAL",
    "PATTERNS",
    "TEXT",
    "CosmxMolecules",
    "read_polygons",
    "read_positions",
]

_log = logging.getLogger(__name__)

GLOBAL, LOCAL = ("x_global_px", "y_global_px"), ("x_local_px", "y_local_px")
PATTERNS = {"nuclear": "Nuclear", "membrane": "Membrane", "cytoplasmic": "Cytoplasm"}
TEXT = pa.dictionary(pa.int32(), pa.string())

_IDS = ("fov", "cell_id")
_NO_PATTERN = ("0", "None", "")  # in CellComp
_TYPES = {
    **dict.fromkeys(_IDS, pa.float64()),  # pandas writes 1.0 where some are missing
    **dict.fromkeys((*GLOBAL, *LOCAL), pa.float64()),
    "target": TEXT,
    "cellcomp": TEXT,
    **dict.fromkeys(NUMBERS, pa.float64()),
    **dict.fromkeys(TEXTS, TEXT),
}
_ALIASES = {"cellid": "cell_id"}  # in polygons
_TOLERANCE = 2.0  # pixels: newer exports round local coordinates
_BLOCK = 8 << 20  # bytes parsed at a time


class CosmxMolecules:
    """The csv of molecules, read in one pass; molecules in cells go to the spill.

    Parameters
    ----------
    file : binary file
    source : pathlib.Path
        Its name in messages; decompressed if it ends in ``.gz``.
    spill : Spill
        Gets ``fov``, ``cell_id``, ``target``, ``cellcomp`` and the columns of quality if present,
        and ``x``, ``y``: global, or local if the csv has no global coordinates.

    Attributes
    ----------
    source : pathlib.Path
    columns : set of str
        Columns read, in lower case.
    outside : Counter
        FOV -> molecules outside every cell.
    without_fov : int
        Molecules without a FOV.

    Raises
    ------
    SourceError
        Broken rows, or other columns or types.
    TableError
        The spill cannot be written.
    """

    def __init__(self, file: BinaryIO, source: Path, spill: Spill) -> None:
        self.source = source
        self.outside: Counter[str] = Counter()
        self.without_fov = 0
        self._compartments: set[str] = set()
        # FOV -> (3, 2): least and largest global - local x, global - local y, global + local y
        self._offsets: dict[str, NDArray[np.float64]] = {}
        self._downward = False
        self.columns, batches = _read_csv(file, source, "molecules")
        lacking = [name for name in ("fov", "cell_id", "target") if name not in self.columns]
        if lacking or not any(self.columns.issuperset(pair) for pair in (GLOBAL, LOCAL)):
            raise SourceError(
                f"{source} is not a csv of CosMx molecules: expected the columns fov, cell_ID, "
                f"target and {', '.join(GLOBAL)} or {', '.join(LOCAL)}; of these columns it has "
                f"only {', '.join(sorted(self.columns)) or 'none'}"
            )
        for batch in batches:
            self._add(batch, spill)

    def position(self, fov: str, height: int) -> tuple[float, float] | None:
        """Return global - local x and y, y upwards in an image of `height` rows; None: unknown."""
        if fov not in self._offsets:
            return None
        x, up, down = self._offsets[fov].mean(axis=1).tolist()
        return (x, down - height) if self._downward else (x, up)

    def to_global(self, fov: str, local: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Map local coordinates (n, 2) of a FOV to global ones; None: unknown."""
        if fov not in self._offsets:
            return None
        x, up, down = self._offsets[fov].mean(axis=1).tolist()
        turn, place = ([1, -1], [x, down]) if self._downward else ([1, 1], [x, up])
        return np.asarray(local * turn + place)

    def infer_direction(self, positions: Mapping[str, tuple[float, float]]) -> None:
        """Infer the direction of local y from all rows; warn if `positions` differ."""
        odd = sorted(self._compartments - {*PATTERNS.values(), *_NO_PATTERN})
        if odd:
            _log.warning("%s: CellComp has %s, read as none of %s", self.source, odd, [*PATTERNS])
        if not self._offsets:
            return
        spans = np.array([np.ptp(offsets, axis=1) for offsets in self._offsets.values()])
        steady = spans <= _TOLERANCE
        self._downward = bool(not steady[:, 1].all() and steady[:, 2].all())
        wrong = ~(steady[:, 0] & steady[:, 2 if self._downward else 1])
        if wrong.any():
            fov = list(self._offsets)[int(np.argmax(wrong))]
            x, y, _ = spans[wrong][0]
            raise SourceError(
                f"{self.source}: local and global coordinates of FOV {fov} do not match: their "
                f"differences in x and y vary over its molecules by {x:.6g} and {y:.6g} px, "
                f"expected at most {_TOLERANCE:g}; export the file again"
            )
        for fov in sorted(self._offsets.keys() & positions.keys()):
            found = self._offsets[fov].mean(axis=1)[:2]
            if not self._downward and np.abs(found - positions[fov]).max() > _TOLERANCE:
                _log.warning(
                    "%s: FOV %s lies at %s by its molecules, but at %s by the positions file; the "
                    "molecules count", self.source, fov, found.tolist(), positions[fov],
                )  # fmt: skip

    def _add(self, rows: pa.Table, spill: Spill) -> None:
        self.without_fov += rows["fov"].null_count
        rows = rows.filter(pc.is_valid(rows["fov"]))
        if self.columns.issuperset((*GLOBAL, *LOCAL)):
            self._update_offsets(rows)
        in_cell = pc.greater(pc.fill_null(rows["cell_id"], 0), 0)
        outside = rows["fov"].filter(pc.invert(in_cell)).to_numpy()
        for fov, count in zip(*np.unique(outside, return_counts=True), strict=True):
            self.outside[str(fov)] += int(count)
        rows = rows.filter(in_cell)
        xy = GLOBAL if self.columns.issuperset(GLOBAL) else LOCAL
        columns: dict[str, Any] = {
            "fov": _as_text(rows["fov"]),
            "cell_id": rows["cell_id"],
            "x": rows[xy[0]],
            "y": rows[xy[1]],
            **{
                name: rows[name]
                for name in ("target", "cellcomp", *QUALITY)
                if name in self.columns
            },
        }
        if "cellcomp" in columns:
            self._compartments.update(pc.unique(columns["cellcomp"]).to_pylist())
        spill.append(pa.table(columns))

    def _update_offsets(self, rows: pa.Table) -> None:
        (gx, gy), (lx, ly) = ([rows[name].to_numpy() for name in pair] for pair in (GLOBAL, LOCAL))
        with np.errstate(invalid="ignore"):
            offsets = np.stack([gx - lx, gy - ly, gy + ly])
        fovs = rows["fov"].to_numpy()
        finite = np.isfinite(offsets).all(axis=0)
        for fov in np.unique(fovs[finite]):
            here = offsets[:, finite & (fovs == fov)]
            if str(fov) in self._offsets:
                here = np.concatenate([here, self._offsets[str(fov)]], axis=1)
            self._offsets[str(fov)] = np.stack([here.min(axis=1), here.max(axis=1)], axis=1)


def _read_csv(file: BinaryIO, source: Path, what: str) -> tuple[set[str], Iterator[pa.Table]]:
    """Open a csv: the names of its known columns, in lower case, and blocks of their rows."""
    if source.suffix.lower() == ".gz":
        file = cast("BinaryIO", gzip.GzipFile(fileobj=file))
    with reading(source, f"a csv of {what}"):
        header = file.readline(_BLOCK).decode("utf-8-sig")
        split = {sign: next(csv.reader([header], delimiter=sign), []) for sign in DELIMITERS}
        split = {
            sign: [_ALIASES.get(name, name) for name in (each.strip().lower() for each in names)]
            for sign, names in split.items()
        }
        sign = max(split, key=lambda sign: len(set(split[sign]) & set(_TYPES)))
        names = split[sign]
    columns = [name for name in names if name in _TYPES]
    if len(set(columns)) < len(columns):
        raise SourceError(
            f"{source} has a column twice; its first line is {header[:200]!r}; keep one"
        )
    # Other columns may have no name, or the same.
    names = [name if name in _TYPES else f"#{i}" for i, name in enumerate(names)]
    return set(columns), _batches(file, source, what, names, columns, sign)


def _batches(
    file: BinaryIO, source: Path, what: str, names: list[str], columns: list[str], sign: str
) -> Iterator[pa.Table]:
    with reading(source, f"a csv of {what} (rows counted below its header)"):
        reader = pa.csv.open_csv(
            file,
            # One thread, to know the number of a broken row.
            pa.csv.ReadOptions(column_names=names, block_size=_BLOCK, use_threads=False),
            pa.csv.ParseOptions(delimiter=sign),
            pa.csv.ConvertOptions(
                include_columns=columns, column_types={name: _TYPES[name] for name in columns}
            ),
        )
    above = 0
    while True:
        with reading(source, f"a csv of {what} (rows counted below its header)"):
            batch = next(reader, None)
        if batch is None:
            return
        for name in columns:
            if _TYPES[name] is TEXT and any(
                "\n" in text for text in batch[name].dictionary.to_pylist()
            ):
                raise SourceError(
                    f"{source}: a quote in the column {name} does not end in its row; close it"
                )
        whole = {name: _whole(batch[name], source, name, above) for name in columns if name in _IDS}
        above += batch.num_rows
        yield pa.table({name: whole.get(name, batch[name]) for name in columns})


def _whole(column: pa.Array, source: Path, name: str, above: int) -> pa.Array:
    """Convert ids to int32; `above`: rows before these, for the message."""
    values = column.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):  # null is NaN
        odd = np.flatnonzero((np.abs(values) >= 1 << 31) | (values % 1 > 0))
    if len(odd):
        raise SourceError(
            f"{source}: Row #{above + odd[0] + 1}: expected a whole number in {name}, got "
            f"'{values[odd[0]]:.15g}'"
        )
    return column.cast(pa.int32())


def _as_text(fov: pa.ChunkedArray) -> pa.DictionaryArray:
    codes = fov.combine_chunks().dictionary_encode()
    return pa.DictionaryArray.from_arrays(codes.indices, codes.dictionary.cast(pa.string()))


def read_polygons(file: BinaryIO, source: Path, spill: Spill) -> set[str]:
    """Read the vertices of cells, in their order, into the spill; return the columns there.

    The spill gets ``fov``, ``cell_id`` and all of `GLOBAL` and `LOCAL` that the csv has.

    Raises
    ------
    SourceError
        Broken rows, or other columns or types.
    """
    columns, batches = _read_csv(file, source, "outlines")
    pairs = [pair for pair in (GLOBAL, LOCAL) if columns.issuperset(pair)]
    if not columns.issuperset(("fov", "cell_id")) or not pairs:
        raise SourceError(
            f"{source} is not a csv of CosMx outlines: expected the columns fov, cellID and "
            f"{', '.join(GLOBAL)} or {', '.join(LOCAL)}; of these columns it has only "
            f"{', '.join(sorted(columns)) or 'none'}"
        )
    kept = ["cell_id", *(name for pair in pairs for name in pair)]
    for rows in batches:
        rows = rows.filter(pc.greater(pc.fill_null(rows["cell_id"], 0), 0))
        rows = rows.filter(pc.is_valid(rows["fov"]))
        spill.append(rows.select(kept).append_column("fov", _as_text(rows["fov"])))
    return set(kept)


def read_positions(file: BinaryIO, source: Path) -> dict[str, tuple[float, float]]:
    """Read FOV -> x and y of its position; nothing if the file does not give pixels."""
    columns, batches = _read_csv(file, source, "positions of fields of view")
    if not columns.issuperset(("fov", *GLOBAL)):
        _log.warning("%s lacks fov or %s: it is not used", source, " or ".join(GLOBAL))
        return {}
    rows = pa.concat_tables(batches).to_pandas().dropna()
    if rows["fov"].duplicated().any():
        raise SourceError(f"{source} has a FOV more than once; curate one slide at a time")
    return {
        str(int(fov)): (float(x), float(y))
        for fov, x, y in zip(*(rows[name] for name in ("fov", *GLOBAL)), strict=True)
    }
