"""The cells of a split as a torch dataset; no other loader module imports torch."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from gpattern_bench.data.cells import Cells

__all__ = ["TorchCells"]


class TorchCells(Dataset[dict[str, torch.Tensor]]):
    """Random access to the cells of a split, as tensors.

    Holds the molecules as flat arrays (12 bytes each); an item is a dict:

    - ``xy`` float32 (n, 2): micrometres, relative to the cell's centroid
    - ``gene`` int64 (n,): codes into the dataset's ``genes``
    - ``genes`` int64 (g,): the genes present, ascending
    - ``labels`` float32 (g, C) and ``labelled`` bool (g,), if the dataset has labels

    Cells differ in size, so a ``DataLoader`` needs a ``collate_fn`` that pads (or batch size None).

    Examples
    --------
    >>> from gpattern_bench import load_dataset
    >>> cells = load_dataset("synthetic").torch("test")
    >>> cells[0]["xy"].shape[1], cells[0]["labels"].shape[1]
    (2, 4)
    """

    def __init__(self, cells: Cells) -> None:
        self.genes, self.patterns = cells.genes, cells.patterns
        xy, gene, genes, labels, labelled = [], [], [], [], []
        for cell in cells:
            xy.append(cell.xy.astype(np.float32))
            gene.append(cell.gene)
            genes.append(cell.genes)
            if cell.labels is not None and cell.labelled is not None:
                labels.append(cell.labels)
                labelled.append(cell.labelled)
        self._molecules = np.cumsum([0, *map(len, gene)])
        self._pairs = np.cumsum([0, *map(len, genes)])
        self._xy = torch.from_numpy(np.concatenate(xy))  # (molecules, 2)
        self._gene = torch.from_numpy(np.concatenate(gene))  # (molecules,)
        self._genes = torch.from_numpy(np.concatenate(genes))  # (pairs,)
        self._labels = torch.from_numpy(np.concatenate(labels)) if labels else None  # (pairs, C)
        self._labelled = torch.from_numpy(np.concatenate(labelled)) if labels else None

    def __len__(self) -> int:
        return len(self._molecules) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"cell {index} of {len(self)}")
        molecules = slice(*self._molecules[index : index + 2])
        pairs = slice(*self._pairs[index : index + 2])
        item = {
            "xy": self._xy[molecules],
            "gene": self._gene[molecules].long(),
            "genes": self._genes[pairs].long(),
        }
        if self._labels is not None and self._labelled is not None:
            item["labels"] = self._labels[pairs].float()
            item["labelled"] = self._labelled[pairs]
        return item
