"""The cache folder for datasets."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE", "cache_root"]

CACHE = "GPATTERN_BENCH_DATA"


def cache_root(root: str | Path | None = None) -> Path:
    """Return the cache folder: `root`, else ``GPATTERN_BENCH_DATA``, else the system's cache."""
    chosen = root or os.environ.get(CACHE)
    if not chosen:
        import pooch  # imports requests: slow

        chosen = pooch.os_cache("gpattern-bench")
    return Path(chosen).expanduser().absolute()
