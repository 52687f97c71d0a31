"""The tables on disk: their columns, Parquet storage, manifest, checks, and prediction files.

In: folders of Parquet tables and prediction files. Out: Arrow tables, or every problem that one
has. May import: `errors`, `base`, `sources`. Loading compiles nothing.
"""
