"""Sums over the called pairs of a gene in a sample: all that comparisons need of cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpattern_bench.answers.groups import Groups
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import EvaluationError
from gpattern_bench.tables.parquet import codes_into

__all__ = ["TYPICAL", "Sums", "Units", "read_sums"]

_BATCH = 1 << 20  # pairs
TYPICAL = (np.log(16.0), np.log(100.0))
"""Logarithms of molecules and of um2 that covariates are about: sums around zero lose no digits."""

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """What cells are summed over: strata (a sample in a group), or fields of view of these.

    Attributes
    ----------
    of_cell : numpy.ndarray
        (cells,) unit of each cell, -1 = none.
    stratum, cluster : numpy.ndarray
        (U,) stratum of each unit, and its field of view, the same in all groups.
    n_strata : int
    """

    of_cell: _Ints
    stratum: _Ints
    cluster: _Ints
    n_strata: int

    @classmethod
    def of(cls, groups: Groups, fov: pd.Series[Any], *, by_fov: bool) -> Units:
        """Number the units; without `by_fov`, each stratum is one."""
        n_strata = len(groups.names) * len(groups.samples)
        inside = groups.group >= 0
        stratum = groups.group * len(groups.samples) + groups.sample
        if not by_fov:
            every = np.arange(n_strata)
            return cls(np.where(inside, stratum, -1), every, every, n_strata)
        place, fovs = pd.factorize(fov)
        key = stratum * len(fovs) + place
        keys, unit = np.unique(key[inside], return_inverse=True)
        of_cell = np.full(len(fov), -1, np.int64)
        of_cell[inside] = unit
        sample = keys // len(fovs) % len(groups.samples)
        _, cluster = np.unique(sample * len(fovs) + keys % len(fovs), return_inverse=True)
        return cls(of_cell, keys // len(fovs), cluster, n_strata)


@dataclass(frozen=True)
class Sums:
    """Sums over the called pairs of each gene and unit.

    Attributes
    ----------
    genes, patterns : list of str
    n, p, pp : numpy.ndarray
        (patterns, genes, units) pairs, and sums of the probability and its square.
    x, xp, xx : numpy.ndarray
        Sums of the covariates (..., 3), times the probability (..., 3), and of their products
        (..., 3, 3).
    """

    genes: list[str]
    patterns: list[str]
    n: _Floats
    p: _Floats
    pp: _Floats
    x: _Floats
    xp: _Floats
    xx: _Floats


def read_sums(path: Path, cell_ids: pd.Series[Any], log_area: _Floats, units: Units) -> Sums:
    """Sum the called pairs of a file, in batches; memory grows with genes times units only.

    Parameters
    ----------
    path : pathlib.Path
        ``pairs.parquet`` of an answer.
    cell_ids : pandas.Series
        Of the answer's cells, each once.
    log_area : numpy.ndarray
        (cells,) logarithm of the area, minus the typical one; NaN = not to be used.
    units : Units

    Raises
    ------
    EvaluationError
        There is no pair, or one is of no cell or gene, has no molecules, or a probability outside
        0 to 1.
    SourceError
        The file cannot be read.
    """
    with reading(path, "the pairs of an answer"), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        patterns = [name for name in names if f"{name}_probability" in names]
        if not patterns:
            raise EvaluationError(
                f"{path}: expected columns PATTERN and PATTERN_probability, got "
                f"{', '.join(map(shorten, names))}; make the answer again"
            )
    genes = _gene_names(path)
    index, cells = pd.Index(genes, dtype=object), pd.Index(cell_ids, dtype=object)
    n_units = len(units.stratum)
    shape = (len(patterns), len(genes), n_units)
    sums = np.zeros((15, *shape))
    for batch in _batches(path, patterns):
        cell = codes_into(cells, batch["cell_id"])
        molecules = _numbers(path, batch, "n_molecules")
        if (cell < 0).any() or not ((molecules >= 1) & np.isfinite(molecules)).all():
            raise EvaluationError(
                f"{path}: a pair is of no cell of cells.parquet, or has no molecules; make the "
                "answer again"
            )
        unit = units.of_cell[cell]
        area = log_area[cell]
        kept = (unit >= 0) & np.isfinite(area)
        key = codes_into(index, batch["gene"]) * n_units + unit
        log_n = np.log(molecules) - TYPICAL[0]
        covariates = (log_n, log_n**2, area)
        for k, pattern in enumerate(patterns):
            used = kept & batch[pattern].is_valid().to_numpy()
            values = _numbers(path, batch, f"{pattern}_probability")[used]
            if not ((values >= 0) & (values <= 1)).all():
                raise EvaluationError(
                    f"{path}: column {pattern}_probability of a called pair is not in 0 to 1; make "
                    "the answer again"
                )
            one, two, three = (covariate[used] for covariate in covariates)
            weights = (
                None, values, values**2, one, two, three, one * values, two * values,
                three * values, one**2, one * two, one * three, two**2, two * three, three**2,
            )  # fmt: skip
            at, size = key[used], shape[1] * n_units
            for total, weight in zip(sums[:, k], weights, strict=True):
                total += np.bincount(at, weight, size).reshape(shape[1:])
    upper = sums[9:]
    xx = np.stack([upper[[0, 1, 2]], upper[[1, 3, 4]], upper[[2, 4, 5]]])
    return Sums(
        genes,
        patterns,
        n=sums[0],
        p=sums[1],
        pp=sums[2],
        x=np.moveaxis(sums[3:6], 0, -1),
        xp=np.moveaxis(sums[6:9], 0, -1),
        xx=np.moveaxis(xx, (0, 1), (-2, -1)),
    )


def _gene_names(path: Path) -> list[str]:
    found: set[str] = set()
    for batch in _batches(path, [], ["gene"]):
        for chunk in batch["gene"].chunks:
            found.update(chunk.unique().to_pylist())
    if not found or None in found:
        what = "has no pairs" if not found else "has pairs without a gene"
        raise EvaluationError(f"{path} {what}: nothing can be compared; make the answer again")
    return sorted(found)


def _numbers(path: Path, batch: pa.Table, name: str) -> _Floats:
    with reading(path, "the pairs of an answer"):
        return np.asarray(batch[name].to_numpy(), np.float64)


def _batches(
    path: Path, patterns: Sequence[str], others: Sequence[str] = ("cell_id", "gene", "n_molecules")
) -> Iterator[pa.Table]:
    columns = [*others, *patterns, *(f"{name}_probability" for name in patterns)]
    texts = [name for name in ("cell_id", "gene") if name in columns]
    with reading(path, "the pairs of an answer"), pq.ParquetFile(path, read_dictionary=texts) as f:
        for batch in f.iter_batches(_BATCH, columns=columns):
            yield pa.Table.from_batches([batch])
