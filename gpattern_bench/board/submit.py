"""Submitting: copy a run into a submission's folder, all of it or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from gpattern_bench.base.files import file_sha256, irregular, write_text
from gpattern_bench.base.validation import adapter, invalid_fields, invalid_text
from gpattern_bench.board.metadata import (
    LARGEST_READ,
    METADATA,
    Metadata,
    PredictionFile,
    parse_yaml,
    placeholders,
)
from gpattern_bench.board.rules import file_contradictions
from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import GPatternBenchError, PredictionError, SubmissionError
from gpattern_bench.methods import METHODS, get_method
from gpattern_bench.predictions import check_file
from gpattern_bench.runs.run import Run
from gpattern_bench.tables.predictions import Origin, name_clash, read_origin, require_origin

__all__ = ["listed_files", "submit_run"]

_PATTERN = "*/{}-seed*.parquet"


def listed_files(folder: Path, known: tuple[PredictionFile, ...] = ()) -> list[PredictionFile]:
    """List the prediction files in a submission's folder, and those of `known` at an address."""
    found = {
        (path := file.relative_to(folder).as_posix()): PredictionFile(
            path=path, bytes=file.stat().st_size, sha256=file_sha256(file)
        )
        for what in ("test", "val")
        for file in sorted((folder / "predictions").glob(_PATTERN.format(what)))
    }
    remote = {file.path: file for file in known if file.url is not None}
    return list((remote | found).values())


def submit_run(run: Path, to: Path) -> Metadata:
    """Copy a run's prediction files and reports into a submission, and list them there.

    The package writes ``submission.yaml`` for methods that ship with it. For others the one in the
    folder stays, with its list of files renewed; without one, the template is copied there and the
    error names what to fill in. Files of earlier runs, and of other processes that submit at the
    same time, stay.

    Parameters
    ----------
    run : pathlib.Path
        Folder given to ``run_method`` or ``gpattern-bench run --out``; holds ``<dataset>/...``.
    to : pathlib.Path
        The submission's folder, named like the method.

    Returns
    -------
    Metadata
        As written.

    Raises
    ------
    SubmissionError
        With every problem; the folder stays as it was.
    """
    files = [file for what in ("test", "val") for file in sorted(run.glob(_PATTERN.format(what)))]
    problems: list[str] = []
    if not any(file.name.startswith("test-") for file in files):
        problems.append(
            f"{run} has no prediction files <dataset>/test-seed<k>.parquet; name the folder that "
            "was given to `gpattern-bench run --out` or to run_method"
        )
    _recover(to)
    if found := irregular(to, LARGEST_READ):
        raise SubmissionError(str(to), found)
    metadata, previous = _metadata(to, problems)
    reports: list[Path] = []
    datasets: dict[str, Dataset | str] = {}
    for file in files:
        origin = _checked(file, to.name, datasets, problems)
        there = to / "predictions" / file.parent.name / file.name
        if origin is not None and (clash := name_clash(there, origin)):
            problems.append(f"{clash}; remove it to put them there")
        if origin is None or origin.split != "test":
            continue
        if metadata is not None:
            problems += [f"{file}: {text}" for text in file_contradictions(metadata, origin)]
        dataset = datasets[f"{origin.dataset}@{origin.version}"]
        if isinstance(dataset, Dataset):
            _check_companions(file, origin, dataset, metadata, problems)
            real = not dataset.manifest.is_simulated
            if metadata is not None and "labels" in metadata.inputs and real:
                problems.append(
                    f"{file}: {to.name} shows the labels, and real labels are never committed; "
                    "submit a run on simulated data"
                )
        for what in ("run", "robustness"):
            report = file.with_name(f"{origin.stem(what)}.json")
            reports += [report] if report.is_file() else []
    if metadata is not None:
        staying = {f"predictions/{file.parent.name}/{file.name}" for file in files}
        problems += [
            f"{to / file.path}: not the bytes that {METADATA} lists; submit its run again"
            for file in metadata.files
            if file.path not in staying
            and file.url is None
            and not ((to / file.path).is_file() and file_sha256(to / file.path) == file.sha256)
        ]
    if problems or metadata is None:
        raise SubmissionError(str(to), problems)
    return _replace_folder([*files, *reports], to, metadata, previous)


def _metadata(to: Path, problems: list[str]) -> tuple[Metadata | None, str]:
    """Read the method's metadata, and the text of its ``submission.yaml``."""
    path = to / METADATA
    name = to.name
    if not path.is_file() and name not in METHODS:
        template = to.parent / "_template" / METADATA
        if not template.is_file():
            problems.append(f"{path} is missing, and there is no template at {template}")
            return None, ""
        write_text(path, template.read_text(encoding="utf-8"))
        problems.append(f"{path} was missing: the template is copied there")
    text = ""
    unfilled: dict[str, str] = {}
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        values: Any = parse_yaml(text)
        if name in METHODS:
            about = get_method(name).about
            listed = (values or {}).get("files") or []
            files = adapter(tuple[PredictionFile, ...]).validate_python(listed)
            return Metadata.of(about).with_files(files), ""
        unfilled = placeholders(values)
        problems += [f"{path}: {key}: replace {hint} with yours" for key, hint in unfilled.items()]
        metadata = Metadata.model_validate(values)
    except ValidationError as error:
        problems += [
            f"{path}: {field}: {reason}"
            for field, reason in invalid_fields(error)
            if not any(f"{key}.".startswith(f"{field}.") for key in unfilled)
        ]
        return None, text
    except (AttributeError, ValueError, OSError) as error:
        problems.append(f"{path}: cannot be read: {error}")
        return None, text
    if metadata.method != name:
        problems.append(
            f"{path}: method is {metadata.method!r}, expected the folder's name {name!r}"
        )
    return metadata, text


