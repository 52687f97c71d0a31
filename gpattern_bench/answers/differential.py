"""Differential localisation: in which group of cells a gene shows a pattern more often.

What is compared is the calibrated probability of a pattern in the cells where it was called or not
called, at equal numbers of molecules and equal cell sizes. The sample (donor) is the unit. Cells of
one donor are alike, so a test over cells finds what differs between donors, not between conditions
(Squair et al. 2021, doi:10.1038/s41467-021-25960-2).

For each gene and pattern:

1. *Adjust.* Within samples, the probability is regressed on the logarithm of the pair's molecules,
   its square, and the logarithm of the cell's area; the slopes are common to all samples. A
   sample's value is its mean probability at the covariates of the average sample.
2. *Compare* the samples' values: their difference between groups, or within the donors that both
   groups have (paired).
3. *Moderate.* With few samples, a gene's own variance is hardly known. Its ratio to what the cells
   within samples lead one to expect is drawn towards that of the other genes (Smyth 2004,
   doi:10.2202/1544-6115.1027), which adds degrees of freedom where genes agree.
4. *Slopes are estimates.* Their error, times the difference in covariates, is part of the standard
   error; degrees of freedom are combined as Satterthwaite does.

False discovery rates are Benjamini and Hochberg's (1995), over the genes of a pattern and group.

Only sums over the cells of a sample are kept, so memory does not grow with the number of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from gpattern_bench.answers.answer import ANSWER, BEGUN, CELLS, PAIRS, read_answer
from gpattern_bench.answers.contrasts import (
    Contrast,
    adjust,
    contrast_of,
    moderated,
    variance_over_fovs,
)
from gpattern_bench.answers.groups import MIN_SAMPLES, Comparison, Groups, read_groups
from gpattern_bench.answers.sums import TYPICAL, Sums, Units, read_sums
from gpattern_bench.base.files import write_text
from gpattern_bench.base.validation import shorten
from gpattern_bench.curate.release import reading
from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.calls import cell_text, text_of_cell

__all__ = [
    "COLUMNS",
    "DIFFERENTIAL",
    "Differential",
    "differential",
    "read_differential",
    "write_differential",
]

DIFFERENTIAL = "differential.csv"
MIN_PAIRS = 20
"""Fewest cells of a sample with the gene for the sample to count."""
COLUMNS = (
    "gene", "pattern", "reference", "group", "unit", "samples_reference", "samples_group",
    "cells_reference", "cells_group", "probability_reference", "probability_group", "difference",
    "difference_low", "difference_high", "odds_ratio", "odds_ratio_low", "odds_ratio_high", "p",
    "fdr", "note",
)  # fmt: skip
"""Of the table; :func:`differential` says what they are."""

_LEAST_ODDS = 1e-4  # probabilities are kept this far from 0 and 1 for odds

_BEYOND = "adjusted beyond 0 or 1: the samples' molecules or cell sizes are too far apart"

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Differential:
    """What differs between groups of cells.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per gene, pattern and group but the reference; see :func:`differential`.
    notes : tuple of str
        What was compared and how, and what was left out: a sentence each.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def differential(
    answer: str | Path,
    groups: str | Path | pd.DataFrame,
    by: str,
    sample: str | None = None,
    *,
    reference: str | None = None,
    min_pairs: int = MIN_PAIRS,
) -> Differential:
    """Compare how often genes show patterns between groups of cells.

    Parameters
    ----------
    answer : str or pathlib.Path
        A folder that `call` wrote.
    groups : str, pathlib.Path or pandas.DataFrame
        Group and sample of each cell: a csv, tsv or Parquet file, or a table, with ``cell_id`` and
        the columns `by` and `sample`.
    by, sample : str
        Columns of the groups and of the samples (donors, animals, cultures). The same sample in two
        groups means the same donor: groups are then compared within donors. Without `sample`,
        intervals are over fields of view and there is no p: they say how well these cells were
        measured, not whether other donors would show the same.
    reference : str, optional
        The group that the others are compared with; default: the first, sorted as text.
    min_pairs : int
        Fewest cells of a sample with the gene for the sample to count.

    Returns
    -------
    Differential
        Its table has the columns:

        gene, pattern, reference, group
            What is compared; the difference is `group` minus `reference`.
        unit
            What intervals are over: ``samples``, ``paired samples`` or ``fields of view``.
        samples_reference, samples_group, cells_reference, cells_group
            Samples that count, and their cells with the gene, not called pairs aside.
        probability_reference, probability_group
            Means over samples of the calibrated probability, at the covariates of the average
            sample.
        difference, odds_ratio
            With 95 % intervals, ``_low`` and ``_high``. Those of the odds ratio include 1 exactly
            if those of the difference include 0.
        p, fdr
            Two-sided; fdr over the genes of this pattern and group. NaN with fewer than three
            samples in a group.
        note
            Why something is missing; or that the adjusted probability of a group lies beyond 0 or
            1, where it is cut: the adjustment reaches too far.

        Sorted by group, p, and the size of the difference.

    Raises
    ------
    EvaluationError
        `answer` is no such folder, a column or group is missing, or the groups' cells are not those
        of the answer (:func:`~gpattern_bench.answers.groups.read_groups`).
    GPatternBenchError
        The answer is not finished, or its pairs or cells changed since.
    """
    if min_pairs < 2:
        raise EvaluationError(f"expected 2 or more cells of a gene per sample, got {min_pairs}")
    cells = _read_cells(Path(answer))
    grouped = read_groups(groups, pd.Index(cells["cell_id"], dtype=object), by, sample)
    if reference is not None and reference not in grouped.names:
        raise EvaluationError(
            f"no group {shorten(reference)} (--reference) in column {by} (--by); there are "
            f"{', '.join(map(shorten, grouped.names))}"
        )
    _need_cells(grouped, min_pairs)
    base = 0 if reference is None else grouped.names.index(reference)
    compared = [Comparison.of(grouped, base, k) for k in range(len(grouped.names)) if k != base]
    units = Units.of(grouped, cells["fov"], by_fov=any(one.over_fovs for one in compared))
    log_area, notes = _log_areas(cells, grouped)
    sums = read_sums(Path(answer) / PAIRS, cells["cell_id"], log_area, units)
    table = _table(sums, units, compared, min_pairs)
    notes = [
        *(one.note(named=sample is not None) for one in compared),
        *_about_samples(cells["fov"], grouped, compared),
        *_about(table, min_pairs),
        *(f"left out: {n:,} {reason}" for reason, n in grouped.left_out.items()),
        *notes,
    ]
    return Differential(table, tuple(notes))


