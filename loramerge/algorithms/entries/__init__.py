"""Machinery of the methods that look at single entries: rules, where they work, their limits and chance."""
