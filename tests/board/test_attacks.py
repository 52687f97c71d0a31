"""Attacks on the board: each is named, and refused by the commands of the workflow."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter
from samples import PATIENCE_S, metadata_of, small_dataset

from gpattern_bench import list_datasets, load_dataset
from gpattern_bench.base.files import MANIFEST, file_sha256
from gpattern_bench.board.invariants import impossible
from gpattern_bench.board.labels import check_label, check_text, look_alikes
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.markdown import escaped, markdown
from gpattern_bench.board.metadata import Metadata, write_schema
from gpattern_bench.board.publish import board_of, problems_of, write_board
from gpattern_bench.board.submission import Submission, read_submissions, results_text
from gpattern_bench.board.submit import listed_files, submit_run
from gpattern_bench.board.verified import VERIFIED
from gpattern_bench.predictions import Origin, write_predictions
from gpattern_bench.sources.registry import find_entry, registry
from gpattern_bench.tables.parquet import table_sha256

REPOSITORY = Path(__file__).resolve().parents[2]
TEST = "predictions/synthetic/test-seed0.parquet"
FULL = "predictions/nih3t3/test-seed0.parquet"  # of a release without checksums
KEPT = ("reported.yaml", "verified.json", "versions.txt", "challenge.json")

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "submissions").is_dir(), reason="the package is tested without its board"
)


# The commands of the workflow


def steps() -> list[dict]:
    """Those that run something, after the installation."""
    path = REPOSITORY / ".github" / "workflows" / "submission.yml"
    found = yaml.safe_load(path.read_text("utf-8"))["jobs"]["check"]["steps"]
    at = next(i for i, step in enumerate(found) if step.get("name") == "Install")
    return [step for step in found[at + 1 :] if "run" in step]


class Checkout:
    """A runner's folder: `base` and `submitted`, and what the workflow makes beside them."""

    def __init__(self, root: Path, cli: Callable[..., tuple[int, str]]) -> None:
        self.root, self.cli = root, cli

    @property
    def mine(self) -> Path:
        return self.root / "submitted" / "submissions" / "my_method"

    @property
    def board(self) -> Path:
        return self.root / "submitted" / "leaderboard"

    def edit_results(self, change: Callable[[list[dict]], None]) -> None:
        results = json.loads((self.mine / "results.json").read_text("utf-8"))
        change(results)
        try:
            text = results_text(results)
        except ValueError:  # no results
            text = json.dumps(results)
        (self.mine / "results.json").write_text(text, "utf-8")

    def edit_yaml(self, **values) -> None:
        path = self.mine / "submission.yaml"
        found = yaml.safe_load(path.read_text("utf-8")) | values
        path.write_text(yaml.safe_dump(found, allow_unicode=True), "utf-8")

    def list_files(self) -> None:
        """List the prediction files as they are, as `submit` does."""
        files = [file.model_dump(exclude_none=True) for file in listed_files(self.mine)]
        self.edit_yaml(files=files)

    def make_board(self) -> None:
        """Make the board of what is stored, whatever the package says of it."""
        found = read_submissions(self.mine.parent)
        write_board(board_of(found, self.board), found, self.board)

    def check(self) -> tuple[str, str]:
        """Run the workflow: the name of the step that failed, and what it said."""
        (self.root / "empty").mkdir(exist_ok=True)
        for step in steps():
            script, name = step["run"], step.get("name", "")
            if script.startswith("gpattern-bench leaderboard "):
                os.chdir(self.root / step["working-directory"])
                code, said = self.cli(*shlex.split(script)[1:])
            elif "cmp " in script:
                done = subprocess.run(
                    ["bash", "-e", "-c", script], cwd=self.root, capture_output=True, text=True
                )
                code, said = done.returncode, done.stdout + done.stderr
            else:  # files are made, fetched or validated: `test_of_a_shell` does
                continue
            if code:
                return name, said
        return "", ""


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A submission from the template and its board, as a pull request brings them."""
    root = tmp_path_factory.mktemp("honest")
    load_dataset("synthetic")  # so that the script finds it
    submissions = root / "submitted" / "submissions"
    shutil.copytree(REPOSITORY / "submissions" / "_template", submissions / "my_method")
    path = submissions / "my_method" / "submission.yaml"
    text = path.read_text("utf-8").replace("<my_method>", "my_method")
    text = text.replace("<model, baseline or control>", "model").replace("<true or false>", "true")
    path.write_text(re.sub(r"<([^<>\n]+)>", r"\1", text), "utf-8")
    done = subprocess.run(
        [sys.executable, submissions / "my_method" / "run.py", "--out", root / "run"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    submit_run(root / "run", submissions / "my_method")
    (submissions / ".my_method.lock").unlink()  # git ignores it
    for submission in read_submissions(submissions):
        submission.write_results(submission.rescored()[0])
    write_schema(submissions)
    for folder in (root / "base" / "leaderboard", root / "submitted" / "leaderboard"):
        folder.mkdir(parents=True)
        for name in KEPT:
            shutil.copy(REPOSITORY / "leaderboard" / name, folder)
    found = read_submissions(submissions)
    board = root / "submitted" / "leaderboard"
    write_board(board_of(found, board), found, board)
    return root


@pytest.fixture
def checkout(honest, tmp_path, monkeypatch, command) -> Checkout:
    """A copy of it."""
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpattern_bench.sources.http.BACKOFF_S", 0.01)

    def cli(*words: str) -> tuple[int, str]:
        code, out, err = command(*words)
        return code, out + err

    return Checkout(tmp_path, cli)


# False numbers


def typed_average(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"].update(f1_macro=0.97))


def typed_average_and_interval(it: Checkout) -> None:
    def change(results):
        results[0]["metrics"]["f1_macro"] = 0.97
        results[0]["metrics"]["ci"]["f1_macro"] = [0.96, 0.98]

    it.edit_results(change)


def typed_interval(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"]["ci"].update(f1_macro=[0.0, 1.0]))


def typed_pattern(it: Checkout) -> None:
    def change(results):
        metrics = results[0]["metrics"]
        values = metrics["per_pattern"].values()
        for each in values:
            each["f1"] = each["ci"]["f1"][1]
        metrics["f1_macro"] = sum(each["f1"] for each in values) / len(values)

    it.edit_results(change)


def value_outside_its_interval(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"].update(accuracy_subset=0.0))


def replicates_of_a_winner(it: Checkout) -> None:
    """Ties go by the replicates of macro F1, which no reader sees."""

    def change(results):
        drawn = np.frombuffer(b64decode(results[0]["f1_replicates"]), "<f4")
        raised = np.minimum(drawn + np.float32(0.3), 1).astype("<f4")
        results[0]["f1_replicates"] = b64encode(raised.tobytes()).decode()

    it.edit_results(change)


def labels_of_fewer_pairs(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"].update(n=10))


def labels_with_other_positives(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"]["per_pattern"]["nuclear"].update(n_positive=5))


def threshold_that_is_no_number(it: Checkout) -> None:
    it.edit_results(lambda r: r[0]["metrics"]["per_pattern"]["nuclear"].update(threshold=1e999))


def curves_of_another(it: Checkout) -> None:
    it.edit_results(
        lambda r: r[0]["curves"]["per_pattern"]["nuclear"].update(roc=[[0, 0], [0, 1], [7, 1]])
    )


def stored_twice(it: Checkout) -> None:
    it.edit_results(lambda r: r.insert(0, json.loads(json.dumps(r[0]))))


def number_twice(it: Checkout) -> None:
    """This package reads the second; a reader sees the first."""
    path = it.mine / "results.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"f1_macro":', '"f1_macro": 0.97, "f1_macro":', 1), "utf-8")


def of_metadata(it: Checkout, **values) -> None:
    """Write other metadata into the prediction files, and give these the names that follow."""
    key = b"gpattern_bench"
    for split in ("test", "val"):
        path = it.mine / TEST.replace("test-", f"{split}-")
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[key]) | values
        path.unlink()
        name = TypeAdapter(Origin).validate_python(origin).stem()
        renamed = table.replace_schema_metadata({key: json.dumps(origin)})
        pq.write_table(renamed, path.with_name(f"{name}.parquet"))
    it.edit_yaml(seeds=[origin["seed"]])
    it.list_files()
    (it.mine / "results.json").unlink()


def unknown_dataset(it: Checkout) -> None:
    (it.mine / "predictions" / "synthetic").rename(it.mine / "predictions" / "mine")
    it.list_files()
    name = TEST.replace("synthetic", "mine")
    it.edit_results(lambda r: r[0].update(dataset="mine", predictions=name))


def unknown_version(it: Checkout) -> None:
    it.edit_results(lambda r: r[0].update(version="1.0.1"))


def another_protocol(it: Checkout) -> None:
    it.edit_results(lambda r: r[0].update(protocol="transfer", trained_on=["wide@1.0.0"]))


def result_of_another_method(it: Checkout) -> None:
    """All invariants hold: only scoring the file again finds it."""
    other = REPOSITORY / "submissions" / "gpsnet_coordinates" / "results.json"
    [best] = [r for r in json.loads(other.read_text("utf-8")) if r["predictions"] == TEST]

    def change(results):
        for key in ("metrics", "curves", "f1_replicates", "degrees_of_freedom"):
            results[0][key] = best[key]

    it.edit_results(change)


def address_that_does_not_answer(it: Checkout) -> None:
    files = [file.model_dump(exclude_none=True) for file in listed_files(it.mine)]
    for file in files:
        file["url"] = f"https://127.0.0.1:1/{file['path']}"
        (it.mine / file["path"]).unlink()
    it.edit_yaml(files=files)
    result_of_another_method(it)


def file_that_is_gone(it: Checkout) -> None:
    (it.mine / TEST).unlink()


FALSE_NUMBERS = {
    typed_average: "f1_macro is 0.97, the mean of its patterns is",
    typed_average_and_interval: "f1_macro is 0.97, the mean of its patterns is",
    typed_interval: "its replicates give",
    typed_pattern: "are not of whole numbers of pairs",
    value_outside_its_interval: "accuracy_subset is 0.0, outside its interval",
    replicates_of_a_winner: "its replicates give",
    labels_of_fewer_pairs: "n is 10, the test split of synthetic@1.0.0 has 1834 pairs",
    labels_with_other_positives: "nuclear: n_positive is 5, the labels of synthetic@1.0.0 have",
    threshold_that_is_no_number: "per_pattern.nuclear.threshold: expected a number",
    curves_of_another: "nuclear: curves with values outside 0 to 1",
    stored_twice: "its results are stored twice",
    number_twice: "results.json: not as this package writes it",
    unknown_dataset: "no dataset named 'mine'",
    unknown_version: "dataset synthetic has no version '1.0.1'",
    another_protocol: "give it the name predictions/synthetic/test-seed0-transfer-wide.parquet",
    result_of_another_method: "my_method: scores differ from results.json",
    address_that_does_not_answer: f"not scored: my_method/{TEST}: could not fetch",
    file_that_is_gone: "the prediction file is gone",
}


def edited_workflow(root: Path) -> None:
    (root / ".github" / "it.yml").write_text("on: push\n")


def new_workflow(root: Path) -> None:
    (root / ".github" / "mine.yml").write_text("on: pull_request\n")


def removed_workflow(root: Path) -> None:
    shutil.rmtree(root / ".github")


def linked_workflow(root: Path) -> None:
    (root / ".github").rename(root / "leaderboard" / "it")
    (root / ".github").symlink_to("leaderboard/it")


def new_makefile(root: Path) -> None:
    (root / "Makefile").write_text("test:\n\ttrue\n")


def new_hidden_folder(root: Path) -> None:
    (root / ".ci").mkdir()


def another_board(root: Path) -> None:
    (root / "leaderboard" / "index2.html").write_text("F1: 99 %")


def edited_readme(root: Path) -> None:
    (root / "submissions" / "README.md").write_text("F1: 99 %")


def edited_template(root: Path) -> None:
    """People copy it, and run it."""
    (root / "submissions" / "_template").mkdir()
    (root / "submissions" / "_template" / "run.py").write_text("import os")


def methods_of_others(root: Path) -> None:
    for name in ("a", "b"):
        folder = root.parent / "base" / "submissions" / name
        folder.mkdir(parents=True)
        (folder / "submission.yaml").write_text("")


MORE = (
    another_board,
    edited_readme,
    edited_template,
    methods_of_others,
    edited_workflow,
    new_workflow,
    removed_workflow,
    linked_workflow,
    new_makefile,
    new_hidden_folder,
)


@pytest.mark.slow
class TestFalseNumbers:
    """What the first board let pass, tried by hand on commit 1d95d5f.

    `leaderboard --check --rescore` ended with exit code 0 on a typed F1 of SPRAWL on u2os_gold (22
    of 101 files were scored), and on typed results of `synthetic` whose files were listed at an
    address that does not answer. A folder `synthetic@1.0.0` was loaded for the dataset, and numba
    ran what lay in a folder that `.numba_config.yaml` named.
    """

    def test_an_honest_submission_passes(self, checkout):
        assert checkout.check() == ("", "")

    @pytest.mark.parametrize("attack", FALSE_NUMBERS, ids=lambda attack: attack.__name__)
    def test_are_refused(self, checkout, attack):
        attack(checkout)
        with suppress(Exception):  # of some there can be no board
            checkout.make_board()  # so that nothing else differs
        step, said = checkout.check()
        assert FALSE_NUMBERS[attack] in said
        assert step in (
            "The board is what the submissions give",
            "Scores are those of the prediction files",
        )

    @pytest.mark.parametrize(
        "attack",
        [typed_average, labels_of_fewer_pairs, replicates_of_a_winner, stored_twice],
        ids=lambda attack: attack.__name__,
    )
    def test_need_no_dataset_to_be_found(self, checkout, attack, monkeypatch):
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(checkout.root / "no data"))
        attack(checkout)
        assert FALSE_NUMBERS[attack] in "\n".join(
            problems_of(read_submissions(checkout.mine.parent))
        )
        assert not (checkout.root / "no data").exists()

    def test_of_a_dataset_that_is_not_here_are_not_believed(self, checkout, monkeypatch):
        """Typed results of a real dataset stood, because nobody could score them again."""
        shutil.copytree(REPOSITORY / "submissions" / "sprawl", checkout.mine.with_name("sprawl"))
        checkout.make_board()
        monkeypatch.setenv("GPATTERN_BENCH_DATA", str(checkout.root / "data"))
        monkeypatch.setenv("GPATTERN_BENCH_OFFLINE", "1")
        step, said = checkout.check()
        assert step == "Scores are those of the prediction files"
        name = "sprawl/predictions/u2os_gold/test-seed0.parquet"
        assert f"not scored: {name}: u2os_gold@1.0.0 is not here; gpattern-bench download" in said

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"seed": 2**60}, "seed = 1152921504606846976; expected a name"),
            (
                {"protocol": "transfer", "trained_on": ["x@[x](https://example.org)"]},
                "the board cannot hold what its metadata says (0.trained_on",
            ),
        ],
        ids=["a seed beyond JSON", "a training set that is a link"],
    )
    def test_metadata_that_no_result_can_hold_are_refused(self, checkout, values, told):
        """They were scored; writing and comparing the results then ended in a traceback."""
        of_metadata(checkout, **values)
        code, said = checkout.cli("leaderboard", "--rescore", "--submissions", checkout.mine.parent)
        assert (code, told in said) == (2, True), said

    @pytest.fixture
    def with_workflow(self, checkout) -> Checkout:
        """The same, with a workflow on both sides."""
        for side in ("base", "submitted"):
            (checkout.root / side / ".github").mkdir()
            (checkout.root / side / ".github" / "it.yml").write_text("on: pull_request\n")
        return checkout

    def test_an_honest_submission_leaves_all_else_alone(self, with_workflow):
        assert with_workflow.check() == ("", "")

    @pytest.mark.parametrize("change", MORE, ids=lambda change: change.__name__)
    def test_a_submission_changes_nothing_else(self, with_workflow, change):
        change(with_workflow.root / "submitted")
        step, _ = with_workflow.check()
        assert step == "What only maintainers change is as on the base branch"

    @pytest.mark.parametrize("name", KEPT)
    def test_what_maintainers_keep_is_theirs(self, checkout, name):
        with (checkout.board / name).open("a") as file:
            file.write("\n")
        step, said = checkout.check()
        assert (step, name in said) == (
            "What only maintainers change is as on the base branch",
            True,
        )

    def test_the_results_of_the_repository_are_possible(self):
        assert impossible(read_submissions(REPOSITORY / "submissions")) == []

    @pytest.mark.parametrize(
        "scores",
        ["0", "rng.random(n) > 0.5", "truth", "1 - truth"],
    )
    def test_whatever_was_scored_is_possible(self, checkout, scores):
        dataset, rng = load_dataset("synthetic"), np.random.default_rng(0)
        for split in ("val", "test"):
            labels = dataset.labels(split)
            table = labels[["cell_id", "gene"]].astype(str)
            for pattern in dataset.patterns:
                names = {"n": len(labels), "truth": labels[pattern], "rng": rng}
                table[pattern] = np.float32(eval(scores, names))
            path = checkout.mine / TEST.replace("test-", f"{split}-")
            write_predictions(path, table, dataset, split, method="my_method")
        checkout.list_files()
        [submission] = read_submissions(checkout.mine.parent)
        submission.write_results(submission.rescored()[0])
        assert problems_of(read_submissions(checkout.mine.parent)) == []


class TestCounts:
    @pytest.mark.parametrize("entry", [e for e in registry() if e.test], ids=lambda e: e.id)
    def test_of_the_registry_are_of_its_patterns(self, entry):
        assert tuple(sorted(entry.test)) == tuple(sorted(("pairs", *entry.recipe.patterns)))

    def test_every_dataset_with_pinned_labels_has_some(self):
        pinned = {entry.id for entry in registry() if "labels" in entry.content_sha256}
        assert pinned == {entry.id for entry in registry() if entry.test}

    def counts(self, name: str) -> dict[str, int]:
        dataset = load_dataset(name)
        labels = dataset.labels("test")
        found = {pattern: int(labels[pattern].sum()) for pattern in dataset.patterns}
        return {"pairs": len(labels), **found}

    @pytest.mark.slow
    def test_are_those_of_synthetic(self):
        assert self.counts("synthetic") == dict(find_entry("synthetic").test)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["nih3t3_gold", "u2os_gold", "cosmx_lung_mini"])
    def test_are_those_of_real_datasets(self, name, mirror):
        assert self.counts(name) == dict(find_entry(name).test)


# Results that nobody else can compute


@pytest.mark.slow
class TestNotVerified:
    @pytest.fixture
    def full(self, checkout) -> Checkout:
        """Scores of a release without checksums, typed so that all invariants hold."""
        (checkout.mine / FULL).parent.mkdir()
        for split in ("val", "test"):
            table = pq.read_table(checkout.mine / TEST.replace("test-", f"{split}-"))
            key = b"gpattern_bench"
            origin = json.loads(table.schema.metadata[key]) | {"dataset": "nih3t3"}
            table = table.replace_schema_metadata({key: json.dumps(origin)})
            pq.write_table(table, checkout.mine / FULL.replace("test-", f"{split}-"))
        checkout.list_files()
        hashes = {
            split: file_sha256(checkout.mine / FULL.replace("test-", f"{split}-"))
            for split in ("test", "val")
        }

        def add(results):
            entry = json.loads(json.dumps(results[0]))
            entry |= {"dataset": "nih3t3", "predictions": FULL, "sha256": hashes}
            results.append(entry)

        checkout.edit_results(add)
        checkout.make_board()
        return checkout

    def row(self, it: Checkout, dataset: str = "nih3t3") -> dict:
        board = json.loads((it.board / "leaderboard.json").read_text("utf-8"))
        [table] = [table for table in board["tables"] if table["dataset"] == dataset]
        return table["rows"][0]

    def test_has_no_rank(self, full):
        assert full.check() == ("", "")
        row = self.row(full)
        assert (row["status"], row["rank"], row["tie_group"]) == ("not verified", None, None)
        assert self.row(full, "synthetic")["rank"] == 1
        text = (full.board / "LEADERBOARD.md").read_text("utf-8")
        assert "My method (not verified)" in text
        assert "have no rank: the check cannot make this dataset" in text
        page = (full.board / "index.html").read_text("utf-8")
        assert page.count("not verified, so not ranked") >= 1

    def test_stands_below_what_is_verified_and_marks_nothing(self, full):
        found = read_submissions(full.mine.parent)
        better = metadata_of("better", label="Better")
        twin = Submission(
            full.mine, better, [r for r in found[0].results if r["predictions"] == FULL]
        )
        table = build_board([*found, twin], unverified={("better", FULL)}).tables[0]
        assert [(row.method, row.rank) for row in table.rows] == [
            ("my_method", 1),
            ("better", None),
        ]
        assert "(not verified)" in markdown(build_board([twin], unverified={("better", FULL)}))
        assert (
            "**"
            not in markdown(build_board([twin], unverified={("better", FULL)})).split("|---")[-1]
        )

    def record(self, it: Checkout) -> list[dict]:
        """What `--record` writes where the dataset is: here it is `synthetic` under its name."""
        from gpattern_bench.board.verified import record_verified

        found = read_submissions(it.mine.parent)
        assert record_verified(found, [("my_method", FULL), ("my_method", TEST)], it.board) == 1
        return json.loads((it.board / VERIFIED).read_text("utf-8"))

    def test_is_ranked_once_a_maintainer_has_recorded_it(self, full):
        [record] = self.record(full)
        assert record["sha256"]["test"] == file_sha256(full.mine / FULL)
        assert record["dataset"] == "nih3t3@1.0.0"
        full.make_board()
        assert (self.row(full)["status"], self.row(full)["rank"]) == ("measured", 1)

    def test_a_record_in_a_pull_request_does_not_count(self, full):
        self.record(full)
        full.make_board()
        step, said = full.check()
        assert (step, VERIFIED in said) == (
            "What only maintainers change is as on the base branch",
            True,
        )

    def test_a_record_is_of_one_result_only(self, full):
        self.record(full)

        def change(results):
            [of_full] = [r for r in results if r["dataset"] == "nih3t3"]
            of_full["seconds"] = 0.001

        full.edit_results(change)
        full.make_board()
        assert self.row(full)["status"] == "not verified"

    def test_a_damaged_record_is_an_error(self, full):
        (full.board / VERIFIED).write_text('[{"method": "my_method"}]')
        step, said = full.check()
        assert step
        full.root.joinpath("base/leaderboard", VERIFIED).write_text('[{"method": "my_method"}]')
        step, said = full.check()
        assert (step, f"{VERIFIED}: 1 problem" in said) == (
            "The board is what the submissions give",
            True,
        )

    @pytest.mark.parametrize("words", ["--record", "--check --rescore --record"])
    def test_only_scoring_records(self, checkout, words):
        code, said = checkout.cli("leaderboard", *words.split())
        assert (code, "--record needs --rescore, and no --check" in said) == (2, True)


# Folders that pretend to be datasets


class TestFolders:
    @pytest.fixture
    def pretender(self, tmp_path, monkeypatch) -> Path:
        """The current folder holds tables named as registered datasets, and `mine`."""
        small = small_dataset(tmp_path, "mine")
        for name in ("synthetic", "synthetic@1.0.0", "synthetic@9.0.0"):
            shutil.copytree(small.folder, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("name", ["synthetic", "synthetic@1.0.0"])
    def test_are_not_taken_for_registered_names(self, pretender, name):
        assert load_dataset(name).id == "synthetic@1.0.0"

    def test_are_not_taken_for_unknown_versions(self, pretender):
        with pytest.raises(Exception, match=r"no version '9\.0\.0'"):
            load_dataset("synthetic@9.0.0")

    @pytest.mark.parametrize("name", ["mine", "./synthetic", "./synthetic@1.0.0"])
    def test_of_other_names_and_with_a_path_load(self, pretender, name):
        assert load_dataset(name).id == "mine@1.2.0"

    def test_as_paths_load(self, pretender):
        assert load_dataset(Path("synthetic@1.0.0")).id == "mine@1.2.0"

    @pytest.mark.parametrize("word", ["info", "cite"])
    def test_are_not_described_for_them(self, pretender, word, command):
        code, out, err = command(word, "synthetic@1.0.0")
        assert not code, err
        assert "Generated by this package" in out

    @pytest.mark.slow
    def test_do_not_change_scores(self, checkout, pretender):
        assert checkout.check() == ("", "")  # the folder of `pretender` is that of the checkout
        os.chdir(pretender)
        assert (
            checkout.cli(
                *("leaderboard", "--check", "--rescore"),
                *("--submissions", "submitted/submissions", "--out", "submitted/leaderboard"),
            )[0]
            == 0
        )

    @pytest.mark.slow
    def test_and_changed_tables_are_found_whatever_the_manifest_says(
        self, checkout, tmp_path, monkeypatch
    ):
        folder = tmp_path / "data" / "synthetic" / "1.0.0"
        shutil.copytree(load_dataset("synthetic").folder, folder)
        path = folder / "labels.parquet"
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(k) for k in range(file.num_row_groups)]
            schema = file.schema_arrow
        with pq.ParquetWriter(path, schema) as writer:
            for group in groups:
                at = schema.get_field_index("nuclear")
                other = np.invert(group["nuclear"].to_numpy())
                writer.write_table(group.set_column(at, schema.field(at), [other]))
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        facts = manifest["files"]["labels.parquet"]
        facts |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for told in (facts["content_sha256"], table_sha256(path)):
            facts["content_sha256"] = told  # first the true labels', then that of these
            (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
            monkeypatch.setenv("GPATTERN_BENCH_DATA", str(tmp_path / "data"))
            assert checkout.check()[0]  # the gallery, of the labels, is another
            os.chdir(tmp_path / "submitted")
            code, said = checkout.cli("leaderboard", "--check", "--rescore")
            assert (code, "labels.parquet: the registry pins 63fe6115c0fc" in said) == (2, True)


# Addresses


@pytest.mark.slow
@pytest.mark.parametrize("tries", [1, 4])
def test_an_address_that_never_answers_is_asked_in_one_go(checkout, monkeypatch, tries):
    """It took four minutes for each file, and the same again for its copies."""
    monkeypatch.setattr("gpattern_bench.sources.public.check_public", lambda _: None)
    monkeypatch.setattr("gpattern_bench.sources.http.CONNECT_S", 0.2)
    budget = 0 if tries == 1 else PATIENCE_S
    monkeypatch.setattr("gpattern_bench.sources.fetch.LONGEST_STRANGER_S", budget)
    with socket.create_server(("127.0.0.1", 0)) as server:
        files = [file.model_dump(exclude_none=True) for file in listed_files(checkout.mine)]
        for file in files:
            file["url"] = f"https://127.0.0.1:{server.getsockname()[1]}/{file['path']}"
            (checkout.mine / file["path"]).unlink()
        checkout.edit_yaml(files=files)
        checkout.make_board()
        step, said = checkout.check()
        server.setblocking(False)
        asked = 0
        with suppress(BlockingIOError):
            while True:
                server.accept()[0].close()
                asked += 1
    assert step == "Scores are those of the prediction files"
    assert f"not scored: my_method/{TEST}: could not fetch" in said
    assert said.count("Traceback") == 0
    assert asked == tries  # of the val file, nothing is asked then


# Code


class _Marks:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


COMPILE = """
import numpy as np
from gpattern_bench.evaluate.threshold_sweep import sorted_keys
print(sorted_keys(np.array([True, False]), np.array([0.5, 0.25], np.float32))[1:])
"""
PLAIN = """
from numba import njit

