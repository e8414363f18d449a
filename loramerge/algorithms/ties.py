"""TIES: trim, elect a sign, and average those that agree."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries.stack import Stack
from loramerge.algorithms.entries.voting import Trimming, Voting
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array


@dataclass(frozen=True, kw_only=True)
class Ties(Trimming, Voting):
    """Small entries are noise and opposite ones cancel: keep the large ones, and of these the winning sign.

        τ_t = ΔW_t where it is among its largest entries, else 0
        γ   = sign(Σ_t w_t τ_t)
        ΔW  = Σ_t w_t τ_t / Σ_t |w_t|        over the t with sign(w_t τ_t) = γ, entry by entry

    The paper has no weights. With equal ones this is its merge for λ = 1 (λ is `scale`), except where votes
    cancel: such entries are 0 here, and positive in PEFT and mergekit. The paper trims over the whole
    adapter (scope="adapter"). PEFT (`ties_svd`) and mergekit trim each tensor, as does the default here.
    PEFT elects on raw entries and divides by the count. Entries as large as the last one kept are all kept.

    Source: TIES-Merging, Yadav et al. 2023, arXiv:2306.01708; density 0.2 and the divisor are the paper's.

    Limits: the merge has full rank, and a rank cuts off much of it. The report says how much. Or merge in
    the core (space="core"): that is another merge, within the span of the adapters. On A and B apart, as in
    PEFT's `ties`, it would not be TIES of ΔW; there is no such option.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[2.0, 1.0], [5.0, -6.0]]), np.eye(2))})
    >>> lm.combine([a, b], lm.Ties(density=0.5)).adapter[lm.Target("q")].dense().round(6)
    array([[ 4.,  0.],
           [ 5., -6.]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("elementwise", weights=self.vote_weights, identity=self.keeps_one)

    def merge(self, entries: Stack) -> Array:
        return self.fused(self.trimmed(entries), entries.weights)
