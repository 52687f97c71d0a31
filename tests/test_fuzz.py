"""Whatever is wrong with an input, it is refused in words: mutated files of every kind.

Each test begins with files as the package writes them, changes them, and lets readers and
validators have the result: they accept it or raise one of the package's errors. Draws are the same
every time; ``GPATTERN_BENCH_FUZZ=20`` makes twenty times as many, other ones every time.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from exports import (
    CELLS,
    DETECTED,
    FLAT,
    INSIDE,
    MERSCOPE,
    XENIUM,
    detected,
    make_molecules,
    positions,
    transcripts,
    vertices,
    write_cosmx,
    write_merscope,
    write_spatialdata,
    write_xenium,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import dataset_of, metadata_of, random_scores

from gpattern_bench.base.files import file_sha256
from gpattern_bench.board.metadata import Metadata, write_schema
from gpattern_bench.board.publish import board_of, write_board
from gpattern_bench.board.submission import _cost, _robustness, read_submissions
from gpattern_bench.board.submit import _metadata as metadata_for
from gpattern_bench.board.submit import listed_files, submit_run
from gpattern_bench.cli import main
from gpattern_bench.curate.build import curate
from gpattern_bench.curate.simulate.cells import _SIZES, PATTERNS, _pieces, simulate
from gpattern_bench.curate.simulate.releases import write_bento_h5ad
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import (
    GPatternBenchError,
    MethodError,
    PredictionError,
    SourceError,
    SubmissionError,
    TableError,
)
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.methods import get_method
from gpattern_bench.methods.gpsnet.config import Config
from gpattern_bench.methods.gpsnet.model import GPSNet
from gpattern_bench.methods.gpsnet.train import Trained
from gpattern_bench.predictions import (
    check_predictions,
    expected_origin,
    read_origin,
    read_predictions,
    write_predictions,
)
from gpattern_bench.runs.saved_model import Model, load_model, save_model
from gpattern_bench.sources.recipe import Recipe

# A warning of a library is no crash; as an error it would hide what comes after it.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MORE = int(os.environ.get("GPATTERN_BENCH_FUZZ", "0"))


def bounded(examples: int) -> Any:
    """Half as many draws, the same ones every time; GPATTERN_BENCH_FUZZ=K: K times as many, new."""
    return settings(
        max_examples=examples * MORE or examples // 2,
        derandomize=not MORE,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


@contextlib.contextmanager
def refused_or_fine() -> Iterator[None]:
    """The oracle: what is no error of the package passes on and fails the test."""
    try:
        yield
    except (GPatternBenchError, FileNotFoundError):
        return


@contextlib.contextmanager
def copied(source: Path) -> Iterator[Path]:
    """A copy of a file or folder, of which nothing stays."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        yield target


# What is drawn

Edit = tuple[str, int, int]
SPOTS = st.integers(0, 2**31)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "cut", "double", "drop", "zero"]), SPOTS, SPOTS),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Bytes with some flipped, set, cut off, doubled, dropped or zeroed."""
    found = bytearray(data)
    for kind, where, value in edits:
        if not found:
            break
        at, length = where % len(found), 1 + value % 24
        if kind == "flip":
            found[at] ^= 1 << value % 8
        elif kind == "set":
            found[at] = value % 256
        elif kind == "cut":
            del found[at:]
        elif kind == "double":
            found[at:at] = found[at : at + length]
        elif kind == "drop":
            del found[at : at + length]
        else:
            found[at : at + length] = bytes(len(found[at : at + length]))
    return bytes(found)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**400)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "test", "../x", "a\0b", "é", "1.0.0", "nan", "<x>", "synthetic"]),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "put", "drop", "double", "rename"]), SPOTS, TREES),
    min_size=1,
    max_size=3,
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of dicts and lists."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    return [found for key, value in items for found in [(tree, key), *places(value)]]


def changed(tree: Any, changes: list[tuple[str, int, Any]]) -> Any:
    """A copy of a tree with other values, or without some, at some places."""
    tree = [json.loads(json.dumps(tree))]
    for kind, where, value in changes:
        # Deep places are many: every second time one of the first.
        spots = places(tree)
        spots = spots[: 1 + len(spots) // 8] if where % 2 else spots
        holder, key = spots[where // 2 % len(spots)]
        if kind == "put":
            holder[key] = deepcopy(value)  # else a later change may put it into itself
        elif kind == "drop":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.append(deepcopy(holder[key]))
        elif isinstance(holder, dict):
            holder[str(value)[:9]] = holder.pop(key)
        if not tree:
            return None
    return tree[0]


DEEP = "[" * 100_000
HUGE_HEX = "0x" + "f" * 5000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


# Data


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Dataset:
    release = simulate(7, n_fovs=12, cells_per_fov=2, n_genes=6, mean_molecules=40)
    return dataset_of(tmp_path_factory.mktemp("data") / "small", release, version="1.2.0")


@pytest.fixture(scope="module")
def valid(ds, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("valid") / "valid.parquet"
    return write_predictions(path, random_scores(ds), ds, "test", method="mine")


@pytest.fixture(scope="module")
def evaluator(ds) -> Evaluator:
    return Evaluator(ds, "test")


def command(*words: object) -> int:
    """Run the command line: its exit code."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        patch.setattr("sys.argv", ["gpattern-bench", *map(str, words)])
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as caught:
            main()
    code = int(caught.value.code or 0)
    assert code in (0, 1, 2)
    assert "Traceback" not in err.getvalue()
    assert code == 0 or "error: " in err.getvalue()
    return code


