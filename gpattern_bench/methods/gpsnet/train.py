"""Training loop of GPSNet, with checkpoints.

All draws of an epoch - order, rotation, unknown genes - depend on (seed, epoch, cell) alone. So a
resumed run reaches the same weights, to the bit, and several processes together see what one would.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from gpattern_bench.base.progress import Progress, duration
from gpattern_bench.base.threads import in_threads, one_thread, own_threads
from gpattern_bench.data.cells import Cells
from gpattern_bench.errors import MethodError, MissingExtraError
from gpattern_bench.evaluate.metrics import exact_mean, score_pattern
from gpattern_bench.methods.context import GeneScores
from gpattern_bench.methods.gpsnet.config import Config, TrainingConfig
from gpattern_bench.methods.gpsnet.loader import (
    LabelledTokens,
    drop_molecules,
    epoch_batches,
    generator,
    mask_genes,
    rotate,
)
from gpattern_bench.methods.gpsnet.model import GPSNet, Tokens, collate
from gpattern_bench.methods.gpsnet.weights import load_into, read_tensors, write_tensors

__all__ = ["Trained", "logits", "start_from", "train_network"]

_log = logging.getLogger(__name__)


_NATIVE = ("avx512_bf16", "amx_tile")


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of training.

    Attributes
    ----------
    network : GPSNet
        On the CPU, ready to predict.
    history : list of dict
        Per epoch: ``epoch``, ``loss`` per label and, with val cells, ``val_loss``, ``val_auc`` and
        ``val_f1`` (fractions).
    """

    network: GPSNet
    history: list[dict[str, Any]]


def train_network(
    config: Config,
    training: TrainingConfig,
    cells: Cells,
    seed: int,
    *,
    val: Cells | None = None,
    checkpoint: Path | None = None,
    init: GPSNet | None = None,
) -> Trained:
    """Train a model; in all processes together, if accelerate's launcher started several.

    Parameters
    ----------
    config : Config
    training : TrainingConfig
    cells : Cells
        With labels; all of them in every process.
    seed : int
        Of the first weights and of all that is drawn later.
    val : Cells, optional
        Scored after each epoch.
    checkpoint : pathlib.Path, optional
        Written after each epoch; training resumes from it if it exists.
    init : GPSNet, optional
        Network to start from, of the same shape; genes are matched by name, and new ones begin as
        the unknown gene. Of other patterns, its last layer begins anew (:func:`start_from`).

    Returns
    -------
    Trained
        The same for the same arguments, to the bit, on a CPU with as many threads.

    Raises
    ------
    MethodError
        There is nothing to learn from, the checkpoint is of another run, the network to start from
        has another shape, or the loss is not finite; the last checkpoint then stays.
    MissingExtraError
        accelerate or safetensors is not installed.
    """
    trainer = _Trainer(config, training, cells, seed, val, init)
    if checkpoint is not None and checkpoint.exists():
        trainer.resume(checkpoint)
    with _threads(config):
        return trainer.run(checkpoint)


def logits(network: GPSNet, cells: Sequence[Tokens], bf16: bool = False) -> list[Tensor]:
    """Logits (g, C) float32 of each cell, on the CPU; all cells in one batch."""
    device = next(network.parameters()).device
    batch = collate(cells).to(device)
    with torch.no_grad(), _precision(device, bf16), _threads(network.config):
        out: Tensor = network(batch)
    return list(torch.split(out.cpu(), [len(cell.query) for cell in cells]))


def _threads(config: Config) -> AbstractContextManager[None]:
    """One thread without attention among molecules: products end before another has woken."""
    return nullcontext() if config.encoder_depth else one_thread()


def _precision(device: torch.device, bf16: bool) -> torch.autocast:
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:  # only where it is quicker: torch tells it by private functions, not in all versions
        told = (getattr(torch.cpu, f"_is_{what}_supported", None) for what in _NATIVE)
        able = device.type == "cpu" and any(tell is not None and tell() for tell in told)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and able)


