"""Settings of GPSNet and of its training, and their presets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from gpattern_bench.base.validation import shorten
from gpattern_bench.errors import MethodError

__all__ = [
    "FINE_TUNING",
    "KNOWN",
    "PRESETS",
    "TRAININGS",
    "Config",
    "TrainingConfig",
    "steps_for",
]


PRESETS: dict[str, dict[str, Any]] = {
    "nih3t3": {"encoder_depth": 4, "decoder_depth": 8, "checkpointing": True},
    "u2os": {"encoder_depth": 4, "decoder_depth": 8},
    "cosmx_lung": {"encoder_depth": 6, "decoder_depth": 12},
    "small": {
        "encoder_depth": 2,
        "decoder_depth": 4,
        "heads": 4,
        "width": 64,
        "neighbours": 64,
        "fourier": 32,
        "pooled": True,
    },
    "gpsnet": {
        "inputs": "invariant",
        "genes_as": "bias",
        "attends_to": "own",
        "self_attention": False,
        "counts": True,
        "encoder_depth": 0,
        "decoder_depth": 2,
        "heads": 4,
        "width": 64,
        "mlp_ratio": 2,
        "neighbours": 32,
        "fourier": 4,
        "pooled": True,
    },
}
"""What the presets set; the first three are those of the paper's table 3."""


_LEAST = {
    "width": 1,
    "heads": 1,
    "encoder_depth": 0,
    "decoder_depth": 1,
    "mlp_ratio": 1,
    "neighbours": 1,
    "fourier": 0,
}
_LEAST_TRAINING = {
    "epochs": 1,
    "batch": 1,
    "warmup": 0,
    "patience": 0,
    "steps": 0,
    "molecules": 0,
}
KNOWN = {
    "inputs": ("coordinates", "micrometres", "invariant"),
    "genes_as": ("embedding", "bias", "none"),
    "attends_to": ("all", "own", "both"),
}
"""Settings that are texts, and what they may be."""
_ADDED = (*KNOWN, "self_attention", "counts", "distance_bias", "context", "depth")
_MOST = {
    "width": 1 << 14,
    "heads": 1 << 10,
    "encoder_depth": 256,
    "decoder_depth": 256,
    "mlp_ratio": 64,
    "neighbours": 1 << 16,
    "fourier": 1 << 14,
}
"""Twenty and more times the paper's: a damaged file must not ask for more than there is."""
_JSON_KINDS = {"tuple[str, ...]": list, "str": str, "int": int, "bool": bool}


