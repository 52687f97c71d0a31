"""Broken prediction files and broken submissions on the command line: exit code and words."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from broken import CORPUS, folder_instead, of_bytes, of_metadata, of_table, put
from samples import dataset_of, metadata_of, random_scores

from gpattern_bench import load_dataset
from gpattern_bench.board.leaderboard import build_board
from gpattern_bench.board.metadata import write_schema
from gpattern_bench.board.publish import write_board
from gpattern_bench.board.submission import Metadata, read_submissions
from gpattern_bench.board.submit import listed_files
from gpattern_bench.curate.simulate.cells import simulate
from gpattern_bench.data.dataset import Dataset
from gpattern_bench.predictions import write_predictions

pytestmark = pytest.mark.slow

GIB = 2**30


def refused(outcome: tuple[int, str], code: int, expected: str) -> None:
    found, err = outcome
    assert re.search(expected, err), err or "nothing was said"
    assert found == code, err
    assert err.startswith(("error: ", "warning: "))
    assert "Traceback" not in err


# Prediction files


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=3, n_genes=10, mean_molecules=60)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release, version="1.2.0")


@pytest.fixture(scope="module")
def valid(ds, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    return write_predictions(folder / "valid.parquet", random_scores(ds), ds, "test", method="mine")


@pytest.fixture
def good(valid, tmp_path) -> Path:
    return Path(shutil.copy(valid, tmp_path / "good.parquet"))


def sparse(begin: bytes = b"", end: bytes = b"") -> Callable[[Path], None]:
    """Two gigabytes that take no room, between two marks."""

    def spoil(path: Path) -> None:
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(2 * GIB)
            file.seek(-len(end), 2)
            file.write(end)

    return spoil


def typed(name: str, kind: pa.DataType, make: Callable[[object], object]) -> Callable[[Path], None]:
    """Replace a column by one of another type, value by value."""
    return put(name, lambda c: pa.array([make(value) for value in c.to_pylist()], kind))


def swapped(*names: str) -> Callable[[Path], None]:
    """Exchange the names of two columns."""
    other = dict(zip(names, reversed(names), strict=True))
    return of_table(lambda t: t.rename_columns([other.get(n, n) for n in t.column_names]))


def half_with_nan(column: pa.ChunkedArray) -> pa.Array:
    return pa.array(np.append(np.nan, column.to_numpy()[1:]).astype(np.float16))


def without_metadata(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def constant_and_damaged(path: Path) -> None:
    put("nuclear", lambda c: pa.array(np.full(len(c), 0.25, np.float32)))(path)
    of_table(lambda t: t[1:])(path)


FLOAT = pa.float32()
MORE = {
    # size
    "2 GB of nothing": (sparse(), r"not a Parquet file: it begins with b'\\x00"),
    "2 GB that begins like Parquet": (sparse(b"PAR1"), "truncated: its end is missing"),
    "2 GB between two marks": (sparse(b"PAR1", b"PAR1"), "the Parquet file is damaged"),
    "2 GB with a footer that is longer": (
        sparse(b"PAR1", (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
        "the Parquet file is damaged",
    ),
    # nested and other types
    "a struct": (
        typed("nuclear", pa.struct([("score", FLOAT)]), lambda v: {"score": v}),
        r"nuclear is struct<score: float>, expected float32; cast",
    ),
    "a list of structs": (
        typed("nuclear", pa.list_(pa.struct([("s", FLOAT)])), lambda v: [{"s": v}]),
        r"nuclear is list<.*struct<s: float>>, expected float32",
    ),
    "a list of fixed size": (
        typed("nuclear", pa.list_(FLOAT, 1), lambda v: [v]),
        r"nuclear is fixed_size_list<.*>\[1\], expected float32",
    ),
    "a map": (
        typed("nuclear", pa.map_(pa.string(), FLOAT), lambda v: [("s", v)]),
        r"nuclear is map<string, float.*>, expected float32",
    ),
    "all scores in one column": (
        of_table(
            lambda t: t.select(["cell_id", "gene"]).append_column(
                "scores", pa.array([[0.5] * 4] * len(t), pa.list_(FLOAT))
            )
        ),
        "4 columns are missing: cell_edge, cytoplasmic, nuclear, nuclear_edge",
    ),
    "ids in lists": (
        typed("cell_id", pa.list_(pa.string()), lambda v: [v]),
        r"cell_id is list<.*string>, expected text; cast the ids",
    ),
    "ids in structs": (
        typed("gene", pa.struct([("name", pa.string())]), lambda v: {"name": v}),
        r"gene is struct<name: string>, expected text",
    ),
    "ids as bytes": (
        typed("cell_id", pa.binary(), str.encode),
        "cell_id is binary, expected text",
    ),
    "ids as coded ints": (
        put("cell_id", lambda c: pa.array(np.arange(len(c)) % 3).dictionary_encode()),
        "cell_id is int64, expected text",
    ),
    "ids of type null": (put("gene", lambda c: pa.nulls(len(c))), "gene is null, expected text"),
    "decimal scores": (
        typed("nuclear", pa.decimal128(9, 2), lambda v: None),
        r"nuclear is decimal128\(9, 2\), expected float32",
    ),
    "dates": (
        typed("nuclear", pa.date32(), lambda v: None),
        r"nuclear is date32\[day\], expected float32",
    ),
    "float16 with NaN": (
        put("nuclear", half_with_nan),
        r"is float16, expected float32(.|\n)*1 score that is NaN, null or infinite",
    ),
    # rows and columns
    "cell and gene exchanged": (swapped("cell_id", "gene"), r"\d+ rows are of pairs not of this"),
    "cells in another order": (
        put("cell_id", lambda c: pa.array(c.to_pylist()[::-1])),
        "pairs? (is|are) missing",
    ),
    "an id and a score exchanged": (
        swapped("cell_id", "nuclear"),
        r"nuclear is string, expected float32(.|\n)*cell_id is float32, expected text",
    ),
    "a column without a name": (
        of_table(lambda t: t.append_column("", t["nuclear"])),
        "1 column too many: ; remove",
    ),
    "ids only": (
        of_table(lambda t: t.select(["cell_id", "gene"])),
        "4 columns are missing: cell_edge",
    ),
    "no columns": (of_table(lambda t: t.select([])), r"6 columns are missing: .*\(there are: \)"),
    "no metadata": (without_metadata, "no metadata `gpattern_bench` .*: .* write_predictions"),
    "a warning beside a problem": (
        constant_and_damaged,
        r"warning: column nuclear is constant \(0.25 .*\)\nerror: (.|\n)*1 pair is missing",
    ),
    "a split that is not there": (
        of_metadata(lambda m: m | {"split": "holdout"}),
        "says split = 'holdout', expected 'test'",
    ),
    "fitted on nothing": (
        of_metadata(lambda m: m | {"protocol": "transfer"}),
        "protocol = 'transfer' with trained_on = None; transfer and simulation name",
    ),
    "zeros between the marks": (
        of_bytes(lambda b: b[:4] + bytes(len(b) - 12) + b[-8:]),
        "the Parquet file is damaged",
    ),
    "text as Parquet": (of_bytes(lambda b: b"\n\n{}"), r"it begins with b'\{\}'"),
    "an Arrow file": (of_bytes(lambda b: b"ARROW1\0\0" + b[8:]), r"begins with b'ARROW1"),
}

# A file of another split is held against that split: its pairs then differ.
OTHER_WORDS = {"another split": r"pairs are missing(.|\n)*not of this split"}
FILES = CORPUS | MORE


def test_no_case_is_there_twice() -> None:
    assert not CORPUS.keys() & MORE.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused(cli, ds, good, name):
    spoil, expected = FILES[name]
    spoil(good)
    code = 1 if good.is_file() else 2
    outcome = cli("validate", good, "--dataset", ds.folder)
    refused(outcome, code, OTHER_WORDS.get(name, expected))
    assert str(good) in outcome[1]


@pytest.mark.parametrize("marks", [(b"", b""), (b"PAR1", b""), (b"PAR1", b"PAR1")])
def test_a_large_file_is_refused_without_reading_it(cli, ds, good, marks):
    before = pa.default_memory_pool().max_memory()  # of other tests
    sparse(*marks)(good)
    assert good.stat().st_size == 2 * GIB
    tracemalloc.start()
    try:
        assert cli("validate", good, "--dataset", ds.folder)[0] == 1
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert python < GIB / 32
    assert pa.default_memory_pool().max_memory() < max(before + 1, GIB / 4)


VALID = {
    "as it was": lambda path: None,
    "other order of rows": of_table(lambda t: t.take(pa.array(range(len(t))[::-1]))),
    "other order of columns": of_table(lambda t: t.select(t.column_names[::-1])),
    "coded ids": put("cell_id", lambda c: c.dictionary_encode()),
    "coded scores": put("nuclear", lambda c: c.dictionary_encode()),
    "large text": put("gene", lambda c: c.cast(pa.large_string())),
    "small row groups": lambda path: pq.write_table(pq.read_table(path), path, row_group_size=5),
    "no compression": lambda path: pq.write_table(pq.read_table(path), path, compression="none"),
    "zero and one": put("nuclear", lambda c: pa.array(np.arange(len(c)) % 2, FLOAT)),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_file_is_not(cli, ds, good, name):
    VALID[name](good)
    assert cli("validate", good, "--dataset", ds.folder) == (0, "")


# Submissions


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two submissions of random scores, one of them with val scores, and their board."""
    folder = tmp_path_factory.mktemp("made")
    dataset = load_dataset("synthetic")
    rng = np.random.default_rng(0)
    for method, splits in (("mine", ("val", "test")), ("other", ("test",))):
        home = folder / "submissions" / method
        metadata_of(method, label=method.capitalize()).write(home)
        for split in splits:
            pairs = dataset.pairs(split)
            scores = pairs.assign(**{p: rng.random(len(pairs)) for p in dataset.patterns})
            path = home / "predictions" / "synthetic" / f"{split}-seed0.parquet"
            write_predictions(path, scores, dataset, split, method=method)
        listed(home)
    write_schema(folder / "submissions")
    for submission in read_submissions(folder / "submissions"):
        submission.write_results(submission.rescored()[0])
    found = read_submissions(folder / "submissions")
    board = build_board(found)
    write_board(board, found, folder / "leaderboard")
    return folder


