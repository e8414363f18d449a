"""Methods whose merge is a sum of the updates, with coefficients that each module decides for itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from loramerge.algorithms.sized import Sized, keep
from loramerge.backend import Array
from loramerge.frames import Frame
from loramerge.gram import Grams, balanced, spectrum, weigh
from loramerge.results import Remix


@dataclass(frozen=True, kw_only=True)
class Mixture(Sized):
    """ΔW = Σ_t c_t ΔW_t, with c from the inner products of the updates; without a rank nothing is cut off."""

    @property
    def whole(self) -> bool:
        return True

    @property
    def frame(self) -> Frame:
        return "balanced" if self.rank is None and self.energy is None else "halved"

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    @abstractmethod
    def coefficients(self, inners: Array, weights: Array) -> Array:
        """c (M, T), from ⟨ΔW_t, ΔW_u⟩ (M, T, T) and the weights (T,). A weight of 0 has the coefficient 0.

        An update that is zero has the inner product 0 with itself, exactly.
        """

    def mixed(self, grams: Grams) -> Grams:
        """The units with the coefficients folded in."""
        assert grams.weights is not None
        return weigh(grams, self.coefficients(inners(grams, len(grams.weights)), grams.weights))

    def observe(self, grams: Grams) -> Array:
        """σ² of the mixture (M, R), largest first."""
        return super().observe(self.mixed(grams))

    def remix(self, grams: Grams) -> Remix:
        units = self.mixed(grams)
        if self.rank is None:
            whole = np.maximum(units.kernel.sum(axis=(1, 2)), 0.0)
            return replace(keep(units), whole=whole, cut=np.zeros(len(whole)))
        parts = spectrum(units.up, units.down, units.halves)
        energy = parts.sigma**2
        return units.remix(
            *balanced(parts, self.rank), energy.sum(axis=1), energy[:, self.rank :].sum(axis=1)
        )


def inners(grams: Grams, sources: int) -> Array:
    """⟨ΔW_t, ΔW_u⟩ (M, T, T); exactly 0 with an update that is no more than rounding of its units."""
    only = (grams.owner == np.arange(sources)[:, None]).astype(float)  # (T, R)
    products = only @ grams.kernel @ only.T
    units = np.sqrt(np.maximum(grams.kernel.diagonal(axis1=1, axis2=2), 0.0)) @ only.T  # (M, T) Σ of lengths
    noise = grams.up.shape[-1] * np.finfo(np.float64).eps * units**2
    trained = products.diagonal(axis1=1, axis2=2) > noise
    return np.where(trained[:, :, None] & trained[:, None, :], products, 0.0)


def directions(inners: Array) -> tuple[Array, Array]:
    """Cosines (M, T, T) of the updates and their norms (M, T); an update of zero has cosines of 0."""
    norms = np.sqrt(inners.diagonal(axis1=1, axis2=2))
    safe = np.where(norms > 0, norms, 1.0)
    return np.clip(inners / (safe[:, :, None] * safe[:, None, :]), -1.0, 1.0), norms
