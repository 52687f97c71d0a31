"""Logistic regression on how far from the centroid a gene's molecules lie: a tiny real method.

Run as ``python submissions/my_method/run.py --out runs/my_method``. Copy it, and put your method
in place of this one. `run_method` fits it on train, writes the checked prediction files of val and
test, and measures time, memory, device, parameters and which inputs change the scores: nothing is
measured by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from gpattern_bench.data.dataset import load_datasets
from gpattern_bench.methods.base import About
from gpattern_bench.run import run_method


class MyMethod:
    """One logistic regression per pattern on three quantiles of the molecules' radii."""

    about = About(
        name=Path(__file__).resolve().parent.name,  # the folder's name, as in submission.yaml
        label="My method",
        kind="model",
        summary="Logistic regression on quantiles of the radii.",
        reference="none",
        inputs=("coordinates", "cell outline"),
        learns=True,
    )

    def fit(self, train, seed):
        """Learn from the labelled pairs of the training cells."""
        features, labels = [], []
        for cell in train:
            features.append(radii(cell)[cell.labelled])
            labels.append(cell.labels[cell.labelled])
        x, y = np.concatenate(features), np.concatenate(labels)
        models = [LogisticRegression(random_state=seed).fit(x, column) for column in y.T]
        self.weights = np.array([[*model.coef_[0], model.intercept_[0]] for model in models])

    @property
    def parameters(self):
        """Number of weights, for the board."""
        return self.weights.size

    def save(self, folder):
        """Write what was learnt."""
        (folder / "weights.json").write_text(json.dumps(self.weights.tolist()))

    def load(self, folder):
        """Read it again."""
        self.weights = np.array(json.loads((folder / "weights.json").read_text()))

    def predict(self, cells):
        """Score every gene of every cell: (genes, patterns), float32 in [0, 1]."""
        for cell in cells:
            logits = radii(cell) @ self.weights[:, :-1].T + self.weights[:, -1]
            yield cell, (1 / (1 + np.exp(-logits))).astype(np.float32)


def radii(cell):
    """Quantiles (g, 3) of the distance to the centroid, over the radius of the cell."""
    radius = np.hypot(*cell.xy.T) / np.sqrt(cell.boundary.area / np.pi)
    return np.array([np.quantile(radius[cell.gene == g], (0.1, 0.5, 0.9)) for g in cell.genes])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=MyMethod.about.summary)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument(
        "--train-on", action="append", default=[], metavar="NAME",
        help="fit on this dataset instead; again for more",
    )  # fmt: skip
    parser.add_argument(
        "--cv", choices=["cell"], help="out of fold by cell, in five folds as on the board"
    )
    parser.add_argument("--seeds", default="0", metavar="K,K,...", help="default 0")
    parser.add_argument("--out", default=f"runs/{MyMethod.about.name}")
    options = parser.parse_args()
    dataset, *train_on = load_datasets([options.dataset, *options.train_on])
    for seed in map(int, options.seeds.split(",")):
        for file in run_method(
            MyMethod(), dataset, options.out, train_on=train_on, cv=bool(options.cv), seed=seed
        ):
            print(file)
