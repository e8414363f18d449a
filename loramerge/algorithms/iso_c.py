"""Iso-C: the weighted sum with all its singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.span import Span
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.basis import Basis
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd


@dataclass(frozen=True, kw_only=True)
class IsoC(Span):
    """The isotropic merge in a common space: no direction of the sum outweighs another.

        ΔW = σ̄ U Vᵀ        of Σ_t w_t ΔW_t = U Σ Vᵀ,  σ̄ = mean of the σᵢ above rank_tol · σ₁

    Skills that are weak in the sum are raised to the strength of the strong ones. The published form takes
    the mean over min(out, in) singular values, of which most are zero for LoRA, and fills the rest of U and
    V at random. Here both stay in the span of the adapters.

    Source: Iso-C, Marczak et al. 2025, arXiv:2502.04959; in the span as in Core Space, arXiv:2509.17786.

    Limits: one adapter does not come back as itself, because its spectrum is flattened. A rank keeps the
    directions that were strongest in the sum. All of them are equally strong now, so a rank cuts much: give
    it room. Near rank_tol a direction jumps from nothing to full strength.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * other})
    >>> lm.combine([a, b], lm.IsoC()).adapter[lm.Target("q")].dense().round(6)
    array([[2., 0.],
           [0., 2.]])
    """

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="additive", identity=False)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        total = bases.weighted_sum(grams)
        u, sigma, vt = svd(total)
        return u, _levelled(sigma, self.rank_tol), vt


def _levelled(sigma: Array, rank_tol: float) -> Array:
    """(M, R) the mean of those above the tolerance, in their place."""
    kept = sigma > rank_tol * sigma[:, :1]
    mean = (sigma * kept).sum(axis=1) / namespace(sigma).maximum(kept.sum(axis=1), 1)
    return mean[:, None] * kept
