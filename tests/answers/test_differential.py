"""Differential localisation: against scipy and least squares, and what odd inputs do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from samples import write_answer
from scipy.stats import false_discovery_control, t, ttest_ind, ttest_rel

from gpattern_bench.answers import contrasts, sums
from gpattern_bench.answers.differential import (
    COLUMNS,
    differential,
    read_differential,
    write_differential,
)
from gpattern_bench.errors import EvaluationError, SourceError

PATTERNS = ["nuclear", "cell_edge"]


def drawn(
    n_genes: int = 4, donors: int = 4, *, even: bool = False, cells: int = 30, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs, and cells of two conditions with `donors` each; gene g0 is nuclear in `treated`.

    `even`: every pair has four molecules, every cell the same area.
    """
    rng = np.random.default_rng(seed)
    n = 2 * donors * cells
    donor = np.repeat(np.arange(2 * donors), cells)
    table = pd.DataFrame(
        {
            "cell_id": [f"{k:04d}" for k in range(n)],
            "fov": [f"d{d}f{k % 5}" for k, d in enumerate(donor)],
            "area_um2": 100.0 if even else 100 * np.exp(rng.normal(0, 0.3, n)),
            "condition": np.where(donor < donors, "control", "treated"),
            "donor": [f"d{d}" for d in donor],
        }
    )
    cell, gene = (part.ravel() for part in np.indices((n, n_genes)))
    molecules = np.full(len(cell), 4) if even else 2 + rng.poisson(6, len(cell))
    odds = (
        rng.normal(0, 0.3, (2 * donors, n_genes, 2))[donor[cell], gene] + 0.05 * molecules[:, None]
    )
    odds[:, 0] += 3.0 * ((gene == 0) & (donor[cell] >= donors)) - 1
    scores = 1 / (1 + np.exp(-odds - rng.normal(0, 1, odds.shape)))
    pairs = pd.DataFrame(
        {
            "cell_id": table["cell_id"].to_numpy()[cell],
            "gene": np.char.add("g", gene.astype(str)),
            "n_molecules": molecules,
        }
        | dict(zip(PATTERNS, scores.astype(np.float32).T, strict=True))
    )
    return pairs, table


def rows_of(found, pattern="nuclear"):
    table = found.table[found.table["pattern"] == pattern]
    return table.sort_values("gene").set_index("gene")


def means(pairs: pd.DataFrame, cells: pd.DataFrame, pattern: str = "nuclear") -> pd.DataFrame:
    """Mean scores, genes by (condition, donor)."""
    joined = pairs.astype({pattern: float}).merge(cells)
    found = joined.groupby(["gene", "condition", "donor"])[pattern].mean()
    return found.unstack(["condition", "donor"])


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    pairs, cells = drawn()
    return write_answer(tmp_path_factory.mktemp("uneven"), pairs, cells), pairs, cells


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    pairs, cells = drawn(even=True)
    return write_answer(tmp_path_factory.mktemp("even"), pairs, cells), pairs, cells


