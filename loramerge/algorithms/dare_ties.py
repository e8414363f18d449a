"""DARE-TIES: drop by chance, then elect a sign and average those that agree."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Drop, Rescale
from loramerge.algorithms.entries.votes import Divisor, Election, Vote


@dataclass(frozen=True, kw_only=True)
class DareTies(Elementwise):
    """TIES with entries kept by chance instead of by size.

        τ_t = m_t ΔW_t / d        m_t = 1 with probability d (the density), else 0
        γ   = sign(Σ_t w_t τ_t)
        ΔW  = Σ_t w_t τ_t / Σ_t |w_t|        over the t with sign(w_t τ_t) = γ, entry by entry

    Source: DARE, Yu et al. 2023, arXiv:2311.03099, with TIES, arXiv:2306.01708. mergekit restores Σ|ΔW_t|
    instead of dividing by d, and adds up: rescale="l1", divisor="none".

    Limits: those of `dare` and `ties`. Dividing by those that agree undoes part of what 1/d makes up for,
    so the merge is larger than the mean.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[2.0, 1.0], [5.0, -6.0]]), np.eye(2))})
    >>> lm.combine([a, b], lm.DareTies(density=1.0)).adapter[lm.Target("q")].dense().round(6)
    array([[ 3.,  1.],
           [ 5., -6.]])
    """

    election: Election = options.election()
    divisor: Divisor = options.divisor()
    density: float = options.chance()
    rescale: Rescale = options.rescale()
    seed: int = options.seed()

    @property
    def rule(self) -> Rule:
        vote = Vote(self.election, self.divisor)
        return Rule(
            vote, vote.copies, vote.common, vote.linear, drop=Drop(self.density, self.rescale, self.seed)
        )
