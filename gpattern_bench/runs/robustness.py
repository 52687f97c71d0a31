"""Robustness: a method's scores under changed positions and measurements of cells.

Where a cell lies on the slide, how it is turned and in which order its molecules are listed says
nothing about patterns: a method that looks at more than the cell changes no score under those
perturbations. Fewer molecules and less exact positions cost something; how much is measured.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import shapely
from numpy.typing import NDArray

from gpattern_bench.base.files import plain, write_text
from gpattern_bench.base.geometry import surrogate_outline
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError, MethodError
from gpattern_bench.evaluate.evaluator import Evaluator, Result
from gpattern_bench.methods import get_method
from gpattern_bench.methods.base import Method, takes_context
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.saved_model import load_model, variant_of_run
from gpattern_bench.runs.training import choose_protocol, fitted_on
from gpattern_bench.tables.predictions import Origin, Protocol, TrainedOn, counted

_log = logging.getLogger(__name__)

__all__ = [
    "ABSENCES",
    "MEANINGLESS",
    "PERTURBATIONS",
    "RobustnessReport",
    "Setting",
    "Stability",
    "measure_robustness",
    "perturbed",
    "pixel_um",
    "run_robustness",
]

_SPLIT = "test"
_SHIFT_UM = 10_000.0  # how far a dataset is moved along x and y, at most: a slide is a few cm
_PIXEL_UM = 0.1  # of sources in micrometres, of which no pixel is known

Coordinates = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Inputs of a perturbation beside the cell.

    Attributes
    ----------
    rng : numpy.random.Generator
        Of this cell.
    origin : numpy.ndarray
        (2,) the cell's centroid in the slide, um.
    shift : numpy.ndarray
        (2,) the way that the whole dataset is moved, um.
    pixel_um : float
        Pixel size of the source.
    """

    rng: np.random.Generator
    origin: Coordinates
    shift: Coordinates
    pixel_um: float


def _mapped(cell: Cell, transform: Callable[[Coordinates], Coordinates]) -> Cell:
    """Transform molecules and outlines alike."""
    return replace(
        cell,
        xy=transform(cell.xy),
        boundary=shapely.transform(cell.boundary, transform),
        nucleus=None if cell.nucleus is None else shapely.transform(cell.nucleus, transform),
    )


def _rotated(cell: Cell, setting: Setting) -> Cell:
    angle = setting.rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    return _mapped(cell, lambda xy: xy @ matrix)


def _reflected(cell: Cell, setting: Setting) -> Cell:  # noqa: ARG001 - called like the others
    return _mapped(cell, lambda xy: xy * np.array([-1.0, 1.0]))


def _translated(cell: Cell, setting: Setting) -> Cell:
    # Tables hold molecules as float32 of the slide: that is all that a shift can change.
    there = setting.origin + setting.shift
    moved = _mapped(cell, lambda xy: (xy + there) - there)
    return replace(moved, xy=(cell.xy + there).astype(np.float32).astype(np.float64) - there)


def _kept(cell: Cell, rows: NDArray[np.intp]) -> Cell:
    """Keep some molecules of a cell; drop its labels, whose pairs change."""
    z = None if cell.z is None else cell.z[rows]
    return replace(cell, xy=cell.xy[rows], gene=cell.gene[rows], z=z, labels=None, labelled=None)


def _shuffled(cell: Cell, setting: Setting) -> Cell:
    # A cell's molecules are sorted by gene, and stay so.
    return _kept(cell, np.lexsort((setting.rng.random(len(cell.gene)), cell.gene)))


def _thinned(cell: Cell, setting: Setting) -> Cell:
    half = (len(cell.gene) + 1) // 2
    return _kept(cell, np.sort(setting.rng.permutation(len(cell.gene))[:half]))


def _jittered(cell: Cell, setting: Setting) -> Cell:
    return replace(cell, xy=cell.xy + setting.rng.normal(0.0, setting.pixel_um, cell.xy.shape))


def _without_nucleus(cell: Cell, setting: Setting) -> Cell:  # noqa: ARG001 - as above
    return replace(cell, nucleus=None)


def _without_outlines(cell: Cell, setting: Setting) -> Cell:  # noqa: ARG001 - as above
    outline = surrogate_outline(cell.xy)
    return replace(cell, nucleus=None, boundary=cell.boundary if outline is None else outline)


PERTURBATIONS: dict[str, Callable[[Cell, Setting], Cell]] = {
    "rotated": _rotated,
    "reflected": _reflected,
    "translated": _translated,
    "shuffled": _shuffled,
    "thinned": _thinned,
    "jittered": _jittered,
    "without_nucleus": _without_nucleus,
    "without_outlines": _without_outlines,
}
"""By name: each cell about its centroid by a random angle, with its outlines; x to -x; the whole
dataset moved in the slide by up to 10 mm along x and y, to float32 as tables hold it; molecules of
each gene in another order; half of each cell's molecules, rounded up; each molecule moved by
normal noise of one source pixel (standard deviation along x and y); cells as if no nucleus had been
segmented; as if nothing had been, so that the outline is that of the molecules
(:func:`gpattern_bench.base.geometry.surrogate_outline`)."""

