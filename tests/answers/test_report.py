"""The report of an answer: what it says, that it is safe and small, what it does in Chromium."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import shapely
from samples import PATIENCE_S, dataset_of

from gpattern_bench import call
from gpattern_bench.answers.answer import Answer
from gpattern_bench.answers.differential import read_differential
from gpattern_bench.answers.report import _stand_out, write_report
from gpattern_bench.answers.shuffled import MOLECULES, compare_shuffled, draw_fovs, shuffled_cells
from gpattern_bench.answers.sketches import SIDE, draw_cell
from gpattern_bench.curate.release import Release
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.cells import Cell
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.errors import GPatternBenchError

HOSTILE = "<script>alert(1)</script>"
NAMES = (HOSTILE, '"><img src=x onerror=alert(2)>', "{{ 7*7 }}", "=1+1", "MALAT1", "Blank-12")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Simulated cells; some genes and cells have names that are not nice."""
    release = simulate(7, n_fovs=8, cells_per_fov=3, n_genes=10, mean_molecules=120)
    genes = sorted(release.molecules["gene"].astype(str).unique())
    gene_of = dict(zip(genes, NAMES, strict=False))
    cells = sorted(release.cells["cell_id"].astype(str))
    cell_of = {cells[0]: "</svg><b>", cells[1]: "208397895882226602091337444681646330990"}
    molecules = release.molecules.assign(
        gene=release.molecules["gene"].astype(str).replace(gene_of),
        cell_id=release.molecules["cell_id"].astype(str).replace(cell_of),
    )
    outlines = release.cells.assign(cell_id=release.cells["cell_id"].astype(str).replace(cell_of))
    folder = tmp_path_factory.mktemp("tables") / "tables"
    return dataset_of(folder, Release(molecules, outlines), split="test", controls="")


@pytest.fixture(scope="module")
def answer(dataset, tmp_path_factory):
    return call(dataset, tmp_path_factory.mktemp("one") / "answer", jobs=1)


@pytest.fixture(scope="module")
def text(answer):
    return (answer.folder / "report.html").read_text("utf-8")