def listed(home: Path) -> None:
    """List the files that are there in submission.yaml."""
    metadata = Metadata.model_validate(yaml.safe_load((home / "submission.yaml").read_text()))
    metadata.with_files(tuple(listed_files(home))).write(home)


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A copy of them, and the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Change = Callable[[Path], object]


def of_yaml(change: Callable[[str], str | bytes]) -> Change:
    def spoil(home: Path) -> None:
        path = home / "submission.yaml"
        text = change(path.read_text("utf-8"))
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def without(key: str) -> Change:
    return of_yaml(lambda text: re.sub(rf"^{key}:.*\n(- .*\n)*", "", text, flags=re.MULTILINE))


def instead(key: str, value: str) -> Change:
    """Another value, as YAML, of a key of submission.yaml."""

    def spoil(home: Path) -> None:
        without(key)(home)
        of_yaml(lambda text: text + f"{key}: {value}\n")(home)

    return spoil


def of_results(change: Callable[[list], object]) -> Change:
    """Put what is returned in place of the stored results; None: they were changed in place."""

    def spoil(home: Path) -> None:
        path = home / "results.json"
        stored = json.loads(path.read_text("utf-8"))
        changed = change(stored)
        path.write_text(json.dumps(stored if changed is None else changed), "utf-8")

    return spoil