MEANINGLESS = ("rotated", "reflected", "translated", "shuffled")
"""Those that say nothing about patterns."""

ABSENCES = ("without_nucleus", "without_outlines")
"""Those that take an input away; not part of the worst drop."""


def perturbed(
    cells: Cells,
    perturbation: str,
    *,
    origins: dict[str, Coordinates],
    seed: int,
    pixel_um: float,
) -> Cells:
    """Perturb cells as they stream, the same way every time; hide labels.

    Parameters
    ----------
    cells : Cells
    perturbation : str
        Of :data:`PERTURBATIONS`.
    origins : dict of str to numpy.ndarray
        Cell id -> (2,) its centroid in the slide, um.
    seed : int
    pixel_um : float
        Pixel size of the source.
    """

    def rng(cell_id: str) -> np.random.Generator:
        # By name, not by turn: a cell is perturbed alike in any company.
        key = crc32(f"{perturbation} {cell_id}".encode())
        return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64)))

    perturb = PERTURBATIONS[perturbation]
    shift = rng("").uniform(-_SHIFT_UM, _SHIFT_UM, 2)

    def change(cell: Cell) -> Cell:
        return perturb(cell, Setting(rng(cell.cell_id), origins[cell.cell_id], shift, pixel_um))

    return cells.without_labels().mapped(change)


@dataclass(frozen=True)
class Stability:
    """Scores of perturbed cells beside those of the same pairs unperturbed.

    Attributes
    ----------
    n : int
        Labelled pairs that still have molecules; both sides are scored on these.
    f1_macro : float
        Of the perturbed.
    f1_drop, auc_drop : float
        Macro averages unperturbed minus perturbed: positive is worse.
    largest_change : float
        Of any score of these pairs, absolute.
    """

    n: int
    f1_macro: float
    f1_drop: float
    auc_drop: float
    largest_change: float


@dataclass(frozen=True)
class RobustnessReport:
    """Scores of one fitted method under perturbations; fractions, NaN = undefined.

    Attributes
    ----------
    method, dataset, version : str
    seed : int
        Of the run, and of the perturbations.
    protocol, trained_on
        As in the run's prediction files.
    f1_macro, auc_macro : float
        Of all labelled pairs of the test split, unperturbed.
    f1_worst_drop : float
        Over all perturbations but :data:`ABSENCES`.
    largest_change : float
        Over :data:`MEANINGLESS` ones: 0 for a method that looks at nothing but the cell.
    perturbations : dict of str to Stability
        By the names of :data:`PERTURBATIONS`.
    """

    method: str
    dataset: str
    version: str
    seed: int
    protocol: Protocol
    trained_on: TrainedOn
    f1_macro: float
    auc_macro: float
    f1_worst_drop: float
    largest_change: float
    perturbations: dict[str, Stability]


def pixel_um(dataset: Dataset) -> float:
    """Pixel size of a dataset's source, um; 0.1 where the source is in micrometres.

    That is so for simulated cells and for formats whose coordinates are micrometres (unit 1).
    """
    unit = dataset.manifest.unit_um
    return _PIXEL_UM if unit == 1.0 else unit


def measure_robustness(
    method: Method, dataset: Dataset, *, seed: int = 0
) -> tuple[Result, dict[str, Stability]]:
    """Score the test cells of a dataset as they are and under every perturbation.

    Parameters
    ----------
    method : Method
        Fitted.
    dataset : Dataset
        With labels and a test split.
    seed : int
        Of the perturbations.

    Returns
    -------
    result : Result
        Of the cells as they are, without intervals.
    found : dict of str to Stability
        By the names of :data:`PERTURBATIONS`.
    """
    evaluator = Evaluator(dataset, _SPLIT)
    truth = evaluator.labels[list(dataset.patterns)].to_numpy(bool)
    cells = dataset.iter_cells(_SPLIT)
    places = dataset.cells(_SPLIT, ["cell_id", "x", "y"])
    centroids = places[["x", "y"]].to_numpy(np.float64)
    origins = dict(zip(places["cell_id"].astype(str), centroids, strict=True))

    def scores_of(stream: Cells) -> NDArray[np.float32]:
        """Score pairs (N, C), in the order of the labels; NaN for absent ones."""
        found = counted(predict_cells(method, stream), evaluator.labels)
        scores = np.full(truth.shape, np.nan, np.float32)
        scores[found.index] = found[list(dataset.patterns)]
        return scores

    def score(rows: NDArray[np.bool_], scores: NDArray[np.float32]) -> Result:
        return evaluator.eval({"y_true": truth[rows], "y_pred": scores[rows]})

    before = scores_of(cells)
    if np.isnan(before).any():
        raise MethodError(f"{method.about.name} gives no scores for some pairs of {dataset.id}")
    found = {}
    for name in PERTURBATIONS:
        after = scores_of(
            perturbed(cells, name, origins=origins, seed=seed, pixel_um=pixel_um(dataset))
        )
        rows = np.asarray(np.isfinite(after).all(axis=1), bool)
        old, new = score(rows, before), score(rows, after)
        found[name] = Stability(
            n=int(rows.sum()),
            f1_macro=new["f1_macro"],
            f1_drop=old["f1_macro"] - new["f1_macro"],
            auc_drop=old["auc_macro"] - new["auc_macro"],
            largest_change=float(np.abs(after[rows] - before[rows]).max()),
        )
        _log.info("cells %s: F1 %.4f (%+.4f)", name, new["f1_macro"], -found[name].f1_drop)
    return score(np.ones(len(truth), bool), before), found


