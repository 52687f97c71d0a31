"""Open HDF5 files of strangers: nothing outside the file is read, and no more than it can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from gpattern_bench.errors import SourceError

__all__ = ["dense", "open_hdf5", "values"]

_ALWAYS = 1 << 30  # bytes of a dataset allowed at any compression
_MOST_RATIO = 200  # above that, bytes of a dataset per byte of the file
_LINKS = {h5py.h5l.TYPE_SOFT: "soft", h5py.h5l.TYPE_EXTERNAL: "external"}


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file whose links all stay in it.

    Raises
    ------
    SourceError
        It has a soft or an external link; no instrument and no AnnData writes any.
    """

    def refuse(name: bytes, link: Any) -> str | None:
        if link.type == h5py.h5l.TYPE_HARD:
            return None
        kind = _LINKS.get(link.type, "user-defined")
        return f"/{name.decode(errors='backslashreplace')!s} is a link ({kind})"

    with h5py.File(path, "r") as file:
        found = file.id.links.visit(refuse, info=True)
        if found is not None:
            raise SourceError(
                f"{path}: {found}, which may lead to another file; write the data themselves there"
            )
        yield file


def values(node: h5py.Dataset) -> Any:
    """Read a whole dataset of a file; text as str.

    Raises
    ------
    SourceError
        Its values lie in other files, or are far more than the file can hold.
    """
    if node.is_virtual or node.external:
        raise SourceError(
            f"{node.file.filename}: the values of {node.name} lie in other files (virtual or "
            "external storage); write them into this one"
        )
    _check_size(node, node.nbytes)
    return node.asstr()[:] if h5py.check_string_dtype(node.dtype) else node[:]


def dense(node: h5py.Dataset | h5py.Group, shape: tuple[int, int]) -> NDArray[Any]:
    """Read a matrix of AnnData: an array, or ``csr_matrix`` or ``csc_matrix``, zeros filled in.

    Raises
    ------
    SourceError
        As :func:`values`.
    ValueError
        It has another shape, or its indices point outside.
    """
    if isinstance(node, h5py.Dataset):
        matrix = np.asarray(values(node))
    else:
        kind = {
            "csr_matrix": scipy.sparse.csr_matrix,
            "csc_matrix": scipy.sparse.csc_matrix,
        }[node.attrs["encoding-type"]]
        parts = tuple(values(node[name]) for name in ("data", "indices", "indptr"))
        _check_size(node, shape[0] * shape[1] * parts[0].itemsize)
        sparse = kind(parts, shape=tuple(node.attrs["shape"]))
        sparse.check_format(full_check=True)
        matrix = sparse.toarray() if sparse.shape == shape else np.empty(sparse.shape)
    if matrix.shape != shape:
        raise ValueError(f"{node.name} has shape {matrix.shape}, expected {shape}")
    return matrix


def _check_size(node: h5py.Dataset | h5py.Group, size: int) -> None:
    if size > _ALWAYS:
        stored = Path(node.file.filename).stat().st_size
        if size > _MOST_RATIO * stored:
            raise SourceError(
                f"{node.file.filename}: {node.name} states {size:,} bytes in a file of "
                f"{stored:,}; no export does. It is not read"
            )
