"""Tables on disk: columns, Parquet storage, manifest, checks, prediction files.

In: folders of Parquet tables and prediction files. Out: Arrow tables, or every problem of one.
May import: `errors`, `base`, `sources`. Loading compiles nothing.
"""
