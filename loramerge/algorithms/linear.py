"""Task arithmetic: the weighted sum of the updates."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.size import Sized, truncate
from loramerge.algorithms.method import Traits
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Linear(Sized):
    """The weighted sum: exact without a rank, its best approximation with one.

        ΔW = Σ_t w_t ΔW_t        with a rank k: the k leading singular units of that sum

    Weights may be negative, which subtracts a skill. The sum is of ΔW, never of A and B apart, so there are
    no cross terms. Source: task arithmetic, Ilharco et al. 2023, arXiv:2212.04089.

    Limits: the exact sum has the sum of the ranks. With a rank, the report says how much was cut off. The
    sum of T unrelated adapters is √T times as strong as one of them, and four or more at weight 1 were worse
    than none where it was measured (docs/quality.md): take smaller weights, a scale, or `level`.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit + other})
    >>> lm.combine([a, b], lm.Linear(), weights=[1, -1]).adapter[lm.Target("q")].dense().round(6)
    array([[-2.,  0.],
           [ 0., -1.]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("linear", weights="additive", exact=True, sums=True)

    def remix(self, grams: Grams) -> Remix:
        return truncate(grams, self.rank)