@njit(cache=True)
def one():
    return 1

print(one())
"""


@pytest.mark.slow
class TestCode:
    """numba unpickles its cache before it compares anything; the current folder could name it."""

    def run(self, folder: Path, *command: object, **environment: str) -> str:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=clean
            | {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")}
            | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def plant(self, folder: Path, *command: object) -> Path:
        """A cache of what the command compiles, each index of which makes a file when read."""
        self.run(folder, *command, NUMBA_CACHE_DIR=str(folder / "evil"))
        marker = folder / "ran"
        indices = list((folder / "evil").rglob("*.nbi"))
        assert indices
        for index in indices:
            index.write_bytes(pickle.dumps(_Marks(marker)))
        (folder / ".numba_config.yaml").write_text("cache_dir: evil\n")
        return marker

    def test_would_run_where_numba_is_imported_as_it_is(self, tmp_path):
        (tmp_path / "plain.py").write_text(PLAIN)
        marker = self.plant(tmp_path, "plain.py")
        self.run(tmp_path, "plain.py")
        assert marker.exists()

    def test_does_not_run_here(self, tmp_path):
        marker = self.plant(tmp_path, "-c", COMPILE)
        assert self.run(tmp_path, "-c", COMPILE) == "(0, -1)\n"
        assert not marker.exists()
        kept = list((tmp_path / "cache" / "gpattern-bench" / "compiled").rglob("*.nbi"))
        assert kept  # in the user's cache, not in the current folder

    def test_does_not_run_if_numba_was_imported_before(self, tmp_path):
        marker = self.plant(tmp_path, "-c", COMPILE)
        self.run(tmp_path, "-c", "import numba\n" + COMPILE)
        assert not marker.exists()

    @pytest.mark.parametrize("text", ["- a list", "cache_locator_classes: this.that\n"])
    def test_no_settings_of_the_current_folder_are_read(self, tmp_path, text):
        (tmp_path / ".numba_config.yaml").write_text(text)
        assert self.run(tmp_path, "-c", COMPILE) == "(0, -1)\n"

    def test_what_the_user_has_set_stays(self, tmp_path):
        self.run(tmp_path, "-c", COMPILE, NUMBA_CACHE_DIR=str(tmp_path / "mine"))
        assert list((tmp_path / "mine").rglob("*.nbi"))

    def test_every_module_takes_njit_from_one_place(self):
        found = [
            path.name
            for path in (REPOSITORY / "gpattern_bench").rglob("*.py")
            if re.search(r"^\s*(from|import) numba\b", path.read_text("utf-8"), re.MULTILINE)
        ]
        assert found == ["compiled.py"]


@pytest.mark.slow
class TestShell:
    """The workflow as it is, but for the installation."""

    def run(self, root: Path) -> tuple[str, str]:
        programs = root / "programs"
        programs.mkdir()
        program = programs / "gpattern-bench"
        code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
        code += "from gpattern_bench.cli import main; main()"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{code}" "$@"\n')
        program.chmod(0o755)
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        for step in steps():
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
                cwd=root / step.get("working-directory", "."),
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            if done.returncode:
                return step["name"], done.stdout + done.stderr
        return "", ""

    def test_of_a_shell_an_honest_submission_passes_whatever_lies_beside_it(self, checkout, mirror):
        submitted = checkout.root / "submitted"
        marker = checkout.root / "ran"
        module = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
        for name in ("sitecustomize.py", "gpattern_bench.py", "numba.py", "yaml.py", "conftest.py"):
            for folder in (submitted, submitted / "submissions", checkout.mine):
                (folder / name).write_text(module)
        (submitted / ".numba_config.yaml").write_text("- a list")
        shutil.copytree(checkout.mine, submitted / "synthetic@1.0.0")
        (checkout.root / "base" / "submissions").mkdir()
        for path in [*submitted.iterdir(), *submitted.glob("submissions/*.py")]:
            if path.name not in ("submissions", "leaderboard"):  # as if all of it were merged
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, checkout.root / "base" / path.relative_to(submitted))
        assert self.run(checkout.root) == ("", "")
        assert not marker.exists()


class TestWorkflow:
    def test_provides_every_dataset_that_the_check_expects(self):
        [download] = [s["run"] for s in steps() if s["run"].startswith("gpattern-bench download")]
        provided = set(download.split()[2:])
        expected = {e.name for e in registry() if e.is_pinned and e.files}
        assert expected <= provided  # simulated ones are made when they are needed
        [validate] = [s["run"] for s in steps() if "gpattern-bench validate" in s["run"]]
        assert all(name in validate for name in expected)

    def test_runs_from_an_empty_folder(self):
        for step in steps():
            if "gpattern-bench" in step["run"]:
                assert step["working-directory"] == "empty"


# Texts

LABELS = {
    "markup": "<b>GPSNet</b>",
    "link": "[GPSNet](https://example.org)",
    "image": "![x](https://example.org/x.png)",
    "pipe": "A | 99.99",
    "heading": "# A",
    "code": "`A`",
    "mention": "@somebody",
    "address": "www.example.org",
    "emphasis": "*A*",
    "a mark of the board": "SPRAWL (Control)",
    "another mark of the board": "Mine ⚠",
    "two scripts": "GPSN\N{CYRILLIC SMALL LETTER IE}t",
    "right to left override": "A\N{RIGHT-TO-LEFT OVERRIDE}B",
    "zero width": "A\N{ZERO WIDTH SPACE}B",
    "joiner": "A\N{ZERO WIDTH JOINER}B",
    "control character": "A\x1b[31mB",
    "line break": "A\nB",
    "many spaces": "A  B",
    "no-break space": "A\N{NO-BREAK SPACE}B",
    "decomposed": "Le\N{COMBINING ACUTE ACCENT}",
    "full width": "\N{FULLWIDTH LATIN CAPITAL LETTER A}BC",
    "ligature": "\N{LATIN SMALL LIGATURE FI}sh",
    "mathematical": "\N{MATHEMATICAL BOLD CAPITAL A}BC",
    "stacked marks": "A" + "\N{COMBINING RING BELOW}" * 3,
    "too long": "A" * 61,
    "no letter": "123",
    "unassigned": "A\U000e0fff",
}
GOOD_LABELS = [
    "GPSNet, plain coordinates",
    "locFISH (t-SNE + k-means)",
    "Bento",
    "Méthode d'été",
    "Метод",
    "方法 ひらがな",
    "A & B",
]


class TestLabels:
    @pytest.mark.parametrize("name", LABELS)
    def test_that_could_be_something_else_are_refused(self, name):
        with pytest.raises(ValueError, match="label"):
            metadata_of("mine", label=LABELS[name])

    @pytest.mark.parametrize("label", GOOD_LABELS, ids=range(len(GOOD_LABELS)))
    def test_that_are_names_pass(self, label):
        assert check_label(label) == label

    @pytest.mark.parametrize(
        "label",
        [
            "gpsnet",
            "GPS-Net",
            "GPS Net",
            "GPSN\N{CYRILLIC SMALL LETTER IE}t",
            "GP5Net",
            "(GPSNet)",
        ],
        ids=range(6),
    )
    def test_that_look_like_another_are_named(self, label):
        [problem] = look_alikes([("gpsnet", "GPSNet"), ("copy", label)])
        assert problem.startswith("copy: the label")

    def test_of_the_repository_are_unlike(self):
        found = read_submissions(REPOSITORY / "submissions")
        labels = [(made.metadata.method, made.metadata.label) for made in found]
        assert look_alikes(labels) == []

    @pytest.mark.slow
    def test_that_look_alike_make_no_board(self, checkout):
        shutil.copytree(REPOSITORY / "submissions" / "gpsnet", checkout.mine.with_name("gpsnet"))
        checkout.edit_yaml(label="GPS Net")
        step, said = checkout.check()
        assert step
        assert "my_method: the label 'GPS Net' looks like 'GPSNet' of gpsnet" in said


FIELDS = {
    ("trained_on",): ["[x](https://example.org)@1.0.0"],
    ("date",): "[2026-01-01](https://example.org)",
    ("version",): "1.0.0 | 99",
    ("dataset",): "synthetic\n\n# Heading",
    ("device",): "CPU \N{RIGHT-TO-LEFT OVERRIDE}",
    ("labels_sha256",): "`",
    ("predictions",): "predictions/a/test-seed0.parquet\n",
    ("metrics", "clusters"): "<img src=x>",
    ("sha256",): {"test": "x"},
    ("flags",): ["\x1b[2J"],
}


@pytest.mark.slow
class TestFields:
    @pytest.mark.parametrize("where", FIELDS, ids=".".join)
    def test_of_machines_hold_nothing_else(self, checkout, where):
        *keys, last = where

        def change(results):
            inner = results[0]
            for key in keys:
                inner = inner[key]
            inner[last] = FIELDS[where]

        checkout.edit_results(change)
        step, said = checkout.check()
        assert step == "The board is what the submissions give"
        assert f"results.json: 0.{'.'.join(where)}" in said

    @pytest.mark.parametrize("key", ["summary", "contact", "reference", "code", "licence"])
    def test_of_people_hold_what_can_be_seen(self, checkout, key):
        checkout.edit_yaml(**{key: "A\N{RIGHT-TO-LEFT OVERRIDE}B"})
        step, said = checkout.check()
        assert step
        assert f"{key}: Value error, the character U+202E is not printable" in said

    @pytest.mark.parametrize("date", ["[x](y)", "2026-99-99"])
    def test_in_the_report_of_a_run_hold_nothing_else(self, checkout, date):
        path = checkout.mine / "predictions/synthetic/run-seed0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"date": date}))
        step, said = checkout.check()
        assert step == "Scores are those of the prediction files"
        assert "not the report of a run" in said


def test_text_keeps_line_breaks():
    assert check_text("a\n\tb") == "a\n\tb"


TEXTS = [
    "[a](https://example.org)",
    "![a](https://example.org/a.png)",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<!-- a",
    "<https://example.org>",
    "https://example.org www.example.org mailto:a@example.org",
    "a@example.org @somebody",
    "a | b \\| c \\\\| d",
    "`a | b` ``",
    "**a** __b__ _c_ ~~d~~ *e",
    "# a #",
    "a\n\n# b\n- c\n\n| d | e |\n|---|---|",
    "&lt;b&gt; &#91;a&#93;(b) &#x3c;",
    "[a]: https://example.org",
    "[^1] [ ] $x$",
    "\\[a](b) \\\\[c](d)",
    "a\\",
]


class Tags(HTMLParser):
    """Tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


