"""Call a slide: curate if needed, score, call, summarise, in one go that can be resumed."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from gpattern_bench.answers.annotate import annotate, check_table
from gpattern_bench.answers.answer import (
    ANSWER,
    BEGUN,
    CELLS,
    FILES,
    GENES,
    PAIRS,
    REPORT,
    SCORES,
    TABLES,
    Answer,
    read_answer,
)
from gpattern_bench.answers.calls import GeneCounts, Rule, rule_of
from gpattern_bench.answers.card import Card, read_card, read_cards
from gpattern_bench.answers.report import write_report
from gpattern_bench.answers.scope import Scope
from gpattern_bench.answers.scores import is_scored, score_cells
from gpattern_bench.answers.shuffled import (
    compare_shuffled,
    draw_fovs,
    shuffled_cells,
    shuffled_warnings,
)
from gpattern_bench.answers.source import Source, find_source, is_spatialdata
from gpattern_bench.base.files import MANIFEST, plain, write_text
from gpattern_bench.base.outlines import parse_wkb
from gpattern_bench.base.progress import Progress
from gpattern_bench.base.version import __version__
from gpattern_bench.base.workers import in_order, workers
from gpattern_bench.curate.build import curate, making
from gpattern_bench.data.cells import Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError, SourceError
from gpattern_bench.evaluate.calls import NEARLY_ALL, write_genes
from gpattern_bench.methods.base import Method
from gpattern_bench.runs.pretrained import PRETRAINED
from gpattern_bench.runs.saved_model import Model, find_model, load_model, model_sha256
from gpattern_bench.runs.shards import Shard, cut_shards, on_gpu, run_key
from gpattern_bench.tables import schema
from gpattern_bench.tables.model_output import ModelOutput
from gpattern_bench.tables.parquet import read_table
from gpattern_bench.tables.predictions import write_tables

__all__ = ["call"]

_log = logging.getLogger(__name__)

_FORMAT = 1  # of answer.json
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_OPTIONS = {"--unit-um", "--format", "--cells", "--nuclei", "--surrogate-outlines"}
"""Of `call`, for curation; messages of readers may name others."""
_CELLS = pa.schema(
    [
        pa.field("cell_id", pa.string(), nullable=False),
        pa.field("fov", pa.string(), nullable=False),
        pa.field("n_molecules", pa.int32(), nullable=False),
        pa.field("n_genes", pa.int32(), nullable=False),
        pa.field("area_um2", pa.float32(), nullable=False),
        pa.field("has_nucleus", pa.bool_(), nullable=False),
        pa.field("in_scope", pa.bool_(), nullable=False),
        pa.field("out_of_scope", pa.string(), nullable=False),
    ]
)


def call(
    source: Any,
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    form: str | None = None,
    unit_um: float | None = None,
    cells: str | None = None,
    nuclei: str | None = None,
    surrogate_outlines: bool = False,
    jobs: int | None = None,
) -> Answer:
    """Say which genes are localised where: curate if needed, score, call, summarise.

    Memory does not grow with the number of cells. Started again after it was interrupted, it goes
    on where it was, with the same source, model and code; of another model only the curated tables
    are kept.

    Parameters
    ----------
    source : Dataset, spatialdata.SpatialData, str or pathlib.Path
        A dataset, its name or its folder of tables; a SpatialData object, which gets the answer as
        its table ``gpattern_bench`` (:meth:`.answer.Answer.to_anndata`), tied to the cells'
        outlines; or an instrument's folder or file, whose format is told by what is in it.
    out : str or pathlib.Path, optional
        Folder to make; default: a temporary one, until Python ends.
    model : str or pathlib.Path, optional
        A model of the package by name, or the folder of a saved one; default: that of the package
        for the patterns of the tables.
    form : {"xenium", "merscope", "cosmx", "spatialdata", "bento-h5ad", "table"}, optional
        Format of an instrument's folder or file, if it cannot be told.
    unit_um : float, optional
        Micrometres per unit, needed where the format does not state it.
    cells, nuclei : str, optional
        Of a plain table the files of outlines; of SpatialData the elements.
    surrogate_outlines : bool
        Of a plain table: draw outlines around the molecules.
    jobs : int, optional
        Processes; default: one per core.

    Returns
    -------
    Answer

    Raises
    ------
    GPatternBenchError
        The folder holds something else, or the answer to something else.
    SourceError
        The source cannot be read (:func:`~gpattern_bench.answers.source.find_source`).
    MethodError
        The model is none, is damaged or makes no calls, or there is none for these patterns.

    Examples
    --------
    >>> from gpattern_bench import call
    >>> answer = call("synthetic", jobs=1)
    >>> answer.patterns
    ('cell_edge', 'cytoplasmic', 'nuclear', 'nuclear_edge')
    """
    if jobs is not None and jobs < 1:
        raise GPatternBenchError(f"jobs: expected at least 1, got {jobs}")
    asked = find_source(
        source,
        form=form,
        unit_um=unit_um,
        cells=cells,
        nuclei=nuclei,
        surrogate_outlines=surrogate_outlines,
    )
    if is_spatialdata(source):
        check_table(source)
    judge = _Judge.load(_model_for(asked) if model is None else model)
    if out is not None and asked.holds(Path(out).expanduser()):
        raise GPatternBenchError(
            f"{out} lies in the source {source}, which would change with every start: give another "
            "--out"
        )
    if out is None:
        home = Path(tempfile.mkdtemp(prefix="gpattern-bench-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        out = home / "answer"
    with making(Path(out).expanduser()) as folder:
        answer = _answer(asked, judge, folder, jobs or -1)
    if is_spatialdata(source):
        annotate(source, answer, cells or "cell_boundaries")
    return answer


@dataclass(frozen=True)
class _Judge:
    """A model, with what is known of it."""

    name: str
    folder: Path
    method: Method
    model: Model
    card: Card | None
    rule: Rule
    sha256: str

    @classmethod
    def load(cls, source: str | Path) -> _Judge:
        folder = find_model(source)
        method, model = load_model(folder)
        if method.about.sees_labels:
            raise MethodError(f"{model.method} reads labels: it cannot make any")
        card = read_card(folder)
        rule = rule_of(model, card, str(source))
        name = folder.name if folder.parent == PRETRAINED else str(folder.absolute())
        return cls(name, folder.absolute(), method, model, card, rule, model_sha256(folder))


def _model_for(asked: Source) -> str:
    """Choose the model of the package for the patterns of the tables."""
    patterns = asked.patterns
    cards = read_cards()
    for card in cards:
        if set(card.thresholds) == set(patterns):
            return card.name
    known = "; ".join(f"{card.name}: {', '.join(card.thresholds)}" for card in cards)
    raise MethodError(
        f"no model of the package is for the patterns {', '.join(patterns)}: give one with --model "
        f"NAME ({known}), or the folder of one that `gpattern-bench run` fitted"
    )


def _answer(asked: Source, judge: _Judge, folder: Path, jobs: int) -> Answer:
    request = {"source": dict(asked.identity), "model": judge.sha256}
    if _is_answered(folder, request):
        _log.info("%s: is answered already", folder)
        _clear(folder)  # killed just before it did so
        answer = read_answer(folder)
        if not (folder / REPORT).is_file():
            write_report(answer)
        return answer
    write_text(folder / BEGUN, json.dumps(request, indent=1) + "\n")
    (folder / ANSWER).unlink(missing_ok=True)  # of files that are about to be replaced
    try:
        dataset = _tables(asked, folder, jobs)
    except GPatternBenchError as error:
        # Nothing was made: the same --out is free for other options.
        if [path.name for path in folder.iterdir()] == [BEGUN]:
            shutil.rmtree(folder)
        others = sorted({*_OPTION.findall(str(error))} - _OPTIONS)
        if isinstance(error, SourceError) and others:
            raise SourceError(
                f"{error}. `call` has no {', '.join(others)}: curate first (`gpattern-bench curate "
                f"{asked.identity['format']} ... --out TABLES`), then call TABLES"
            ) from error
        raise
    shards, scored = _scored(dataset, judge, folder, jobs)
    _log.info("%s: calling", folder.name)
    patterns = list(judge.rule.patterns)
    wanted = schema.predictions(patterns)
    write_tables(
        (_read(scored, shard).select(wanted.names).cast(wanted) for shard in shards),
        folder / SCORES,
        ModelOutput(dataset.id, judge.model).to_metadata(),
    )
    counts = GeneCounts(
        dataset.genes, patterns, None if judge.card is None else judge.card.prevalence
    )
    write_tables(
        _counted((judge.rule.apply(_read(scored, shard)) for shard in shards), counts),
        folder / PAIRS,
    )
    write_genes(counts.table(), folder / GENES)
    scope = _ScopeCounts(None if judge.card is None else judge.card.scope)
    write_tables((scope.add(dataset, shard) for shard in shards), folder / CELLS)
    shuffled = _shuffled(dataset, judge, shards, scored)
    record = _record(asked, judge, dataset, counts, scope, shuffled, folder)
    record["request"] = request
    text = json.dumps(plain(record), indent=1) + "\n"
    write_report(Answer(folder, json.loads(text)))
    write_text(folder / ANSWER, text)  # last: without it, the answer is not finished
    _clear(folder)
    return read_answer(folder)


def _clear(folder: Path) -> None:
    """Remove what only an unfinished answer needs."""
    for scored in folder.glob("scores-*"):
        shutil.rmtree(scored)
    (folder / BEGUN).unlink(missing_ok=True)


def _is_answered(folder: Path, request: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds this answer; refuse one that holds something else.

    Raises
    ------
    GPatternBenchError
        The folder is used for something else.
    """
    for name, parts in ((ANSWER, ("source", "model")), (BEGUN, ("source",))):
        try:
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            before = _request_in(record)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise GPatternBenchError(
                f"{folder / name} cannot be read ({error}): remove {folder} or give another --out"
            ) from error
        for part in parts:
            if before.get(part) != request[part]:
                raise GPatternBenchError(
                    f"{folder} holds the answer to something else, of another {part}"
                    f"{_difference(before.get(part), request[part])}: give another --out, or "
                    "remove the folder first"
                )
        if name == BEGUN:
            if before.get("model") != request["model"]:
                _log.info("%s was begun with another model: scored anew", folder)
            else:
                _log.info("%s: going on where it was", folder)
            return False
        try:
            read_answer(folder)
        except GPatternBenchError:
            _log.warning("%s: the answer there is not whole, it is made again", folder)
            return False
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GPatternBenchError(
            f"{folder} holds other files and no answer: give another --out, or remove it first"
        )
    return False


