"""LoRA-FAIR: the mean A, with the B that makes up for averaging."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from loramerge.algorithms.families.federation import Federated, Projection, mean_units, told
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import namespace
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Fair(Federated):
    """The mean A, and the mean B corrected towards the mean of the updates; the rank stays as it is.

        ΔW = (B̄ + ΔB) Ā        B̄ = Σ_t p_t B_t,  Ā = Σ_t p_t A_t,  p = w / Σ w
        ΔB = argmin ‖Σ_t p_t ΔW_t − (B̄ + ΔB) Ā‖² + λ‖ΔB‖²
           = (Σ_t p_t B_t A_t Āᵀ − B̄ Ā Āᵀ)(Ā Āᵀ + λ)⁻¹

    With λ = 0 it is the best merge that has the rows of Ā. A larger λ stays nearer to the B that the
    clients trained. For every module the report gives the error ‖ΔW − Σ p_t ΔW_t‖ / ‖Σ p_t ΔW_t‖, the
    cosine of the two, and the floor. The floor is the part of the mean outside of the rows of Ā, which no B
    can reach.

    Source: LoRA-FAIR, Bian et al. 2024, arXiv:2411.14961. There the distance is a cosine and is descended
    in 1000 steps; here it is the Frobenius norm, whose minimum is in closed form, and at λ = 0 has the
    largest cosine too.

    Limits: at the same rank `svd` is never further from the mean; `fair` keeps Ā for the next round of
    training. The paper finds λ = 0 worse over many rounds. λ is meant for factors as stored, with the scale
    on B. All sources need one rank, and weights below zero are refused.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> def one(b, a): return lm.Adapter.of({"q": lm.LowRank(np.array([[b]]), np.array([a]))})
    >>> merge = lm.combine([one(1.0, [1.0, 0.0]), one(3.0, [0.0, 1.0])], lm.Fair(ridge=0.0))
    >>> merge.adapter[lm.Target("q")].dense()
    array([[1., 1.]])
    >>> print({name: round(value, 3) for name, value in merge.report.modules[0].facts.items()})
    {'error': 0.447, 'cosine': 0.894, 'floor': 0.447}
    """

    called: ClassVar[str] = "fair"
    ridge: float = option(0.01, "λ: how much a change of B costs; 0 is the nearest merge.", Interval(low=0))

    @property
    def traits(self) -> Traits:
        return Traits(
            "federated",
            weights="consensus",
            common="same",
            gauge="raw",
            shares=True,
            negative=False,
            units="equal",
        )

    def factors(self, grams: Grams, rank: int) -> Remix:
        up, down, weight = mean_units(grams, rank)
        sight = Projection.of(grams, down, weight)
        correction = (sight.cross - up @ sight.square) @ sight.inverse(self.ridge)
        made = Remix(up + correction, namespace(down).broadcast_to(down, (len(grams.up), *down.shape)))
        facts = told(grams, made, weight, sight.cross @ sight.inverse(0.0) @ down)
        return replace(made.after(grams.lift), facts=facts)
