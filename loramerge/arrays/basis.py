"""Orthonormal bases of what all units of a module span, and every source as a small core in them.

    up = E_up @ reach_up      down = reach_downᵀ @ E_down      ΔW_t = E_up M_t E_down,  M_t (R, R)

Rules that only rotate, whiten or threshold these cores never see a matrix as large as the module.
"""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd
from loramerge.arrays.remix import Remix


@dataclass(frozen=True, eq=False, slots=True)
class Basis:
    """Orthonormal bases of both sides, strongest direction first; beyond the numerical rank all is zero.

    Args:
        reach_up, reach_down: (M, R, R) coordinates of the units: column i is unit i.
        left, right: (M, R, R): E_up = up @ left, E_down = rightᵀ @ down.
        ranks: (M, 2) how many directions each side has.
    """

    reach_up: Array
    reach_down: Array
    left: Array
    right: Array
    ranks: Array

    def core(self, grams: Grams, source: int) -> Array:
        """M_t (M, R, R) of one source, without its weight."""
        mine = grams.of(source)
        return self.reach_up[:, :, mine] @ self.reach_down[:, :, mine].swapaxes(1, 2)

    def weighted_sum(self, grams: Grams) -> Array:
        """Σ_t w_t M_t (M, R, R)."""
        return (self.reach_up * grams.unit_weights) @ self.reach_down.swapaxes(1, 2)

    def remix(self, grams: Grams, X: Array, Y: Array) -> Remix:
        """E_up X Y E_down, for X (M, R, k) and Y (M, k, R), as a remix of the stored factors."""
        return grams.remix(self.left @ X, Y @ self.right.swapaxes(1, 2))

    def leading(self, grams: Grams, x: Array, sigma: Array, yt: Array, rank: int | None) -> Remix:
        """The first `rank` units (None: all) of E_up X diag(σ) Yᵀ E_down; X and Y are orthogonal."""
        energy = sigma**2
        kept = sigma.shape[1] if rank is None else rank
        root = namespace(sigma).sqrt(sigma[:, :kept])
        made = self.remix(grams, x[:, :, :kept] * root[:, None, :], root[:, :, None] * yt[:, :kept])
        return Remix(made.P, made.Q, energy.sum(axis=1), energy[:, kept:].sum(axis=1))


def basis(grams: Grams, rank_tol: float) -> Basis:
    """Bases of the units of a ``spectral`` frame; directions below `rank_tol` of the strongest are left out.

    A source of weight 0 spans nothing.
    """
    assert grams.halves is not None
    present = grams.unit_weights != 0
    (reach_up, left), (reach_down, right) = (_side(half * present, rank_tol) for half in grams.halves)
    reach_up, reach_down = reach_up * present, reach_down * present  # exact zeros: some rules count entries
    return Basis(reach_up, reach_down, left, right, _ranks(reach_up, reach_down))


def directions(grams: Grams, counted: Array, rank_tol: float) -> Basis:
    """Bases of the units brought to length 1, of those that are `counted` (M, R).

    reach_up and reach_down are the coordinates of the directions; E_up = up @ left as ever.
    """
    assert grams.halves is not None
    sides = []
    for half in grams.halves:
        length = namespace(half).sqrt((half**2).sum(axis=1))  # (M, R)
        shrink = ratio(1.0, length, counted & (length > 0))
        reach, back = _side(half * shrink[:, None, :], rank_tol)
        sides.append((reach * counted[:, None, :], shrink[:, :, None] * back))
    (reach_up, left), (reach_down, right) = sides
    return Basis(reach_up, reach_down, left, right, _ranks(reach_up, reach_down))


def _ranks(*reaches: Array) -> Array:
    """(M, 2) how many directions each side has."""
    each = [(reach != 0).any(axis=2).sum(axis=1) for reach in reaches]
    return namespace(each[0]).stack(each, axis=1)


def _side(half: Array, rank_tol: float) -> tuple[Array, Array]:
    """From H = X S Wᵀ: the coordinates S Wᵀ of the units, and W S⁻¹, which makes the basis of them."""
    xp = namespace(half)
    _, sigma, wt = svd(half)
    sigma = xp.where(sigma > rank_tol * sigma[:, :1], sigma, 0.0)
    inverse = ratio(1.0, sigma, sigma > 0)
    return sigma[:, :, None] * wt, wt.swapaxes(1, 2) * inverse[:, None, :]