class TestNumbers:
    def test_without_covariates_and_few_genes_it_is_students_t(self, even):
        answer, pairs, cells = even
        found = differential(answer, cells, "condition", "donor")
        for pattern in PATTERNS:
            rows, mean = rows_of(found, pattern), means(pairs, cells, pattern)
            test = ttest_ind(mean["treated"], mean["control"], axis=1)
            np.testing.assert_allclose(rows["p"], test.pvalue, rtol=1e-6)
            span = test.confidence_interval()
            np.testing.assert_allclose(rows["difference_low"], span.low, atol=1e-7)
            np.testing.assert_allclose(rows["difference_high"], span.high, atol=1e-7)
            np.testing.assert_allclose(rows["probability_group"], mean["treated"].mean(axis=1))
            np.testing.assert_allclose(rows["fdr"], false_discovery_control(test.pvalue), rtol=1e-6)
        assert set(found.table["unit"]) == {"samples"}
        assert found.notes == ("treated against control: 4 against 4 samples",)

    def test_donors_in_both_groups_are_compared_within(self, even):
        answer, pairs, cells = even
        number = cells["donor"].str[1:].astype(int)
        paired = cells.assign(donor="p" + (number % 4).astype(str))
        found = differential(answer, paired, "condition", "donor")
        mean = means(pairs, paired)
        test = ttest_rel(mean["treated"], mean["control"], axis=1)
        np.testing.assert_allclose(rows_of(found)["p"], test.pvalue, rtol=1e-6)
        assert set(found.table["unit"]) == {"paired samples"}
        assert "within the 4 samples that both groups have" in found.notes[0]

    def test_donors_in_one_group_only_are_then_left_out_and_counted(self, even):
        answer, pairs, cells = even
        number = cells["donor"].str[1:].astype(int)
        paired = cells.assign(
            donor=np.where(number.isin([3, 7]), cells["donor"], "p" + (number % 4).astype(str))
        )
        found = differential(answer, paired, "condition", "donor")
        assert "; 2 that only one of them has are left out" in found.notes[0]
        kept = ~number.isin([3, 7]).to_numpy()
        mean = means(pairs, paired[kept])
        test = ttest_rel(mean["treated"], mean["control"], axis=1)
        np.testing.assert_allclose(rows_of(found)["p"], test.pvalue, rtol=1e-6)
        assert (found.table["samples_group"] == 3).all()

    def test_two_donors_in_both_groups_are_left_out_where_there_are_others(self, even):
        answer, pairs, cells = even
        both = cells["donor"].isin(["d0", "d4"])
        shared = cells.assign(donor=cells["donor"].mask(both, "shared"))
        found = differential(answer, shared, "condition", "donor")
        assert found.notes[0].endswith(
            "samples; 1 that both groups have are left out, too few to pair"
        )
        mean = means(pairs, cells[~both])
        test = ttest_ind(mean["treated"], mean["control"], axis=1)
        np.testing.assert_allclose(rows_of(found)["p"], test.pvalue, rtol=1e-6)

    def test_values_and_slopes_are_those_of_least_squares(self, uneven):
        answer, pairs, cells = uneven
        found = rows_of(differential(answer, cells, "condition", "donor"))
        joined = pairs.merge(cells)
        for gene, rows in joined.groupby("gene"):
            log_n = np.log(rows["n_molecules"])
            x = np.stack([log_n, log_n**2, np.log(rows["area_um2"].astype(np.float32))], axis=1)
            donor, names = pd.factorize(rows["donor"], sort=True)
            dummies = np.eye(len(names))[donor]
            design = np.hstack([dummies, x])
            beta = np.linalg.lstsq(design, rows["nuclear"], rcond=None)[0]
            of_donor = np.stack([x[donor == k].mean(axis=0) for k in range(len(names))])
            value = beta[:8] + of_donor.mean(axis=0) @ beta[8:]
            row = found.loc[gene]
            assert row["probability_reference"] == pytest.approx(value[:4].mean(), abs=1e-6)
            assert row["probability_group"] == pytest.approx(value[4:].mean(), abs=1e-6)
            # The slopes' covariance, clustered by donor, adds to the variance of the difference.
            rest = rows["nuclear"].to_numpy() - design @ beta
            inner = x - of_donor[donor]
            bread = np.linalg.inv(inner.T @ inner)
            score = np.stack([inner[donor == k].T @ rest[donor == k] for k in range(8)])
            errors = bread @ (score.T @ score) @ bread * 8 / 7
            away = of_donor[4:].mean(axis=0) - of_donor[:4].mean(axis=0)
            spread = (value[:4].var(ddof=1) + value[4:].var(ddof=1)) / 2
            slope = away @ errors @ away
            freedom = (spread / 2 + slope) ** 2 / ((spread / 2) ** 2 / 6 + slope**2 / 7)
            p = 2 * t.sf(abs(row["difference"]) / np.sqrt(spread / 2 + slope), freedom)
            assert row["p"] == pytest.approx(p, rel=1e-4)

    def test_a_planted_difference_is_found_and_the_others_not(self, uneven):
        answer, _, cells = uneven
        table = differential(answer, cells, "condition", "donor").table
        first = table.iloc[0]
        assert (first["gene"], first["pattern"]) == ("g0", "nuclear")
        assert first["difference_low"] > 0.3
        assert first["odds_ratio_low"] > 2
        assert (table["fdr"] < 0.05).sum() == 1

    def test_intervals_of_odds_and_of_differences_agree_on_nothing(self, uneven):
        answer, _, cells = uneven
        table = differential(answer, cells, "condition", "donor").table
        of_difference = (table["difference_low"] <= 0) & (table["difference_high"] >= 0)
        of_odds = (table["odds_ratio_low"] <= 1) & (table["odds_ratio_high"] >= 1)
        assert of_difference.equals(of_odds)
        odds = [table[f"probability_{side}"] for side in ("group", "reference")]
        odds = [part / (1 - part) for part in odds]
        np.testing.assert_allclose(table["odds_ratio"], odds[0] / odds[1])

    def test_the_reference_turns_the_sign(self, uneven):
        answer, _, cells = uneven
        one = rows_of(differential(answer, cells, "condition", "donor"))
        other = rows_of(differential(answer, cells, "condition", "donor", reference="treated"))
        np.testing.assert_allclose(one["difference"], -other["difference"])
        np.testing.assert_allclose(one["p"], other["p"])
        assert set(other["group"]) == {"control"}

    def test_several_groups_are_each_compared_with_the_reference(self, uneven):
        answer, _, cells = uneven
        number = cells["donor"].str[1:].astype(int)
        cells = cells.assign(condition=pd.Series(list("aabbcccc"))[number].to_numpy())
        found = differential(answer, cells, "condition", "donor", reference="b")
        assert found.table["group"].drop_duplicates().tolist() == ["a", "c"]
        assert [note[:11] for note in found.notes[:2]] == ["a against b", "c against b"]
        assert found.table["p"].isna().all()

    def test_batches_change_nothing(self, uneven, monkeypatch):
        answer, _, cells = uneven
        whole = differential(answer, cells, "condition", "donor")
        monkeypatch.setattr(sums, "_BATCH", 97)
        parts = differential(answer, cells, "condition", "donor")
        pd.testing.assert_frame_equal(whole.table, parts.table, rtol=1e-9)

    def test_variances_of_many_genes_are_drawn_together(self, tmp_path):
        pairs, cells = drawn(n_genes=40, donors=3, even=True)
        answer = write_answer(tmp_path, pairs, cells)
        found = rows_of(differential(answer, cells, "condition", "donor"))
        mean = means(pairs, cells)
        plain = ttest_ind(mean["treated"], mean["control"], axis=1)
        width = found["difference_high"] - found["difference_low"]
        low, high = plain.confidence_interval()
        assert width.std() / width.mean() < 0.7 * (high - low).std() / (high - low).mean()
        assert found.loc["g0", "p"] < plain.pvalue[0] / 5

    @pytest.mark.parametrize("freedom", [4.0, np.inf])
    def test_the_spread_of_variances_is_found(self, freedom):
        rng = np.random.default_rng(1)
        own = 1.0 if np.isinf(freedom) else freedom / rng.chisquare(freedom, 20_000)
        ratio = 3.0 * own * rng.chisquare(5, 20_000) / 5
        scale, found = contrasts._prior(ratio, np.full(20_000, 5.0))
        assert scale == pytest.approx(3, rel=0.05)
        assert found > 50 if np.isinf(freedom) else found == pytest.approx(4, rel=0.15)


