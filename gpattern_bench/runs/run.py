"""Runs: one method on one dataset, to prediction files and what they cost, measured."""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gpattern_bench.base.files import plain, replacing, write_text
from gpattern_bench.base.launcher import process_index
from gpattern_bench.base.progress import duration
from gpattern_bench.base.version import __version__
from gpattern_bench.data.cells import Cells
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import MethodError, UnknownDatasetError
from gpattern_bench.evaluate.calls import val_thresholds
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.methods.base import (
    FitContext,
    Method,
    Network,
    fit_in_context,
    takes_context,
)
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.predictions import prediction_table
from gpattern_bench.runs.cost import Cost, peak_rss_mib, versions_used
from gpattern_bench.runs.dependence import measure_dependence
from gpattern_bench.runs.saved_model import Model, load_model, save_model
from gpattern_bench.runs.training import (
    choose_protocol,
    fitted_on,
    training_cells,
    training_ids,
    val_cells,
)
from gpattern_bench.tables.model_output import Variant
from gpattern_bench.tables.predictions import (
    Origin,
    Protocol,
    TrainedOn,
    counted,
    name_clash,
    write_tables,
)

__all__ = [
    "FOLDS",
    "Run",
    "fit_method",
    "run_method",
    "run_origins",
    "write_run",
]

_log = logging.getLogger(__name__)

_Scored = tuple[list[str], pd.DataFrame]  # fields of view, and scores of all of their pairs

FOLDS = 5
"""Folds of the cross-validation by cell."""


@dataclass(frozen=True)
class Run:
    """Report of a run, stored beside its prediction files as JSON.

    Attributes
    ----------
    method, dataset, version : str
    seed : int
    protocol : str
        One of :data:`gpattern_bench.predictions.Protocol`.
    trained_on : tuple of str or None
        As in the prediction files.
    seconds : dict of str to float
        Wall time of ``fit`` and of the prediction of each split; out of fold, ``fit`` is the sum
        over all folds. Older reports have no ``fit`` out of fold: their predictions hold it.
    cells : dict of str to int
        Cells of each split.
    peak_rss_mib : float
        Largest memory of the process so far, MiB.
    device : str
        Processor and cores, and the GPU if one was used.
    parameters : int or None
        Numbers that the fitted method keeps: its attribute ``parameters``, if any. Out of fold,
        those of the last fold.
    date : str or None
        Day on which it ended, UTC, ISO 8601. Reports of older versions lack this and the number
        of parameters, and what follows.
    package_version : str
    batch_size : int or None
        Of a network: cells scored together, to these prediction files.
    seconds_by_batch : dict of str to float or None
        Of a network: batch size -> wall time of predicting test alone, also out of fold. Always
        of 1, as the paper measures validation; of `batch_size` beside it if that is another.
    variant : Variant or None
        Of what the method is a variant.
    sample_cells : int or None
        At most so many of the training cells, drawn at random, were fitted on; None: all.
    depends_on : tuple of str or None
        Of a method of your own: the inputs that change its scores
        (:func:`gpattern_bench.runs.dependence.measure_dependence`), to be compared with those that
        its submission declares.
    repeats : bool or None
        Of a method of your own: whether the same cells got the same scores twice.
    cpu_seconds : dict of str to float or None
        Processor time beside `seconds` (:class:`~gpattern_bench.runs.cost.Cost`). None if a GPU
        was used: most of the work is not in it.
    cpu_seconds_by_batch : dict of str to float or None
        Beside `seconds_by_batch`.
    versions : dict of str to str or None
        Of this package, Python, and the packages that scores rest on.
    """

    method: str
    dataset: str
    version: str
    seed: int
    protocol: Protocol
    trained_on: TrainedOn
    seconds: dict[str, float]
    cells: dict[str, int]
    peak_rss_mib: float
    device: str
    parameters: int | None = None
    date: str | None = None
    package_version: str = __version__
    batch_size: int | None = None
    seconds_by_batch: dict[str, float] | None = None
    variant: Variant | None = None
    sample_cells: int | None = None
    depends_on: tuple[str, ...] | None = None
    repeats: bool | None = None
    cpu_seconds: dict[str, float] | None = None
    cpu_seconds_by_batch: dict[str, float] | None = None
    versions: dict[str, str] | None = None


