"""Benchmarks: process CPU time and ratios to peers, in one run."""
