"""Rules: what a submission says, its prediction files and their datasets do not contradict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpattern_bench.board.metadata import METADATA
from gpattern_bench.board.submission import Metadata, Score, Submission, origin_of
from gpattern_bench.sources.registry import Entry, registry
from gpattern_bench.tables.predictions import Origin, training_problems

__all__ = ["contradictions", "file_contradictions"]

_OWN = ("fit", "cv-cell")  # protocols of methods fitted on the dataset that they predict


def contradictions(submissions: Sequence[Submission]) -> list[str]:
    """Name what contradicts itself in submissions and their stored results.

    Of each result: :func:`file_contradictions`, and whether patterns that the method has no rule
    for are left unscored. Of each submission: whether its files were fitted on every dataset that
    it names, and whether the methods that it is a variant of are there and of the same authors.
    """
    authors = {each.metadata.method: set(each.metadata.authors) for each in submissions}
    labelled = {entry.name for entry in registry() if _has_labels(entry)}
    problems = []
    for submission in submissions:
        about, name = submission.metadata, submission.folder.name
        fitted = set()
        for score in submission.results:
            origin = origin_of(about.method, score)
            found = training_problems(origin) + file_contradictions(about, origin)
            found += [
                f"{METADATA} says that it has no rule for {pattern}, and its scores differ"
                for pattern in _unruled(about, score)
            ]
            problems += [f"{name}/{score['predictions']}: {text}" for text in found]
            fitted |= {_name(one) for one in origin.trained_on or ()}
            fitted |= {origin.dataset} if origin.protocol in _OWN else set()
        problems += [
            f"{name}/{METADATA}: trained_on names {one}, and no prediction file was fitted on it"
            for one in about.trained_on or ()
            if submission.results and _name(one) in labelled - fitted
        ]
        for other in about.variant_of:
            if other not in authors:
                problems.append(f"{name}/{METADATA}: variant_of: there is no method {other}")
            elif not authors[other] & set(about.authors):
                problems.append(
                    f"{name}/{METADATA}: variant_of: {other} is by other authors; a variant is of "
                    "one's own method"
                )
    return problems


def file_contradictions(about: Metadata, origin: Origin) -> list[str]:
    """Name contradictions between ``submission.yaml``, a prediction file and its dataset."""
    known = {entry.id: entry for entry in registry()}
    return [*_against_metadata(about, origin, known), *_against_registry(origin, known)]


def _against_metadata(about: Metadata, origin: Origin, known: Mapping[str, Entry]) -> Iterator[str]:
    protocol = origin.protocol
    if about.trained_on is None:
        if protocol != "untrained":
            yield (
                f"protocol {protocol}, and {METADATA} says that the method learns nothing "
                "(trained_on: null)"
            )
        return
    said = f"{METADATA} says trained_on: [{', '.join(about.trained_on)}]"
    if protocol == "untrained":
        yield f"protocol untrained, and {said}; what learns nothing has trained_on: null"
        return
    named = {_name(one) for one in about.trained_on}
    if "train" in named:  # train splits of whatever the file names
        return
    lacking = [
        one
        for one in origin.trained_on or ()
        if _name(one) not in named and not ("simulated" in named and _simulated(one, known, True))
    ]
    if protocol in _OWN and origin.dataset not in named:
        lacking.append("train")
    if lacking:
        yield f"protocol {protocol}, and {said}: it lacks {', '.join(dict.fromkeys(lacking))}"


def _against_registry(origin: Origin, known: Mapping[str, Entry]) -> Iterator[str]:
    own, protocol = f"{origin.dataset}@{origin.version}", origin.protocol
    named = origin.trained_on or ()
    others = [one for one in named if one != own]
    names = {entry.name for entry in known.values()}
    for one in others:
        if _name(one) == origin.dataset:
            yield f"fitted on {one}, another version of the dataset, which may hold the same cells"
        elif _name(one) in names and one not in known:
            yield f"fitted on {one}, a version that the registry does not have"
    if (entry := known.get(own)) is not None:
        if not _has_train(entry) and (protocol == "fit" or own in named):
            yield f"fitted on {own}, which has no train split: its labels are those of test"
        if _has_train(entry) and protocol == "cv-cell":
            yield f"protocol cv-cell, and {own} has a train split: fit there"
    if protocol in ("fit", "simulation"):
        for one in others:
            if not _simulated(one, known, True):
                yield f"protocol {protocol}, and {one} is no simulation: that is transfer"
    if protocol == "transfer" and others and all(_simulated(one, known, False) for one in others):
        yield f"protocol transfer, and {', '.join(others)} has simulated cells only"


def _unruled(about: Metadata, score: Score) -> list[str]:
    """Name patterns without a rule whose scores differ from pair to pair: their AUC is not 1/2."""
    per_pattern = score["metrics"]["per_pattern"]
    return [
        pattern
        for pattern, values in per_pattern.items()
        if about.rules_for is not None
        and pattern not in about.rules_for
        and values.get("auc") not in (None, 0.5)
    ]


def _name(dataset: str) -> str:
    return dataset.partition("@")[0]


def _simulated(dataset: str, known: Mapping[str, Entry], unknown: bool) -> bool:
    """Test whether a registered dataset is simulated; `unknown` for one that is not registered."""
    entry = known.get(dataset)
    return unknown if entry is None else entry.recipe.format == "simulated"


def _has_train(entry: Entry) -> bool:
    recipe = entry.recipe
    return "train" in recipe.splits.values() if recipe.splits else recipe.split != "test"


def _has_labels(entry: Entry) -> bool:
    return bool(entry.published) or "labelled_pairs" in entry.counts
