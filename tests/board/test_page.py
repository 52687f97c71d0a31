"""The board's page: what its text holds, and what it does in a real browser."""

from __future__ import annotations

import json
import locale
import re
from dataclasses import replace
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from samples import PATIENCE_S, metadata_of, replicates, stored_result

from gpattern_bench import load_dataset
from gpattern_bench.board.charts import _spread, styles
from gpattern_bench.board.format import count, duration, percent, typeset
from gpattern_bench.board.gallery import build_gallery
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.overview import build_overview
from gpattern_bench.board.page import build_page
from gpattern_bench.board.publish import read_reported
from gpattern_bench.board.submission import Metadata, Submission, read_submissions
from gpattern_bench.methods import get_method
from gpattern_bench.runs.run import run_method

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script>"
OTHERS = ('"><img src=x onerror=alert(2)>', "</style></script><svg onload=alert(3)>", "{{ 7*7 }}")
CHOSEN = "u2os_gold"


def entry(score: float, **values) -> dict:
    """A stored result of a dataset with two patterns."""
    curve = {
        "roc": [[0, 0], [0.5, score], [1, 1]],
        "pr": [[0.5, score], [1, 0.5]],
        "reliability": [[0.1, 0.2, 10], [0.9, score, 3]],
    }
    both, floors = {"inner": score, "outer": None}, {"inner": 0.4, "outer": None}
    drawn = score + np.random.default_rng(int(1000 * score)).normal(0, 0.02, 1000)
    own = {
        "predictions": f"predictions/{CHOSEN}/test-seed{values.get('seed', 0)}.parquet",
        "dataset": CHOSEN,
        "seconds": 100 * score,
        "device": "CPU",
        "curves": {
            "per_pattern": {"inner": curve, "outer": curve},
            "molecules": [
                {"molecules": name, "n": 5, "f1": both, "auc": both, "floor": floors}
                for name in ("1", "2-4")
            ],
        },
        "f1_replicates": replicates(drawn),
    }
    floor = 0.4  # of the labels, the same for all
    return stored_result(score, of_pattern=score, floor=floor, half=0.05, **own | values)


def submitted(method: str, *entries: dict, **values) -> Submission:
    label = values.pop("label", method.title())  # any, as if the rules had let it pass
    about = metadata_of(method, **values).model_copy(update={"label": label})
    return Submission(Path(method), about, list(entries))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[Submission]:
    """Real submissions to `synthetic`, and made-up ones to another dataset."""
    folder = tmp_path_factory.mktemp("submissions")
    dataset = load_dataset("synthetic")
    for name in ("gene_prior", "oracle", "sprawl"):
        Metadata.of(get_method(name).about).write(folder / name)
        run_method(name, dataset, folder / name / "predictions")
    for submission in read_submissions(folder):
        submission.write_results(submission.rescored()[0])
    looks = ["coordinates", "gene", "nucleus outline"]
    return [
        *read_submissions(folder),
        submitted("alpha", entry(0.6, seed=0), entry(0.7, seed=1), inputs=looks),
        submitted("beta", entry(0.9)),
        submitted(
            "evil", entry(0.5), label=HOSTILE, summary=OTHERS[0], authors=[OTHERS[1]],
            reference=OTHERS[2], code="javascript:alert(4)", inputs=["coordinates", "cell outline"],
        ),
        submitted("none_at_all", entry(0.3), kind="control", inputs=[]),
    ]  # fmt: skip


def rendered(submissions: list[Submission]) -> str:
    reported = read_reported(REPOSITORY / "leaderboard")
    return build_page(build_board(submissions, reported), submissions)


@pytest.fixture(scope="module")
def text(found) -> str:
    return rendered(found)


