"""Methods that work on cores: each source as a small matrix, in bases of the span of all units."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from loramerge.algorithms.families.size import Ranked
from loramerge.algorithms.method import Interval, option
from loramerge.arrays.backend import Array, like, namespace
from loramerge.arrays.basis import Basis, basis
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Result

RANK_TOL = 1e-5


def tolerance(default: float = RANK_TOL) -> float:
    """The option of methods that work on cores."""
    return option(
        default,
        "Directions weaker than this share of the strongest are noise: neither whitened nor counted.",
        Interval(low=1e-7, high=0.1),
    )


@dataclass(frozen=True, kw_only=True)
class Spectral(Ranked):
    """A method that looks at the sources in orthonormal bases of what their units span."""

    rank_tol: float = tolerance()

    @property
    def frame(self) -> Frame:
        return "spectral"


@dataclass(frozen=True, kw_only=True)
class Cored(Spectral):
    """A method whose merge is E_up C E_down for some core C; without a rank nothing of it is cut off."""

    @property
    def whole(self) -> bool:
        return True

    @abstractmethod
    def bases(self, grams: Grams) -> Basis:
        """What the cores are written in."""

    def squares(self, sources: int) -> int:
        return 32

    @abstractmethod
    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        """X (M, R, R), σ (M, R), Yᵀ (M, R, R) of the core C = X diag(σ) Yᵀ, in the order that a rank keeps.

        Bases are orthonormal, so the SVD of the core is the SVD of the merge.
        """

    def observe(self, grams: Grams) -> Array:
        """What is searched for; then σ² of the merge (M, R), as a rank keeps them."""
        if self.searches:
            return self.look(grams)
        return self.units(grams, self.bases(grams))[1] ** 2

    def remix(self, grams: Grams) -> Result:
        bases = self.bases(grams)
        x, sigma, yt = self.units(grams, bases)
        return bases.leading(grams, x, sigma, yt, self.rank)


@dataclass(frozen=True, kw_only=True)
class Span(Cored):
    """A method with cores in the bases of all units; weights stay beside the units."""

    # not folded into the units: a basis that turned with the weights would make a threshold depend on them
    # twice
    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def bases(self, grams: Grams) -> Basis:
        return basis(grams, self.rank_tol)


def lengths(grams: Grams) -> Array:
    """(M, T) ‖ΔW_t‖ of canonical sources, with the weights that are folded in; 0 at a weight of 0."""
    squares = grams.kernel.diagonal(axis1=1, axis2=2) * grams.live  # units of a source are orthogonal
    each = [squares[:, grams.of(source)].sum(axis=1) for source in range(len(grams.sources))]
    heard = 1.0 if grams.weights is None else like(grams.weights != 0, squares)
    xp = namespace(squares)
    return xp.sqrt(xp.maximum(xp.stack(each, axis=1), 0.0)) * heard


def heard(grams: Grams, rank_tol: float) -> Array:
    """(M, R) w σ of every unit; 0 where it is rounding beside the strongest of all.

    How near two directions may be is another question: weak skills count, down to rounding.
    """
    xp, noise = namespace(grams.up), min(rank_tol, RANK_TOL)
    weighted = strengths(grams, rank_tol) * grams.unit_weights
    size = xp.abs(weighted)
    return weighted * (size > noise * size.max(axis=1, keepdims=True))


def strengths(grams: Grams, rank_tol: float) -> Array:
    """(M, R) σ of every unit whose source has a weight; 0 where it is noise beside the strongest there."""
    xp = namespace(grams.up)
    sigma = xp.sqrt(xp.maximum(grams.kernel.diagonal(axis1=1, axis2=2), 0.0)) * grams.live
    sigma = sigma * (grams.unit_weights != 0)
    noise = min(rank_tol, RANK_TOL)  # a weak unit is no error; only its direction may be one
    for source in grams.owners:
        mine = grams.of(source)
        own = sigma[:, mine]
        sigma[:, mine] = own * (own > noise * own.max(axis=1, keepdims=True))
    return sigma
