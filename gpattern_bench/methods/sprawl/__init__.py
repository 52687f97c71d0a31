"""SPRAWL: peripheral and central scores against permutations of the genes."""
