"""Archives of arrays (``.npz``): read within bounds, without pickles, and hashed by value."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["arrays_sha256", "read_arrays"]

_MOST_BYTES = 1 << 30  # of the arrays in a file, unpacked
_DAMAGED = (
    EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays, all or those of these names.

    Raises
    ------
    ValueError
        The file is damaged, lacks an array, or unpacks to more than 1 GiB; the text says which.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked <= _MOST_BYTES:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in (arrays.files if names is None else names)}
    except _DAMAGED as error:
        raise ValueError(str(error) or type(error).__name__) from error
    raise ValueError(f"it unpacks to {unpacked:,} bytes, expected at most {_MOST_BYTES:,}")


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hash names, types, shapes and values; the compression of the file does not count.

    Examples
    --------
    >>> arrays_sha256({"a": np.arange(3, dtype="int8")})[:8]
    '7c2d3451'
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        total.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        total.update(array.tobytes())
    return total.hexdigest()
