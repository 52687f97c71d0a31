"""Names of the patterns: those of the paper's datasets, in the order of their label columns."""

from __future__ import annotations

__all__ = ["FOUR_PATTERNS", "THREE_PATTERNS"]

FOUR_PATTERNS = ("cell_edge", "cytoplasmic", "nuclear", "nuclear_edge")
"""Of all datasets but CosMx."""
THREE_PATTERNS = ("cytoplasmic", "membrane", "nuclear")
"""Of CosMx."""
