"""ELLA: where along the radius of a cell a gene's molecules lie, by a likelihood-ratio test."""
