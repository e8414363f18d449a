"""Magnitude pruning: the largest entries of every source, added up."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Scope, Trim
from loramerge.algorithms.entries.votes import total


@dataclass(frozen=True, kw_only=True)
class Magnitude(Elementwise):
    """The weighted sum of what is large in each source.

        ΔW = Σ_t w_t τ_t        τ_t = ΔW_t where it is among its largest entries, else 0

    Source: PEFT's `magnitude_prune_svd` (which prunes ΔW; `magnitude_prune` prunes A and B apart, and is not
    this). TIES without its election. Entries as large as the last one kept are all kept.

    Limits: what is left of a source does not have low rank, and a rank cuts off part of it again. PEFT has
    no default density; this one is that of TIES.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[2.0, 1.0], [5.0, -6.0]]), np.eye(2))})
    >>> lm.combine([a, b], lm.Magnitude(density=0.5)).adapter[lm.Target("q")].dense().round(6)
    array([[ 4.,  0.],
           [ 2., -6.]])
    """

    density: float = options.density()
    scope: Scope = options.scope()

    @property
    def rule(self) -> Rule:
        return Rule(total, "additive", linear=True, trim=Trim(self.density, self.scope))
