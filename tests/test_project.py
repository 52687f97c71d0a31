"""The project around the package: that bounds, pins and versions agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pins(path: str) -> dict[str, str]:
    """Name -> version of a file of pins, all of whose lines are pins or comments."""
    found = {}
    for line in (ROOT / path).read_text("utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert name not in found, f"{path} has {name} twice"
            found[name] = version
    return found


def bounds() -> dict[str, set[str]]:
    """Name -> lower bounds, of the dependencies and of every extra."""
    found: dict[str, set[str]] = {}
    for requirement in [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]:
        name, bound = re.fullmatch(r"([a-z0-9-]+)(?:\[.*\])?(?:>=(\S+)|<.*)?", requirement).groups()
        if bound is not None:
            found.setdefault(name, set()).add(bound)
    return found


def release(version: str) -> tuple[int, ...]:
    """A version as numbers, 2 and 2.0.0 being the same."""
    numbers = [int(number) for number in version.split(".")]
    while numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


class TestVersions:
    def test_every_dependency_has_one_lower_bound(self):
        found = bounds()
        assert {name: many for name, many in found.items() if len(many) > 1} == {}
        required = {re.match("[a-z0-9-]+", one)[0] for one in PROJECT["dependencies"]}
        assert required - found.keys() == set()

    def test_the_lowest_are_the_lower_bounds(self):
        # All but that of PyTorch: see the file.
        expected = {name: release(*many) for name, many in bounds().items() if name != "torch"}
        found = {name: release(version) for name, version in pins("constraints/lowest.txt").items()}
        assert found == expected

    def test_those_of_the_board_are_allowed_and_whole(self):
        found = pins("leaderboard/versions.txt")
        extras = PROJECT["optional-dependencies"]
        for requirement in [*PROJECT["dependencies"], *extras["train"], *extras["spatial"]]:
            name = re.match("[a-z0-9-]+", requirement)[0]
            assert name in found, f"leaderboard/versions.txt has no {name}"
        for name, many in bounds().items():
            if name in found:
                assert release(found[name]) >= release(*many), name

    @pytest.mark.parametrize("path", ["Makefile", ".github/workflows/submission.yml"])
    def test_torch_is_that_of_the_board(self, path):
        versions = set(re.findall(r"torch==([0-9.]+)", (ROOT / path).read_text("utf-8")))
        assert versions == {pins("leaderboard/versions.txt")["torch"]}
