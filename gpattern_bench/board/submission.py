"""Submissions: a folder per method with its metadata, prediction files and results."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from gpattern_bench.base.files import MANIFEST, file_sha256, irregular, plain, write_text
from gpattern_bench.base.progress import Progress
from gpattern_bench.base.validation import adapter, invalid_fields, invalid_text, shorten
from gpattern_bench.base.workers import in_order, workers
from gpattern_bench.board.labels import check_text, look_alikes
from gpattern_bench.board.metadata import (
    LARGEST_READ,
    METADATA,
    Metadata,
    PredictionFile,
    Sha256,
    parse_yaml,
)
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import (
    ChecksumError,
    FetchError,
    SubmissionError,
    TableError,
    UnknownDatasetError,
)
from gpattern_bench.evaluate.bootstrap import REPLICATES
from gpattern_bench.evaluate.curves import Curves, compute_curves
from gpattern_bench.evaluate.evaluator import Evaluator
from gpattern_bench.evaluate.strata import stratify
from gpattern_bench.runs.cost import SCORING
from gpattern_bench.sources.cache import cache_root
from gpattern_bench.sources.fetch import fetch
from gpattern_bench.sources.registry import Entry, SourceFile, find_entry
from gpattern_bench.tables.parquet import table_sha256
from gpattern_bench.tables.predictions import (
    Checked,
    Origin,
    Protocol,
    TrainedOn,
    read_origin,
    require_origin,
)

__all__ = [
    "LARGEST",
    "MACROS",
    "OF_PATTERN",
    "Metadata",
    "RobustnessSummary",
    "Score",
    "Skipped",
    "Submission",
    "origin_of",
    "read_submissions",
    "rescore",
    "results_text",
]

LARGEST = 20 << 20
"""Most bytes of a prediction file in the repository; larger ones belong at an address."""
SUSPICIOUS_AUC = 0.999
_RESULTS = "results.json"
_FILE = r"predictions/[A-Za-z0-9_][A-Za-z0-9_.-]*/(test|val)-seed[0-9]+[A-Za-z0-9_.-]*\.parquet"
_OLD_RESULTS = "; if an older version wrote it, delete it and run leaderboard --rescore"

MACROS = ("auc_macro", "acc_macro", "f1_macro", "f1_val_macro", "ap_macro", "accuracy_subset")
"""Macro metrics on the board."""
OF_PATTERN = ("auc", "acc", "f1", "ap", "precision", "recall", "f1_val")
"""Metrics per pattern on the board."""
_SHARES = (*OF_PATTERN, "acc_val", "floor", "prevalence", "threshold", "threshold_val")

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Difference = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Texts that a machine wrote: the board prints them, so they can hold nothing else.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
_Version = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=30)]
_Id = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*@[0-9]+\.[0-9]+\.[0-9]+$", max_length=130),
]
_Split = Literal["test", "val"]


def _check_date(text: str) -> str:
    date.fromisoformat(text)
    return text


_Date = Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_check_date)]
_Device = Annotated[str, Field(max_length=200), AfterValidator(check_text)]
_Package = Annotated[str, Field(pattern=f"^({'|'.join(('gpattern-bench', 'python', *SCORING))})$")]
_Versions = dict[_Package, Annotated[str, Field(pattern="^[0-9][0-9A-Za-z.+-]*$", max_length=40)]]


def _check_ids(ids: TrainedOn) -> TrainedOn:
    return None if ids is None else adapter(tuple[_Id, ...]).validate_python(ids)


class Metrics(TypedDict):
    """The part of an evaluator's result that the board reads; other keys are kept."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    auc_macro: _Share | None
    acc_macro: _Share | None
    f1_macro: _Share | None
    ap_macro: _Share | None
    accuracy_subset: _Share | None
    n: _Count
    per_pattern: dict[str, dict[str, Any]]
    ci: dict[str, list[_Difference | None]]
    n_clusters: _Count
    clusters: Literal["fov", "cell within fov"]


class RobustnessSummary(TypedDict):
    """The part of ``robustness-seed<k>.json`` that the board shows.

    ``f1_worst_drop`` is the largest loss of macro F1 (a fraction) under any perturbation,
    ``largest_change`` the largest change of a score when cells are only turned, moved or reordered.
    """

    f1_worst_drop: _Difference
    largest_change: _Share