# 1. Prediction files


def judged(path: Path, evaluator: Evaluator) -> None:
    """Every way in which a prediction file is read."""
    read_origin(path)
    with refused_or_fine():
        table, origin, _ = read_predictions(path)
        check_predictions(
            table,
            evaluator.labels,
            evaluator.patterns,
            origin=origin,
            expected=expected_origin(evaluator.dataset, "test"),
        )
    with refused_or_fine():
        evaluator.eval(path, replicates=0)


def of_kind(kind: pa.DataType, make: Callable[[Any], Any]) -> Callable[[list[Any]], pa.Array]:
    return lambda values: pa.array([None if v is None else make(v) for v in values], kind)


def small(value: Any) -> int:
    return int(value * 100) if isinstance(value, float) else len(value)


KINDS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "null": lambda values: pa.nulls(len(values)),
    "bool": of_kind(pa.bool_(), bool),
    "int8": of_kind(pa.int8(), small),
    "uint64": of_kind(pa.uint64(), lambda v: 2**64 - 1 - small(v)),
    "half": of_kind(pa.float16(), lambda v: np.float16(small(v) / 100)),
    "float": of_kind(pa.float32(), lambda v: small(v) / 100),
    "double": of_kind(pa.float64(), lambda v: small(v) / 100),
    "nan": of_kind(pa.float32(), lambda v: np.nan),
    "inf": of_kind(pa.float32(), lambda v: np.inf if small(v) % 2 else -1.0),
    "text": of_kind(pa.string(), str),
    "large": of_kind(pa.large_string(), str),
    "view": of_kind(pa.string_view(), str),
    "odd text": of_kind(pa.string(), lambda v: f"\0\N{SNOWMAN}{v}"),
    "bytes": of_kind(pa.binary(), lambda v: f"{v}".encode()),
    "no utf-8": of_kind(pa.binary(), lambda v: b"\xff\xfe"),
    "fixed": of_kind(pa.binary(3), lambda v: b"abc"),
    "decimal": of_kind(pa.decimal128(38, 10), lambda v: decimal.Decimal(small(v))),
    "date": of_kind(pa.date32(), lambda v: datetime.date(2000, 1, 1)),
    "time": of_kind(pa.timestamp("ns"), small),
    "far time": of_kind(pa.timestamp("s"), lambda v: 2**60),
    "duration": of_kind(pa.duration("s"), small),
    "list": of_kind(pa.list_(pa.float32()), lambda v: [0.5]),
    "struct": of_kind(pa.struct([("a", pa.float32())]), lambda v: {"a": 0.5}),
    "map": of_kind(pa.map_(pa.string(), pa.float32()), lambda v: [("a", 0.5)]),
    "coded": lambda values: pa.array(values).dictionary_encode(),
    "coded floats": of_kind(pa.dictionary(pa.int8(), pa.float32()), lambda v: float(small(v) % 2)),
    "coded twice": lambda values: pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(len(values))], pa.int8()), pa.array(["x", "x"])
    ),
    "coded null": lambda values: pa.DictionaryArray.from_arrays(
        pa.array([0] * len(values), pa.int8()), pa.array([None], pa.string())
    ),
    "runs": lambda values: (
        pa.RunEndEncodedArray.from_arrays([len(values)], ["x"])
        if values
        else pa.array([], pa.string())
    ),
    "some null": lambda values: pa.array([None, *values[1:]]) if values else pa.nulls(0),
    "as it is": pa.array,
}
NAMES = ["cell_id", "gene", *PATTERNS, "", "fov", "\0", "é"]
COLUMNS = st.lists(
    st.tuples(st.sampled_from([*NAMES[:6]] * 3 + NAMES[6:]), st.sampled_from([*KINDS])), max_size=9
)
ROWS = st.sampled_from(["all", "all", "none", "first", "double", "turned"])
NOTES = st.one_of(
    st.none(),
    st.just("keep"),
    st.binary(max_size=20),
    TREES.map(lambda tree: json.dumps(tree).encode()),
    CHANGES,
)


def spoilt(table: pa.Table, columns: list[tuple[str, str]], rows: str, whole: bool) -> pa.Table:
    """A table with columns of other kinds, beside or instead of its own."""
    n = len(table)
    table = {
        "all": table,
        "none": table[:0],
        "first": table[:1],
        "double": pa.concat_tables([table, table]),
        "turned": table.take(pa.array(range(n)[::-1])),
    }[rows]
    known = {name: table[name].to_pylist() for name in table.column_names}
    made = [(name, KINDS[kind](known.get(name, known["gene"]))) for name, kind in columns]
    replaced = {name for name, _ in made}
    if whole:
        kept = [(name, table[name]) for name in table.column_names if name not in replaced]
        made = kept + made
    names = [name for name, _ in made]
    return pa.Table.from_arrays([column for _, column in made], names=names)


def noted(table: pa.Table, origin: bytes, note: Any) -> pa.Table:
    if note is None:
        return table
    if isinstance(note, list):
        note = json.dumps(changed(json.loads(origin), note)).encode()
    return table.replace_schema_metadata({b"gpattern_bench": origin if note == "keep" else note})


