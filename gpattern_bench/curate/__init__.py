"""Curation: from a source release to tables, split by field of view.

In: source files and a recipe. Out: a folder of tables with a manifest, every dropped row counted.
May import: `errors`, `base`, `sources`, `tables`.
"""
