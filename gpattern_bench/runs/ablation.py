"""Ablations of GPSNet: tables 4 and 5 of the paper, and a learning curve.

Each row is a model of one preset, of which one thing was changed, trained on the train split of a
dataset and scored on another of its splits. The paper's figures for NIH/3T3 and U-2 OS stand beside
ours. By default the preset is ``small``: other cells, another size of model; what compares is how
they change. ``nih3t3`` and ``u2os`` are the paper's models, up to K = 2048 and of 12 layers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from gpattern_bench.base.files import plain, write_text
from gpattern_bench.base.progress import duration
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods.base import FitContext
from gpattern_bench.methods.gpsnet.config import PRESETS, TRAININGS, steps_for
from gpattern_bench.methods.gpsnet.method import GPSNetMethod
from gpattern_bench.methods.gpsnet.variants import split_settings
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.shards import run_key
from gpattern_bench.tables.predictions import counted

__all__ = ["REPORTED", "STUDIES", "AblationRow", "ablation_table", "train_variants"]

_log = logging.getLogger(__name__)

STUDIES = ("neighbours", "depths", "cells")
"""What can be changed."""


REPORTED: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {
    "neighbours": {
        "nih3t3": {
            "1": (84.00, 77.13, 62.52),
            "4": (87.08, 80.46, 66.25),
            "16": (90.05, 83.88, 71.14),
            "64": (90.77, 84.84, 72.16),
            "256": (89.28, 83.11, 70.72),
            "1024": (89.64, 83.16, 70.36),
            "2048": (88.12, 81.63, 68.08),
        },
        "u2os": {
            "1": (88.44, 83.04, 67.03),
            "4": (88.70, 83.74, 67.37),
            "16": (90.77, 85.64, 70.42),
            "64": (92.20, 86.78, 72.76),
            "256": (92.45, 86.63, 72.89),
            "1024": (91.69, 86.58, 70.88),
            "2048": (90.95, 85.47, 70.09),
        },
    },
    "depths": {
        "nih3t3": {
            "(N-1):1": (88.02, 81.63, 68.07),
            "2:1": (89.28, 83.11, 70.72),
            "1:1": (88.18, 81.43, 68.67),
            "1:2": (90.22, 84.35, 71.02),
            "1:(N-1)": (88.23, 81.68, 68.73),
        },
        "u2os": {
            "(N-1):1": (90.29, 85.66, 69.71),
            "2:1": (92.45, 86.63, 72.89),
            "1:1": (91.95, 87.20, 72.65),
            "1:2": (92.52, 87.88, 73.48),
            "1:(N-1)": (91.41, 86.34, 71.71),
        },
    },
}
"""AUC, ACC and F1 (%) of the paper's table 4, whose rows are at 2:1 whatever its caption says (its
K = 256 is the 2:1 of table 5), and of its table 5, at K = 256 and N = 12."""

_PAPER = ("nih3t3", "u2os")
_NEIGHBOURS = (1, 4, 16, 64, 256, 1024)  # a cell of `synthetic` has hardly more than 1024 molecules
_MOST_NEIGHBOURS = 2048  # of the paper's table 4, for its own presets
_SHARES = {"2:1": 4, "1:1": 3, "1:2": 2}  # sixths of the layers that are the encoder's
_PARTS = (16, 8, 4, 2, 1)  # one n-th of the training cells
_QUICK_CELLS, _QUICK_EPOCHS = 80, 6

_Scores = tuple[float, float, float]  # macro AUC, ACC, F1


@dataclass(frozen=True)
class AblationRow:
    """One model of an ablation and its scores.

    Attributes
    ----------
    study : {"neighbours", "depths", "cells"}
        What was changed.
    setting : str
        To what; for ``depths`` encoder:decoder as the paper names it, of N layers.
    cells : int
        Training cells.
    auc, acc, f1 : float
        Macro averages, fractions.
    reported : dict of str to tuple of float
        AUC, ACC, F1 (%) that the paper has for this setting, by dataset.
    """

    study: str
    setting: str
    cells: int
    auc: float
    acc: float
    f1: float
    reported: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def train_variants(
    dataset: Dataset,
    *,
    studies: Sequence[str] = STUDIES,
    preset: str = "small",
    settings: Mapping[str, Any] | None = None,
    split: str = "val",
    seed: int = 0,
    quick: bool = False,
    out: str | Path | None = None,
) -> Iterator[AblationRow]:
    """Train and score one model per setting; settings shared by studies once.

    With `out`, finished settings and checkpoints are kept there: after a crash, the same call
    resumes and yields the same rows. A file belongs to one setting, seed, split, content of the
    dataset and code of the package.

    Parameters
    ----------
    dataset : Dataset
        With labels, a train split and `split`.
    studies : sequence of str
        Of :data:`STUDIES`: K of the KNN-attention at the preset's depths (table 4), encoder:decoder
        depths of as many layers as the preset has (table 5), and the number of training cells.
    preset : str
        What is changed: ``small`` has 6 layers, ``nih3t3`` and ``u2os`` have 12. K = 2048 is a row
        of the paper's presets.
    settings : mapping of str to value, optional
        What differs from the preset in all rows, by fields of
        :class:`~gpattern_bench.methods.gpsnet.config.Config` and
        :class:`~gpattern_bench.methods.gpsnet.config.TrainingConfig`.
    split : str
        What to score; ``test`` only once nothing is chosen any more.
    seed : int
        Of the training cells that are left out, and of the models.
    quick : bool
        80 training cells and 6 epochs instead of all cells and the preset's epochs: minutes on
        two cores instead of about an hour; scores are lower, and so are differences.
    out : str or pathlib.Path, optional
        Folder for the scores of each setting that is done. Default: nothing is kept.

    Raises
    ------
    MethodError
        No such study or preset, or a network or training that cannot have these settings.
    """
    network, changed = split_settings(preset, settings or {})
    unknown = [study for study in studies if study not in STUDIES]
    if unknown:
        raise MethodError(f"no study named {', '.join(unknown)}; known: {', '.join(STUDIES)}")
    names = _drawn_cells(dataset, seed)
    names = names[:_QUICK_CELLS] if quick else names
    training = TRAININGS[preset]
    if quick:
        training = replace(training, epochs=_QUICK_EPOCHS, warmup=0.1)
    training = replace(training, **changed)
    by_cells = preset == "gpsnet" and not quick and not {"epochs", "steps"} & changed.keys()
    base = PRESETS[preset] | network
    rows = [(study, *row) for study in studies for row in _rows(study, preset, base, len(names))]
    found: dict[str, _Scores] = {}
    for k, (study, setting, changes, cells) in enumerate(rows, 1):
        name, began = f"{study} {setting}, {k} of {len(rows)}", time.monotonic()
        if by_cells:
            training = replace(training, steps=steps_for(cells))
        key = run_key("gpsnet_coordinates", dataset, seed) | {
            "config": base | changes,
            "training": asdict(training),
            "train_cells": cells,
            "split": split,
        }
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        file = None if out is None else Path(out) / f"{digest}.json"
        if file is not None and text not in found and (kept := _kept(file, text)) is not None:
            found[text] = kept
        if text in found:
            took = "found done"
        else:
            _log.info("%s: training on %d cells", name, cells)
            checkpoint = None if file is None else file.with_suffix(".safetensors")
            method = GPSNetMethod(preset, training=training, **network | changes)
            context = FitContext(checkpoint=checkpoint)
            method.fit(dataset.iter_cells("train", keep=names[:cells]), seed, context)
            found[text] = _scored(method, dataset, split)
            if file is not None:
                record = {"key": key, "scores": plain(found[text])}
                write_text(file, json.dumps(record, indent=1) + "\n")
                file.with_suffix(".safetensors").unlink(missing_ok=True)
            took = duration(time.monotonic() - began)
        _log.info("%s: AUC %.4f, ACC %.4f, F1 %.4f; %s", name, *found[text], took)
        paper = REPORTED.get(study, {})
        reported = {name: rows[setting] for name, rows in paper.items() if setting in rows}
        yield AblationRow(study, setting, cells, *found[text], reported)


def _kept(file: Path, key: str) -> _Scores | None:
    """Read the scores of an earlier start, if of this key."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if json.dumps(record["key"], sort_keys=True) != key:
            return None
        auc, acc, f1 = (np.nan if score is None else score for score in record["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return auc, acc, f1


def ablation_table(rows: Iterable[AblationRow]) -> str:
    """Format our scores (%) beside the paper's."""
    shown = []
    for row in rows:
        ours = [f"{100 * value:.2f}" for value in (row.auc, row.acc, row.f1)]
        paper = [
            " / ".join(f"{value:.2f}" for value in row.reported[name])
            if name in row.reported
            else ""
            for name in _PAPER
        ]
        shown.append([row.study, row.setting, row.cells, " / ".join(ours), *paper])
    heads = ["study", "setting", "cells", "AUC / ACC / F1"]
    heads += [f"the paper, {name}" for name in _PAPER]
    return tabulate(shown, heads, tablefmt="github", disable_numparse=True)


def _rows(
    study: str, preset: str, base: Mapping[str, Any], cells: int
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Rows of a study: how they are named, changes of the preset, training cells."""
    encoder, decoder = base["encoder_depth"], base["decoder_depth"]
    if study == "neighbours":
        if not encoder:
            raise MethodError(
                "K plays no part without an encoder: name another --preset, or --set "
                "encoder_depth=1 or more"
            )
        more = () if preset in ("small", "gpsnet") else (_MOST_NEIGHBOURS,)
        for k in (*_NEIGHBOURS, *more):
            yield str(k), {"neighbours": k}, cells
    elif study == "depths":
        n = encoder + decoder
        if n % 6:
            raise MethodError(
                f"{n} layers cannot be divided 2:1 and 1:1: --set encoder_depth and decoder_depth "
                "to a sum that 6 divides"
            )
        ours = {"(N-1):1": n - 1} | {ratio: n * part // 6 for ratio, part in _SHARES.items()}
        for ratio, depth in (ours | {"1:(N-1)": 1}).items():
            yield ratio, {"encoder_depth": depth, "decoder_depth": n - depth}, cells
    else:
        for part in _PARTS:
            yield f"1/{part}" if part > 1 else "all", {}, max(cells // part, 1)


def _drawn_cells(dataset: Dataset, seed: int) -> list[str]:
    """Ids of the training cells in a random order: the first n are a sample of n."""
    names = sorted(str(name) for name in dataset.cells("train")["cell_id"])
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(names))
    return [names[at] for at in order]


def _scored(method: GPSNetMethod, dataset: Dataset, split: str) -> _Scores:
    scores = predict_cells(method, dataset.iter_cells(split))
    result = Evaluator(dataset, split=split).eval(counted(scores, dataset.pairs(split)))
    return result["auc_macro"], result["acc_macro"], result["f1_macro"]
