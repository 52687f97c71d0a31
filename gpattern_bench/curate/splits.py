"""Split whole fields of view into train, val and test, alike in cells and patterns."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.errors import SourceError
from gpattern_bench.tables.schema import SPLIT_NAMES

__all__ = ["SHARES", "split_fovs"]

SHARES = (0.8, 0.1, 0.1)
"""Shares of the cells in train, val and test (paper, appendix B.2)."""

_DRAWS = 4096


def split_fovs(fovs: pd.DataFrame, seed: int) -> dict[str, str]:
    """Choose a split for every field of view.

    Draws 4096 seeded random partitions of the FOVs, 80:10:10 by cells, and takes the most even
    one: in the splits' shares of the cells, and in their shares of pairs with each pattern (paper,
    appendix B.2 and figure 6: stratified, 80:10:10 by FOV).

    Parameters
    ----------
    fovs : pandas.DataFrame
        One row per FOV, indexed by name: ``cells``, ``pairs`` (labelled pairs), and one column per
        pattern (pairs with it).
    seed : int
        The same seed gives the same split.

    Returns
    -------
    dict of str to str
        FOV -> ``train``, ``val`` or ``test``; each of the three has at least one FOV.

    Raises
    ------
    SourceError
        There are fewer than three FOVs.
    """
    names = sorted(str(name) for name in fovs.index)
    if len(names) < len(SPLIT_NAMES):
        raise SourceError(
            "cannot split by field of view: expected 3 or more (train, val, test), the release has "
            f"{len(names)} ({', '.join(names)}); put every cell into test instead (--split test)"
        )
    fovs = fovs.loc[names]
    cells = fovs["cells"].to_numpy(dtype=np.float64)
    patterns = [name for name in fovs.columns if name not in ("cells", "pairs")]
    counts = fovs[["pairs", *patterns]].to_numpy(dtype=np.float64)
    rng = np.random.Generator(np.random.Philox(seed))
    # Ranks of uniforms are permutations on every machine; Generator.permutation may change.
    orders = np.argsort(rng.random((_DRAWS, len(names))), axis=1, kind="stable")
    codes = _cut(cells[orders])  # (draws, fovs) in drawn order
    costs = _cost(codes, cells[orders], counts[orders])
    best = int(np.argmin(costs))
    return {names[f]: SPLIT_NAMES[c] for f, c in zip(orders[best], codes[best], strict=True)}


def _cut(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cut FOVs, in drawn order, into test, val and train: codes 2, 1, 0."""
    middle = np.cumsum(cells, axis=1) - cells / 2
    share = middle / cells.sum(axis=1, keepdims=True)
    codes = np.where(share < SHARES[2], 2, np.where(share < SHARES[2] + SHARES[1], 1, 0))
    codes[:, 0], codes[:, -1] = 2, 0
    codes[~(codes == 1).any(axis=1), 1] = 1
    return codes


def _cost(
    codes: NDArray[np.int64], cells: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum the squared relative deviations in cells and pattern shares over the splits."""
    pairs, patterns = counts[..., 0], counts[..., 1:]
    overall = patterns.sum(axis=1) / np.maximum(pairs.sum(axis=1), 1)[:, None]
    cost = np.zeros(len(codes))
    for code, share in enumerate(SHARES):
        inside = codes == code
        cost += ((cells * inside).sum(axis=1) / cells.sum(axis=1) / share - 1) ** 2
        held = np.maximum((pairs * inside).sum(axis=1), 1)[:, None]
        shares = (patterns * inside[..., None]).sum(axis=1) / held
        cost += ((shares / np.maximum(overall, 1e-9) - 1) ** 2 * (overall > 0)).sum(axis=1)
    return cost
