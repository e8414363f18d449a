"""TIES: trim, elect a sign, and average those that agree."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Scope, Trim
from loramerge.algorithms.entries.votes import Divisor, Election, Vote


@dataclass(frozen=True, kw_only=True)
class Ties(Elementwise):
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

    election: Election = options.election()
    divisor: Divisor = options.divisor()
    density: float = options.density()
    scope: Scope = options.scope()

    @property
    def rule(self) -> Rule:
        vote = Vote(self.election, self.divisor)
        return Rule(vote, vote.copies, vote.common, vote.linear, trim=Trim(self.density, self.scope))
