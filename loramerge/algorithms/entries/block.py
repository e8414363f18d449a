"""What a rule looks at: the entries of T sources in M matrices, or in one tile of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries.chance import own_names, uniform
from loramerge.arrays.backend import Array, host

Chance = Callable[[int], Array]


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Entries of T sources side by side.

    Args:
        values: (T, M, a, b); beyond `sizes` they are zero.
        weights: (T,) numbers of the host, none of them zero.
        sizes: (M, 2) how many rows and columns of each matrix are real.
        chance: makes (T, M, a, b) uniform numbers in [0, 1) from a seed, the same for one source and place.
        sums: (F, M) over whole matrices, for a rule that measures them.
    """

    values: Array
    weights: Array
    sizes: Array
    chance: Chance
    sums: Array | None = None


def whole(
    values: Array, weights: Array, sizes: Array, sources: tuple[str, ...], labels: tuple[str, ...]
) -> Block:
    """A block of whole matrices, on the host, where rules go through them. Sources of weight 0 are left out.

    Args:
        values: (T, M, a, b).   weights: (T,).   sizes: (M, 2).   sources: (T,) and labels: (M,) names.
    """
    values, sizes = host(values), host(sizes)
    present = np.flatnonzero(weights)
    kept = values[present]

    def chance(seed: int) -> Array:
        drawn = np.ones(kept.shape, values.dtype)
        for m, label in enumerate(labels):
            rows, columns = map(int, sizes[m])
            some = [t for t in range(len(kept)) if kept[t, m].any()]
            strengths = [float(np.square(kept[t, m], dtype=float).sum()) for t in some]
            names = own_names([sources[present[t]] for t in some], strengths)
            for t, name in zip(some, names, strict=True):
                drawn[t, m, :rows, :columns] = uniform(
                    seed, name, label, (0, 0), (rows, columns), values.dtype
                )
        return drawn

    return Block(kept, np.array(weights, float)[present], sizes, chance)
