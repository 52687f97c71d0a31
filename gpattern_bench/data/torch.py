"""The cells of a split as a torch dataset; no other loader module imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from gpattern_bench.data.cells import Cells
from gpattern_bench.errors import GPatternBenchError

__all__ = ["TorchCells", "collate"]

_Item = dict[str, Any]


class TorchCells(Dataset[_Item]):
    """Random access to the cells of a split, as tensors.

    Holds molecules and outlines as flat arrays (12 bytes a molecule, 8 a vertex). An item is a dict
    of one cell with n molecules, g genes and C patterns:

    - ``cell_id`` text
    - ``xy`` float32 (n, 2): micrometres, relative to the cell's centroid
    - ``gene`` int64 (n,): codes into the dataset's ``genes``
    - ``pair`` int64 (n,): the pair of each molecule, a row of ``genes``
    - ``genes`` int64 (g,): the genes present, ascending; a pair each
    - ``boundary``, ``nucleus`` float32 (v, 2): vertices of the outlines, in the same frame. Each
      ring is closed: its last vertex is its first. No vertices: the nucleus is not segmented
    - ``labels`` float32 (g, C) and ``labelled`` bool (g,), if the dataset has labels; the labels of
      a pair that is not labelled are 0 and mean nothing

    Cells differ in size: give a ``DataLoader`` :func:`collate`, and scores to :meth:`table`.

    Examples
    --------
    From cells to a prediction table; a model gives the P pairs of a batch a score per pattern:

    >>> import pandas as pd
    >>> from torch.utils.data import DataLoader
    >>> from gpattern_bench import Evaluator, load_dataset
    >>> from gpattern_bench.data.torch import collate
    >>> from gpattern_bench.predictions import counted
    >>> ds = load_dataset("synthetic")
    >>> cells = ds.torch("test")
    >>> def model(batch):  # the share of the pair's molecules near the centroid
    ...     near = (batch["xy"].norm(dim=1) < 5).float()
    ...     share = torch.zeros(len(batch["genes"])).index_add(0, batch["pair"], near)
    ...     return (share / batch["pair"].bincount())[:, None].expand(-1, len(ds.patterns))
    >>> loader = DataLoader(cells, batch_size=16, shuffle=True, collate_fn=collate)
    >>> scores = pd.concat([cells.table(batch, model(batch)) for batch in loader])
    >>> scores = counted(scores, ds.pairs("test"))  # the labelled pairs
    >>> Evaluator(ds).eval(scores).per_pattern["nuclear"]["auc"] > 0.6
    True
    """

    def __init__(self, cells: Cells) -> None:
        self.genes, self.patterns = cells.genes, cells.patterns
        self._ids: list[str] = []
        flat: dict[str, list[NDArray[Any]]] = {}
        for cell in cells:
            self._ids.append(cell.cell_id)
            parts = {
                "xy": cell.xy.astype(np.float32),
                "gene": cell.gene,
                "genes": cell.genes,
                "boundary": _vertices(cell.boundary),
                "nucleus": _vertices(cell.nucleus),
                "labels": cell.labels,
                "labelled": cell.labelled,
            }
            for name, values in parts.items():
                if values is not None:
                    flat.setdefault(name, []).append(values)
        self._ends = {name: np.cumsum([0, *map(len, values)]) for name, values in flat.items()}
        self._flat = {n: torch.from_numpy(np.concatenate(values)) for n, values in flat.items()}

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return (
            f"<TorchCells: {len(self):,} cells, {len(self.genes):,} genes, {len(self.patterns)} "
            "patterns>"
        )

    def __getitem__(self, index: int) -> _Item:
        if not 0 <= index < len(self):
            raise IndexError(f"cell {index} of {len(self)}")
        item: _Item = {"cell_id": self._ids[index]}
        for name, values in self._flat.items():
            first, end = self._ends[name][index : index + 2]
            item[name] = values[first:end]
        item["gene"], item["genes"] = item["gene"].long(), item["genes"].long()
        item["pair"] = torch.searchsorted(item["genes"], item["gene"])
        if "labels" in item:
            item["labels"] = item["labels"].float()
        return item

    def table(self, batch: _Item, scores: torch.Tensor) -> pd.DataFrame:
        """Give scores of a batch, or of one item, as rows of a prediction table.

        Parameters
        ----------
        batch : dict
            From :func:`collate`, or an item.
        scores : torch.Tensor
            (P, C): one row per pair of the batch, in the order of its ``genes``; one column per
            pattern of the dataset. Half precision becomes float32.

        Returns
        -------
        pandas.DataFrame
            ``cell_id``, ``gene`` and one column per pattern. Concatenate those of all batches, in
            any order; :func:`~gpattern_bench.predictions.counted` keeps the pairs to predict.
        """
        if isinstance(batch["cell_id"], str):
            batch = collate([batch])
        genes = batch["genes"].cpu().numpy()
        expected = (len(genes), len(self.patterns))
        if tuple(scores.shape) != expected:
            raise GPatternBenchError(
                f"expected scores of the shape {expected}, a row per pair of the batch and a "
                f"column per pattern ({', '.join(self.patterns)}); got {tuple(scores.shape)}"
            )
        wide = scores if scores.dtype == torch.float64 else scores.float()
        frame = pd.DataFrame(wide.numpy(force=True), columns=list(self.patterns))
        cell = batch["cell_of_pair"].cpu().numpy()
        frame.insert(0, "cell_id", np.array(batch["cell_id"], object)[cell])
        frame.insert(1, "gene", np.array(self.genes, object)[genes])
        return frame


def collate(items: Sequence[_Item]) -> _Item:
    """Join cells to a batch, without padding: for ``DataLoader(..., collate_fn=collate)``.

    Parameters
    ----------
    items : sequence of dict
        B items of :class:`TorchCells`.

    Returns
    -------
    dict
        The tensors of the items, concatenated, ``pair`` counted through the batch; ``cell_id``, a
        list of B texts; and the cell of each row, int64 from 0 to B - 1: ``cell`` of the molecules,
        ``cell_of_pair``, ``cell_of_boundary`` and ``cell_of_nucleus``.

    Examples
    --------
    >>> one = {"cell_id": "a", "xy": torch.zeros(2, 2), "gene": torch.tensor([3, 5])}
    >>> one |= {"pair": torch.tensor([0, 1]), "genes": torch.tensor([3, 5])}
    >>> one |= {"boundary": torch.zeros(4, 2), "nucleus": torch.zeros(0, 2)}
    >>> batch = collate([one, one | {"cell_id": "b"}])
    >>> batch["cell"].tolist(), batch["pair"].tolist(), batch["cell_id"]
    ([0, 0, 1, 1], [0, 1, 2, 3], ['a', 'b'])

    Padded (B, longest, 2), for models that need it:

    >>> from torch.nn.utils.rnn import pad_sequence
    >>> sizes = batch["cell"].bincount(minlength=2).tolist()
    >>> pad_sequence(batch["xy"].split(sizes), batch_first=True).shape
    torch.Size([2, 2, 2])
    """
    batch: _Item = {"cell_id": [item["cell_id"] for item in items]}
    for name in items[0].keys() - {"cell_id"}:
        batch[name] = torch.cat([item[name] for item in items])
    for key, name in (
        ("cell", "xy"),
        ("cell_of_pair", "genes"),
        ("cell_of_boundary", "boundary"),
        ("cell_of_nucleus", "nucleus"),
    ):
        batch[key] = _numbered([len(item[name]) for item in items])
    before = np.cumsum([0, *(len(item["genes"]) for item in items)])
    batch["pair"] = batch["pair"] + torch.from_numpy(before)[batch["cell"]]
    return batch


def _numbered(sizes: Sequence[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def _vertices(outline: shapely.Geometry | None) -> NDArray[np.float32]:
    """All vertices (v, 2); none without an outline."""
    return np.asarray(shapely.get_coordinates(outline), dtype=np.float32)
