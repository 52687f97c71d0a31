"""From the template to the board, and every way in which a submission is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock
from pytest_httpserver import HTTPServer
from samples import PATIENCE_S

import gpattern_bench.board.submit
from gpattern_bench import load_dataset
from gpattern_bench.board.duplicates import flag_duplicates
from gpattern_bench.board.invariants import impossible
from gpattern_bench.board.metadata import Metadata, placeholders, schema_text
from gpattern_bench.board.submission import LARGEST, Submission, read_submissions
from gpattern_bench.board.submit import listed_files, submit_run
from gpattern_bench.errors import ChecksumError, FetchError, SubmissionError
from gpattern_bench.predictions import write_predictions
from gpattern_bench.runs.run import run_method

REPOSITORY = Path(__file__).resolve().parents[2]
SUBMISSIONS = REPOSITORY / "submissions"
FILLED = {
    "<my_method>": "my_method",
    "<My method>": "Radius regression",
    "<What it does, in one sentence.>": "It regresses on radii.",
    "<First Author>": "A. Author",
    "<where questions go>": "a@example.org",
    "<paper>": "none",
    "<address of the code>": "submissions/my_method/run.py",
    "<licence>": "MIT",
    "<model, baseline or control>": "model",
    "<[coordinates, cell outline]>": "[coordinates, cell outline]",
    "<[train]>": "[train]",
    "<true or false>": "true",
}
TEST = "predictions/synthetic/test-seed0.parquet"
VAL = "predictions/synthetic/val-seed0.parquet"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SUBMISSIONS.is_dir(), reason="the package is tested without its submissions"
    ),
]


def shell(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command of a person in a folder; stdout."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(path: Path) -> None:
    text = path.read_text("utf-8")
    for placeholder, value in FILLED.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What the README's steps give, in a folder without any other submission."""
    folder = tmp_path_factory.mktemp("clone")
    load_dataset("synthetic")  # so that the commands find it
    shutil.copytree(SUBMISSIONS / "_template", folder / "submissions" / "_template")
    readme = (SUBMISSIONS / "README.md").read_text("utf-8")
    [steps] = re.findall(r"```\n(.*?)```", readme, re.DOTALL)
    for line in steps.splitlines():
        words = line.split()
        if words[0] == "cp":
            shutil.copytree(folder / words[2], folder / words[3])
        elif words[0] == "#":
            fill(folder / "submissions" / "my_method" / "submission.yaml")
        elif words[0] == "python":
            shell(*words[1:], cwd=folder)
        else:
            assert words[0] == "gpattern-bench"
            shell("-m", "gpattern_bench", *words[1:], cwd=folder)
    return folder


@pytest.fixture(scope="module")
def second(made, tmp_path_factory) -> Path:
    """What its run.py writes for another seed."""
    folder = tmp_path_factory.mktemp("second")
    shell(made / "submissions/my_method/run.py", "--seeds", "1", "--out", "runs/more", cwd=folder)
    return folder


@pytest.fixture
def more(here, second) -> Path:
    """The copy and the current folder, with the run of another seed in `runs/more`."""
    shutil.copytree(second, here, dirs_exist_ok=True)
    return here


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(folder: Path, **values) -> None:
    """Change keys of the submission.yaml of my_method."""
    path = folder / "submissions" / "my_method" / "submission.yaml"
    found = yaml.safe_load(path.read_text("utf-8")) | values
    path.write_text(yaml.safe_dump(found), "utf-8")


def mine(folder: Path) -> Submission:
    return {s.metadata.method: s for s in read_submissions(folder / "submissions")}["my_method"]