class TestPredictions:
    @bounded(150)
    @given(columns=COLUMNS, rows=ROWS, whole=st.booleans(), note=NOTES)
    def test_any_table(self, ds, valid, evaluator, columns, rows, whole, note):
        table = pq.read_table(valid)
        origin = table.schema.metadata[b"gpattern_bench"]
        table = noted(spoilt(table, columns, rows, whole), origin, note)
        with refused_or_fine():
            evaluator.eval(table, replicates=0)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.parquet"
            try:
                pq.write_table(table, path)
            except (pa.ArrowException, OSError):  # Parquet has no such type
                return
            judged(path, evaluator)

    @bounded(40)
    @given(columns=COLUMNS, rows=ROWS, note=NOTES)
    def test_any_table_on_the_command_line(self, ds, valid, columns, rows, note):
        table = pq.read_table(valid)
        origin = table.schema.metadata[b"gpattern_bench"]
        table = noted(spoilt(table, columns, rows, True), origin, note)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.parquet"
            try:
                pq.write_table(table, path)
            except (pa.ArrowException, OSError):
                return
            command("validate", path, "--dataset", ds.folder)

    @bounded(150)
    @given(edits=EDITS)
    def test_any_bytes(self, ds, valid, evaluator, edits):
        with copied(valid) as path:
            path.write_bytes(edited(path.read_bytes(), edits))
            judged(path, evaluator)

    @pytest.mark.parametrize("name", ["cell_id", "gene"])
    @pytest.mark.parametrize("kind", ["coded twice", "coded null", "null", "struct", "far time"])
    def test_ids_that_pandas_cannot_hold(self, valid, evaluator, name, kind):
        table = spoilt(pq.read_table(valid), [(name, kind), ("nuclear", "nan")], "all", True)
        with pytest.raises(PredictionError, match=r"column nuclear has .* NaN, null or infinite"):
            evaluator.eval(table)

    def test_numbers_beyond_64_bit(self, valid, evaluator):
        frame = pd.read_parquet(valid).assign(cell_id=2**63)
        with pytest.raises(PredictionError, match=r"column cell_id has values .* beyond 64 bit"):
            evaluator.eval(frame.astype({"cell_id": object}))

    @bounded(40)
    @given(data=st.binary(max_size=64), ends=st.booleans())
    def test_any_few_bytes(self, tmp_path_factory, ds, evaluator, data, ends):
        path = tmp_path_factory.getbasetemp() / "few.parquet"
        path.write_bytes(b"PAR1" + data + b"PAR1" if ends else data)
        judged(path, evaluator)
        command("validate", path, "--dataset", ds.folder)

    @bounded(80)
    @given(
        values=st.lists(LEAVES | st.binary(max_size=3) | st.dates(), min_size=1, max_size=4),
        name=st.sampled_from(NAMES),
    )
    def test_any_data_frame(self, valid, evaluator, values, name):
        frame = pd.read_parquet(valid)
        frame[name] = pd.Series([values[i % len(values)] for i in range(len(frame))], dtype=object)
        with refused_or_fine():
            evaluator.eval(frame, replicates=0)

    @bounded(60)
    @given(truth=TREES, scores=TREES)
    def test_any_arrays(self, evaluator, truth, scores):
        with refused_or_fine():
            evaluator.eval({"y_true": truth, "y_pred": scores}, replicates=0)


# 2. Submissions


@pytest.fixture(scope="module")
def submissions(tmp_path_factory) -> Path:
    """A submission of random scores and their results, with the board beside it."""
    folder = tmp_path_factory.mktemp("made") / "submissions"
    dataset = load_dataset("synthetic")
    rng = np.random.default_rng(0)
    home = folder / "mine"
    metadata_of("mine", label="Mine").write(home)
    pairs = dataset.pairs("test")
    scores = pairs.assign(**{p: rng.random(len(pairs)) for p in dataset.patterns})
    path = home / "predictions" / "synthetic" / "test-seed0.parquet"
    write_predictions(path, scores, dataset, "test", method="mine")
    metadata = Metadata.model_validate(yaml.safe_load((home / "submission.yaml").read_text()))
    metadata.with_files(tuple(listed_files(home))).write(home)
    [submission] = read_submissions(folder)
    submission.write_results(submission.rescored()[0])
    found = read_submissions(folder)
    write_board(board_of(found, folder.parent), found, folder.parent / "leaderboard")
    write_schema(folder)
    return folder


def read_back(folder: Path) -> None:
    """Read a folder of submissions, as a board and as `submit` do."""
    with refused_or_fine():
        for submission in read_submissions(folder):
            assert isinstance(submission.stale() + submission.unlisted(), list)
    problems: list[str] = []
    metadata_for(folder / "mine", problems)
    assert all(problem.strip() for problem in problems)


FRAGMENTS = [
    "method: mine", "seeds: ", "files:", "\n", "\n  ", "- ", "&a ", "*a", "*b", "<<: *a", "? ",
    ": ",
    "{", "}", "[", "]", "!!python/object:os.system ", "!!bool x", "!!timestamp x", "!!int x",
    "!!float x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]", "!!null x", "!<x> y", "2001-01-01",
    "2001-99-99", "2001-01-01T00:00:00Z", "0x1f", ".nan", "1e999", "1:60", "|\n  x", ">", "'", '"',
    "\\x", "---\n", "...\n", "%YAML 1.1\n", "#", "\t", "\x00", "\ufeff", "é", "=", "x",
]  # fmt: skip


def of_text(change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_text("utf-8")).encode(encoding))


def of_value(old: str, new: str) -> Callable[[Path], object]:
    return of_text(lambda text: re.sub(old, new, text, count=1))


