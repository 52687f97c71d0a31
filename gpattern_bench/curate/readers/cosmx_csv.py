"""The csv files of CosMx: molecules, streamed to disk by field of view, and positions."""

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

from gpattern_bench.curate.readers.spill import Spill
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import SourceError

__all__ = ["GLOBAL", "LOCAL", "PATTERNS", "TEXT", "CosmxMolecules", "read_positions"]

_log = logging.getLogger(__name__)

GLOBAL, LOCAL = ("x_global_px", "y_global_px"), ("x_local_px", "y_local_px")
PATTERNS = {"nuclear": "Nuclear", "membrane": "Membrane", "cytoplasmic": "Cytoplasm"}
TEXT = pa.dictionary(pa.int32(), pa.string())

_NO_PATTERN = ("0", "None", "")  # in CellComp
_TYPES = {
    "fov": pa.int32(),
    "cell_id": pa.int32(),
    **dict.fromkeys((*GLOBAL, *LOCAL), pa.float64()),
    "target": TEXT,
    "cellcomp": TEXT,
}
_STEADY = 2.0  # pixels by which a place may vary: newer exports round local coordinates
_BLOCK = 8 << 20  # bytes that are parsed at a time


class CosmxMolecules:
    """The csv of molecules, read in one pass; those in cells go to the spill.

    Parameters
    ----------
    file : binary file
    source : pathlib.Path
        What to call it; a name that ends in ``.gz`` is decompressed.
    spill : Spill
        Gets ``fov``, ``cell_id``, ``target``, ``cellcomp`` if there is one, and ``x``, ``y``:
        global ones, or local where the csv has no others.

    Attributes
    ----------
    source : pathlib.Path
    columns : set of str
        Those of the csv that are read, in lower case.
    outside : Counter
        FOV -> molecules outside every cell.
    nowhere : int
        Molecules without a FOV.

    Raises
    ------
    SourceError
        Broken rows, other types or columns; a SourceError of `file` passes.
    TableError
        The spill cannot be written.
    """

    def __init__(self, file: BinaryIO, source: Path, spill: Spill) -> None:
        self.source = source
        self.outside: Counter[str] = Counter()
        self.nowhere = 0
        self._compartments: set[str] = set()
        # FOV -> (3, 2): least and largest global - local x, global - local y, global + local y
        self._places: dict[str, NDArray[np.float64]] = {}
        self._downward = False
        self.columns, batches = _read_csv(file, source, "molecules")
        lacking = [name for name in ("fov", "cell_id", "target") if name not in self.columns]
        if lacking or not any(self.columns.issuperset(pair) for pair in (GLOBAL, LOCAL)):
            raise SourceError(
                f"{source} is not a csv of CosMx molecules: expected the columns fov, cell_ID, "
                f"target and {', '.join(GLOBAL)} or {', '.join(LOCAL)}; of the columns to read "
                f"it has only {', '.join(sorted(self.columns)) or 'none'}"
            )
        for batch in batches:
            self._take(batch, spill)

    def place(self, fov: str, height: int) -> tuple[float, float] | None:
        """What to add to local x and y, y counted upwards in an image of so many rows."""
        if fov not in self._places:
            return None
        x, up, down = self._places[fov].mean(axis=1).tolist()
        return (x, down - height) if self._downward else (x, up)

    def settle(self, positions: Mapping[str, tuple[float, float]]) -> None:
        """Infer the direction of local y from all rows; warn of oddities."""
        odd = sorted(self._compartments - {*PATTERNS.values(), *_NO_PATTERN})
        if odd:
            _log.warning("%s: CellComp has %s, taken as none of %s", self.source, odd, [*PATTERNS])
        if not self._places:
            return
        spans = np.array([np.ptp(place, axis=1) for place in self._places.values()])
        steady = spans <= _STEADY
        self._downward = bool(not steady[:, 1].all() and steady[:, 2].all())
        wrong = ~(steady[:, 0] & steady[:, 2 if self._downward else 1])
        if wrong.any():
            fov = list(self._places)[int(np.argmax(wrong))]
            x, y, _ = spans[wrong][0]
            raise SourceError(
                f"{self.source}: local and global coordinates of FOV {fov} do not go together: "
                f"over its molecules, their differences in x and y vary by {x:.6g} and {y:.6g} px, "
                f"expected at most {_STEADY:g}"
            )
        for fov in sorted(self._places.keys() & positions.keys()):
            place = self._places[fov].mean(axis=1)[:2]
            if not self._downward and np.abs(place - positions[fov]).max() > _STEADY:
                _log.warning(
                    "%s: FOV %s lies at %s by its molecules, but is listed at %s; taken is the "
                    "former", self.source, fov, place.tolist(), positions[fov],
                )  # fmt: skip

    def _take(self, rows: pa.Table, spill: Spill) -> None:
        self.nowhere += rows["fov"].null_count
        rows = rows.filter(pc.is_valid(rows["fov"]))
        if self.columns.issuperset((*GLOBAL, *LOCAL)):
            self._note_places(rows)
        in_cell = pc.greater(pc.fill_null(rows["cell_id"], 0), 0)
        outside = rows["fov"].filter(pc.invert(in_cell)).to_numpy()
        for fov, count in zip(*np.unique(outside, return_counts=True), strict=True):
            self.outside[str(fov)] += int(count)
        rows = rows.filter(in_cell)
        xy = GLOBAL if self.columns.issuperset(GLOBAL) else LOCAL
        fov = rows["fov"].combine_chunks().dictionary_encode()
        columns: dict[str, Any] = {
            "fov": pa.DictionaryArray.from_arrays(fov.indices, fov.dictionary.cast(pa.string())),
            "cell_id": rows["cell_id"],
            "x": rows[xy[0]],
            "y": rows[xy[1]],
            **{name: rows[name] for name in ("target", "cellcomp") if name in self.columns},
        }
        if "cellcomp" in columns:
            self._compartments.update(pc.unique(columns["cellcomp"]).to_pylist())
        spill.append(pa.table(columns))

    def _note_places(self, rows: pa.Table) -> None:
        (gx, gy), (lx, ly) = ([rows[name].to_numpy() for name in pair] for pair in (GLOBAL, LOCAL))
        with np.errstate(invalid="ignore"):
            seen = np.stack([gx - lx, gy - ly, gy + ly])
        fovs = rows["fov"].to_numpy()
        finite = np.isfinite(seen).all(axis=0)
        for fov in np.unique(fovs[finite]):
            here = seen[:, finite & (fovs == fov)]
            low, high = here.min(axis=1), here.max(axis=1)
            if str(fov) in self._places:
                low = np.minimum(low, self._places[str(fov)][:, 0])
                high = np.maximum(high, self._places[str(fov)][:, 1])
            self._places[str(fov)] = np.stack([low, high], axis=1)


