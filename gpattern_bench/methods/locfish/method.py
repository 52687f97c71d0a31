"""locFISH: features of RNA localisation, and a forest or clusters on them.

The first locFISH (Samacoits et al., Nature Communications 2018) became big-fish (Imbert et al.,
RNA 2022), the source of these features; neither ships a trained classifier. Choices and reasons:
``docs/methods/locfish.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpattern_bench.base.compiled import njit
from gpattern_bench.data.cells import Cell, Cells
from gpattern_bench.errors import MethodError
from gpattern_bench.methods._forest import (
    Forest,
    forest_scores,
    labelled_pairs,
    load_arrays,
    save_arrays,
)
from gpattern_bench.methods.base import About, Scores
from gpattern_bench.methods.locfish.bigfish import BIGFISH_FEATURES, UNIT_UM, bigfish_features
from gpattern_bench.methods.locfish.features_2018 import SAMACOITS_FEATURES, samacoits_features

__all__ = [
    "SAMPLE",
    "LabelClusters",
    "Locfish",
    "Locfish2018",
    "LocfishUnsupervised",
    "features",
    "features_2018",
]

_Floats = NDArray[np.float64]

SAMPLE = 3000
"""Most pairs that t-SNE embeds; of more, draw a seeded sample."""

_CLUSTERS = 8  # the paper's number for its pooled simulations
_MOST_POINTS = 100_000  # in a stored file; each new pair is compared with all
_PERPLEXITY = 30.0
_STEPS = 1000  # of t-SNE
_NEIGHBOURS = 10  # training pairs that score a new pair

# Do not learn from numbers of molecules and areas: they say how much there is, not where.
_AMOUNTS = {name for name in BIGFISH_FEATURES if name.startswith("nb_") or "area" in name}
_PLACES = [k for k, name in enumerate(BIGFISH_FEATURES) if name not in _AMOUNTS]

_FOREST, _STATE = "forest.npz", "clusters.npz"


def features(
    cells: Cells, *, unit_um: float = UNIT_UM, which: Literal["bigfish", "2018"] = "bigfish"
) -> Iterator[pd.DataFrame]:
    """Yield the features of every pair, cell by cell.

    Parameters
    ----------
    cells : Cells
    unit_um : float
        Length of a pixel: the unit of areas (and of distances, in the set of 2018).
    which : {"bigfish", "2018"}
        big-fish's 41, on outlines, or the 21 of 2018, on pixels.

    Yields
    ------
    pandas.DataFrame
        ``cell_id``, ``gene``, ``n_molecules`` and the columns of :data:`BIGFISH_FEATURES` or
        :data:`SAMACOITS_FEATURES`. NaN: see :func:`bigfish_features`, :func:`samacoits_features`.
    """
    columns = BIGFISH_FEATURES if which == "bigfish" else SAMACOITS_FEATURES
    compute = bigfish_features if which == "bigfish" else samacoits_features
    names = np.array(cells.genes, dtype=object)
    for cell in cells:
        frame = pd.DataFrame(compute(cell, unit_um=unit_um), columns=list(columns))
        frame.insert(0, "cell_id", cell.cell_id)
        frame.insert(1, "gene", names[cell.genes])
        frame.insert(2, "n_molecules", cell.counts)
        yield frame


def features_2018(cells: Cells, *, unit_um: float = UNIT_UM) -> Iterator[pd.DataFrame]:
    """Yield the features of 2018 (:func:`features`)."""
    return features(cells, unit_um=unit_um, which="2018")


class Locfish:
    """Random forest on big-fish's features, fitted on the training cells' labels."""

    about: ClassVar = About(
        name="locfish",
        label="locFISH",
        kind="baseline",
        summary=(
            "big-fish's features of distances, rings, protrusions and spread, and a random forest "
            "on them, fitted on the training cells."
        ),
        reference="Imbert et al., RNA 2022, doi:10.1261/rna.079073.121",
        inputs=("coordinates", "gene", "cell outline", "nucleus outline"),
        learns=True,
    )

    def fit(self, train: Cells, seed: int) -> None:
        """Grow the forest on the labelled pairs, or a seeded sample."""
        pairs = labelled_pairs(train, self._features, seed)
        self._forest = Forest.fit(pairs.features, pairs.labels, seed)

    @property
    def parameters(self) -> int:
        """Numbers of the forest."""
        return self._forest.parameters

    def save(self, folder: Path) -> None:
        """Write the forest."""
        self._forest.save(folder / _FOREST)

    def load(self, folder: Path) -> None:
        """Read the forest."""
        self._forest = Forest.load(folder / _FOREST)

    def predict(self, cells: Cells) -> Scores:
        """Score each pair by the mean share of each pattern in its leaves."""
        return forest_scores(cells, self._features, self._forest)

    @staticmethod
    def _features(cell: Cell) -> _Floats:
        return bigfish_features(cell)[:, _PLACES]


class Locfish2018(Locfish):
    """The same forest on the 21 features of the first locFISH."""

    about: ClassVar = About(
        name="locfish_2018",
        label="locFISH (2018 features)",
        kind="baseline",
        summary=(
            "The 21 features of 2018: quantiles of distances, openings, a weighted Ripley "
            "function; and a random forest on them, fitted on the training cells."
        ),
        reference="Samacoits et al., Nature Communications 2018, doi:10.1038/s41467-018-06868-w",
        inputs=Locfish.about.inputs,
        learns=True,
    )

    @staticmethod
    def _features(cell: Cell) -> _Floats:
        return samacoits_features(cell)


class LocfishUnsupervised:
    """Clusters of pairs in a t-SNE of big-fish's features, scored by their labels."""

    about: ClassVar = About(
        name="locfish_unsupervised",
        label="locFISH (t-SNE + k-means)",
        kind="baseline",
        summary=(
            "t-SNE and k-means of big-fish's features of the training pairs; a pair is scored by "
            "the patterns of the clusters that the training pairs nearest to it are in."
        ),
        reference="Samacoits et al., Nature Communications 2018, doi:10.1038/s41467-018-06868-w",
        inputs=Locfish.about.inputs,
        learns=True,
    )

    def fit(self, train: Cells, seed: int) -> None:
        """Cluster the labelled pairs, or a seeded sample."""
        pairs = labelled_pairs(train, Locfish._features, seed, SAMPLE)
        self._clusters = LabelClusters.fit(pairs.features, pairs.labels, seed)

    @property
    def parameters(self) -> int:
        """Numbers of the clusters, features of the training pairs among them."""
        return sum(array.size for array in self._clusters)

    def save(self, folder: Path) -> None:
        """Write the clusters."""
        self._clusters.save(folder / _STATE)

    def load(self, folder: Path) -> None:
        """Read the clusters."""
        self._clusters = LabelClusters.load(folder / _STATE)

    def predict(self, cells: Cells) -> Scores:
        """Score each pair by the clusters of its nearest training pairs."""
        for cell in cells:
            yield cell, self._clusters.predict(Locfish._features(cell))


