"""The report of an answer: one HTML file that says which genes are where, and what to doubt."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binom, false_discovery_control

from gpattern_bench.answers.answer import PAIRS, REPORT, Answer, read_answer
from gpattern_bench.answers.calls import PROBABILITY
from gpattern_bench.answers.differential import COLUMNS, DIFFERENTIAL, read_differential
from gpattern_bench.answers.groups import read_groups
from gpattern_bench.answers.shuffled import MOLECULES, bin_of
from gpattern_bench.answers.sketches import Sketch, draw_cell, read_drawn
from gpattern_bench.base.files import write_text
from gpattern_bench.base.html import templates
from gpattern_bench.base.version import __version__
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError
from gpattern_bench.sources.controls import CONTROLS
from gpattern_bench.tables.parquet import codes_into

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["write_report"]

FDR = 0.05
"""False discovery rate, per pattern, of genes that are said to stand out."""
KNOWN = ("MALAT1", "NEAT1")
"""Genes whose RNA is known to stay in the nucleus."""
ROWS = 2000
"""Genes in the table of the report, at most: those called in most cells."""
_HEAT = 40  # genes of the heatmap, at most
_GENES = 3  # with example cells, per pattern
_CELLS = 2  # examples per gene
_SHOWN = 15  # differences between groups, at most
_PANELS = 4  # of these, with cells
_ENOUGH = 10  # molecules of an example, if some cell has as many


_Chosen = tuple[str, str, str, "pd.Series[Any]"]


@dataclass(frozen=True)
class Share:
    """How often a pattern is called for a gene, in its called cells.

    Attributes
    ----------
    share, low, high : float
        95 % interval, cells taken as independent.
    probability : float
        The mean.
    stands_out : bool
        Called more often than in shuffled cells.
    """

    share: float
    low: float
    high: float
    probability: float
    stands_out: bool


@dataclass(frozen=True)
class Gene:
    """A row of the table of genes; a pattern without calls has no share."""

    name: str
    cells: int
    called: int
    shares: Mapping[str, Share | None]
    is_control: bool

    @property
    def stands_out(self) -> list[str]:
        """The patterns in which it stands out."""
        return [name for name, of in self.shares.items() if of is not None and of.stands_out]

    def low(self, pattern: str) -> float:
        """Give the lower end of the interval of a share, by which genes are ranked."""
        of = self.shares[pattern]
        return -1.0 if of is None else of.low


@dataclass(frozen=True)
class Example:
    """A gene in one of its cells."""

    gene: str
    pattern: str
    cell_id: str
    molecules: int
    probability: float
    word: str
    sketch: Sketch


@dataclass(frozen=True)
class Pattern:
    """What is said of a pattern."""

    name: str
    called: int
    share: float
    wrong: float | None
    chance: Mapping[str, float] | None
    genes: list[Gene]
    """Those that stand out, the clearest first; without any, the first alone."""
    examples: list[list[Example]]
    """By gene."""

    @property
    def words(self) -> str:
        """The name for people."""
        return self.name.replace("_", " ")

    @property
    def is_chance(self) -> bool:
        """Tell whether all calls together are as frequent as in shuffled cells."""
        return self.chance is not None and not self.chance["excess_low"] > 0

    @property
    def out(self) -> list[Gene]:
        """The genes that stand out."""
        return [gene for gene in self.genes if self.name in gene.stands_out]


@dataclass(frozen=True)
class Difference:
    """A gene and pattern in two groups: a row of ``differential.csv``, and a cell of each group."""

    row: Mapping[str, Any]
    examples: list[Example]


def write_report(
    answer: Answer | str | Path,
    *,
    groups: str | Path | pd.DataFrame | None = None,
    by: str | None = None,
) -> Path:
    """Write ``report.html`` into the folder of an answer; `call` does so at its end.

    With a table ``differential.csv`` in the folder, it shows what differs most; the command
    `differential` writes both.

    The page is whole without scripts, which only sort, filter and switch the theme, and asks
    nothing of any network. All text is escaped. The same answer gives the same bytes.

    Parameters
    ----------
    answer : Answer, str or pathlib.Path
    groups, by : str, pathlib.Path or pandas.DataFrame, and str, optional
        As for :func:`.differential.differential`: cells of each group are drawn.

    Raises
    ------
    GPatternBenchError
        The folder holds no finished answer, its tables are gone, or groups cannot be read.
    """
    found = answer if isinstance(answer, Answer) else read_answer(answer)
    if (groups is None) != (by is None):
        raise GPatternBenchError("give groups and by together: the table, and its column of groups")
    of_cell: pd.Series[Any] | None = None
    if groups is not None and by is not None:
        cells = pd.Index(found.cells()["cell_id"], dtype=object)
        read = read_groups(groups, cells, by, None)
        names = np.array([*read.names, ""], object)  # -1: of no group
        of_cell = pd.Series(names[read.group], cells)
    path = found.folder / REPORT
    write_text(path, _page(found, of_cell))
    return path


def _page(answer: Answer, group_of: pd.Series[Any] | None) -> str:
    script = (files("gpattern_bench.answers") / "report.js").read_text("utf-8")
    dataset = answer.dataset
    genes = _genes(answer)
    tested = [gene for gene in genes if not gene.is_control]
    patterns = _patterns(answer, dataset, tested)
    out = [gene for gene in tested if gene.stands_out]
    path = answer.folder / DIFFERENTIAL
    compared = read_differential(path) if path.is_file() else pd.DataFrame(columns=[*COLUMNS])
    compared = compared.dropna(subset=["difference"])
    ranked = sorted(tested, key=lambda gene: (-gene.called, gene.name))
    return _template().render(
        answer=answer,
        record=answer.record,
        shuffled=answer.record.get("shuffled"),
        patterns=patterns,
        headline=_headline(out, tested, answer),
        genes=sorted(ranked[:ROWS], key=lambda gene: _place(gene, answer.patterns)),
        n_genes=len(tested),
        n_called=sum(gene.called > 0 for gene in tested),
        n_out=len(out),
        differences=_differences(answer, dataset, compared, group_of),
        tested=int(compared["p"].notna().sum()),
        different=int((compared["fdr"] < FDR).sum()),
        heat_genes=_heat(tested, patterns),
        known=_known(tested),
        controls=[gene for gene in genes if gene.is_control],
        pooled=_pooled([gene for gene in genes if gene.is_control], answer.patterns),
        dropped=dataset.manifest.dropped.get("molecules", {}).get("control target", 0),
        unit=answer.record["source"].get("curation", {}).get("unit_um"),
        names=KNOWN,
        fdr=FDR,
        package=__version__,
        script=script,
        script_sha256=b64encode(sha256(script.encode()).digest()).decode(),
    )


@cache
def _template() -> Template:
    environment = templates("gpattern_bench.answers", "gpattern_bench.board")
    environment.filters |= {
        "pct": _percent,
        "number": _number,
        "words": lambda name: name.replace("_", " "),
    }
    return environment.get_template("report.html.j2")


def _percent(value: float | None, digits: int = 0) -> str:
    if value is None or isnan(value):
        return "\N{EN DASH}"
    return f"{100 * value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _number(value: float, form: str) -> str:
    return "\N{EN DASH}" if isnan(value) else form % value


def _genes(answer: Answer) -> list[Gene]:
    """Read the table of genes; test each pattern."""
    table = answer.genes()
    is_control = table["gene"].map(re.compile(CONTROLS, re.IGNORECASE).match).notna().to_numpy()
    sizes = _sizes(answer, table["gene"])
    shares: list[list[Share | None]] = []
    for pattern in answer.patterns:
        names_of = [pattern, f"{pattern}_low", f"{pattern}_high", f"{pattern}{PROBABILITY}"]
        values = table[names_of].to_numpy(np.float64).tolist()
        out = _stand_out(table, pattern, is_control, sizes, answer).tolist()
        shares.append(
            [
                None if isnan(share) else Share(share, low, high, probability, stands)
                for (share, low, high, probability), stands in zip(values, out, strict=True)
            ]
        )
    return [
        Gene(name, int(cells), int(called), dict(zip(answer.patterns, of, strict=True)), bool(no))
        for name, cells, called, no, *of in zip(
            table["gene"], table["cells"], table["called"], is_control, *shares, strict=True
        )
    ]


def _sizes(answer: Answer, genes: pd.Series[str]) -> NDArray[np.float64]:
    """Count the called pairs (genes, bins) by molecules."""
    index = pd.Index(genes, dtype=object)
    found = np.zeros(len(index) * len(MOLECULES))
    columns = ["gene", "n_molecules", *answer.patterns]
    with pq.ParquetFile(answer.folder / PAIRS, read_dictionary=["gene"]) as file:
        for batch in file.iter_batches(1 << 20, columns=columns):
            called = np.any(
                [batch[name].is_valid().to_numpy(zero_copy_only=False) for name in answer.patterns],
                axis=0,
            )
            gene = codes_into(index, pa.chunked_array([batch["gene"]]))
            at = gene * len(MOLECULES) + bin_of(batch["n_molecules"].to_numpy())
            found += np.bincount(at[called & (gene >= 0)], minlength=len(found))
    return found.reshape(len(index), len(MOLECULES))


def _stand_out(
    table: pd.DataFrame,
    pattern: str,
    is_control: NDArray[np.bool_],
    sizes: NDArray[np.float64],
    answer: Answer,
) -> NDArray[np.bool_]:
    """Tell which genes are called more often than in shuffled cells.

    One-sided binomial tests against the share there of pairs of as many molecules, plus half the
    interval of the overall share, at a false discovery rate over the genes (Benjamini and
    Hochberg). `sizes` (genes, bins): pairs by molecules.
    """
    out = np.zeros(len(table), bool)
    shuffled = answer.record.get("shuffled")
    rows = np.flatnonzero((sizes.sum(axis=1) > 0) & table[pattern].notna() & ~is_control)
    if shuffled is None or not len(rows):
        return out
    of = shuffled["of_pattern"][pattern]
    if of["share"] is None:
        return out
    weights = sizes[rows] / sizes[rows].sum(axis=1, keepdims=True)
    chance = np.minimum(weights @ of["by_molecules"] + of["high"] - of["share"], 1)
    n = table["called"].to_numpy()[rows]
    called = np.rint(table[pattern].to_numpy()[rows] * n)
    out[rows] = false_discovery_control(binom.sf(called - 1, n, chance)) < FDR
    return out


def _place(gene: Gene, patterns: Sequence[str]) -> tuple[Any, ...]:
    """Order genes: those that stand out first, by their clearest pattern."""
    low = max((gene.low(pattern) for pattern in gene.stands_out), default=-1.0)
    other = max((gene.low(pattern) for pattern in patterns), default=-1.0)
    return not gene.stands_out, -low, -other, gene.name


def _patterns(answer: Answer, dataset: Dataset, genes: Sequence[Gene]) -> list[Pattern]:
    record = answer.record
    clearest: dict[str, list[Gene]] = {}
    for pattern in answer.patterns:
        ranked = sorted(
            (gene for gene in genes if gene.shares[pattern] is not None),
            key=lambda gene: (-gene.low(pattern), gene.name),
        )
        out = [gene for gene in ranked if pattern in gene.stands_out]
        clearest[pattern] = out or ranked[:1]
    wanted = {name: [gene.name for gene in of[:_GENES]] for name, of in clearest.items()}
    if "nuclear" in wanted:
        known = [gene.name for gene in _known(genes) if gene.called]
        wanted["nuclear"] += [name for name in known if name not in wanted["nuclear"]]
    examples = _examples(answer, dataset, wanted)
    counts, shuffled = record["counts"], record.get("shuffled")
    return [
        Pattern(
            name,
            called=counts["of_pattern"][name],
            share=counts["of_pattern"][name] / max(counts["called"], 1),
            wrong=(record["expected_wrong"] or {}).get(name),
            chance=None if shuffled is None or shuffled["of_pattern"][name]["share"] is None
            else shuffled["of_pattern"][name],
            genes=clearest[name],
            examples=examples[name],
        )
        for name in answer.patterns
    ]  # fmt: skip


def _examples(
    answer: Answer, dataset: Dataset, wanted: Mapping[str, Sequence[str]]
) -> dict[str, list[list[Example]]]:
    """Choose and draw example cells of genes, by pattern and gene."""
    pairs = _pairs_of(answer, {gene for genes in wanted.values() for gene in genes})
    chosen = [
        (pattern, gene, word, row)
        for pattern, genes in wanted.items()
        for gene in genes
        for word, row in _choose(pairs[pairs["gene"] == gene], pattern)
    ]
    drawn = _draw(answer, dataset, chosen)
    found: dict[str, dict[str, list[Example]]] = {pattern: {} for pattern in wanted}
    for example in drawn:
        found[example.pattern].setdefault(example.gene, []).append(example)
    return {pattern: list(genes.values()) for pattern, genes in found.items()}


def _draw(answer: Answer, dataset: Dataset, chosen: Sequence[_Chosen]) -> list[Example]:
    """Draw pairs: pattern, gene, word, and row of the table of pairs."""
    fields = answer.cells().set_index("cell_id")["fov"]
    fov_of = {row["cell_id"]: str(fields[row["cell_id"]]) for *_, row in chosen}
    code_of = {name: code for code, name in enumerate(dataset.genes)}
    of_cell: dict[str, list[int]] = {}
    for k, (*_, row) in enumerate(chosen):
        of_cell.setdefault(row["cell_id"], []).append(k)
    sketches: dict[int, Sketch] = {}
    for cell in read_drawn(dataset, answer.patterns, fov_of) if fov_of else ():
        for k in of_cell[cell.cell_id]:
            sketches[k] = draw_cell(cell, code_of[chosen[k][1]])
    return [
        Example(
            gene,
            pattern,
            row["cell_id"],
            int(row["n_molecules"]),
            float(row[f"{pattern}{PROBABILITY}"]),
            word,
            sketches[k],
        )
        for k, (pattern, gene, word, row) in enumerate(chosen)
    ]


def _pairs_of(answer: Answer, genes: Iterable[str]) -> pd.DataFrame:
    """Read the pairs of some genes."""
    names = pa.array(sorted(genes), pa.string())
    with pq.ParquetFile(answer.folder / PAIRS) as file:
        found = [
            batch.filter(pc.is_in(batch["gene"], value_set=names)) for batch in file.iter_batches()
        ]
    table = pa.Table.from_batches(found, schema=pq.read_schema(answer.folder / PAIRS))
    pairs: pd.DataFrame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    return pairs


def _choose(pairs: pd.DataFrame, pattern: str) -> list[tuple[str, pd.Series[Any]]]:
    """Choose cells of a gene in which a pattern is called: the most probable, and the middle one.

    Without calls of the pattern: the cell with most molecules of the gene.
    """
    called = pairs[pairs[pattern].fillna(False).to_numpy(bool)]
    if not len(called):
        most = pairs.sort_values(["n_molecules", "cell_id"], ascending=[False, True])
        return [("Not called", most.iloc[0])] if len(most) else []
    ordered = _ordered(called, pattern)
    rows = [("Clearest", 0)] + [("Typical", len(ordered) // 2)] * (len(ordered) >= _CELLS)
    return [(word, ordered.iloc[k]) for word, k in rows]


def _differences(
    answer: Answer, dataset: Dataset, table: pd.DataFrame, group_of: pd.Series[Any] | None
) -> list[Difference]:
    """Take what differs most between groups, and draw a cell of each group for the first rows."""
    table = table.assign(size=-table["difference"].abs())
    table = table.sort_values(["p", "size", "gene", "pattern"], na_position="last")
    rows = table.head(_SHOWN).to_dict("records")
    chosen: list[list[_Chosen]] = [[] for _ in rows]
    if group_of is not None:
        pairs = _pairs_of(answer, {row["gene"] for row in rows[:_PANELS]})
        pairs["group"] = pairs["cell_id"].map(group_of)
        for row, of_row in zip(rows[:_PANELS], chosen, strict=False):
            of_gene = pairs[(pairs["gene"] == row["gene"]) & pairs[row["pattern"]].notna()]
            for group in (row["reference"], row["group"]):
                ordered = _ordered(of_gene[of_gene["group"] == group], row["pattern"])
                if len(ordered):
                    middle = ordered.iloc[len(ordered) // 2]
                    of_row.append((row["pattern"], row["gene"], group, middle))
    examples = iter(_draw(answer, dataset, [one for of_row in chosen for one in of_row]))
    return [
        Difference({str(name): value for name, value in row.items()}, [next(examples) for _ in of])
        for row, of in zip(rows, chosen, strict=True)
    ]


def _ordered(pairs: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Order pairs by probability: those of molecules enough to see something, if there are any."""
    many = pairs[pairs["n_molecules"] >= _ENOUGH]
    return (many if len(many) else pairs).sort_values(
        [f"{pattern}{PROBABILITY}", "n_molecules", "cell_id"], ascending=[False, False, True]
    )


