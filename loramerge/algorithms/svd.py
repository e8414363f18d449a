"""Truncated SVD of the weighted sum, without ever forming it."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.size import Sized, truncate
from loramerge.algorithms.method import Traits
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Svd(Sized):
    """The best merge of a given rank, in the Frobenius norm.

        ΔW = U_k Σ_k V_kᵀ        of Σ_t w_t ΔW_t = U Σ Vᵀ (Eckart-Young)

    Without a rank it takes the largest rank of the sources. It gives the numbers of a dense SVD, but from
    the Grams of the factors. Source: the `svd` combination of PEFT, which uses a dense SVD.

    Limits: a direction that is small in the norm may still matter to a task, and is cut off. The report
    shows the cosine of the merge with every source.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit + other})
    >>> lm.combine([a, b], lm.Svd(rank=1)).adapter[lm.Target("q")].dense().round(6)
    array([[4., 0.],
           [0., 0.]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("linear", weights="additive", sums=True)

    def remix(self, grams: Grams) -> Remix:
        return truncate(grams, self.rank)
