"""A rule on the entries of cores: the small matrices that the sources become in common bases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from loramerge.algorithms.entries.block import whole
from loramerge.algorithms.entries.limits import Limits, Ranked
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.space import Space
from loramerge.algorithms.entries.sparsity import Trim
from loramerge.algorithms.memory import factors, stored
from loramerge.arrays.backend import Array, host, like, namespace
from loramerge.arrays.basis import Basis, basis
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd
from loramerge.arrays.remix import Remix


def held(sources: int) -> int:
    """(R, R) arrays of float64 alive at once while the cores of so many sources are merged."""
    return 24 + 6 * sources


def merged(rule: Rule, grams: Grams, bases: Basis, known: Limits | None = None) -> Array:
    """The merged core (M, R, R) of a batch, with its weights.

    Args:
        known: limits of the whole adapter, in place of those of each module.
    """
    weights = np.ones(len(grams.sources)) if grams.weights is None else grams.weights
    block = whole(cores(grams, bases), weights, bases.ranks, grams.sources, grams.labels)
    return like(rule.on(block, known), grams.up)


def cores(grams: Grams, bases: Basis) -> Array:
    """(T, M, R, R) of all sources."""
    each = [bases.core(grams, source) for source in range(len(grams.sources))]
    return namespace(bases.reach_up).stack(each)


@final
@dataclass(frozen=True, slots=True)
class Cores(Space):
    """The rule sees the cores; the merge stays in the span of the sources.

    Args:
        rank_tol: of the bases.
    """

    rank_tol: float

    @property
    def frame(self) -> Frame:
        return "spectral"

    @property
    def diagonal(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return True

    def rankings(self, trim: Trim, grams: Grams) -> Iterator[Ranked]:
        bases = basis(grams, self.rank_tol)
        values = host(cores(grams, bases))  # (T, M, R, R), for a sort within each
        sizes = trim.ranking(values).reshape(1 if trim.together else len(values), len(grams.labels), -1)
        some = (values != 0).any(axis=(2, 3))  # (T, M)
        ranks = host(bases.ranks)
        for s, m in np.argwhere(np.any(some, axis=0)[None] if trim.together else some).tolist():
            one, count = sizes[s, m], int(ranks[m].prod())
            picked = np.random.default_rng(0).permutation(np.flatnonzero(one))
            yield Ranked(s, count, partial(one.__getitem__, picked), partial(list, [one]))

    def squares(self, grams: Grams) -> Array:
        sigma: Array = self._split(grams, basis(grams, self.rank_tol))[1]
        return sigma**2

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return min(self.rank or sum(signature), sum(signature))

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        width = self.width(signature, shape)
        return max(factors(signature, shape, width), stored(shape, width))

    def alive(self, sources: int) -> int:
        return held(sources)

    def merge(self, grams: Grams) -> Remix:
        bases = basis(grams, self.rank_tol)
        return bases.leading(grams, *self._split(grams, bases), self.rank)

    def _split(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        """The SVD of the merged core."""
        present = (
            np.arange(len(grams.sources)) if grams.weights is None else np.flatnonzero(host(grams.weights))
        )
        core = merged(self.rule, grams, bases, self.known(present.tolist(), len(grams.labels)))
        return svd(core)
