"""Submissions: a folder per method with its metadata, prediction files and results."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from gpattern_bench.curves import Curves, curves
from gpattern_bench.dataset import Dataset, load_dataset
from gpattern_bench.errors import FetchError, SubmissionError, UnknownDatasetError
from gpattern_bench.evaluator import Evaluator
from gpattern_bench.files import file_sha256, plain, write_text
from gpattern_bench.methods.base import About
from gpattern_bench.predictions import Origin, Protocol, read_origin, read_predictions
from gpattern_bench.strata import parts
from gpattern_bench.uncertainty import REPLICATES

__all__ = ["Metadata", "Score", "Submission", "read_submissions", "results_text"]

_METADATA, _RESULTS = "submission.yaml", "results.json"
_FILE = r"predictions/[^/]+/(test|val)-seed\d+[^/]*\.parquet"
_OLD_RESULTS = "; if an older version wrote it, delete it and run leaderboard --rescore"


class Metadata(BaseModel):
    """What a submission says of its method (``submission.yaml``); unknown keys are errors.

    Attributes
    ----------
    method : str
        Name of the folder and of the method in the prediction files.
    label, summary : str
        As shown on the board; one sentence.
    kind : {"control", "baseline", "model"}
    authors : tuple of str
    reference, code, licence : str
        Paper or preprint; where the code is; its licence.
    inputs : tuple of str
        What the method looks at.
    rules_for : tuple of str or None
        Patterns that the method has a rule for, where it lacks some; the board marks the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(pattern="^[a-z][a-z0-9_]*$")
    label: str
    kind: Literal["control", "baseline", "model"]
    summary: str
    authors: tuple[str, ...] = Field(min_length=1)
    reference: str
    code: str
    licence: str
    inputs: tuple[Literal["coordinates", "gene", "cell outline", "nucleus outline", "labels"], ...]
    rules_for: tuple[str, ...] | None = None

    @classmethod
    def of(cls, about: About) -> Metadata:
        """Metadata of a method that ships with this package."""
        return cls.model_validate(
            {
                "method": about.name,
                "label": about.label,
                "kind": about.kind,
                "summary": about.summary,
                "authors": ("The gpattern-bench developers",),
                "reference": about.reference,
                "code": "gpattern_bench/methods",
                "licence": "MIT",
                "inputs": about.inputs,
                "rules_for": about.rules_for,
            }
        )

    def write(self, folder: Path) -> None:
        """Write ``submission.yaml`` into a folder."""
        values = self.model_dump(mode="json", exclude_none=True)
        write_text(folder / _METADATA, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


class Metrics(TypedDict):
    """What the board needs of an evaluator's result; further keys are kept."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    auc_macro: float | None
    acc_macro: float | None
    f1_macro: float | None
    ap_macro: float | None
    accuracy_subset: float | None
    n: int
    per_pattern: dict[str, dict[str, Any]]
    ci: dict[str, list[float | None]]
    n_clusters: int
    clusters: str


def _decodes(text: str) -> str:
    if len(b64decode(text, validate=True)) != 4 * REPLICATES:
        raise ValueError(f"expected {REPLICATES} values of 4 bytes")
    return text


class Score(TypedDict):
    """One entry of ``results.json``: a test prediction file and what it scored.

    ``predictions`` is its path in the submission, ``sha256`` the hashes of it and of the val file
    beside it, ``labels_sha256`` the content hash of the labels that it was scored on; ``seconds``
    and ``device`` come from the run, where there is one; ``metrics`` is the evaluator's result;
    ``curves`` is what the board's page draws; ``f1_replicates`` are the bootstrap replicates of
    its macro F1 (base64 of little-endian float32), from which the board tells which methods are
    tied.
    """

    predictions: str
    sha256: dict[str, str]
    dataset: str
    version: str
    split: str
    protocol: Protocol
    seed: int
    labels_sha256: str
    trained_on: str | None
    seconds: float | None
    device: str | None
    metrics: Metrics
    curves: Curves
    f1_replicates: Annotated[str, AfterValidator(_decodes)]
    degrees_of_freedom: int


@dataclass(frozen=True)
class Submission:
    """A submission folder.

    Attributes
    ----------
    folder : pathlib.Path
    metadata : Metadata
    results : list of Score
        What ``results.json`` holds: one entry per test prediction file.
    """

    folder: Path
    metadata: Metadata
    results: list[Score]

    def test_files(self) -> Iterator[Path]:
        """Prediction files of test splits, in sorted order."""
        yield from sorted((self.folder / "predictions").glob("*/test-seed*.parquet"))

    def stale(self) -> list[str]:
        """Ways in which the stored results do not belong to the prediction files that are there."""
        stored = {entry["predictions"]: entry for entry in self.results}
        present = {self._relative(path): path for path in self.test_files()}
        problems = []
        for name in sorted(stored.keys() | present.keys()):
            if name not in present:
                problems.append(f"{name}: results are stored, the prediction file is gone")
            elif name not in stored:
                problems.append(f"{name}: not scored yet")
            elif _hashes(present[name]) != stored[name]["sha256"]:
                problems.append(f"{name}: changed since it was scored")
        strange = [
            path
            for path in self.folder.rglob("*.parquet")
            if not re.fullmatch(_FILE, self._relative(path))
        ]
        problems += [
            f"{self._relative(path)}: not where or named as a prediction file of test or val is"
            for path in sorted(strange)
        ]
        return [f"{self.folder.name}/{text}" for text in problems]

    def rescored(self) -> tuple[list[Score], list[str]]:
        """Score every test prediction file again.

        Returns
        -------
        results : list of Score
            New entries; those of datasets that cannot be had here stay as stored.
        skipped : list of str
            Prediction files whose dataset cannot be had here.

        Raises
        ------
        SubmissionError
            A prediction file is of another method, or its name is not what its metadata says.
        PredictionError
            A prediction file is wrong.
        """
        stored = {entry["predictions"]: entry for entry in self.results}
        results, skipped = [], []
        for path in self.test_files():
            name = self._relative(path)
            origin = read_origin(path)
            if origin is None:
                read_predictions(path)  # says so if the file cannot be read at all
                problem = "no readable metadata; write it with write_predictions"
                raise SubmissionError(str(path), [problem])
            if origin.method != self.metadata.method:
                problem = f"expected predictions of {self.metadata.method!r}, got method "
                raise SubmissionError(str(path), [problem + repr(origin.method)])
            named = f"{origin.dataset}/{origin.stem('test')}.parquet"
            if origin.split != "test" or f"{path.parent.name}/{path.name}" != named:
                problem = (
                    f"its metadata says split {origin.split}, seed {origin.seed}, protocol "
                    f"{origin.protocol}: expected split test and the name {named}"
                )
                raise SubmissionError(str(path), [problem])
            dataset = _obtained(origin)
            if dataset is None:
                skipped.append(f"{self.folder.name}/{name}")
                results += [stored[name]] if name in stored else []
            else:
                results.append(_score(path, name, origin, dataset))
        return results, skipped

    def write_results(self, results: Sequence[Score]) -> None:
        """Write ``results.json``."""
        write_text(self.folder / _RESULTS, results_text(results))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def read_submissions(folder: Path) -> list[Submission]:
    """Read every submission below a folder, by name; folders that begin with ``_`` are templates.

    Raises
    ------
    SubmissionError
        With every problem of every ``submission.yaml``.
    """
    submissions, problems = [], []
    if not folder.is_dir():
        raise SubmissionError(str(folder), ["no such folder; name the folder of submissions"])
    for path in sorted(child / _METADATA for child in folder.iterdir() if child.is_dir()):
        if path.parent.name.startswith(("_", ".")):
            continue
        if not path.is_file():
            problems.append(f"{path.parent} has no file {_METADATA}: copy one and change it")
            continue
        try:
            metadata = Metadata.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
            results_path = path.parent / _RESULTS
            text = results_path.read_bytes() if results_path.exists() else b"[]"
            results = TypeAdapter(list[Score]).validate_json(text)
        except ValidationError as error:
            problems += [
                f"{path.parent / (_RESULTS if error.title.startswith('list') else _METADATA)}: "
                f"{'.'.join(map(str, found['loc'])) or 'the file'}: {found['msg']}, "
                f"got {str(found['input'])[:80]!r}" + _OLD_RESULTS * error.title.startswith("list")
                for found in error.errors()
            ]
            continue
        except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
            problems.append(f"{path.parent}: cannot be read: {error}")
            continue
        if metadata.method != path.parent.name:
            problems.append(
                f"{path}: method is {metadata.method!r}, expected the folder's name "
                f"{path.parent.name!r}"
            )
        submissions.append(Submission(path.parent, metadata, results))
    if problems:
        raise SubmissionError(str(folder), problems)
    return submissions


def _obtained(origin: Origin) -> Dataset | None:
    """The dataset that a prediction file belongs to, or None if its files are not here."""
    try:
        return load_dataset(f"{origin.dataset}@{origin.version}", download=False)
    except (FetchError, UnknownDatasetError):
        return None


def _score(path: Path, name: str, origin: Origin, dataset: Dataset) -> Score:
    val = path.with_name(origin.stem("val") + ".parquet")
    if val.is_file() and (found := read_origin(val)) and found != replace(origin, split="val"):
        problem = f"expected the metadata of {path.name} with split val; run the method again"
        raise SubmissionError(str(val), [problem])
    evaluator = Evaluator(dataset, origin.split)
    result = evaluator.eval(path, val if val.is_file() else None)
    seconds, device = _cost(path.with_name(origin.stem("run") + ".json"), origin.split)
    return {
        "predictions": name,
        "sha256": _hashes(path),
        "dataset": origin.dataset,
        "version": origin.version,
        "split": origin.split,
        "protocol": origin.protocol,
        "seed": origin.seed,
        "labels_sha256": dataset.labels_sha256,
        "trained_on": origin.trained_on,
        "seconds": seconds,
        "device": device,
        "metrics": cast("Metrics", result),
        "curves": _curves(path, evaluator),
        "f1_replicates": b64encode(result.replicates["f1_macro"].astype("<f4").tobytes()).decode(),
        "degrees_of_freedom": result.degrees_of_freedom,
    }


def _curves(path: Path, evaluator: Evaluator) -> Curves:
    labels, patterns = evaluator.labels, evaluator.patterns
    scores = evaluator.check(path).scores
    assert scores is not None  # it has just been scored
    truth = labels[list(patterns)].to_numpy(bool)
    return curves(truth, scores, patterns, *parts("molecules", labels, None, evaluator.split))


def _cost(report: Path, split: str) -> tuple[float | None, str | None]:
    """Seconds and device of a run, measured by `run` and never typed; None without a report."""
    if not report.is_file():
        return None, None
    try:
        run = json.loads(report.read_text(encoding="utf-8"))
        return float(run["seconds"][split]), str(run["device"])
    except (ValueError, KeyError, TypeError) as error:
        problem = f"not the report of a run ({error!r}); run the method again"
        raise SubmissionError(str(report), [problem]) from error


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a test prediction file and of the val file of the same run."""
    val = path.with_name("val" + path.name.removeprefix("test"))
    return {p.stem.split("-")[0]: file_sha256(p) for p in (path, val) if p.is_file()}


def results_text(results: Sequence[Score]) -> str:
    """``results.json``: sorted by file, NaN as null."""
    ordered = sorted(results, key=lambda entry: str(entry["predictions"]))
    # Checked as when it is read, so that keys stand in one order whichever way they came.
    checked = TypeAdapter(list[Score]).validate_python(plain(ordered))
    text = json.dumps(checked, indent=1, ensure_ascii=False) + "\n"
    # Lists of numbers on one line each; no text of JSON holds a line break.
    return re.sub(r"\[\n[-+\d.eE,\s\[\]]+\]", lambda found: " ".join(found[0].split()), text)
