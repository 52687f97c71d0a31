"""A dataset's entry for the registry, as far as its tables tell it."""

from __future__ import annotations

from typing import Any

import yaml

from gpattern_bench.data.dataset import Dataset
from gpattern_bench.sources.recipe import Recipe
from gpattern_bench.sources.registry import registry

__all__ = ["entry_text"]

_COUNTS = ("fovs", "cells", "genes", "molecules", "pairs", "labelled_pairs")
_TOLD = {
    "title": "<title>",
    "technology": "<technology>",
    "species": "<species>",
    "release": "<the source's release, in words>",
    "licence": "<licence of the source>",
    "terms": "<who may redistribute it>",
    "citation": "<what to cite>",
}


def entry_text(dataset: Dataset, sha256: str) -> str:
    """Write the entry of a dataset that an address will serve, for ``datasets.yaml``.

    What only people know is of the form ``<what to write here>``, unless the manifest has it.

    Parameters
    ----------
    dataset : Dataset
    sha256 : str
        Of its exported manifest (:func:`gpattern_bench.curate.build.export_tables`).

    Returns
    -------
    str
        YAML: a list of one entry.
    """
    manifest = dataset.manifest
    curation = manifest.raw.get("curation", {})
    recipe = Recipe.model_validate({k: v for k, v in curation.items() if k in Recipe.model_fields})
    counts = manifest.counts.totals | {"genes": len(manifest.genes)}
    entry: dict[str, Any] = {"name": manifest.name, "version": manifest.version}
    known = next((each for each in registry() if each.id == manifest.id), None)
    for key, hint in _TOLD.items():
        entry[key] = manifest.raw.get(key) or getattr(known, key, None) or hint
    entry["tables"] = {"urls": ["<https://the.address/of/the/folder>"], "sha256": sha256}
    entry["recipe"] = recipe.model_dump(mode="json", exclude_defaults=True)
    entry["counts"] = {key: counts[key] for key in _COUNTS if key in counts}
    test = manifest.counts.splits.get("test")
    if manifest.has_labels and test is not None and test.labelled_pairs is not None:
        positives = {name: test.patterns.get(name, 0) for name in sorted(dataset.patterns)}
        entry["test"] = {"pairs": test.labelled_pairs, **positives}
    entry["content_sha256"] = {
        name.removesuffix(".parquet"): file.content_sha256 for name, file in manifest.files.items()
    }
    text: str = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True, width=100)
    return text
