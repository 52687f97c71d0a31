"""Where data come from: the registry of datasets, and files fetched from mirrors and publishers.

In: a dataset's name, or the addresses of its files. Out: registry entries and files in the cache,
never with other bytes than pinned. May import: `errors`, `base`.
"""
