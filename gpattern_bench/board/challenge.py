"""Challenges: new cells of a simulated dataset, to score methods on labels that nobody has seen.

Labels of the board's datasets are public, so a method can be fitted to them. Here a maintainer
draws other cells of the same simulation by a secret seed, hands them out without labels, and scores
what comes back. Afterwards the seed is published with the scores: anybody can draw the cells again.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from gpattern_bench.base.files import alone, file_sha256, plain, write_text
from gpattern_bench.base.validation import adapter, invalid_fields
from gpattern_bench.board.metadata import Sha256
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.rules import apply_rules
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.curate.simulate.wide import CELLS_PER_FOV, HELD_OUT, simulate_wide
from gpattern_bench.curate.write import write_dataset
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError, SubmissionError
from gpattern_bench.evaluate.evaluator import Evaluator, Result
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.saved_model import load_model
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import Entry, find_entry
from gpattern_bench.tables.parquet import ContentHash
from gpattern_bench.tables.predictions import read_origin

__all__ = [
    "CHALLENGE",
    "LEAST_SEED",
    "Outcome",
    "draw_challenge",
    "new_seed",
    "read_outcomes",
    "record",
    "score_challenge",
]

CHALLENGE = "challenge.json"
"""Outcomes, in the board's folder; maintainers write it."""
LEAST_SEED = 1 << 60
"""Smaller seeds could be tried one by one until the cells are those that were handed out."""
_FOVS = {"synthetic": 100, "synthetic_wide": 30}  # of 4 and of 10 cells
_MACROS = ("auc_macro", "acc_macro", "f1_macro", "ap_macro", "accuracy_subset")

