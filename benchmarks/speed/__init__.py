"""Speed side by side: `python -m benchmarks.speed` asserts, measures in one run, prints ratios."""
