"""GPSNet: a transformer that reads the molecules of a cell and scores the genes present in it.

From top to bottom: what a model is made of (:class:`Config`), the network and its parts
(:class:`GPSNet`), and how large the published ones are. What it reads is in
:mod:`gpattern_bench.methods.gpsnet.tokens`.

In the comments on shapes: T tokens and G pairs of all cells of a batch, W the width, H heads of
D = W / H, C patterns, V genes of the vocabulary, N cells.

Source: the paper's section 3 and table 3. Where the two contradict each other (encoder to decoder
2:1 or 1:2; queries per pattern or per gene) table 3 and the shape of the output decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.utils.checkpoint import checkpoint

from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet.attention import KNNAttention
from gpattern_bench.methods.gpsnet.plan import KNNPlan
from gpattern_bench.methods.gpsnet.tokens import (
    Batch,
    Spans,
    Tokens,
    collate,
    prepare,
    vocabulary_rows,
)

__all__ = [
    "PRESETS",
    "Batch",
    "Config",
    "GPSNet",
    "Tokens",
    "collate",
    "parameter_table",
    "prepare",
    "vocabulary_rows",
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
}
"""What the presets set; the first three are those of the paper's table 3."""

UNIT = 10.0  # micrometres: coordinates of order 1 for the network
PADDED = 2**18  # scores of the largest cell of a batch whose attention is one padded product


# What a model is made of


@dataclass(frozen=True)
class Config:
    """Everything that fixes the shape of a model; with the weights, a whole model.

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
    fourier : int
        Random frequencies whose sine and cosine, of the position along random directions and of
        its distance from the centroid, go into the coordinate MLP beside the position; 0 is the
        paper's.
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

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected {least} or more"
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        if not problems and self.width % self.heads:
            problems.append(f"{self.heads} heads do not divide the width of {self.width}")
        if not self.patterns:
            problems.append("there are no patterns to score")
        if len(set(self.genes)) != len(self.genes):
            problems.append("a gene is in the vocabulary twice")
        if problems:
            raise MethodError(f"this is no GPSNet: {'; '.join(problems)}")

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
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)

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
        wrong = {name for name in kinds if type(found.get(name)) is not kinds[name]}
        wrong |= set(found) - set(kinds)
        if wrong:
            raise MethodError(
                "not the configuration of a GPSNet: missing, unknown or of another kind: "
                + ", ".join(sorted(wrong))
            )
        lists = {"genes": tuple(found["genes"]), "patterns": tuple(found["patterns"])}
        return cls(**found | lists)


_LEAST = {
    "width": 1,
    "heads": 1,
    "encoder_depth": 0,
    "decoder_depth": 1,
    "mlp_ratio": 1,
    "neighbours": 1,
    "fourier": 0,
}
_JSON_KINDS = {"tuple[str, ...]": list, "int": int, "bool": bool}


# The network


class RMSNorm(nn.Module):
    """Divide by the root mean square over the width, and scale; in float32 inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, W) -> (n, W)."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return (wide * scale * self.weight).to(x.dtype)


class MLP(nn.Sequential):
    """Two linear layers with GELU between them."""

    def __init__(self, inside: int, hidden: int, outside: int) -> None:
        super().__init__(nn.Linear(inside, hidden), nn.GELU(), nn.Linear(hidden, outside))


class CoordinateEmbedding(nn.Module):
    """MLP of the position and, if asked for, of sines and cosines of it and of its radius."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        rng = np.random.Generator(np.random.Philox(0))
        angle = 2 * np.pi * rng.random(config.fourier)
        # wavelengths from 2 to 60 um, evenly in their logarithm
        frequency = 2 * np.pi * UNIT / (2.0 * 30.0 ** rng.random(config.fourier))
        directions = np.stack([np.cos(angle), np.sin(angle)]) * frequency  # (2, F)
        self.directions: Tensor
        self.frequency: Tensor
        self.register_buffer("directions", torch.from_numpy(directions).float())
        self.register_buffer("frequency", torch.from_numpy(frequency).float())
        self.mlp = MLP(2 + 4 * config.fourier, config.width, config.width)

    def forward(self, xy: Tensor) -> Tensor:
        """(T, 2) micrometres -> (T, W)."""
        at = xy / UNIT
        radius = torch.linalg.vector_norm(at, dim=-1, keepdim=True)  # (T, 1)
        phase = torch.cat([at @ self.directions, radius * self.frequency], dim=-1)  # (T, 2 F)
        out: Tensor = self.mlp(torch.cat([at, phase.sin(), phase.cos()], dim=-1))
        return out


class CellAttention(nn.Module):
    """Attention of rows of each cell to other rows of the same cell, all of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, of_x: Spans, of_memory: Spans) -> Tensor:
        """(G, W) that attend and (G or T, W) that are attended to -> (G, W)."""
        query = self.query(x)  # (G, W)
        key_value = self.key_value(memory)  # (G or T, 2 W)
        if len(of_x.sizes) > 1 and of_x.most * of_memory.most <= PADDED:
            padded = self._attend(of_x.pad(query), of_memory.pad(key_value), of_memory.mask)
            out = of_x.unpad(padded)
        else:
            cells = zip(
                torch.split(query, list(of_x.sizes)),
                torch.split(key_value, list(of_memory.sizes)),
                strict=True,
            )
            out = torch.cat([self._attend(q[None], kv[None], None)[0] for q, kv in cells])
        projected: Tensor = self.out(out)
        return projected

    def _attend(self, query: Tensor, key_value: Tensor, mask: Tensor | None) -> Tensor:
        N, g, W = query.shape
        q = query.view(N, g, self.heads, -1).transpose(1, 2)  # (N, H, g, D)
        kv = key_value.view(N, key_value.shape[1], 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)  # (N, H, rows, D) each
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, H, g, D)
        return out.transpose(1, 2).reshape(N, g, W)


