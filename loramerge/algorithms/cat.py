"""Concatenation: the weighted sum, exactly, with every unit kept."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.size import keep
from loramerge.algorithms.method import Method, Traits
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Cat(Method):
    """All units of all adapters side by side.

        ΔW = Σ_t w_t ΔW_t        up' = [w_1 s_1 up_1 | … | w_T s_T up_T],  down' = [down_1; …; down_T]

    The rank of the merge is the sum of the ranks. Weights may be negative. Source: the `cat` combination of
    PEFT, which is exact too, except for rsLoRA sources.

    Limits: servers limit the rank (vLLM's default is 16). `linear --rank` and `svd` stay below it. Many at
    weight 1 are too strong, as in `linear`.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit + other})
    >>> lm.combine([a, b], lm.Cat()).adapter[lm.Target("q")].dense().round(6)
    array([[4., 0.],
           [0., 1.]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("linear", weights="additive", exact=True)

    def size(self, signature: tuple[int, ...]) -> int:
        return sum(signature)

    def remix(self, grams: Grams) -> Remix:
        return keep(grams)
