"""Evaluate scores against labels: metrics, intervals, comparisons, strata and calls.

In: prediction files or tables, and labels. Out: a `Result`, or patterns called at thresholds. May
import: all rooms up to `data`, and `predictions`.
"""