def linked(target: str) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


RESULTS: dict[str, Callable[[Path], object]] = {
    "deep": of_text(lambda _: DEEP),
    "deep in a key that nothing reads": of_value(r'"n": ', f'"x": {DEEP}{"]" * 100_000}, "n": '),
    "not a number in a curve": of_value(r'"roc": \[ \[ [0-9.]+', '"roc": [ [ NaN'),
    "infinite in a curve": of_value(r'"pr": \[ \[ [0-9.]+', '"pr": [ [ -Infinity'),
    "not a number where nothing is read": of_value(r'"n": ', '"x": NaN, "n": '),
    "a huge integer": of_value(r'"n_positive": \d+', f'"n_positive": {"9" * 400}'),
    "a longer integer": of_value(r'"n_positive": \d+', f'"n_positive": {"9" * 5000}'),
    "a key twice": of_value(r'"f1_macro": ', '"f1_macro": 0.97, "f1_macro": '),
    "a key less": of_value(r'"floor": [0-9.]+,', ""),
    "a mark of byte order": of_text(lambda text: text, "utf-8-sig"),
    "UTF-16": of_text(lambda text: text, "utf-16"),
    "Latin-1": of_text(lambda text: text.replace("synthetic", "synth\xe9tic"), "latin-1"),
    "half a surrogate": of_value('"device": null', '"device": "\\\\ud800"'),
    "nothing": of_text(lambda _: ""),
    "null": of_text(lambda _: "null"),
    "an object": of_text(lambda _: "{}"),
    "no results": of_text(lambda _: "[]"),
    "two texts": of_text(lambda text: text + text),
    "half": of_text(lambda text: text[: len(text) // 2]),
    "other line breaks": of_text(lambda text: text.replace("\n", "\r\n")),
    "a space more": of_text(lambda text: text + " "),
    "a link to nothing": linked("nowhere"),
    "a link that never ends": linked("results.json"),
    "a link to a device": linked("/dev/zero"),
}


class TestSubmissions:
    @bounded(60)
    @given(changes=CHANGES)
    def test_any_metadata(self, submissions, changes):
        with copied(submissions) as folder:
            path = folder / "mine" / "submission.yaml"
            tree = changed(yaml.safe_load(path.read_text("utf-8")), changes)
            path.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8", "surrogatepass")
            read_back(folder)

    @bounded(120)
    @given(words=st.lists(st.sampled_from(FRAGMENTS), max_size=12), after=st.booleans())
    def test_any_yaml(self, submissions, words, after):
        with copied(submissions) as folder:
            path = folder / "mine" / "submission.yaml"
            before = path.read_text("utf-8") if after else ""
            path.write_text(before + "".join(words), "utf-8")
            read_back(folder)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("!!bool x", "not YAML: KeyError"),
            ("!!timestamp x", "not YAML: AttributeError"),
            ("[" * 1500, "not YAML: RecursionError"),
            (f"method: {HUGE_HEX}", "method: Input should be .*, got <int too large to show>"),
            (f"method: [{HUGE_HEX}]", "method: .*, got <list too large to show>"),
            ("method: &a [*a]", r"method: .*, got \[\[\[\[\.\.\."),
            (BOMB, r"i: Extra inputs are not permitted, got \[\[\[\["),  # 9^9 values by aliases
        ],
        ids=["bool", "timestamp", "deep", "huge", "huge in a list", "recursive", "aliases"],
    )
    def test_odd_yaml(self, submissions, text, told):
        with copied(submissions) as folder:
            (folder / "mine" / "submission.yaml").write_text(text)
            with pytest.raises(SubmissionError, match=told):
                read_submissions(folder)
            problems: list[str] = []
            assert metadata_for(folder / "mine", problems)[0] is None
            assert problems

    def test_yaml_that_is_no_text(self, submissions):
        with copied(submissions) as folder:
            (folder / "mine" / "submission.yaml").write_bytes(b"method: \xff")
            with pytest.raises(SubmissionError, match="cannot be read: 'utf-8' codec"):
                submit_run(folder / "run", folder / "mine")

    def test_a_report_without_end(self, tmp_path):
        (tmp_path / "run.json").write_text(DEEP)
        (tmp_path / "robustness.json").write_text(DEEP)
        with pytest.raises(SubmissionError, match="not the report of a run"):
            _cost(tmp_path / "run.json", "test")
        with pytest.raises(SubmissionError, match="not a report of robustness"):
            _robustness(tmp_path / "robustness.json")

    @bounded(60)
    @given(edits=EDITS)
    def test_any_bytes_of_yaml(self, submissions, edits):
        with copied(submissions) as folder:
            path = folder / "mine" / "submission.yaml"
            path.write_bytes(edited(path.read_bytes(), edits))
            read_back(folder)

    def commands(self, submissions: Path, spoil: Callable[[Path], object]) -> None:
        """What the commands make of other results: refused, and nothing is written."""
        with copied(submissions.parent) as home:
            path = home / "submissions" / "mine" / "results.json"
            words = ("--submissions", home / "submissions", "--out", home / "leaderboard")
            before = path.read_bytes()
            spoil(path)
            is_same = path.is_file() and not path.is_symlink() and path.read_bytes() == before
            written = {each: each.lstat().st_mtime_ns for each in home.rglob("*")}
            code = command("leaderboard", *words, "--check")
            assert code == 0 or not is_same
            assert is_same == (command("leaderboard", *words, "--check", "--rescore") == 0)
            assert {each: each.lstat().st_mtime_ns for each in home.rglob("*")} == written
            if command("leaderboard", *words):
                assert {each: each.lstat().st_mtime_ns for each in home.rglob("*")} == written
            if command("leaderboard", *words, "--rescore") == 0:
                assert path.read_bytes() == before
            else:
                assert {each: each.lstat().st_mtime_ns for each in home.rglob("*")} == written

    @bounded(15)
    @given(changes=CHANGES)
    def test_any_results(self, submissions, changes):
        def spoil(path: Path) -> None:
            path.write_text(json.dumps(changed(json.loads(path.read_bytes()), changes), indent=1))

        self.commands(submissions, spoil)

    @bounded(15)
    @given(edits=EDITS)
    def test_any_bytes_of_results(self, submissions, edits):
        self.commands(submissions, lambda path: path.write_bytes(edited(path.read_bytes(), edits)))

    @pytest.mark.parametrize("name", RESULTS)
    def test_odd_results(self, submissions, name):
        self.commands(submissions, RESULTS[name])

    @bounded(80)
    @given(changes=CHANGES)
    def test_any_reports(self, tmp_path_factory, changes):
        path = tmp_path_factory.getbasetemp() / "report.json"
        seconds = {"fit": 1.0, "test": 2.0}
        report = {"seconds": seconds, "device": "CPU", "parameters": 3, "date": "2020-01-01"}
        path.write_text(json.dumps(changed(report, changes)))
        with refused_or_fine():
            _cost(path, "test")
        path.write_text(json.dumps(changed({"f1_worst_drop": 0.1, "largest_change": 1}, changes)))
        with refused_or_fine():
            _robustness(path)