def shown(text: str) -> str:
    """What a reader sees."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text.partition("<main>")[2]))


class TestText:
    def test_is_made_again_byte_by_byte(self, answer, dataset, text):
        path = answer.folder / "report.html"
        assert write_report(answer.folder).read_text("utf-8") == text
        path.unlink()
        call(dataset, answer.folder, jobs=1)
        assert path.read_text("utf-8") == text

    def test_no_name_brings_markup(self, text):
        for hostile in (HOSTILE, "<img", "</svg><b>"):
            assert hostile not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "{{ 7*7 }}" in text
        assert text.count("<script>") == text.count("</script>") == 1
        assert text.count("<style>") == text.count("</style>") == 1

    def test_asks_nothing_of_a_network(self, text):
        assert not re.search(
            r"""(src|href)=["']?(https?:|//)|@import|url\(|fetch\(|XMLHttp""", text
        )
        assert "default-src 'none'" in text

    def test_says_the_answer(self, answer, text):
        said, counts = shown(text), answer.record["counts"]
        for number in ("cells", "molecules", "pairs", "called", "not_called"):
            assert f"{counts[number]:,}" in said
        assert answer.record["not_called"] in said
        for name, number in counts["of_pattern"].items():
            assert f"{name.replace('_', ' ')}" in said
            assert not number or f"Called for {number:,} pairs" in said
        out = re.search(r"(\d+) of 9 genes with calls (is|are) localised beyond chance", said)
        assert out, said[:300]
        assert 0 < int(out[1]) <= 9

    def test_controls_are_set_aside_and_known_genes_named(self, answer, text):
        said = shown(text)
        table = text.partition('<section id="genes">')[2].partition("</section>")[0]
        assert "Blank-12" not in table
        assert table.count("<tr>") == 1 + 9
        genes = answer.genes().set_index("gene")
        assert f"{genes.loc['Blank-12', 'called']:,} have molecules enough to be called" in said
        nuclear = f"nuclear in {100 * genes.loc['MALAT1', 'nuclear']:.0f} %"
        assert nuclear in said.partition("MALAT1 , whose RNA stays in the nucleus")[2]
        assert 'data-v="=1+1"' in table  # as the panel names it, not as the csv does

    def test_names_its_doubts(self, answer, text, tmp_path):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        record = json.loads((folder / "answer.json").read_text("utf-8"))
        record |= {"warnings": ["the unit is <wrong>"], "shuffled": None, "expected_wrong": None}
        (folder / "answer.json").write_text(json.dumps(record))
        said = write_report(folder).read_text("utf-8")
        assert "the unit is &lt;wrong&gt;" in said
        assert "Not measured: the model scores cells together" in said
        assert "9 of 9 genes have called pairs" in said
        assert "stand out from" not in said

    def test_nothing_called_is_said(self, tmp_path):
        molecules = pd.DataFrame({"x": [1.0, 2], "y": 1.0, "gene": "A", "cell_id": ["1", "1"]})
        found = call(Dataset.from_frames(molecules, pd.Series([shapely.box(0, 0, 9, 9)], ["1"])))
        said = shown((found.folder / "report.html").read_text("utf-8"))
        assert "0 of 1 genes have called pairs" in said
        assert "no pair of the 1 cells drawn has molecules enough" in said
        assert "No pair was called." in said

    def test_is_small_for_a_large_panel(self, answer, dataset, tmp_path, monkeypatch):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        few = pd.read_csv(folder / "genes.csv", dtype={"gene": str})
        many = pd.concat([few] * 500, ignore_index=True)
        many["gene"] = [f"LONGGENENAME{k:05d}" for k in range(len(many))]
        many.to_csv(folder / "genes.csv", index=False)
        record = json.loads((folder / "answer.json").read_text("utf-8"))
        record["files"]["genes.csv"] = (folder / "genes.csv").stat().st_size
        (folder / "answer.json").write_text(json.dumps(record))
        path = write_report(folder)
        assert path.stat().st_size < 2_000_000
        assert "the 2,000 called in most cells, of 5,000" in shown(path.read_text("utf-8"))

    def test_shows_what_differs_between_groups(self, answer, tmp_path, command):
        folder = tmp_path / "answer"
        shutil.copytree(answer.folder, folder)
        cells = answer.cells()[["cell_id"]]
        cells["kind"] = np.where(np.arange(len(cells)) % 2, "<i>late</i>", "early")
        cells["donor"] = [f"d{k % 6}" for k in range(len(cells))]
        cells.to_csv(tmp_path / "cells.csv", index=False)
        given = ["differential", folder, "--groups", tmp_path / "cells.csv", "--by", "kind"]
        code, out, err = command(*given, "--sample", "donor", "--min-pairs", "2")
        assert code == 0, err
        assert str(folder / "report.html") in out
        text = (folder / "report.html").read_text("utf-8")
        part = text.partition('<section id="differences">')[2].partition("</section>")[0]
        assert "&lt;i&gt;late&lt;/i&gt; \N{MINUS SIGN}" in part or "early \N{MINUS SIGN}" in part
        assert "<i>" not in text
        table = read_differential(folder / "differential.csv").sort_values("p")
        first = table.iloc[0]
        assert f"{100 * first['difference']:.1f}".replace("-", "\N{MINUS SIGN}") in part
        assert f"of {table['p'].notna().sum()} tested genes and patterns" in part
        assert part.count("<tr>") == 1 + 15
        assert part.count('<figure class="sketch">') == 8  # of four rows, a cell per group
        record = json.loads((folder / "answer.json").read_text("utf-8"))
        record["tables"] = str(tmp_path / "gone")
        (folder / "answer.json").write_text(json.dumps(record))
        code, out, err = command(*given, "--sample", "donor", "--min-pairs", "2")
        assert code == 0, err
        assert "report.html stays as it was: " in out
        with pytest.raises(GPatternBenchError, match="give groups and by together"):
            write_report(folder, by="kind")

    def test_of_no_answer_is_refused(self, tmp_path):
        with pytest.raises(GPatternBenchError, match="holds no finished answer"):
            write_report(tmp_path)