def run_method(
    method: str | Method,
    dataset: Dataset,
    out: str | Path,
    *,
    train_on: Sequence[Dataset] = (),
    cv: bool = False,
    seed: int = 0,
    init: Path | None = None,
    batch_size: int | None = None,
    sample_cells: int | None = None,
) -> list[Path]:
    """Fit a method and write its prediction files for val and test.

    Files go to ``out/<dataset>/``: ``<split>-seed<k>.parquet``, ``run-seed<k>.json`` and, except
    out of fold, the folder ``model-seed<k>`` (:mod:`gpattern_bench.runs.saved_model`), with the
    protocol, and the other training sets, in the name where it was not fitted on the dataset's own
    train split.

    Parameters
    ----------
    method : str or Method
        A name of :data:`gpattern_bench.methods.METHODS`, or a method of your own, not fitted yet
        (``submissions/_template/run.py``): what it costs is measured in the same way.
    dataset : Dataset
        What to predict.
    out : str or pathlib.Path
    train_on : sequence of Dataset
        Fit on the train splits of these together, or on all labelled pairs of those without one
        (:func:`gpattern_bench.runs.training.training_cells`). Empty: on the dataset's own.
    cv : bool
        Out-of-fold predictions by cell, for a dataset without a train split; with `train_on`,
        each fold's training has these beside the other folds. With `init`, one of other patterns
        only says where the data lies that the model was fitted on.
    seed : int
        Of the folds and of the method.
    init : pathlib.Path, optional
        Folder of a saved model to start from, for a method that is trained in steps. What that
        was fitted on counts as training data. Of other patterns, its last layer begins anew.
    batch_size : int, optional
        Cells that a network scores together; scores differ in their last digits. Default: 1, and
        the method's own out of fold. If it is not 1, test is predicted cell by cell as
        well, for the time that takes.
    sample_cells : int, optional
        Fit on at most so many of the training cells (of each fold), drawn at random by the seed;
        all pairs are predicted.

    Returns
    -------
    list of pathlib.Path
        The prediction files.

    Raises
    ------
    MethodError
        The method cannot be fitted as asked, has the name of one that ships with the package, or
        would replace scores after other training; the text says what to do instead.
    """
    if seed < 0:
        raise MethodError(f"expected a seed of 0 or more, got {seed}")
    name, make = _named(method)
    method = make()
    if batch_size is not None and not isinstance(method, Network):
        raise MethodError(f"{name} scores cell by cell: leave out --batch-size")
    if batch_size is not None and batch_size < 1:
        raise MethodError(f"expected a --batch-size of 1 or more, got {batch_size}")
    if sample_cells is not None and not method.about.learns:
        raise MethodError(f"{name} learns nothing: leave out --sample-cells")
    if sample_cells is not None and sample_cells < 1:
        raise MethodError(f"expected --sample-cells of 1 or more, got {sample_cells}")
    before: list[Dataset] = []
    if init is not None:
        before = _fitted_before(method, init, dataset, train_on)
        named_only = [one for one in before if one.patterns != dataset.patterns]
        train_on = [one for one in train_on if one not in named_only]
    protocol = choose_protocol(method, dataset, train_on, cv, before)
    trained_on = fitted_on(dataset, train_on, cv, before) if method.about.learns else None
    origins = run_origins(name, dataset, seed, protocol, trained_on)
    costs: dict[str, Cost] = {"fit": Cost()} if protocol == "cv-cell" else {}
    folder = Path(out) / dataset.name
    for origin in origins:
        if clash := name_clash(folder / f"{origin.stem()}.parquet", origin):
            raise MethodError(f"{clash}: name another --out")
    training = folder / f"{origins[0].stem('training')}.safetensors"
    if method.about.learns and protocol != "cv-cell":
        costs["fit"] = fit_method(
            method, train_on or [dataset], seed, training, init=init, sample_cells=sample_cells
        )
    if process_index() > 0:
        return []  # the first of the processes that train together continues
    scores: dict[str, Iterable[_Scored]] = {}
    by_batch: dict[int, Cost] = {}
    for split in (origin.split for origin in origins):
        timed = by_batch if split == "test" else None
        if protocol == "cv-cell":
            folds, costs[split] = [], Cost()
            for k, (train, held_out) in enumerate(_folds(dataset, split, seed, train_on), 1):
                _log.info("%s: fold %d of %d of %s", name, k, FOLDS, split)
                train = train if sample_cells is None else train.sampled(sample_cells, seed)
                method = make()  # for each fold: nothing of another is left in it
                began = Cost.now()
                fit_in_context(method, train, seed, FitContext(init=init))
                costs["fit"] += Cost.now() - began
                _set_batch(method, batch_size)
                found, spent = _scored(method, held_out, timed)
                folds.append(found)
                costs[split] += spent
            found = pd.concat(folds, ignore_index=True)
        else:
            _set_batch(method, batch_size)
            found, costs[split] = _scored(method, dataset.iter_cells(split), timed)
        scores[split] = [(dataset.fovs(split), found)]
        _log.info("%s: predicted %s in %s", name, split, duration(costs[split].seconds))
    files = write_run(
        method,
        dataset,
        origins,
        scores,
        folder,
        costs=costs,
        costs_by_batch=by_batch,
        sample_cells=sample_cells,
    )
    training.unlink(missing_ok=True)  # nothing to resume
    return files


