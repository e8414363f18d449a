"""Composition that looks at the input: banks of rank-1 units, gates that weigh them, bundles of both.

A bundle is a folder that PEFT loads: its experts are plain adapters of one rank, and what its gate knows lies
beside them. A gate is one formula over a handful of functions, so NumPy and torch run the same lines.
"""
