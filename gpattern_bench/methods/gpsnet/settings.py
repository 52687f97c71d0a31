"""How GPSNet is trained: settings, and those of each preset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpattern_bench.errors import MethodError

__all__ = ["TRAININGS", "TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes
    ----------
    epochs : int
    batch : int
        Cells in a step, over all processes.
    rate : float
        Learning rate of AdamW, after `warmup` steps that lead up to it.
    warmup : int
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
    forgotten : float
        Share of the cells some of whose genes are made unknown, drawn anew in each epoch: a share
        of the genes between none and all.
    patience : int
        Stop after so many epochs in which the loss on val did not become lower, and take the
        weights of the best epoch; 0: never.
    """

    epochs: int
    batch: int = 4
    rate: float = 1e-5
    warmup: int = 1000
    decay: bool = False
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.9)
    clip: float = 1.0
    bf16: bool = True
    turned: bool = False
    thinned: float = 0.0
    forgotten: float = 0.05
    patience: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}, expected {least} or more"
            for name, least in {"epochs": 1, "batch": 1, "warmup": 0, "patience": 0}.items()
            if getattr(self, name) < least
        ]
        if not self.rate > 0 or not self.clip > 0:
            wrong.append(f"rate and clip are {self.rate} and {self.clip}, expected above 0")
        for name, share in {"thinned": self.thinned, "forgotten": self.forgotten}.items():
            if not 0 <= share <= 1:
                wrong.append(f"{name} is {share}, expected a share")
        if wrong:
            raise MethodError(f"GPSNet cannot be trained like this: {'; '.join(wrong)}")

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, of so many.

        >>> [TrainingConfig(1, rate=1.0, warmup=2).rate_at(step, 4) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
        """
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if not self.decay:
            return self.rate
        past = (step - self.warmup) / max(steps - self.warmup, 1)
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
}
"""For each of :data:`gpattern_bench.methods.gpsnet.model.PRESETS`; the paper's by its table 3."""
