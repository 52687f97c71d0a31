"""The board's first screen: its levels, skill and sentences, against computations written out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from samples import metadata_of, replicates, stored_result
from scipy.stats import t as student

from gpattern_bench.board.advice import advice
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.markdown import markdown
from gpattern_bench.board.overview import Overview, build_overview
from gpattern_bench.board.page import build_page
from gpattern_bench.board.submission import Submission

CONTROL = {"kind": "control", "inputs": ["gene"]}
HOSTILE = "</style></script><svg onload=alert(3)> [a](https://b.c) | @d"


def noise(seed: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, 1000)


def entry(f1: float, drawn: np.ndarray, **values) -> dict:
    """A stored result whose replicates are its F1 and these deviations."""
    at = f"predictions/{values.get('dataset', 'd')}/{values}"[:90]
    return stored_result(
        f1, floor=0.1, **{"predictions": at, "f1_replicates": replicates(f1 + drawn)} | values
    )


def submitted(method: str, *entries: dict, **about) -> Submission:
    label = about.pop("label", method.title())
    metadata = metadata_of(method, **about).model_copy(update={"label": label})
    return Submission(Path(method), metadata, list(entries))


def control(*entries: dict) -> Submission:
    return submitted("gene_prior", *entries, **CONTROL, label="Gene prior")


def overview_of(*submissions: Submission) -> Overview:
    found = build_overview(build_board(submissions).tables)
    assert found is not None
    return found


def simple(scores: dict[str, list[float]], *, at: float = 0.3, scale: float = 0.01) -> Overview:
    """Methods with these F1 on the datasets d0, d1, ...; one control; independent replicates."""
    n = max(len(values) for values in scores.values())
    controls = [entry(at, noise(999 + k, scale), dataset=f"d{k}") for k in range(n)]
    made = [
        submitted(
            name,
            *(entry(f1, noise(100 * m + k, scale), dataset=f"d{k}") for k, f1 in enumerate(values)),
        )
        for m, (name, values) in enumerate(scores.items())
    ]
    return overview_of(*made, control(*controls))


def entry_of(overview: Overview, method: str):
    return next(each for each in overview.entries if each.method == method)


class TestLevels:
    def test_all_four(self):
        found = simple({"best": [0.8], "mid": [0.6], "near": [0.3], "below": [0.1]})
        levels = {each.method: each.levels[0] for each in found.entries}
        assert levels == {"best": "best", "mid": "between", "near": "control", "below": "behind"}

    def test_the_first_group_is_not_enough(self):
        # Tied with the highest F1, but not ahead of the control.
        found = simple({"a": [0.301], "b": [0.3]})
        assert {each.levels[0] for each in found.entries} == {"control"}
        assert found.headline == "No method is level with the best and ahead of every control"

    def test_without_an_interval_nothing_is_demonstrated(self):
        results = [
            entry(f1, noise(k, 0.01), degrees_of_freedom=0) for k, f1 in enumerate((0.9, 0.3))
        ]
        found = overview_of(submitted("a", results[0]), control(results[1]))
        assert found.entries[0].levels == ["control"]
        assert found.entries[0].skill.ci is None

    def test_what_was_not_run_has_none(self):
        found = simple({"a": [0.8, 0.8], "b": [0.7]})
        assert entry_of(found, "b").levels[1] is None
        assert entry_of(found, "b").skill is None
        assert [each.method for each in found.entries] == ["a", "b"]


class TestSkill:
    """Two datasets, one with two tests whose replicates are paired; everything by hand."""

    F1: ClassVar = {("x", "fit"): 0.8, ("y", "transfer"): 0.6, ("y", "cv-cell"): 0.5}
    OF_CONTROL: ClassVar = {("x", "fit"): 0.5, ("y", "transfer"): 0.2, ("y", "cv-cell"): 0.4}
    FREEDOM: ClassVar = {"x": 9, "y": 13}

    @pytest.fixture
    def drawn(self) -> dict:
        shared = noise(1, 0.03)
        return {
            (who, test): noise(10 * k + j, 0.02) + (shared if test[0] == "y" else 0) + 0.004
            for k, who in enumerate(("mine", "control"))
            for j, test in enumerate(self.F1)
        }

    @pytest.fixture
    def found(self, drawn) -> Overview:
        def results(who, f1):
            return [
                entry(
                    f1[test],
                    drawn[who, test],
                    dataset=test[0],
                    protocol=test[1],
                    degrees_of_freedom=self.FREEDOM[test[0]],
                )
                for test in f1
            ]

        return overview_of(
            submitted("mine", *results("mine", self.F1)),
            control(*results("control", self.OF_CONTROL)),
        )

    def by_dataset(self, drawn) -> dict[str, tuple[float, np.ndarray]]:
        """A dataset's mean skill, and its replicates as they are stored."""
        sums: dict[str, list] = {"x": [], "y": []}
        for test, f1 in self.F1.items():
            c = self.OF_CONTROL[test]
            f1_b = np.float32(f1 + drawn["mine", test]).astype(float)
            c_b = np.float32(c + drawn["control", test]).astype(float)
            sums[test[0]].append((100 * (f1 - c) / (1 - c), 100 * (f1_b - c_b) / (1 - c_b)))
        return {
            name: (np.mean([s for s, _ in of]), np.mean([b for _, b in of], axis=0))
            for name, of in sums.items()
        }

    def test_is_a_mean_over_tests_then_datasets(self, found):
        of_x = 100 * (0.8 - 0.5) / 0.5
        of_y = (100 * (0.6 - 0.2) / 0.8 + 100 * (0.5 - 0.4) / 0.6) / 2
        skill = found.entries[0].skill
        assert skill.value == pytest.approx((of_x + of_y) / 2)
        assert skill.left_out == pytest.approx((of_y, of_x))

    def test_has_an_interval_in_which_variances_and_biases_add(self, found, drawn):
        means = self.by_dataset(drawn)
        variance, bias, spread = 0.0, 0.0, 0.0
        for name, (value, b) in means.items():
            share = b / 2
            v = share.var(ddof=1)
            variance += v
            bias += share.mean() - value / 2
            spread += v**2 / self.FREEDOM[name]
        middle = sum(value for value, _ in means.values()) / 2 - bias
        half = student.ppf(0.975, variance**2 / spread) * sqrt(variance + bias**2)
        assert found.entries[0].skill.ci == pytest.approx((middle - half, middle + half))

    def test_0_is_the_control_and_100_perfect(self):
        results = {"perfect": 1.0, "none": 0.3}
        found = overview_of(
            *(submitted(name, entry(f1, np.zeros(1000))) for name, f1 in results.items()),
            control(entry(0.3, np.zeros(1000))),
        )
        skills = {each.method: each.skill for each in found.entries}
        assert (skills["perfect"].value, skills["none"].value) == (100, 0)
        assert skills["perfect"].left_out is None  # one dataset

    def test_does_not_depend_on_the_other_methods(self):
        alone = entry_of(simple({"a": [0.6, 0.5]}), "a").skill
        beside = entry_of(simple({"a": [0.6, 0.5], "b": [0.9, 0.9]}), "a").skill
        assert alone == beside


