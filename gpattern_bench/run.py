"""The public path of :func:`run_method`: run a method of your own, measured as the others are."""

from gpattern_bench.runs.run import Run, run_method

__all__ = ["Run", "run_method"]