def results_are(data: bytes) -> Change:
    return lambda home: (home / "results.json").write_bytes(data)


def predictions_of(home: Path) -> Path:
    return home / "predictions" / "synthetic" / "test-seed0.parquet"


def of_file(spoil: Callable[[Path], None]) -> Change:
    return lambda home: spoil(predictions_of(home))


def renamed(name: str) -> Change:
    def spoil(home: Path) -> None:
        path = predictions_of(home).parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        predictions_of(home).rename(path)

    return spoil


def other_file(home: Path) -> None:
    shutil.copy(predictions_of(home.parent / "other"), predictions_of(home))


def second_seed(home: Path) -> None:
    shutil.copy(predictions_of(home), predictions_of(home).with_name("test-seed1.parquet"))


def val_as_test(home: Path) -> None:
    shutil.copy(predictions_of(home).with_name("val-seed0.parquet"), predictions_of(home))


def of_val(home: Path) -> Path:
    return predictions_of(home).with_name("val-seed0.parquet")


DRIFT = "leaderboard.json is not what the submissions give"
GONE = "mine/predictions/synthetic/test-seed0.parquet: results are stored, the prediction"
CHANGED = "mine/predictions/synthetic/test-seed0.parquet: changed since it was scored"
NOT_SCORED = "not scored yet"
# What is done to the submission `mine`, the exit code, what must be said, and with --rescore.
SUBMISSIONS: dict[str, tuple[Change, int, str, bool]] = {
    # submission.yaml
    **{
        f"no {key}": (without(key), 2, f"mine/submission.yaml: {key}: Field required", False)
        for key in ("method", "label", "kind", "summary", "authors", "licence", "inputs")
    },
    "an unknown key": (
        instead("colour", "red"),
        2,
        "submission.yaml: colour: Extra inputs are not permitted, got 'red'",
        False,
    ),
    "the name of another method": (
        instead("method", "other"),
        2,
        "method is 'other', expected the folder's name 'mine'",
        False,
    ),
    "a name with capitals": (instead("method", "Mine"), 2, "method: String should match", False),
    "a method that is a number": (instead("method", "1"), 2, "method: Input should be a", False),
    "an unknown kind": (instead("kind", "oracle"), 2, "kind: Input should be 'control', ", False),
    "no authors in the list": (instead("authors", "[]"), 2, "authors: Tuple should have", False),
    "authors as text": (
        instead("authors", "A. Author"),
        2,
        "authors: Input should be a valid tuple, got 'A. Author'",
        False,
    ),
    "an unknown input": (
        instead("inputs", "[coordinates, image]"),
        2,
        r"inputs.1: Input should be 'coordinates', .*, got 'image'",
        False,
    ),
    "a date as reference": (
        instead("reference", "2026-01-01"),
        2,
        "reference: Input should be a valid string",
        False,
    ),
    "an empty yaml": (of_yaml(lambda t: ""), 2, "submission.yaml: the file: .*got None", False),
    "a yaml list": (of_yaml(lambda t: "- method: mine\n"), 2, "the file: Input should be", False),
    "a broken yaml": (of_yaml(lambda t: t + "x: [1\n"), 2, "mine: cannot be read: ", False),
    "yaml with code": (
        instead("label", "!!python/object/apply:os.getcwd []"),
        2,
        "mine: cannot be read: could not determine a constructor",
        False,
    ),
    "yaml that is not UTF-8": (of_yaml(lambda t: b"\xff\xfe"), 2, "mine: cannot be read", False),
    # results.json
    "results in an object": (
        of_results(lambda found: {"results": found}),
        2,
        "mine/results.json: the file: Input should be a valid (list|array)",
        False,
    ),
    "results of another form": (
        of_results(lambda found: [{"auc": 1.0}]),
        2,
        r"results.json: 0\.predictions: Field required",
        False,
    ),
    "a result without a hash": (
        of_results(lambda found: found[0].pop("sha256") and None),
        2,
        r"results.json: 0\.sha256: Field required",
        False,
    ),
    "a seed in words": (
        of_results(lambda found: found[0].update(seed="one")),
        2,
        r"results.json: 0\.seed: Input should be a valid integer",
        False,
    ),
    "an unknown protocol": (
        of_results(lambda found: found[0].update(protocol="magic")),
        2,
        r"results.json: 0\.protocol: Input should be 'fit', ",
        False,
    ),
    "no JSON": (results_are(b"[{"), 2, "mine/results.json: the file: Invalid JSON", False),
    "an empty results.json": (results_are(b""), 2, "results.json: the file: Invalid JSON", False),
    "results that are not UTF-8": (results_are(b"[\xff]"), 2, "results.json: .*JSON", False),
    "no results": (lambda home: (home / "results.json").unlink(), 1, NOT_SCORED, False),
    "an empty list of results": (results_are(b"[]"), 1, NOT_SCORED, False),
    "a path out of the folder": (
        of_results(lambda found: found[0].update(predictions="../other/x.parquet")),
        2,
        r"results.json: 0\.predictions: String should match pattern",
        False,
    ),
    "a better score": (
        of_results(lambda found: found[0]["metrics"].update(f1_macro=0.99)),
        1,
        "f1_macro is 0.99, the mean of its patterns is",
        False,
    ),
    "a better score, scored again": (
        of_results(lambda found: found[0]["metrics"].update(f1_macro=0.99)),
        1,
        "mine: scores differ from results.json",
        True,
    ),
    "other labels": (
        of_results(lambda found: found[0].update(labels_sha256="0" * 64)),
        1,
        "scored on labels 000000000000, the registry pins",
        False,
    ),
    # prediction files
    "a changed file": (
        of_file(put("nuclear", lambda c: pa.array(c.to_pylist()[::-1], FLOAT))),
        1,
        CHANGED,
        False,
    ),
    "a changed file, scored again": (
        of_file(put("nuclear", lambda c: pa.array(c.to_pylist()[::-1], FLOAT))),
        1,
        "mine: scores differ from results.json",
        True,
    ),
    "a file of another method": (other_file, 1, CHANGED, False),
    "a file of another method, scored again": (
        other_file,
        2,
        "expected predictions of 'mine', got method 'other'",
        True,
    ),
    "a file of another split": (
        val_as_test,
        2,
        "metadata says split val, .*: expected split test and the name synthetic/test-seed0",
        True,
    ),
    "no prediction file": (lambda home: predictions_of(home).unlink(), 1, GONE, False),
    "no predictions at all": (lambda home: shutil.rmtree(home / "predictions"), 1, GONE, False),
    "a second file": (second_seed, 1, "test-seed1.parquet: not scored yet", False),
    "a second file of the same seed": (
        second_seed,
        2,
        "split test, seed 0, protocol fit: expected .* the name synthetic/test-seed0.parquet",
        True,
    ),
    "another seed in the name": (
        renamed("test-seed7.parquet"),
        2,
        "seed 0, .* the name synthetic/test-seed0.parquet",
        True,
    ),
    "another protocol in the name": (
        renamed("test-seed0-cv-cell.parquet"),
        2,
        "protocol fit: expected .* the name synthetic/test-seed0.parquet",
        True,
    ),
    "another dataset in the path": (
        renamed("../u2os_gold/test-seed0.parquet"),
        2,
        "the name synthetic/test-seed0.parquet",
        True,
    ),
    "another version in the file": (
        of_file(of_metadata(lambda m: m | {"version": "9.9.9"})),
        1,
        CHANGED,
        False,
    ),
    "a truncated file": (of_file(of_bytes(lambda b: b[:-100])), 2, "file is truncated", True),
    "a page of HTML": (of_file(of_bytes(lambda b: b"<html>")), 2, "it is an HTML page", True),
    "an empty file": (of_file(of_bytes(lambda b: b"")), 2, "Parquet file: it is empty", True),
    "a folder": (of_file(folder_instead), 2, "it is a folder", True),
    "a file without metadata": (of_file(without_metadata), 2, "no metadata `gpattern_bench`", True),
    "a file without a pair": (of_file(of_table(lambda t: t[1:])), 2, "1 pair is missing: ", True),
    "a file with NaN": (
        of_file(put("nuclear", lambda c: pa.array(np.full(len(c), np.nan, np.float32)))),
        2,
        r"nuclear has [\d,]+ scores that are NaN, null or infinite",
        True,
    ),
    "val scores that are broken": (
        lambda home: of_bytes(lambda b: b[:-100])(of_val(home)),
        2,
        "val-seed0.parquet: 1 problem\n.*truncated",
        True,
    ),
    "val scores that are gone": (lambda home: of_val(home).unlink(), 1, CHANGED, False),
    # all of it
    "no submissions": (lambda home: shutil.rmtree(home.parent), 2, "no such folder; name", False),
    "the submission is gone": (shutil.rmtree, 1, DRIFT, False),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_broken_submission_is_refused(cli, here, name):
    spoil, code, expected, rescore = SUBMISSIONS[name]
    before = {p: p.read_bytes() for p in (here / "leaderboard").iterdir()}
    spoil(here / "submissions" / "mine")
    refused(cli("leaderboard", "--check", *["--rescore"] * rescore), code, expected)
    assert {p: p.read_bytes() for p in (here / "leaderboard").iterdir()} == before


def test_every_broken_submission_is_told_at_once(cli, here):
    without("label")(here / "submissions" / "mine")
    instead("kind", "x")(here / "submissions" / "mine")
    results_are(b"{}")(here / "submissions" / "other")
    code, err = cli("leaderboard", "--check")
    assert code == 2
    assert "3 problems" in err
    assert all(text in err for text in ("label: Field", "kind: Input", "other/results.json"))


def test_submissions_as_they_were_pass(cli, here):
    for options in ((), ("--rescore",)):
        code, told = cli("leaderboard", "--check", *options)
        lines = told.splitlines()
        assert (code, len(lines)) == (0, 2)  # nothing was measured of them, which is no error
        assert all("results lack date, parameters, device, versions" in line for line in lines)


def test_no_val_file_is_fine_once_scored_so(cli, here):
    of_val(here / "submissions" / "mine").unlink()
    listed(here / "submissions" / "mine")
    assert cli("leaderboard", "--rescore")[0] == 0
    assert cli("leaderboard", "--check", "--rescore")[0] == 0


def test_a_template_is_not_looked_at(cli, here):
    shutil.copytree(here / "submissions" / "mine", here / "submissions" / "_template")
    without("label")(here / "submissions" / "_template")
    assert cli("leaderboard", "--check")[0] == 0


def test_the_corpus_is_large() -> None:
    assert len(FILES) + len(SUBMISSIONS) >= 40