class TestText:
    def test_it_is_a_pure_function(self, found, text):
        turned = [replace(s, results=s.results[::-1]) for s in found[::-1]]
        assert rendered(turned) == text
        before = locale.setlocale(locale.LC_ALL)
        try:
            locale.setlocale(locale.LC_ALL, "C")
            assert rendered(found) == text
        finally:
            locale.setlocale(locale.LC_ALL, before)

    def test_it_asks_nothing_of_a_network(self, text):
        assert not re.search(
            r"""(src|href)=["']?(https?:|//)|@import|url\(|fetch\(|XMLHttp""", text
        )
        assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']

    def test_it_is_small(self, text):
        assert len(text.encode()) < 2_000_000

    def test_the_board_of_the_repository_is_small(self):
        path = REPOSITORY / "leaderboard" / "index.html"
        if not path.is_file():
            pytest.skip("the package is tested without its board")
        assert path.stat().st_size < 2_000_000

    def test_no_text_brings_markup(self, text):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        for hostile in (HOSTILE, "<img", "<svg onload", "href=javascript", 'href="javascript'):
            assert hostile not in text
        assert "{{ 7*7 }}" in text
        assert text.count("<script>") == text.count("</script>") == 1
        script = text.partition("<script>")[2].partition("</script>")[0]
        assert "alert" not in script
        assert text.count("<style>") == text.count("</style>") == 1

    def test_the_training_data_of_each_row_is_told(self):
        alone = entry(0.6)
        beside = entry(0.7, predictions="b", trained_on=[f"{CHOSEN}@1.0.0", "wide@1.0.0"])
        text = rendered([submitted("alpha", alone, beside), submitted("beta", entry(0.5))])
        training = f"{CHOSEN}@1.0.0, wide@1.0.0"
        assert f"<small>fitted on {training}</small>" in text
        legend = text.partition('<ul class="legend"')[2].partition("</ul>")[0]
        names = re.findall(r"</svg>([^<]*)</li>", legend)
        assert names == [f"Alpha ({training})", "Alpha (train split)", "Beta"]

    def test_no_name_brings_markup(self):
        strange = entry(
            0.5, dataset=HOSTILE, version=OTHERS[0], trained_on=[OTHERS[1]], device=HOSTILE
        )
        for part in (strange["metrics"], strange["curves"]):
            part["per_pattern"] = {HOSTILE: part["per_pattern"]["inner"]}
        text = rendered([submitted("evil", strange)])
        for hostile in (HOSTILE, "<img", "<svg onload"):
            assert hostile not in text
        assert text.count("<script>") == text.count("</script>") == 1

    def test_every_number_of_the_tables_is_there(self, found, text):
        for table in build_board(found).to_json()["tables"]:
            for row in table["rows"]:
                assert f"{100 * row['f1_macro']:.2f}" in text
                for values in row["per_pattern"].values():
                    assert f"{100 * values['auc']:.2f}" in text

    def test_reported_rows_have_their_notes_and_marks(self, text):
        reported = text.partition('<section id="reported">')[2]
        assert reported.count('<tr data-status="reported">') == 15
        assert '<b class="best">90.22</b>' in reported
        assert '<u class="second">67.33</u>' in reported
        assert "so Bento is not evaluated on them" in reported

    def test_optional_columns_show_where_they_are_known(self, found):
        found = [
            replace(s, results=[result | {"parameters": None} for result in s.results])
            for s in found
        ]
        text = rendered(found)
        assert "Parameters</th>" not in text
        known = {
            "parameters": 1_234_567,
            "date": "2001-02-03",
            "robustness": {"f1_worst_drop": 0.0123, "largest_change": 0.25},
            "flags": ["AUC above 0.999"],
        }
        more = rendered(
            [
                replace(s, results=[s.results[0] | known]) if s.metadata.method == "beta" else s
                for s in found
            ]
        )
        for part in ("1.23 M", "2001-02-03", "± 0.25 turned", "AUC above 0.999"):
            assert part in more
            assert part not in text

    def test_an_empty_board_has_a_page(self):
        assert "<h1>" in build_page(build_board([]), [])

    def test_numbers(self):
        dash, minus = "\N{EN DASH}", "\N{MINUS SIGN}"
        assert (percent(None), percent(0.5), percent(-0.01, "+.1f")) == ("-", "50.00", "-1.0")
        assert [typeset(text) for text in ("-", "50.00", "-1.0")] == [dash, "50.00", f"{minus}1.0"]
        assert [duration(s) for s in (None, 0.04, 4, 600)] == ["-", "0.04 s", "4.0 s", "10.0 min"]
        assert [count(n) for n in (None, 12, 1500, 2 * 10**9)] == ["-", "12", "1.5 k", "2 G"]


