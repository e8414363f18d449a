"""Pico: directions that the sources share are turned down before they are summed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loramerge.algorithms.entries import cores
from loramerge.algorithms.entries.block import whole
from loramerge.algorithms.entries.choice import NAMES, ByRule
from loramerge.algorithms.families.span import Cored, lengths
from loramerge.algorithms.method import Traits, option
from loramerge.arrays.backend import Array, like, namespace
from loramerge.arrays.basis import Basis, basis
from loramerge.arrays.gram import Grams, weigh
from loramerge.arrays.linalg import svd

NOTHING = 1e-12  # of the sources' strength: less is rounding of what cancels


@dataclass(frozen=True, kw_only=True)
class Pico(ByRule, Cored):
    """Shared output directions are turned down, and the merge is as strong as its sources are on average.

        [B₁ … B_T] = U Σ Vᵀ,  s_j = σ_j²/Σσ²,  a_j = 1/(1 + (T−1) s_j)
        ΔW = γ Σ_t (I + U diag(a−1) Uᵀ) w_t ΔW_t,   γ = mean_t ‖w_t ΔW_t‖ / ‖the sum after it‖

    or, instead of the sum, by an elementwise rule in core space (as of `core`).

    Where all adapters write into the same few outputs, their sum is too loud. A direction that carries the
    share s_j of all is divided by what T adapters in step would make of it. B_t is up of the balanced
    singular units of w_t ΔW_t. T is the number of sources that are not silent in the module.

    Source: Pico, Tang and Yang 2026, arXiv:2604.16826. There B_t is lora_B as stored, so that (7 B, A/7), the
    same update, gives another merge (16 % apart, measured); of balanced units there is only one. With
    sides=both, inputs that sources share are turned down likewise, from [A₁; …; A_T]; that is ours.

    Limits: γ makes each module as strong as one source, not as their sum; a rank cuts afterwards. If
    sources cancel, γ raises the remainder to full strength.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 3.0 * unit}), lm.Adapter.of({"q": 1.0 * other})
    >>> lm.combine([a, b], lm.Pico()).adapter[lm.Target("q")].dense().round(3)
    array([[1.812, 0.   ],
           [0.   , 0.846]])
    """

    rule: str = option(
        "sum",
        "How the calibrated sources are merged: added up, or by the method of that name.",
        choices=NAMES,
    )

    sides: Literal["outputs", "both"] = option(
        "outputs", "Which shared directions are turned down: those of outputs, or of outputs and inputs."
    )

    @property
    def traits(self) -> Traits:
        of_rule = self.chosen().traits("spectral", diagonal=True, whole=False)
        return replace(of_rule, weights="none", common="times")

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return weigh(grams, weights, even=True)  # w ΔW is the update, balanced again

    def bases(self, grams: Grams) -> Basis:
        return basis(grams, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        merged = self._merged(grams, bases, self._calm(grams, bases))
        xp = namespace(merged)
        length = xp.linalg.norm(merged, axis=(1, 2))
        norms = lengths(grams)
        wanted = norms.sum(axis=1) / xp.maximum((norms > 0).sum(axis=1), 1)
        some = length > NOTHING * wanted
        gain = xp.where(some, wanted / xp.where(some, length, 1.0), 0.0)
        return svd(gain[:, None, None] * merged)

    def _calm(self, grams: Grams, bases: Basis) -> Array:
        """(M, R, 1) or (M, R, R) what each entry of a core is multiplied by."""
        outputs = calibration(grams, bases.reach_up)[:, :, None]
        if self.sides == "outputs":
            return outputs
        return outputs * calibration(grams, bases.reach_down)[:, None, :]

    def _merged(self, grams: Grams, bases: Basis, calm: Array) -> Array:
        """What the rule makes of the calibrated sources (M, R, R)."""
        if self.rule == "sum":
            return calm * bases.weighted_sum(grams)
        values = calm * cores.cores(grams, bases)
        block = whole(values, np.ones(len(values)), bases.ranks, grams.sources, grams.labels)
        return like(self.chosen().on(block), grams.up)


def calibration(grams: Grams, reach: Array) -> Array:
    """a_j (M, R) of every direction of one side, from the coordinates of its units (M, R, R)."""
    energy = (reach**2).sum(axis=2)  # (M, R) = σ_j²
    total = energy.sum(axis=1, keepdims=True)
    xp = namespace(energy)
    share = xp.where(total > 0, energy / xp.where(total > 0, total, 1.0), 0.0)
    others = xp.maximum((lengths(grams) > 0).sum(axis=1) - 1, 0)
    return 1.0 / (1.0 + others[:, None] * share)