class TestSentences:
    def test_one_method_on_all_tests(self):
        found = simple({"a": [0.8, 0.8], "b": [0.6, 0.8], "c": [0.5, 0.5]})
        assert found.headline == "A is level with the best on all 2 tests"
        assert found.deck == "On 1 of 2 one method leads alone. Next comes B (1 of 2)."
        assert found.order == "The order is the same whichever dataset is left out."

    def test_several_on_some(self):
        found = simple({"a": [0.8, 0.8, 0.6], "b": [0.8, 0.8, 0.6], "c": [0.5, 0.5, 0.8]})
        assert found.headline == "A and B are level with the best on 2 of 3 tests"

    def test_ties_are_counted(self):
        two = simple({"a": [0.8, 0.8], "b": [0.8, 0.8]})
        assert two.deck == "No method leads alone on any: 1 other ties with the highest F1."
        three = simple({"a": [0.8, 0.8], "b": [0.8, 0.8], "c": [0.8, 0.3]})
        assert "No method leads alone on any: 1 to 2 others tie with the highest F1." in three.deck

    def test_the_only_test(self):
        found = simple({"a": [0.8], "b": [0.6]})
        assert found.headline == "A is level with the best on the only test"
        assert found.deck == "On the only test one method leads alone."
        assert found.order == ""

    def test_few_cells_are_told_and_few_fields_are_not(self):
        def results(f1):
            found = [
                entry(f1, noise(k, 0.01), dataset=name)
                for k, name in enumerate(("d_a", "e_b", "f"))
            ]
            for each, n, kind in zip(
                found, (12, 29, 8), ("cell within fov",) * 2 + ("fov",), strict=True
            ):
                each["metrics"] |= {"n_clusters": n, "clusters": kind}
            return found

        found = overview_of(submitted("a", *results(0.8)), control(*results(0.3)))
        assert (
            "Tests on d and e rest on 12 and 29 cells: a tie there may only mean too few."
            in found.deck
        )
        assert [test.clusters for test in found.tests] == ["12 cells", "29 cells", "8 fields"]

    def test_many_names_are_cut(self):
        found = simple({f"m{k}": [0.8] for k in range(6)}, scale=0.05)
        expected = r"M\d, M\d, M\d and 3 more are level with the best on the only test"
        assert re.fullmatch(expected, found.headline)

    def test_the_order_says_how_far_it_holds(self):
        changes = simple({"a": [0.9, 0.5], "b": [0.6, 0.75]})
        assert "Which method is first depends on the datasets" in changes.order
        first = simple({"a": [0.9, 0.9], "b": [0.8, 0.5], "c": [0.5, 0.75]})
        assert first.order == "The first stays first whichever dataset is left out."
        two = simple({"a": [0.9, 0.9], "e": [0.85, 0.85], "b": [0.8, 0.5], "c": [0.5, 0.75]})
        assert two.order == "The first 2 keep their order whichever dataset is left out."


