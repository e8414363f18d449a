"""Model Breadcrumbs: neither the largest entries nor the small ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loramerge.algorithms.entries.stack import Stack
from loramerge.algorithms.entries.voting import SHARE, Trimming, Voting, share_of
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Trimming, Voting):
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

    density: float = option(0.14, "The share of entries that is kept.", SHARE)
    gamma: float = option(0.01, "The share of entries that is left out as outliers.", Interval(low=0, high=1))
    election: Literal["weighted", "raw", "count", "none"] = option(
        "none", "What is added up to elect a sign."
    )
    divisor: Literal["weight", "count", "none"] = option("none", "What the sum is divided by.")

    @property
    def traits(self) -> Traits:
        plain = self.density == 1 and self.divisor == "none" and self.election == "none"
        exact = plain and self.whole
        return Traits("elementwise", weights=self.vote_weights, identity=self.density == 1, exact=exact)

    def keeps(self, count: int) -> tuple[int, int] | None:
        if self.density == 1:
            return None
        kept = share_of(count, self.density)
        return min(int(self.gamma * count), count - kept), kept

    def merge(self, entries: Stack) -> Array:
        return self.fused(self.trimmed(entries), entries.weights)
