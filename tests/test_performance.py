"""Records of benchmarks, and the page that is made of them."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gpattern_bench

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def timing(monkeypatch, tmp_path) -> ModuleType:
    """The module of the benchmarks, which records into a folder of this test."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = importlib.import_module("timing")
    monkeypatch.setattr(found, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks/cells.py"])
    return found


def test_a_record_says_what_was_found_by_which_code_and_where(timing, tmp_path, capsys):
    found = {"seconds": 1.5, "peak": float("nan"), "versions": {"peer": "3.1"}}
    timing.report(found, record=False)
    assert list(tmp_path.iterdir()) == []
    timing.report(found, record=True)
    [path] = tmp_path.iterdir()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert path.name == "cells.json"
    assert json.loads(path.read_text()) == printed
    assert (printed["benchmark"], printed["seconds"], printed["peak"]) == ("cells", 1.5, None)
    assert printed["versions"].keys() > {"python", "numpy", "peer"}
    assert printed["versions"]["gpattern-bench"] == gpattern_bench.__version__
    assert printed["machine"]["cores"] >= 1 < printed["machine"]["memory_gib"]
    assert printed["load_at_start"] >= 0
    assert {"commit", "date"} < set(printed)


def test_small_sizes_are_not_recorded(timing, monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    monkeypatch.setattr(sys, "argv", ["cells.py", "--record"])
    assert timing.parsed(parser).record
    monkeypatch.setattr(sys, "argv", ["cells.py", "--record", "--quick"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    with pytest.raises(SystemExit):
        timing.parsed(parser)
    assert "figures of --quick mean nothing" in capsys.readouterr().err


@pytest.fixture
def page(monkeypatch) -> ModuleType:
    """The script that makes the page."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("performance")


def test_the_page_is_made_of_the_records(page):
    expected = page.make()
    assert page.PAGE.read_text(encoding="utf-8") == expected, "run `python docs/performance.py`"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem
)
def test_a_record_is_small_and_of_a_script(page, path):
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["benchmark"] == path.stem in page.scripts()
    assert {"commit", "date", "load_at_start", "machine", "versions"} < set(record)
    assert not record.get("quick")
    assert len(text) < 100_000
    assert not re.search(r"/(work|home|tmp|root)/", text)


FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*\s*"
    r"(?:%|(?:CPU\s)?(?:s|ms|us|min|h|d|x|M|[KMGT]i?B|times|bytes|million|seconds?|minutes?|hours?"
    r"|days?|pairs|cells|molecules)\b)"
)


def test_prose_has_no_figure_of_its_own(page):
    text = page.TEMPLATE.read_text(encoding="utf-8")
    assert FIGURE.findall(re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)) == []
    for measured in ("takes 3.5 s at 2 GiB", "4,000 CPU s", "12x", "in 20 minutes", "9 %"):
        assert FIGURE.search(measured), measured
    assert not FIGURE.search("K = 256, 12 heads of 64 on 2 cores, table 1")


def test_a_section_is_there_when_its_record_is(page, tmp_path):
    assert page.make(tmp_path).count("Not measured yet") == 11
    record = {
        "benchmark": "datasets",
        "commit": "0123456789abcdef-dirty",
        "date": "2026-11-29",
        "load_at_start": 3.14,
        "machine": {"cores": 2, "processor": "A processor", "memory_gib": 23.5},
        "versions": {"python": "3.11.7"},
        "rows": [{"what": "`demo`", "seconds": 83.25, "cpu_s": None}],
    }
    (tmp_path / "datasets.json").write_text(json.dumps(record))
    made = page.make(tmp_path)
    assert "on a machine with 2 cores (A processor) and 24 GiB of memory" in made
    assert "|  | s |\n|---|---:|\n| `demo` | 83 |\n" in made
    assert "| 2026-11-29 | 0123456, changed | 3.1 | A processor |" in made
    assert "- `datasets`: python 3.11.7" in made
    assert "`datasets.py`" not in made.rpartition("Not recorded yet")[2]


def test_each_size_names_the_code_and_the_machine_that_measured_it(page):
    record = json.loads((ROOT / "benchmarks" / "results" / "full.json").read_text())
    for like, processor in (("nih3t3", "A"), ("u2os", "B")):
        first = {"commit": None, "date": "2026-11-29", "load_at_start": 0.5, "versions": {}}
        first["machine"] = {"cores": 2, "processor": processor, "memory_gib": 8.0}
        record[like]["sessions"] = [first, first | {"load_at_start": 7.5, "commit": "c" * 40}]
        for part in ("steps", "methods", "jobs"):
            record[like][part] = [{"method": "m", "step": part, "session": 0}]
    record["u2os"]["methods"][0]["session"] = 1
    del record["cosmx_lung"]
    made = page.how({"full": record})
    assert made.count("; `nih3t3` | 2026-11-29 | unknown | 0.5 |") == 1
    assert "; `u2os`: steps, jobs | 2026-11-29 | unknown | 0.5 |" in made
    assert "; `u2os`: methods | 2026-11-29 | ccccccc | 7.5 |" in made
    assert "`full.py` for `u2os`: methods (load 7.5 on 2 cores):" in page.busy(record)
    assert page.machines({"full": record}).count("and one with") == 1