def _check_replicates(text: str) -> str:
    drawn = b64decode(text, validate=True)
    if len(drawn) != 4 * REPLICATES:
        raise ValueError(f"expected {REPLICATES} values of 4 bytes")
    values = np.frombuffer(drawn, "<f4")
    if ((values < 0) | (values > 1)).any():  # NaN: undefined in that replicate
        raise ValueError("expected values from 0 to 1")
    return text


def _check_shares(metrics: Metrics) -> Metrics:
    """Check metrics that :class:`Metrics` does not name: of val, and per pattern."""
    found: dict[str, Any] = {key: metrics.get(key) for key in ("f1_val_macro", "acc_val_macro")}
    ci: dict[str, Any] = {f"ci.{key}": ends for key, ends in metrics["ci"].items()}
    for pattern, values in metrics["per_pattern"].items():
        found |= {f"per_pattern.{pattern}.{key}": values.get(key) for key in _SHARES}
        of_pattern = values.get("ci", {})
        if not isinstance(of_pattern, dict):
            raise ValueError(  # noqa: TRY004 - pydantic tells values
                f"per_pattern.{pattern}.ci: expected intervals by metric"
            )
        ci |= {f"per_pattern.{pattern}.ci.{key}": ends for key, ends in of_pattern.items()}
    for name, value in found.items():
        if value is not None and not _is_number(value, 0):
            raise ValueError(f"{name}: expected a number from 0 to 1 or null, got {shorten(value)}")
    if not ((gap := metrics.get("f1_gap_macro")) is None or _is_number(gap, -1)):
        raise ValueError(f"f1_gap_macro: expected a number from -1 to 1, got {shorten(gap)}")
    for name, ends in ci.items():
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise ValueError(f"{name}: expected two ends")
        if not all(end is None or _is_number(end, -1) for end in ends):
            raise ValueError(f"{name}: expected numbers from -1 to 1 or null, got {shorten(ends)}")
    return metrics


def _is_number(value: object, lowest: int) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and lowest <= value <= 1  # type: ignore[operator]


class Score(TypedDict):
    """One entry of ``results.json``: a test prediction file and its scores.

    ``predictions`` is its path in the submission, ``sha256`` its hash and that of its val file,
    ``labels_sha256`` the content hash of the labels, ``trained_on`` the training datasets that the
    file names. ``seconds`` (predicting test), ``seconds_batch_1`` (of a network, cell by cell, as
    the paper measures validation) and ``fit_seconds`` by the clock, the same with ``cpu_`` of the
    processor, ``device``, ``parameters``, ``date`` and ``versions`` come from the run's report, if
    there is one and it has them; ``robustness`` from its file. ``metrics`` is the
    evaluator's result, ``curves`` is for the page. ``f1_replicates``, bootstrap replicates of macro
    F1 (base64 of little-endian float32), decide ties. ``flags`` name what is suspicious.
    """

    predictions: Annotated[str, Field(pattern=f"^{_FILE}$", max_length=300)]
    sha256: dict[_Split, Sha256]
    dataset: _Name
    version: _Version
    split: _Name
    protocol: Protocol
    seed: _Count
    labels_sha256: Sha256
    trained_on: Annotated[TrainedOn, AfterValidator(_check_ids)]
    seconds: _Seconds | None
    seconds_batch_1: NotRequired[_Seconds]
    fit_seconds: _Seconds | None
    device: _Device | None
    parameters: _Count | None
    date: _Date | None
    cpu_seconds: NotRequired[_Seconds]
    cpu_seconds_batch_1: NotRequired[_Seconds]
    cpu_fit_seconds: NotRequired[_Seconds]
    versions: NotRequired[_Versions]
    metrics: Annotated[Metrics, AfterValidator(_check_shares)]
    curves: Curves
    f1_replicates: Annotated[str, AfterValidator(_check_replicates)]
    degrees_of_freedom: _Count
    robustness: RobustnessSummary | None
    flags: list[Annotated[str, Field(max_length=200), AfterValidator(check_text)]]