def _set_batch(method: Method, size: int | None) -> None:
    if size is not None and isinstance(method, Network):
        method.batch = size


def _scored(
    method: Method, cells: Cells, by_batch: dict[int, Cost] | None
) -> tuple[pd.DataFrame, Cost]:
    """Score cells: the scores, and what they cost.

    Adds to `by_batch` what that takes a network, and what cell by cell.
    """
    began = Cost.now()
    found = predict_cells(method, cells)
    spent = Cost.now() - began
    if by_batch is not None and isinstance(method, Network):
        own = method.batch
        by_batch[own] = by_batch.get(own, Cost()) + spent
        if own != 1:
            method.batch = 1
            began = Cost.now()
            predict_cells(method, cells)
            by_batch[1] = by_batch.get(1, Cost()) + Cost.now() - began
            method.batch = own
    return found, spent


def run_origins(
    method: str,
    dataset: Dataset,
    seed: int,
    protocol: Protocol,
    trained_on: tuple[str, ...] | None = None,
    splits: Sequence[str] | None = None,
) -> list[Origin]:
    """List the origins of a run's prediction files.

    Of all `splits`, or without any named of val and test, as far as the dataset has them.

    Raises
    ------
    MethodError
        The dataset lacks one of `splits`, or has neither val nor test.
    """
    if splits is None and not (splits := [s for s in ("val", "test") if s in dataset.splits]):
        raise MethodError(
            f"{dataset.id} has no split to predict: expected val or test, got "
            f"{', '.join(dataset.splits)} only; curate it with one, or score all of its pairs by "
            "`gpattern-bench predict`"
        )
    if foreign := [split for split in splits if split not in dataset.splits]:
        raise MethodError(
            f"{dataset.id} has no split {', '.join(foreign)}; it has {', '.join(dataset.splits)}"
        )
    return [
        Origin(dataset.name, dataset.version, split, method, seed, protocol, trained_on)
        for split in dict.fromkeys(splits)
    ]