class TestTemplate:
    def test_ends_on_the_board(self, made):
        board = json.loads((made / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        [row] = board["tables"][0]["rows"]
        assert (row["method"], row["label"]) == ("my_method", "Radius regression")
        assert row["rank"] == 1
        assert row["auc_macro"] > 0.7
        assert row["f1_val_macro"] is not None
        assert "Radius regression" in (made / "leaderboard" / "LEADERBOARD.md").read_text("utf-8")

    def test_what_it_cost_was_measured(self, made):
        run = json.loads(
            (made / "submissions/my_method/predictions/synthetic/run-seed0.json").read_text()
        )
        assert set(run["seconds"]) == {"fit", "val", "test"}
        assert run["peak_rss_mib"] > 50
        assert run["parameters"] == 16  # four patterns, three quantiles and a constant
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
        board = json.loads((made / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        [row] = board["tables"][0]["rows"]
        assert row["seconds"] == run["seconds"]["test"]
        assert row["fit_seconds"] == run["seconds"]["fit"]
        assert (row["parameters"], row["date"]) == (16, run["date"])
        assert row["cpu_seconds"] == run["cpu_seconds"]["test"]
        assert row["cpu_fit_seconds"] == run["cpu_seconds"]["fit"]
        assert row["versions"] == run["versions"]

    def test_its_comments_stay(self, made):
        text = (made / "submissions/my_method/submission.yaml").read_text("utf-8")
        assert "# Whether the same seed gives the same scores." in text

    def test_has_every_key_with_a_comment(self):
        text = (SUBMISSIONS / "_template" / "submission.yaml").read_text("utf-8")
        assert list(yaml.safe_load(text)) == list(Metadata.model_fields)
        lines = text.splitlines()
        for key in Metadata.model_fields.keys() - {"authors", "files"}:
            above = lines[next(i for i, x in enumerate(lines) if x.startswith(f"{key}:")) - 1]
            assert above.startswith("#"), key

    def test_its_placeholders_are_those_that_are_filled(self):
        text = (SUBMISSIONS / "_template" / "submission.yaml").read_text("utf-8")
        assert set(placeholders(yaml.safe_load(text)).values()) == set(FILLED)

    def test_undeclared_inputs_are_an_error(self, here):
        edit(here, inputs=["coordinates"], deterministic=True)
        before = everything(here)
        with pytest.raises(SubmissionError, match=r"cell outline changed the scores.*add them"):
            submit_run(here / "runs/my_method", here / "submissions/my_method")
        assert everything(here) == before
        edit(here, inputs=["coordinates", "cell outline", "nucleus outline"])  # more is no lie
        submit_run(here / "runs/my_method", here / "submissions/my_method")

    def test_scores_that_differ_are_not_deterministic(self, here):
        path = here / "runs/my_method/synthetic/run-seed0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"repeats": False}))
        with pytest.raises(SubmissionError, match="deterministic: true, but two scorings"):
            submit_run(here / "runs/my_method", here / "submissions/my_method")

    def test_unfilled_is_an_error_that_names_them(self, here, command):
        shutil.copy("submissions/_template/submission.yaml", "submissions/my_method")
        before = everything(here)
        code, _, err = command("submit", "runs/my_method", "--to", "submissions/my_method")
        assert code == 2
        assert "12 problems" in err
        for expected in ("label: replace <My method> with yours", "authors.0: replace <First"):
            assert expected in err
        assert everything(here) == before

    def test_is_put_where_there_is_no_yaml(self, here):
        shutil.rmtree(here / "submissions" / "my_method")
        with pytest.raises(SubmissionError, match="the template is copied there") as caught:
            submit_run(here / "runs/my_method", here / "submissions/my_method")
        assert len(caught.value.problems) == 13
        fill(here / "submissions" / "my_method" / "submission.yaml")
        assert len(submit_run(here / "runs/my_method", here / "submissions/my_method").files) == 2


class TestSubmit:
    def submit(self, here: Path, run: str = "runs/my_method") -> Metadata:
        return submit_run(here / run, here / "submissions" / "my_method")

    def test_again_changes_nothing(self, here):
        before = everything(here)
        self.submit(here)
        assert everything(here) == before

    def test_from_its_own_predictions_lists_them_again(self, here):
        before = everything(here)
        self.submit(here, "submissions/my_method/predictions")
        assert everything(here) == before

    def test_a_second_seed_is_added(self, more):
        metadata = self.submit(more, "runs/more")
        assert metadata.seeds == (0, 1)
        assert len(metadata.files) == 4
        assert mine(more).unlisted() == []
        assert mine(more).stale() == [
            "my_method/predictions/synthetic/test-seed1.parquet: not scored yet"
        ]

    def test_scores_after_other_training_with_the_same_name_stay(self, here):
        dataset = load_dataset("synthetic")

        def run_after(training: str) -> str:
            for split in ("val", "test"):
                write_predictions(
                    here / f"runs/other/synthetic/{split}-seed0-fit-wide.parquet",
                    dataset.pairs(split).assign(**dict.fromkeys(dataset.patterns, 0.5)),
                    dataset,
                    split,
                    method="my_method",
                    trained_on=["synthetic@1.0.0", training],
                )
            return "runs/other"

        assert len(self.submit(here, run_after("wide@1.0.0")).files) == 4
        before = everything(here / "submissions")
        with pytest.raises(SubmissionError, match=r"after synthetic@1\.0\.0 and wide@1\.1\.0 have"):
            self.submit(here, run_after("wide@1.1.0"))
        assert everything(here / "submissions") == before

    def test_two_at_the_same_moment_both_end_up_in_it(self, more, monkeypatch):
        here = more
        other = threading.Thread(target=self.submit, args=(here, "runs/more"))
        listed = gpattern_bench.board.submit.listed_files
        acquire, waits = FileLock.acquire, threading.Event()

        def acquired(lock, *arguments, **options):
            if threading.current_thread() is other and lock.lock_file.endswith("my_method.lock"):
                waits.set()
            return acquire(lock, *arguments, **options)

        def meanwhile(*arguments):
            gpattern_bench.board.submit.listed_files = listed
            other.start()
            assert waits.wait(PATIENCE_S)
            other.join(0.2)
            assert other.is_alive()  # it has to wait for this one
            return listed(*arguments)

        monkeypatch.setattr(FileLock, "acquire", acquired)
        monkeypatch.setattr(gpattern_bench.board.submit, "listed_files", meanwhile)
        self.submit(here)
        other.join(PATIENCE_S)
        assert mine(here).metadata.seeds == (0, 1)
        assert mine(here).unlisted() == []

    def test_what_a_killed_one_left_is_removed(self, here):
        half = here / "submissions" / ".my_method-abcd1234" / "new"
        other = here / "submissions" / ".my_method-mine-abcd1234" / "new"
        only_copy = here / "submissions" / ".my_method-efgh5678" / "old"
        for folder in (half, other, only_copy):
            folder.mkdir(parents=True)
        self.submit(here)
        assert [folder.exists() for folder in (half, other, only_copy)] == [False, True, True]

    def test_of_a_method_that_ships_writes_its_metadata(self, here, command):
        from gpattern_bench.methods import get_method

        code, *_ = command("run", "sprawl", "--dataset", "synthetic", "--out", "runs/sprawl")
        code, out, _ = command("submit", "runs/sprawl", "--to", "submissions/sprawl")
        assert (code, "leaderboard --rescore" in out) == (0, True)
        found = {s.metadata.method: s for s in read_submissions(here / "submissions")}["sprawl"]
        assert found.metadata.with_files(()) == Metadata.of(get_method("sprawl").about)
        assert [file.path for file in found.metadata.files] == [TEST, VAL]

    def refused(self, here: Path, *expected: str, run: str = "runs/my_method") -> None:
        before = everything(here)
        with pytest.raises(SubmissionError) as caught:
            self.submit(here, run)
        for text in expected:
            assert re.search(text, str(caught.value)), f"{text} is not in {caught.value}"
        assert everything(here) == before

    def test_all_problems_at_once_and_nothing_written(self, here):
        folder = here / "runs" / "my_method" / "synthetic"
        table = pq.read_table(folder / "test-seed0.parquet")
        bad = pa.array(np.full(len(table), np.nan, np.float32))
        pq.write_table(
            table.set_column(2, table.schema.field(2), bad), folder / "test-seed0.parquet"
        )
        (folder / "val-seed0.parquet").unlink()
        (folder / "run-seed0.json").write_text("{}")
        edit(here, colour="red", kind="magic")
        self.refused(
            here,
            r"test-seed0.parquet: column \w+ has [\d,]+ scores that are NaN",
            "val-seed0.parquet is missing: predict the val split too",
            "run-seed0.json: not the report of a run",
            "colour: Extra inputs are not permitted",
            "kind: Input should be 'control'",
        )

    def test_no_run(self, here):
        self.refused(here, "has no prediction files", run="runs")

    def test_another_method(self, here):
        (here / "submissions" / "other").mkdir()
        shutil.copy(here / "submissions/my_method/submission.yaml", here / "submissions/other")
        with pytest.raises(SubmissionError, match="'my_method', expected those of 'other'"):
            submit_run(here / "runs" / "my_method", here / "submissions" / "other")

    def test_the_oracle_on_real_data(self, here, monkeypatch):
        dataset = load_dataset("synthetic")
        run_method("oracle", dataset, here / "runs" / "oracle")
        submit_run(here / "runs" / "oracle", here / "submissions" / "oracle")
        curation = dataset.manifest.curation.model_copy(update={"format": "bento-h5ad"})
        dataset.manifest = dataset.manifest.model_copy(update={"curation": curation})
        monkeypatch.setattr("gpattern_bench.board.submit.load_dataset", lambda name: dataset)
        with pytest.raises(SubmissionError, match="real labels are never committed"):
            submit_run(here / "runs" / "oracle", here / "submissions" / "oracle")

    def test_metadata_of_an_older_version_of_a_method_that_ships_is_renewed(self, here):
        run_method("sprawl", load_dataset("synthetic"), here / "submissions/sprawl/predictions")
        (here / "submissions/sprawl/submission.yaml").write_text("method: sprawl\nlabel: SPRAWL\n")
        submit_run(here / "submissions/sprawl/predictions", here / "submissions" / "sprawl")
        assert len(read_submissions(here / "submissions")) == 2

    def test_another_name(self, here):
        folder = here / "runs" / "my_method" / "synthetic"
        (folder / "test-seed0.parquet").rename(folder / "test-seed7.parquet")
        self.refused(here, "its metadata gives it the name synthetic/test-seed0.parquet")

    def test_the_report_of_another_run(self, here):
        path = here / "runs/my_method/synthetic/run-seed0.json"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
        self.refused(here, "seed is 1, test-seed0.parquet says 0")

    def test_a_file_of_an_earlier_run_that_was_changed(self, more):
        with (more / "submissions/my_method" / TEST).open("ab") as file:
            file.write(b"x")
        self.refused(more, "not the bytes that submission.yaml lists", run="runs/more")

    def test_reports_of_older_versions_are_read(self, here):
        path = here / "runs/my_method/synthetic/run-seed0.json"
        report = json.loads(path.read_text())
        for key in ("parameters", "date", "cpu_seconds", "cpu_seconds_by_batch", "versions"):
            del report[key]
        path.write_text(json.dumps(report))
        self.submit(here)
        [score] = mine(here).rescored()[0]
        assert (score["parameters"], score["date"]) == (None, None)
        assert score["seconds"] == report["seconds"]["test"]
        assert not {"cpu_seconds", "cpu_fit_seconds", "versions"} & score.keys()

    def test_robustness_comes_along(self, here):
        report = {"f1_worst_drop": 0.025, "largest_change": 0.5, "further": [1]}
        path = here / "runs/my_method/synthetic/robustness-seed0.json"
        path.write_text(json.dumps(report))
        self.submit(here)
        [score] = mine(here).rescored()[0]
        assert score["robustness"] == {"f1_worst_drop": 0.025, "largest_change": 0.5}

    def test_robustness_of_another_form_is_an_error(self, here):
        path = here / "submissions/my_method/predictions/synthetic/robustness-seed0.json"
        path.write_text('{"f1_worst_drop": "much"}')
        with pytest.raises(SubmissionError, match="run gpattern-bench robustness again"):
            mine(here).rescored()


class TestListedFiles:
    def test_one_changed_byte_is_found(self, here, command):
        path = here / "submissions" / "my_method" / TEST
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        code, _, err = command("leaderboard", "--check")
        assert code == 1
        assert f"my_method/{TEST}: submission.yaml lists" in err

    def test_rescoring_does_not_bless_it(self, here, command):
        dataset = load_dataset("synthetic")
        scores = dataset.pairs("test").assign(**dict.fromkeys(dataset.patterns, 0.5))
        path = here / "submissions" / "my_method" / TEST
        write_predictions(path, scores, dataset, "test", method="my_method")
        before = everything(here)
        code, _, err = command("leaderboard", "--rescore")
        assert (code, "submission.yaml lists" in err) == (1, True)
        assert everything(here) == before

    def test_one_that_is_not_listed_is_found(self, here, command):
        edit(here, files=[], seeds=[])
        code, _, err = command("leaderboard", "--check")
        assert (code, err.count("does not list it; run gpattern-bench submit")) == (1, 2)

    def test_one_that_is_gone_is_found(self, here, command):
        (here / "submissions" / "my_method" / VAL).unlink()
        code, _, err = command("leaderboard", "--check")
        assert (code, f"{VAL}: is missing, and submission.yaml lists it" in err) == (1, True)

    def test_too_large_ones_are_to_be_published_elsewhere(self, here, monkeypatch):
        assert LARGEST == 20 * 2**20
        monkeypatch.setattr("gpattern_bench.board.submission.LARGEST", 1000)
        assert "add its address as `url`" in mine(here).unlisted()[0]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"path": "../other/test-seed0.parquet"}, "files.0.path: String should match"),
            ({"path": "predictions/../test-seed0.parquet"}, "files.0.path: String should match"),
            ({"sha256": "00"}, "files.0.sha256: String should match"),
            ({"bytes": -1}, "files.0.bytes: Input should be greater"),
            ({"url": "file:///etc/passwd"}, "files.0.url: String should match"),
            ({"size": 1}, "files.0.size: Extra inputs are not permitted"),
            ({"path": VAL}, "files: listed more than once"),
            ({"path": TEST.replace("0", "7")}, r"seeds: expected those of the files, \[0, 7\]"),
        ],
    )
    def test_wrong_entries_are_errors(self, here, change, expected):
        files = yaml.safe_load((here / "submissions/my_method/submission.yaml").read_text())[
            "files"
        ]
        edit(here, files=[files[0] | change, *files[1:]])
        with pytest.raises(SubmissionError, match=expected):
            read_submissions(here / "submissions")


