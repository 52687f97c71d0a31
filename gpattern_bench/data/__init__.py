"""Datasets: load by name, read by split, stream cell by cell.

In: a name or a folder of tables. Out: a `Dataset`, its cells, labels and pairs. May import:
`errors`, `base`, `sources`, `tables`; `curate` only to make a dataset missing from the cache.
"""