def _fitted_before(
    method: Method, init: Path, dataset: Dataset, train_on: Sequence[Dataset]
) -> list[Dataset]:
    """Return what the model to start from was fitted on."""
    if not takes_context(method):
        raise MethodError(f"{method.about.name} cannot start from a model: leave out --init")
    _, model = load_model(init)
    if _family(model.method, model.variant) != _family(method.about.name, _variant(method)):
        raise MethodError(
            f"--init {init} is a model of {model.method}; expected one of {method.about.name}"
        )
    named, given = model.fitted_on or (), {one.id: one for one in (*train_on, dataset)}
    before = []
    for one in named:
        try:
            before.append(given.get(one) or load_dataset(one))
        except UnknownDatasetError as error:
            raise MethodError(
                f"--init {init} was fitted on {one}, which is not in the registry: name its folder "
                "with --train-on, so that it counts as training data"
            ) from error
    if dataset.id in named and "train" not in dataset.splits:
        raise MethodError(
            f"--init {init} was fitted on the labels of {dataset.id} that are scored here: start "
            "from another model"
        )
    return before


def fit_method(
    method: Method,
    sources: Sequence[Dataset],
    seed: int,
    training: Path,
    *,
    init: Path | None = None,
    sample_cells: int | None = None,
) -> Cost:
    """Fit on the train splits of datasets, or on all of one without; return what it cost.

    A method that takes a context may resume from the checkpoint `training`, which stays, and start
    from the saved model `init`. With `sample_cells`, on at most so many cells, drawn at random.
    """
    name, began = method.about.name, Cost.now()
    _log.info("%s: fitting on %s", name, ", ".join(training_ids(sources) or ()))
    context = FitContext(val_cells(sources), training, init)
    train = training_cells(sources)
    if sample_cells is not None:
        train = train.sampled(sample_cells, seed)
        _log.info("%s: on %d cells", name, len(train))
    fit_in_context(method, train, seed, context)
    if isinstance(method, Network):
        method.batch = 1  # as the paper measures the time of validation
    spent = Cost.now() - began
    _log.info("%s: fitted in %s", name, duration(spent.seconds))
    return spent


def write_run(
    method: Method,
    dataset: Dataset,
    origins: list[Origin],
    scores: Mapping[str, Iterable[_Scored]],
    folder: Path,
    *,
    costs: Mapping[str, Cost],
    costs_by_batch: Mapping[int, Cost] | None = None,
    sample_cells: int | None = None,
    peak_rss: float = 0.0,
) -> list[Path]:
    """Check the scores of every split and write all files of a run.

    Parameters
    ----------
    method : Method
        Fitted.
    dataset : Dataset
    origins : list of Origin
    scores : mapping of str to iterable of (list of str, pandas.DataFrame)
        Split -> fields of view, in their order, and what
        :func:`~gpattern_bench.methods.predict.predict_cells` gave of them, rows in any order. One
        is in memory at a time.
    folder : pathlib.Path
    costs, costs_by_batch
        Of ``fit`` and of the prediction of each split; batch size -> of predicting test.
    sample_cells : int, optional
        See :class:`Run`.
    peak_rss : float
        Of other processes that had a part in it, MiB.

    Returns
    -------
    list of pathlib.Path
        The prediction files.
    """
    name, seed, protocol = origins[0].method, origins[0].seed, origins[0].protocol
    trained_on = origins[0].trained_on
    rules = method.about.rules_for
    if rules is not None and (none := [p for p in dataset.patterns if p not in rules]):
        _log.warning("%s has no rule for %s: scored 0 everywhere", name, ", ".join(none))
    files = [folder / f"{origin.stem()}.parquet" for origin in origins]
    with ExitStack() as all_or_none:
        besides = [all_or_none.enter_context(replacing(file)) for file in files]
        for origin, beside in zip(origins, besides, strict=True):
            tables = _prediction_tables(scores[origin.split], dataset, origin)
            write_tables(tables, beside)
    if protocol != "cv-cell" and not method.about.sees_labels:
        thresholds = None
        if dataset.has_labels:
            for file, origin in zip(files, origins, strict=True):
                if origin.split == "val":
                    thresholds = plain(val_thresholds(dataset, file))
        fitted_on = (trained_on or (dataset.id,)) if method.about.learns else None
        model = Model(
            name, list(dataset.patterns), fitted_on, thresholds, seed, variant=_variant(method)
        )
        save_model(method, model, folder / origins[0].stem("model"))
    by_batch = {str(size): cost for size, cost in sorted((costs_by_batch or {}).items())}
    gpu = _gpu()
    report = Run(
        method=name,
        dataset=dataset.name,
        version=dataset.version,
        seed=seed,
        protocol=protocol,
        trained_on=trained_on,
        seconds=_by_clock(costs),
        cells={o.split: len(dataset.iter_cells(o.split)) for o in origins},
        peak_rss_mib=round(max(peak_rss_mib(), peak_rss), 1),
        device=_device(gpu),
        parameters=_parameters(method),
        date=datetime.now(UTC).date().isoformat(),
        batch_size=method.batch if isinstance(method, Network) else None,
        seconds_by_batch=_by_clock(by_batch) or None,
        variant=_variant(method),
        sample_cells=sample_cells,
        cpu_seconds=None if gpu else _of_processor(costs),
        cpu_seconds_by_batch=None if gpu else _of_processor(by_batch) or None,
        versions=versions_used(),
    )
    if name not in METHODS:  # of those, tests compare what they declare
        found = measure_dependence(method, dataset.iter_cells(origins[-1].split))
        report = replace(report, depends_on=found.inputs, repeats=found.repeats)
    path = folder / f"{origins[0].stem('run')}.json"
    write_text(path, json.dumps(asdict(report), indent=1) + "\n")
    return files


