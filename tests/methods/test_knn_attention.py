"""KNN-attention against the same written out, and its plan against all distances."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree

from gpattern_bench.errors import MethodError
from gpattern_bench.methods.gpsnet import (
    KNNAttention,
    join_plans,
    knn_attention,
    knn_plan,
)
from gpattern_bench.methods.gpsnet.neighbours import TIE


def rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def draw(heads, n, dim, seed=0, dtype=torch.float32):
    """Queries, keys, values and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(heads, n, dim, generator=generator).to(dtype) for _ in range(4)]


def near(positions, k):
    """Who is whose neighbour, (L, L), from all distances."""
    points = np.asarray(positions, np.float64)
    apart = np.square(points[:, None] - points[None]).sum(-1)
    limit = np.sort(apart, axis=1)[:, min(k, len(points)) - 1]
    return torch.from_numpy(apart <= limit[:, None] * (1 + TIE))


def written_out(query, key, value, mask):
    """One query at a time: its neighbours gathered, their softmax, their mean."""
    rows = []
    for i, here in enumerate(mask):
        scores = key[:, here] @ query[:, i, :, None] * query.shape[-1] ** -0.5  # (heads, k, 1)
        rows.append((scores.softmax(1) * value[:, here]).sum(1))
    return torch.stack(rows, dim=1)