def _request_in(record: Any) -> dict[str, Any]:
    """Find what was asked in ``answer.json`` or ``begun.json``."""
    found = record.get("request", record) if isinstance(record, dict) else None
    if isinstance(found, dict):
        return found
    raise ValueError("it does not say what was asked")


def _difference(before: Any, now: Any) -> str:
    """Say which entries differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    told = {"files_sha256": "files that are new or changed", "curation": "options of curation"}
    return f" ({', '.join(told.get(key, key) for key in keys)})"


def _tables(asked: Source, folder: Path, jobs: int) -> Dataset:
    """Give the tables; make them first if the source is a release and that is not done."""
    if asked.dataset is not None:
        return asked.dataset
    assert asked.recipe is not None
    assert asked.folder is not None
    tables = folder / TABLES
    if (tables / MANIFEST).is_file():
        _log.info("%s: found curated", tables)
    else:
        curate(asked.recipe, asked.folder, tables, name=folder.name, version="0.0.0", jobs=jobs)
    return Dataset(tables)


def _scored(dataset: Dataset, judge: _Judge, folder: Path, jobs: int) -> tuple[list[Shard], Path]:
    """Score what lacks; return all shards and the folder of their files.

    The folder's name is a hash of all that scores depend on: with another model or code, nothing
    of an earlier start is taken.
    """
    key = run_key(judge.model.method, dataset, judge.model.seed) | {"model": judge.sha256}
    scored = folder / f"scores-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}"
    for other in folder.glob("scores-*"):
        if other.is_dir() and other != scored:
            shutil.rmtree(other)
    scored.mkdir(exist_ok=True)
    shards = cut_shards(dataset, None, per_cell=judge.method.about.per_cell)
    missing = [shard for shard in shards if not is_scored(scored / shard.file)]
    if len(missing) < len(shards):
        _log.info("found %d of %d parts scored", len(shards) - len(missing), len(shards))
    cells = {shard.file: len(shard.cells) for shard in shards}
    lacking = sum(cells[shard.file] for shard in missing)
    tasks = (
        (judge.folder, judge.sha256, _seen(dataset, shard, judge), scored / shard.file)
        for shard in missing
    )
    total = sum(cells.values())
    alone = len(missing) < 2 or on_gpu(judge.method)
    with (
        workers(1 if alone else jobs, None) as pool,
        Progress("score", total, done=total - lacking) as bar,
    ):
        for shard, _ in zip(missing, in_order(pool, score_cells, tasks), strict=True):
            bar.update(cells[shard.file])
    return shards, scored


def _seen(dataset: Dataset, shard: Shard, judge: _Judge) -> Cells:
    """Give the cells of a shard, as of the model's patterns: labels are not read."""
    tables = CellTables(dataset.folder, shard.fovs, simulated=dataset.manifest.is_simulated)
    return Cells([tables], genes=dataset.genes, patterns=judge.rule.patterns, labels=False)


