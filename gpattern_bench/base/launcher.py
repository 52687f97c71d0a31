"""Rank of this process and number of processes, as accelerate's launcher sets them."""

from __future__ import annotations

import os

__all__ = ["process_index", "process_number"]


def process_index() -> int:
    """Give the index of this process; the first, 0, writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def process_number() -> int:
    """Give the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))