class TestFewSamples:
    def test_two_samples_a_group_have_intervals_and_no_p(self, even):
        answer, pairs, cells = even
        few = cells[cells["donor"].isin(["d0", "d1", "d4", "d5"])]
        found = differential(answer, few, "condition", "donor")
        mean = means(pairs, few)
        span = ttest_ind(mean["treated"], mean["control"], axis=1).confidence_interval()
        np.testing.assert_allclose(rows_of(found)["difference_low"], span.low, atol=1e-6)
        assert found.table[["p", "fdr"]].isna().all(axis=None)
        assert "no p, which needs 3 samples a group" in found.notes[0]

    def test_one_sample_a_group_has_intervals_over_fields_of_view(self, even):
        answer, pairs, cells = even
        few = cells[cells["donor"].isin(["d0", "d4"])]
        found = differential(answer, few, "condition", "donor")
        rows = rows_of(found)
        joined = pairs.merge(few)
        for gene, mine in joined.groupby("gene"):
            parts = []
            for _, part in mine.groupby("condition"):
                rest = part["nuclear"] - part["nuclear"].mean()
                parts.append((rest.groupby(part["fov"]).sum() / len(part) * (5 / 4) ** 0.5) ** 2)
            error = np.sqrt(pd.concat(parts).sum())
            half = (rows.loc[gene, "difference_high"] - rows.loc[gene, "difference_low"]) / 2
            assert half == pytest.approx(t.ppf(0.975, 8) * error, rel=1e-4)
        assert set(found.table["unit"]) == {"fields of view"}
        assert found.table["p"].isna().all()
        assert "not whether others would show the same" in found.notes[0]

    def test_without_samples_fields_of_view_are_clusters_and_there_is_no_p(self, uneven):
        answer, _, cells = uneven
        found = differential(answer, cells.drop(columns="donor"), "condition")
        assert set(found.table["unit"]) == {"fields of view"}
        assert found.table["p"].isna().all()
        assert found.table["difference_low"].notna().all()
        assert "no samples were named (--sample)" in found.notes[0]
        assert (found.table["cells_group"] == 120).all()

    def test_a_single_field_of_view_gives_no_interval(self, tmp_path):
        pairs, cells = drawn(donors=1)
        for of_cells in (cells.assign(fov="one"), cells.assign(fov=cells["condition"])):
            answer = write_answer(tmp_path, pairs, of_cells)
            table = differential(answer, cells, "condition").table
            assert table["difference"].notna().all()
            assert table["difference_low"].isna().all()
        assert table["note"].str.startswith("no interval: a sample has one field").all()

    def test_kinds_of_cells_of_one_field_of_view_are_not_independent(self, even):
        answer, pairs, cells = even
        few = cells[cells["donor"] == "d0"]
        few = few.assign(condition=np.where(few.index % 2 == 0, "control", "treated"))
        rows = rows_of(differential(answer, few, "condition", min_pairs=10))
        joined = pairs.merge(few)
        for gene, mine in joined.groupby("gene"):
            away = 0
            for sign, (_, part) in zip((-1, 1), mine.groupby("condition"), strict=True):
                rest = part["nuclear"] - part["nuclear"].mean()
                away = away + sign * rest.groupby(part["fov"]).sum() / len(part)
            half = t.ppf(0.975, 4) * np.sqrt((away**2).sum() * 5 / 4)
            width = rows.loc[gene, "difference_high"] - rows.loc[gene, "difference_low"]
            assert width == pytest.approx(2 * half, rel=1e-4)

    def test_genes_in_too_few_cells_are_left_out_and_say_so(self, tmp_path):
        pairs, cells = drawn()
        donor = pairs["cell_id"].map(cells.set_index("cell_id")["donor"])
        rare = pairs["gene"].eq("g1") & donor.isin(["d0", "d1"])
        gone = pairs["gene"].eq("g2") & donor.isin(["d0", "d1", "d2", "d3"])
        alone = pairs["gene"].eq("g3") & donor.isin(["d5", "d6", "d7"])
        few = pairs["cell_id"].str[-1].isin(list("01234"))  # leaves 15 of 30 cells
        answer = write_answer(tmp_path, pairs[~((rare | gone | alone) & few)], cells)
        found = differential(answer, cells, "condition", "donor")
        rows = rows_of(found)
        assert rows.loc["g1", "note"] == (
            "no p: 2 of the samples of control have 20 called cells with the gene"
        )
        assert rows.loc["g2", "note"].startswith("left out: 0 of the samples of control")
        assert rows.loc["g3", "note"].startswith(
            "no interval and no p: 1 of the samples of treated"
        )
        assert rows["p"].notna().tolist() == [True, False, False, False]
        assert rows["difference"].notna().tolist() == [True, True, False, True]
        assert [note[:26] for note in found.notes[1:]] == [
            "left out: 2 of 8 rows, too",
            "4 of 8 rows have no p: too",
        ]
        more = differential(answer, cells, "condition", "donor", min_pairs=10)
        assert more.table["p"].notna().all()

    def test_pairs_that_were_not_called_do_not_count(self, tmp_path):
        pairs, cells = drawn(even=True)
        single = pairs["cell_id"].str[-1] == "0"
        expected = differential(
            write_answer(tmp_path / "a", pairs[~single], cells), cells, "condition", "donor"
        )
        pairs.loc[single, ["n_molecules", "nuclear"]] = [1, 0.999]
        found = differential(
            write_answer(tmp_path / "b", pairs, cells), cells, "condition", "donor"
        )
        pd.testing.assert_frame_equal(found.table, expected.table)

    def test_probabilities_that_do_not_vary_have_no_p(self, tmp_path):
        pairs, cells = drawn()
        answer = write_answer(tmp_path, pairs.assign(nuclear=0.25), cells)
        rows = rows_of(differential(answer, cells, "condition", "donor"))
        assert (rows["difference"] == 0).all()
        assert rows["p"].isna().all()
        assert rows["note"].str.contains("does not vary").all()

    def test_an_adjustment_that_reaches_too_far_says_so(self, tmp_path):
        pairs, cells = drawn(even=True)
        treated = pairs["cell_id"].map(cells.set_index("cell_id")["condition"]) == "treated"
        some = np.random.default_rng(0).integers(0, 3, len(pairs))
        pairs["n_molecules"] = np.where(treated, 400, 4) + some * np.where(treated, 200, 2)
        pairs["nuclear"] = np.float32(0.1) + 0.2 * some + 0.01 * pairs["cell_edge"]
        rows = rows_of(
            differential(write_answer(tmp_path, pairs, cells), cells, "condition", "donor")
        )
        assert rows["note"].str.startswith("adjusted beyond 0 or 1").all()
        assert rows["probability_group"].isin([0, 1]).any()


