"""Saved models: a fitted method with its call thresholds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from gpattern_bench.base.files import write_text
from gpattern_bench.base.version import __version__
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError
from gpattern_bench.methods import get_method
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.predict import predict_pieces
from gpattern_bench.tables import schema
from gpattern_bench.tables.predictions import TrainedOn, write_tables

__all__ = ["Model", "is_model_output", "load_model", "predict_tables", "save_model"]

_MODEL = "model.json"
_NOTE = "gpattern_bench_model"


@dataclass(frozen=True)
class Model:
    """Metadata of a model folder.

    Attributes
    ----------
    method : str
    patterns : list of str
        Columns of its scores.
    fitted_on : tuple of str or None
        Datasets whose labels it was fitted on, ``name@version``, sorted; None if on none.
    thresholds : dict of str to float or None
        Chosen on the val split of the dataset that it was run on; None without a val split, and
        for a pattern without positives there.
    seed : int
    package_version : str
    """

    method: str
    patterns: list[str]
    fitted_on: TrainedOn
    thresholds: dict[str, float | None] | None
    seed: int
    package_version: str = __version__


def save_model(method: Method, model: Model, folder: Path) -> Path:
    """Write a fitted method and its metadata; ``model.json`` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MODEL).unlink(missing_ok=True)  # a half-written folder has none
    method.save(folder)
    write_text(folder / _MODEL, json.dumps(asdict(model), indent=1) + "\n")
    return folder


def load_model(folder: Path) -> tuple[Method, Model]:
    """Read a model folder.

    Raises
    ------
    MethodError
        The folder holds no model, or a damaged one.
    """
    try:
        text = (folder / _MODEL).read_text(encoding="utf-8")
        model = TypeAdapter(Model).validate_json(text)
        method = get_method(model.method)
        method.load(folder)
    except GPatternBenchError:
        raise
    except Exception as error:  # damaged files break libraries in ways that none documents
        raise MethodError(
            f"{folder} holds no readable model ({error!r}); expected a folder that "
            "`gpattern-bench run` wrote, named model-..."
        ) from error
    return method, model


def predict_tables(method: Method, model: Model, dataset: Dataset, path: Path) -> Path:
    """Score every pair of a dataset, labelled or not, into a file like a prediction file.

    Memory does not grow with the number of cells, if that of the method does not.

    Raises
    ------
    MethodError
        The dataset has other patterns than the model, or the model is damaged.
    """
    if tuple(model.patterns) != dataset.patterns:
        raise MethodError(
            f"the model scores {', '.join(model.patterns)}; {dataset.id} is made for "
            f"{', '.join(dataset.patterns)}: use a model trained for those. Only tables without "
            f"labels can be made for others: curate them with --patterns {','.join(model.patterns)}"
        )
    wanted = schema.predictions(dataset.patterns)
    pieces = (
        pa.Table.from_pandas(scores[wanted.names], schema=wanted, preserve_index=False)
        for scores in _sound(predict_pieces(method, dataset.iter_cells()), model)
    )
    note = json.dumps({"dataset": dataset.id, "model": asdict(model)})
    return write_tables(pieces, path, {_NOTE: note})


def _sound(pieces: Iterator[pd.DataFrame], model: Model) -> Iterator[pd.DataFrame]:
    """Pass scores on while they are shares; files that were edited may give anything."""

    def damaged(what: str) -> MethodError:
        return MethodError(
            f"the model of {model.method} gives no scores from 0 to 1 ({what}): its files are "
            "damaged, or were edited. Copy the whole folder again, or fit it again"
        )

    while True:
        try:
            scores = next(pieces, None)
        except GPatternBenchError:
            raise
        except Exception as error:  # damaged numbers break libraries in ways that none documents
            raise damaged(repr(error)) from error
        if scores is None:
            return
        values = scores[model.patterns].to_numpy()
        if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
            raise damaged(f"but from {values.min():g} to {values.max():g}")
        yield scores


def is_model_output(path: Path) -> bool:
    """Test whether :func:`predict_tables` wrote the file."""
    try:
        metadata = pq.read_schema(path).metadata
    except (OSError, pa.ArrowException):
        return False
    return metadata is not None and _NOTE.encode() in metadata