@dataclass(frozen=True)
class Submission:
    """A submission folder.

    Attributes
    ----------
    folder : pathlib.Path
    metadata : Metadata
    results : list of Score
        Contents of ``results.json``: one entry per test prediction file.
    unreachable : dict of str to str
        Files at addresses that failed, each with the message; they are asked once.
    """

    folder: Path
    metadata: Metadata
    results: list[Score]
    unreachable: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def test_files(self) -> list[str]:
        """Name the prediction files of test splits, here or at an address, sorted."""
        here = (self.folder / "predictions").glob("*/test-seed*.parquet")
        remote = [file.path for file in self.metadata.files if file.url and "/test-" in file.path]
        return sorted({path.relative_to(self.folder).as_posix() for path in here}.union(remote))

    def path(self, name: str) -> Path:
        """Locate a prediction file; from its address it is fetched into the cache, and checked.

        Raises
        ------
        FetchError
            Its address does not answer, or gives other bytes.
        """
        listed = self._listed.get(name)
        if listed is None or listed.url is None or (self.folder / name).exists():
            return self.folder / name
        file = SourceFile(
            path=f"submissions/{self.metadata.method}/{name}",
            urls=(listed.url,),
            bytes=listed.bytes,
            sha256=listed.sha256,
        )
        if name in self.unreachable:
            raise FetchError(self.unreachable[name])
        try:
            return fetch(file, cache_root(), public=True)
        except ChecksumError:
            raise
        except FetchError as error:
            self.unreachable[name] = str(error)
            raise

    def stored_text(self) -> str | None:
        """Read ``results.json``, which :func:`results_text` wrote, or somebody else; None: none."""
        path = self.folder / _RESULTS
        return path.read_bytes().decode() if path.exists() else None  # line breaks as they are

    def stale(self) -> list[str]:
        """Name prediction files that the stored results do not match, and results written by hand.

        With a key twice, or in another order, other programs may read another number.
        """
        stored = {entry["predictions"]: entry for entry in self.results}
        present = self.test_files()
        problems = []
        text = self.stored_text()
        if text is not None and text != results_text(self.results):
            problems.append(f"{_RESULTS}: not as this package writes it, to the byte")
        for name in sorted(stored.keys() | set(present)):
            if name not in present:
                problems.append(f"{name}: results are stored, the prediction file is gone")
            elif name not in stored:
                problems.append(f"{name}: not scored yet")
            elif self._hashes(name) != stored[name]["sha256"]:
                problems.append(f"{name}: changed since it was scored")
        return [f"{self.folder.name}/{text}" for text in problems]

    def unlisted(self) -> list[str]:
        """Name prediction files that ``submission.yaml`` does not list as they are."""
        found = sorted(self.folder.rglob("*.parquet"))
        here = {path.relative_to(self.folder).as_posix(): path for path in found}
        problems = []
        for name in sorted(here.keys() | self._listed.keys()):
            listed = self._listed.get(name)
            if name not in here:
                if listed is not None and listed.url is None:
                    problems.append(f"{name}: is missing, and {METADATA} lists it")
            elif not re.fullmatch(_FILE, name):
                problems.append(
                    f"{name}: expected predictions/<dataset>/test-seed<k>.parquet or val-seed<k>"
                )
            elif listed is None:
                problems.append(f"{name}: {METADATA} does not list it; run gpattern-bench submit")
            elif not (path := here[name]).is_file() or (
                (size := path.stat().st_size, sha256 := file_sha256(path))
                != (listed.bytes, listed.sha256)
            ):
                got = f"{size:,} bytes, {sha256[:12]}" if path.is_file() else "a folder"
                problems.append(
                    f"{name}: {METADATA} lists {listed.bytes:,} bytes, SHA-256 "
                    f"{listed.sha256[:12]}, got {got}; run gpattern-bench submit again"
                )
            elif size > LARGEST:
                problems.append(
                    f"{name}: {size:,} bytes are too many for the repository (at most "
                    f"{LARGEST:,}); publish it, add its address as `url` to its entry in "
                    f"{METADATA}, and remove it here"
                )
        return [f"{self.folder.name}/{text}" for text in problems]

    def rescored(self) -> tuple[list[Score], list[Skipped]]:
        """Score its test prediction files again: entries and skipped files (:func:`rescore`)."""
        [found] = rescore([self])
        return found

    def _scorings(self, datasets: dict[str, Dataset | None]) -> Iterator[_Scoring]:
        """Plan the scoring; everything is checked but the scores themselves."""
        stored = {entry["predictions"]: entry for entry in self.results}
        for name in self.test_files():
            known = stored.get(name)
            try:
                path = self.path(name)
                val = self._val(name)
            except ChecksumError:
                raise
            except FetchError as error:
                if known is None or known["sha256"] != self._hashes(name):
                    raise
                yield _Scoring(name, known, None, Skipped(self._named(name), str(error)))
                continue
            origin = require_origin(path)
            if origin.method != self.metadata.method:
                problem = f"expected predictions of {self.metadata.method!r}, got method "
                raise SubmissionError(str(path), [problem + repr(origin.method)])
            named = f"{origin.dataset}/{origin.stem('test')}.parquet"
            if origin.split != "test" or name != f"predictions/{named}":
                problem = (
                    f"its metadata says split {origin.split}, seed {origin.seed}, protocol "
                    f"{origin.protocol}: expected split test and the name {named}"
                )
                raise SubmissionError(str(path), [problem])
            try:
                entry = find_entry(f"{origin.dataset}@{origin.version}")
            except UnknownDatasetError as error:
                raise SubmissionError(
                    str(path), [f"{error} Only registered datasets are scored"]
                ) from error
            if entry.id not in datasets:
                datasets[entry.id] = _dataset_here(entry)
            dataset = datasets[entry.id]
            if dataset is None:
                why = f"{entry.id} is not here; gpattern-bench download {entry.id} makes it"
                skipped = Skipped(self._named(name), why, pinned=entry.is_pinned)
                yield _Scoring(name, known, None, skipped)
            else:
                yield _Scoring(name, known, (name, path, val, origin, dataset), None)

    def write_results(self, results: Sequence[Score]) -> None:
        """Write ``results.json``."""
        write_text(self.folder / _RESULTS, results_text(results))

    def _named(self, name: str) -> str:
        return f"{self.folder.name}/{name}"

    @cached_property
    def _listed(self) -> dict[str, PredictionFile]:
        return {file.path: file for file in self.metadata.files}

    def _val(self, name: str) -> Path | None:
        """Locate the val file of a test file's run."""
        val = _val_name(name)
        path = self.path(val)
        return path if path.is_file() else None

    def _hashes(self, name: str) -> dict[_Split, str]:
        """Hash a test prediction file and the val file of its run."""
        hashes: dict[_Split, str] = {}
        files: tuple[tuple[_Split, str], ...] = (("test", name), ("val", _val_name(name)))
        for what, each in files:
            path, listed = self.folder / each, self._listed.get(each)
            if path.is_file():
                hashes[what] = file_sha256(path)
            elif listed is not None and listed.url is not None:
                hashes[what] = listed.sha256
        return hashes

    def _score(
        self, name: str, path: Path, val: Path | None, origin: Origin, dataset: Dataset
    ) -> Score:
        if (
            val is not None
            and (found := read_origin(val))
            and found != replace(origin, split="val")
        ):
            problem = f"expected the metadata of {path.name} with split val; run the method again"
            raise SubmissionError(str(val), [problem])
        evaluator = Evaluator(dataset, origin.split)
        checked = evaluator.check(path)
        result = evaluator.eval(checked, val)
        reports = self.folder / "predictions" / origin.dataset
        replicates = result.replicates["f1_macro"].astype("<f4").tobytes()
        score: Score = {
            "predictions": name,
            "sha256": self._hashes(name),
            "dataset": origin.dataset,
            "version": origin.version,
            "split": origin.split,
            "protocol": origin.protocol,
            "seed": origin.seed,
            "labels_sha256": dataset.labels_sha256,
            "trained_on": origin.trained_on,
            **_cost(reports / f"{origin.stem('run')}.json", origin.split),
            "metrics": cast("Metrics", result),
            "curves": _curves(checked, evaluator),
            "f1_replicates": b64encode(replicates).decode(),
            "degrees_of_freedom": result.degrees_of_freedom,
            "robustness": _robustness(reports / f"{origin.stem('robustness')}.json"),
            "flags": self.suspicions(result["auc_macro"]),
        }
        try:
            results_text([score])
        except ValidationError as error:  # what the file says of itself
            problem = f"the board cannot hold what its metadata says ({invalid_text(error, 5)})"
            raise SubmissionError(str(path), [problem]) from error
        return score

    def suspicions(self, auc: float | None) -> list[str]:
        """Flags of a result that rest on the result alone."""
        if "labels" in self.metadata.inputs or auc is None or not auc > SUSPICIOUS_AUC:
            return []
        return [f"AUC above {100 * SUSPICIOUS_AUC:.1f} %"]