# 3. Source releases


def curated(recipe: Recipe, source: Path) -> None:
    """Curate a release: tables that can be read, or an error that leaves nothing behind."""
    out = source.parent / "out" / "made"
    with refused_or_fine():
        curate(recipe, source.parent, out, name="made", version="1.0.0")
        Dataset(out).verify()
        return
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


SMALL = {"format": "bento-h5ad", "unit_um": 0.1, "split": "test", "path": "cells.h5ad"}
BENTO = Recipe(patterns=PATTERNS, **SMALL)
COSMX = Recipe(
    format="cosmx",
    patterns=("cytoplasmic", "membrane", "nuclear"),
    split="test",
    unit_um=0.5,
    path="release",
)
TEXTS = [
    "", "0", "-1", "1", "nan", "inf", "-inf", "1e308", "1e999", "NA", "null", "é", "\0", "x", "1.5",
    "2147483648", "99999999999999999999", '"', '"a,b"', "a\nb", ",", " 1 ", "True",
]  # fmt: skip
VALUES = st.sampled_from(TEXTS) | st.floats().map(str)
CELLS_OF_CSV = st.lists(
    st.tuples(st.sampled_from(["value", "column", "row", "name", "away"]), SPOTS, SPOTS, VALUES),
    min_size=1,
    max_size=4,
)


def rewritten(text: str, edits: list[tuple[str, int, int, str]]) -> str:
    """Text of a csv with other values in a cell, a column, a row or the header."""
    rows = [line.split(",") for line in text.splitlines()]
    for kind, where, which, value in edits:
        row, column = where % len(rows), which % len(rows[0])
        if kind == "value" and column < len(rows[row]):
            rows[row][column] = value
        elif kind == "column":
            rows = [rows[0], *([*r[:column], value, *r[column + 1 :]] for r in rows[1:])]
        elif kind == "row":
            rows[row] = [value] * len(rows[row])
        elif kind == "name":
            rows[0][column] = value
        elif kind == "away":
            rows = [r[:column] + r[column + 1 :] for r in rows] if len(rows[0]) > 1 else rows
    return "\n".join(",".join(row) for row in rows) + "\n"


def in_csv(path: Path, edits: list[tuple[str, int, int, str]]) -> None:
    path.write_text(rewritten(path.read_text("utf-8"), edits), "utf-8")


def in_parquet(path: Path, columns: list[tuple[str, str]], rows: str) -> None:
    """Put columns of other kinds into a Parquet file, its own names at hand by number."""
    table = pq.read_table(path).replace_schema_metadata(None)
    names = table.column_names
    known = {name: table[name].to_pylist() for name in names}
    changes = [(names[sum(map(ord, name)) % len(names)], kind) for name, kind in columns]
    for name, kind in changes:
        values = [v if isinstance(v, float | str) or v is None else str(v) for v in known[name]]
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
            table = table.set_column(names.index(name), name, KINDS[kind](values))
    table = {"none": table[:0], "first": table[:1]}.get(rows, table)
    if rows == "double":
        table = pa.concat_tables([table, table])
    with contextlib.suppress(pa.ArrowException):  # of a type that Parquet lacks: it stays
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        path.write_bytes(sink.getvalue().to_pybytes())


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> Path:
    """A small release of each kind."""
    home = tmp_path_factory.mktemp("releases")
    size = replace(_SIZES["nih3t3"], n_fovs=2, n_cells=6, n_genes=5, mean_molecules=30.0)
    (home / "bento").mkdir()
    write_bento_h5ad(_pieces(size, 4), home / "bento" / "cells.h5ad", PATTERNS, unit_um=0.1)
    write_cosmx(home / "cosmx" / "release", make_molecules(n=150), listed=positions())
    xenium = (transcripts(INSIDE), vertices(CELLS.items()), vertices(CELLS.items()))
    write_xenium(home / "xenium" / "outs", *xenium)
    write_xenium(home / "xenium-csv" / "outs", *xenium, ending=".csv.gz")
    write_merscope(home / "merscope" / "region", detected(DETECTED), FLAT)
    write_merscope(home / "merscope-hdf5" / "region", detected(DETECTED), FLAT, hdf5=True)
    molecules = dict(zip(["cell", "gene", "x", "y"], zip(*INSIDE, strict=True), strict=True))
    write_spatialdata(home / "spatialdata" / "s.zarr", molecules, {"cell_boundaries": CELLS})
    rows = [f"{cell},{gene},{','.join('01' * 2)}\n" for cell, gene, *_ in INSIDE]
    (home / "spatialdata" / "labels.csv").write_text(
        ",".join(["cell", "gene", *PATTERNS]) + "\n" + "".join(rows)
    )
    return home