class TestCells:
    def test_cells_without_an_area_are_left_out_and_counted(self, tmp_path):
        pairs, cells = drawn()
        lacking = cells.index % 10 == 0
        answer = write_answer(
            tmp_path, pairs, cells.assign(area_um2=cells["area_um2"].mask(lacking))
        )
        found = differential(answer, cells, "condition", "donor")
        assert "left out: 24 cells without an area" in found.notes
        rest = differential(answer, cells[~lacking], "condition", "donor")
        pd.testing.assert_frame_equal(found.table, rest.table)

    def test_without_any_area_size_is_not_accounted_for(self, tmp_path):
        pairs, cells = drawn()
        answer = write_answer(tmp_path, pairs, cells.assign(area_um2=np.nan))
        found = differential(answer, cells, "condition", "donor")
        assert "no cell has an area: cell size is not accounted for" in found.notes
        assert found.table["p"].notna().all()

    def test_cells_unlike_the_models_are_told(self, tmp_path):
        pairs, cells = drawn()
        odd = (cells["condition"] == "control") & (cells.index % 2 == 0)
        answer = write_answer(tmp_path, pairs, cells.assign(in_scope=~odd))
        notes = differential(answer, cells, "condition", "donor").notes
        assert any("50% of control, 0% of treated" in note for note in notes)

    def test_what_is_no_answer_is_refused(self, tmp_path, uneven):
        _, pairs, cells = uneven
        with pytest.raises(EvaluationError, match="no answer in"):
            differential(tmp_path, cells, "condition", "donor")
        wrong = [
            (pairs.assign(cell_id="nobody"), cells, "a pair is of no cell"),
            (pairs.assign(nuclear=1.5), cells, "nuclear_probability of a called pair"),
            (pairs, pd.concat([cells, cells.head(1)]), "each cell once"),
            (pairs.drop(columns=PATTERNS), cells, "expected columns PATTERN"),
            (pairs.head(0), cells, "has no pairs"),
            (pairs.assign(gene=None), cells, "pairs without a gene"),
        ]
        for of_pairs, of_cells, text in wrong:
            with pytest.raises(EvaluationError, match=text):
                differential(
                    write_answer(tmp_path, of_pairs, of_cells), cells, "condition", "donor"
                )
        (tmp_path / "cells.parquet").write_text("no")
        with pytest.raises(SourceError, match="cannot be read"):
            differential(tmp_path, cells, "condition", "donor")
        with pytest.raises(EvaluationError, match="2 or more"):
            differential(tmp_path, cells, "condition", "donor", min_pairs=1)


