"""What scoring and comparing give: dicts that print as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from gpattern_bench.base.html import html_table

__all__ = ["Comparison", "Result"]

_SHOWN = ("auc", "acc", "f1", "ap", "f1_val", "acc_val")


class Result(dict[str, Any]):
    """Result of an evaluation: a dict with extras.

    Keys: ``auc_macro acc_macro f1_macro ap_macro accuracy_subset`` and, with val scores,
    ``f1_val_macro acc_val_macro`` and ``f1_gap_macro`` (F1 at the thresholds chosen on the scored
    labels minus F1 at those chosen on val); ``n`` pairs; ``per_pattern`` = pattern -> ``auc acc
    f1 threshold precision recall ap floor prevalence n_positive n`` (and ``f1_val acc_val
    threshold_val``); ``undefined`` = metric -> patterns with an undefined value, absent from
    its macro average; ``warnings``. With known fields of view also ``ci`` = metric -> [low, high]
    (95 %), of macro averages here and of patterns in ``per_pattern``, with ``n_clusters`` and
    ``clusters`` = the drawn units. All are fractions; NaN = undefined.

    Attributes
    ----------
    replicates : dict of str to numpy.ndarray
        Macro metric -> (B,) bootstrap replicates; empty without intervals.
    pattern_replicates : dict of str to numpy.ndarray
        Metric -> (B, C) replicates of the patterns, likewise.
    degrees_of_freedom : int
        Of the intervals.
    """

    replicates: dict[str, NDArray[np.float64]]
    pattern_replicates: dict[str, NDArray[np.float64]]
    degrees_of_freedom: int

    @property
    def per_pattern(self) -> dict[str, dict[str, Any]]:
        """Pattern -> metric -> value."""
        found: dict[str, dict[str, Any]] = self["per_pattern"]
        return found

    @property
    def undefined(self) -> dict[str, list[str]]:
        """Metric -> patterns with an undefined value."""
        found: dict[str, list[str]] = self["undefined"]
        return found

    def to_frame(self) -> pd.DataFrame:
        """Give the metrics as a table, for a paper or a plot.

        Returns
        -------
        pandas.DataFrame
            One row per pattern, by its name, and the last, ``macro``, of their means; the columns
            are those of ``per_pattern`` (NaN where there is no mean) and, with intervals,
            ``<metric>_low`` and ``<metric>_high``.
        """
        rows = {}
        for name, values in self.per_pattern.items():
            rows[name] = {key: value for key, value in values.items() if key != "ci"}
            rows[name] |= _bounds(values.get("ci", {}))
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        macro = {key: self[f"{key}_macro"] for key in columns if f"{key}_macro" in self}
        ci = {key: self["ci"][f"{key}_macro"] for key in macro if "ci" in self}
        rows["macro"] = macro | {"n": self["n"]} | _bounds(ci)
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        frame.index.name = "pattern"
        counts = {"n": "int64", "n_positive": "Int64"}
        return frame.astype({key: kind for key, kind in counts.items() if key in columns})

    def __str__(self) -> str:
        """Show metrics per pattern, their means and intervals; `repr` has all values."""
        heads, rows, note = self._shown()
        return f"{tabulate(_four_digits(rows), heads, disable_numparse=True)}\n{note}"

    def _repr_html_(self) -> str:
        """Render the same for notebooks."""
        heads, rows, note = self._shown()
        return html_table("Result", heads, rows, note)

    def _shown(self) -> tuple[list[str], list[list[Any]], str]:
        keys = [key for key in _SHOWN if f"{key}_macro" in self]
        rows = [
            [pattern, *(values[key] for key in keys)]
            for pattern, values in self.per_pattern.items()
        ]
        rows.append(["macro", *(self[f"{key}_macro"] for key in keys)])
        note = f"{self['n']:,} {'genes' if 'n_ambiguous' in self else 'pairs'}; fractions"
        if "ci" in self:
            bounds = [self["ci"][f"{key}_macro"] for key in keys]
            rows.append(["95 %", *(f"{low:.4f} to {high:.4f}" for low, high in bounds)])
            note += f"; intervals over {self['n_clusters']} clusters ({self['clusters']})"
        left_out = [f"{key}: {', '.join(names)}" for key, names in self.undefined.items()]
        note += "".join(f"; undefined {text}" for text in left_out)
        return ["pattern", *keys], rows, note


class Comparison(dict[str, dict[str, Any]]):
    """Result of a comparison of two methods, a and b: a dict with extras.

    Macro metric of :class:`Result` -> ``a``, ``b``, ``difference`` (a - b), ``ci`` = its 95 %
    interval, ``tied``: whether the interval includes 0, and ``n_clusters``.

    Attributes
    ----------
    per_pattern : dict
        Pattern -> metric -> the same.
    """

    per_pattern: dict[str, dict[str, dict[str, Any]]]

    def to_frame(self) -> pd.DataFrame:
        """Give a table: ``metric``, ``pattern``, ``a``, ``b``, ``difference``, its ends, ``tied``.

        The rows of macro metrics come first; their pattern is ``macro``, as in
        :meth:`Result.to_frame`. ``low`` and ``high`` are the ends of the difference's interval.
        """
        rows = [("macro", metric.removesuffix("_macro"), v) for metric, v in self.items()]
        rows += [
            (pattern, metric, values)
            for pattern, found in self.per_pattern.items()
            for metric, values in found.items()
        ]
        return pd.DataFrame(
            [
                {
                    "metric": metric,
                    "pattern": pattern,
                    **{key: values[key] for key in ("a", "b", "difference")},
                    "low": values["ci"][0],
                    "high": values["ci"][1],
                    "tied": values["tied"],
                }
                for pattern, metric, values in rows
            ]
        )

    def __str__(self) -> str:
        """Show the macro metrics; :meth:`to_frame` has the patterns too, `repr` all values."""
        frame = self.to_frame()
        frame = frame[frame["pattern"] == "macro"].drop(columns="pattern")
        rows = _four_digits(frame.itertuples(index=False))
        return tabulate(rows, list(frame.columns), disable_numparse=True)


def _four_digits(rows: Iterable[Iterable[Any]]) -> list[list[str]]:
    def shown(value: Any) -> str:
        if value != value:
            return "-"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    return [[shown(value) for value in row] for row in rows]


def _bounds(ci: Mapping[str, list[float]]) -> dict[str, float]:
    """Name the ends of intervals as columns."""
    ends: dict[str, float] = {}
    for key, (low, high) in ci.items():
        ends |= {f"{key}_low": low, f"{key}_high": high}
    return ends