def write_differential(found: Differential, path: Path) -> Path:
    """Write the table as csv; a gene that begins like a formula gets a ``'`` in front."""
    table = found.table.assign(
        **{name: found.table[name].map(cell_text) for name in _TEXTS if name != "note"}
    )
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    return path


_TEXTS = ("gene", "pattern", "reference", "group", "unit", "note")
_COUNTS = ("samples_reference", "samples_group", "cells_reference", "cells_group")


def read_differential(path: str | Path) -> pd.DataFrame:
    """Read a table of :func:`write_differential`.

    Raises
    ------
    EvaluationError
        The file is not one.
    """
    path = Path(path)
    kinds: dict[str, Any] = dict.fromkeys(COLUMNS, np.float64)
    kinds |= dict.fromkeys(_TEXTS, str) | dict.fromkeys(_COUNTS, np.int64)
    numbers = [name for name in COLUMNS if name not in _TEXTS]
    try:
        # A gene may be called NA.
        table = pd.read_csv(
            path, dtype=kinds, keep_default_na=False, na_values=dict.fromkeys(numbers, "")
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} cannot be read as a table of `differential`: {error}"
        ) from error
    if tuple(table.columns) != COLUMNS:
        raise EvaluationError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, got "
            f"{shorten(', '.join(map(str, table.columns)), 300)}; make it with `differential`"
        )
    for name in _TEXTS[:-1]:
        table[name] = table[name].map(text_of_cell)
    return table


