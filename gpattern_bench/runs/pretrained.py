"""Models that the package brings along: found by name wherever a model's folder is taken."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRETRAINED", "pretrained_folder", "pretrained_names"]

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Holds a folder per model: what :func:`~.saved_model.save_model` writes, and its card."""


def pretrained_names() -> tuple[str, ...]:
    """Name the models of the package, sorted."""
    return tuple(sorted(path.parent.name for path in PRETRAINED.glob("*/model.json")))


def pretrained_folder(name: str | Path) -> Path | None:
    """Return the folder of a model of the package; None if there is none of that name.

    What exists under that path is meant before the name.
    """
    if Path(name).exists() or str(name) not in pretrained_names():
        return None
    return PRETRAINED / str(name)
