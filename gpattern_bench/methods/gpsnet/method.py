"""GPSNet as a method: trained in all processes, saved without pickles, scores streamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ValidationError
from scipy.special import expit, logit

from gpattern_bench.base.files import plain, write_text
from gpattern_bench.base.threads import in_threads
from gpattern_bench.base.validation import adapter
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.base import About, FitContext, Scores
from gpattern_bench.methods.gpsnet.config import (
    FINE_TUNING,
    TRAININGS,
    Config,
    TrainingConfig,
    steps_for,
)
from gpattern_bench.methods.gpsnet.model import GPSNet, Tokens, prepare, vocabulary_rows
from gpattern_bench.methods.gpsnet.train import Trained, logits, train_network
from gpattern_bench.methods.gpsnet.weights import fits, load_into, read_tensors, write_tensors
from gpattern_bench.tables.model_output import Variant

__all__ = [
    "CoordinateMLP",
    "GPSNetContext",
    "GPSNetCoordinates",
    "GPSNetEnsemble",
    "GPSNetMethod",
    "GPSNetOutlines",
]

_log = logging.getLogger(__name__)

_CONFIG, _TRAINING, _WEIGHTS = "config.json", "training.json", "model.safetensors"

_BATCH = 8  # cells scored together
_WINDOW = 64  # cells among which those of similar length are sought
_NOTHING = FitContext()
_MEMBERS = 5  # of an ensemble
_SMALL = 1e-6
_MOST_CELLS, _MOST_VAL = 10_000, 1_000  # of a dataset, where steps go by the number of cells
_MOLECULES = 2**16  # of a window and of a batch: more only if one cell has more


class GPSNetMethod:
    """A transformer over the molecules of a cell.

    Parameters
    ----------
    preset : str
        ``gpsnet``; ``small``, which sees coordinates; or one of the paper's: ``nih3t3``, ``u2os``,
        ``cosmx_lung``.
    training : TrainingConfig, optional
        Default: the preset's; for ``gpsnet``, as many steps as the number of cells allows, on at
        most 10,000 cells of each dataset, drawn at random.
    **changes
        Of the preset's :class:`~gpattern_bench.methods.gpsnet.model.Config`.
    """

    about: ClassVar = About(
        name="gpsnet",
        label="GPSNet",
        kind="model",
        summary=(
            "Transformer over the molecules of a cell: each gene attends to its own molecules, "
            "known by where they lie between nucleus and outline."
        ),
        reference="the paper of this benchmark, section 3, with invariant inputs",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
    )
    own_preset: ClassVar[str] = "gpsnet"
    own_changes: ClassVar[dict[str, Any]] = {}
    own_training: ClassVar[dict[str, Any]] = {}
    variant: ClassVar[Variant | None] = None  # of what it is one, as its files say

    def __init__(
        self,
        preset: str | None = None,
        *,
        training: TrainingConfig | None = None,
        **changes: Any,
    ) -> None:
        preset = preset or self.own_preset
        if preset not in TRAININGS:
            raise MethodError(f"no GPSNet named {preset!r}; known: {', '.join(TRAININGS)}")
        self.preset = preset
        self.training = training or replace(TRAININGS[preset], **self.own_training)
        self.batch = _BATCH
        # steps and stages by the cells
        own_length = training is not None or {"epochs", "steps"} & self.own_training.keys()
        self._scheduled = preset == "gpsnet" and not own_length
        self._changes = self.own_changes | changes
        self._trained: Trained | None = None

    def fit(self, train: Cells, seed: int, context: FitContext = _NOTHING) -> None:
        """Train; see :func:`gpattern_bench.methods.gpsnet.train.train_network`.

        The preset ``gpsnet``, of simulated and real cells together, is trained on the simulated
        ones, then fine-tuned on all. From ``context.init``, it is fine-tuned only.
        """
        init, checkpoint = self._initial(context.init), context.checkpoint
        before = None
        mixed = len({part.simulated for part in train.parts}) == 2
        if self._scheduled and init is None and mixed:
            if checkpoint is not None:
                before = checkpoint.with_name(f"{checkpoint.stem}-pretraining{checkpoint.suffix}")
            init = self._train(train.only_simulated(), seed, checkpoint=before).network
        self._trained = self._train(train, seed, context.val, checkpoint, init)
        if before is not None:
            before.unlink(missing_ok=True)

    def _train(
        self,
        train: Cells,
        seed: int,
        val: Cells | None = None,
        checkpoint: Path | None = None,
        init: GPSNet | None = None,
    ) -> Trained:
        config = Config.preset(self.preset, train.genes, train.patterns, **self._changes)
        if config.depth:
            if not train.has_depth:
                raise MethodError(
                    "depth is set, and no molecule of the training cells has a z: leave it out, or "
                    "train on cells with z"
                )
            train, val = train.with_depth(), None if val is None else val.with_depth()
        if self._scheduled:
            train = train.bounded(_MOST_CELLS, seed)
            val = None if val is None else val.bounded(_MOST_VAL, seed)
        if self._scheduled and init is None:
            steps = steps_for(len(train))
            self.training = replace(TRAININGS[self.preset], steps=steps, **self.own_training)
        elif self._scheduled:
            self.training = replace(FINE_TUNING, **self.own_training)
        return train_network(
            config, self.training, train, seed, val=val, checkpoint=checkpoint, init=init
        )

    def _initial(self, folder: Path | None) -> GPSNet | None:
        if folder is None:
            return None
        other = type(self)()
        other.load(folder)
        return other.network

    @property
    def network(self) -> GPSNet:
        """The network, fitted or loaded.

        Raises
        ------
        MethodError
            There is none yet.
        """
        return self._ready.network

    @property
    def history(self) -> list[dict[str, Any]]:
        """Losses, and scores of val cells, by epoch."""
        return self._ready.history

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def _ready(self) -> Trained:
        if self._trained is None:
            raise MethodError(f"{self.about.name} is not fitted: call fit or load first")
        return self._trained

    def save(self, folder: Path) -> None:
        """Write configuration and history as JSON and the weights as safetensors."""
        trained = self._ready
        write_text(folder / _CONFIG, trained.network.config.to_json() + "\n")
        record = {"training": asdict(self.training), "history": plain(trained.history)}
        write_text(folder / _TRAINING, json.dumps(record, indent=1) + "\n")
        write_tensors(folder / _WEIGHTS, trained.network.state_dict())

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MethodError
            A file is missing or damaged, or they do not belong together.
        """
        try:
            config = Config.from_json((folder / _CONFIG).read_text(encoding="utf-8"))
            record = json.loads((folder / _TRAINING).read_text(encoding="utf-8"))
            training = adapter(TrainingConfig).validate_python(record["training"])
            history = adapter(list[dict[str, int | float | None]]).validate_python(
                record["history"]
            )
        except (OSError, MethodError, ValidationError, ValueError, KeyError, TypeError) as error:
            raise MethodError(
                f"{folder} holds no readable GPSNet ({error}); expected {_CONFIG}, {_TRAINING} and "
                f"{_WEIGHTS} as training wrote them: copy the whole folder again, or train again"
            ) from error
        tensors, _ = read_tensors(folder / _WEIGHTS)
        numbers = sum(value.numel() for value in tensors.values())
        blocks = config.encoder_depth + config.decoder_depth
        if blocks > len(tensors) or max(config.width, config.fourier) > numbers:
            raise MethodError(  # before that network takes all memory there is
                f"{folder / _WEIGHTS} holds {numbers:,} numbers in {len(tensors)} tensors, too few "
                f"for the network that {_CONFIG} describes: copy the whole folder again, or train "
                "again"
            )
        with torch.device("meta"):  # shapes only
            fits(GPSNet(config), tensors, folder / _WEIGHTS)
        network = GPSNet(config)
        load_into(network, tensors, folder / _WEIGHTS)
        self.training = training
        self._trained = Trained(network.eval(), history)

    def predict(self, cells: Cells) -> Scores:
        """Score cells, a few of similar length at a time; memory does not grow with their number.

        A gene that is not in the vocabulary shares the embedding "unknown" with all such genes.

        Raises
        ------
        MethodError
            The cells have other patterns than the model, or the weights give no numbers.
        """
        network = self.network
        config = network.config
        if tuple(cells.patterns) != config.patterns:
            raise MethodError(
                f"this model scores {', '.join(config.patterns)}; the cells are of a dataset with "
                f"{', '.join(cells.patterns)}: train another model for them"
            )
        if config.depth:
            if not cells.has_depth:
                _log.warning("%s reads z, and these cells have none: all are flat", self.about.name)
            cells = cells.with_depth()
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        rows = vocabulary_rows(config.genes, cells.genes)
        counted = network.gene_scores
        scores = None if counted is None else counted.of_panel(cells.genes).scores()

        def prepared(cell: Cell) -> tuple[Cell, Tokens]:
            return cell, prepare(cell, rows, config, scores)

        workers = 4 if torch.cuda.is_available() else 1
        for window in _cut(in_threads(prepared, cells, workers), _WINDOW if self.batch > 1 else 1):
            window.sort(key=lambda item: len(item[1]))
            for part in _cut(iter(window), self.batch):
                tokens = [item[1] for item in part]
                out = logits(network, tokens, self.training.bf16)
                for (cell, _), values in zip(part, out, strict=True):
                    found = values.sigmoid().numpy()
                    if not np.isfinite(found).all():
                        raise MethodError(
                            f"the model gives no finite scores for cell {cell.cell_id}: its "
                            "coordinates or the weights are damaged"
                        )
                    yield cell, found