def run_robustness(
    name: str, dataset: Dataset, out: str | Path, *, train_on: Sequence[Dataset] = (), seed: int = 0
) -> tuple[Path, RobustnessReport]:
    """Measure the robustness of a run's model and write it beside the run's files.

    Parameters
    ----------
    name : str
        A method of :data:`gpattern_bench.methods.METHODS`, or a variant that a run left in `out`.
    dataset : Dataset
        What was predicted.
    out : str or pathlib.Path
        The run's folder, as given to :func:`gpattern_bench.run.run_method`: a method that learns
        is loaded from ``out/<dataset>/model-seed<k>``. Nothing is fitted here.
    train_on : sequence of Dataset
        As in the run. Of other patterns: what the model that the run started from was fitted on.
    seed : int
        Of the run, and of the perturbations.

    Returns
    -------
    path : pathlib.Path
        ``out/<dataset>/robustness-seed<k>.json``, with the protocol in the name as in the run's.
    robustness : RobustnessReport

    Raises
    ------
    MethodError
        The run left no such model, or one of something else.
    """
    if seed < 0:
        raise MethodError(f"expected a seed of 0 or more, got {seed}")
    method = variant_of_run(name, Path(out) / dataset.name, seed) or get_method(name)
    if method.about.sees_labels:
        raise MethodError(f"{name} shows the labels: there is nothing to perturb")
    if _SPLIT not in dataset.splits or not dataset.has_labels:
        raise GPatternBenchError(
            f"robustness needs a labelled {_SPLIT} split; {dataset.id} has none"
        )
    before = []
    if takes_context(method):  # it may have started from a model of other patterns
        before = [one for one in train_on if one.patterns != dataset.patterns]
    of_run = [one for one in train_on if one not in before]
    protocol = choose_protocol(method, dataset, of_run, False, before)
    trained_on = fitted_on(dataset, of_run, False, before) if method.about.learns else None
    origin = Origin(dataset.name, dataset.version, _SPLIT, name, seed, protocol, trained_on)
    folder = Path(out) / dataset.name
    if method.about.learns:
        method = _fitted(
            folder / origin.stem("model"), name, trained_on or (dataset.id,), dataset, seed
        )
    result, found = measure_robustness(method, dataset, seed=seed)
    robustness = RobustnessReport(
        method=name,
        dataset=dataset.name,
        version=dataset.version,
        seed=seed,
        protocol=protocol,
        trained_on=trained_on,
        f1_macro=result["f1_macro"],
        auc_macro=result["auc_macro"],
        f1_worst_drop=max(one.f1_drop for key, one in found.items() if key not in ABSENCES),
        largest_change=max(found[key].largest_change for key in MEANINGLESS),
        perturbations=found,
    )
    path = folder / f"{origin.stem('robustness')}.json"
    write_text(path, json.dumps(plain(asdict(robustness)), indent=1) + "\n")
    return path, robustness


def _fitted(
    folder: Path, name: str, fitted_on: tuple[str, ...], dataset: Dataset, seed: int
) -> Method:
    """Load a run's model."""
    if not folder.is_dir():
        raise MethodError(
            f"{name} must be fitted, and there is no {folder}: `gpattern-bench run {name}` with "
            "the same --dataset, --seed and --out writes it"
        )
    method, model = load_model(folder)
    said = (model.method, model.fitted_on, model.seed, tuple(model.patterns))
    wanted = (name, fitted_on, seed, dataset.patterns)
    if said != wanted:
        raise MethodError(
            f"{folder} holds another model: expected method, training sets, seed and patterns "
            f"{wanted}, got {said}; run it again into another folder"
        )
    return method
