"""Composition that looks at the input: banks of rank-1 units, gates that weigh them, bundles of both."""
