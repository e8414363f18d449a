"""DELLA: drop by chance, small entries more often than large ones."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Drop, Rescale
from loramerge.algorithms.entries.votes import Divisor, Election, Vote
from loramerge.algorithms.method import Interval, option
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Della(Elementwise):
    """DARE-TIES whose chances follow size, row by row.

        p_ij = d + ε for the largest entry of row i of ΔW_t, linear in its rank down to d - ε for the smallest
        τ_t  = m_t ΔW_t / p        m_t = 1 with probability p, else 0
        ΔW   = Σ_t w_t τ_t / Σ_t |w_t|        over the t with sign(w_t τ_t) = sign(Σ_t w_t τ_t)

    Source: DELLA-Merging, Deep et al. 2024, arXiv:2406.11617, whose code divides every kept entry by its own
    probability, as here. mergekit restores Σ|ΔW_t| instead (rescale="l1"); its ε = 0.15 is the default.
    Its `della_linear` is election="none" with divisor="none".

    Limits: those of `dare_ties`. In the core (space="core") rows are those of the core.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> merged = lm.combine([a], lm.Della(density=0.5, epsilon=0.1)).adapter[lm.Target("q")].dense()
    >>> sorted(set(abs(merged / a[lm.Target("q")].dense()).round(6).ravel().tolist()))  # 1/0.6 and 1/0.4
    [0.0, 1.666667, 2.5]
    """

    election: Election = options.election()
    divisor: Divisor = options.divisor()
    density: float = options.chance()
    rescale: Rescale = options.rescale()
    seed: int = options.seed()
    epsilon: float = option(
        0.15, "How much the probability differs from the density.", Interval(low=0, high=0.5)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density < 1 and not self.epsilon < self.density <= 1 - self.epsilon:
            raise UsageError(
                f"density={self.density} with epsilon={self.epsilon} gives probabilities from "
                f"{self.density - self.epsilon:.3g} to {self.density + self.epsilon:.3g}: they must be in "
                "0<x<=1. Give a smaller epsilon."
            )

    @property
    def rule(self) -> Rule:
        vote = Vote(self.election, self.divisor)
        drop = Drop(self.density, self.rescale, self.seed, spread=self.epsilon)
        return Rule(vote, vote.copies, vote.common, vote.linear, drop=drop)
