"""Training sets: the protocol that they make, and the cells of several as those of one."""

from __future__ import annotations

from collections.abc import Sequence

from gpattern_bench.data.cells import Cells, CellTables
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.base import About, Method
from gpattern_bench.tables.predictions import Protocol

__all__ = ["choose_protocol", "fitted_on", "training_cells", "training_ids", "val_cells"]

_Part = tuple[Dataset, str | None, Sequence[str] | None]  # the cells of a split, or some of them


def choose_protocol(
    method: Method,
    dataset: Dataset,
    train_on: Sequence[Dataset],
    cv: bool,
    before: Sequence[Dataset] = (),
) -> Protocol:
    """Choose the protocol of a run.

    Real labels of any other dataset make it `transfer`; other simulated datasets alone
    `simulation`, or beside the own train split `fit`.

    Parameters
    ----------
    method : Method
    dataset : Dataset
        What to predict.
    train_on : sequence of Dataset
        What to fit on; empty: the dataset's own train split, or folds.
    cv : bool
        Out of fold; `train_on` then stands beside the folds.
    before : sequence of Dataset
        What the model to start from was fitted on; its patterns may be others.

    Raises
    ------
    MethodError
        It cannot be fitted so; the text says what to do instead.
    """
    about = method.about
    if not about.learns:
        if cv or train_on:
            raise MethodError(
                f"{about.name} learns nothing from labels: leave out --train-on and --cv"
            )
        if about.sees_labels and not dataset.has_labels:
            raise MethodError(f"{about.name} shows the labels, and {dataset.id} has no labels")
        return "untrained"
    if problems := _problems(about, dataset, train_on, cv, before):
        raise MethodError("; ".join(problems))
    if (cv or not train_on) and not dataset.has_labels:
        raise MethodError(
            f"{about.name} must be fitted, and {dataset.id} has no labels: add --train-on NAME to "
            "fit on another dataset"
        )
    if cv:
        if "train" in dataset.splits:
            raise MethodError(
                f"{dataset.id} has a train split: run {about.name} without --cv, it is fitted there"
            )
        return "cv-cell"
    if not train_on and "train" not in dataset.splits:
        raise MethodError(
            f"{about.name} must be fitted, and {dataset.id} has no train split (only "
            f"{', '.join(dataset.splits)}): add --train-on NAME to fit on another dataset, or "
            "--cv cell for out-of-fold predictions"
        )
    sets = [*before, *(train_on or [dataset])]
    others = [source for source in sets if source.id != dataset.id]
    if not all(source.manifest.is_simulated for source in others):
        return "transfer"
    return "simulation" if len(others) == len(sets) else "fit"


def fitted_on(
    dataset: Dataset, train_on: Sequence[Dataset], cv: bool, before: Sequence[Dataset] = ()
) -> tuple[str, ...] | None:
    """Name all that a run is fitted on, as its files do; None: the own train split alone, or folds.

    Parameters are those of :func:`choose_protocol`.
    """
    sets = [*before, *(train_on if train_on or cv else [dataset])]
    return None if all(one.id == dataset.id for one in sets) else training_ids(sets)