def _checked(
    file: Path, method: str, datasets: dict[str, Dataset | str], problems: list[str]
) -> Origin | None:
    """Check a prediction file, adding to `problems`; give its origin, if it names one."""
    try:
        origin = require_origin(file)
    except PredictionError as error:
        problems += [f"{file}: {problem}" for problem in error.problems]
        return None
    if origin.method != method:
        problems.append(
            f"{file}: predictions of {origin.method!r}, expected those of {method!r}, the folder's "
            "name"
        )
    named = f"{origin.dataset}/{origin.stem()}.parquet"
    if f"{file.parent.name}/{file.name}" != named:
        problems.append(f"{file}: its metadata gives it the name {named}")
    known = f"{origin.dataset}@{origin.version}"
    if known not in datasets:
        try:
            datasets[known] = load_dataset(known)
        except GPatternBenchError as error:
            datasets[known] = str(error)
            problems.append(f"{file}: it cannot be checked without the dataset: {error}")
    dataset = datasets[known]
    if isinstance(dataset, str):
        return origin
    if origin.split not in dataset.splits:
        problems.append(f"{file}: {known} has no split {origin.split}")
        return origin
    try:
        found = check_file(file, dataset, origin.split).problems
    except PredictionError as error:
        found = list(error.problems)
    problems += [f"{file}: {problem}" for problem in found]
    return origin


def _check_companions(
    file: Path, origin: Origin, dataset: Dataset, metadata: Metadata | None, problems: list[str]
) -> None:
    """Check what lies with a test file: its val file, and the report of its run if there is one."""
    val = file.with_name(f"{origin.stem('val')}.parquet")
    if "val" in dataset.splits:
        if not val.is_file():
            problems.append(f"{val} is missing: predict the val split too")
        elif (other := read_origin(val)) and other != replace(origin, split="val"):
            problems.append(f"{val}: its metadata is not that of {file.name} with split val")
    report = file.with_name(f"{origin.stem('run')}.json")
    if not report.is_file():
        return  # nothing was measured: the board shows none
    try:
        made = adapter(Run).validate_json(report.read_bytes())
    except ValidationError as error:
        found = invalid_text(error)
        problems.append(f"{report}: not the report of a run ({found}); run the method again")
        return
    problems += [
        f"{report}: {key} is {getattr(made, key)!r}, {file.name} says {getattr(origin, key)!r}"
        for key in ("method", "dataset", "version", "seed", "protocol", "trained_on")
        if getattr(made, key) != getattr(origin, key)
    ]
    if metadata is not None:
        problems += [f"{METADATA}: {text} ({report})" for text in _undeclared(metadata, made)]


def _undeclared(metadata: Metadata, made: Run) -> Iterator[str]:
    """Say what a submission declares otherwise than its run measured."""
    if more := [name for name in made.depends_on or () if name not in metadata.inputs]:
        yield (
            f"inputs: [{', '.join(metadata.inputs)}], but other values of {' and '.join(more)} "
            "changed the scores of this run: add them"
        )
    if metadata.deterministic and made.repeats is False:
        yield (
            "deterministic: true, but two scorings of the same cells differed in this run: say "
            "false, or seed what draws"
        )


def _recover(to: Path) -> None:
    """Put a folder back in its place that a process had moved away when it was killed."""
    if to.exists() or not list(_beside(to)):
        return
    with _alone(to):  # a living process may have moved it
        for stale in _beside(to):
            if not to.exists() and (stale / "old").is_dir():
                (stale / "old").replace(to)


def _beside(to: Path) -> Iterator[Path]:
    """Folders in which processes prepare new content."""
    return to.parent.glob(f".{escape(to.name)}-{'?' * 8}")


def _alone(to: Path) -> FileLock:
    return FileLock(to.parent / f".{to.name}.lock")


def _replace_folder(sources: list[Path], to: Path, metadata: Metadata, previous: str) -> Metadata:
    """Make the new folder, then put it in the old one's place.

    One process at a time: two that start from the same folder would drop each other's files.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with _alone(to):
        for stale in _beside(to):  # left by a killed process
            if not (stale / "old").is_dir():  # else it may hold the only copy
                shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as beside:
            new, old = Path(beside) / "new", Path(beside) / "old"
            new.mkdir()
            if to.is_dir():
                shutil.copytree(to, new, dirs_exist_ok=True)
            for source in sources:
                target = new / "predictions" / source.parent.name / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            metadata = metadata.with_files(tuple(_without_remote_copies(new, metadata)))
            write_text(new / METADATA, metadata.text(previous))
            if to.is_dir():
                to.replace(old)
            try:
                new.replace(to)
            except OSError:
                if old.is_dir():
                    old.replace(to)
                raise
    return metadata


def _without_remote_copies(new: Path, metadata: Metadata) -> list[PredictionFile]:
    """List the files, and delete unchanged copies of those at an address."""
    known = {file.path: file for file in metadata.files if file.url is not None}
    files = []
    for file in listed_files(new, metadata.files):
        remote = known.get(file.path)
        if remote is not None and (remote.bytes, remote.sha256) == (file.bytes, file.sha256):
            (new / file.path).unlink(missing_ok=True)
            file = remote
        files.append(file)
    return files