MIRRORED = "submissions/my_method"


class TestAddresses:
    @pytest.fixture
    def afar(self, here, command, httpserver: HTTPServer, monkeypatch) -> Path:
        """The same submission with its files at an address, which a mirror on loopback has."""
        monkeypatch.setattr("gpattern_bench.sources.http.BACKOFF_S", 0.01)
        monkeypatch.setattr("gpattern_bench.board.submission.cache_root", lambda: here / "cache")
        monkeypatch.setenv("GPATTERN_BENCH_MIRROR", httpserver.url_for(""))
        home = here / "submissions" / "my_method"
        files = []
        for file in listed_files(home):
            httpserver.expect_request(f"/{MIRRORED}/{file.path}").respond_with_data(
                (home / file.path).read_bytes()
            )
            files.append(file.model_dump() | {"url": f"https://example.org/{file.path}"})
            (home / file.path).unlink()
        edit(here, files=files)
        assert command("leaderboard")[0] == 0
        return here

    def test_need_no_network_to_be_checked(self, afar, command, httpserver):
        assert command("leaderboard", "--check")[0] == 0
        assert httpserver.log == []

    def test_are_fetched_checked_and_kept_to_be_scored(self, afar, command, httpserver):
        stored = (afar / "submissions/my_method/results.json").read_bytes()
        (afar / "submissions/my_method/results.json").unlink()
        assert command("leaderboard", "--rescore")[0] == 0
        assert (afar / "submissions/my_method/results.json").read_bytes() == stored
        assert command("leaderboard", "--check", "--rescore")[0] == 0
        assert len(httpserver.log) == 2  # once each
        assert (afar / "cache/submissions/my_method" / TEST).is_file()

    def test_other_bytes_are_an_error(self, afar, httpserver):
        httpserver.clear()
        httpserver.expect_request(f"/{MIRRORED}/{TEST}").respond_with_data(b"PAR1 other PAR1")
        with pytest.raises(ChecksumError, match="got 15"):
            mine(afar).rescored()

    def test_no_answer_is_an_error_if_it_was_never_scored(self, afar, httpserver):
        httpserver.clear()
        httpserver.expect_request(f"/{MIRRORED}/{TEST}").respond_with_data(b"", status=404)
        submission = mine(afar)
        results, [skipped] = submission.rescored()
        assert results == submission.results
        assert (skipped.name, skipped.pinned) == (f"my_method/{TEST}", True)
        assert "HTTP 404" in skipped.reason
        (afar / "submissions/my_method/results.json").unlink()
        with pytest.raises(FetchError, match="HTTP 404"):
            mine(afar).rescored()

    def test_no_answer_is_an_error_of_a_check_that_scores(self, afar, command, httpserver):
        httpserver.clear()
        httpserver.expect_request(f"/{TEST}").respond_with_data(b"", status=404)
        assert command("leaderboard", "--check")[0] == 0
        code, _, err = command("leaderboard", "--check", "--rescore")
        assert (code, f"not scored: my_method/{TEST}: could not fetch" in err) == (1, True)

    def test_another_hash_than_the_scored_one_is_found(self, afar, command):
        files = [file.model_dump() for file in mine(afar).metadata.files]
        edit(afar, files=[files[0] | {"sha256": "0" * 64}, files[1]])
        code, _, err = command("leaderboard", "--check")
        assert (code, f"my_method/{TEST}: changed since it was scored" in err) == (1, True)

    def test_submitting_the_same_again_keeps_them_there(self, afar):
        before = mine(afar).metadata
        submit_run(afar / "runs" / "my_method", afar / "submissions" / "my_method")
        assert mine(afar).metadata == before
        assert not (afar / "submissions" / "my_method" / TEST).exists()