class TestGallery:
    def test_of_each_pattern_one_easy_and_one_hard(self, found):
        gallery = build_gallery(found)
        labels = load_dataset("synthetic").labels("test").set_index(["cell_id", "gene"])
        assert len({(p.cell_id, p.gene) for p in gallery.pictures}) == len(gallery.pictures)
        for picture in gallery.pictures:
            truth = labels.loc[(picture.cell_id, picture.gene)]
            assert truth[picture.pattern]
            assert [bool(truth[p]) for p in gallery.patterns] == list(picture.truth)
            assert 20 <= truth["n_molecules"] <= 80
            assert picture.boundary
            assert picture.nucleus
            assert "oracle" not in {call.method for call in picture.calls}
        ruled = [p for p in gallery.patterns if p != "nuclear_edge"]  # of the only candidate
        assert [(p.pattern, p.easy) for p in gallery.pictures] == [
            (pattern, easy) for pattern in ruled for easy in (True, False)
        ]
        assert [p.right for p in gallery.pictures] == [1, 0] * len(ruled)

    def test_what_has_no_rule_says_nothing(self, found):
        gallery = build_gallery(found)
        at = gallery.patterns.index("nuclear_edge")
        for picture in gallery.pictures:
            said = {call.method: call.called for call in picture.calls}
            assert said["sprawl"][at] is None
            assert None not in said["gene_prior"]

    def test_there_is_none_without_predictions_of_synthetic(self, found):
        others = [s for s in found if not s.results or s.results[0]["dataset"] == CHOSEN]
        assert build_gallery(others) is None
        assert 'id="gallery"' not in rendered(others)


def test_styles_do_not_depend_on_the_order():
    methods = [(f"m{k}", f"M{k}", "control" if k % 3 == 0 else "model") for k in range(12)]
    assert styles(methods) == styles(methods[::-1])
    assert len({s.classes for s in styles(methods).values()}) == 12


def test_families_share_a_hue_and_no_two_methods_a_style():
    names = ("boosted", "boosted_gene", "ella", "gpsnet", "gpsnet_outlines", "locfish")
    found = styles([(name, name, "model") for name in (*names, *(f"x_{k}" for k in range(11)))])
    hues = {name: style.classes.split()[0] for name, style in found.items()}
    assert hues["boosted"] == hues["boosted_gene"]
    assert len({hues[name] for name in ("boosted", "ella", "gpsnet", "locfish", "x_0")}) == 5
    assert len({style.classes for style in found.values()}) == len(found)
    marks = {name: found[name].shape for name in ("boosted", "ella", "gpsnet", "locfish")}
    assert len(set(marks.values())) == 4  # also told apart without colours


