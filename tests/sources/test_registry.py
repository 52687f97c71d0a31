"""The registry is sound: unique names, pinned addresses, true hashes, helpful errors."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import gpattern_bench.sources.registry
from gpattern_bench import list_datasets as public_list_datasets
from gpattern_bench.base.arrays import arrays_sha256, read_arrays
from gpattern_bench.base.files import file_sha256
from gpattern_bench.errors import GPatternBenchError, UnknownDatasetError
from gpattern_bench.sources.registry import (
    PUBLISHED,
    Entry,
    FinishedTables,
    SourceFile,
    find_entry,
    list_datasets,
    read_registry,
    registry,
)
from gpattern_bench.tables import schema

README = Path(__file__).resolve().parents[2] / "README.md"
ENTRIES = registry()
FILES = [
    pytest.param(file, id=f"{entry.name}:{file.path}") for entry in ENTRIES for file in entry.files
]
CHECKED = [file for file in FILES if file.values[0].checksum]
UNCHECKED = [file for file in FILES if not file.values[0].checksum]
# Table 1 of the paper: RNA, cells, genes, RNA per cell, patterns
TABLE_1 = {
    "nih3t3": (2_724_808, 179, 3_721, 15_222, 4),
    "u2os": (10_634_467, 1_022, 130, 10_405, 4),
    "cosmx_lung": (30_370_769, 100_149, 960, 303, 3),
}

each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
each_file = pytest.mark.parametrize("file", FILES)


def test_a_bad_entry_leaves_the_others_usable():
    told = ["title", "technology", "species", "release", "licence", "terms", "citation"]
    good = {"name": "good", "version": "1.0.0", "counts": {}, "content_sha256": {}}
    good |= dict.fromkeys(told, "text") | {"recipe": {"format": "xenium", "patterns": ["a"]}}
    bad = {"name": "Bad Name", "version": 1.0, "recipe": good["recipe"]}
    [entry], problems = read_registry(json.dumps([bad, good, 7, good]))
    assert entry.id == "good@1.0.0"
    assert list(problems) == ["Bad Name@1.0", "entry 3@?", "good@1.0.0"]
    assert problems["Bad Name@1.0"].startswith("datasets.yaml, Bad Name@1.0: name: ")
    assert "version: " in problems["Bad Name@1.0"]
    assert "title: " in problems["Bad Name@1.0"]
    assert "stands there twice" in problems["good@1.0.0"]


@pytest.mark.parametrize(
    ("text", "expected"), [("a: [", "is not YAML"), ("a: 1", "expected a list of entries")]
)
def test_a_file_that_is_no_list_of_entries_is_an_error(text, expected):
    with pytest.raises(GPatternBenchError, match=f"datasets.yaml.*{expected}"):
        read_registry(text)


def test_the_name_of_a_bad_entry_is_told_what_is_wrong(monkeypatch):
    monkeypatch.setattr(gpattern_bench.sources.registry, "_text", lambda: "- {name: mine}")
    registry.cache_clear()
    gpattern_bench.sources.registry._of_the_package.cache_clear()
    try:
        with pytest.raises(UnknownDatasetError, match=r"datasets.yaml, mine@\?: version: "):
            find_entry("mine")
    finally:
        registry.cache_clear()
        gpattern_bench.sources.registry._of_the_package.cache_clear()


def test_name_and_version_are_unique():
    ids = [entry.id for entry in ENTRIES]
    assert len(ids) == len(set(ids))


def test_list_has_each_name_once():
    assert list_datasets() == public_list_datasets() == list(dict.fromkeys(e.name for e in ENTRIES))
    assert {"synthetic", "nih3t3_gold", "u2os_gold", "u2os_sample"} <= set(list_datasets())


@pytest.mark.parametrize("file", CHECKED)
def test_address_of_a_file_with_a_checksum_is_pinned_to_a_commit(file: SourceFile):
    for url in file.urls:
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/\S+$", url)


@pytest.mark.parametrize("file", UNCHECKED)
def test_nothing_is_invented_where_no_checksum_is_published(file: SourceFile):
    assert (file.bytes, file.sha256, file.git_blob) == (None, None, None)
    assert all(url.startswith("https://") for url in file.urls)
    [entry] = [entry for entry in ENTRIES if file in entry.files]
    assert (dict(entry.counts), dict(entry.content_sha256)) == ({}, {})
    assert entry.published


@each_file
def test_addresses_of_a_file_differ_and_name_the_same_file(file: SourceFile):
    if file.made:
        assert (file.urls, Path(file.made.split()[-1].partition("#")[0]).suffix) == ((), ".md")
        return
    assert len(set(file.urls)) == len(file.urls)
    [name] = {url.rpartition("/")[2] for url in file.urls}
    assert name == Path(file.path).name or name.isdecimal()  # figshare numbers its files


@each_file
def test_path_stays_below_the_mirror(file: SourceFile):
    assert not file.path.startswith("/")
    assert ".." not in Path(file.path).parts


@pytest.mark.parametrize("file", CHECKED)
def test_size_and_hash_are_those_of_the_real_file(shared: Path, file: SourceFile):
    sums = {}
    for line in (shared / "SHA256SUMS").read_text().splitlines():
        digest, path = line.split(maxsplit=1)
        sums[path.removeprefix("./")] = digest
    if file.arrays_sha256:
        assert arrays_sha256(read_arrays(shared / file.path)) == file.arrays_sha256
        return
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
    unread = {file.path for file in entry.files}
    for recipe in (entry.recipe, *entry.recipe.parts):
        if recipe.format not in ("simulated", "joined"):  # one file, or a folder
            read = {path for path in unread if f"{path}/".startswith(f"{recipe.path}/")}
            assert read
            unread -= read
        beside = {recipe.labels, recipe.classifier} - {None}
        assert beside <= unread
        unread -= beside
    assert not unread


@each_entry
def test_entry_tells_what_people_need(entry: Entry):
    about = (entry.title, entry.technology, entry.species, entry.release)
    for text in (*about, entry.licence, entry.terms, entry.citation):
        assert text.strip() == text != ""
    assert entry.recipe.format == "simulated" or "doi:10." in entry.citation


@each_entry
def test_counts_have_the_known_names(entry: Entry):
    counted = {"fovs", "cells", "genes", "molecules", "pairs"}
    assert set(entry.counts) in (set(), counted, counted | {"labelled_pairs"})


@each_entry
def test_tables_that_every_machine_reproduces_are_pinned(entry: Entry):
    # Centroids and repaired outlines come from GEOS: cells are pinned for simulated data only.
    if entry.content_sha256:
        labels = {"labels"} if "labelled_pairs" in entry.counts else set()
        cells = {"cells"} if entry.recipe.format == "simulated" else set()
        assert set(entry.content_sha256) == {"molecules", "splits"} | labels | cells
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry.content_sha256.values())


@each_entry
def test_published_counts_are_those_of_table_1(entry: Entry):
    expected = TABLE_1.get(entry.name)
    assert entry.published == (dict(zip(PUBLISHED, expected, strict=True)) if expected else {})


@pytest.mark.parametrize("name", TABLE_1)
def test_sets_of_the_paper_follow_its_rules(name: str):
    entry = find_entry(name)
    assert entry.published["patterns"] == len(entry.recipe.patterns)
    per_cell = entry.published["molecules"] // entry.published["cells"]
    assert per_cell == entry.published["molecules_per_cell"]
    assert (entry.recipe.patternless, entry.recipe.split) == ("drop", "fov")
    assert entry.recipe.splits == {}


def test_the_set_labelled_by_bento_is_split_by_field_of_view_both_ways():
    one, other = (find_entry(name) for name in ("u2os_bento", "u2os_bento_exchanged"))
    assert one.recipe.splits == {"0": "train", "0-val": "val", "8": "test"}
    assert other.recipe.splits == {"8": "train", "8-val": "val", "0": "test"}
    assert one.files == other.files
    assert dict(one.counts) == dict(other.counts)
    assert one.test["pairs"] + other.test["pairs"] == one.counts["labelled_pairs"]
    for entry in (one, other):
        # nobody serves the classifier, so the check of a pull request cannot make it
        assert (entry.recipe.patternless, entry.is_pinned) == ("drop", False)


def test_labels_by_a_classifier_are_marked():
    marked = {entry.name for entry in ENTRIES if entry.labelled_by}
    assert marked == {"nih3t3", "u2os", "u2os_bento", "u2os_bento_exchanged"}


def test_mini_set_is_split_by_name():
    recipe = find_entry("cosmx_lung_mini").recipe
    assert recipe.splits == {"3": "train", "2": "test"}
    assert recipe.crops == {"2": (4800, 0), "3": (0, 0)}
    assert recipe.patternless == "keep"


@each_entry
def test_patterns_are_columns_of_the_schema(entry: Entry):
    columns = schema.labels(entry.recipe.patterns).names
    assert columns == ["fov", "cell_id", "gene", "n_molecules", *entry.recipe.patterns]
    cosmx = {"cytoplasmic", "membrane", "nuclear"}
    others = {"cell_edge", "cytoplasmic", "nuclear", "nuclear_edge"}
    assert set(entry.recipe.patterns) == (cosmx if entry.technology == "CosMx" else others)


def test_readme_lists_exactly_these_datasets():
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(list_datasets())


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
    monkeypatch.setattr("gpattern_bench.sources.registry.registry", lambda: entries)
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
    entry = find_entry("nih3t3")
    for part, field in ((entry, "name"), (entry.recipe, "seed"), (entry.files[0], "sha256")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, field, "other")
    for counts in (entry.published, entry.counts, entry.content_sha256):
        with pytest.raises(TypeError, match="does not support item assignment"):
            counts["cells"] = 1


@each_entry
def test_entry_survives_json(entry: Entry):
    assert Entry.model_validate_json(entry.model_dump_json()) == entry
    assert json.loads(json.dumps(entry.model_dump(mode="json")))["counts"] == entry.counts


# What an entry may say


FILE = {"path": "set/a.csv", "urls": ["https://a"], "bytes": None, "sha256": None}


def test_checksum_in_words():
    assert SourceFile(**FILE).checksum is None
    assert SourceFile(**FILE | {"sha256": "a" * 64}).checksum == f"SHA-256 {'a' * 64}"
    assert SourceFile(**FILE, arrays_sha256="c" * 64).checksum == (
        f"SHA-256 over its arrays {'c' * 64}"
    )
    assert SourceFile(**FILE, git_blob="b" * 40).checksum == f"Git blob id {'b' * 40}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"path": "../a.csv"}, "does not stay below"),
        ({"path": "set\\..\\..\\a.csv"}, "does not stay below"),
        ({"path": "/a.csv"}, "does not stay below"),
        ({"path": "C:a.csv"}, "does not stay below"),
        ({"path": ""}, "does not stay below"),
        ({"urls": []}, "at least 1 item"),
        ({"bytes": 0}, "greater than 0"),
        ({"sha256": "A" * 64}, "pattern"),
        ({"git_blob": "b" * 39}, "pattern"),
        ({"sha256": "a" * 64, "git_blob": "b" * 40}, "not both"),
        ({"sha256": "a" * 64, "arrays_sha256": "b" * 64}, "not both"),
        ({"md5": "c" * 32}, "Extra inputs"),
    ],
)
def test_file_that_makes_no_sense(change, problem):
    with pytest.raises(ValidationError, match=problem):
        SourceFile(**FILE | change)


@pytest.mark.parametrize("field", ["bytes", "sha256"])
def test_what_is_not_published_must_be_said(field):
    with pytest.raises(ValidationError, match="Field required"):
        SourceFile(**{key: value for key, value in FILE.items() if key != field})


@pytest.mark.parametrize("published", [{"molecules": 1}, dict.fromkeys(reversed(PUBLISHED), 1)])
def test_published_counts_are_all_of_table_1(published):
    entry = find_entry("nih3t3").model_dump()
    with pytest.raises(ValidationError, match="expected molecules, cells, genes"):
        Entry.model_validate(entry | {"published": published})


def test_entry_may_name_finished_tables():
    tables = {"urls": ["https://a/synthetic", "https://b"], "sha256": "a" * 64}
    entry = Entry.model_validate(find_entry("synthetic").model_dump() | {"tables": tables})
    assert entry.tables == FinishedTables(
        urls=("https://a/synthetic", "https://b"), sha256="a" * 64
    )
    with pytest.raises(ValidationError, match="sha256"):
        FinishedTables(urls=("https://a",), sha256="")
