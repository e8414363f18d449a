"""Methods that work on cores: every source as a small matrix in orthonormal bases of what all units span."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from loramerge.algorithms.method import Interval, option
from loramerge.algorithms.sized import Sized
from loramerge.backend import Array
from loramerge.basis import Basis, basis
from loramerge.frames import Frame
from loramerge.gram import Grams
from loramerge.results import Result


@dataclass(frozen=True, kw_only=True)
class Span(Sized):
    """A method whose merge is E_up C E_down for some core C; without a rank nothing of it is cut off."""

    rank_tol: float = option(
        1e-5,
        "Directions weaker than this share of the strongest are noise: neither whitened nor counted.",
        Interval(low=1e-7, high=0.1),
    )

    @property
    def whole(self) -> bool:
        return True

    @property
    def frame(self) -> Frame:
        return "spectral"

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    @abstractmethod
    def core(self, grams: Grams, bases: Basis) -> Array:
        """C (M, R, R), from the cores of the sources and `grams.weights`."""

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        """X (M, R, R), σ (M, R), Yᵀ (M, R, R) of the core X diag(σ) Yᵀ, in the order that a rank keeps.

        Bases are orthonormal, so the SVD of the core is the SVD of the merge.
        """
        return np.linalg.svd(self.core(grams, bases))

    def observe(self, grams: Grams) -> Array:
        """σ² of the merge (M, R), as a rank keeps them."""
        return np.asarray(self.units(grams, basis(grams, self.rank_tol))[1] ** 2)

    def remix(self, grams: Grams) -> Result:
        bases = basis(grams, self.rank_tol)
        x, sigma, yt = self.units(grams, bases)
        return bases.leading(grams, x, sigma, yt, self.rank)