class LabelClusters(NamedTuple):
    """Clusters of training pairs; nearest neighbours score new pairs.

    The embedding only finds the clusters, because t-SNE cannot place new pairs. Neighbours are
    nearest in z-scored features; missing features count as the training mean.

    Attributes
    ----------
    mean, scale : numpy.ndarray
        (F,) over the training pairs.
    point : numpy.ndarray
        (n, F) float32 z-scored features of the training pairs.
    cluster : numpy.ndarray
        (n,) int32 cluster of each.
    share : numpy.ndarray
        (k, C) shares of the patterns in the clusters; the shares over all training pairs count as
        one more pair of each.
    """

    mean: _Floats
    scale: _Floats
    point: NDArray[np.float32]
    cluster: NDArray[np.int32]
    share: _Floats

    @classmethod
    def fit(cls, features: _Floats, labels: NDArray[np.bool_], seed: int) -> LabelClusters:
        """Cluster pairs (n, F); average their labels (n, C)."""
        known = np.isfinite(features)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, features, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.square(np.where(known, features - mean, 0.0)).sum(axis=0) / count)
        scale = np.where(spread > 0, spread, 1.0)
        point = _z_scores(features, mean, scale)
        cluster = _clusters(point, seed)
        sizes = np.bincount(cluster)
        positive = np.stack([np.bincount(cluster, column) for column in labels.T], axis=1)
        share = (positive + labels.mean(axis=0)) / (sizes[:, None] + 1)
        return cls(mean, scale, point, cluster, share)

    def predict(self, features: _Floats) -> NDArray[np.float32]:
        """Score pairs (m, F): (m, C) in [0, 1]."""
        if features.shape[1] != len(self.mean):  # compiled code looks at no shapes
            raise MethodError(
                f"the clusters are of {len(self.mean)} features, and there are "
                f"{features.shape[1]}; fit the method again"
            )
        near = _nearest(_z_scores(features, self.mean, self.scale), self.point, _NEIGHBOURS)
        return np.asarray(self.share[self.cluster[near]].mean(axis=1), np.float32)

    def save(self, path: Path) -> None:
        """Write the arrays to an ``.npz`` file."""
        save_arrays(path, self._asdict())

    @classmethod
    def load(cls, path: Path) -> LabelClusters:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MethodError
            The file holds no clusters.
        """
        found = cls(**load_arrays(path, cls._fields, "clusters"))
        if flaw := found._flaw():
            raise MethodError(f"{path} holds damaged clusters: {flaw}; fit the method again")
        return found

    def _flaw(self) -> str:
        """Describe the first array that no training gives; "" if all are fine."""
        n, width, k = len(self.point), self.mean.size, len(self.share)
        expected: dict[str, tuple[str, tuple[int, ...], float, float]] = {
            "mean": ("f", (width,), -np.inf, np.inf),
            "scale": ("f", (width,), 0, np.inf),
            "point": ("f", (n, width), -np.inf, np.inf),
            "cluster": ("i", (n,), 0, k - 1),
            "share": ("f", (k, self.share.size // max(k, 1)), 0, 1),
        }
        for name, (kind, shape, least, most) in expected.items():
            array = getattr(self, name)
            if array.dtype.kind != kind or array.shape != shape:
                return f"{name} is {array.dtype} {array.shape}, expected {shape}"
            if not (np.isfinite(array) & (array >= least) & (array <= most)).all():
                return f"{name} has values that are not finite, or not from {least} to {most}"
        return "" if 0 < n <= _MOST_POINTS else f"{n:,} points, expected 1 to {_MOST_POINTS:,}"


def _z_scores(features: _Floats, mean: _Floats, scale: _Floats) -> NDArray[np.float32]:
    scores = (features - mean) / scale
    return np.where(np.isfinite(scores), scores, 0.0).astype(np.float32)


def _clusters(point: NDArray[np.float32], seed: int) -> NDArray[np.int32]:
    """Cluster points (n, F) by k-means in their t-SNE: (n,) int32; few points: one each."""
    n = len(point)
    if n <= _CLUSTERS:
        return np.arange(n, dtype=np.int32)
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the order of sums would change the embedding
        perplexity = min(_PERPLEXITY, (n - 1) / 3)
        embedding = TSNE(2, perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=seed)
        plane = embedding.fit_transform(point)
        found = KMeans(_CLUSTERS, n_init=10, random_state=seed).fit_predict(plane)
    return np.asarray(found, np.int32)


@njit(cache=True, nogil=True)
def _nearest(queries: Any, points: Any, k: Any) -> Any:
    """Find the k points nearest to each query, (m, k); all points if fewer."""
    k = min(k, len(points))
    out = np.empty((len(queries), k), np.int64)
    distance = np.empty(k)
    for q in range(len(queries)):
        distance[:] = np.inf
        at = out[q]
        at[:] = -1
        for p in range(len(points)):
            d = 0.0
            for f in range(points.shape[1]):
                step = queries[q, f] - points[p, f]
                d += step * step
            if d < distance[k - 1]:
                i = k - 1
                while i > 0 and distance[i - 1] > d:
                    distance[i], at[i] = distance[i - 1], at[i - 1]
                    i -= 1
                distance[i], at[i] = d, p
    return out
