"""The registry is sound: unique names, pinned addresses, true hashes, helpful errors."""

import re
from pathlib import Path

import pytest

from gpattern_bench import list_datasets as public_list_datasets
from gpattern_bench.errors import UnknownDatasetError
from gpattern_bench.files import file_sha256
from gpattern_bench.registry import Entry, SourceFile, find_entry, list_datasets, registry

ENTRIES = registry()
FILES = [
    pytest.param(file, id=f"{entry.name}:{file.path}") for entry in ENTRIES for file in entry.files
]
LABELLED = [entry for entry in ENTRIES if "labels" in entry.content_sha256]

each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
each_file = pytest.mark.parametrize("file", FILES)


def test_name_and_version_are_unique():
    ids = [entry.id for entry in ENTRIES]
    assert len(ids) == len(set(ids))


def test_list_has_each_name_once():
    assert list_datasets() == public_list_datasets() == list(dict.fromkeys(e.name for e in ENTRIES))
    assert {"synthetic", "nih3t3_gold", "u2os_gold", "u2os_sample"} <= set(list_datasets())


@each_file
def test_address_is_pinned_to_a_commit(file: SourceFile):
    assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/\S+$", file.url)


@each_file
def test_path_stays_below_the_mirror_and_names_the_file_of_the_address(file: SourceFile):
    assert not file.path.startswith("/")
    assert ".." not in Path(file.path).parts
    assert file.url.endswith(f"/{Path(file.path).name}")


@each_file
def test_size_and_hash_are_those_of_the_real_file(shared: Path, file: SourceFile):
    sums = {}
    for line in (shared / "SHA256SUMS").read_text().splitlines():
        digest, path = line.split(maxsplit=1)
        sums[path.removeprefix("./")] = digest
    assert sums[file.path] == file.sha256
    assert (shared / file.path).stat().st_size == file.bytes
    assert file_sha256(shared / file.path) == file.sha256


def test_paths_of_different_files_differ():
    known: dict[str, SourceFile] = {}
    for entry in ENTRIES:
        for file in entry.files:
            assert known.setdefault(file.path, file) == file


@each_entry
def test_recipe_reads_only_files_of_the_entry(entry: Entry):
    paths = [file.path for file in entry.files]
    recipe = entry.recipe
    if recipe.format == "simulated":
        assert paths == []
    elif recipe.format == "spatialdata":
        assert any(path.startswith(f"{recipe.path}/") for path in paths)
    else:
        assert recipe.path in paths
    assert recipe.labels is None or recipe.labels in paths


@each_entry
def test_entry_tells_what_people_need(entry: Entry):
    for text in (entry.title, entry.technology, entry.species, entry.licence, entry.citation):
        assert text.strip() == text != ""


@each_entry
def test_counts_have_the_known_names(entry: Entry):
    counted = {"fovs", "cells", "genes", "molecules", "pairs"}
    labelled = {"labelled_pairs"} if entry in LABELLED else set()
    assert set(entry.counts) == counted | labelled


@each_entry
def test_tables_that_every_machine_reproduces_are_pinned(entry: Entry):
    # Centroids and repaired outlines come from GEOS: cells are pinned for simulated data only.
    assert {"molecules", "splits"} <= set(entry.content_sha256)
    assert ("cells" in entry.content_sha256) == (entry.recipe.format == "simulated")
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry.content_sha256.values())


@each_entry
def test_real_data_with_human_labels_keep_pairs_without_a_pattern(entry: Entry):
    if entry.name.endswith("_gold"):
        assert entry.recipe.patternless == "keep"
        assert entry.recipe.split == "test"


def test_find_entry_by_name_and_version():
    assert find_entry("u2os_gold").id == "u2os_gold@1.0.0"
    assert find_entry("u2os_gold@1.0.0") is find_entry("u2os_gold")


def test_newest_version_is_found(monkeypatch):
    versions = ["1.9.0", "1.10.0", "1.2.0"]
    first = find_entry("synthetic")
    entries = tuple(first.model_copy(update={"version": version}) for version in versions)
    monkeypatch.setattr("gpattern_bench.registry.registry", lambda: entries)
    assert find_entry("synthetic").version == "1.10.0"
    assert find_entry("synthetic@1.2.0").version == "1.2.0"
    assert list_datasets() == ["synthetic"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("u2os_golf", "u2os_gold"),
        ("nih3t3-gold", "nih3t3_gold"),
        ("syntetic@1.0.0", "synthetic"),
        ("U2OS_GOLD", "u2os_gold"),
    ],
)
def test_unknown_name_gives_the_nearest_and_the_list(name, near):
    with pytest.raises(UnknownDatasetError) as caught:
        find_entry(name)
    text = str(caught.value)
    assert repr(name.partition("@")[0]) in text
    assert re.search(rf"Did you mean [^?]*\b{near}\b[^?]*\?", text)
    assert all(known in text for known in list_datasets())


@pytest.mark.parametrize("name", ["", "@", "zzzzzz", "/no/such/folder"])
def test_name_unlike_all_gives_the_list_alone(name):
    with pytest.raises(UnknownDatasetError, match=r"Known: synthetic, ") as caught:
        find_entry(name)
    assert "Did you mean" not in str(caught.value)


def test_unknown_version_gives_the_known_ones():
    with pytest.raises(
        UnknownDatasetError, match=r"u2os_gold has no version '9.9.9'; known: 1.0.0"
    ):
        find_entry("u2os_gold@9.9.9")


def test_entries_are_read_only():
    with pytest.raises(ValueError, match="frozen"):
        find_entry("synthetic").name = "other"