class TestMetadata:
    def values(self, **changes) -> dict:
        text = (SUBMISSIONS / "_template" / "submission.yaml").read_text("utf-8")
        for placeholder, value in FILLED.items():
            text = text.replace(placeholder, value)
        return yaml.safe_load(text) | changes

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"trained_on": ["train", "test"]}, "labels of test are never trained on"),
            ({"trained_on": []}, "or null if it learns nothing"),
            ({"parameters": 12}, "parameters\n  Extra inputs are not permitted"),
            ({"seconds": 1.0}, "seconds\n  Extra inputs are not permitted"),
            ({"status": "best"}, "'active', 'superseded' or 'withdrawn'"),
            ({"contact": "<where questions go>"}, "contact\n.*template's placeholder"),
            ({"contact": " "}, "contact\n.*expected your text"),
            ({"seeds": [3]}, r"expected those of the files, \[\], got \[3\]"),
        ],
    )
    def test_rules(self, changes, expected):
        Metadata.model_validate(self.values())
        with pytest.raises(ValueError, match=expected):
            Metadata.model_validate(self.values(**changes))

    @pytest.mark.parametrize("trained_on", [None, ["train"], ["train", "val"], ["simulated"]])
    def test_what_it_was_trained_on(self, trained_on):
        found = Metadata.model_validate(self.values(trained_on=trained_on)).trained_on
        assert found == (None if trained_on is None else tuple(trained_on))

    def test_the_schema_is_in_the_repository(self):
        assert (SUBMISSIONS / "schema.json").read_text("utf-8") == schema_text()

    def test_the_schema_describes_every_key(self):
        schema = json.loads(schema_text())
        assert schema["additionalProperties"] is False
        assert all("description" in value for value in schema["properties"].values())

    @pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_text("{}")])
    def test_another_schema_is_drift(self, here, command, change):
        change(here / "submissions" / "schema.json")
        code, _, err = command("leaderboard", "--check")
        assert (code, "schema.json is" in err) == (1, True)
        command("leaderboard")
        assert command("leaderboard", "--check")[0] == 0

    def test_every_submission_of_the_repository_lists_its_files(self):
        for submission in read_submissions(SUBMISSIONS):
            assert submission.unlisted() == []
            assert submission.metadata.files


