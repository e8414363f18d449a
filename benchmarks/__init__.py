"""Benchmarks: each asserts that its result is correct, then measures ratios in one run."""
