"""What an elementwise rule looks at: entries of T sources in M matrices of one size, and facts of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries.chance import own_names, uniform
from loramerge.arrays.backend import Array

Chance = Callable[[], Array]


@dataclass(frozen=True, eq=False, slots=True)
class Limits:
    """Sizes between which entries are kept, low <= size < high: (S, M) each, S = T or 1 for all together."""

    low: Array
    high: Array


@dataclass(frozen=True, eq=False, slots=True)
class Stack:
    """Entries of T sources in M matrices (or in one tile of each).

    Args:
        values: (T, M, a, b); beyond `sizes` they are zero.
        weights: (T,), none of them zero.
        sizes: (M, 2) how many rows and columns of each matrix are real.
        chance: makes (T, M, a, b) uniform numbers in [0, 1), the same for the same source and place.
        limits: what to trim, for rules that do.   facts: (F, M) sums over whole matrices, for rules that have
            any.
    """

    values: Array
    weights: Array
    sizes: Array
    chance: Chance
    limits: Limits | None = None
    facts: Array | None = None


def stack(
    values: Array,
    weights: Array,
    sizes: Array,
    sources: tuple[str, ...],
    labels: tuple[str, ...],
    seed: int = 0,
) -> Stack:
    """A stack of whole matrices; sources of weight 0 are left out.

    Args:
        values: (T, M, a, b).   weights: (T,).   sizes: (M, 2).   sources: (T,) and labels: (M,) names.
    """
    present = np.flatnonzero(weights)
    kept = values[present]

    def chance() -> Array:
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

    return Stack(kept, np.asarray(weights, float)[present], sizes, chance)
