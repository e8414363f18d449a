"""Which entries of a source are kept: by size, or by chance.

Arrays have a leading axis over sources, x (T, …).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loramerge.algorithms.entries.block import Block
from loramerge.algorithms.entries.limits import Limits
from loramerge.arrays.backend import Array, namespace

Scope = Literal["module", "adapter"]
Rescale = Literal["density", "l1", "none"]


@dataclass(frozen=True, slots=True)
class Trim:
    """Keeps entries by their place in a ranking; entries of equal size are kept or dropped together.

    Args:
        density: the share that is kept; 1 keeps all.
        scope: whether entries are ranked within a module or over the whole adapter.
        outliers: the share of the largest that is left out.
        ranking: makes of entries (T, …) the sizes (S, …) they are ranked by, S = T or 1.
        together: there is one ranking, of how the sources differ (S = 1). A single source keeps everything.
    """

    density: float
    scope: Scope = "module"
    outliers: float = 0.0
    ranking: Callable[[Array], Array] = abs
    together: bool = False

    @property
    def idle(self) -> bool:
        """Whether everything is kept."""
        return self.density == 1

    @property
    def alone(self) -> float:
        """The share of its largest entries that a single source certainly keeps."""
        if self.idle or self.together:
            return 1.0
        return self.density if self.scope == "module" and not self.outliers else 0.0

    def counts(self, count: int) -> tuple[int, int]:
        """How many of `count` entries are left out as the largest, and how many of the next are kept.

        Shares are rounded down, but at least one entry is kept.
        """
        kept = max(int(self.density * count), min(count, 1))
        return min(int(self.outliers * count), count - kept), kept

    def kept(self, x: Array, limits: Limits) -> Array:
        """The entries (T, M, a, b) with zeros where they are not kept."""
        low, high = (each[:, :, None, None] for each in (limits.low, limits.high))
        return trim(x, self.ranking(x), low, high)


@dataclass(frozen=True, slots=True)
class Drop:
    """Keeps entries at random.

    Args:
        density: the probability that one is kept.
        rescale: how kept entries make up for dropped ones: each is divided by its probability, or all are
            scaled so that Σ|x| of a source is as before.
        seed: of the chance.
        spread: how much more than `density` the probability of the largest entry of a row is, and how much
            less that of the smallest.
    """

    density: float
    rescale: Rescale = "density"
    seed: int = 0
    spread: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether everything is kept."""
        return self.density == 1

    @property
    def evens(self) -> bool:
        """Whether Σ|x| over whole matrices is needed."""
        return self.rescale == "l1" and not self.idle

    def kept(self, block: Block, lengths: Array | None = None) -> Array:
        """The entries (T, M, a, b), with zeros where they were dropped at random.

        Args:
            lengths: (2, T, M) what `lengths` found, to be made equal.
        """
        if self.idle:
            return block.values
        density = self._density(block) if self.spread else self.density
        kept = drop(block.values, block.chance(self.seed), density, rescale=self.rescale == "density")
        if lengths is not None:
            xp = namespace(kept)
            before, after = lengths
            gain = xp.where(after > 0, before / xp.where(after > 0, after, 1.0), 0.0)
            kept *= gain[:, :, None, None].astype(kept.dtype)
        return kept

    def lengths(self, block: Block) -> Array:
        """(2, T, M) Σ|x| of every source before and after."""
        pair = block.values, self.kept(block)
        return namespace(block.values).stack([abs(each).sum(axis=(2, 3), dtype=float) for each in pair])

    def _density(self, block: Block) -> Array:
        columns = namespace(block.values).asarray(block.sizes[:, 1][:, None, None])
        return chances(block.values, self.density, self.spread, columns)


def trim(x: Array, ranking: Array, low: Array, high: Array) -> Array:
    """The entries whose `ranking` r has low <= r < high; 0 for the others.

    Args:
        ranking: (S, …) sizes, S = T or 1 for all sources together.   low, high: shaped to fit.

    >>> x = np.array([[1.0, -3.0, 2.0]])
    >>> trim(x, abs(x), np.array([[2.0]]), np.array([[np.inf]]))
    array([[ 0., -3.,  2.]])
    """
    xp = namespace(x)
    kept = ranking >= xp.asarray(low)
    if np.isfinite(high).any():
        kept &= ranking < xp.asarray(high)
    return xp.multiply(x, kept)


def drop(x: Array, chance: Array, density: float | Array, rescale: bool) -> Array:
    """Keep an entry where its `chance`, uniform in [0, 1), is below `density`; `rescale` divides by that.

    >>> drop(np.array([[1.0, 2.0]]), np.array([[0.7, 0.2]]), 0.5, rescale=True)
    array([[0., 4.]])
    """
    xp = namespace(x)
    bound = xp.asarray(density, np.float32)  # float32 whatever x is: the same entries
    kept = (chance < bound).astype(x.dtype)
    if rescale:
        kept /= xp.asarray(density, x.dtype)
    return xp.multiply(kept, x, out=kept)


def chances(x: Array, density: float, spread: float, columns: Array) -> Array:
    """(…, a, b) probability to be kept, by rank within the row: density + spread for the largest entry,
    linear down to density - spread for the `columns`-th. Of entries of one size the first counts as larger.

    >>> chances(np.array([[1.0, -3.0, 2.0]]), 0.5, 0.25, np.array(3)).round(3)
    array([[0.25, 0.75, 0.5 ]])
    """
    xp = namespace(x)
    order = xp.argsort(-abs(x), axis=-1, kind="stable")
    rank = xp.empty_like(order)
    xp.put_along_axis(rank, order, xp.broadcast_to(xp.arange(x.shape[-1]), x.shape), axis=-1)
    step = 1 / xp.maximum(columns - 1, 1)
    return density + spread * (1 - 2 * xp.minimum(rank * step, 1))