class TestGroups:
    def made(self, scores: dict[str, dict[str, float]]) -> Overview:
        """Methods with an F1 by protocol and dataset, such as `fit d`."""
        tests = sorted({test for values in scores.values() for test in values})

        def results(seed, values):
            return [
                entry(f1, noise(seed + k, 0.01), protocol=test.split()[0], dataset=test.split()[1])
                for k, (test, f1) in enumerate(values.items())
            ]

        made = [submitted(name, *results(50 * m, v)) for m, (name, v) in enumerate(scores.items())]
        return overview_of(*made, control(*results(900, dict.fromkeys(tests, 0.3))))

    def test_go_from_many_labels_to_none(self):
        tests = [
            f"{protocol} {name}"
            for protocol in ("transfer", "simulation", "fit", "cv-cell")
            for name in "yx"
        ]
        found = self.made({"a": dict.fromkeys(tests, 0.8)})
        assert [(g.word, [found.tests[k].name for k in g.tests]) for g in found.groups] == [
            ("many", ["x", "y"]), ("few", ["x", "y"]), ("other", ["x", "y"]), ("none", ["x", "y"])
        ]  # fmt: skip

    def test_answers_are_level_on_every_test_by_skill_four_at_most(self):
        scores = {
            f"m{k}": {"fit x": 0.8, "fit y": 0.8, "cv-cell x": 0.4 + 0.05 * k} for k in range(6)
        }
        [many, few] = self.made(scores).groups
        assert [answer.label for answer in many.answers] == ["M5", "M4", "M3", "M2"]
        assert [answer.label for answer in few.answers] == ["M5"]
        assert many.on_all

    def test_where_none_is_level_on_all_each_test_has_its_own(self):
        [group] = self.made(
            {"a": {"fit x": 0.8, "fit y": 0.5}, "b": {"fit x": 0.5, "fit y": 0.8}}
        ).groups
        assert not group.on_all
        assert [(a.label, a.where) for a in group.answers] == [("A", "x"), ("B", "y")]


