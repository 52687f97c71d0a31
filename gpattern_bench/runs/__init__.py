"""Runs: one method or many on a dataset, to prediction files, models and what they cost.

In: a method's name and a `Dataset`. Out: a folder of prediction files, saved models and reports.
May import: all rooms up to `methods`.
"""
