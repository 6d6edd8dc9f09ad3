"""Cells: equilibrium equations, one family a file."""
