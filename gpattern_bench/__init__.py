"""gpattern-bench: benchmark of gene spatial pattern classification.

>>> from gpattern_bench import Evaluator, call, load_dataset
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpattern_bench.base.version import __version__

__all__ = ["Evaluator", "__version__", "call", "list_datasets", "load_dataset"]

if TYPE_CHECKING:
    from gpattern_bench.answers.call import call
    from gpattern_bench.data.dataset import load_dataset
    from gpattern_bench.evaluate.evaluator import Evaluator
    from gpattern_bench.sources.registry import list_datasets

_HOME = {
    "Evaluator": "gpattern_bench.evaluate.evaluator",
    "call": "gpattern_bench.answers.call",
    "list_datasets": "gpattern_bench.sources.registry",
    "load_dataset": "gpattern_bench.data.dataset",
}


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that importing the package loads nothing heavy.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