def _prediction_tables(
    scores: Iterable[_Scored], dataset: Dataset, origin: Origin
) -> Iterator[pa.Table]:
    for fovs, found in scores:
        pairs = dataset.pairs(fovs=fovs)
        yield prediction_table(counted(found, pairs), dataset, origin, pairs)


def _named(method: str | Method) -> tuple[str, Callable[[], Method]]:
    """Return a method's name and a factory of unfitted copies."""
    if isinstance(method, str):
        return method, partial(get_method, method)
    name = method.about.name
    if name in METHODS and not isinstance(method, type(get_method(name))):
        raise MethodError(f"{name} is the name of a method of this package: choose another")
    return name, partial(copy.deepcopy, method)


def _folds(
    dataset: Dataset, split: str, seed: int, beside: Sequence[Dataset]
) -> Iterator[tuple[Cells, Cells]]:
    """Yield training and held-out cells of each fold; other datasets stand beside the former."""
    names = np.array(dataset.cells(split)["cell_id"].tolist())
    if len(names) < FOLDS:
        raise MethodError(
            f"{dataset.id} has {len(names)} cells in {split}: {FOLDS} or more are needed for "
            f"{FOLDS} folds"
        )
    draws = np.random.Generator(np.random.Philox(seed)).random(len(names))
    fold = np.argsort(np.argsort(draws, kind="stable"), kind="stable") % FOLDS
    for k in range(FOLDS):
        train, held_out = names[fold != k].tolist(), names[fold == k].tolist()
        cells = training_cells(beside, (dataset, split, train))
        yield cells, dataset.iter_cells(split, keep=held_out)


def _by_clock(costs: Mapping[str, Cost]) -> dict[str, float]:
    return {what: round(cost.seconds, 3) for what, cost in costs.items()}


def _of_processor(costs: Mapping[str, Cost]) -> dict[str, float]:
    return {what: round(cost.cpu_seconds, 3) for what, cost in costs.items()}


def _parameters(method: Method) -> int | None:
    found = getattr(method, "parameters", None)
    return None if found is None else int(found)


def _variant(method: Method) -> Variant | None:
    return getattr(method, "variant", None)


def _family(name: str, variant: Variant | None) -> str:
    return name if variant is None else variant.base


def _device(gpu: str | None) -> str:
    device = f"CPU {platform.machine()}, {os.cpu_count()} cores"
    return f"{device}; GPU {gpu}" if gpu else device


def _gpu() -> str | None:
    """Name the GPU, if one was used."""
    torch = sys.modules.get("torch")  # imported by then
    if torch is None or not torch.cuda.is_initialized():
        return None
    name: str = torch.cuda.get_device_name()
    return name
