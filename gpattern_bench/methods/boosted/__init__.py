"""Boosted trees on the features of all baselines."""
