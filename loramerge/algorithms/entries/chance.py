"""Random numbers that can be drawn again: they depend only on seed, source, module and place."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from loramerge.arrays.backend import Array


def uniform(
    seed: int, source: str, label: str, tile: tuple[int, int], shape: tuple[int, int], kind: np.dtype
) -> Array:
    """Numbers (rows, columns) in [0, 1) for one tile of one module of one source.

    A counter-based generator (Philox) keyed by the names starts at a counter given by the tile, so no tile
    waits for another: threads, batches and the order of modules and sources change nothing.

    >>> one = uniform(0, "a", "q", (0, 1), (2, 3), np.dtype("f4"))
    >>> bool((one == uniform(0, "a", "q", (0, 1), (2, 3), np.dtype("f4"))).all()), one.dtype.name
    (True, 'float32')
    """
    name = "\0".join((str(seed), source, label)).encode("utf-8", "surrogatepass")
    key = np.frombuffer(hashlib.sha256(name).digest()[:16], "<u8").astype(np.uint64)
    counter = np.array([0, 0, *tile], np.uint64)
    drawn = np.random.Generator(np.random.Philox(counter=counter, key=key)).random(shape, np.float32)
    return drawn.astype(kind, copy=False)


def own_names(names: Sequence[str], strengths: Sequence[float]) -> list[str]:
    """Names that key the random numbers, and depend as little as possible on the other sources: the last part
    of each if it is unique, else with its folder. Sources with one name are numbered by strength, not order.

    >>> own_names(["a/x", "b/y"], [1, 2]), own_names(["a/x", "b/x"], [1, 2])
    (['x', 'y'], ['a/x', 'b/x'])
    >>> own_names(["x#1", "x#4"], [1, 2])
    ['x#1', 'x#0']
    """
    longer = [re.sub(r"#\d+$", "", name) for name in names]
    short = [name.rpartition("/")[2] for name in longer]
    times = Counter(short)
    told = [s if times[s] == 1 else more for s, more in zip(short, longer, strict=True)]
    times, seen, place = Counter(told), Counter[str](), {}
    for i in sorted(range(len(told)), key=lambda i: -strengths[i]):
        place[i] = seen[told[i]]
        seen[told[i]] += 1
    return [n if times[n] == 1 else f"{n}#{place[i]}" for i, n in enumerate(told)]