def _cut(items: Iterator[tuple[Cell, Tokens]], most: int) -> Iterator[list[tuple[Cell, Tokens]]]:
    """Cut items into lists of at most `most` cells and :data:`_MOLECULES` molecules."""
    part: list[tuple[Cell, Tokens]] = []
    molecules = 0
    for item in items:
        if part and (len(part) == most or molecules + len(item[1]) > _MOLECULES):
            yield part
            part, molecules = [], 0
        part.append(item)
        molecules += len(item[1])
    if part:
        yield part


class GPSNetEnsemble:
    """Five networks of GPSNet, trained with seeds of their own; scores are the mean of logits."""

    about: ClassVar = About(
        name="gpsnet_ensemble",
        label="GPSNet, ensemble of 5",
        kind="model",
        summary="The mean of the logits of five GPSNets that differ in their seed.",
        reference=GPSNetMethod.about.reference,
        inputs=GPSNetMethod.about.inputs,
        learns=True,
    )

    def __init__(self) -> None:
        self.members = [GPSNetMethod() for _ in range(_MEMBERS)]

    @property
    def batch(self) -> int:
        """Cells scored together."""
        return self.members[0].batch

    @batch.setter
    def batch(self, cells: int) -> None:
        for member in self.members:
            member.batch = cells

    @property
    def parameters(self) -> int:
        """Number of weights of all networks."""
        return sum(member.parameters for member in self.members)

    def fit(self, train: Cells, seed: int, context: FitContext = _NOTHING) -> None:
        """Train each; those of seed s have the seeds 5 s to 5 s + 4 of :class:`GPSNetMethod`."""
        done: list[Path] = []
        for k, member in enumerate(self.members):
            own = context
            if context.checkpoint is not None:
                path = context.checkpoint
                done.append(path.with_name(f"{path.stem}-{k}{path.suffix}"))
                own = replace(own, checkpoint=done[-1])
            if context.init is not None:
                own = replace(own, init=context.init / f"member-{k}")
            member.fit(train, _MEMBERS * seed + k, own)
        for path in done:
            path.unlink(missing_ok=True)

    def save(self, folder: Path) -> None:
        """Write each into a folder of its own."""
        for k, member in enumerate(self.members):
            (folder / f"member-{k}").mkdir(exist_ok=True)
            member.save(folder / f"member-{k}")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        for k, member in enumerate(self.members):
            member.load(folder / f"member-{k}")

    def predict(self, cells: Cells) -> Scores:
        """Score cells with each network; see :meth:`GPSNetMethod.predict`."""
        for found in zip(*(member.predict(cells) for member in self.members), strict=True):
            logits = [logit(np.clip(scores, _SMALL, 1 - _SMALL)) for _, scores in found]
            yield found[0][0], np.asarray(expit(np.mean(logits, axis=0)), np.float32)