def _read(scored: Path, shard: Shard) -> pa.Table:
    return pq.read_table(scored / shard.file, page_checksum_verification=True)


def _shuffled(
    dataset: Dataset, judge: _Judge, shards: list[Shard], scored: Path
) -> dict[str, Any] | None:
    """Score some cells shuffled; None of a model whose scores of a cell depend on the others."""
    if not judge.method.about.per_cell:
        return None
    fovs = draw_fovs(dataset, judge.model.seed)
    cells = shuffled_cells(dataset, fovs, judge.rule.patterns, judge.model.seed)
    path = scored / "shuffled.parquet"
    score_cells(judge.folder, judge.sha256, cells, path)
    here = [shard for shard in shards if not set(fovs).isdisjoint(shard.fovs)]
    found = compare_shuffled(
        judge.rule.apply(pq.read_table(path)),
        (judge.rule.apply(_read(scored, shard)) for shard in here),
        judge.rule.patterns,
    )
    return {"seed": judge.model.seed, **found}


def _counted(pieces: Iterator[pa.Table], counts: GeneCounts) -> Iterator[pa.Table]:
    for pairs in pieces:
        counts.add(pairs)
        yield pairs


class _ScopeCounts:
    """Measures cells, compares them with a model's training cells, and counts."""

    def __init__(self, scope: Scope | None) -> None:
        self._scope = scope
        self.counts: dict[str, int] = dict.fromkeys(
            ("cells", "molecules", "without_nucleus", "out_of_scope"), 0
        )
        self.reasons: dict[str, int] = {}

    def add(self, dataset: Dataset, shard: Shard) -> pa.Table:
        """Make the rows of a shard."""
        columns = ["cell_id", "fov", "n_molecules", "n_genes", "cell_boundary", "nucleus_boundary"]
        table = read_table(dataset.folder / "cells.parquet", shard.fovs, columns)
        cells: pd.DataFrame = table.to_pandas()
        outlines = parse_wkb(cells["cell_boundary"].to_numpy(object))
        cells["area_um2"] = shapely.area(outlines).astype(np.float32)
        cells["has_nucleus"] = cells["nucleus_boundary"].notna()
        cells["out_of_scope"] = "" if self._scope is None else self._scope.reasons(cells)
        cells["in_scope"] = cells["out_of_scope"] == ""
        self.counts["cells"] += len(cells)
        self.counts["molecules"] += int(cells["n_molecules"].sum())
        self.counts["without_nucleus"] += int((~cells["has_nucleus"]).sum())
        self.counts["out_of_scope"] += int((~cells["in_scope"]).sum())
        for text, times in cells["out_of_scope"].value_counts().items():
            for reason in filter(None, str(text).split("; ")):
                self.reasons[reason] = self.reasons.get(reason, 0) + int(times)
        return pa.Table.from_pandas(cells[_CELLS.names], schema=_CELLS, preserve_index=False)

    def record(self) -> dict[str, Any]:
        """Give it as JSON holds it."""
        known = None if self._scope is None else self._scope.record()
        reasons = dict(sorted(self.reasons.items()))
        told = {k: v for k, v in self.counts.items() if k != "molecules"}
        return {"seen_in_training": known, **told, "reasons": reasons, "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """Say what differs over all cells."""
        return [] if self._scope is None else self._scope.warnings(self.counts | self.reasons)


def _record(
    asked: Source,
    judge: _Judge,
    dataset: Dataset,
    counts: GeneCounts,
    scope: _ScopeCounts,
    shuffled: dict[str, Any] | None,
    folder: Path,
) -> dict[str, Any]:
    """Say what was done."""
    rule, card, totals = judge.rule, judge.card, counts.totals()
    of_pattern, wrong = totals.pop("of_pattern"), totals.pop("expected_wrong")
    warnings = scope.warnings() + _rule_warnings(rule, card, totals, of_pattern, wrong)
    warnings += [] if shuffled is None else shuffled_warnings(shuffled)
    for text in warnings:
        _log.warning("%s", text)
    return {
        "format": _FORMAT,
        "package_version": __version__,
        "source": dict(asked.identity),
        "tables": TABLES if asked.dataset is None else str(dataset.folder),
        "dataset": dataset.id,
        "content_sha256": {
            name: file.content_sha256 for name, file in sorted(dataset.manifest.files.items())
        },
        "model": {"name": judge.name, "sha256": judge.sha256, **judge.model.record()},
        "patterns": list(rule.patterns),
        "thresholds": dict(rule.thresholds),
        "calibration": None if card is None else card.raw["calibration"],
        "rates": None if card is None else card.rates,
        "min_molecules": rule.min_molecules,
        "not_called": rule.text,
        "seed": judge.model.seed,
        "counts": {
            "cells": scope.counts["cells"],
            "genes": len(dataset.genes),
            "molecules": scope.counts["molecules"],
            **totals,
            "of_pattern": of_pattern,
        },
        "expected_wrong": None if card is None else wrong,
        "shuffled": shuffled,
        "scope": scope.record(),
        "warnings": warnings,
        "files": {name: (folder / name).stat().st_size for name in FILES},
    }


def _rule_warnings(
    rule: Rule,
    card: Card | None,
    totals: Mapping[str, int],
    of_pattern: Mapping[str, int],
    wrong: Mapping[str, float],
) -> list[str]:
    """Say what of the calls is to be doubted."""
    found = []
    if card is None:
        found.append(
            "the model has no card: its scores stand for probabilities, pairs of few molecules are "
            "called too, and whether it has seen such cells is not known"
        )
    else:
        found += [
            f"{pattern}: {share:.0%} of its calls are expected to be wrong: use the probabilities"
            for pattern, share in wrong.items()
            if share > 0.5
        ]
    if not totals["called"]:
        found.append(f"no pair is called: not called are {rule.text}")
    found += [
        f"{pattern} is called for {number / totals['called']:.1%} of the called pairs: it tells "
        "hardly any pairs apart, use the probabilities"
        for pattern, number in of_pattern.items()
        if totals["called"] and number > NEARLY_ALL * totals["called"]
    ]
    return found
