"""Simulated cells of known patterns, and releases of them in the formats of the sources."""
