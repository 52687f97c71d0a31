"""GPSNet: a transformer that reads the molecules of a cell and scores the genes present in it.

From top to bottom: the network and its parts (:class:`GPSNet`), and how large the published ones
are. What a model is made of is in :mod:`gpattern_bench.methods.gpsnet.config`, what it reads in
:mod:`gpattern_bench.methods.gpsnet.tokens`.

In the comments on shapes: T tokens and G pairs of all cells of a batch, W the width, H heads of
D = W / H, C patterns, V genes of the vocabulary, N cells.

The paper's network attends to all molecules of a cell and knows genes by embeddings. That of the
preset ``gpsnet`` sees where each molecule lies between the outlines, and the query of a gene its
own molecules only: so it serves cells of any size, shape, panel and unit.

Source: the paper's section 3 and table 3. Where the two contradict each other (encoder to decoder
2:1 or 1:2; queries per pattern or per gene) table 3 and the shape of the output decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.utils.checkpoint import checkpoint

from gpattern_bench.methods.context import GeneScores, context_columns
from gpattern_bench.methods.gpsnet.attention import KNNAttention
from gpattern_bench.methods.gpsnet.config import PRESETS, Config
from gpattern_bench.methods.gpsnet.plan import KNNPlan
from gpattern_bench.methods.gpsnet.tokens import (
    FIELDS,
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

UNIT = 10.0  # micrometres: coordinates of order 1 for the network
_CONTINUOUS = 4  # of FIELDS
_CAP = 8.0  # of the scores of OwnAttention
PADDED = 2**18  # scores of the largest cell of a batch whose attention is one padded product


# The network


_PUBLISHED = {
    "nih3t3": (3721, 4, "130 M"),
    "u2os": (130, 4, "130 M"),
    "cosmx_lung": (960, 3, "187 M"),
}


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
        self.mlp = MLP(2 + config.depth + 4 * config.fourier, config.width, config.width)

    def forward(self, places: Tensor) -> Tensor:
        """(T, 2) or with heights (T, 3) micrometres -> (T, W)."""
        at = places / UNIT
        radius = torch.linalg.vector_norm(at, dim=-1, keepdim=True)  # (T, 1)
        along = at[:, :2] @ self.directions  # (T, F)
        phase = torch.cat([along, radius * self.frequency], dim=-1)
        out: Tensor = self.mlp(torch.cat([at, phase.sin(), phase.cos()], dim=-1))
        return out


class FieldEmbedding(nn.Module):
    """MLP of the invariant inputs, and of sines and cosines of the continuous ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.frequency: Tensor
        octaves = np.pi * 2.0 ** np.arange(config.fourier)
        self.register_buffer("frequency", torch.from_numpy(octaves).float())
        inside = len(FIELDS) + config.depth + 2 * _CONTINUOUS * config.fourier
        if config.context:
            inside += len(context_columns(config.patterns))
        self.mlp = MLP(inside, 2 * config.width, config.width)

    def forward(self, fields: Tensor) -> Tensor:
        """(T, F) -> (T, W)."""
        phase = (fields[:, :_CONTINUOUS, None] * self.frequency).flatten(1)  # (T, 4 F)
        out: Tensor = self.mlp(torch.cat([fields, phase.sin(), phase.cos()], dim=-1))
        return out


