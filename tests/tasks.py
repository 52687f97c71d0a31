"""What workers are asked to do: apart from the tests, so that a new one imports little."""

from __future__ import annotations

import logging
import os
import signal
import time

from gpattern_bench.errors import TableError

WORK = "gpattern_bench.work"
"""A logger."""


def squared(x: int) -> tuple[int, int]:
    time.sleep(0.2 if x == 0 else 0.0)  # the first comes last
    return x * x, os.getpid()


def unless_odd(x: int) -> int:
    time.sleep(0.5 if x == 1 else 0.0)
    logging.getLogger(WORK).warning("about %s", x)
    if x % 2:
        raise TableError(f"table {x}", ["one problem", "another"])
    return x


def killed(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x
