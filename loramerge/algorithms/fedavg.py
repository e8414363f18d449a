"""FedAvg of factors: A and B averaged apart. Biased; here to be measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from loramerge.algorithms.families.federation import Federated, Projection, mean_units, told
from loramerge.algorithms.method import Traits
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class FedAvg(Federated):
    """The mean of the factors, which is not the mean of the updates: the biased baseline of `fair` and `ffa`.

        ΔW = (Σ_t p_t B_t)(Σ_t p_t A_t) = Σ_t Σ_u p_t p_u B_t A_u ≠ Σ_t p_t B_t A_t        p = w / Σ w

    Nobody trained the products of one source's B with another's A. The report says how far off every module
    is: error = ‖ΔW − Σ p_t ΔW_t‖ / ‖Σ p_t ΔW_t‖, the cosine of the two, and the floor. The floor is the
    error that remains with the best B for the same mean A.

    Source: McMahan et al. 2017, arXiv:1602.05629, applied to both factors as in FedIT, Zhang et al. 2023,
    arXiv:2305.05644; PEFT's `linear` combination does so too, with √w on either factor.

    Limits: use `average` instead, or `fair` if the rank must not grow. The merge depends on the factors as
    stored: the same update in other factors gives another merge. All sources need one rank, and weights
    below zero are refused.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.FedAvg()).adapter[lm.Target("q")].dense()
    array([[0.25, 0.25],
           [0.25, 0.25]])
    """

    called: ClassVar[str] = "fedavg"

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

    @property
    def notes(self) -> tuple[str, ...]:
        return ("fedavg averages A and B apart, which is not the mean of the updates: average is",)

    def factors(self, grams: Grams, rank: int) -> Remix:
        up, down, weight = mean_units(grams, rank)
        many = len(grams.up)
        made = Remix(up[None].repeat(many, 0), down[None].repeat(many, 0))
        sight = Projection.of(grams, down, weight)
        facts = told(grams, made, weight, sight.cross @ sight.inverse(0.0) @ down)
        return replace(made.after(grams.lift), facts=facts)