class GPSNetContext(GPSNetMethod):
    """GPSNet with the scores of other genes around each molecule, for cells without nuclei."""

    about: ClassVar = About(
        name="gpsnet_context",
        label="GPSNet + gene context",
        kind="model",
        summary=(
            "GPSNet that also sees, around each molecule, how often the genes of its neighbours "
            "show each pattern in other training cells; for cells without nuclei."
        ),
        reference="this package",
        inputs=GPSNetMethod.about.inputs,
        learns=True,
    )
    own_changes: ClassVar = {"context": True, "genes_as": "none", "fourier": 1}


class GPSNetCoordinates(GPSNetMethod):
    """The paper's network at small size: it sees coordinates, in micrometres, and no outline."""

    about: ClassVar = About(
        name="gpsnet_coordinates",
        label="GPSNet, coordinates",
        kind="model",
        summary=(
            "The paper's transformer at small size, with KNN-attention and Fourier features of "
            "the coordinates."
        ),
        reference="the paper of this benchmark, section 3",
        inputs=("coordinates", "gene"),
        learns=True,
    )
    own_preset: ClassVar = "small"


class CoordinateMLP(GPSNetCoordinates):
    """The same with the paper's plain MLP of the coordinates: shows what Fourier features gain."""

    about: ClassVar = About(
        name="coordinate_mlp",
        label="GPSNet, plain coordinates",
        kind="model",
        summary=(
            "GPSNet, coordinates, with the paper's MLP of the coordinates and no Fourier features."
        ),
        reference="the paper of this benchmark, section 3",
        inputs=("coordinates", "gene"),
        learns=True,
    )
    own_changes: ClassVar = {"fourier": 0}


class GPSNetOutlines(GPSNetCoordinates):
    """The same with points of the outlines of cell and nucleus as tokens of their own kinds."""

    about: ClassVar = About(
        name="gpsnet_outlines",
        label="GPSNet, coordinates + outlines",
        kind="model",
        summary="GPSNet, coordinates, with points of the outlines of cell and nucleus as tokens.",
        reference="this package, after the paper's section 3",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
    )
    own_changes: ClassVar = {"outlines": True}