SOURCES = {
    "bento": (BENTO, "cells.h5ad"),
    "cosmx": (COSMX, "release"),
    "xenium": (XENIUM.model_copy(update={"path": "outs"}), "outs"),
    "xenium-csv": (XENIUM.model_copy(update={"path": "outs"}), "outs"),
    "merscope": (MERSCOPE.model_copy(update={"path": "region"}), "region"),
    "merscope-hdf5": (MERSCOPE.model_copy(update={"path": "region"}), "region"),
    "spatialdata": (
        Recipe(
            format="spatialdata",
            patterns=PATTERNS,
            split="test",
            path="s.zarr",
            labels="labels.csv",
        ),
        "s.zarr",
    ),
}


def hdf5_edit(path: Path, what: str, where: int, value: Any) -> None:
    """Delete a node of an HDF5 file, or put a number, text or another array there."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = sorted(names)[where % len(names)]
        old = file[name]
        attributes = dict(old.attrs)
        if what == "attributes":
            for key in attributes:
                old.attrs[key] = value
            return
        array = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
        del file[name]
        if what == "delete":
            return
        if what == "group":
            file.create_group(name)
        elif what == "scalar":
            file[name] = value
        elif what in ("short", "bare"):
            file[name] = array[:-1] if array.ndim else array
        elif what == "text":
            file[name] = np.full(array.shape, str(value).replace("\0", ""), object)
        elif what == "flat":
            file[name] = np.ravel(array)[:, None] if array.dtype != object else np.zeros(2)
        elif what == "nan":
            file[name] = np.full(array.shape, np.nan)
        elif what == "large":
            file[name] = np.full(array.shape, 2**62, np.int64)
        elif what == "bytes":
            file[name] = np.full(array.shape, b"\xff\xfe", "S4")
        for key, kept in attributes.items():
            if what != "bare":
                file[name].attrs[key] = kept


NODES = [
    "delete", "group", "scalar", "short", "text", "flat", "nan", "large", "bytes", "bare",
    "attributes",
]  # fmt: skip
ODD = [0, 1.5, "x", -(2**40), "POINT (0 0)", "POLYGON EMPTY", "POLYGON ((0 0"]
HDF5 = st.lists(
    st.tuples(st.sampled_from(NODES), SPOTS, st.sampled_from(ODD)), min_size=1, max_size=2
)


class TestReleases:
    @pytest.mark.parametrize("name", SOURCES)
    def test_the_releases_are_fine(self, releases, tmp_path, name):
        recipe, _ = SOURCES[name]
        curate(recipe, releases / name, tmp_path / "out", name="made", version="1.0.0")

    @bounded(12)
    @given(edits=EDITS, where=SPOTS)
    @pytest.mark.parametrize("name", SOURCES)
    def test_any_bytes(self, releases, name, edits, where):
        recipe, source = SOURCES[name]
        with copied(releases / name) as home:
            files = sorted(path for path in home.rglob("*") if path.is_file())
            path = files[where % len(files)]
            path.write_bytes(edited(path.read_bytes(), edits))
            curated(recipe, home / source)

    @bounded(40)
    @given(edits=CELLS_OF_CSV)
    def test_any_cosmx_csv(self, releases, edits):
        with copied(releases / "cosmx") as home:
            [path] = home.rglob("*_tx_file.csv")
            in_csv(path, edits)
            curated(COSMX, home / "release")

    @bounded(12)
    @given(edits=CELLS_OF_CSV)
    def test_any_cosmx_positions(self, releases, edits):
        with copied(releases / "cosmx") as home:
            [path] = home.rglob("*_fov_positions_file.csv")
            in_csv(path, edits)
            curated(COSMX, home / "release")

    @bounded(40)
    @given(edits=CELLS_OF_CSV)
    def test_any_merscope_csv(self, releases, edits):
        with copied(releases / "merscope") as home:
            in_csv(home / "region" / "detected_transcripts.csv", edits)
            curated(SOURCES["merscope"][0], home / "region")

    def test_labels_with_more_values_than_names(self, releases):
        recipe, _ = SOURCES["spatialdata"]
        with copied(releases / "spatialdata") as home:
            path = home / "labels.csv"
            path.write_text(path.read_text().replace("\n", ",1\n").replace(",1", "", 1))
            with pytest.raises(SourceError, match="more values than the header has names"):
                curate(recipe, home, home / "out", name="made", version="1.0.0")
            assert not (home / "out").exists()

    @bounded(40)
    @given(edits=CELLS_OF_CSV)
    def test_any_labels(self, releases, edits):
        recipe, source = SOURCES["spatialdata"]
        with copied(releases / "spatialdata") as home:
            in_csv(home / "labels.csv", edits)
            curated(recipe, home / source)

    @bounded(40)
    @given(changes=CHANGES, where=SPOTS)
    def test_any_attributes_of_spatialdata(self, releases, changes, where):
        recipe, source = SOURCES["spatialdata"]
        with copied(releases / "spatialdata") as home:
            path = sorted(home.rglob(".zattrs"))[where % 2]
            path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
            curated(recipe, home / source)

    @bounded(35)
    @given(columns=COLUMNS, rows=ROWS, where=SPOTS)
    @pytest.mark.parametrize("name", ["xenium", "merscope", "spatialdata"])
    def test_any_parquet(self, releases, name, columns, rows, where):
        recipe, source = SOURCES[name]
        with copied(releases / name) as home:
            files = sorted(path for path in home.rglob("*.parquet") if path.is_file())
            in_parquet(files[where % len(files)], columns, rows)
            curated(recipe, home / source)

    @bounded(35)
    @given(edits=HDF5)
    @pytest.mark.parametrize("name", ["bento", "merscope-hdf5"])
    def test_any_hdf5(self, releases, name, edits):
        recipe, source = SOURCES[name]
        with copied(releases / name) as home:
            files = sorted(p for p in home.rglob("*") if p.suffix in (".h5ad", ".hdf5"))
            for edit in edits:
                with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
                    hdf5_edit(files[edit[1] % len(files)], *edit)
            curated(recipe, home / source)


# 4. Datasets


def used(folder: Path) -> None:
    """Read a dataset as everything reads it."""
    with refused_or_fine():
        dataset = load_dataset(folder)
        assert repr(dataset)
        assert dataset._repr_html_()
        assert dataset.counts
        for read in (
            dataset.verify,
            dataset.molecules,
            dataset.labels,
            dataset.cells,
            dataset.pairs,
            lambda: len(dataset.iter_cells()),
            lambda: dataset.labels_sha256,
            lambda: [cell.boundary for cell in dataset.iter_cells()],
        ):
            with refused_or_fine():
                read()


def restated(folder: Path) -> None:
    """Let the manifest say of the files what is so."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name, about in manifest["files"].items():
        about["bytes"] = (folder / name).stat().st_size
        about["sha256"] = file_sha256(folder / name)
    path.write_text(json.dumps(manifest), "utf-8")


