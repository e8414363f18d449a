"""Model Breadcrumbs: neither the largest entries nor the small ones."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Scope, Trim
from loramerge.algorithms.entries.votes import Divisor, Election, Vote
from loramerge.algorithms.method import Interval, option


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Elementwise):
    """The sum of the sources without their outliers and without their small entries.

        ΔW = Σ_t w_t τ_t        τ_t = ΔW_t where its size is below the γ largest and among the next d, else 0

    γ and d are shares of all entries. Where γ + d > 1, fewer outliers are left out. Entries as large as a
    limit go together: at the limit of the outliers they are all out, at the limit of the kept ones all in.

    Source: Model Breadcrumbs, Davari and Belilovsky 2023, arXiv:2312.06795, per layer as here, which keeps
    10 to 15 %; γ as in mergekit, which once returned zeros where γ is less than one entry, and which leaves
    outliers in at density 1, as here. Its `breadcrumbs_ties` is election="weighted".

    Limits: one adapter alone comes back without its outliers. The merge has full rank, and a rank cuts off
    much of it.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> rule = lm.Breadcrumbs(density=0.5, gamma=0.25)
    >>> lm.combine([a], rule).adapter[lm.Target("q")].dense().round(6) + 0.0
    array([[ 0.,  0.],
           [-3.,  2.]])
    """

    election: Election = options.election("none", "What is added up to elect a sign.")
    divisor: Divisor = options.divisor("none", "What the sum is divided by.")
    density: float = options.density(0.14, "The share of entries that is kept.")
    scope: Scope = options.scope()
    gamma: float = option(0.01, "The share of entries that is left out as outliers.", Interval(low=0, high=1))

    @property
    def rule(self) -> Rule:
        vote = Vote(self.election, self.divisor)
        trim = Trim(self.density, self.scope, outliers=self.gamma)
        return Rule(vote, vote.copies, vote.common, vote.linear, trim=trim)
