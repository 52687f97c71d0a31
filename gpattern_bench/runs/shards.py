"""Shards of a split: fields of view predicted together, one file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpattern_bench.base.version import __version__
from gpattern_bench.data.cells import Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.methods.base import Method, Network
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.cost import Cost, peak_rss_mib
from gpattern_bench.runs.saved_model import load_model
from gpattern_bench.tables.parquet import read_table
from gpattern_bench.tables.predictions import write_tables

__all__ = [
    "Shard",
    "cut_shards",
    "is_whole",
    "on_gpu",
    "predict_shard",
    "read_costs",
    "read_shards",
    "run_key",
]

MOLECULES = 100_000
"""Least number of molecules in a shard, but for the last: bounds what a crash may cost."""

_COST = b"gpattern_bench_piece"


@dataclass(frozen=True)
class Shard:
    """Cells predicted together.

    Attributes
    ----------
    split : str or None
        None: of all splits.
    file : str
        Name of the file of its scores.
    fovs : list of str
        Its fields of view.
    cells : Cells
        Those of them.
    """

    split: str | None
    file: str
    fovs: list[str]
    cells: Cells


@cache
def _code_sha256() -> str:
    """Hash this package's modules: code may change without the version."""
    digest = hashlib.sha256()
    here = Path(__file__).parents[1]  # the whole package
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def run_key(method: str, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Key of everything that scores depend on."""
    files = dataset.manifest.files
    return {
        "method": method,
        "seed": seed,
        "dataset": dataset.id,
        "patterns": list(dataset.patterns),
        "content_sha256": {name: files[name].content_sha256 for name in sorted(files)},
        "package_version": __version__,
        "code_sha256": _code_sha256(),
    }


def cut_shards(dataset: Dataset, split: str | None, *, per_cell: bool) -> list[Shard]:
    """Cut a split (None: all) between fields of view; into one shard if not scored `per_cell`.

    How it is cut does not depend on the number of workers, so that any number of them may go on
    with what others began.
    """
    groups = _groups(dataset, split) if per_cell else [dataset.fovs(split)]
    shards: list[Shard] = []
    for fovs in groups:
        cells = Cells(
            [CellTables(dataset.folder, fovs)],
            genes=dataset.genes,
            patterns=dataset.patterns,
            labels=dataset.has_labels,
        )
        which = hashlib.sha256(json.dumps(fovs).encode()).hexdigest()[:8]
        shards.append(
            Shard(split, f"{split or 'all'}-{len(shards):05d}-{which}.parquet", fovs, cells)
        )
    return shards


def _groups(dataset: Dataset, split: str | None) -> Iterator[list[str]]:
    """Group consecutive fields of view to :data:`MOLECULES` or more."""
    fovs = dataset.fovs(split)
    table = read_table(dataset.folder / "cells.parquet", fovs, ["fov", "n_molecules"])
    sizes = table.group_by("fov").aggregate([("n_molecules", "sum")]).to_pydict()
    molecules = dict(zip(sizes["fov"], sizes["n_molecules_sum"], strict=True))
    group: list[str] = []
    held = 0
    for fov in fovs:
        group.append(fov)
        held += molecules.get(fov, 0)
        if held >= MOLECULES:
            yield group
            group, held = [], 0
    if held:
        yield group


def on_gpu(method: Method) -> bool:
    """Test whether a method scores on a GPU, which has no room for one network per core."""
    if not isinstance(method, Network):
        return False
    import torch

    return torch.cuda.is_available()


def predict_shard(model: Path, cells: Cells, path: Path) -> None:
    """Score cells with a saved model and write the file, whole or not at all."""
    method = _loaded(model)
    began = Cost.now()
    scores = predict_cells(method, cells, bar=False)
    cost = asdict(Cost.now() - began) | {"peak_rss_mib": peak_rss_mib()}
    table = pa.Table.from_pandas(scores, preserve_index=False)
    write_tables([table.replace_schema_metadata({_COST: json.dumps(cost)})], path)


@lru_cache(maxsize=1)  # a worker predicts many shards with one model
def _loaded(model: Path) -> Method:
    method, _ = load_model(model)
    if isinstance(method, Network):
        method.batch = 1  # as in a run: what is scored together shows in the last digits
    return method


def is_whole(path: Path) -> bool:
    """Test whether :func:`predict_shard` wrote the file; a power cut may leave others."""
    try:
        return _COST in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_shards(shards: list[Shard], folder: Path) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield the fields of view and scores of each shard."""
    for shard in shards:
        table = pq.read_table(folder / shard.file, page_checksum_verification=True)
        yield shard.fovs, table.to_pandas()


def read_costs(shards: list[Shard], folder: Path) -> tuple[Cost, float]:
    """Return the shards' total cost and peak RSS (MiB)."""
    total, peak = Cost(), 0.0
    for shard in shards:
        cost = json.loads(pq.read_schema(folder / shard.file).metadata[_COST])
        peak = max(peak, cost.pop("peak_rss_mib"))
        total += Cost(**cost)
    return total, peak
