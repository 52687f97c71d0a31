"""Shares of cells by likelihood, against EM and against a search by scipy."""

from __future__ import annotations

from math import nan

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit
from scipy.stats import chi2

from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.quantify import count_odds, estimate_shares, likeliest_shares

PRIOR = {"edge": 0.2, "nuclear": 0.4}


def pairs(n: int = 300, shares: tuple[float, float] = (0.6, 0.1)) -> pd.DataFrame:
    """Calibrated probabilities of pairs of genes whose shares are not those of the prior."""
    rng = np.random.Generator(np.random.Philox(0))
    table = pd.DataFrame({"gene": np.repeat(["B", "A", "C"], n)})
    for (pattern, prior), share in zip(PRIOR.items(), shares, strict=True):
        truth = rng.random(3 * n) < share
        # Two normals of distance 2 have the log-odds 2 x at x: exactly calibrated.
        odds = 2 * rng.normal(np.where(truth, 1, -1)) + logit(prior)
        table[pattern] = expit(odds).astype(np.float32)
    return table


def exact(p: np.ndarray, prior: float) -> tuple[float, float, float]:
    """The share of largest likelihood by search, and the ends of its interval by roots."""
    odds = np.exp(logit(p.astype(float)) - logit(prior))

    def lost(share: float) -> float:
        return -np.log1p(share * (odds - 1)).sum()

    best = minimize_scalar(lost, bounds=(0, 1), method="bounded", options={"xatol": 1e-8}).x
    limit = lost(best) + chi2.ppf(0.95, 1) / 2
    ends = [
        end if lost(end) <= limit else brentq(lambda s: lost(s) - limit, best, end)
        for end in (0, 1)
    ]
    return best, *ends


def test_shares_are_those_of_em_and_their_intervals_those_of_the_likelihood():
    table = pairs()
    found = estimate_shares([table], PRIOR).set_index("gene")
    assert list(found.index) == ["A", "B", "C"]
    assert (found["cells"] == 300).all()
    for gene, rows in table.groupby("gene"):
        for pattern, prior in PRIOR.items():
            p = rows[pattern].to_numpy(float)
            share = prior  # Saerens et al.
            for _ in range(500):
                moved = p * share / prior
                share = (moved / (moved + (1 - p) * (1 - share) / (1 - prior))).mean()
            best, low, high = exact(p, prior)
            assert best == pytest.approx(share, abs=1e-3)
            line = found.loc[gene]
            assert line[pattern] == pytest.approx(share, abs=0.005)
            assert line[f"{pattern}_low"] == pytest.approx(low, abs=0.008)
            assert line[f"{pattern}_high"] == pytest.approx(high, abs=0.008)
    assert found["edge"].mean() == pytest.approx(0.6, abs=0.05)  # the truth, not the prior
    assert found["nuclear"].mean() == pytest.approx(0.1, abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.Generator(np.random.Philox(1))
    truth = rng.random((1000, 40)) < 0.3
    p = expit(2 * rng.normal(np.where(truth, 1, -1)) + logit(0.5))
    counts = count_odds(p.reshape(-1, 1), [0.5], np.repeat(np.arange(1000), 40), 1000)
    _, low, high = likeliest_shares(counts[:, 0])
    assert ((low <= 0.3) & (high >= 0.3)).mean() == pytest.approx(0.95, abs=0.02)


def test_batches_add_up_whatever_their_genes_and_columns():
    table = pairs(50)
    whole = estimate_shares([table], PRIOR)
    parts = [table[:70], table[70:][["nuclear", "gene", "edge"]].assign(n_molecules=1)]
    pd.testing.assert_frame_equal(estimate_shares(iter(parts), PRIOR), whole)
    coded = table.assign(gene=table["gene"].astype("category"))
    pd.testing.assert_frame_equal(estimate_shares([coded], PRIOR), whole)


def test_pairs_that_say_nothing_leave_every_share_possible_and_change_no_other():
    table = pairs(50)
    silent = pd.DataFrame({"gene": ["A"] * 9 + ["D"]}).assign(**PRIOR)
    found = estimate_shares([table, silent], PRIOR).set_index("gene")
    before = estimate_shares([table], PRIOR).set_index("gene")
    assert found.loc["A", "cells"] == 59
    assert (found.loc["A"] == before.loc["A"]).sum() == 6
    assert (found.loc["D", "edge_low"], found.loc["D", "edge_high"]) == (0, 1)


def test_probabilities_of_0_and_1_are_nearly_certain():
    table = pd.DataFrame({"gene": ["007"] * 4, "edge": [0.0, 0.0, 0.0, 1.0]})
    found = estimate_shares([table], {"edge": 0.2}).iloc[0]
    assert found["gene"] == "007"
    assert found["edge"] == pytest.approx(0.25, abs=0.01)
    assert 0 < found["edge_low"] < 0.25 < found["edge_high"] < 1


@pytest.mark.parametrize(
    ("batches", "prevalence", "message"),
    [
        ([], PRIOR, "there is no pair"),
        ([pairs(2)[:0]], PRIOR, "there is no pair"),
        ([pairs(2).drop(columns="edge")], PRIOR, "missing or repeated: edge"),
        ([pd.concat([pairs(2)] * 2, axis=1)], PRIOR, "missing or repeated: gene, edge, nuclear"),
        ([pairs(2).assign(gene=None)], PRIOR, "names of some genes"),
        ([pairs(2).assign(edge=nan)], PRIOR, "scores are missing"),
        ([pairs(2).assign(edge=1.5)], PRIOR, r"in \[0, 1\] everywhere"),
        ([pairs(2).assign(edge=1)], PRIOR, "column edge: expected float32 or float64"),
        ([pairs(2)], {"edge": 0.0}, "above 0 and below 1"),
        ([pairs(2)], {"edge": nan}, "above 0 and below 1"),
        ([pairs(2)], {"gene": 0.5}, "a pattern cannot be named gene"),
    ],
)
def test_what_gives_no_shares_is_refused(batches, prevalence, message):
    with pytest.raises(EvaluationError, match=message):
        estimate_shares(batches, prevalence)