@dataclass(frozen=True)
class _Scoring:
    """A prediction file, its stored entry, and arguments of :meth:`Submission._score` or None."""

    name: str
    known: Score | None
    arguments: tuple[str, Path, Path | None, Origin, Dataset] | None
    skipped: Skipped | None


@dataclass(frozen=True)
class Skipped:
    """A prediction file that was not scored again, and why.

    Attributes
    ----------
    name : str
        Submission and path.
    reason : str
    pinned : bool
        False where nobody can make the dataset from pinned files: that file cannot be expected to
        be scored everywhere, and the board does not rank it unless a record says that it was.
    """

    name: str
    reason: str
    pinned: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def origin_of(method: str, score: Score) -> Origin:
    """Return the origin that a stored result gives its prediction file."""
    return Origin(
        score["dataset"],
        score["version"],
        score["split"],
        method,
        score["seed"],
        score["protocol"],
        score["trained_on"],
    )


def rescore(
    submissions: Sequence[Submission], *, jobs: int | None = None, cluster: str | None = None
) -> list[tuple[list[Score], list[Skipped]]]:
    """Score every test prediction file of several submissions again.

    Entries stay as stored, and their files are skipped, where the dataset is not here or an address
    does not answer. The values do not depend on the number of workers.

    Parameters
    ----------
    submissions : sequence of Submission
    jobs, cluster
        As :func:`gpattern_bench.base.workers.workers` takes them. A cluster's workers must see
        submissions and cache under the same paths.

    Returns
    -------
    list of (list of Score, list of Skipped)
        Per submission its entries, and the files that were skipped.

    Raises
    ------
    SubmissionError
        A prediction file is of another method or an unknown dataset, or its metadata gives it
        another name.
    PredictionError
        A prediction file is invalid.
    TableError
        The labels or splits of a dataset here are not those that the registry pins.
    FetchError
        A file without stored scores cannot be fetched, or an address gives other bytes.
    """
    if cluster is not None or jobs not in (None, 1):  # a worker may have another current folder
        submissions = [replace(each, folder=each.folder.absolute()) for each in submissions]
    datasets: dict[str, Dataset | None] = {}
    plans = [list(submission._scorings(datasets)) for submission in submissions]
    with workers(jobs, cluster) as backend:
        tasks = (
            (replace(submission, results=[]), *each.arguments)  # results are large, and not used
            for submission, plan in zip(submissions, plans, strict=True)
            for each in plan
            if each.arguments is not None
        )
        total = sum(each.arguments is not None for plan in plans for each in plan)
        scoring = Progress("scoring", total, unit="prediction files")
        scores = iter(list(scoring.over(in_order(backend, Submission._score, tasks))))
    found = []
    for plan in plans:
        results = [each.known if each.arguments is None else next(scores) for each in plan]
        skipped = [each.skipped for each in plan if each.skipped is not None]
        found.append(([score for score in results if score is not None], skipped))
    return found