def _read_cells(answer: Path) -> pd.DataFrame:
    path = answer / CELLS
    if any((answer / name).exists() for name in (ANSWER, BEGUN)):
        # While it is made again, pairs and cells may be of two models.
        read_answer(answer, (PAIRS, CELLS))
    if not path.is_file() or not (answer / PAIRS).is_file():
        raise EvaluationError(
            f"no answer in {answer}: expected a folder that `call` wrote, with pairs.parquet and "
            "cells.parquet"
        )
    with reading(path, "the cells of an answer"):
        table = pq.read_table(path, columns=["cell_id", "fov", "area_um2", "in_scope"])
        ids = [table[name].cast(pa.string()).to_pylist() for name in ("cell_id", "fov")]
        cells = pd.DataFrame(
            {
                "cell_id": np.array(ids[0], object),
                "fov": np.array(ids[1], object),
                "area_um2": table["area_um2"].to_numpy().astype(np.float64),
                "in_scope": table["in_scope"].to_numpy().astype(bool),
            }
        )
    if not cells["cell_id"].is_unique or cells[["cell_id", "fov"]].isna().any(axis=None):
        raise EvaluationError(
            f"{path}: expected each cell once, with its field of view; make the answer again"
        )
    return cells


def _need_cells(groups: Groups, min_pairs: int) -> None:
    inside = groups.group >= 0
    strata = groups.group[inside] * len(groups.samples) + groups.sample[inside]
    most = np.unique(strata, return_counts=True)[1].max()
    if most < min_pairs:
        raise EvaluationError(
            f"no sample has {min_pairs} cells of a group (--min-pairs), the largest has {most}: "
            "nothing can be compared; a sample (--sample) is a donor, an animal or a culture"
        )


def _about_samples(
    fov: pd.Series[Any], groups: Groups, compared: Sequence[Comparison]
) -> list[str]:
    """Say that samples may be parts of donors: p would be too small."""
    inside = groups.group >= 0
    fovs = fov[inside].groupby(groups.sample[inside]).nunique()
    if all(one.over_fovs for one in compared) or fovs.max() > 1:
        return []
    text = (
        "each sample is one field of view or a part of one: if some are of the same donor, name "
        "the donor instead (--sample); otherwise p is too small and intervals are too narrow"
    )
    return [text]


def _log_areas(cells: pd.DataFrame, groups: Groups) -> tuple[_Floats, list[str]]:
    """Return the logarithm of each cell's area, NaN = unknown, and notes on cells compared."""
    area = cells["area_um2"].to_numpy(np.float64)
    known = np.isfinite(area) & (area > 0)
    inside = groups.group >= 0
    notes = []
    if not known[inside].any():
        notes.append("no cell has an area: cell size is not accounted for")
        log_area = np.zeros(len(area))
    else:
        log_area = np.log(area, where=known, out=np.full(len(area), np.nan)) - TYPICAL[1]
        if lacking := int((inside & ~known).sum()):
            notes.append(f"left out: {lacking:,} cells without an area")
    in_scope = cells["in_scope"].to_numpy(bool)
    if not in_scope[inside].all():
        shares = [
            f"{1 - in_scope[groups.group == k].mean():.0%} of {shorten(name)}"
            for k, name in enumerate(groups.names)
        ]
        notes.append(
            f"cells unlike those that the model has seen are compared too: {', '.join(shares)}; if "
            "the shares differ, so may the calls, without any biology"
        )
    return log_area, notes


def _table(
    sums: Sums, units: Units, compared: Sequence[Comparison], min_pairs: int
) -> pd.DataFrame:
    parts = []
    for k, pattern in enumerate(sums.patterns):
        found = adjust(sums, k, units, min_pairs)
        for rank, one in enumerate(compared):
            contrast = contrast_of(found, one)
            if one.over_fovs:
                variance, freedom = variance_over_fovs(found, contrast, one, sums, k, units)
                variance = variance + contrast.slope
            else:
                variance, freedom = moderated(contrast)
            part = _rows(contrast, variance, freedom, one, min_pairs)
            parts.append(part.assign(gene=sums.genes, pattern=pattern, rank=rank))
    table = pd.concat(parts, ignore_index=True)
    table["size"] = -table["difference"].abs()
    table = table.sort_values(["rank", "p", "size", "gene", "pattern"], kind="stable")
    return table[list(COLUMNS)].reset_index(drop=True)


