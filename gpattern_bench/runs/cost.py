"""Cost: what a piece of a run took, by the clock and of the processor; and with which versions."""

from __future__ import annotations

import platform
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version

from gpattern_bench.base.version import __version__

__all__ = ["SCORING", "Cost", "peak_rss_mib", "versions_used"]

SCORING = ("numpy", "numba", "scipy", "scikit-learn", "torch")
"""Packages that scores rest on."""


@dataclass(frozen=True)
class Cost:
    """Seconds; a difference of two readings of :meth:`now` is what lies between them.

    Attributes
    ----------
    seconds : float
        Wall time.
    cpu_seconds : float
        Processor time, user and system, of this process with all its threads and of its children
        that ended. Other programs on the machine lengthen it by far less than the wall time. What
        a GPU does is not in it.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> Cost:
        """Read the clocks."""
        used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used))

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


def peak_rss_mib() -> float:
    """Return the peak memory of this process, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB elsewhere


def versions_used() -> dict[str, str]:
    """Name the versions of this package, Python and :data:`SCORING`; torch if it was loaded."""
    found = {name: version(name) for name in SCORING if name != "torch" or name in sys.modules}
    found |= {"gpattern-bench": __version__, "python": platform.python_version()}
    return dict(sorted(found.items()))
