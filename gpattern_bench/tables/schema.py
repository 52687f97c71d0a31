"""Arrow schemas of all tables and prediction files, with units in the fields' metadata."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

__all__ = ["CELLS", "MOLECULES", "SORT_KEYS", "SPLITS", "SPLIT_NAMES", "labels", "predictions"]

SPLIT_NAMES = ("train", "val", "test")

_ID = pa.dictionary(pa.int32(), pa.string())
_UM = {"unit": "um"}

MOLECULES = pa.schema(
    [
        pa.field("fov", _ID, nullable=False),
        pa.field("cell_id", _ID, nullable=False),
        pa.field("gene", _ID, nullable=False),
        pa.field("x", pa.float32(), nullable=False, metadata=_UM),
        pa.field("y", pa.float32(), nullable=False, metadata=_UM),
        pa.field("z", pa.float32(), nullable=True, metadata=_UM),
    ]
)
"""One row per detected RNA; slide-global micrometres, y as in the source."""

CELLS = pa.schema(
    [
        pa.field("fov", pa.string(), nullable=False),
        pa.field("cell_id", pa.string(), nullable=False),
        pa.field("x", pa.float32(), nullable=False, metadata=_UM),
        pa.field("y", pa.float32(), nullable=False, metadata=_UM),
        pa.field("n_molecules", pa.int32(), nullable=False),
        pa.field("n_genes", pa.int32(), nullable=False),
        pa.field("touches_border", pa.bool_(), nullable=True),
        pa.field("cell_boundary", pa.binary(), nullable=False, metadata=_UM),
        pa.field("nucleus_boundary", pa.binary(), nullable=True, metadata=_UM),
    ]
)
"""One row per cell; x, y: centroid of the outline; outlines as WKB, null without a nucleus.

``touches_border``: the image border cuts the cell; null: unknown.
"""

SPLITS = pa.schema(
    [
        pa.field("fov", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""One row per field of view; splits are stored, never recomputed."""

SORT_KEYS = {
    "molecules": ("fov", "cell_id", "gene", "x", "y", "z"),
    "cells": ("fov", "cell_id"),
    "labels": ("fov", "cell_id", "gene"),
    "splits": ("fov",),
}
"""Columns that sort each table, for writing and hashing."""


def labels(patterns: Sequence[str]) -> pa.Schema:
    """Schema of ``labels.parquet``: one row per labelled pair, one bool column per pattern."""
    return pa.schema(
        [
            pa.field("fov", _ID, nullable=False),
            pa.field("cell_id", _ID, nullable=False),
            pa.field("gene", _ID, nullable=False),
            pa.field("n_molecules", pa.int32(), nullable=False),
            *(pa.field(pattern, pa.bool_(), nullable=False) for pattern in patterns),
        ]
    )


def predictions(patterns: Sequence[str]) -> pa.Schema:
    """Schema of a prediction file: one row per pair, one float32 score in [0, 1] per pattern."""
    return pa.schema(
        [
            pa.field("cell_id", pa.string(), nullable=False),
            pa.field("gene", pa.string(), nullable=False),
            *(pa.field(pattern, pa.float32(), nullable=False) for pattern in patterns),
        ]
    )
