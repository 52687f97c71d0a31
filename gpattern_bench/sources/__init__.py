"""The registry of datasets, and their files, fetched from mirrors and publishers.

In: a dataset's name, or the addresses of its files. Out: registry entries, and cached files with
exactly the pinned bytes. May import: `errors`, `base`.
"""