class EncoderBlock(nn.Module):
    """KNN-attention among the tokens, then an MLP; each on a norm, added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.near, self.attention = RMSNorm(width), KNNAttention(width, config.heads)
        self.norm, self.mlp = RMSNorm(width), MLP(width, config.mlp_ratio * width, width)

    def forward(self, x: Tensor, plan: KNNPlan) -> Tensor:
        """(T, W) -> (T, W)."""
        x = x + self.attention(self.near(x), plan)
        out: Tensor = x + self.mlp(self.norm(x))
        return out


class DecoderBlock(nn.Module):
    """Attention among a cell's pairs, from them to its tokens, then an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.among, self.self_attention = RMSNorm(width), CellAttention(width, heads)
        self.across, self.cross_attention = RMSNorm(width), CellAttention(width, heads)
        self.norm, self.mlp = RMSNorm(width), MLP(width, config.mlp_ratio * width, width)

    def forward(self, y: Tensor, memory: Tensor, pairs: Spans, tokens: Spans) -> Tensor:
        """(G, W) pairs and (T, W) tokens -> (G, W)."""
        normed = self.among(y)
        y = y + self.self_attention(normed, normed, pairs, pairs)
        y = y + self.cross_attention(self.across(y), memory, pairs, tokens)
        out: Tensor = y + self.mlp(self.norm(y))
        return out


class GPSNet(nn.Module):
    """The whole network: tokens -> encoder -> queries of the genes present -> logits.

    Genes that are absent from a cell get no query: they carry no label, and leaving them out is
    the same function as masking them, far cheaper.

    Parameters
    ----------
    config : Config
        Weights are drawn by torch's generator: seed it before.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, unknown = config.width, len(config.genes)
        kinds = [unknown + 1, unknown + 2] if config.outlines else []
        self.outline_rows: Tensor
        self.register_buffer("outline_rows", torch.tensor(kinds, dtype=torch.int64))
        self.gene = nn.Embedding(unknown + 1 + len(kinds), width)
        self.place = CoordinateEmbedding(config)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.memory = RMSNorm(width)
        self.query = nn.Embedding(unknown + 1, width)
        self.pool = nn.Linear(width, width) if config.pooled else None
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, len(config.patterns))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (G, C) float32 of all pairs, in the order of the batch."""
        rows = torch.cat([batch.query, self.outline_rows])  # (G + 2,)
        x = self.gene(rows[batch.own]) + self.place(batch.xy)  # (T, W)
        for block in self.encoder:
            x = self._run(block, x, batch.plan)
        memory = self.memory(x)  # (T, W)
        y = self.query(batch.query)  # (G, W)
        if self.pool is not None:
            y = y + self.pool(_means(memory, batch.own, len(rows))[: len(y)])
        for block in self.decoder:
            y = self._run(block, y, memory, batch.pairs, batch.tokens)
        logits: Tensor = self.head(self.norm(y))  # (G, C)
        return logits.float()

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.config.checkpointing and self.training:
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        return out


def _means(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean (groups, W) of the rows (T, W) of each group."""
    total = x.new_zeros(groups, x.shape[-1]).index_add(0, group, x)
    count = torch.bincount(group, minlength=groups).clamp(min=1)
    return total / count[:, None]


# How large the models are

_PUBLISHED = {
    "nih3t3": (3721, 4, "130 M"),
    "u2os": (130, 4, "130 M"),
    "cosmx_lung": (960, 3, "187 M"),
}


def parameter_table() -> str:
    """Parameters of the presets on the paper's vocabularies, beside the sizes it reports."""
    rows = []
    for name, (genes, patterns, published) in _PUBLISHED.items():
        names, labels = [str(i) for i in range(genes)], [str(i) for i in range(patterns)]
        with torch.device("meta"):
            model = GPSNet(Config.preset(name, names, labels))
        rows.append([name, _millions(model), published])
    return tabulate(rows, ["preset", "parameters", "reported"], tablefmt="github")


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"
