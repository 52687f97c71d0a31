"""Other libraries' objects: a dataset as AnnData or SpatialData.

In: a `Dataset`, scores. Out: objects of scverse. May import: all rooms up to `runs`.
"""