@dataclass(eq=False)
class _Trainer:
    """One run of training, in each of its processes."""

    config: Config
    training: TrainingConfig
    cells: Cells
    seed: int
    val: Cells | None
    init: GPSNet | None
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        training = self.training
        if training.patience and self.val is None:
            raise MethodError("stopping early needs val cells: give some, or patience 0")
        self.accelerator = _accelerator()
        self.device = self.accelerator.device
        counted = GeneScores.count(self.cells) if self.config.context else None
        self.data = LabelledTokens(self.cells, self.config, counted)
        self.val_data = None
        if self.val is not None:
            self.val_data = LabelledTokens(self.val, self.config, counted, held_out=True)
        self._check_sizes()
        self.weights = self.data.weights(training.real)
        self.steps = training.steps_of(len(self.data.cells))
        steps_of_pass = -(-len(self.data.cells) // training.batch)
        # A run counted in steps has ten epochs at most: each is scored, and a checkpoint.
        self.passes = max(1, -(-training.steps // (10 * steps_of_pass)))
        self.epoch_steps = self.passes * steps_of_pass
        self.epochs = -(-self.steps // self.epoch_steps)
        self.identity = self._identity()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = GPSNet(self.config)
        if self.init is not None:
            start_from(self.network, self.init)
            there, here = self.init.config.patterns, self.config.patterns
            if there != here and self.accelerator.is_main_process:
                _log.info(
                    "starting from a model of %s: its last layer begins anew, for %s",
                    ", ".join(there),
                    ", ".join(here),
                )
        if counted is not None:
            self.network.gene_scores = counted
        self.network.to(self.device)
        self.model = self.accelerator.prepare_model(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=training.rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
        )

    def _check_sizes(self) -> None:
        processes = self.accelerator.num_processes
        if not self.data.cells:
            raise MethodError("GPSNet needs labelled pairs, and no training cell has one")
        if self.val_data is not None and not self.val_data.cells:
            raise MethodError("no val cell has a labelled pair: give other cells, or none")
        steps = -(-len(self.data.cells) // self.training.batch)
        if len(self.data.cells) // steps < processes:
            raise MethodError(
                f"{processes} processes share a step of {len(self.data.cells) // steps} cells: "
                f"start fewer, or train in batches of {2 * processes} or more cells"
            )

    # what a run consists of

    def run(self, checkpoint: Path | None) -> Trained:
        main = self.accelerator.is_main_process
        if main and (warmup := self.training.warmup_steps(self.steps)) > self.steps:
            _log.warning(
                "the warm-up of %d steps is longer than this run of %d: the learning rate ends at "
                "%.2g, not %.2g. Train for more epochs, or set the warm-up as a share of the run",
                warmup,
                self.steps,
                self.training.rate_at(self.steps - 1, self.steps),
                self.training.rate,
            )
        before, began = len(self.history), time.monotonic()
        # Epochs have lines of their own: others only where one takes minutes.
        with Progress(
            "training",
            self.steps,
            unit="steps",
            done=min(before * self.epoch_steps, self.steps),
            every=60.0,
            shown=main,
        ) as bar:
            while len(self.history) < self.epochs and not self._stopped():
                at = time.monotonic()
                self._epoch(bar, checkpoint)
                if checkpoint is not None and main:
                    self._write(checkpoint)
                if main:
                    now, done = time.monotonic(), len(self.history) - before
                    left = (now - began) / done * (self.epochs - len(self.history))
                    _log.info("%s", self._told(now - at, left))
        if self.best:
            self.network.load_state_dict(self.best)
        return Trained(self.network.cpu().eval(), self.history)

    def _told(self, seconds: float, left: float) -> str:
        """Format the log line of an epoch."""
        row = self.history[-1]
        text = f"epoch {row['epoch']} of {self.epochs}: loss {row['loss']:.4f}"
        if self.val_data is not None:
            text += f", val AUC {row['val_auc']:.4f}, val F1 {row['val_f1']:.4f}"
        text += f"; {duration(seconds)}"
        return f"{text}, {duration(left)} left" if left else text

    def _stopped(self) -> bool:
        if not self.training.patience or not self.history:
            return False
        losses = [row["val_loss"] for row in self.history]
        return len(losses) - 1 - int(np.argmin(losses)) >= self.training.patience

    def _epoch(self, bar: Progress, checkpoint: Path | None) -> None:
        epoch, training = len(self.history), self.training
        first, size = epoch * self.passes, training.batch
        drawn = [
            (number, cells)
            for number in range(first, first + self.passes)
            for cells in epoch_batches(self.data.lengths, size, self.seed, number, self.weights)
        ]
        batches = drawn[: self.steps - epoch * self.epoch_steps]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes

        def shown(item: tuple[int, NDArray[np.int64]]) -> list[Tokens]:
            number, cells = item
            return [self._shown(number, i) for i in cells[rank::processes].tolist()]

        self.model.train()
        total = 0.0
        for at, tokens in enumerate(in_threads(shown, batches, self._workers)):
            step = epoch * self.epoch_steps + at
            for group in self.optimizer.param_groups:
                group["lr"] = training.rate_at(step, self.steps)
            pairs = sum(self.data.labelled[i] for i in batches[at][1])
            loss = self._step(tokens, pairs)
            if loss is None:
                raise MethodError(self._lost(epoch, at, checkpoint))
            total += loss
            bar.update()
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise MethodError(self._lost(epoch, len(batches) - 1, checkpoint))
        row = {"epoch": epoch + 1, "loss": self._summed(total) / len(batches)}
        self.history.append(row | self._validated())
        if training.patience and len(self.history) - 1 == int(
            np.argmin([row["val_loss"] for row in self.history])
        ):
            self.best = {n: t.detach().cpu().clone() for n, t in self.network.state_dict().items()}

    @property
    def _workers(self) -> int:
        return 4 if self.device.type == "cuda" else 1

    def _shown(self, epoch: int, index: int) -> Tokens:
        """Augment a cell for this epoch."""
        rng, training = generator(self.seed, epoch, index + 1), self.training
        thin = rng.random() < 0.5 and training.thinned
        if thin or 0 < training.molecules < self.data.lengths[index]:
            share = training.thinned if thin else 0.0
            whole = self.data.cells[index]
            cell = self.data.prepared(index, drop_molecules(whole, rng, share, training.molecules))
        else:
            cell = self.data.tokens(index)
        if self.training.turned:
            cell = rotate(cell, rng)
        if rng.random() < self.training.forgotten:
            cell = mask_genes(cell, rng, unknown=len(self.config.genes))
        return cell

    def _step(self, tokens: list[Tokens], pairs: int) -> float | None:
        """Train on this process' cells of a batch; return None if the loss is not finite.

        `pairs` counts the labelled pairs of the batch in all processes: each of them weighs the
        same, wherever it is.
        """
        batch = collate(tokens).to(self.device)
        assert batch.labels is not None
        assert batch.labelled is not None
        with _precision(self.device, self.training.bf16):
            scores = self.model(batch)  # (G, C)
        wrong = F.binary_cross_entropy_with_logits(
            scores[batch.labelled], batch.labels[batch.labelled], reduction="sum"
        )
        loss = wrong / (pairs * len(self.config.patterns))
        self.optimizer.zero_grad()
        # gradients are averaged over processes: times their number, it is the sum
        self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        # the gradient is that of all processes, so that all of them stop, or none
        if not bool(torch.isfinite(norm)):
            return None
        self.optimizer.step()
        return float(loss.detach())

    def _lost(self, epoch: int, step: int, checkpoint: Path | None) -> str:
        kept = "no checkpoint was asked for"
        if checkpoint is not None and checkpoint.exists():
            kept = f"the last good state, after epoch {epoch}, is in {checkpoint}"
        return (
            f"the loss or its gradient is not finite in epoch {epoch + 1}, step {step + 1}; "
            f"{kept}. Train at a lower rate than {self.training.rate:g} or with a longer warm-up "
            f"than {self.training.warmup} steps, and check the coordinates"
        )

    def _summed(self, value: float) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        return float(self.accelerator.reduce(tensor, "sum"))

    def _validated(self) -> dict[str, float]:
        """Score the val cells, shared by the processes: loss, AUC and F1."""
        from accelerate.utils import gather_object

        if self.val_data is None:
            return {}
        data, size = self.val_data, self.training.batch
        by_length = np.argsort(data.lengths, kind="stable")
        mine = by_length[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = [mine[begin : begin + size].tolist() for begin in range(0, len(mine), size)]

        def scored(batch: list[int]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
            found = []
            tokens = [data.tokens(i) for i in batch]
            for cell, out in zip(
                tokens, logits(self.network, tokens, self.training.bf16), strict=True
            ):
                assert cell.labels is not None
                found.append((out[cell.labelled].numpy(), cell.labels[cell.labelled].numpy()))
            return found

        self.network.eval()
        # Where torch computes with one thread, batches side by side: no digit changes.
        alone = self.device.type == "cpu" and not self.config.encoder_depth
        done = in_threads(scored, batches, own_threads() if alone else 1)
        parts = [cell for batch in done for cell in batch]
        found, true = (np.concatenate(part) for part in zip(*gather_object(parts), strict=True))
        wrong = F.binary_cross_entropy_with_logits(torch.from_numpy(found), torch.from_numpy(true))
        scores = torch.from_numpy(found).sigmoid().numpy()
        each = [score_pattern(true[:, c], scores[:, c]) for c in range(true.shape[1])]
        return {
            "val_loss": float(wrong),
            "val_auc": exact_mean(score.auc for score in each),
            "val_f1": exact_mean(score.f1 for score in each),
        }

    # checkpoints

    def _write(self, path: Path) -> None:
        tensors = {f"weight.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state[parameter]
            tensors |= {f"adam.{key}.{name}": value for key, value in state.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        note = {"identity": self.identity, "history": self.history}
        write_tensors(path, tensors, note)

    def resume(self, path: Path) -> None:
        """Resume from a checkpoint of the same run.

        Raises
        ------
        MethodError
            It is of another run, or damaged.
        """
        tensors, note = read_tensors(path)
        if not isinstance(note, dict) or note.get("identity") != self.identity:
            raise MethodError(
                f"the checkpoint {path} is of another run: other cells, another seed or other "
                "settings. Remove it to train from the beginning, or name another file"
            )
        load_into(self.network, _under("weight.", tensors), path)
        for name, parameter in self.network.named_parameters():
            self.optimizer.state[parameter] = {
                # the step count stays on the CPU, as AdamW has it
                key: value if key == "step" else value.to(self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                for value in [tensors[f"adam.{key}.{name}"]]
            }
        self.best = _under("best.", tensors)
        self.history = note["history"]
        if self.accelerator.is_main_process:
            _log.info("%s: resuming after epoch %d", path, len(self.history))

    def _identity(self) -> str:
        """Hash all that decides the weights, but for the machine and the processes."""
        parts = [self.config.to_json(), asdict(self.training), self.seed, self.data.identity()]
        if self.val_data is not None:
            parts.append(self.val_data.identity())
        if self.init is not None:
            parts.append(_hash(self.init.state_dict()))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def start_from(network: GPSNet, init: GPSNet) -> None:
    """Fill a network with the weights of another, genes matched by name.

    Of other patterns, the last layer begins anew, and so do the genes' biases.

    Raises
    ------
    MethodError
        It has another shape, or inputs that are scores of other patterns; the text names both.
    """
    old, new = asdict(init.config), asdict(network.config)
    free = ("genes", "patterns", "checkpointing")
    differ = [name for name in new if name not in free and old[name] != new[name]]
    if differ:
        told = "; ".join(f"{name} {old[name]!r}, not {new[name]!r}" for name in differ)
        raise MethodError(
            f"the model to start from has {told}: start from one of the same settings"
        )
    others = init.config.patterns != network.config.patterns
    if others and init.config.context:
        raise MethodError(
            f"the model to start from sees the context of other genes as scores of "
            f"{', '.join(init.config.patterns)}; here these would be scores of "
            f"{', '.join(network.config.patterns)}: start from a model of these patterns, or from "
            "none"
        )
    row = {gene: at for at, gene in enumerate(init.config.genes)}
    unknown = len(row)
    rows = torch.tensor([row.get(gene, unknown) for gene in network.config.genes] + [unknown])
    own, weights = network.state_dict(), init.state_dict()
    for name in ("gene.weight", "query.weight", "bias.weight"):
        if name in weights and len(weights[name]) > 1:  # outline points follow the unknown gene
            weights[name] = torch.cat([weights[name][rows], weights[name][unknown + 1 :]])
    kept = {"outline_rows", "positive", "labelled"}  # of the vocabulary, and counted anew
    if others:
        kept |= {"head.weight", "head.bias", "bias.weight"}
    network.load_state_dict(weights | {name: own[name] for name in kept & own.keys()})


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError(
            "GPSNet is trained with accelerate, which is not installed: "
            "pip install 'gpattern-bench[train]'"
        ) from error
    return Accelerator(cpu=not torch.cuda.is_available())
