"""Score predictions against labels by the paper's metrics (section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from gpattern_bench.data.dataset import Dataset, load_dataset
from gpattern_bench.errors import EvaluationError
from gpattern_bench.evaluate.bootstrap import (
    REPLICATES,
    Resamples,
    bootstrap,
    includes_zero,
    interval,
    is_biased,
)
from gpattern_bench.evaluate.genes import (
    SHARE,
    gene_means,
    gene_shares,
    has_pattern,
    second_largest,
)
from gpattern_bench.evaluate.inputs import label_columns, paired, type_name
from gpattern_bench.evaluate.metrics import at_threshold, exact_mean, score_pattern
from gpattern_bench.evaluate.result import Comparison, Result
from gpattern_bench.evaluate.strata import stratify
from gpattern_bench.predictions import expected_origin
from gpattern_bench.tables import schema
from gpattern_bench.tables.model_output import read_checked, read_model_output
from gpattern_bench.tables.predictions import (
    FLOATS,
    Checked,
    as_table,
    check_predictions,
    is_table,
    only_pairs,
)

__all__ = ["Comparison", "Evaluator", "Predictions", "Result"]

Predictions: TypeAlias = str | Path | pd.DataFrame | pa.Table | Checked | Mapping[str, Any]
"""A prediction file, a table of scores, what `Evaluator.check` returned of one, or ``{"y_true":
..., "y_pred": ...}``."""

_MACRO = {"auc_macro": "auc", "acc_macro": "acc", "f1_macro": "f1", "ap_macro": "ap"}
_MACRO_VAL = {"f1_val_macro": "f1_val", "acc_val_macro": "acc_val"}


class Evaluator:
    """Score predictions against the labels of one split.

    Each pattern's threshold maximises F1 on the evaluated labels, as in the paper. That is
    optimistic: give val scores too, and compare ``f1_val_macro``.

    Parameters
    ----------
    dataset : str, pathlib.Path, Dataset, pandas.DataFrame or pyarrow.Table
        A dataset (name, folder or loaded), or a table of labels: ``cell_id``, ``gene`` and one
        column per pattern, of any type that holds 0 and 1 or false and true.
    split : str
        Split to score; ignored for a table of labels.

    Raises
    ------
    TableError
        The dataset has no labels, or others than those curated (compared by value, once per
        process).
    EvaluationError
        A table of labels lacks columns, repeats pairs, or lacks labels of some.

    Examples
    --------
    >>> ev = Evaluator("synthetic", split="test")
    >>> labels = ev.labels
    >>> result = ev.eval(labels[["cell_id", "gene"]].join(labels[list(ev.patterns)] * 1.0))
    >>> result["f1_macro"], result["accuracy_subset"], result.undefined
    (1.0, 1.0, {})
    """

    def __init__(
        self, dataset: str | Path | Dataset | pd.DataFrame | pa.Table, split: str = "test"
    ) -> None:
        self.split = split
        self.dataset: Dataset | None = None
        self._others: dict[str, str] = {}  # columns of a table of labels that are no patterns
        if is_table(dataset):
            self.labels, self.patterns, self._others = label_columns(dataset)
            repeated = int(self.labels.duplicated(["cell_id", "gene"]).sum())
            if repeated:
                raise EvaluationError(
                    f"the table of labels has {repeated} rows that repeat a pair; keep one row per "
                    "pair"
                )
        elif not isinstance(dataset, str | Path | Dataset):
            raise EvaluationError(
                "expected a dataset (name, folder or loaded), or a table of labels, got "
                f"{type_name(dataset)}"
            )
        else:
            self.dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
            self.dataset.check_labels()
            self.patterns = self.dataset.patterns
            self.labels = self.dataset.labels(split)

    def __repr__(self) -> str:
        of = "a table of labels"
        if self.dataset is not None:
            of = f"{self.dataset.id}, split {self.split}"
        return f"<Evaluator of {of}: {len(self.labels):,} pairs, {len(self.patterns)} patterns>"

    @property
    def expected_input_format(self) -> str:
        """Describe the input of :meth:`eval`."""
        names = {pa.float32(): "float32", pa.string(): "text"}
        fields = schema.predictions(self.patterns)
        columns = "\n".join(f"  {field.name}: {names[field.type]}" for field in fields)
        return (
            "A prediction file (Parquet), a pandas.DataFrame or a pyarrow.Table with the columns\n"
            f"{columns}\n"
            f"and one row for each of the {len(self.labels):,} pairs, in any order. Scores are "
            "finite and in [0, 1]; tables in memory\nmay also hold them as float64.\n"
            f'Or {{"y_true": (N, {len(self.patterns)}) array of 0/1, "y_pred": array of scores of '
            "the same shape}, columns in this order,\nor both as tables: columns by name, and of "
            "pandas rows by index."
        )

    @property
    def expected_output_format(self) -> str:
        """Describe the result of :meth:`eval`."""
        return (
            "A dict of fractions, NaN = undefined: auc_macro, acc_macro, f1_macro, ap_macro, "
            "accuracy_subset; with val scores\nf1_val_macro, acc_val_macro, f1_gap_macro; n; "
            "per_pattern = pattern -> auc, acc, f1, threshold, precision,\nrecall, ap, floor, "
            "prevalence, n_positive, n; undefined = metric -> patterns left out of its mean; "
            "warnings;\nci = metric -> 95 % interval, n_clusters and clusters = what it rests on."
        )

    def eval(
        self,
        predictions: Predictions,
        val: Predictions | None = None,
        *,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Result:
        """Score predictions.

        Parameters
        ----------
        predictions : path, DataFrame, Table, Checked or dict
            As :attr:`expected_input_format` says, or the result of :meth:`check`. ``y_true`` in a
            dict replaces the labels.
        val : path, DataFrame, Table, Checked or dict, optional
            The same method's predictions on the val split, for metrics at thresholds chosen there.
        replicates : int
            Bootstrap replicates for the intervals; 0: no intervals. Arrays, and labels without
            fields of view, never have intervals.
        seed : int
            Seed of the bootstrap.

        Returns
        -------
        Result

        Raises
        ------
        PredictionError
            With every problem of a prediction file or table.
        EvaluationError
            Arrays of wrong shape, names that cannot be aligned, or values other than labels and
            scores.
        """
        truth, scores, warnings = self._aligned(predictions, self.split, self.labels)
        thresholds = self._thresholds(val)
        labels = None if isinstance(predictions, Mapping) else self.labels
        resamples = _resamples(labels, seed, replicates)
        return self._result(truth, scores, thresholds, resamples, warnings)

    def compare(
        self,
        a: Predictions,
        b: Predictions,
        val_a: Predictions | None = None,
        val_b: Predictions | None = None,
        *,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Comparison:
        """Compare two methods on the same pairs by a paired bootstrap.

        Parameters
        ----------
        a, b : path, DataFrame, Table or Checked
            As in :meth:`eval`, but no arrays.
        val_a, val_b : path, DataFrame, Table, Checked or dict, optional
            Their predictions on the val split, for metrics at thresholds chosen there.
        replicates, seed
            As in :meth:`eval`.

        Returns
        -------
        Comparison
            Macro metrics, and each pattern's.

        Raises
        ------
        EvaluationError
            The labels have no fields of view to resample, or val scores of one method only.
        """
        if "fov" not in self.labels or isinstance(a, Mapping) or isinstance(b, Mapping):
            raise EvaluationError(
                "comparing needs the pairs' fields of view: give a dataset, or a table of labels "
                "with a column fov, and scores as files or tables"
            )
        if (val_a is None) != (val_b is None):
            raise EvaluationError("comparing at val thresholds needs val scores of both methods")
        one, other = (
            self.eval(x, val, replicates=replicates, seed=seed)
            for x, val in ((a, val_a), (b, val_b))
        )

        def compared(metric: str, x: float, y: float, drawn: NDArray[np.float64]) -> dict[str, Any]:
            widest = 2.0 if metric.startswith("f1_gap") else 1.0
            freedom, biased = one.degrees_of_freedom, is_biased(metric)
            ci = interval(x - y, drawn, freedom, (-widest, widest), biased=biased)
            return {
                "a": x,
                "b": y,
                "difference": x - y,
                "ci": ci,
                "tied": includes_zero(ci),
                "n_clusters": one["n_clusters"],
            }

        found = Comparison()
        for metric, drawn in one.replicates.items():
            other_drawn = other.replicates[metric]
            found[metric] = compared(metric, one[metric], other[metric], drawn - other_drawn)
        found.per_pattern = {
            pattern: {
                metric: compared(
                    metric,
                    one.per_pattern[pattern][metric],
                    other.per_pattern[pattern][metric],
                    drawn[:, k] - other.pattern_replicates[metric][:, k],
                )
                for metric, drawn in one.pattern_replicates.items()
            }
            for k, pattern in enumerate(self.patterns)
        }
        return found

    def strata(
        self,
        predictions: Predictions,
        by: str,
        val: Predictions | None = None,
        *,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> dict[str, Result]:
        """Score strata of the pairs, for instance by number of molecules.

        Each stratum is scored like the whole, with its own thresholds; thresholds from val are
        those of the whole val split.

        Parameters
        ----------
        predictions, val, replicates, seed
            As in :meth:`eval`, but no arrays.
        by : {"molecules", "gene_seen", "cell_size"}
            Molecules per pair (1, 2-4, 5-9, 10-19, 20-49, 50+); whether the gene has labelled
            pairs in the train split; area of the cell's outline, in thirds of the cells.

        Returns
        -------
        dict of str to Result
            Stratum -> result, in order; empty strata are absent.

        Raises
        ------
        EvaluationError
            `by` is unknown, or its requirement is not met.
        """
        if isinstance(predictions, Mapping):
            raise EvaluationError("arrays have no strata: give a prediction file or table")
        stratum, names = stratify(by, self.labels, self.dataset, self.split)
        truth, scores, warnings = self._aligned(predictions, self.split, self.labels)
        thresholds = self._thresholds(val)
        found = {}
        for code, name in enumerate(names):
            rows = np.flatnonzero(stratum == code)
            if len(rows):
                resamples = _resamples(self.labels.iloc[rows], seed, replicates)
                found[name] = self._result(
                    truth[rows], scores[rows], thresholds, resamples, warnings
                )
        return found

    def eval_genes(
        self,
        predictions: Predictions,
        val: Predictions | None = None,
        *,
        share: float = SHARE,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Result:
        """Score genes instead of pairs: one label and one score per gene and pattern.

        A gene has a pattern that at least `share` of its labelled cells show; its score is the
        mean of its pairs'. Thresholds are chosen on genes, and the bootstrap draws genes.

        Parameters
        ----------
        predictions, val, replicates, seed
            As in :meth:`eval`, but no arrays.
        share : float
            Above 0, at most 1.

        Returns
        -------
        Result
            Of genes: ``n`` counts them; ``clusters`` is "gene". Besides, ``share``, ``n_pairs``,
            ``n_ambiguous`` (genes with two or more patterns), and ``ambiguous``: the metrics of
            telling these from the rest by a gene's second largest score.

        Raises
        ------
        PredictionError, EvaluationError
            As :meth:`eval`, and for another share.
        """
        truth, scores, names, warnings = self._genes(predictions, self.split, self.labels, share)
        thresholds = None
        if val is not None:
            labels = None if self.dataset is None else self.dataset.labels("val")
            known, found, _, _ = self._genes(val, "val", labels, share)
            thresholds = [
                score_pattern(known[:, k], found[:, k]).threshold for k in range(known.shape[1])
            ]
        drawn = (
            Resamples.of_genes(len(names), seed=seed, replicates=replicates) if replicates else None
        )
        result = self._result(truth, scores, thresholds, drawn, warnings)
        several = truth.sum(axis=1) > 1
        result |= {"share": share, "n_pairs": len(self.labels), "n_ambiguous": int(several.sum())}
        if truth.shape[1] > 1:
            result["ambiguous"] = asdict(score_pattern(several, second_largest(scores)))
        return result

    def _genes(
        self, predictions: Predictions, split: str, labels: pd.DataFrame | None, share: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], list[str], list[str]]:
        """Return labels and scores (G, C) of genes, their names, and warnings."""
        if isinstance(predictions, Mapping) or labels is None:
            raise EvaluationError(
                "genes need the pairs' names: give a prediction file or table, and for val a "
                "dataset, not arrays or a table of labels"
            )
        truth, scores, warnings = self._aligned(predictions, split, labels)
        names, _, shares = gene_shares(labels["gene"], truth)
        return has_pattern(shares, share), gene_means(labels["gene"], scores), names, warnings

    def example(self, seed: int = 0) -> pd.DataFrame:
        """Make a valid table of random scores, as an example for yours."""
        rng = np.random.Generator(np.random.Philox(seed))
        table = self.labels[["cell_id", "gene"]].astype(str).reset_index(drop=True)
        scores = rng.random((len(table), len(self.patterns))).astype(np.float32)
        return table.join(pd.DataFrame(scores, columns=list(self.patterns)))

    def _thresholds(self, val: Predictions | None) -> list[float] | None:
        if val is None:
            return None
        truth, scores, _ = self._aligned(val, "val", None)
        return [score_pattern(truth[:, k], scores[:, k]).threshold for k in range(truth.shape[1])]

    def _result(
        self,
        truth: NDArray[np.bool_],
        scores: NDArray[np.floating[Any]],
        thresholds: list[float] | None,
        resamples: Resamples | None,
        warnings: list[str],
    ) -> Result:
        from gpattern_bench.evaluate.threshold_sweep import rows_right  # imports numba

        per_pattern: dict[str, dict[str, Any]] = {}
        for k, pattern in enumerate(self.patterns):
            try:
                score = score_pattern(truth[:, k], scores[:, k])
            except EvaluationError as error:
                raise EvaluationError(f"pattern {pattern}: {error}") from error
            per_pattern[pattern] = values = asdict(score)
            if thresholds is not None:
                f1, acc = at_threshold(truth[:, k], scores[:, k], thresholds[k])
                values |= {
                    "f1_val": f1,
                    "acc_val": np.nan if isnan(f1) else acc,  # both or neither, like f1 and acc
                    "threshold_val": thresholds[k],
                }
        result = Result()
        macro = _MACRO if thresholds is None else _MACRO | _MACRO_VAL
        for key, metric in macro.items():
            result[key] = exact_mean(values[metric] for values in per_pattern.values())
        if thresholds is not None:
            result["f1_gap_macro"] = result["f1_macro"] - result["f1_val_macro"]
        # Patterns without positives have no threshold and are ignored, as in the means.
        chosen = [values["threshold"] for values in per_pattern.values()]
        defined = not all(map(isnan, chosen))
        right = rows_right(truth, scores, chosen) / len(truth) if defined else np.nan
        result["accuracy_subset"] = right
        result["n"] = len(truth)
        result["per_pattern"] = per_pattern
        result["undefined"] = {
            metric: names
            for metric in macro.values()
            if (names := [p for p, values in per_pattern.items() if isnan(values[metric])])
        }
        result["warnings"] = warnings
        result.replicates, result.pattern_replicates, result.degrees_of_freedom = {}, {}, 0
        if resamples is not None:
            self._add_intervals(
                result, macro, bootstrap(truth, scores, resamples, thresholds), resamples
            )
        return result

    def _add_intervals(
        self,
        result: Result,
        macro: Mapping[str, str],
        drawn: dict[str, NDArray[np.float64]],
        resamples: Resamples,
    ) -> None:
        freedom = resamples.degrees_of_freedom
        result.pattern_replicates = {
            metric: found for metric, found in drawn.items() if metric != "accuracy_subset"
        }
        for k, values in enumerate(result.per_pattern.values()):
            values["ci"] = {
                metric: interval(values[metric], found[:, k], freedom, biased=is_biased(metric))
                for metric, found in result.pattern_replicates.items()
            }
        for key, metric in macro.items():
            # The same patterns as in the estimate's mean.
            known = [not isnan(values[metric]) for values in result.per_pattern.values()]
            defined = drawn[metric][:, known]
            nothing = np.full(len(defined), np.nan)
            result.replicates[key] = defined.mean(axis=1) if any(known) else nothing
        if "f1_val_macro" in macro:
            both = result.replicates
            both["f1_gap_macro"] = both["f1_macro"] - both["f1_val_macro"]
        result.replicates["accuracy_subset"] = drawn["accuracy_subset"]
        result["ci"] = {
            key: interval(
                result[key],
                found,
                freedom,
                (-1.0, 1.0) if key == "f1_gap_macro" else (0.0, 1.0),
                biased=is_biased(key),
            )
            for key, found in result.replicates.items()
        }
        result["n_clusters"] = resamples.n
        result["clusters"] = resamples.level
        result.degrees_of_freedom = freedom

    def check(self, predictions: str | Path | pd.DataFrame | pa.Table) -> Checked:
        """Check a prediction file or table, and align it with the labels: all problems at once.

        Raises
        ------
        PredictionError
            The file cannot be read; other problems are in the result.
        """
        return self._check(predictions, self.split, self.labels)

    def _check(self, predictions: Any, split: str, labels: pd.DataFrame) -> Checked:
        if isinstance(predictions, str | Path):
            expected = None if self.dataset is None else expected_origin(self.dataset, split)
            found = read_checked(predictions, labels, self.patterns, expected)
            return replace(found, warnings=found.warnings + self._seen_labels(predictions, split))
        if isinstance(predictions, Checked):
            keys = ["cell_id", "gene"]
            if predictions.pairs is not labels and not predictions.pairs[keys].equals(labels[keys]):
                raise EvaluationError(
                    f"{predictions.subject} was checked against other pairs than those of split "
                    f"{split}: check it with an Evaluator of this dataset and split"
                )
            return predictions
        if not is_table(predictions):
            raise EvaluationError(
                "expected the path of a prediction file, a pandas.DataFrame, a pyarrow.Table or a "
                f"dict of y_true and y_pred, got {type_name(predictions)}"
            )
        table = as_table(predictions)
        if read_model_output(table.schema.metadata) is not None:
            table = only_pairs(table, labels)
        for name in sorted(self._others.keys() & set(table.column_names)):
            raise EvaluationError(
                f"the table of labels: {self._others[name]}; labels are 0 and 1, or false and "
                "true: convert it there, or leave it out of the scores"
            )
        return check_predictions(table, labels, self.patterns, dtypes=FLOATS)

    def _seen_labels(self, path: str | Path, split: str) -> list[str]:
        """Warn if a model, whose fit no protocol checked, was fitted on the labels to score."""
        output = read_model_output(path)
        if output is None or self.dataset is None:
            return []
        fitted = self.dataset.id in (output.model.fitted_on or ())
        if not fitted or (split != "train" and "train" in self.dataset.splits):
            return []
        return [f"the model was fitted on the labels of {self.dataset.id} that are scored here"]

    def _aligned(
        self, predictions: Predictions, split: str, labels: pd.DataFrame | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]], list[str]]:
        """Return labels and scores (N, C) of the same pairs in the same order, and warnings."""
        if isinstance(predictions, Mapping):
            return (*self._arrays(predictions), [])
        if labels is None:
            if self.dataset is None:
                raise EvaluationError(
                    "val scores need val labels, but this Evaluator has only a table of labels; "
                    'pass val={"y_true": ..., "y_pred": ...}'
                )
            labels = self.dataset.labels(split)
        checked = self._check(predictions, split, labels)
        scores = checked.require()
        return labels[list(self.patterns)].to_numpy(bool), scores, checked.warnings

    def _arrays(
        self, arrays: Mapping[str, Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.floating[Any]]]:
        if set(arrays) != {"y_true", "y_pred"}:
            raise EvaluationError(
                f"expected the keys y_true and y_pred, got {', '.join(map(str, arrays)) or 'none'}"
            )
        return paired(arrays["y_true"], arrays["y_pred"], self.patterns)


def _resamples(labels: pd.DataFrame | None, seed: int, replicates: int) -> Resamples | None:
    """Draw replicates; None without replicates or without FOVs."""
    if labels is None or not replicates or "fov" not in labels:
        return None
    return Resamples.draw(labels, seed=seed, replicates=replicates)
