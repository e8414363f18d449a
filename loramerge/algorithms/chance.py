"""Chance that can be drawn again: numbers that depend on seed, source, module and place alone."""

from __future__ import annotations

import hashlib

import numpy as np

from loramerge.backend import Array


def uniform(
    seed: int, source: str, label: str, tile: tuple[int, int], shape: tuple[int, int], kind: np.dtype
) -> Array:
    """Numbers (rows, columns) in [0, 1) for one tile of one module of one source.

    A counter-based generator (Philox) keyed by the names starts at a counter given by the tile, so no tile waits
    for another: threads, batches and the order of modules and sources change nothing.

    >>> one = uniform(0, "a", "q", (0, 1), (2, 3), np.dtype("f4"))
    >>> bool((one == uniform(0, "a", "q", (0, 1), (2, 3), np.dtype("f4"))).all()), one.dtype.name
    (True, 'float32')
    """
    name = "\0".join((str(seed), source, label)).encode("utf-8", "surrogatepass")
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    counter = np.array([0, 0, *tile], np.uint64)
    drawn = np.random.Generator(np.random.Philox(counter=counter, key=key)).random(shape, np.float32)
    return np.asarray(drawn, kind)