def _problems(
    about: About,
    dataset: Dataset,
    train_on: Sequence[Dataset],
    cv: bool,
    before: Sequence[Dataset],
) -> list[str]:
    """Say why a method cannot be fitted on these datasets together, to predict `dataset`."""
    ids = [source.id for source in train_on]
    earlier = {source.id: source for source in before if source.id not in ids}
    problems = []
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        problems.append(f"--train-on names {', '.join(twice)} twice: name each dataset once")
    names = [one.partition("@")[0] for one in sorted({*ids, *earlier})]
    told = "--train-on, with what the model of --init was fitted on," if earlier else "--train-on"
    problems += [
        f"{told} names several versions of {name}: name one, they may hold the same cells"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if cv and dataset.id in ids:
        problems.append(
            f"--train-on {dataset.id} is the dataset to predict: leave it out, --cv cell fits on "
            "its folds"
        )
    elif ids == [dataset.id]:
        problems.append(
            f"--train-on {dataset.id} is the dataset to predict: leave it out to fit on its "
            "train split, or give --cv cell where it has none"
        )
    elif dataset.id in ids and "train" not in dataset.splits:
        problems.append(
            f"--train-on {dataset.id} is the dataset to predict, and has no train split (only "
            f"{', '.join(dataset.splits)}): leave it out"
        )
    for source in (earlier | {source.id: source for source in train_on}).values():
        given, instead = f"--train-on {source.id}", "leave it out"
        if source.id in earlier:
            given = f"the model of --init was fitted on {source.id}, which"
            instead = "start from another"
        if source.name == dataset.name and source.id != dataset.id:
            problems.append(
                f"{given} is another version of the dataset to predict, {dataset.id}"
                f", and may hold the cells that are scored: {instead}"
            )
        elif source.id != dataset.id and _content(source) == _content(dataset):
            problems.append(
                f"{given} has the molecules of the dataset to predict, {dataset.id}: {instead}"
            )
        if source.id in earlier:
            continue  # whatever its patterns: the last layer begins anew
        if not source.has_labels or source.patterns != dataset.patterns:
            problems.append(
                f"{about.name} cannot be fitted on {source.id} for {dataset.id}: it needs labels "
                f"of the patterns {', '.join(dataset.patterns)}, there are "
                f"{', '.join(source.patterns) if source.has_labels else 'no labels'}"
            )
    return problems


def _content(dataset: Dataset) -> str:
    return dataset.manifest.files["molecules.parquet"].content_sha256


def training_ids(train_on: Sequence[Dataset]) -> tuple[str, ...] | None:
    """Name training sets as prediction files do: sorted, each once; None for none."""
    return tuple(sorted({source.id for source in train_on})) or None


def training_cells(
    sources: Sequence[Dataset], fold: tuple[Dataset, str, Sequence[str]] | None = None
) -> Cells:
    """Stream the labelled cells of training sets; those of several as cells of one dataset.

    Of each its train split, or all cells if it has none. The panel of several is the sorted union
    of their genes, and a gene of one name is one gene. Their cells come dataset after dataset,
    sorted by id, and the name of the dataset stands before the names of cells and fields of view:
    ``synthetic/c0001``. One row group is in memory.

    Parameters
    ----------
    sources : sequence of Dataset
        With labels of the same patterns, in any order.
    fold : (Dataset, str, sequence of str), optional
        Another dataset, and the split and ids of the cells to take from it.
    """
    parts: list[_Part] = [
        (one, "train" if "train" in one.splits else None, None) for one in sources
    ]
    return _joined(parts if fold is None else [*parts, fold], sources)


def val_cells(sources: Sequence[Dataset]) -> Cells | None:
    """Stream the val splits of training sets, as :func:`training_cells`; None if none has one."""
    parts: list[_Part] = [(one, "val", None) for one in sources if "val" in one.splits]
    return _joined(parts, sources) if parts else None


def _joined(parts: Sequence[_Part], panel_of: Sequence[Dataset]) -> Cells:
    """Join parts of datasets; the panel is that of these, and of `panel_of`."""
    datasets = {one.id: one for one in (*panel_of, *(part[0] for part in parts))}
    if len(datasets) == 1:
        dataset, split, keep = parts[0]
        return dataset.iter_cells(split, keep=keep)
    return Cells(
        [
            CellTables(
                one.folder,
                one.fovs(split),
                None if keep is None else frozenset(keep),
                prefix=f"{one.name}/",
                simulated=one.manifest.is_simulated,
            )
            for one, split, keep in sorted(parts, key=lambda part: part[0].id)
        ],
        genes=tuple(sorted({gene for one in datasets.values() for gene in one.genes})),
        patterns=parts[0][0].patterns,
        labels=True,
    )
