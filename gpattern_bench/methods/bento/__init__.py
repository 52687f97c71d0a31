"""Bento: features of a gene's molecules in a cell, and random forests on them."""