class TestSameBytes:
    def test_whatever_the_order_of_the_rows(self, here):
        [before] = mine(here).rescored()[0]
        rng = np.random.default_rng(0)
        for name in (TEST, VAL):
            path = here / "submissions" / "my_method" / name
            table = pq.read_table(path)
            pq.write_table(table.take(rng.permutation(len(table))), path)
        [after] = mine(here).rescored()[0]
        assert before.pop("sha256") != after.pop("sha256")
        assert json.dumps(before) == json.dumps(after)

    @pytest.mark.parametrize(
        "environment",
        [
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "1", "NUMBA_NUM_THREADS": "1"},
            {"LC_ALL": "tr_TR.UTF-8", "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2"},
        ],
    )
    def test_whatever_the_locale_and_the_threads(self, here, environment):
        before = everything(here)
        shell("-m", "gpattern_bench", "leaderboard", "--rescore", cwd=here, **environment)
        assert everything(here) == before


class TestFlags:
    def flags(self, here: Path) -> dict[str, list[str]]:
        found = read_submissions(here / "submissions")
        scored = [(submission, submission.rescored()[0]) for submission in found]
        return {
            submission.metadata.method: [flag for score in results for flag in score["flags"]]
            for (submission, _), results in zip(scored, flag_duplicates(scored), strict=True)
        }

    def other(self, here: Path, change, **values) -> None:
        """A second submission, with what `change` makes of the scores of my_method."""
        home = here / "submissions" / "other"
        about = mine(here).metadata.model_copy(
            update={"method": "other", "label": "Other", **values}
        )
        dataset = load_dataset("synthetic")
        for split in dataset.splits[1:]:
            path = here / f"submissions/my_method/predictions/synthetic/{split}-seed0.parquet"
            scores = pq.read_table(path).to_pandas()
            scores[list(dataset.patterns)] = change(scores[list(dataset.patterns)])
            target = home / "predictions" / "synthetic" / path.name
            write_predictions(target, scores, dataset, split, method="other")
        about.with_files(tuple(listed_files(home))).write(home)

    def test_there_are_none_without_a_reason(self, here):
        rng = np.random.default_rng(0)
        self.other(here, lambda s: (s + 0.1 * rng.random(s.shape)) / 1.1)
        assert self.flags(here) == {"my_method": [], "other": []}

    def test_scores_that_rank_alike(self, here):
        self.other(here, lambda s: s**3)
        assert self.flags(here) == {
            "my_method": ["ranks the pairs as other does"],
            "other": ["ranks the pairs as my_method does"],
        }

    def test_constants_are_no_copies(self, here):
        self.other(here, lambda s: s * 0)
        assert self.flags(here) == {"my_method": [], "other": []}

    def test_too_good_an_auc(self, here):
        dataset = load_dataset("synthetic")
        path = here / "submissions" / "my_method" / TEST
        labels = dataset.labels("test").drop(columns=["fov", "n_molecules"], errors="ignore")
        labels = labels.astype(dict.fromkeys(dataset.patterns, np.float32))
        labels = labels[["cell_id", "gene", *dataset.patterns]]
        write_predictions(path, labels, dataset, "test", method="my_method")
        [score] = mine(here).rescored()[0]
        assert score["flags"] == ["AUC above 99.9 %"]
        score["flags"] = []
        assert "the flag is missing: AUC above 99.9 %" in "\n".join(
            impossible([replace(mine(here), results=[score])])
        )

    def test_are_on_the_board(self, here, command):
        self.other(here, lambda s: s**3, label="Copy")
        command("leaderboard", "--rescore")
        board = json.loads((here / "leaderboard" / "leaderboard.json").read_text("utf-8"))
        rows = {row["method"]: row for row in board["tables"][0]["rows"]}
        assert rows["other"]["flags"] == ["ranks the pairs as my_method does"]
        text = (here / "leaderboard" / "LEADERBOARD.md").read_text("utf-8")
        assert "| Copy ⚠ " in text
        assert "⚠ Copy: ranks the pairs as my_method does." in text
        assert command("leaderboard", "--check", "--rescore")[0] == 0