class TestRows:
    def test_the_row_with_most_training_data_counts(self):
        results = [
            entry(0.9, noise(1, 0.01), trained_on=("a@1.0.0",), protocol="transfer"),
            entry(0.6, noise(2, 0.01), trained_on=("a@1.0.0", "b@1.0.0"), protocol="transfer"),
        ]
        base = control(entry(0.3, noise(3, 0.01), protocol="transfer"))
        assert overview_of(submitted("m", *results), base).entries[0].rows[0].f1 == 0.6
        turned = overview_of(submitted("m", *results[::-1]), base)
        assert turned.entries[0].rows[0].f1 == 0.6

    def test_superseded_ones_and_controls_have_none(self):
        results = [entry(0.3 + 0.1 * k, noise(k, 0.01)) for k in range(3)]
        found = overview_of(
            control(results[0]),
            submitted("old", results[1], status="superseded"),
            submitted("new", results[2]),
        )
        assert [each.method for each in found.entries] == ["new"]

    def test_only_the_newest_version_counts(self):
        def results(f1):
            return [entry(f1, noise(k, 0.01), version=v) for k, v in enumerate(("1.9.0", "1.10.0"))]

        found = overview_of(submitted("m", *results(0.8)), control(*results(0.3)))
        assert [test.table.version for test in found.tests] == ["1.10.0"]

    def test_a_table_without_a_control_is_no_test(self):
        found = overview_of(
            submitted("m", entry(0.8, noise(1, 0.01)), entry(0.8, noise(2, 0.01), dataset="e")),
            control(entry(0.3, noise(3, 0.01))),
        )
        assert [test.table.dataset for test in found.tests] == ["d"]
        assert found.left_out == ["e"]

    def test_a_table_of_a_classifiers_labels_is_no_test(self):
        board = build_board(
            [
                submitted("m", entry(0.8, noise(1, 0.01)), entry(0.8, noise(2, 0.01), dataset="e")),
                control(entry(0.3, noise(3, 0.01)), entry(0.3, noise(4, 0.01), dataset="e")),
            ]
        )
        tables = [
            replace(table, labelled_by="a forest" if table.dataset == "e" else None)
            for table in board.tables
        ]
        found = build_overview(tables)
        assert [test.table.dataset for test in found.tests] == ["d"]
        assert (found.left_out, found.imitated) == ([], ["e"])

    def test_without_any_there_is_no_overview(self):
        board = build_board([submitted("m", entry(0.8, noise(1, 0.01)))])
        assert build_overview(board.tables) is None
        assert build_overview([]) is None
        assert markdown(board).startswith("# Leaderboard\n\n<details>")

    def test_names_are_short_and_stay_apart(self):
        names = ("cosmx_lung_mini", "u2os_gold", "u2os_other", "synthetic", "synthetic_wide", "_")

        def results(f1):
            return [entry(f1, noise(k, 0.01), dataset=name) for k, name in enumerate(names)]

        found = overview_of(submitted("m", *results(0.8)), control(*results(0.3)))
        short = ("cosmx", "u2os_gold", "u2os_other", "synthetic", "synthetic_wide", "_")
        expected = dict(zip(names, short, strict=True))
        assert {test.table.dataset: test.name for test in found.tests} == expected

    @pytest.mark.parametrize(
        ("inputs", "trained_on", "needs"),
        [
            (["coordinates", "gene", "cell outline", "nucleus outline"], ["train"], ""),
            (["coordinates", "gene"], ["train"], "needs no outlines"),
            (["coordinates", "cell outline"], ["train"], "needs no nucleus"),
            (["coordinates", "nucleus outline"], ["train"], "needs no cell outline"),
            (["coordinates", "cell outline"], None, "needs no nucleus or labels"),
        ],
    )
    def test_what_a_method_does_without(self, inputs, trained_on, needs):
        found = overview_of(
            submitted("m", entry(0.8, noise(1, 0.01)), inputs=inputs, trained_on=trained_on),
            control(entry(0.3, noise(2, 0.01))),
        )
        assert found.entries[0].needs == needs

    def test_what_to_use_without_something(self):
        def made(name, f1, *inputs, **about):
            return submitted(
                name, entry(f1, noise(round(100 * f1), 0.01)), inputs=["gene", *inputs], **about
            )

        found = overview_of(
            made("a", 0.9, "coordinates", "cell outline", "nucleus outline"),
            made("b", 0.8, "coordinates"),
            made("c", 0.7, "coordinates", "cell outline"),
            control(entry(0.3, noise(2, 0.01))),
        )
        assert {each.title: each.methods + each.text for each in found.without} == {
            "No nuclei": "B and C: level with the best on 0 and 0 of 1 test, "
            "not ahead of a control on 0 and 0.",
            "No outlines": "B is the only one: level with the best on 0 of 1 test, "
            "not ahead of a control on 0.",
            "Nothing to fit": "No method was run on every test.",
        }

    def test_the_longest_run_is_fit_and_prediction(self):
        results = [
            entry(0.8, noise(1, 0.01), seconds=2.0, fit_seconds=60.0),
            entry(0.8, noise(2, 0.01), seconds=9.0, fit_seconds=None, dataset="e"),
        ]
        bases = [entry(0.3, noise(k, 0.01), dataset=name) for k, name in ((3, "d"), (4, "e"))]
        assert overview_of(submitted("m", *results), control(*bases)).entries[0].longest == 62.0


class TestComparison:
    def test_is_paired_and_turns_its_sign(self):
        shared = noise(1, 0.05)
        found = overview_of(
            submitted("a", entry(0.82, shared + noise(2, 0.001))),
            submitted("b", entry(0.8, shared + noise(3, 0.001))),
            control(entry(0.3, noise(4, 0.01))),
        )
        of_test, of_skill = found.compare("a", "b")
        assert of_test.difference == pytest.approx(2)
        assert of_test.ci[0] > 0  # the shared noise is gone
        turned, _ = found.compare("b", "a")
        assert turned.ci == pytest.approx((-of_test.ci[1], -of_test.ci[0]))
        assert of_skill.test is None
        assert of_skill.difference == pytest.approx(2 / 0.7)

    def test_leaves_out_what_one_was_not_run_on(self):
        found = simple({"a": [0.8, 0.8], "b": [0.7]})
        assert [each.test for each in found.compare("a", "b")] == [0]