class TestMarkdown:
    @pytest.fixture
    def render(self) -> Callable[[str], Tags]:
        renderer = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
        renderer.enable(["table", "strikethrough"])
        return lambda text: Tags(renderer.render(text))

    @pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
    def test_text_stays_text(self, render, text):
        found = render(f"before {escaped(text)} after")
        assert found.tags == ["p"]
        assert found.text.split() == ["before", *text.split(), "after"]

    @pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
    def test_and_one_cell_of_a_table_or_one_heading(self, render, text):
        found = render(f"## {escaped(text)}\n\n| a | b |\n|---|---|\n| {escaped(text)} | c |\n")
        rows = ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
        assert found.tags == ["h2", *rows]

    @pytest.mark.parametrize("text", ["https://a.b", "www.a.b", "@somebody", "a@b.c"])
    def test_nothing_that_a_forge_makes_a_link_of(self, text):
        assert text not in escaped(text)

    def test_names_of_datasets_stay_readable(self):
        assert escaped("nih3t3_gold@1.0.0, synthetic@1.0.0") == "nih3t3_gold@1.0.0, synthetic@1.0.0"

    @pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
    def test_every_text_of_a_row_goes_through_it(self, render, text):
        """Even if a text came past the checks of its form."""
        entry = json.loads((REPOSITORY / "submissions/sprawl/results.json").read_text("utf-8"))[0]
        entry |= {"trained_on": [text], "date": text, "flags": [text]}
        entry |= {"dataset": text, "version": text}
        entry["metrics"]["clusters"] = text
        honest = metadata_of("mine", rules_for=())
        about = Metadata.model_construct(**honest.__dict__ | {"label": text})
        page = markdown(build_board([Submission(Path("mine"), about, [entry])]))
        section = page.split("\n## ", 1)[1]
        found = render(f"## {section}")
        assert not {"a", "img", "script", "h1", "h3", "li", "blockquote"} & set(found.tags)
        assert found.tags.count("h2") == 1
        assert found.tags.count("tr") == 4  # of the summary and of all metrics
        heads = [line for line in section.splitlines() if line[:2] == "| "][::2]
        cells = [re.split(r"(?<!\\)(?:\\\\)*\|", head) for head in heads]
        assert found.tags.count("td") == sum(len(each) - 2 for each in cells)


def test_names_of_datasets_need_no_escape():
    assert all(escaped(name) == name for name in list_datasets())