def _read_csv(file: BinaryIO, source: Path, what: str) -> tuple[set[str], Iterator[pa.Table]]:
    """Names of the columns that are read, lower case, and blocks of rows of them."""
    if source.suffix.lower() == ".gz":
        file = cast("BinaryIO", gzip.GzipFile(fileobj=file))
    with reading(source, f"a csv of {what}"):
        header = file.readline(_BLOCK).decode("utf-8-sig")
        names = [name.strip().lower() for name in next(csv.reader([header]), [])]
    columns = [name for name in names if name in _TYPES]
    if len(set(columns)) < len(columns):
        raise SourceError(f"{source} has a column twice; its first line is {header[:200]!r}")
    # What is not read may lack a name, or share it.
    names = [name if name in _TYPES else f"#{i}" for i, name in enumerate(names)]
    return set(columns), _batches(file, source, what, names, columns)


def _batches(
    file: BinaryIO, source: Path, what: str, names: list[str], columns: list[str]
) -> Iterator[pa.Table]:
    with reading(source, f"a csv of {what} (rows counted below its header)"):
        reader = pa.csv.open_csv(
            file,
            # Of several threads, none knows the number of a broken row.
            pa.csv.ReadOptions(column_names=names, block_size=_BLOCK, use_threads=False),
            convert_options=pa.csv.ConvertOptions(
                include_columns=columns, column_types={name: _TYPES[name] for name in columns}
            ),
        )
    while True:
        with reading(source, f"a csv of {what} (rows counted below its header)"):
            batch = next(reader, None)
        if batch is None:
            return
        for name in columns:
            if _TYPES[name] is TEXT and any(
                "\n" in text for text in batch[name].dictionary.to_pylist()
            ):
                raise SourceError(f"{source}: a quote in the column {name} does not end in its row")
        yield pa.table(batch)


def read_positions(file: BinaryIO, source: Path) -> dict[str, tuple[float, float]]:
    """FOV -> x and y of its place; none where they are not in pixels."""
    columns, batches = _read_csv(file, source, "positions of fields of view")
    if not columns.issuperset(("fov", *GLOBAL)):
        _log.warning("%s lacks fov, %s: it is not used", source, ", ".join(GLOBAL))
        return {}
    rows = pa.concat_tables(batches).to_pandas().dropna()
    if rows["fov"].duplicated().any():
        raise SourceError(f"{source} has a FOV more than once; curate one slide at a time")
    return {
        str(int(fov)): (float(x), float(y))
        for fov, x, y in zip(*(rows[name] for name in ("fov", *GLOBAL)), strict=True)
    }
