"""Records of benchmarks, and the page that is made of them."""

from __future__ import annotations

import argparse
import importlib
import json
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
