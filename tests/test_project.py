"""The project around the package: bounds, pins and versions agree; workflows may do little."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import gpattern_bench

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

WORKFLOWS = sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml"))


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

    @pytest.mark.parametrize(
        "path",
        [
            "Makefile",
            ".ci/smoke",
            *(f".github/workflows/{name}" for name in ("submission.yml", "test.yml")),
        ],
    )
    def test_torch_is_that_of_the_board(self, path):
        text = (ROOT / path).read_text("utf-8")
        floor = release(*bounds()["torch"])  # in the job of the lowest versions
        found = set(re.findall(r"torch==([0-9.]+)", text))
        versions = {version for version in found if release(version) != floor}
        assert versions == {pins("leaderboard/versions.txt")["torch"]}

    def test_of_the_package_is_that_of_the_citation(self):
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
        assert citation["version"] == gpattern_bench.__version__


@pytest.mark.parametrize("name", WORKFLOWS)
class TestWorkflow:
    def text(self, name: str) -> str:
        return (ROOT / ".github" / "workflows" / name).read_text("utf-8")

    def test_runs_actions_of_a_commit_with_its_version_beside_it(self, name):
        uses = re.findall(r"uses: *(.*)", self.text(name))
        assert uses
        assert [one for one in uses if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[0-9.]+", one)] == []

    def test_may_only_read_but_for_publishing(self, name):
        workflow = yaml.safe_load(self.text(name))
        assert workflow["permissions"] == {"contents": "read"}
        more = {
            key: job["permissions"] for key, job in workflow["jobs"].items() if "permissions" in job
        }
        assert more == ({"publish": {"id-token": "write"}} if name == "release.yml" else {})

    def test_keeps_no_credentials_and_ends(self, name):
        for job in yaml.safe_load(self.text(name))["jobs"].values():
            assert job["timeout-minutes"] <= 90
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False

    def test_runs_no_code_of_others_with_rights(self, name):
        text = self.text(name)
        for word in ("pull_request_target", "workflow_run", "issue_comment", "self-hosted"):
            assert word not in text
        assert "secrets" not in re.sub("#.*", "", text)

    def test_keeps_nothing_of_a_pull_request(self, name):
        """A cache that it fills could be another's; those of main are filled by main."""
        assert "actions/cache" not in self.text(name)
        for job in yaml.safe_load(self.text(name))["jobs"].values():
            kept = {
                step["with"]["cache"] for step in job["steps"] if "cache" in step.get("with", ())
            }
            assert kept <= {"${{ github.event_name == 'push' && 'pip' || '' }}"}

    def test_puts_no_text_of_others_into_a_script(self, name):
        for job in yaml.safe_load(self.text(name))["jobs"].values():
            assert [s["run"] for s in job["steps"] if "${{" in s.get("run", "")] == []


class TestForms:
    @pytest.mark.parametrize("name", ["addition", "bug", "wrong-score"])
    def test_of_issues_ask_for_something(self, name):
        path = ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml"
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert any(
            field["validations"]["required"] for field in form["body"] if "validations" in field
        )
        assert all(field["attributes"]["label"] for field in form["body"])

    @pytest.mark.parametrize(
        "path", [".github/ISSUE_TEMPLATE/config.yml", ".github/dependabot.yml"]
    )
    def test_and_settings_are_yaml(self, path):
        assert isinstance(yaml.safe_load((ROOT / path).read_text("utf-8")), dict)

    def test_hooks_before_a_commit_fetch_nothing(self):
        config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
        assert [repo["repo"] for repo in config["repos"]] == ["local"]
        hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
        assert {hook["language"] for hook in hooks} == {"system"}
