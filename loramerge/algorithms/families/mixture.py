"""Methods whose merge is a sum of the updates, with coefficients that each module decides for itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from loramerge.algorithms.families.size import Ranked, keep, squares
from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array, host, namespace
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, balanced, leading, weigh
from loramerge.arrays.remix import Remix

ROUNDING = 1e-14  # of ‖·‖²: a rank that cuts less than this cuts nothing

UNEVEN = 1e6  # times the smallest coefficient


@dataclass(frozen=True, kw_only=True)
class Mixture(Ranked):
    """ΔW = Σ_t c_t ΔW_t, with c from the inner products of the updates; without a rank nothing is cut off."""

    scope: Literal["module", "adapter"] = option(
        "module",
        "Whether every module has coefficients of its own, or all have those of whole adapters.",
    )
    products: tuple[tuple[float, ...], ...] | None = field(
        default=None, repr=False, metadata={"found": True}
    )  # no option: ⟨ΔW_t, ΔW_u⟩ of whole adapters

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
        if self.products is None:
            found = self.coefficients(inners(grams, len(grams.weights)), grams.weights)
        else:
            found = self.coefficients(np.array([self.products]), grams.weights)[0]
        return weigh(grams, found, even=_uneven(host(found)))

    @property
    def searches(self) -> bool:
        return self.scope == "adapter" and self.products is None

    def observe(self, grams: Grams) -> Array:
        """⟨ΔW_t, ΔW_u⟩ (M, T, T) if whole adapters are compared; then σ² of the mixture (M, R)."""
        if self.searches:
            assert grams.weights is not None
            return inners(grams, len(grams.weights))
        return squares(self.mixed(grams))

    def after(self, observed: Sequence[Array]) -> Self:
        each = sorted((m for batch in observed for m in batch), key=lambda m: m.tolist())
        return replace(self, products=tuple(map(tuple, np.sum(each, axis=0).tolist())))

    def remix(self, grams: Grams) -> Remix:
        units = self.mixed(grams)
        xp = namespace(units.up)
        whole = xp.maximum(units.kernel.sum(axis=(1, 2)), 0.0)
        if self.rank is None:
            return replace(keep(units), whole=whole, cut=xp.zeros(len(whole)))
        parts = leading(units.up, units.down, self.rank, units.halves)
        cut = whole - (parts.sigma**2).sum(axis=1)
        return units.remix(*balanced(parts, self.rank), whole, xp.where(cut > ROUNDING * whole, cut, 0.0))


def _uneven(coefficients: Array) -> bool:
    """Whether both sides must share the coefficients: on one side alone, weak units would lose digits."""
    sizes = np.abs(coefficients[coefficients != 0])
    return bool(len(sizes)) and bool(sizes.max() > UNEVEN * sizes.min())


def inners(grams: Grams, sources: int) -> Array:
    """⟨ΔW_t, ΔW_u⟩ (M, T, T); exactly 0 with an update that is no more than rounding of its units."""
    xp, only = namespace(grams.up), grams.members(sources)  # (T, R)
    products = only @ grams.kernel @ only.T
    units = xp.sqrt(xp.maximum(grams.kernel.diagonal(axis1=1, axis2=2), 0.0)) @ only.T  # (M, T) Σ of lengths
    noise = grams.up.shape[-1] * np.finfo(np.float64).eps * units**2
    trained = products.diagonal(axis1=1, axis2=2) > noise
    return xp.where(trained[:, :, None] & trained[:, None, :], products, 0.0)


def directions(inners: Array) -> tuple[Array, Array]:
    """Cosines (M, T, T) of the updates and their norms (M, T); an update of zero has cosines of 0."""
    xp = namespace(inners)
    norms = xp.sqrt(inners.diagonal(axis1=1, axis2=2))
    safe = xp.where(norms > 0, norms, 1.0)
    return xp.clip(inners / (safe[:, :, None] * safe[:, None, :]), -1.0, 1.0), norms
