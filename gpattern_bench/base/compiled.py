"""Compiled functions: numba's ``njit``, deaf to the current folder.

numba reads ``.numba_config.yaml`` in the current folder, when it is imported and whenever it
compiles. The file may name a folder of compiled functions, and numba unpickles what lies there
before it compares anything: whoever wrote the current folder would run code here. So that file is
never read, and compiled functions lie in the user's cache. Import ``njit`` from here only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, chdir
from tempfile import TemporaryDirectory
from typing import Any

from platformdirs import user_cache_path

__all__ = ["njit"]

_CONFIG = ".numba_config.yaml"
_CACHE = "NUMBA_CACHE_DIR"


def _import_numba() -> Any:
    """Import numba without the current folder's settings; those of the environment count."""
    cache = user_cache_path("gpattern-bench", appauthor=False) / "compiled"
    os.environ.setdefault(_CACHE, str(cache))
    with ExitStack() as elsewhere:
        # Only where somebody has put such a file: the current folder is that of all threads.
        if os.path.lexists(_CONFIG):
            elsewhere.enter_context(chdir(elsewhere.enter_context(TemporaryDirectory())))
        import numba
        from numba.core import config
    config._config_fname = ""  # read again before every compilation: never there
    config.reload_config()  # if numba was imported before this module
    return numba


_numba = _import_numba()


def njit(**options: Any) -> Callable[[Any], Any]:
    """Compile a function as ``numba.njit(**options)`` does; each time anew where nothing is kept.

    With ``cache=True`` numba raises at import if it can write neither to the cache nor beside the
    module, as of a package that an administrator has installed.
    """

    def compiled(function: Any) -> Any:
        try:
            return _numba.njit(**options)(function)
        except RuntimeError:
            return _numba.njit(**options | {"cache": False})(function)

    return compiled