# Of linear RGB, as seen without one kind of cone: Machado et al. 2009, severity 1.
SIGHT = {
    "all": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def in_lab(colour: str, sight: str) -> np.ndarray:
    c = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ seen / [0.9505, 1, 1.089], 0.0089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_hues_are_told_apart_by_all_kinds_of_sight(sight):
    css = (files("gpattern_bench.board") / "page.css").read_text("utf-8")
    palettes = {tuple(re.findall(r"--c\d: (#\w{6})", line)) for line in css.splitlines()} - {()}
    assert {len(palette) for palette in palettes} == {7}
    for palette in palettes:
        seen = [in_lab(colour, sight) for colour in palette]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 30


def test_labels_keep_their_distance():
    wanted = [10.0, 11.0, 12.0, 50.0, 99.0, 100.0]
    found = _spread(wanted, 10.0, 5.0, 100.0)
    assert all(b - a >= 9.9 for a, b in pairwise(found))
    assert found[0] >= 5.0
    assert found[-1] <= 100.0
    assert found[3] == 50.0


@pytest.fixture(scope="module")
def address(text, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(chromium, address):
    """Open the page; at the end nothing was asked of anybody and nothing went wrong."""
    contexts, wrong = [], []

    def open_page(**options):
        # Without smooth scrolling: a click would fall where its target was.
        defaults = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        options = defaults | options
        context = chromium.new_context(**options)
        contexts.append(context)

        def route(request):
            if request.request.url.startswith(("file:", "data:")):
                request.continue_()
            else:
                wrong.append(request.request.url)
                request.abort()

        context.set_default_timeout(1000 * PATIENCE_S)
        context.route("**/*", route)
        tab = context.new_page()
        tab.on("request", lambda r: r.url not in (address, "data:,") and wrong.append(r.url))
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def click_label(tab, of: str, value: str) -> None:
    """Tick or clear a box as a user does: boxes themselves are a transparent pixel."""
    tab.locator(f'#{of} label:has(input[value="{value}"])').click()


def choose(tab, name: str) -> None:
    click_label(tab, "datasets", name)


def methods_of(tab) -> list[str]:
    """Methods of the main table that is shown, from top to bottom."""
    rows = tab.locator("section.table:visible table.main tbody tr:visible")
    return rows.evaluate_all("rows => rows.map(row => row.dataset.m)")


@pytest.mark.slow
class TestBrowser:
    def test_nothing_hostile_runs(self, opened):
        tab = opened()
        choose(tab, CHOSEN)
        assert tab.locator("th.method a", has_text=HOSTILE).first.is_visible()
        assert tab.locator("script").count() == 1

    @pytest.mark.parametrize("key", [None, "Enter", "Space"])
    def test_sorting(self, opened, key):
        tab = opened()
        choose(tab, CHOSEN)
        table = tab.locator("section.table:visible table.main")
        assert methods_of(tab) == ["beta", "alpha", "evil", "none_at_all"]

        def press(name: str) -> str:
            button = table.get_by_role("button", name=name, exact=True)
            if key is None:
                button.click()
            else:
                button.focus()
                tab.keyboard.press(key)
            return button.locator("..").get_attribute("aria-sort")

        assert press("F1") == "ascending"
        assert methods_of(tab) == ["none_at_all", "evil", "alpha", "beta"]
        assert press("Rank") == "ascending"
        assert methods_of(tab) == ["beta", "alpha", "evil", "none_at_all"]  # no rank is last
        assert press("Rank") == "descending"
        assert methods_of(tab) == ["evil", "alpha", "beta", "none_at_all"]
        click_label(tab, "columns", "seeds")
        assert press("Seeds") == "descending"
        assert methods_of(tab)[0] == "alpha"
        states = table.locator("th[aria-sort]").evaluate_all(
            "heads => heads.map(head => head.getAttribute('aria-sort'))"
        )
        assert sorted(set(states)) == ["descending", "none"]
        assert states.count("descending") == 1

    def test_every_table_sorts_by_every_column(self, opened):
        tab = opened()
        choose(tab, "")
        for head in tab.locator("table.sortable th[data-sort] button").all():
            assert head.evaluate(
                "b => { b.click(); return b.parentElement.getAttribute('aria-sort') }"
            ) in ("ascending", "descending")

    def test_filtering_by_dataset(self, opened):
        tab = opened()
        assert tab.locator("section.table:visible").count() == 1
        assert methods_of(tab)[0] == "oracle"
        choose(tab, CHOSEN)
        assert tab.locator("section.table:visible h2").inner_text().startswith(CHOSEN)
        choose(tab, "")
        assert tab.locator("section.table:visible").count() == 2

    def test_filtering_by_inputs(self, opened):
        tab = opened()
        choose(tab, CHOSEN)
        box = tab.locator('#inputs input[value="nucleus outline"]')
        box.focus()
        tab.keyboard.press("Space")
        assert methods_of(tab) == ["beta", "evil", "none_at_all"]
        assert tab.locator("#shown").inner_text() == "6 of 7 methods"
        click_label(tab, "inputs", "cell outline")
        assert methods_of(tab) == ["beta", "none_at_all"]
        assert tab.locator('.chart .line[data-m="alpha"]:visible').count() == 0
        tab.locator("label:has(#controls)").click()
        assert methods_of(tab) == ["beta"]

    def test_links_of_the_matrix_show_their_table(self, opened):
        tab = opened()
        choose(tab, CHOSEN)
        # The page hears of another address after the click.
        tab.locator(".matrix a.dsn", has_text="synthetic").click()
        tab.locator('section.table[data-dataset="synthetic"]').wait_for()
        tab.locator("#matrix-note a", has_text=CHOSEN).click()  # no test: it has no control
        tab.locator(f'section.table[data-dataset="{CHOSEN}"]').wait_for()

    def test_the_first_screen_says_what_leads(self, opened):
        tab = opened(viewport={"width": 1440, "height": 900})
        assert "SPRAWL" in tab.locator(".matrix tbody tr").first.inner_text()
        for part in ("h1", ".deck", ".answers", ".levels", ".matrix tfoot"):
            box = tab.locator(part).bounding_box()
            assert box["y"] + box["height"] <= 900

    def test_columns_are_chosen(self, opened):
        tab = opened(viewport={"width": 948, "height": 900})
        choose(tab, CHOSEN)
        table = tab.locator("section.table:visible table.main")
        box = table.locator("..")
        assert box.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert table.get_by_role("columnheader", name="Looks at").count() == 0
        for name in ("looks", "acc", "ap", "predict", "seeds"):
            click_label(tab, "columns", name)
        assert table.get_by_role("columnheader", name="Looks at").count() == 1
        assert "overflows" in box.get_attribute("class")
        head = table.locator("th.method").first
        before = head.bounding_box()["x"]
        box.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
        assert head.bounding_box()["x"] <= before  # the method stays in view
        assert head.bounding_box()["x"] >= box.bounding_box()["x"] - 1

    def test_a_phone_shows_f1_at_once(self, opened):
        tab = opened(viewport={"width": 375, "height": 800})
        choose(tab, CHOSEN)
        row = tab.locator("section.table:visible table.main tbody tr").first
        cell = row.locator("td.num").nth(1).bounding_box()
        assert cell["x"] + cell["width"] <= 375

    def test_text_finds_methods(self, opened):
        tab = opened()
        choose(tab, CHOSEN)
        tab.locator("#search").fill("ALPHA")
        assert methods_of(tab) == ["alpha"]
        assert tab.locator("#shown").inner_text() == "1 of 7 methods"
        tab.locator("#search").fill("")
        assert len(methods_of(tab)) == 4

    def test_the_address_keeps_what_was_chosen(self, opened, address):
        tab = opened()
        assert tab.url == address
        choose(tab, CHOSEN)
        click_label(tab, "inputs", "nucleus outline")
        click_label(tab, "columns", "acc")
        tab.locator("#search").fill("e")
        tab.locator("section.table:visible table.main .key-button").first.click()
        query = tab.evaluate("location.search")
        shown = methods_of(tab)
        copy = opened()
        copy.evaluate("query => history.replaceState(null, '', location.pathname + query)", query)
        copy.evaluate("window.dispatchEvent(new Event('popstate'))")
        assert methods_of(copy) == shown
        assert copy.locator("tr.picked:visible").count() == tab.locator("tr.picked:visible").count()
        assert copy.locator('#columns input[value="acc"]').is_checked()
        assert copy.evaluate("location.search") == query

    def test_a_picked_method_is_lit_in_all_charts(self, opened):
        tab = opened()
        tab.locator('.matrix tr[data-m="sprawl"] .key-button').click()
        charts = tab.locator("section.table .chart:has(.line[data-m=sprawl])")
        assert charts.count() > 10
        lit = "es => es.every(e => e.classList.contains('lit'))"
        assert charts.evaluate_all(lit)
        pressed = tab.locator('button[data-pick="sprawl"][aria-pressed="true"]').count()
        assert pressed == tab.locator('button[data-pick="sprawl"]').count() > 3
        tab.locator('.matrix tr[data-m="sprawl"] .key-button').click()
        assert tab.locator(".lit").count() == 0

    def test_two_methods_are_compared(self, chromium, tmp_path):
        made = [
            submitted("alpha", entry(0.6)),
            submitted("beta", entry(0.9)),
            submitted("gamma", entry(0.61)),
            submitted("gene_prior", entry(0.4), kind="control", inputs=["gene"]),
        ]
        overview = build_overview(build_board(made).tables)
        path = tmp_path / "index.html"
        path.write_text(rendered(made), "utf-8")
        tab = chromium.new_page()
        try:
            tab.goto(f"{path.as_uri()}?compare=alpha,beta")
            for one, other, better in (("alpha", "beta", "Beta"), ("gamma", "alpha", "")):
                for name, value in (("a", one), ("b", other)):
                    tab.locator(f'#compare select[name="{name}"]').select_option(value)
                texts = tab.locator("#compare tbody tr").first.locator("td").all_inner_texts()
                [of_test, _] = overview.compare(one, other)
                low, high = of_test.ci
                printed = f"{of_test.difference:+.1f} ({low:+.1f} to {high:+.1f})"
                assert texts[2] == printed.replace("-", "\N{MINUS SIGN}")
                assert texts[3] == (better or "cannot be told apart")
            assert tab.evaluate("location.search") == "?compare=gamma%2Calpha"
        finally:
            tab.close()

    def test_a_method_has_a_page_of_its_own(self, opened):
        tab = opened()
        tab.locator('.matrix a[href="#method-sprawl"]').click()
        profile = tab.locator("#method-sprawl[open]")
        profile.wait_for()
        assert profile.locator("tbody tr:visible").count() == 1
        assert "gpattern-bench run sprawl --dataset synthetic" in profile.inner_text()

    def test_tabs_by_keyboard(self, opened):
        tab = opened()
        section = tab.locator("section.table:visible")
        section.get_by_role("tab", name="Per pattern").focus()
        tab.keyboard.press("ArrowRight")
        assert section.get_by_role("tab", selected=True).inner_text() == "ROC and PR"
        assert section.get_by_role("tabpanel").locator("svg.chart").first.is_visible()
        tab.keyboard.press("End")
        assert section.get_by_role("tab", selected=True).inner_text() == "Time"
        assert section.locator(".view:visible").count() == 1

    def test_legends_lift_a_method(self, opened):
        tab = opened()
        section = tab.locator("section.table:visible")
        section.get_by_role("tab", name="ROC and PR").click()
        button = section.locator('.view:visible .legend li[data-m="sprawl"] button')
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        lit = section.locator(".view:visible .chart.lit .line.on")
        assert set(lit.evaluate_all("lines => lines.map(l => l.dataset.m)")) == {"sprawl"}
        button.click()
        assert section.locator(".lit").count() == 0

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_theme(self, opened, scheme):
        tab = opened(color_scheme=scheme)
        ground = "getComputedStyle(document.body).backgroundColor"
        colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}
        other = "light" if scheme == "dark" else "dark"
        assert tab.evaluate(ground) == colours[scheme]
        button = tab.locator("#theme")
        assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
        button.focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate(ground) == colours[other]
        assert button.get_attribute("aria-pressed") == str(other == "dark").lower()
        tab.reload()
        assert tab.evaluate(ground) == colours[other]  # it is remembered

    @pytest.mark.parametrize("scripts", [True, False])
    def test_a_phone_scrolls_one_way(self, opened, scripts):
        tab = opened(viewport={"width": 375, "height": 800}, java_script_enabled=scripts)
        if scripts:
            choose(tab, "")
        boxes = [tab.locator(part).bounding_box() for part in ("html", "body", "main")]
        assert all(box["width"] <= 375 for box in boxes)
        assert tab.evaluate("document.documentElement.scrollWidth") == 375

    def test_all_is_there_without_scripts(self, opened):
        tab = opened(java_script_enabled=False)
        assert tab.locator("section.table:visible").count() == 2
        assert tab.locator(".view:visible").count() == tab.locator(".view").count() == 10
        assert tab.locator(".chart:visible").count() == tab.locator(".chart").count()
        assert tab.locator("button:visible, input:visible").count() == 0
        assert tab.locator(".picture:visible").count() == 6

    def test_print_shows_every_view(self, opened):
        tab = opened()
        tab.emulate_media(media="print")
        section = tab.locator("section.table:visible")
        assert section.locator(".view:visible").count() == 5
        assert (
            tab.locator('.filters:visible, [role="tablist"]:visible, #theme:visible').count() == 0
        )
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # A browser asks for widths before it knows the paper: the matrix is whole on any.
        tab.set_viewport_size({"width": 816, "height": 1056})
        for column in ("skill", "plot", "run"):
            assert tab.locator(f".matrix td.{column}:visible").count() > 1, column

    def test_every_control_and_table_has_a_name(self, opened):
        tab = opened()
        for role in ("button", "tab", "radio", "checkbox"):
            for control in tab.get_by_role(role).all():
                assert (control.get_attribute("aria-label") or control.evaluate(
                    "e => (e.labels && e.labels.length ? e.labels[0] : e).textContent.trim()"
                ))  # fmt: skip
        assert tab.locator('[role="region"]:not([aria-label])').count() == 0
        assert tab.locator("svg[role=img]:not([aria-label])").count() == 0
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))


def test_results_hold_lists_of_numbers_in_one_line(found):
    submission = next(s for s in found if s.metadata.method == "sprawl")
    stored = (submission.folder / "results.json").read_text("utf-8")
    assert json.loads(stored) == submission.results
    assert not re.search(r"\[\n\s*[\d.]", stored)
