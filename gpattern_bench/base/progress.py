"""Progress of long work: bars on a terminal, elsewhere lines in the log.

The library logs at level INFO and prints nothing but bars. The command line shows the log on
stderr (:class:`Lines`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from gpattern_bench.base.validation import printable

__all__ = ["Lines", "Progress", "duration"]

_log = logging.getLogger(__name__)
_Item = TypeVar("_Item")


def duration(seconds: float) -> str:
    """Format a duration for people.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.04, 3.21, 59.6, 185, 7325)]
    ['0.0 s', '3.2 s', '1 min 00 s', '3 min 05 s', '2 h 02 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Report progress: a bar on a terminal, elsewhere a line in the log every few seconds.

    Parameters
    ----------
    what : str
    total : int, optional
        Number of items, if known.
    unit : str
        What is counted; ``B`` for bytes.
    done : int
        Items done before.
    every : float
        Least number of seconds between two lines.
    shown : bool
        Whether to report at all.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "cells",
        done: int = 0,
        every: float = 10.0,
        shown: bool = True,
    ) -> None:
        self._what, self._total, self._unit, self._every = what, total, unit, every
        self._before = self._done = done
        self._began = self._told = time.monotonic()
        self._bar: Any = None
        self._shown = shown
        if shown and _on_terminal():
            from tqdm import tqdm

            # tqdm writes the unit behind the number
            unit, scaled = ("B", True) if unit == "B" else (f" {unit}", False)
            self._bar = tqdm(desc=what, total=total, initial=done, unit=unit, unit_scale=scaled)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield items; each is done when the next is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def update(self, more: int = 1) -> None:
        """Count `more` items as done."""
        self._done += more
        if self._bar is not None:
            self._bar.update(more)
        elif self._shown and (now := time.monotonic()) - self._told >= self._every:
            self._told = now
            _log.info("%s", self._line(now - self._began))

    def _line(self, seconds: float) -> str:
        parts = [
            f"{number / 1e6:,.1f}" if self._unit == "B" else f"{number:,}"
            for number in (self._done, self._total)
            if number is not None
        ]
        unit = "MB" if self._unit == "B" else self._unit
        text = f"{self._what}: {' of '.join(parts)} {unit}, {duration(seconds)}"
        if self._total is None or self._done >= self._total:
            return text
        left = seconds / (self._done - self._before) * (self._total - self._done)
        return f"{text}, {duration(left)} left"


class Lines(logging.StreamHandler[Any]):
    """Show this package's log and other packages' warnings on stderr, above the bars."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop information from other packages."""
        ours = record.name.startswith("gpattern_bench.")
        return (ours or record.levelno >= logging.WARNING) and bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        """Prefix warnings and errors with their level."""
        text = printable(super().format(record))
        return text if record.levelno <= logging.INFO else f"{record.levelname}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line above any bars."""
        if not _on_terminal():
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