class TestGroups:
    def groups(self, cells: pd.DataFrame) -> pd.DataFrame:
        return cells[["cell_id", "condition", "donor"]]

    @pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "index"])
    def test_are_read_from_files_and_tables_with_ids_as_text(self, uneven, tmp_path, form):
        answer, _, cells = uneven
        expected = differential(answer, cells, "condition", "donor").table
        source = tmp_path / f"cells.{form}"
        if form == "csv":
            self.groups(cells).to_csv(source, index=False)
        elif form == "tsv":
            self.groups(cells).to_csv(source, index=False, sep="\t")
        elif form == "parquet":
            self.groups(cells).astype({"condition": "category"}).to_parquet(source)
        else:
            source = self.groups(cells).set_index("cell_id")
        found = differential(answer, source, "condition", "donor").table
        pd.testing.assert_frame_equal(found, expected)

    def test_numbers_match_ids_that_are_numbers(self, tmp_path):
        pairs, cells = drawn()
        whole = cells["cell_id"].astype(int) + 5000
        names = dict(zip(cells["cell_id"], whole.astype(str), strict=True))
        pairs = pairs.assign(cell_id=pairs["cell_id"].map(names))
        answer = write_answer(tmp_path, pairs, cells.assign(cell_id=whole.astype(str)))
        expected = differential(
            answer, cells.assign(cell_id=whole.astype(str)), "condition", "donor"
        )
        for kind in (int, float):
            given = cells.assign(
                cell_id=whole.astype(kind), donor=cells["donor"].str[1:].astype(kind)
            )
            found = differential(answer, given, "condition", "donor")
            pd.testing.assert_frame_equal(found.table, expected.table)

    @pytest.mark.parametrize("date", ["12-Jan", "Jan-45", "2026-01-12", "1/12/2026", "12. Jän"])
    def test_ids_that_a_spreadsheet_took_for_dates_are_noticed(self, tmp_path, date):
        pairs, cells = drawn(n_genes=1, donors=3)
        names = {name: f"{k % 50}-{k}" for k, name in enumerate(cells["cell_id"])}
        pairs, cells = (part.assign(cell_id=part["cell_id"].map(names)) for part in (pairs, cells))
        answer = write_answer(tmp_path, pairs, cells)
        saved = cells.assign(cell_id=cells["cell_id"].replace("12-12", date))
        with pytest.raises(EvaluationError, match=f"1 ids are dates, the first is {date}, "):
            differential(answer, saved, "condition", "donor")

    def test_samples_that_may_be_parts_of_donors_are_told(self, uneven):
        answer, _, cells = uneven
        told = "each sample is one field of view"
        parts = differential(answer, cells, "condition", "fov", min_pairs=4)
        assert any(note.startswith(told) for note in parts.notes)
        whole = differential(answer, cells, "condition", "donor")
        assert not any(note.startswith(told) for note in whole.notes)

    def test_cells_are_no_samples(self, uneven):
        answer, _, cells = uneven
        with pytest.raises(EvaluationError, match=r"no sample has 20 cells .*largest has 1: "):
            differential(answer, cells, "condition", "cell_id")

    @pytest.mark.parametrize("values", [[1, "a"], [["d1"], ["d2"]]], ids=["mixed", "lists"])
    def test_columns_that_are_no_names_are_refused(self, uneven, values):
        answer, _, cells = uneven
        cells = cells.assign(donor=values * (len(cells) // 2))
        with pytest.raises(EvaluationError, match="column donor holds values of several kinds"):
            differential(answer, cells, "condition", "donor")

    def test_lost_leading_zeros_are_noticed(self, uneven):
        answer, _, cells = uneven
        given = cells.assign(cell_id=cells["cell_id"].astype(int))
        with pytest.raises(EvaluationError, match=r"240 ids .* without leading zeros.* 0 for 0000"):
            differential(answer, given, "condition", "donor")

    def test_what_is_left_out_is_counted(self, uneven):
        answer, _, cells = uneven
        given = self.groups(cells).astype(object).reset_index(drop=True)
        given.loc[0, "condition"] = np.nan
        given.loc[1, "donor"] = None
        given.loc[2, "cell_id"] = None
        given.loc[3, "condition"] = "NA"
        more = given.iloc[[7]].assign(cell_id="stranger")
        given = pd.concat([given.drop(4), given.iloc[[5]], more])
        found = differential(answer, given, "condition", "donor")
        assert found.notes[1:] == (
            "left out: 1 rows without a cell_id",
            "left out: 1 rows that repeat another one",
            "left out: 1 cells that are not in the answer",
            "left out: 2 cells of the answer that have no row",
            "left out: 2 cells without a condition",
            "left out: 1 cells without a donor",
        )

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda t: t.drop(columns="donor"), r"missing or repeated: donor; it has cell_id"),
            (lambda t: t.rename(columns={"cell_id": "cell"}), "missing or repeated: cell_id"),
            (lambda t: t.assign(cell_id="x" + t["cell_id"]), "none of its 240 cells is in"),
            (lambda t: t.assign(condition="one"), r"\(--by\), got only one"),
            (lambda t: t.assign(condition=np.nan), "got none; left out: 240 cells without a"),
            (lambda t: t.assign(condition=t["cell_id"]), "has 240 values"),
            (
                lambda t: pd.concat([t, t.head(1).assign(condition="treated")]),
                "1 cells have rows that differ, the first is 0000",
            ),
            (lambda t: t.head(0), "got none"),
        ],
    )
    def test_that_say_nothing_are_refused(self, uneven, tmp_path, change, text):
        answer, _, cells = uneven
        table = change(self.groups(cells))
        table.to_csv(tmp_path / "cells.csv", index=False)
        for source in (table, tmp_path / "cells.csv"):
            with pytest.raises(EvaluationError, match=text):
                differential(answer, source, "condition", "donor")

    def test_unknown_names_are_refused(self, uneven, tmp_path):
        answer, _, cells = uneven
        with pytest.raises(EvaluationError, match=r"no group x \(--reference\).* control, treated"):
            differential(answer, cells, "condition", "donor", reference="x")
        with pytest.raises(EvaluationError, match=r"no file .*none.csv \(--groups\)"):
            differential(answer, tmp_path / "none.csv", "condition", "donor")


