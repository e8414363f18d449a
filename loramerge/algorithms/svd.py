"""Truncated SVD of the weighted sum, without ever forming it."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.size import Ranked, squares, truncate
from loramerge.algorithms.families.span import RANK_TOL
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, Spectrum, balanced, spectrum
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, kw_only=True)
class Svd(Ranked):
    """The best merge of a given rank, in the Frobenius norm.

        ΔW = U_k Σ_k V_kᵀ        of Σ_t w_t ΔW_t = U Σ Vᵀ (Eckart-Young)

    Without a rank it takes the largest rank of the sources. It gives the numbers of a dense SVD, but from
    the Grams of the factors. Two options raise what is weak in the sum:

        power p     σᵢ ← c σᵢ^p,  c such that ‖ΔW‖ stays, before the cut
        boost β     σᵢ ← max(σᵢ, σ_k),  k the first with Σ_{i≤k} σᵢ ≥ β Σ σᵢ

    Source: the `svd` combination of PEFT, which uses a dense SVD. The boost is Subspace Boosting, Skorobogat
    et al. 2025, arXiv:2506.16506; there of the full spectrum of dense merges, here of the directions that
    the sum has. The power is ours.

    Limits: a direction that is small in the norm may still matter to a task, and is cut off. The report
    shows the cosine of the merge with every source.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit + other})
    >>> lm.combine([a, b], lm.Svd(rank=1)).adapter[lm.Target("q")].dense().round(6)
    array([[4., 0.],
           [0., 0.]])
    """

    power: float = option(
        1.0, "The power that σ is raised to: below 1 the spectrum is flatter.", Interval(low=0.1, high=1)
    )
    boost: float | None = option(
        None,
        "Weak units become as strong as the last of those that hold this share of Σσ [default: none do].",
        Interval(low=0, high=1, low_open=True),
    )

    @property
    def traits(self) -> Traits:
        return Traits("linear", weights="additive", sums=True, identity=not self.reshapes)

    @property
    def reshapes(self) -> bool:
        """Whether the merge is not the sum itself, but for its rank."""
        return self.power != 1 or self.boost is not None

    @property
    def whole(self) -> bool:
        return False

    @property
    def frame(self) -> Frame:
        return "halved"

    def observe(self, grams: Grams) -> Array:
        return self._reshaped(grams).sigma ** 2 if self.reshapes else squares(grams)

    def remix(self, grams: Grams) -> Remix:
        if not self.reshapes:
            return truncate(grams, self.rank)
        parts = self._reshaped(grams)
        rank = self.rank or parts.sigma.shape[1]
        energy = parts.sigma**2
        return grams.remix(*balanced(parts, rank), energy.sum(axis=1), energy[:, rank:].sum(axis=1))

    def _reshaped(self, grams: Grams) -> Spectrum:
        parts = spectrum(grams.up, grams.down, grams.halves)
        xp, sigma = namespace(parts.sigma), parts.sigma
        real = sigma > RANK_TOL * sigma[:, :1]  # what is less may be rounding, and is never raised
        made = bent(sigma * real, self.power)
        made = made if self.boost is None else raised(made, self.boost)
        return Spectrum(xp.where(real, made, sigma), parts.left, parts.right)


def bent(sigma: Array, power: float) -> Array:
    """c σ^p (M, R), as long as σ."""
    xp, powers = namespace(sigma), sigma**power
    length = xp.linalg.norm(powers, axis=1, keepdims=True)
    return powers * ratio(xp.linalg.norm(sigma, axis=1, keepdims=True), length, length > 0)


def raised(sigma: Array, share: float) -> Array:
    """max(σᵢ, σ_k) of spectra (M, R) that fall; zeros stay zero.

    >>> import numpy as np
    >>> raised(np.array([[6.0, 3.0, 1.0, 0.0]]), 0.9).tolist()
    [[6.0, 3.0, 3.0, 0.0]]
    """
    xp, held = namespace(sigma), sigma.cumsum(axis=1)
    k = (held >= share * held[:, -1:] * (1 - 1e-12)).argmax(axis=1)  # rounding of the sum costs no unit
    return xp.maximum(sigma, xp.take_along_axis(sigma, k[:, None], 1)) * (sigma > 0)
