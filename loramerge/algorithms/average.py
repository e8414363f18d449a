"""The weighted mean of the updates."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.shares import shares
from loramerge.algorithms.families.size import Sized, truncate
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Average(Sized):
    """The mean: exact without a rank, its best approximation with one.

        ΔW = Σ_t w_t ΔW_t / Σ_t w_t

    This is the mean of ΔW. The means of A and B apart would add cross terms. Source: model soups, Wortsman
    et al. 2022, arXiv:2203.05482, applied to updates.

    Limits: the mean weakens unrelated adapters, each to its share. A source that lacks a module counts as
    zero there. Weights that sum to zero have no mean and are refused.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit + other})
    >>> lm.combine([a, b], lm.Average()).adapter[lm.Target("q")].dense().round(6)
    array([[2. , 0. ],
           [0. , 0.5]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("linear", weights="consensus", common="same", exact=True, sums=True, shares=True)

    def weights(self, weights: Array) -> Array:
        return shares(weights)

    def remix(self, grams: Grams) -> Remix:
        return truncate(grams, self.rank)