@dataclass(frozen=True)
class Config:
    """Shape of a model; with the weights, the whole model.

    Attributes
    ----------
    genes : tuple of str
        The vocabulary. A gene of a cell that is not in it is "unknown": it shares one embedding
        with all other unknown genes.
    patterns : tuple of str
        Columns of the scores.
    width, heads, encoder_depth, decoder_depth, mlp_ratio : int
        Of the transformer.
    neighbours : int
        K of the KNN-attention.
    inputs : {"coordinates", "micrometres", "invariant"}
        What the network knows of a molecule's place: its coordinates in micrometres, the paper's;
        or where it lies between nucleus and outline
        (:data:`~gpattern_bench.methods.gpsnet.tokens.FIELDS`), which rotation, reflection and
        translation do not change: as micrometres, or in sizes of the cell, which the unit does not
        change either.
    fourier : int
        Frequencies whose sine and cosine go into the coordinate MLP beside its input; 0 is the
        paper's. Of coordinates: random ones, of the position along random directions and of its
        distance from the centroid. Of invariant inputs: 2^k half turns per size of the cell.
    genes_as : {"embedding", "bias", "none"}
        Where genes enter: as embeddings of molecules and queries, the paper's; only as a bias of
        each gene's logits, which begins at 0; or nowhere.
    attends_to : {"all", "own", "both"}
        Molecules that the query of a gene attends to: all of the cell, the paper's; those of its
        own gene; or both, each with heads of its own.
    self_attention : bool
        Whether the queries of a cell attend to each other; True is the paper's.
    counts : bool
        Whether the query of a gene of the vocabulary knows its number of molecules; False is the
        paper's.
    distance_bias : bool
        Whether KNN-attention adds a learnt bias of the distance, in sizes of the cell, and of
        whether both molecules are of one gene; False is the paper's.
    context : bool
        Whether the invariant inputs have those of :mod:`gpattern_bench.methods.context` beside
        them, for cells without nuclei; their lengths are micrometres. False is the paper's.
    depth : bool
        Whether the network reads z too, where it is known: neighbours are those in space, and each
        molecule's height above the mean of its cell is an input (0 where unknown). False is the
        paper's, whose coordinates are two.
    pooled : bool
        Whether the query of a gene starts from the mean of its own molecules' encodings, beside
        its embedding. It makes unknown genes of one cell differ; False is the paper's.
    outlines : bool
        Whether points of the outlines of cell and nucleus are tokens of their own kinds, where
        they are known; False is the paper's.
    checkpointing : bool
        Whether training recomputes blocks instead of keeping what they computed: the same result
        in less memory.
    """

    genes: tuple[str, ...]
    patterns: tuple[str, ...]
    width: int = 768
    heads: int = 12
    encoder_depth: int = 4
    decoder_depth: int = 8
    mlp_ratio: int = 4
    neighbours: int = 256
    fourier: int = 0
    pooled: bool = False
    outlines: bool = False
    checkpointing: bool = False
    inputs: str = "coordinates"
    genes_as: str = "embedding"
    attends_to: str = "all"
    self_attention: bool = True
    counts: bool = False
    distance_bias: bool = False
    context: bool = False
    depth: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected {least} or more"
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        problems += [
            f"{name} is {shorten(getattr(self, name))}, expected {most} or less"
            for name, most in _MOST.items()
            if getattr(self, name) > most
        ]
        if not problems and self.width % self.heads:
            problems.append(f"{self.heads} heads do not divide the width of {self.width}")
        problems += [
            f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}"
            for name, known in KNOWN.items()
            if getattr(self, name) not in known
        ]
        if self.outlines and self.inputs != "coordinates":
            problems.append("points of the outlines are tokens beside coordinates only")
        if self.context and self.inputs == "coordinates":
            problems.append("the context of other genes cannot stand beside coordinates")
        if not self.patterns:
            problems.append("there are no patterns to score")
        if len(set(self.genes)) != len(self.genes):
            problems.append("a gene is in the vocabulary twice")
        if problems:
            raise MethodError(f"not a GPSNet: {'; '.join(problems)}")

    @classmethod
    def preset(
        cls, name: str, genes: Sequence[str], patterns: Sequence[str], **changes: Any
    ) -> Self:
        """Make one of :data:`PRESETS` for a vocabulary, with changes.

        Examples
        --------
        >>> Config.preset("small", ["ACTB"], ["nuclear"], neighbours=16).width
        64
        """
        if name not in PRESETS:
            raise MethodError(f"no GPSNet named {name!r}; known: {', '.join(PRESETS)}")
        return cls(tuple(genes), tuple(patterns), **PRESETS[name] | changes)

    def to_json(self) -> str:
        """Convert to JSON; `depth` only if set, so that other models have the bytes they had."""
        found = asdict(self)
        if not self.depth:
            del found["depth"]
        return json.dumps(found, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        MethodError
            It is something else.
        """
        try:
            found = dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise MethodError(f"not the configuration of a GPSNet: {error}") from error
        kinds = {field.name: _JSON_KINDS[str(field.type)] for field in fields(cls)}
        # models of before these fields
        found = {name: getattr(cls, name) for name in _ADDED} | found
        wrong = {name for name in kinds if type(found.get(name)) is not kinds[name]}
        wrong |= set(found) - set(kinds)
        if wrong:
            raise MethodError(
                "not the configuration of a GPSNet: missing, unknown or of another kind: "
                + ", ".join(sorted(wrong))
            )
        lists = {"genes": tuple(found["genes"]), "patterns": tuple(found["patterns"])}
        return cls(**found | lists)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of training.

    Attributes
    ----------
    epochs : int
        Passes over the training cells; at least one.
    steps : int
        If above 0, train for this many steps, in as many epochs as they need.
    batch : int
        Cells in a step, over all processes.
    rate : float
        Learning rate of AdamW, after `warmup` steps that lead up to it.
    warmup : int or float
        Steps, or below 1 a share of the run.
    decay : bool
        Whether the rate then falls to 0, as a cosine; else it is constant, as the paper's.
    weight_decay : float
    betas : tuple of float
    clip : float
        Largest norm of the gradient.
    bf16 : bool
        Whether to compute in bfloat16 where the device can; weights are float32.
    turned : bool
        Whether each cell is rotated, and mirrored half of the time, at random in each epoch.
    thinned : float
        Largest share of its molecules that a cell loses at random, in half of the epochs.
    molecules : int
        If above 0, cells with more molecules are thinned to fewer than these, drawn anew in each
        epoch.
    forgotten : float
        Share of the cells some of whose genes are made unknown, drawn anew in each epoch: a share
        of the genes between none and all.
    real : float
        If above 0 and real datasets stand beside simulated ones, the share of the cells of a step
        that are real.
    patience : int
        Stop after this many epochs without a lower val loss, and take the weights of the best
        epoch; 0: never.
    """

    epochs: int
    batch: int = 4
    rate: float = 1e-5
    warmup: int | float = 1000
    decay: bool = False
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.9)
    clip: float = 1.0
    bf16: bool = True
    turned: bool = False
    thinned: float = 0.0
    forgotten: float = 0.0
    patience: int = 0
    steps: int = 0
    molecules: int = 0
    real: float = 0.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}, expected {least} or more"
            for name, least in _LEAST_TRAINING.items()
            if getattr(self, name) < least
        ]
        if not (0 < self.rate < math.inf and self.clip > 0):
            wrong.append(f"rate and clip are {self.rate} and {self.clip}, expected above 0")
        if not 0 <= self.weight_decay < math.inf:
            wrong.append(f"weight_decay is {self.weight_decay}, expected 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            wrong.append(f"betas are {self.betas}, expected from 0 to below 1")
        wrong += [
            f"{name} is {getattr(self, name)}, expected a share"
            for name in ("thinned", "forgotten", "real")
            if not 0 <= getattr(self, name) <= 1
        ]
        if wrong:
            raise MethodError(f"invalid training settings of GPSNet: {'; '.join(wrong)}")

    def steps_of(self, cells: int) -> int:
        """Steps of a run on a number of cells.

        >>> TrainingConfig(epochs=3, batch=4).steps_of(10), TrainingConfig(1, steps=7).steps_of(10)
        (9, 7)
        """
        return self.steps or self.epochs * -(-cells // self.batch)

    def warmup_steps(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps`."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate at `step` of `steps`.

        >>> [TrainingConfig(1, rate=1.0, warmup=2).rate_at(step, 4) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
        """
        warmup = self.warmup_steps(steps)
        if step < warmup:
            return self.rate * (step + 1) / warmup
        if not self.decay:
            return self.rate
        past = (step - warmup) / max(steps - warmup, 1)
        return self.rate * (1 + float(np.cos(np.pi * past))) / 2


TRAININGS = {
    "nih3t3": TrainingConfig(epochs=10),
    "u2os": TrainingConfig(epochs=5),
    "cosmx_lung": TrainingConfig(epochs=10, batch=64, warmup=5000),
    "small": TrainingConfig(
        epochs=12,
        rate=3e-3,
        warmup=200,
        decay=True,
        betas=(0.9, 0.99),
        bf16=False,
        turned=True,
        thinned=0.5,
        forgotten=0.3,
    ),
    "gpsnet": TrainingConfig(
        epochs=1,
        batch=8,
        rate=3e-3,
        warmup=0.05,
        decay=True,
        betas=(0.9, 0.99),
        bf16=False,
        thinned=0.6,
        molecules=1500,
        forgotten=1.0,
    ),
}
"""For each of :data:`PRESETS`; the paper's by its table 3."""

FINE_TUNING = replace(TRAININGS["gpsnet"], steps=100, rate=1e-3, warmup=0.1, real=0.4)
"""For a network that starts from the weights of another."""


def steps_for(cells: int) -> int:
    """Steps of a training from scratch of the preset ``gpsnet``: few cells are overfitted soon.

    >>> steps_for(53), steps_for(3370)
    (240, 1916)
    """
    return max(100, round(33 * math.sqrt(cells)))
