"""Solvers of fixed-point equations, each its own small file over the one loop in `base`."""
