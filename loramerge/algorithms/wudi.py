"""WUDI: the update that interferes least with the inputs that the sources react to, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.span import Span, lengths
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.basis import Basis
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd


@dataclass(frozen=True, kw_only=True)
class Wudi(Span):
    """On the inputs that the rows of a source span, the merge acts as that source does, as nearly as it can.

        ΔW minimises  Σ_t ‖(ΔW − τ_t) τ_tᵀ‖² / ‖τ_t‖² + μ ‖ΔW − τ̄‖²,   τ_t = w_t ΔW_t,  τ̄ their mean
        ΔW = τ̄ + (H − τ̄ G)(G + μ)⁻¹,   G = Σ_t τ_tᵀτ_t/‖τ_t‖²,   H = Σ_t τ_t τ_tᵀτ_t/‖τ_t‖²
        μ = ridge · tr(G)/ρ

    ρ is the number of input directions that the sources span. Everything lies in their row space, so one
    small solve is exact. The ridge pulls towards the mean; so one adapter, or copies of it, come back as
    they are at any ridge.

    Source: WUDI-Merging, Cheng et al. 2025, arXiv:2503.08099. They descend the gradient from the sum, for
    300 steps and without a ridge, which stays near the sum. Here it is the minimum itself, with a ridge of
    our own.

    Limits: adapters trained from one seed nearly share A. Without a ridge the merge answers their small
    differences at full length (ten times the norm, measured). Towards ridge 0 that is what comes out.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.6, 0.8]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.Wudi(ridge=1e-9)).adapter[lm.Target("q")].dense().round(6)
    array([[ 1.  , -0.75],
           [ 0.  ,  1.25]])
    """

    ridge: float = option(
        0.1, "Pull towards the mean, as a share of the average input direction.", Interval(low=1e-12)
    )

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="consensus")

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp = namespace(grams.up)
        norms = lengths(grams)[:, grams.owner]  # (M, R)
        count = (lengths(grams) > 0).sum(axis=1)  # (M,) = tr(G)
        squares = grams.kernel.diagonal(axis1=1, axis2=2) * (norms > 0)  # σ² of every unit
        share = squares / xp.where(norms > 0, norms, 1.0) ** 2  # units of a source are orthogonal
        weight = grams.unit_weights
        down = bases.reach_down.swapaxes(1, 2)
        length = xp.sqrt(squares)[:, None, :]
        gram = (bases.reach_down * (share[:, None, :] / xp.where(length > 0, length, 1.0))) @ down
        wanted = (bases.reach_up * (share * weight)[:, None, :]) @ down
        mean = bases.weighted_sum(grams) / xp.maximum(count, 1)[:, None, None]
        pull = self.ridge * count / xp.maximum(bases.ranks[:, 1], 1)
        pull = xp.where(pull > 0, pull, 1.0)[:, None, None] * xp.eye(gram.shape[1])
        core = mean + xp.linalg.solve(gram + pull, (wanted - mean @ gram).swapaxes(1, 2)).swapaxes(1, 2)
        return svd(core)
