"""Datasets in memory: loaded by name, read by split, streamed cell by cell.

In: a name or a folder of tables. Out: a `Dataset`, its cells, labels and pairs. May import:
`errors`, `base`, `sources`, `tables`; `curate` only to make a dataset that is not in the cache.
"""