class TestWorkflow:
    @pytest.fixture
    def workflow(self) -> dict:
        path = REPOSITORY / ".github" / "workflows" / "submission.yml"
        return yaml.load(path.read_text("utf-8"), yaml.BaseLoader)  # `on` stays a word

    def test_runs_on_pull_requests_that_touch_submissions(self, workflow):
        paths = ["submissions/**", "leaderboard/**"]
        assert workflow["on"] == {"pull_request": {"paths": paths}}

    def test_can_only_read_and_has_no_secrets(self, workflow):
        text = (REPOSITORY / ".github" / "workflows" / "submission.yml").read_text("utf-8")
        assert workflow["permissions"] == {"contents": "read"}
        assert all("permissions" not in job for job in workflow["jobs"].values())
        assert "secrets." not in text
        assert "GITHUB_TOKEN" not in text
        assert "pull_request_target" not in text

    def test_installs_the_base_branch_and_runs_nothing_of_the_submission(self, workflow):
        steps = workflow["jobs"]["check"]["steps"]
        checkouts = {s["with"]["path"]: s["with"] for s in steps if "checkout" in s.get("uses", "")}
        assert checkouts["base"]["ref"] == "${{ github.event.pull_request.base.sha }}"
        assert all(given["persist-credentials"] == "false" for given in checkouts.values())
        for step in (step for step in steps if "run" in step):
            script = step["run"]
            assert "${{" not in script  # nothing of the pull request becomes code
            assert not re.search(r"\.py\b|\b(bash|sh|source|eval|make|pytest)\b|python", script)
            if "pip install" in script:
                assert "working-directory" not in step
                installed = re.findall(r"pip install (?:--constraint base/\S+ )?(\S+)", script)
                assert set(installed) == {"torch==2.13.0", '"./base[spatial]"'}
            elif "gpattern-bench" in script:
                assert step["working-directory"] == "empty"
            else:
                assert script == "mkdir empty" or "diff --recursive" in script

    def test_runs_the_commands_of_a_person(self, workflow):
        scripts = [step.get("run", "") for step in workflow["jobs"]["check"]["steps"]]
        where = "--submissions ../submitted/submissions --out ../submitted/leaderboard"
        assert f"gpattern-bench leaderboard --check {where}" in scripts
        assert f"gpattern-bench leaderboard --check --rescore {where}" in scripts
        assert any("gpattern-bench validate --dataset" in script for script in scripts)

    @pytest.mark.parametrize("name", ["submission.yml", "test.yml"])
    def test_actions_are_pinned(self, name):
        text = (REPOSITORY / ".github" / "workflows" / name).read_text("utf-8")
        uses = re.findall(r"uses: (\S+)", text)
        assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) for action in uses)
        assert len(uses) >= 2
