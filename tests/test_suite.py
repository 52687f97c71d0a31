"""The tests themselves: modules that stand alone, and ids that are the same everywhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from samples import PATIENCE_S

TESTS = Path(__file__).resolve().parent
ENOUGH = 3000
"""Fewer tests are not the whole suite."""


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, at its top or further down."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(alias.name for alias in node.names)}
    return found


@pytest.mark.slow
def test_no_module_of_tests_is_imported():
    others = {path.stem for path in TESTS.rglob("test_*.py")} | {"conftest"}
    assert len(others) > 50
    found = {path.name: sorted(imported(path) & others) for path in TESTS.rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_wait_ends_after_a_number_of_seconds():
    """On a busy machine every number is too small; PATIENCE_S is for all."""
    numbers = re.compile(r"\b(timeout|deadline)=\d+[,)]|\.(wait|join)\(\d{2,}\)")
    found = {path.name: numbers.findall(path.read_text("utf-8")) for path in TESTS.glob("*.py")}
    assert {name: what for name, what in found.items() if what} == {}


def ids_of_another_process(folder: Path, seed: int, warnings: list[str]) -> list[str]:
    """Ids of all tests, collected where everything that is not code differs."""
    other = {"PYTHONHASHSEED": str(seed), "TMPDIR": str(folder), "HOME": str(folder)}
    other |= {"TZ": ("UTC", "Asia/Tokyo")[seed], "OMP_NUM_THREADS": str(1 + seed)}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    command += [part for each in warnings for part in ("-W", each)]
    command += ["-c", TESTS.parent / "pyproject.toml", TESTS, TESTS.parent / "gpattern_bench"]
    found = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | other,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return [line for line in found.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_ids_depend_on_nothing_but_the_code(request, tmp_path):
    """Workers of pytest-xdist compare theirs: what differs between two processes stops them all."""
    ids = [item.nodeid for item in request.session.items]
    warnings = request.config.getoption("pythonwarnings") or []
    if len(ids) < ENOUGH:  # this process has collected a part only
        ids = ids_of_another_process(tmp_path, 0, warnings)
    assert len(ids) >= ENOUGH
    there = ids_of_another_process(tmp_path, 1, warnings)
    assert ids == [name for name in there if name in set(ids)]
