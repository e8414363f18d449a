"""Machinery of methods that look at single entries: rules, tiles, thresholds, chances."""