def masked(query, key, value, mask):
    """All queries at once: the softmax of all, where those that are no neighbours have no part."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def with_gradients(attend, parts):
    """Output and the gradients of queries, keys and values."""
    *inputs, upstream = parts
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*inputs)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


def agree(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max()) <= tolerance


CLOUDS = {
    "plane": lambda n: rng(n).normal(size=(n, 2)),
    "space": lambda n: rng(n).normal(size=(n, 3)),
    "lattice, many ties and duplicates": lambda n: rng(n).integers(0, 12, (n, 2)) * 0.25,
    "one position": lambda n: np.ones((n, 2)),
    "a line": lambda n: np.stack([rng(n).random(n), np.zeros(n)], axis=1),
    "two far clumps": lambda n: rng(n).normal(size=(n, 2)) + 1e4 * (np.arange(n) % 2)[:, None],
}


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (65, 64), (130, 256), (400, 16), (700, 100)])
def test_output_and_gradients_are_those_of_attention_written_out(cloud, n, k):
    positions = CLOUDS[cloud](n)
    plan, mask, parts = knn_plan(positions, k), near(positions, k), draw(3, n, 8)
    assert torch.equal(plan.mask(), mask)
    expected = written_out if n < 200 else masked  # one by one takes a second
    agree(
        with_gradients(lambda *x: knn_attention(*x, plan), parts),
        with_gradients(lambda *x: expected(*x, mask), parts),
    )


@pytest.mark.slow
def test_twenty_thousand_molecules_with_256_neighbours():
    positions, parts = rng().random((20_000, 2)), draw(1, 20_000, 8)
    _, nearest = cKDTree(positions).query(positions, 256)
    nearest = torch.from_numpy(nearest)
    plan = knn_plan(positions, 256)

    def gathered(query, key, value):
        out = []
        for q, here in zip(query.split(1000, 1), nearest.split(1000), strict=True):
            scores = (key[:, here] @ q[..., None])[..., 0] * 8**-0.5  # (1, 1000, 256)
            out.append((scores.softmax(-1)[..., None] * value[:, here]).sum(2))
        return torch.cat(out, dim=1)

    agree(
        with_gradients(lambda *x: knn_attention(*x, plan), parts),
        with_gradients(gathered, parts),
    )


@pytest.mark.slow
def test_work_per_molecule_does_not_grow_with_the_cell():
    keys = [
        np.mean(knn_plan(rng().random((n, 2)) * [3, 2], 256).sizes) for n in (4_000, 16_000, 64_000)
    ]
    assert max(keys) < 600
    assert keys[2] < 1.1 * keys[1]


@settings(max_examples=60)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 300), st.just(3)), elements=st.integers(0, 6)),
    st.integers(1, 90),
    st.sampled_from([1.0, 0.1, 1 / 3]),
)
@pytest.mark.slow
def test_neighbours_on_lattices_are_those_of_all_distances(points, k, step):
    positions = points * step + 0.1
    assert torch.equal(knn_plan(positions, k).mask(), near(positions, k))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(150, 400), st.integers(1, 40))
@pytest.mark.slow
def test_neighbours_depend_on_no_order_and_no_origin(seed, n, k):
    draws = rng(seed)
    points = draws.integers(0, 40, (n, 2)) / 1024  # as coordinates of simulated cells
    mask = knn_plan(points, k).mask()
    shuffled = draws.permutation(n)
    assert torch.equal(knn_plan(points[shuffled], k).mask(), mask[shuffled][:, shuffled])
    moved = points - draws.normal(size=2) * 50
    assert torch.equal(knn_plan(moved, k).mask(), mask)


def test_shuffled_molecules_attend_to_the_same():
    positions, (q, k, v, _) = rng().random((1000, 2)), draw(2, 1000, 8)
    shuffled = torch.from_numpy(rng(1).permutation(1000))
    out = knn_attention(q, k, v, knn_plan(positions, 32))
    again = knn_attention(
        *(x[:, shuffled] for x in (q, k, v)), knn_plan(positions[shuffled.numpy()], 32)
    )
    # no two molecules share a position, so that both are summed in the same order
    assert torch.equal(again, out[:, shuffled])


def test_gradients_to_the_last_digit():
    plan = join_plans([knn_plan(rng(n).random((n, 2)), 3) for n in (70, 5, 80)])
    assert plan.whole == (True, True, False, False)
    q, k, v, _ = draw(1, 155, 2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    # Along drawn directions; whole matrices of derivatives take a minute.
    assert torch.autograd.gradcheck(lambda *x: knn_attention(*x, plan), inputs, fast_mode=True)


def test_clouds_end_to_end_do_not_see_each_other():
    sizes = [3, 900, 150, 64, 149, 901]  # one block and many, padded and not
    plans = [knn_plan(rng(n).random((n, 2)), 40) for n in sizes]
    parts = draw(2, sum(sizes), 4)
    joined = with_gradients(lambda *x: knn_attention(*x, join_plans(plans)), parts)
    each = [
        with_gradients(lambda *x, plan=plan: knn_attention(*x, plan), piece)
        for plan, *piece in zip(plans, *(x.split(sizes, 1) for x in parts), strict=True)
    ]
    agree(joined, [torch.cat(pieces, dim=1) for pieces in zip(*each, strict=True)])
    mask = torch.block_diag(*(plan.mask() for plan in plans)).bool()
    assert torch.equal(join_plans(plans).mask(), mask)


def test_a_plan_can_be_sent_and_followed_by_the_molecules():
    positions, (q, k, v, _) = rng().random((800, 3)), draw(2, 800, 4)
    plan = knn_plan(positions, 20)
    out = knn_attention(q, k, v, plan)  # the plan now holds what it laid out
    sent = pickle.loads(pickle.dumps(plan))
    assert len(pickle.dumps(plan)) < 800 * 100
    assert torch.equal(knn_attention(q, k, v, sent), out)
    assert torch.equal(knn_attention(q, k, v, plan.to("cpu")), out)
    there = knn_attention(*(x[:, plan.order] for x in (q, k, v)), plan.in_order())
    assert torch.equal(there, out[:, plan.order])
    assert torch.equal(knn_plan(torch.from_numpy(positions), 20).keys, plan.keys)


@pytest.mark.parametrize("n", [100, 1000])
def test_bfloat16_within_its_precision(n):
    positions, parts = rng().random((n, 2)), draw(2, n, 16, dtype=torch.bfloat16)
    plan = knn_plan(positions, 50)
    found = with_gradients(lambda *x: knn_attention(*x, plan), parts)
    exact = with_gradients(lambda *x: knn_attention(*x, plan), [x.float() for x in parts])
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.float() - theirs).detach().norm() / theirs.detach().norm()) < 2**-7


def test_autocast_leaves_the_attention_as_it_is():
    positions, (q, k, v, _) = rng().random((300, 2)), draw(2, 300, 8)
    plan = knn_plan(positions, 20)
    with torch.autocast("cpu", torch.bfloat16):
        out = knn_attention(q, k, v, plan)
    assert torch.equal(out, knn_attention(q, k, v, plan))


def test_the_module_is_attention_between_projections():
    torch.manual_seed(0)
    positions = rng().random((500, 2))
    plan, module, x = knn_plan(positions, 30), KNNAttention(24, 3), torch.randn(2, 500, 24)
    out = module(x, plan)
    assert out.shape == x.shape
    assert torch.allclose(module(x[1], plan), out[1], atol=1e-6)
    rival = torch.nn.MultiheadAttention(24, 3, bias=False, batch_first=True)
    state = {"in_proj_weight": module.query_key_value.weight, "out_proj.weight": module.out.weight}
    rival.load_state_dict(state)
    expected, _ = rival(x, x, x, attn_mask=~near(positions, 30))
    assert torch.allclose(out, expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(x, plan)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), expected, atol=0.02)


@pytest.mark.parametrize(
    ("positions", "k", "told"),
    [
        (np.zeros((3, 4)), 1, r"\(3, 4\)"),
        (np.zeros(3), 1, r"\(3,\)"),
        (np.zeros((0, 2)), 1, r"\(0, 2\)"),
        (np.array([[0.0, np.nan]]), 1, "not finite"),
        (np.zeros((3, 2)), 0, "got 0"),
    ],
)
def test_a_plan_of_nonsense_is_refused(positions, k, told):
    with pytest.raises(MethodError, match=told):
        knn_plan(positions, k)


def test_tensors_of_another_length_are_refused():
    plan, (q, k, v, _) = knn_plan(np.zeros((3, 2)), 1), draw(2, 4, 8)
    with pytest.raises(MethodError, match=r"\(heads, 3, head_dim\).*\(2, 4, 8\)"):
        knn_attention(q, k, v, plan)
    with pytest.raises(MethodError, match="5 heads do not divide the width of 24"):
        KNNAttention(24, 5)
