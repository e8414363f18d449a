"""Methods of federated learning: they work on the factors as stored, and keep their rank."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from loramerge.algorithms.families.shares import positive_shares
from loramerge.algorithms.method import Method
from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.gram import Grams, inner
from loramerge.arrays.linalg import eigh
from loramerge.arrays.remix import Remix
from loramerge.errors import IncompatibleError, printable, say


@dataclass(frozen=True, kw_only=True)
class Federated(Method):
    """Unit i of one source belongs to unit i of every other. The merge has as many units as each source."""

    called: ClassVar[str]  # what messages call it

    def weights(self, weights: Array) -> Array:
        return positive_shares(weights, self.called)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def size(self, signature: tuple[int, ...]) -> int:
        return max(signature)

    def remix(self, grams: Grams) -> Remix:
        rank = check_ranks(grams, self.called)
        return self.factors(grams, rank)

    @abstractmethod
    def factors(self, grams: Grams, rank: int) -> Remix:
        """The merge of sources that have `rank` units each."""


def present(grams: Grams) -> list[int]:
    """The sources that have these modules and a weight."""
    assert grams.weights is not None
    return [source for source in grams.owners if grams.weights[source]]


def check_ranks(grams: Grams, method: str) -> int:
    """The one rank of all sources.

    Raises:
        IncompatibleError: there is more than one.
    """
    sources = present(grams)
    ranks = [len(grams.of(source)) for source in sources]
    if len(set(ranks)) > 1:
        whose = ", ".join(f"{printable(grams.sources[s])} {r}" for s, r in zip(sources, ranks, strict=True))
        raise IncompatibleError(
            f"{method} adds factors unit by unit and needs one rank in all sources: in "
            f"{printable(grams.labels[0])} they are {whose}. Use {say('method', 'average')} or "
            f"svd, which take any."
        )
    return ranks[0] if ranks else len(grams.of(int(grams.owner[0])))


def places(grams: Grams, rank: int) -> Array:
    """(R, r) 1 where a unit is the i-th of its source."""
    each = np.concatenate([np.arange(count) for count in np.bincount(grams.owner)])
    return like((each[:, None] == np.arange(rank)).astype(float), grams.up)


def mean_units(grams: Grams, rank: int) -> tuple[Array, Array, Array]:
    """Σ p_t B_t = up @ B (R, r), Σ p_t A_t = A (r, R) @ down over the sources that have the module, and
    the weight of each unit (R,).

    A source without the module has a B of zero there and the A of the others.
    """
    assert grams.weights is not None
    weight = grams.unit_weights
    up = places(grams, rank) * weight[:, None]  # (R, r)
    there = float(sum(grams.weights[source] for source in present(grams)))
    return up, up.T / there if there else up.T, weight


@dataclass(frozen=True, eq=False, slots=True)
class Projection:
    """The weighted sum, as the mean A sees it: Ā (r, in).

    Args:
        square: Ā Āᵀ (M, r, r).   cross: ΔW Āᵀ = up @ cross (M, R, r).
    """

    square: Array
    cross: Array

    @classmethod
    def of(cls, grams: Grams, mean: Array, weight: Array) -> Projection:
        wide = grams.down @ mean.T  # (M, R, r)
        return cls(mean @ wide, weight[:, None] * wide)

    def inverse(self, ridge: float) -> Array:
        """(Ā Āᵀ + λ)⁻¹ (M, r, r), on the span of Ā only."""
        values, vectors = eigh(self.square)
        has = values > 1e-12 * values[:, -1:]
        inverse = ratio(1.0, values + ridge, has)
        return (vectors * inverse[:, None, :]) @ vectors.swapaxes(1, 2)


def told(grams: Grams, remix: Remix, weight: Array, floor: Array) -> Mapping[str, Array]:
    """How far the merge is from the weighted sum, (M,) each.

    Args:
        floor: (M, R, R) the core of the best merge with the same rows.
    """
    xp = namespace(grams.up)
    wanted = xp.broadcast_to(xp.diag(weight), grams.up.shape)
    square, merged = inner(grams, wanted, wanted), inner(grams, remix.core, remix.core)
    left, least = (_norm(grams, wanted - core) for core in (remix.core, floor))
    product = inner(grams, wanted, remix.core)
    length = xp.sqrt(xp.maximum(square, 0.0))
    both = length * xp.sqrt(xp.maximum(merged, 0.0))
    return {
        "error": ratio(left, length, length > 0),
        "cosine": ratio(product, both, both > 0),
        "floor": ratio(least, length, length > 0),
    }


def _norm(grams: Grams, core: Array) -> Array:
    xp = namespace(core)
    return xp.sqrt(xp.maximum(inner(grams, core, core), 0.0))