def read_submissions(folder: Path) -> list[Submission]:
    """Read every submission in a folder, by name; names with ``_`` in front are templates.

    Raises
    ------
    SubmissionError
        With every problem of every ``submission.yaml``, and labels that look alike.
    """
    submissions, problems = [], []
    if not folder.is_dir():
        raise SubmissionError(str(folder), ["no such folder; name the folder of submissions"])
    for path in sorted(child / METADATA for child in folder.iterdir() if child.is_dir()):
        if path.parent.name.startswith(("_", ".")):
            continue
        if not path.parent.name.isprintable():
            problems.append(f"{path.parent.name!a}: expected a folder named like the method")
            continue
        if found := irregular(path.parent, LARGEST_READ):
            problems += [f"{path.parent}: {problem}" for problem in found]
            continue
        if not path.is_file():
            problems.append(f"{path.parent} has no file {METADATA}: copy one and change it")
            continue
        try:
            metadata = Metadata.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
            results_path = path.parent / _RESULTS
            text = results_path.read_bytes() if results_path.exists() else b"[]"
            results = adapter(list[Score]).validate_json(text)
        except ValidationError as error:
            old = error.title.startswith("list")
            problems += [
                f"{path.parent / (_RESULTS if old else METADATA)}: {field}: {reason}"
                + _OLD_RESULTS * old
                for field, reason in invalid_fields(error)
            ]
            continue
        except (ValueError, OSError) as error:
            problems.append(f"{path.parent}: cannot be read: {error}")
            continue
        if metadata.method != path.parent.name:
            problems.append(
                f"{path}: method is {metadata.method!r}, expected the folder's name "
                f"{path.parent.name!r}"
            )
        submissions.append(Submission(path.parent, metadata, results))
    problems += look_alikes((each.metadata.method, each.metadata.label) for each in submissions)
    if problems:
        raise SubmissionError(str(folder), problems)
    return submissions