class TestFiles:
    def test_a_table_is_read_as_it_was_written(self, tmp_path):
        pairs, cells = drawn(donors=3)
        pairs["gene"] = pairs["gene"].replace({"g1": "=SUM(A1)", "g2": "NA", "g3": "'-a"})
        answer = write_answer(tmp_path, pairs[pairs["cell_id"] > "0020"], cells)
        table = differential(answer, cells, "condition", "donor", min_pairs=15).table
        found = differential(answer, cells, "condition", "donor", min_pairs=15)
        path = write_differential(found, tmp_path / "d.csv")
        read = read_differential(path)
        assert tuple(read.columns) == COLUMNS
        pd.testing.assert_frame_equal(read, table, rtol=1e-5)
        assert "\n'=SUM(A1)," in path.read_text()
        assert path.read_bytes() == write_differential(found, tmp_path / "e.csv").read_bytes()

    def test_what_is_no_such_table_is_refused(self, tmp_path):
        (tmp_path / "a.csv").write_text("gene,p\nA,0.5\n")
        with pytest.raises(EvaluationError, match=r"expected the columns gene, .*got gene, p"):
            read_differential(tmp_path / "a.csv")
        with pytest.raises(EvaluationError, match="cannot be read"):
            read_differential(tmp_path / "b.csv")

    def test_the_command_prints_the_top_and_writes_all(self, uneven, command, tmp_path):
        answer, _, cells = uneven
        cells.to_csv(tmp_path / "cells.csv", index=False)
        line = ["differential", answer, "--groups", tmp_path / "cells.csv", "--by", "condition"]
        code, out, _ = command(*line, "--sample", "donor")
        assert code == 0
        assert "1 of 8 tested differ at a false discovery rate of 5 %" in out
        assert "treated against control: 4 against 4 samples" in out
        assert out.splitlines()[-1] == str(answer / "differential.csv")
        assert len(read_differential(answer / "differential.csv")) == 8
        code, out, _ = command(*line, "--out", tmp_path / "d.csv", "--reference", "treated")
        assert "8 compared, without p; the largest differences are above" in out
        assert set(read_differential(tmp_path / "d.csv")["reference"]) == {"treated"}
        written = (tmp_path / "cells.csv").read_bytes()
        for taken in (tmp_path / "cells.csv", answer / "pairs.parquet"):
            code, _, err = command(*line, "--out", taken)
            assert (code, "(--out) is read by this command" in err) == (2, True)
        assert (tmp_path / "cells.csv").read_bytes() == written
        code, _, err = command(*line[:-1], "age")
        assert code == 2
        assert "(cell_id, --by, --sample), missing or repeated: age" in err

    def test_the_command_prints_names_and_p_as_they_are(self, tmp_path, command):
        pairs, cells = drawn(n_genes=3)
        pairs["gene"] = pairs["gene"].replace({"g0": "007", "g1": "1e3", "g2": "2\n3"})
        answer = write_answer(tmp_path, pairs, cells)
        cells.to_csv(tmp_path / "cells.csv", index=False)
        line = ["differential", answer, "--groups", tmp_path / "cells.csv", "--by", "condition"]
        code, out, _ = command(*line, "--sample", "donor")
        printed = [[cell.strip() for cell in row.split("|")[1:-1]] for row in out.splitlines()]
        top = read_differential(answer / "differential.csv").iloc[0]
        assert (code, top["gene"], printed[2][0]) == (0, "007", "007")
        assert printed[2][printed[0].index("p")] == f"{top['p']:.1e}"
        assert {row[0] for row in printed[2:8]} == {"007", "1e3", "2\\n3"}