class TestShuffled:
    def test_cells_keep_their_places_and_counts(self, dataset):
        fovs = draw_fovs(dataset, 0)
        one, other = (list(shuffled_cells(dataset, fovs, dataset.patterns, s)) for s in (0, 1))
        real = {cell.cell_id: cell for cell in dataset.iter_cells(keep=[c.cell_id for c in one])}
        assert len(one) == len(real) == dataset.counts["cells"]
        for cell in one:
            before = real[cell.cell_id]
            assert (cell.gene == before.gene).all()
            assert not (cell.xy == before.xy).all()
            assert sorted(map(tuple, cell.xy)) == sorted(map(tuple, before.xy))
        again = list(shuffled_cells(dataset, fovs, dataset.patterns, 0))
        assert all((a.xy == b.xy).all() for a, b in zip(one, again, strict=True))
        assert not all((a.xy == b.xy).all() for a, b in zip(one, other, strict=True))

    def test_shares_and_their_difference(self):
        def pairs(called):
            cells = np.repeat([f"c{k}" for k in range(50)], 4)
            called = pa.array(called, pa.bool_(), mask=few)
            return pa.table({"cell_id": cells, "n_molecules": molecules, "p": called})

        few = np.arange(200) % 4 == 3
        molecules = np.where(np.arange(200) % 4 == 0, 6, 20)
        rng = np.random.default_rng(0)
        chance, real = rng.random(200) < 0.2, rng.random(200) < 0.6
        elsewhere = pa.table({"cell_id": ["x"], "n_molecules": [9], "p": pa.array([True])})
        found = compare_shuffled(pairs(chance), [elsewhere, pairs(real)], ["p"])
        of = found["of_pattern"]["p"]
        assert (found["cells"], found["pairs"]) == (50, 150)
        assert of["share"] == pytest.approx(chance[~few].mean())
        assert of["observed"] == pytest.approx(real[~few].mean())
        assert 0 < of["low"] < of["share"] < of["high"] < 0.35
        expected = [of["share"]] * len(MOLECULES)  # of bins without pairs
        for at, here in ((1, molecules == 6), (4, molecules == 20)):
            here &= ~few
            expected[at] = (chance[here].sum() + 20 * of["share"]) / (here.sum() + 20)
        assert of["by_molecules"] == pytest.approx(expected)
        assert 0.2 < of["excess_low"] < of["excess"] < of["excess_high"] < 0.6
        # cells that are called as one tell less: a wider interval
        alike = compare_shuffled(pairs(np.repeat(chance[::4], 4)), [pairs(real)], ["p"])
        wide = alike["of_pattern"]["p"]
        assert wide["high"] - wide["low"] > 1.4 * (of["high"] - of["low"])
        never = compare_shuffled(pairs(chance & False), [pairs(real)], ["p"])["of_pattern"]["p"]
        assert never["share"] == 0 < never["high"] < 0.05
        assert never["low"] == pytest.approx(0)

    def test_genes_stand_out_from_pairs_of_as_many_molecules(self, tmp_path):
        """Rare genes are called more often by chance: none stands out for that alone."""
        rng = np.random.default_rng(3)
        by_molecules = [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1]
        of = {"share": 0.3, "low": 0.29, "high": 0.31, "by_molecules": by_molecules}
        record = {"shuffled": {"of_pattern": {"p": of}}}
        sizes = np.zeros((300, len(MOLECULES)))
        sizes[:150, 1] = sizes[150:, 4] = 200
        chance = np.where(np.arange(300) < 150, 0.5, 0.1)
        chance[::10] += 0.3
        table = pd.DataFrame({"p": rng.binomial(200, chance) / 200, "called": 200})
        found = _stand_out(table, "p", np.zeros(300, bool), sizes, Answer(tmp_path, record))
        planted = np.arange(300) % 10 == 0
        assert found[planted].all()
        assert found[~planted].sum() <= 3  # of 270; the rate is 5 % of those found
        no_gene = _stand_out(table, "p", planted, sizes, Answer(tmp_path, record))
        assert not no_gene[planted].any()

    def test_the_answer_has_them(self, answer):
        shuffled = answer.record["shuffled"]
        assert shuffled["cells"] == 24
        assert shuffled["pairs"] == answer.record["counts"]["called"]
        for name, of in shuffled["of_pattern"].items():
            calls = answer.record["counts"]["of_pattern"][name]
            assert of["observed"] == pytest.approx(calls / shuffled["pairs"])
            by_chance = [text for text in answer.warnings if text.startswith(f"{name} is called f")]
            assert len(by_chance) >= (of["excess_low"] <= 0)


def test_a_sketch_keeps_shape_and_scale():
    xy = np.array([[-10.0, 0], [10, 5], [0, 0]])
    outline = shapely.box(-20, -10, 20, 10)
    sketch = draw_cell(Cell("a", "1", xy, np.int32([0, 0, 1]), outline, None), 0)
    assert sketch.molecules == "M29,29h0M79,41.5h0"
    assert sketch.others == "M54,29h0"
    assert sketch.nucleus == ""
    assert sketch.boundary.count("L") == 3
    assert (sketch.width, sketch.bar_um, sketch.bar) == (SIDE + 8, 10.0, 25.0)


@pytest.mark.slow
def test_in_a_browser(chromium, answer):
    address = (answer.folder / "report.html").as_uri()
    context = chromium.new_context(viewport={"width": 375, "height": 800}, color_scheme="dark")
    context.set_default_timeout(1000 * PATIENCE_S)
    tab, wrong = context.new_page(), []
    tab.on("request", lambda r: r.url not in (address, "data:,") and wrong.append(r.url))
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    tab.goto(address)

    def values(column: int) -> list[str]:
        cells = tab.locator(f"#table tbody tr:visible > :nth-child({column})")
        return cells.evaluate_all("cells => cells.map(cell => cell.dataset.v)")

    assert tab.evaluate("document.documentElement.scrollWidth") == 375  # it scrolls one way
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == "rgb(20, 24, 28)"
    tab.locator("#theme").click()
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    assert tab.locator(".sketch svg:visible").count() >= 4
    tab.get_by_role("button", name="Cells", exact=True).click()
    counts = [int(value) for value in values(2)]
    assert counts == sorted(counts, reverse=True)
    tab.get_by_role("button", name="Gene", exact=True).click()
    ascending = values(1)
    tab.get_by_role("button", name="Gene", exact=True).click()
    assert values(1) == ascending[::-1]
    assert ascending.index("G07") < ascending.index("G08") < ascending.index("MALAT1")
    tab.locator("#search").fill("malat")
    assert values(1) == ["MALAT1"]
    assert tab.locator("#shown").inner_text() == "1 of 9"
    tab.locator("#search").fill("")
    tab.locator("label:has(#only)").click()
    out = tab.locator("#table tbody tr:visible td:last-child").all_inner_texts()
    assert out
    assert all(out)
    context.close()
    assert wrong == []