def _dataset_here(entry: Entry) -> Dataset | None:
    """Load a registered dataset; None if its files are not here.

    What decides the scores is compared with the registry by its values: a manifest, or a folder
    that somebody changed, is not believed.
    """
    try:
        dataset = load_dataset(entry.id, download=False)
    except FetchError:
        return None
    problems = []
    for table in ("labels", "splits"):
        files = {str(name): file for name, file in dataset.manifest.files.items()}
        if f"{table}.parquet" not in files:
            continue  # the evaluator says that there are no labels
        stated = files[f"{table}.parquet"].content_sha256
        pinned = entry.content_sha256.get(table, stated)
        found = table_sha256(dataset.folder / f"{table}.parquet")
        if not found == stated == pinned:
            problems.append(
                f"{table}.parquet: the registry pins {pinned[:12]}, {MANIFEST} says {stated[:12]}, "
                f"its values have the hash {found[:12]}; remove the folder and make it again"
            )
    if problems:
        raise TableError(f"{dataset.folder} ({entry.id})", problems)
    return dataset


def _curves(checked: Checked, evaluator: Evaluator) -> Curves:
    labels, patterns = evaluator.labels, evaluator.patterns
    truth = labels[list(patterns)].to_numpy(bool)
    return compute_curves(
        truth, checked.require(), patterns, *stratify("molecules", labels, None, evaluator.split)
    )


class _Cost(TypedDict):
    """The part of a run's report that the board shows: measured, never typed."""

    seconds: _Seconds | None
    seconds_batch_1: NotRequired[_Seconds]
    fit_seconds: _Seconds | None
    device: _Device | None
    parameters: _Count | None
    date: _Date | None
    cpu_seconds: NotRequired[_Seconds]
    cpu_seconds_batch_1: NotRequired[_Seconds]
    cpu_fit_seconds: NotRequired[_Seconds]
    versions: NotRequired[_Versions]


def _cost(report: Path, split: str) -> _Cost:
    """Read a run's cost; all None without a report, some in reports of older versions."""
    if not report.is_file():
        return _Cost(seconds=None, fit_seconds=None, device=None, parameters=None, date=None)
    try:
        run = json.loads(report.read_text(encoding="utf-8"))
        of_processor = run.get("cpu_seconds") or {}
        later = {
            "seconds_batch_1": (run.get("seconds_by_batch") or {}).get("1"),
            "cpu_seconds": of_processor.get(split),
            "cpu_seconds_batch_1": (run.get("cpu_seconds_by_batch") or {}).get("1"),
            "cpu_fit_seconds": of_processor.get("fit"),
            "versions": run.get("versions"),
        }
        return adapter(_Cost).validate_python(
            {key: value for key, value in later.items() if value is not None}
            | {
                "seconds": run["seconds"][split],
                "fit_seconds": run["seconds"].get("fit"),
                "device": run["device"],
                "parameters": run.get("parameters"),
                "date": run.get("date"),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"not the report of a run ({error!r}); run the method again"
        raise SubmissionError(str(report), [problem]) from error


def _robustness(report: Path) -> RobustnessSummary | None:
    """Read the report of ``gpattern-bench robustness``; None without one."""
    if not report.is_file():
        return None
    try:
        return adapter(RobustnessSummary).validate_json(report.read_bytes())
    except ValueError as error:
        problem = f"not a report of robustness ({error}); run gpattern-bench robustness again"
        raise SubmissionError(str(report), [problem]) from error


def _val_name(name: str) -> str:
    """Name the val file of a test file's run."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/val{file.removeprefix('test')}"


def results_text(results: Sequence[Score]) -> str:
    """Render ``results.json``: sorted by file, NaN as null."""
    ordered = sorted(results, key=lambda entry: str(entry["predictions"]))
    # Validated as in reading, which puts keys in one order.
    checked = adapter(list[Score]).validate_python(plain(ordered))
    text = json.dumps(checked, indent=1, ensure_ascii=False) + "\n"
    # Each list of numbers on one line; strings in JSON hold no line breaks.
    return re.sub(r"\[\n[-+\d.eE,\s\[\]]+\]", lambda found: " ".join(found[0].split()), text)