def _heat(genes: Sequence[Gene], patterns: Sequence[Pattern]) -> list[Gene]:
    """Choose genes of the heatmap in turn from the patterns, and order them by pattern."""
    ranked = [
        sorted(
            (gene for gene in genes if gene.shares[pattern.name] is not None),
            key=lambda gene, name=pattern.name: (  # type: ignore[misc]
                name not in gene.stands_out, -gene.low(name), gene.name
            ),
        )
        for pattern in patterns
    ]  # fmt: skip
    chosen: dict[str, tuple[int, Gene]] = {}
    for row in range(max(map(len, ranked), default=0)):
        for k, of in enumerate(ranked):
            if row < len(of) and len(chosen) < _HEAT:
                chosen.setdefault(of[row].name, (k, of[row]))
    return [gene for _, gene in sorted(chosen.values(), key=lambda found: found[0])]


def _known(genes: Sequence[Gene]) -> list[Gene]:
    return [gene for name in KNOWN for gene in genes if gene.name.upper() == name]


def _pooled(genes: Sequence[Gene], patterns: Sequence[str]) -> dict[str, Any]:
    """Sum up control targets: pairs called, and the share of these by pattern."""
    called = sum(gene.called for gene in genes)
    shares = {
        name: sum(of.share * gene.called for gene in genes if (of := gene.shares[name])) / called
        if called
        else None
        for name in patterns
    }
    return {"called": called, "cells": sum(gene.cells for gene in genes), "shares": shares}


def _headline(out: Sequence[Gene], genes: Sequence[Gene], answer: Answer) -> str:
    """Say the answer in one sentence."""
    called = sum(gene.called > 0 for gene in genes)
    if answer.record.get("shuffled") is None or not called:
        return f"{called:,} of {len(genes):,} genes have called pairs"
    if not out:
        return "No gene stands out from shuffled cells"
    verb = "is" if len(out) == 1 else "are"
    return f"{len(out):,} of {called:,} genes with calls {verb} localised beyond chance"
