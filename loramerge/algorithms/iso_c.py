"""Iso-C: the weighted sum with all its singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.span import RANK_TOL, Span, heard, tolerance
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd


@dataclass(frozen=True, kw_only=True)
class IsoC(Span):
    """The isotropic merge in a common space: no direction of the sum outweighs another.

        ΔW = σ̄ U Vᵀ        of Σ_t w_t ΔW_t = U Σ Vᵀ,  σ̄ = mean of the σᵢ that are not zero

    Skills that are weak in the sum are raised to the strength of the strong ones. The published form takes
    the mean over min(out, in) singular values, of which most are zero for LoRA, and fills the rest of U and
    V at random. Here both stay in the span of the adapters.

    Source: Iso-C, Marczak et al. 2025, arXiv:2502.04959; in the span as in Core Space, arXiv:2509.17786.

    Limits: one adapter does not come back as itself, because its spectrum is flattened. A rank keeps the
    directions that were strongest in the sum. All of them are equally strong now, so a rank cuts much: give
    it room. What makes near copies differ would be raised to full strength, so directions nearer than
    rank_tol, the spacing of bfloat16, are one, as for `tsv`: near copies come out as copies do.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * other})
    >>> lm.combine([a, b], lm.IsoC()).adapter[lm.Target("q")].dense().round(6)
    array([[2., 0.],
           [0., 2.]])
    """

    rank_tol: float = tolerance(2.0**-8)

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="additive", identity=False)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, heard(grams, self.rank_tol) != 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        weighted = heard(grams, self.rank_tol)[:, None, :]
        total = (bases.reach_up * weighted) @ bases.reach_down.swapaxes(1, 2)
        u, sigma, vt = svd(total)
        return u, _levelled(sigma, min(self.rank_tol, RANK_TOL)), vt


def _levelled(sigma: Array, noise: float) -> Array:
    """(M, R) the mean of those that are no rounding, in their place."""
    kept = sigma > noise * sigma[:, :1]
    mean = (sigma * kept).sum(axis=1) / namespace(sigma).maximum(kept.sum(axis=1), 1)
    return mean[:, None] * kept