class OwnAttention(nn.Module):
    """Attention of each pair to the molecules of its own gene, in O(molecules).

    Scores are capped softly at 8 in size, so that their exponentials need no largest one.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, y: Tensor, memory: Tensor, row: Tensor) -> Tensor:
        """(G, W) pairs, (T, W) molecules and (T,) the pair of each -> (G, W)."""
        G, T = len(y), len(memory)
        query = self.query(y).index_select(0, row).view(T, self.heads, -1)  # (T, H, D)
        kv = self.key_value(memory).view(T, 2, self.heads, -1)
        key, value = kv[:, 0].float(), kv[:, 1].float()  # (T, H, D)
        score = (query.float() * key).sum(-1) / key.shape[-1] ** 0.5  # (T, H)
        weight = (_CAP * torch.tanh(score / _CAP)).exp()
        total = weight.new_zeros(G, self.heads).index_add(0, row, weight)
        weighted = (value * weight[..., None]).flatten(1)  # (T, W)
        summed = weighted.new_zeros(G, weighted.shape[1]).index_add(0, row, weighted)
        means = summed.view(G, self.heads, -1) / total[..., None]
        out: Tensor = self.out(means.flatten(1).to(y.dtype))
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
        self.near = RMSNorm(width)
        self.attention = KNNAttention(width, config.heads, biased=config.distance_bias)
        self.norm, self.mlp = RMSNorm(width), MLP(width, config.mlp_ratio * width, width)

    def forward(self, x: Tensor, plan: KNNPlan, places: Tensor, row: Tensor) -> Tensor:
        """(T, W) tokens, their positions (T, 2 or 3) and pairs (T,) -> (T, W)."""
        x = x + self.attention(self.near(x), plan, places, row)
        out: Tensor = x + self.mlp(self.norm(x))
        return out


class DecoderBlock(nn.Module):
    """Attention among a cell's pairs, from them to its tokens, then an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads, to = config.width, config.heads, config.attends_to
        self.among = self.self_attention = self.cross_attention = self.own_attention = None
        if config.self_attention:
            self.among, self.self_attention = RMSNorm(width), CellAttention(width, heads)
        self.across = RMSNorm(width)
        if to != "own":
            self.cross_attention = CellAttention(width, heads)
        if to != "all":
            self.own_attention = OwnAttention(width, heads)
        self.norm, self.mlp = RMSNorm(width), MLP(width, config.mlp_ratio * width, width)

    def forward(
        self, y: Tensor, memory: Tensor, row: Tensor, pairs: Spans, tokens: Spans
    ) -> Tensor:
        """(G, W) pairs, (T, W) tokens and the pair (T,) of each -> (G, W)."""
        if self.among is not None and self.self_attention is not None:
            normed = self.among(y)
            y = y + self.self_attention(normed, normed, pairs, pairs)
        normed = self.across(y)
        if self.cross_attention is not None:
            y = y + self.cross_attention(normed, memory, pairs, tokens)
        if self.own_attention is not None:
            y = y + self.own_attention(normed, memory, row)
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
        embedded, C = config.genes_as == "embedding", len(config.patterns)
        self.gene = nn.Embedding(unknown + 1 + len(kinds), width) if embedded else None
        plain = config.inputs == "coordinates"
        self.place = CoordinateEmbedding(config) if plain else FieldEmbedding(config)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_depth))
        self.memory = RMSNorm(width)
        self.query = nn.Embedding(unknown + 1, width) if embedded else _zeros(1, width)
        self.pool = nn.Linear(width, width) if config.pooled else None
        self.count = MLP(2, width, width) if config.counts else None
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, C)
        self.bias = _zeros(unknown + 1, C) if config.genes_as == "bias" else None
        if config.context:  # counted on the training cells
            self.positive: Tensor
            self.labelled: Tensor
            self.register_buffer("positive", torch.zeros(unknown, C))
            self.register_buffer("labelled", torch.zeros(unknown))

    @property
    def gene_scores(self) -> GeneScores | None:
        """Counts of the training cells' pairs by gene, for the context."""
        if not self.config.context:
            return None
        counts = (x.cpu().double().numpy() for x in (self.positive, self.labelled))
        return GeneScores(self.config.genes, self.config.patterns, *counts)

    @gene_scores.setter
    def gene_scores(self, counted: GeneScores) -> None:
        self.positive.copy_(torch.from_numpy(counted.positive))
        self.labelled.copy_(torch.from_numpy(counted.labelled))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (G, C) float32 of all pairs, in the order of the batch."""
        places = batch.places  # (T, 2 or 3)
        x = self.place(places if batch.fields is None else batch.fields)  # (T, W)
        if self.gene is not None:
            rows = torch.cat([batch.query, self.outline_rows])  # (G + 2,)
            x = self.gene(rows[batch.row]) + x
        for block in self.encoder:
            x = self._run(block, x, batch.plan, places, batch.row)
        memory = self.memory(x)  # (T, W)
        G = len(batch.query)
        start = batch.query if self.gene is not None else torch.zeros_like(batch.query)
        y = self.query(start)  # (G, W)
        if self.pool is not None:
            y = y + self.pool(_means(memory, batch.row, G + len(self.outline_rows))[:G])
        if self.count is not None:
            n = batch.count[:, None]
            told = self.count(torch.cat([n.log() / 3 - 1, n.rsqrt()], dim=-1))
            y = y + told * (batch.query < len(self.config.genes))[:, None]
        for block in self.decoder:
            y = self._run(block, y, memory, batch.row, batch.pairs, batch.tokens)
        logits: Tensor = self.head(self.norm(y))  # (G, C)
        if self.bias is not None:
            logits = logits + self.bias(batch.query)
        return logits.float()

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.config.checkpointing and self.training:
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        return out


def _zeros(rows: int, width: int) -> nn.Embedding:
    """Embedding that begins at 0: the other weights do not depend on its number of rows."""
    return nn.Embedding(rows, width, _weight=torch.zeros(rows, width))


def _means(x: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean (groups, W) of the rows (T, W) of each group."""
    total = x.new_zeros(groups, x.shape[-1]).index_add(0, group, x)
    count = torch.bincount(group, minlength=groups).clamp(min=1)
    return total / count[:, None]


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
