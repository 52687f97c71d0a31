"""Answers as scverse holds them: a table of cells by genes, with scores and calls as layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpattern_bench.answers.answer import Answer
from gpattern_bench.answers.calls import PROBABILITY
from gpattern_bench.errors import SourceError
from gpattern_bench.interop.scverse import add_pairs, table_of_cells, to_anndata

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["TABLE", "annotate", "answer_to_anndata", "check_table"]

TABLE = "gpattern_bench"
"""Name of the table in a SpatialData object, and of the parameters in its ``uns``."""
_PARAMETERS = (
    "package_version", "patterns", "min_molecules", "not_called", "seed", "counts",
    "expected_wrong", "warnings",
)  # fmt: skip
_OBS = ("area_um2", "has_nucleus", "in_scope", "out_of_scope")


def answer_to_anndata(answer: Answer) -> AnnData:
    """Give an answer as cells by genes; see :meth:`.answer.Answer.to_anndata`."""
    table = to_anndata(answer.dataset)
    pairs = answer.pairs()
    chances = {name: pairs[f"{name}{PROBABILITY}"].to_numpy() for name in answer.patterns}
    calls = {name: pairs[name].fillna(False).to_numpy(bool) for name in answer.patterns}
    known = pairs[list(answer.patterns)].notna().any(axis=1)
    add_pairs(table, pairs, "scored", "probability", chances)
    add_pairs(
        table, pairs[known], "called", "call", {name: of[known] for name, of in calls.items()}
    )
    cells = answer.cells().set_index("cell_id").reindex(table.obs_names)
    for name in _OBS:
        table.obs[name] = cells[name].to_numpy()
    genes = answer.genes().set_index("gene").reindex(table.var_names)
    for name in ("cells", "called", "not_called"):
        table.var[name] = genes[name].fillna(0).to_numpy(int)
    for name in answer.patterns:
        table.var[name] = genes[name].to_numpy(float)
    table.uns[TABLE] |= _parameters(answer)
    return table


def _parameters(answer: Answer) -> dict[str, Any]:
    """Give what was done, without what cannot be written: None."""
    record = answer.record
    model = {name: record["model"][name] for name in ("name", "method", "sha256", "fitted_on")}
    found = {name: record[name] for name in _PARAMETERS}
    thresholds = record["thresholds"]
    return _known({**found, "thresholds": thresholds, "model": model})


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _known(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def check_table(sdata: SpatialData) -> None:
    """Refuse an object whose table of that name is not an answer.

    Raises
    ------
    SourceError
        It holds something else.
    """
    if TABLE in sdata and TABLE not in getattr(sdata[TABLE], "uns", {}):
        raise SourceError(
            f"the object has an element {TABLE} that no call wrote: rename it, the calls go there"
        )


def annotate(sdata: SpatialData, answer: Answer, cells: str) -> None:
    """Put an answer into the object that was asked of, as its table ``gpattern_bench``.

    Parameters
    ----------
    sdata : spatialdata.SpatialData
    answer : Answer
    cells : str
        The shapes that are the cells' outlines.
    """
    table = answer.to_anndata()
    if TABLE in sdata:
        del sdata.tables[TABLE]
    sdata.tables[TABLE] = table_of_cells(sdata, table, cells)