TABLES = ["molecules", "cells", "labels", "splits"]


class TestDatasets:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda m: m.update(patterns=[None]), "patterns.0: Input should be a valid string"),
            (lambda m: m.update(name=1), "name: Input should be a valid string"),
            (lambda m: m.pop("counts"), "counts: Field required"),
            (lambda m: m.pop("curation"), "curation: Field required"),
            (
                lambda m: m["files"].update({"../x.parquet": {}}),
                r"\.\./x\.parquet.*Input should be",
            ),
            (lambda m: m["files"].pop("splits.parquet"), r"lists no splits\.parquet"),
            (lambda m: m["files"]["cells.parquet"].pop("sha256"), "sha256: Field required"),
            (lambda m: m["files"]["cells.parquet"].update(bytes=np.inf), "bytes: Input should be"),
            (lambda m: m["genes"].append(m["genes"][0]), "repeats genes"),
            (lambda m: DEEP, "RecursionError"),
        ],
    )
    def test_odd_manifests(self, ds, change, told):
        with copied(ds.folder) as folder:
            path = folder / "manifest.json"
            manifest = json.loads(path.read_text("utf-8"))
            text = change(manifest)
            path.write_text(
                text if isinstance(text, str) and text == DEEP else json.dumps(manifest)
            )
            with pytest.raises(TableError, match=told):
                load_dataset(folder)

    @pytest.mark.parametrize("table", ["molecules", "cells", "labels"])
    @pytest.mark.parametrize("spoil", ["end", "page"])
    def test_damage_of_the_same_size(self, ds, table, spoil):
        with copied(ds.folder) as folder:
            path = folder / f"{table}.parquet"
            data = bytearray(path.read_bytes())
            at = len(data) - 100 if spoil == "end" else 60
            data[at : at + 40] = bytes(byte ^ 255 for byte in data[at : at + 40])
            path.write_bytes(data)
            dataset = load_dataset(folder)
            with pytest.raises(TableError, match=rf"{table}\.parquet cannot be read"):
                getattr(dataset, table)()

    def test_splits_without_a_column(self, ds):
        with copied(ds.folder) as folder:
            path = folder / "splits.parquet"
            pq.write_table(pq.read_table(path).drop_columns(["fov"]), path)
            restated(folder)
            with pytest.raises(TableError, match=r"splits\.parquet: expected columns"):
                load_dataset(folder)

    def test_cells_of_fewer_fields_of_view_than_molecules(self, ds):
        with copied(ds.folder) as folder:
            path = folder / "cells.parquet"
            table = pq.read_table(path)
            pq.write_table(table.slice(0, 2), path)  # of the first field of view
            restated(folder)
            with pytest.raises(TableError, match="do not fit each other"):
                list(load_dataset(folder).iter_cells())

    def test_outlines_that_are_none(self, ds):
        with copied(ds.folder) as folder:
            path = folder / "cells.parquet"
            table = pq.read_table(path)
            table = table.set_column(
                table.column_names.index("cell_boundary"),
                table.schema.field("cell_boundary"),
                pa.array([b"\1\2\3"] * len(table), pa.binary()),
            )
            pq.write_table(table, path, row_group_size=2)
            restated(folder)
            dataset = load_dataset(folder)
            with pytest.raises(TableError, match="damaged or do not fit"):
                dataset.cells()
            with pytest.raises(TableError, match="cell_boundary of field of view"):
                list(dataset.iter_cells())

    @bounded(40)
    @given(changes=CHANGES)
    def test_any_manifest(self, ds, changes):
        with copied(ds.folder) as folder:
            path = folder / "manifest.json"
            path.write_text(json.dumps(changed(ds.manifest.raw, changes)))
            used(folder)

    @bounded(12)
    @given(edits=EDITS)
    def test_any_bytes_of_the_manifest(self, ds, edits):
        with copied(ds.folder) as folder:
            path = folder / "manifest.json"
            path.write_bytes(edited(path.read_bytes(), edits))
            used(folder)

    @bounded(15)
    @given(edits=EDITS, table=st.sampled_from(TABLES), known=st.booleans())
    def test_any_bytes_of_a_table(self, ds, edits, table, known):
        with copied(ds.folder) as folder:
            path = folder / f"{table}.parquet"
            path.write_bytes(edited(path.read_bytes(), edits))
            if known:
                restated(folder)
            used(folder)

    @bounded(15)
    @given(columns=COLUMNS, rows=ROWS, table=st.sampled_from(TABLES))
    def test_any_table(self, ds, columns, rows, table):
        with copied(ds.folder) as folder:
            in_parquet(folder / f"{table}.parquet", columns, rows)
            restated(folder)
            with refused_or_fine():
                load_dataset(folder).verify()


