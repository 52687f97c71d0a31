"""Saved models: a fitted method with its call thresholds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from gpattern_bench.base.files import file_sha256, write_text
from gpattern_bench.base.validation import adapter, invalid_text, shorten
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.methods.base import Method
from gpattern_bench.methods.predict import predict_pieces
from gpattern_bench.runs.pretrained import pretrained_folder, pretrained_names
from gpattern_bench.tables import schema
from gpattern_bench.tables.model_output import Model, ModelOutput
from gpattern_bench.tables.predictions import write_tables

__all__ = [
    "Model",
    "find_model",
    "load_model",
    "model_sha256",
    "predict_tables",
    "save_model",
    "sound_scores",
    "variant_of_run",
]

_Piece = TypeVar("_Piece")

_MODEL = "model.json"
_MOST_NAMED = 10


def save_model(method: Method, model: Model, folder: Path) -> Path:
    """Write a fitted method and its metadata; ``model.json`` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MODEL).unlink(missing_ok=True)  # a half-written folder has none
    method.save(folder)
    write_text(folder / _MODEL, json.dumps(model.record(), indent=1) + "\n")
    return folder


def find_model(folder: str | Path) -> Path:
    """Find the model folder: this one, the only one that a run wrote in it, or by its name.

    A name is that of a model of the package (:mod:`.pretrained`); what exists under that path is
    meant before it.

    Raises
    ------
    MethodError
        There are several; the text lists them.
    """
    named = pretrained_folder(folder)
    if named is not None:
        return named
    folder = Path(folder)
    if (folder / _MODEL).is_file():
        return folder
    # A run writes OUT/DATASET/model-...; OUT of several methods has one more level.
    depths = ("", "*/", "*/*/")
    found = sorted(path.parent for up in depths for path in folder.glob(f"{up}model-*/{_MODEL}"))
    if len(found) > 1:
        more = f" and {len(found) - _MOST_NAMED:,} more" if len(found) > _MOST_NAMED else ""
        raise MethodError(
            f"{folder} holds {len(found):,} models: {', '.join(map(str, found[:_MOST_NAMED]))}"
            f"{more}; name one of these folders"
        )
    return found[0] if found else folder


def load_model(folder: str | Path) -> tuple[Method, Model]:
    """Read a model folder, the only one inside a folder, or a model by name (:func:`find_model`).

    Raises
    ------
    MethodError
        The folder holds no model, several, or a damaged one.
    """
    folder = find_model(folder)
    try:
        text = (folder / _MODEL).read_text(encoding="utf-8")
        model = adapter(Model).validate_json(text)
        method = _named(model)
        method.load(folder)
    except GPatternBenchError:
        raise
    except Exception as error:  # damaged files break libraries in ways that none documents
        why = shorten(repr(error), 300)
        if isinstance(error, ValidationError):
            why = invalid_text(error, 3)
        elif not (folder / _MODEL).exists():
            why = f"there is no {folder / _MODEL}"
        raise MethodError(
            f"{folder} holds no readable model ({why}); expected a folder that "
            "`gpattern-bench run` wrote, named model-..., or a model of the package: "
            f"{', '.join(pretrained_names())}"
        ) from error
    return method, model


def model_sha256(folder: Path) -> str:
    """Hash the names and contents of a model folder's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def variant_of_run(name: str, folder: Path, seed: int) -> Method | None:
    """Make the variant of that name that a run left in a folder, not fitted; None without one."""
    if name in METHODS:
        return None
    for path in sorted(folder.glob(f"model-seed{seed}*/{_MODEL}")):
        try:
            model = adapter(Model).validate_json(path.read_bytes())
        except (OSError, ValueError):
            continue  # of another run
        if model.method == name and model.variant is not None:
            return _named(model)
    return None


def _named(model: Model) -> Method:
    if model.variant is None:
        return get_method(model.method)
    from gpattern_bench.methods.gpsnet.variants import make_variant  # imports torch

    return make_variant(model.variant, model.method)()


def predict_tables(method: Method, model: Model, dataset: Dataset, path: str | Path) -> Path:
    """Score every pair of a dataset, labelled or not, into a file like a prediction file.

    `Evaluator`, `check_file` and the commands take it as a prediction file of any split.

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
        for scores in sound_scores(
            predict_pieces(method, dataset.iter_cells()),
            model,
            lambda piece: piece[model.patterns].to_numpy(),
        )
    )
    return write_tables(pieces, Path(path), ModelOutput(dataset.id, model).to_metadata())


def sound_scores(
    pieces: Iterator[_Piece], model: Model, values: Callable[[_Piece], NDArray[Any]]
) -> Iterator[_Piece]:
    """Pass scores on while they are shares; files that were edited may give anything.

    `values` reads the scores of a piece.

    Raises
    ------
    MethodError
        A score is no share, or the method fails.
    """

    def damaged(what: str) -> MethodError:
        return MethodError(
            f"the model of {model.method} gives no scores from 0 to 1 ({what}): its files are "
            "damaged, or were edited. Copy the whole folder again, or fit it again"
        )

    while True:
        try:
            piece = next(pieces, None)
            scores = None if piece is None else values(piece)
        except GPatternBenchError:
            raise
        except Exception as error:  # damaged numbers break libraries in ways that none documents
            raise damaged(repr(error)) from error
        if piece is None or scores is None:
            return
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN is neither
            raise damaged(f"but from {scores.min():g} to {scores.max():g}")
        yield piece
