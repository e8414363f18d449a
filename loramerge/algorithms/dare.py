"""DARE: drop entries by chance, rescale the others, add up."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries.parts import weighted_sum
from loramerge.algorithms.entries.stack import Stack
from loramerge.algorithms.entries.voting import Dropping
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array


@dataclass(frozen=True, kw_only=True)
class Dare(Dropping):
    """Each entry is dropped by chance and the kept ones are enlarged, so that adapters collide less.

        ΔW = Σ_t w_t m_t ΔW_t / d        m_t = 1 with probability d (the density), else 0

    On average over seeds it is the weighted sum. The paper searches d = 1 - p between 0.1 and 0.9. mergekit
    does not divide by d, but restores Σ|ΔW_t| (rescale="l1"). PEFT did not rescale before April 2026
    (rescale="none").

    Source: DARE, Yu et al. 2023, arXiv:2311.03099.

    Limits: what chance adds has full rank. A rank cuts most of that off again, and what is left is near the
    sum. Chance depends on seed, name of the source, module and place, so a source under another name drops
    other entries.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> merged = lm.combine([a], lm.Dare(density=0.5)).adapter[lm.Target("q")].dense().round(6)
    >>> sorted(set((merged / a[lm.Target("q")].dense()).ravel().tolist()))
    [0.0, 2.0]
    """

    @property
    def traits(self) -> Traits:
        if self.density < 1:
            return Traits("elementwise", weights="none", identity=False)
        return Traits("elementwise", weights="additive", exact=self.whole)

    def merge(self, entries: Stack) -> Array:
        return weighted_sum(self.dropped(entries), entries.weights)