# 5. Models

LEARNERS = ["prevalence", "gene_prior", "bento", "locfish", "ella"]


@pytest.fixture(scope="module")
def models(ds, tmp_path_factory) -> Path:
    """A fitted model of each way in which methods are stored."""
    home = tmp_path_factory.mktemp("models")
    for name in LEARNERS:
        method = get_method(name)
        method.fit(ds.iter_cells("train"), 0)
        save_model(method, Model(name, list(ds.patterns), ds.id, None, 0), home / name)
    return home


def gpsnet(ds: Dataset, folder: Path) -> Path:
    """A GPSNet as small as may be, not trained."""
    method = get_method("gpsnet")
    tiny = {"width": 8, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "neighbours": 4}
    config = Config.preset("small", ds.genes, ds.patterns, **tiny)
    method._trained = Trained(GPSNet(config), [{"epoch": 1, "loss": 0.5}])
    return save_model(method, Model("gpsnet", list(ds.patterns), (ds.id,), None, 0), folder)


class TestModels:
    @pytest.mark.parametrize("name", ["prevalence", "gene_prior"])
    def test_json_of_another_kind(self, models, name):
        with copied(models / name) as folder:
            [path] = [file for file in folder.glob("*.json") if file.name != "model.json"]
            path.write_text("null")
            with pytest.raises(MethodError, match="is damaged"):
                load_model(folder)
            path.write_text(DEEP)
            with pytest.raises(
                MethodError, match=r"holds no readable model.*RecursionError|is damaged"
            ):
                load_model(folder)

    @pytest.mark.parametrize("key", ["width", "fourier", "encoder_depth", "decoder_depth"])
    def test_a_network_that_no_memory_holds(self, ds, tmp_path, key):
        pytest.importorskip("safetensors")
        folder = gpsnet(ds, tmp_path / "model")
        load_model(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: 2**40}))
        with pytest.raises(MethodError, match=r"too few for the network|expected \d+ or less"):
            load_model(folder)

    @bounded(20)
    @given(changes=CHANGES, where=SPOTS)
    def test_any_json_of_gpsnet(self, ds, tmp_path_factory, changes, where):
        pytest.importorskip("safetensors")
        with tempfile.TemporaryDirectory() as home:
            folder = gpsnet(ds, Path(home) / "model")
            files = sorted(folder.glob("*.json"))
            path = files[where % len(files)]
            path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
            with refused_or_fine():
                load_model(folder)

    @bounded(30)
    @given(edits=EDITS)
    def test_any_weights_of_gpsnet(self, ds, tmp_path_factory, edits):
        pytest.importorskip("safetensors")
        with tempfile.TemporaryDirectory() as home:
            folder = gpsnet(ds, Path(home) / "model")
            path = folder / "model.safetensors"
            # Its header is the place where changes matter: of the rest any bytes are numbers.
            edits = [(kind, at % 4000, value) for kind, at, value in edits]
            path.write_bytes(edited(path.read_bytes(), edits))
            with refused_or_fine():
                load_model(folder)

    @bounded(20)
    @given(changes=CHANGES, where=SPOTS)
    @pytest.mark.parametrize("name", LEARNERS)
    def test_any_json(self, models, name, changes, where):
        with copied(models / name) as folder:
            files = sorted(folder.glob("*.json"))
            path = files[where % len(files)]
            path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
            with refused_or_fine():
                load_model(folder)

    @bounded(15)
    @given(edits=EDITS, where=SPOTS)
    @pytest.mark.parametrize("name", LEARNERS)
    def test_any_bytes(self, models, name, edits, where):
        with copied(models / name) as folder:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            path = files[where % len(files)]
            path.write_bytes(edited(path.read_bytes(), edits))
            with refused_or_fine():
                load_model(folder)