Simulation = Literal["synthetic", "synthetic_wide"]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Outcome(TypedDict):
    """Scores of a method on new cells: one entry of ``challenge.json``.

    ``dataset`` and ``version`` name the simulation, ``seed`` draws the cells, ``labels_sha256`` is
    the content hash of their labels. ``predictions_sha256`` hashes the prediction file; null: a
    model was run. Metrics are fractions; ``ci`` has 95 % intervals.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    dataset: str
    version: str
    method: str
    seed: Annotated[int, Field(ge=LEAST_SEED, lt=1 << 64)]
    labels_sha256: Sha256
    predictions_sha256: Sha256 | None
    n: Annotated[int, Field(ge=1)]
    auc_macro: _Share
    acc_macro: _Share
    f1_macro: _Share
    ap_macro: _Share
    accuracy_subset: _Share
    ci: dict[str, tuple[_Share, _Share]]


def new_seed() -> int:
    """Choose a seed that nobody can guess, below 2**63: shells and tables hold it."""
    return LEAST_SEED + secrets.randbelow((1 << 63) - LEAST_SEED)


def draw_challenge(
    simulation: Simulation, seed: int, folder: Path, *, labels: bool = False
) -> Dataset:
    """Draw new cells of a simulated dataset into a folder of tables; all are test cells.

    ``synthetic``: 400 cells whose genes behave as those of ``synthetic``. ``synthetic_wide``: 300
    cells with the settings of its test split. No table and no manifest holds the seed. The version
    is the beginning of the labels' content hash: it fixes the labels before anybody predicts.

    Parameters
    ----------
    simulation : {"synthetic", "synthetic_wide"}
    seed : int
        ``LEAST_SEED <= seed < 2**64``; the same seed gives the same tables.
    folder : pathlib.Path
        Must not exist, or be empty.
    labels : bool
        Write the labels too.

    Raises
    ------
    GPatternBenchError
        The seed can be guessed.
    TableError
        The folder is in use or cannot be written.
    """
    if not LEAST_SEED <= seed < 1 << 64:
        raise GPatternBenchError(
            f"expected a seed from 2**60 to 2**64 - 1, got {seed}: smaller ones can be tried one "
            "by one; leave --seed out to have one drawn"
        )
    entry = find_entry(simulation)
    release = _release(entry, seed)
    recipe = Recipe(
        format="simulated",
        like=simulation,
        patterns=entry.recipe.patterns,
        patternless=entry.recipe.patternless,
        split="test",
    )
    tables = apply_rules(release, recipe)
    content = ContentHash()
    assert tables.labels is not None, "simulated releases have labels"
    content.update(tables.labels)
    if not labels:
        tables = apply_rules(Release(release.molecules, release.cells), recipe)
    write_dataset(
        [tables],
        folder,
        name=f"{simulation}_challenge",
        version=content.hexdigest()[:12],
        recipe=recipe,
        about={"title": f"New cells of {entry.id}", "licence": entry.licence},
    )
    return Dataset(folder)


def score_challenge(
    simulation: Simulation, seed: int, predictions: Sequence[Path] = (), models: Sequence[Path] = ()
) -> list[Outcome]:
    """Draw the cells again, and score prediction files and saved models on them.

    Parameters
    ----------
    simulation, seed
        As of :func:`draw_challenge`.
    predictions : sequence of pathlib.Path
        Prediction files of the handed-out cells.
    models : sequence of pathlib.Path
        Folders that ``run`` wrote. Their methods are those of the package; labels are hidden.

    Returns
    -------
    list of Outcome
        In the order of the arguments.

    Raises
    ------
    PredictionError
        A file is not of these cells, or invalid.
    MethodError
        A folder holds no model, or one for other patterns.
    """
    entry = find_entry(simulation)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = draw_challenge(simulation, seed, Path(scratch) / "cells", labels=True)
        evaluator = Evaluator(dataset)

        def outcome(method: str, result: Result, sha256: str | None) -> Outcome:
            found = {
                "dataset": entry.name,
                "version": entry.version,
                "method": method,
                "seed": seed,
                "labels_sha256": dataset.labels_sha256,
                "predictions_sha256": sha256,
                "n": result["n"],
                **{key: result[key] for key in _MACROS},
                "ci": {key: result["ci"][key] for key in _MACROS},
            }
            return cast("Outcome", found)

        found = []
        for file in predictions:
            checked = evaluator.check(file)
            checked.require()
            origin = read_origin(file)
            assert origin is not None, "checked"
            found.append(outcome(origin.method, evaluator.eval(checked), file_sha256(file)))
        for folder in models:
            method, model = load_model(folder)
            if tuple(model.patterns) != dataset.patterns:
                raise MethodError(
                    f"{folder}: the model scores {', '.join(model.patterns)}, expected "
                    f"{', '.join(dataset.patterns)}: give one that was run on {simulation}"
                )
            scores = predict_cells(method, dataset.iter_cells("test"))
            found.append(outcome(model.method, evaluator.eval(scores), None))
    return found


def read_outcomes(folder: Path) -> list[Outcome]:
    """Read ``challenge.json`` in a board's folder; none without it.

    Raises
    ------
    SubmissionError
        With every problem of the file.
    """
    path = folder / CHALLENGE
    if not path.is_file():
        return []
    try:
        return adapter(list[Outcome]).validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{field}: {reason}" for field, reason in invalid_fields(error)]
        raise SubmissionError(str(path), problems) from error


def record(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Add outcomes to ``challenge.json``; of a method and simulation the last stays."""
    with alone(folder / CHALLENGE):
        kept = {_key(each): each for each in (*read_outcomes(folder), *outcomes)}
        text = json.dumps(plain([kept[key] for key in sorted(kept)]), indent=1, ensure_ascii=False)
        write_text(folder / CHALLENGE, text + "\n")
    return folder / CHALLENGE


def _key(outcome: Outcome) -> tuple[str, str, str]:
    return outcome["dataset"], outcome["version"], outcome["method"]


def _release(entry: Entry, seed: int) -> Release:
    n_fovs = _FOVS[entry.name]
    if entry.name == "synthetic":
        return simulate(seed, n_fovs=n_fovs, gene_seed=entry.recipe.seed)
    return simulate_wide(seed, settings=HELD_OUT, cells=n_fovs * CELLS_PER_FOV, name="test")
