"""SPRAWL: peripheral, central, punctate and radial scores against shuffled genes."""
