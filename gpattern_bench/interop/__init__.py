"""Other libraries' objects: AnnData and SpatialData, to and from ours.

In: a `Dataset`, scores. Out: objects of scverse. May import: all rooms up to `runs`.
"""
