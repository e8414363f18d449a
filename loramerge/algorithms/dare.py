"""DARE: drop entries by chance, rescale the others, add up."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Drop, Rescale
from loramerge.algorithms.entries.votes import total


@dataclass(frozen=True, kw_only=True)
class Dare(Elementwise):
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

    density: float = options.chance()
    rescale: Rescale = options.rescale()
    seed: int = options.seed()

    @property
    def rule(self) -> Rule:
        return Rule(total, "additive", linear=True, drop=Drop(self.density, self.rescale, self.seed))
