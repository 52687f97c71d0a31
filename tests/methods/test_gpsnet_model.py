"""The network: what it is made of, what it does not depend on, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

from gpattern_bench.data.cells import Cell
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet.attention import KNNAttention
from gpattern_bench.methods.gpsnet.config import PRESETS, TRAININGS, Config
from gpattern_bench.methods.gpsnet.loader import drop_molecules
from gpattern_bench.methods.gpsnet.model import (
    GPSNet,
    OwnAttention,
    collate,
    parameter_table,
    prepare,
    vocabulary_rows,
)

GENES = tuple(f"gene{i}" for i in range(12))
PATTERNS = ("cytoplasmic", "nuclear")
ROWS = vocabulary_rows(GENES, GENES)
TINY = Config(GENES, PATTERNS, width=16, heads=2, encoder_depth=2, decoder_depth=2, neighbours=20)
INVARIANT = Config.preset("gpsnet", GENES, PATTERNS, width=16, heads=2)
BIASED = {"distance_bias": True, "neighbours": 20}


def cell(n=300, seed=0, nucleus=True, labels=False, genes=10):
    """A round cell with a round nucleus; genes of even codes lie in the nucleus."""
    rng = np.random.Generator(np.random.Philox(seed))
    gene = np.sort(rng.integers(0, genes, n)).astype(np.int32)
    inner = gene % 2 == 0
    radius = np.sqrt(np.where(inner, 25 * rng.random(n), 25 + 75 * rng.random(n)))
    angle = 2 * np.pi * rng.random(n)
    xy = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    disc = shapely.Point(0, 0).buffer
    made = Cell("c", "f", np.round(xy * 1024) / 1024, gene, disc(10), disc(5) if nucleus else None)
    if not labels:
        return made
    even = made.genes % 2 == 0
    return replace(made, labels=np.stack([~even, even], axis=1), labelled=made.genes > 0)


def network(config=TINY, seed=0):
    torch.manual_seed(seed)
    return GPSNet(config).eval()


def score(model, *cells):
    with torch.no_grad():
        return model(collate([prepare(c, ROWS, model.config) for c in cells]))


VARIANTS = pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, fourier=5, pooled=True),
        replace(TINY, outlines=True),
        replace(TINY, encoder_depth=0, outlines=True, pooled=True),
        INVARIANT,
        replace(INVARIANT, encoder_depth=1, attends_to="both", self_attention=True, **BIASED),
    ],
    ids=[
        "paper",
        "fourier and pooled",
        "outlines",
        "no encoder",
        "invariant",
        "invariant, context",
    ],
)


# What it does not depend on


@VARIANTS
@pytest.mark.parametrize("n", [15, 1500])
def test_scores_do_not_depend_on_the_order_of_molecules_to_the_last_bit(config, n):
    model, given = network(config), cell(n)
    twice = replace(given, xy=np.repeat(given.xy, 2, axis=0), gene=np.repeat(given.gene, 2))
    for one in (given, twice):  # also where molecules share a position
        order = np.random.Generator(np.random.Philox(1)).permutation(len(one.gene))
        shuffled = replace(one, xy=one.xy[order], gene=one.gene[order])
        assert torch.equal(score(model, shuffled), score(model, one))


@VARIANTS
def test_scores_do_not_depend_on_where_the_cell_lies(config):
    # Tables hold slide-global float32; a cell's frame is relative to the centroid in its row.
    model, given = network(config), cell(800)
    for shift in ([0.0, 0.0], [4096.0, -1024.0], [1000 + 1 / 1024, 8000.0]):
        centroid = np.float32([3.25, -7.5]) + np.float32(shift)
        there = (given.xy + np.array([3.25, -7.5]) + shift).astype(np.float32)
        moved = replace(given, xy=there.astype(np.float64) - centroid.astype(np.float64))
        assert torch.equal(score(model, moved), score(model, given))


@VARIANTS
def test_scores_do_not_depend_on_the_other_cells_of_the_batch(config):
    model = network(config)
    cells = [cell(n, seed=n, nucleus=n != 30) for n in (700, 30, 1, 90, 31)]
    together = score(model, *cells)
    apart = [score(model, one) for one in cells]
    assert [len(s) for s in apart] == [len(c.genes) for c in cells]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


def test_large_cells_are_attended_to_one_by_one_with_the_same_result(monkeypatch):
    model, cells = network(), [cell(n, seed=n) for n in (200, 60)]
    padded = score(model, *cells)
    monkeypatch.setattr("gpattern_bench.methods.gpsnet.model.PADDED", 0)
    assert torch.allclose(score(model, *cells), padded, atol=1e-6)


@pytest.mark.parametrize("nucleus", [True, False])
@pytest.mark.parametrize("context", [False, True])
def test_invariant_scores_do_not_depend_on_how_the_cell_lies_nor_on_the_unit(nucleus, context):
    config = INVARIANT
    if context:
        config = replace(config, encoder_depth=2, attends_to="both", self_attention=True, **BIASED)
    model, given = network(config), lopsided(nucleus)
    expected = score(model, given)
    rng = np.random.Generator(np.random.Philox(3))
    for unit in (1.0, 0.108, 1000.0):
        for mirror in (1, -1):
            angle, shift = 2 * np.pi * rng.random(), 1000 * rng.random(2)
            turn = unit * np.array(
                [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            )
            turn = turn @ np.diag([mirror, 1])

            def moved(xy, turn=turn, shift=shift):
                return xy @ turn.T + shift

            other = replace(
                given,
                xy=moved(given.xy),
                boundary=shapely.transform(given.boundary, moved),
                nucleus=None if given.nucleus is None else shapely.transform(given.nucleus, moved),
            )
            assert torch.allclose(score(model, other), expected, atol=1e-5, rtol=0)


def lopsided(nucleus=True):
    """A long cell with a bump and a nucleus off its middle."""
    given = cell(400)
    boundary = shapely.Polygon([(-12, -9), (11, -10), (17, 3), (9, 11), (-13, 8)])
    inside = shapely.Point(-3, 1).buffer(4) if nucleus else None
    return replace(given, boundary=boundary, nucleus=inside)


def test_own_attention_is_a_softmax_over_the_molecules_of_each_gene():
    torch.manual_seed(0)
    layer = OwnAttention(8, 2).double()
    y = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    row = torch.arange(20) % 3

    def written_out(y, memory):
        out = []
        for g in range(3):
            q = layer.query(y[g]).view(2, 4)
            k, v = layer.key_value(memory[row == g]).view(-1, 2, 2, 4).unbind(1)
            scores = torch.einsum("hd,nhd->hn", q, k) / 2
            weights = (8 * torch.tanh(scores / 8)).softmax(-1)
            out.append(layer.out(torch.einsum("hn,nhd->hd", weights, v).flatten()))
        return torch.stack(out)

    found, expected = layer(y, memory, row), written_out(y, memory)
    assert torch.allclose(found, expected, atol=1e-6)  # the sums are float32
    inputs = (y, memory, *layer.parameters())
    weights = torch.randn(3, 8, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_knn_attention_adds_a_bias_of_distance_and_gene():
    torch.manual_seed(0)
    layer = KNNAttention(8, 2, biased=True)
    for n in (30, 400):  # one block, and several
        given = cell(n)
        tokens = prepare(given, ROWS, replace(INVARIANT, encoder_depth=1, neighbours=9))
        x = torch.randn(n, 8)
        q, k, v = layer.query_key_value(x).view(n, 3, 2, 4).permute(1, 2, 0, 3)
        distance = torch.cdist(tokens.xy, tokens.xy, compute_mode="donot_use_mm_for_euclid_dist")
        same = (tokens.row[:, None] == tokens.row).float()
        told = torch.stack([(distance + 0.003).log() / 2 + 1, same], dim=-1)
        scores = q @ k.transpose(1, 2) / 2 + layer.bias.mlp(told).permute(2, 0, 1)
        weights = scores.masked_fill(~tokens.plan.mask(), -torch.inf).softmax(-1)
        expected = layer.out((weights @ v).transpose(0, 1).flatten(1))
        found = layer(x, tokens.plan, tokens.xy, tokens.row)
        assert torch.allclose(found, expected, atol=1e-5)
        found.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


def test_invariant_inputs_are_where_molecules_lie_between_the_outlines():
    disc = shapely.Point(0, 0).buffer(10, quad_segs=64)
    nucleus = shapely.Point(0, 0).buffer(4, quad_segs=64)
    given = Cell(
        "c", "f", np.array([[9.0, 0], [0, 4.0 + 3], [2, 0]]), np.array([0, 1, 2]), disc, nucleus
    )
    tokens = prepare(given, ROWS, INVARIANT)
    by_gene = tokens.fields[tokens.row.argsort()]
    expected = [
        [0.1, 0.5, 5 / 6, 0.9, 0, 1],
        [0.3, 0.3, 0.5, 0.7, 0, 1],
        [0.8, -0.2, -0.5, 0.2, 1, 1],
    ]
    assert by_gene.numpy() == pytest.approx(np.array(expected), abs=2e-3)
    bare = prepare(replace(given, nucleus=None), ROWS, INVARIANT)
    by_gene = bare.fields[bare.row.argsort()].numpy()
    assert by_gene[:, [1, 2, 4, 5]].tolist() == [[0.0] * 4] * 3
    assert by_gene[:, 3] == pytest.approx([0.9, 0.7, 0.2], abs=2e-3)


def test_counts_and_bias_are_of_known_genes_only():
    model, given = network(INVARIANT), cell()
    with torch.no_grad():
        model.bias.weight.copy_(torch.arange(26.0).view(13, 2))
    unknown = prepare(given, np.full(12, 12), INVARIANT)
    base = prepare(given, ROWS, INVARIANT)
    doubled = replace(base, count=2 * base.count), replace(unknown, count=2 * unknown.count)
    with torch.no_grad():
        assert not torch.equal(model(collate([doubled[0]])), model(collate([base])))
        assert torch.equal(model(collate([doubled[1]])), model(collate([unknown])))
    assert torch.equal(base.count, torch.from_numpy(given.counts).float())


# What it depends on


@VARIANTS
def test_scores_depend_on_positions_and_genes(config):
    model, given = network(config), cell()
    assert not torch.allclose(score(model, replace(given, xy=given.xy * 0.9)), score(model, given))
    other = replace(given, gene=given.gene[::-1].copy())
    assert not torch.allclose(score(model, other), score(model, given))


def test_scores_depend_on_outlines_only_if_asked():
    for config, same in ((TINY, True), (replace(TINY, outlines=True), False)):
        model, given = network(config), cell()
        wide = replace(given, boundary=shapely.Point(0, 0).buffer(12))
        assert torch.equal(score(model, wide), score(model, given)) == same
        assert torch.equal(score(model, replace(given, nucleus=None)), score(model, given)) == same


def deep(made, scale=2.0, shift=0.0):
    """The cell with heights: genes above 4 lie high."""
    z = np.where(made.gene > 4, scale, -scale) + made.xy[:, 0] / 8 + shift
    return replace(made, z=z)


DEEP = pytest.mark.parametrize(
    "config",
    [
        replace(TINY, depth=True, fourier=3, pooled=True),
        replace(TINY, depth=True, outlines=True),
        replace(INVARIANT, depth=True),
        replace(INVARIANT, depth=True, inputs="micrometres", encoder_depth=1, **BIASED),
    ],
    ids=["coordinates", "outlines", "invariant", "with an encoder"],
)


@DEEP
def test_heights_are_read_only_if_asked_for(config):
    flat = cell(120)
    model = network(config)
    assert not torch.equal(score(model, deep(flat)), score(model, flat))
    assert torch.equal(score(model, replace(flat, z=flat.xy[:, 0] * 0 + 7)), score(model, flat))
    close = {"rtol": 0, "atol": 2e-5}
    shifted = deep(flat, shift=100.0)
    torch.testing.assert_close(score(model, shifted), score(model, deep(flat)), **close)
    without = network(replace(config, depth=False))
    assert torch.equal(score(without, deep(flat)), score(without, flat))


@DEEP
def test_heights_go_with_their_molecules(config):
    model, made = network(config), deep(cell(120))
    order = np.random.default_rng(1).permutation(120)
    order = order[np.argsort(made.gene[order], kind="stable")]
    mixed = replace(made, xy=made.xy[order], gene=made.gene[order], z=made.z[order])
    assert torch.equal(score(model, mixed), score(model, made))
    alone = torch.cat([score(model, made), score(model, cell(50, seed=2))])
    together = score(model, made, cell(50, seed=2))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    labelled = deep(cell(120, labels=True))
    fewer = drop_molecules(labelled, np.random.default_rng(0), 0.6)
    assert 0 < len(fewer.gene) < 120
    assert set(map(tuple, np.column_stack([fewer.xy, fewer.z]))) < set(
        map(tuple, np.column_stack([labelled.xy, labelled.z]))
    )


def test_a_height_that_is_unknown_is_the_mean():
    made = deep(cell(60))
    made.z[5] = np.nan
    found = prepare(made, ROWS, replace(TINY, depth=True)).z
    assert torch.isfinite(found).all()
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert (found == 0).sum() == 1


def test_the_bias_of_distance_is_that_in_space():
    bias = KNNAttention(8, 2, biased=True).bias
    places = torch.tensor([[[0.0, 0, 0, 1], [0, 0, 3, 1], [0, 4, 0, 2]]])
    flat = torch.tensor([[[0.0, 0, 1], [3, 0, 1], [0, 4, 2]]])
    torch.testing.assert_close(bias(places, places), bias(flat, flat))


def test_outline_tokens_lie_on_the_outlines():
    ring = shapely.MultiPolygon([shapely.box(0, 0, 9, 9), shapely.box(20, 0, 23, 3)])
    given = replace(cell(50), boundary=ring)
    tokens = prepare(given, ROWS, replace(TINY, outlines=True))
    points = shapely.points(tokens.xy.numpy())
    g = len(given.genes)
    outer, inner = points[tokens.row == g], points[tokens.row == g + 1]
    assert shapely.distance(ring.boundary, outer).max() < 1e-5
    assert shapely.distance(given.nucleus.boundary, inner).max() < 1e-5
    assert (len(outer), len(inner), len(tokens)) == (48, 48, 146)
    assert (shapely.get_x(outer) > 10).sum() == 12  # a quarter of the length


def test_unknown_genes_share_an_embedding_and_differ_if_pooled():
    given = cell()
    rows = vocabulary_rows(GENES[:5], GENES)
    assert rows.tolist() == [0, 1, 2, 3, 4, *[5] * 7]
    for pooled in (False, True):
        model = network(replace(TINY, genes=GENES[:5], pooled=pooled))
        with torch.no_grad():
            scores = model(collate([prepare(given, rows, model.config)]))
        assert not torch.equal(scores[3], scores[4])
        assert torch.allclose(scores[5], scores[6]) != pooled


def test_rows_are_the_genes_present():
    given = cell(40, labels=True)
    tokens = prepare(given, ROWS, TINY)
    assert tokens.query.tolist() == given.genes.tolist()
    assert score(network(), given).shape == (len(given.genes), 2)
    own = given.genes[tokens.row.numpy()]
    found = sorted(zip(tokens.xy.numpy().tolist(), own.tolist(), strict=True))
    assert found == sorted(zip(given.xy.tolist(), given.gene.tolist(), strict=True))
    batch = collate([tokens, prepare(cell(70, seed=1, labels=True), ROWS, TINY)])
    assert batch.labels[: len(given.genes)].numpy().astype(bool).tolist() == given.labels.tolist()
    assert batch.labelled[: len(given.genes)].tolist() == given.labelled.tolist()
    assert collate([tokens, prepare(cell(70), ROWS, TINY)]).labels is None


def test_augmentations_turn_cells_and_forget_genes():
    tokens = prepare(cell(), ROWS, TINY)
    quarter = tokens.mapped(np.array([[0.0, -1.0], [1.0, 0.0]]))
    assert torch.equal(quarter.xy, torch.stack([-tokens.xy[:, 1], tokens.xy[:, 0]], dim=1))
    assert quarter.plan is tokens.plan
    forgot = tokens.without_genes(np.arange(10) < 3, len(GENES))
    assert forgot.query.tolist() == [12, 12, 12, *range(3, 10)]


# Training it


@pytest.mark.slow
def test_it_learns_patterns_of_positions():
    config = replace(TINY, fourier=8, pooled=True)
    torch.manual_seed(0)
    model = GPSNet(config)
    batch = collate([prepare(cell(n, seed=n, labels=True), ROWS, config) for n in (60, 80, 100)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


@pytest.mark.parametrize("outlines", [False, True])
def test_checkpointing_changes_nothing_but_memory(outlines):
    gradients = []
    for checkpointing in (False, True):
        config = replace(TINY, pooled=True, outlines=outlines, checkpointing=checkpointing)
        model = network(config).train()
        batch = collate([prepare(cell(n), ROWS, config) for n in (100, 400)])
        model(batch).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_bfloat16_is_close():
    model, given = network(replace(TINY, pooled=True)), cell()
    with torch.autocast("cpu", torch.bfloat16):
        low = score(model, given)
    assert low.dtype == torch.float32
    assert torch.allclose(low, score(model, given), atol=0.05)


@pytest.mark.slow
def test_plans_are_made_in_loader_workers():
    cells = _Prepared([cell(n, labels=True) for n in (60, 400)])
    loader = DataLoader(
        cells, batch_size=2, collate_fn=collate, num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    model = network()
    here = collate([cells[0], cells[1]])
    with torch.no_grad():
        assert torch.equal(model(batch), model(here))
        assert torch.equal(model(batch.to("cpu")), model(here))
    assert torch.equal(batch.labels, here.labels)


class _Prepared:
    def __init__(self, cells):
        self.cells = cells

    def __len__(self):
        return len(self.cells)

    def __getitem__(self, index):
        return prepare(self.cells[index], ROWS, TINY)


# What it is made of


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "checkpointing"),
    [("nih3t3", 4, 8, True), ("u2os", 4, 8, False), ("cosmx_lung", 6, 12, False)],
)
def test_presets_are_those_of_the_papers_table_3(name, encoder, decoder, checkpointing):
    expected = Config(
        GENES,
        PATTERNS,
        width=768,
        heads=12,
        encoder_depth=encoder,
        decoder_depth=decoder,
        mlp_ratio=4,
        neighbours=256,
        fourier=0,
        pooled=False,
        outlines=False,
        checkpointing=checkpointing,
    )
    assert Config.preset(name, GENES, PATTERNS) == expected


def test_layers_have_as_many_parameters_as_plain_ones():
    with torch.device("meta"):
        model = GPSNet(Config.preset("u2os", GENES, PATTERNS))

    def size(module):
        return sum(p.numel() for p in module.parameters())

    width = 768
    mlp = 8 * width**2 + 5 * width  # with biases
    assert size(model.encoder[0]) == 4 * width**2 + mlp + 2 * width
    assert size(model.decoder[0]) == 8 * width**2 + mlp + 3 * width
    assert len(model.encoder) == 4
    assert len(model.decoder) == 8


@pytest.mark.parametrize(
    ("genes", "patterns", "encoder", "decoder", "millions"),
    [(3721, 4, 8, 4, 129.74), (130, 4, 8, 4, 124.22), (960, 3, 12, 6, 186.92)],
)
def test_another_reading_of_the_paper_comes_close_to_its_sizes(
    genes, patterns, encoder, decoder, millions
):
    """As docs/methods/gpsnet.md says it: NIH/3T3, U-2 OS and CosMx Lung."""
    width, inner = 768, 4 * 768

    def linear(inside, outside):
        return (inside + 1) * outside  # with a bias

    attention = 4 * linear(width, width)
    geglu = linear(width, 2 * inner) + linear(inner, width)
    size = encoder * (attention + geglu + 2 * width) + decoder * (2 * attention + geglu + 3 * width)
    size += linear(2, width) + 2 * linear(width, width)  # of the coordinates
    size += 2 * genes * width  # embeddings of molecules and of queries
    size += 2 * width + linear(width, patterns)  # last norms, and the head
    assert round(size / 1e6, 2) == millions


def test_training_of_the_papers_presets_is_the_papers():
    assert {TRAININGS[name].forgotten for name in ("nih3t3", "u2os", "cosmx_lung")} == {0.0}
    training = TRAININGS["nih3t3"]
    steps = training.steps_of(143)  # 80 % of 179 cells
    assert steps == 360 < training.warmup_steps(steps) == 1000


def test_sizes_are_printed_beside_the_papers():
    text = parameter_table()
    assert [name for name in PRESETS if name in text] == ["nih3t3", "u2os", "cosmx_lung"]
    assert text.count("130 M") == 2
    assert text.count("187 M") == 1


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name):
    config = Config.preset(name, GENES, PATTERNS, neighbours=7)
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["neighbours"] == 7
    assert "depth" not in json.loads(config.to_json())  # the bytes of before
    deep = replace(config, depth=True)
    assert Config.from_json(deep.to_json()) == deep


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "Expecting value"),
        ("3", "not iterable"),
        ("{}", "width"),
        (TINY.to_json().replace('"width": 16', '"width": "16"'), "kind: width"),
        (TINY.to_json().replace('"width": 16', '"width": 16, "depth": 3'), "kind: depth"),
        (TINY.to_json().replace('"heads": 2', '"heads": 3'), "3 heads do not divide"),
        (TINY.to_json().replace('"gene1"', '"gene0"'), "twice"),
        (
            TINY.to_json().replace('"coordinates"', '"polar"'),
            "coordinates or micrometres or invariant",
        ),
    ],
)
def test_other_json_is_refused(text, told):
    with pytest.raises(MethodError, match=told):
        Config.from_json(text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"neighbours": 0}, "neighbours is 0"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
        ({"patterns": ()}, "no patterns"),
        ({"attends_to": "none"}, "all or own or both"),
        ({"inputs": "invariant", "outlines": True}, "coordinates only"),
    ],
)
def test_impossible_networks_are_refused(changes, told):
    with pytest.raises(MethodError, match=told):
        replace(TINY, **changes)


def test_an_unknown_preset_is_an_error_with_the_known_ones():
    with pytest.raises(MethodError, match="small"):
        Config.preset("tiny", GENES, PATTERNS)