class TestBoard:
    @pytest.fixture
    def made(self) -> list[Submission]:
        def results(seed, f1):
            return [entry(f1, noise(seed + k, 0.01), dataset=f"d{k}") for k in range(2)]

        return [
            submitted("evil", *results(1, 0.8), label=HOSTILE),
            submitted("b", *results(5, 0.8)),
            control(*results(9, 0.3)),
        ]

    def test_no_label_brings_markup_into_the_head(self, made):
        renderer = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
        head = markdown(build_board(made)).split("\n## ")[0]
        found = renderer.enable("table").render(head)
        assert re.findall(r"<(?:a|svg|script|img)[^>]*>", found) == []
        rows = re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)[2:]  # less the answers
        assert {row.count("</t") for row in rows} == {4}

    def test_no_label_brings_markup_into_the_page(self, made):
        text = build_page(build_board(made), made)
        assert "<svg onload" not in text
        assert text.count("<script>") == text.count("</script>") == 1
        assert "&lt;svg onload=alert(3)&gt;" in text

    def test_marks_are_those_of_the_levels(self):
        scores = {"a": 0.8, "b": 0.6, "c": 0.3, "e": 0.1}
        made = [submitted(n, entry(f1, noise(k, 0.01))) for k, (n, f1) in enumerate(scores.items())]
        board = build_board([*made, control(entry(0.3, noise(9, 0.01)))])
        lines = markdown(board).split("\n## ")[0].splitlines()
        rows = [line.split("|") for line in lines if re.match(r"\| [ABCE] ", line)]
        assert [[cell.strip() for cell in row[1:3]] for row in rows] == [
            ["A", "**80**"], ["B", "60"], ["C", "(30)"], ["E", "↓10"]
        ]  # fmt: skip

    def test_it_can_be_stored(self, made):
        found = build_overview(build_board(made).tables).to_json()
        assert json.loads(json.dumps(found)) == found
        assert found["methods"][0]["levels"] == ["best", "best"]


class TestAdvice:
    """``WHICH_METHOD.md``: what it says is what the overview says."""

    @pytest.fixture
    def made(self) -> str:
        fitted = {"protocol": "simulation", "dataset": "d", "trained_on": ["synthetic@1.0.0"]}
        few = {"protocol": "cv-cell", "dataset": "d", "trained_on": ["e@1.0.0"]}
        return advice(
            build_board(
                [
                    submitted("evil", entry(0.8, noise(1, 0.01), **fitted), label=HOSTILE),
                    submitted("slow", entry(0.6, noise(2, 0.01), **fitted)),
                    submitted("good", entry(0.7, noise(3, 0.01), **few)),
                    control(
                        entry(0.3, noise(4, 0.01), **fitted), entry(0.3, noise(5, 0.01), **few)
                    ),
                ]
            )
        )

    def test_a_situation_has_an_answer_and_its_commands(self, made):
        few, none = (made.partition(f"\n## {title}\n")[2].partition("\n## ")[0] for title in
                     ("A few labels of your own", "No labels"))  # fmt: skip
        assert "**Good** is level with the best on every test of the kind." in few
        assert "gpattern-bench run good --dataset mine --cv cell --train-on e\n" in few
        assert (
            "gpattern-bench run good --dataset others \\\n  --train-on mine --train-on e\n" in few
        )
        assert "gpattern-bench run evil --dataset mine --train-on synthetic\n" in none
        assert "Slow" not in none  # behind the best
        assert "*30.0 (Gene prior)*" in none

    def test_every_link_to_a_heading_has_one(self, made):
        titles = [title.lower().replace(" ", "-") for title in re.findall("^## (.*)", made, re.M)]
        known = [re.sub(r"[^\w-]", "", title) for title in titles]
        linked = re.findall(r"\]\(#([^)]*)\)", made)
        assert linked == known

    def test_no_label_brings_markup(self, made):
        assert "<svg" not in made
        assert r"\[a\](https\://b.c) \| @<!-- -->d" in made
        assert "[a]" not in made

    def test_where_nobody_is_ahead_it_says_so(self):
        nobody = [submitted("a", entry(0.3, noise(1, 0.01))), control(entry(0.3, noise(2, 0.01)))]
        assert "no method is ahead of every control" in advice(build_board(nobody))
        assert "no method to compare" in advice(build_board(nobody[1:]))