def _rows(
    at: Contrast, variance: _Floats, freedom: _Floats, one: Comparison, min_pairs: int
) -> pd.DataFrame:
    """One row per gene, without its name."""
    difference = at.group - at.reference
    flat = ~(variance > 1e-18)  # nothing varies, or nothing is known
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(flat, np.nan, np.sqrt(variance))
        half = student.ppf(0.975, freedom) * error
        testable = np.minimum(at.n_reference, at.n_group) >= MIN_SAMPLES
        p = np.where(testable, 2 * student.sf(np.abs(difference / error), freedom), np.nan)
        if one.over_fovs:
            p = np.full(len(p), np.nan)
    first, other = (
        np.clip(part, _LEAST_ODDS, 1 - _LEAST_ODDS) for part in (at.reference, at.group)
    )
    log_odds = np.log(other / (1 - other)) - np.log(first / (1 - first))
    # The mean slope of the log odds between the two probabilities: intervals agree on what is 0.
    middle = (first + other) / 2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.abs(difference) > 1e-6
        steep = np.where(apart, log_odds / difference, 1 / (middle * (1 - middle)))
        ratios = [np.exp(log_odds + sign * half * steep) for sign in (-1, 1)]
    with np.errstate(invalid="ignore"):
        beyond = np.abs(np.stack([at.reference, at.group]) - 0.5).max(0) > 0.5
    notes = [
        "; ".join(filter(None, (_row_note(one, int(a), int(b), bool(still), min_pairs), far)))
        for a, b, still, far in zip(
            at.n_reference, at.n_group, np.isnan(half), np.where(beyond, _BEYOND, ""), strict=True
        )
    ]
    return pd.DataFrame(
        {
            "reference": one.reference,
            "group": one.group,
            "unit": one.unit,
            "samples_reference": at.n_reference.astype(np.int64),
            "samples_group": at.n_group.astype(np.int64),
            "cells_reference": at.cells_reference.astype(np.int64),
            "cells_group": at.cells_group.astype(np.int64),
            "probability_reference": np.clip(at.reference, 0, 1),
            "probability_group": np.clip(at.group, 0, 1),
            "difference": difference,
            "difference_low": np.maximum(difference - half, -1),
            "difference_high": np.minimum(difference + half, 1),
            "odds_ratio": np.exp(log_odds),
            "odds_ratio_low": ratios[0],
            "odds_ratio_high": ratios[1],
            "p": p,
            "fdr": _fdr(p),
            "note": notes,
        }
    )


def _row_note(one: Comparison, reference: int, group: int, still: bool, min_pairs: int) -> str:
    """Say why a row lacks something; "" if it does not."""
    n = {one.reference: reference, one.group: group}
    least = min(n, key=lambda name: n[name])
    has = f"{n[least]} of the samples of {shorten(least)}"
    if one.paired:
        has = f"{reference} of the samples in both groups"
    if n[least] == 0:
        return f"left out: {has} have {min_pairs} called cells with the gene"
    if not one.over_fovs and n[least] < MIN_SAMPLES:
        missing = "no interval and no p" if n[least] < 2 else "no p"
        return f"{missing}: {has} have {min_pairs} called cells with the gene"
    if still:
        return "no interval: a sample has one field of view, or the probability does not vary"
    return "no p: too few samples" if one.over_fovs else ""


def _fdr(p: _Floats) -> _Floats:
    found = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        found[known] = false_discovery_control(p[known])
    return found


def _about(table: pd.DataFrame, min_pairs: int) -> list[str]:
    """Say how many rows lack an effect or a p for want of cells."""
    left_out = table["difference"].isna()
    few = ~left_out & table["note"].str.startswith(("no interval and no p", "no p:"))
    few &= table["unit"] != "fields of view"
    why = f"too few samples have {min_pairs} called cells with the gene (column note)"
    notes = []
    if n := int(left_out.sum()):
        notes.append(f"left out: {n:,} of {len(table):,} rows, {why}")
    if n := int(few.sum()):
        notes.append(f"{n:,} of {len(table):,} rows have no p: {why}")
    return notes
