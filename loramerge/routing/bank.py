"""The bank of one module: the rank-1 units of all experts side by side, and what its gate knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np

from loramerge.adapters.lowrank import LowRank
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.arrays.linalg import svd

Basis = Literal["stored", "canonical"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Whose the units of a module are.

    Args:
        shape: (out, in).   ranks: (E,) units of each expert; 0 where it lacks the module.

    >>> Layout((4, 3), (2, 0, 1)).owner, Layout((4, 3), (2, 0, 1)).starts
    (array([0, 0, 2]), (0, 2, 2, 3))
    """

    shape: tuple[int, int]
    ranks: tuple[int, ...]

    @property
    def experts(self) -> int:
        return len(self.ranks)

    @property
    def units(self) -> int:
        """R = Σ r_e."""
        return sum(self.ranks)

    @property
    def starts(self) -> tuple[int, ...]:
        """(E + 1,) where the units of each expert begin."""
        return (0, *accumulate(self.ranks))

    @property
    def owner(self) -> Array:
        """(R,) the expert of each unit."""
        return np.repeat(np.arange(self.experts), self.ranks)

    @property
    def members(self) -> Array:
        """(R, E) 1 where a unit is of an expert: a product with it adds up over the units of each."""
        return np.asarray(self.owner[:, None] == np.arange(self.experts), dtype=np.float64)

    def of(self, expert: int) -> slice:
        """Where the units of an expert lie."""
        return slice(*self.starts[expert : expert + 2])


@dataclass(frozen=True, eq=False, slots=True)
class Bank:
    """Units with their scales folded into `up`, and the tensors of the gate.

    Args:
        up: (out, R).   down: (R, in).   tensors: by the names that the gate gives them.
    """

    layout: Layout
    up: Array
    down: Array
    tensors: Mapping[str, Array] = field(default_factory=dict)

    def expert(self, number: int) -> LowRank:
        """The update of one expert."""
        mine = self.layout.of(number)
        return LowRank(self.up[:, mine], self.down[mine])

    def spectra(self) -> list[tuple[Array, Array]]:
        """The singular values (r_e,) and right singular vectors (r_e, in) of the ΔW of each expert."""
        return [_right(self.expert(e)) for e in range(self.layout.experts)]


def stacked(updates: Sequence[LowRank]) -> tuple[Array, Array]:
    """up (out, R) and down (R, in) of all experts, scales folded, in float64."""
    up = np.concatenate([wide(each.up) * each.scale for each in updates], axis=1)
    return up, np.concatenate([wide(each.down) for each in updates])


def canonical(update: LowRank) -> LowRank:
    """The same ΔW in units that depend on nothing else: down is orthonormal, up = U Σ, the strongest first.

    Of each unit the largest entry of down is positive. Units that ΔW does not need are zero, so that their
    number stays that of the stored ones.
    """
    u, sigma, vt = _decomposed(update)
    peak = np.abs(vt).argmax(axis=1)
    sign = np.where(vt[np.arange(len(vt)), peak] < 0, -1.0, 1.0)
    up, down = u * (sigma * sign), vt * sign[:, None]
    alive = sigma > 1e-12 * max(sigma.max(initial=0.0), np.finfo(float).tiny)
    up, down = up * alive, down * alive[:, None]
    missing = update.rank - len(sigma)
    return LowRank(np.pad(up, ((0, 0), (0, missing))), np.pad(down, ((0, missing), (0, 0))))


def _right(update: LowRank) -> tuple[Array, Array]:
    _, sigma, vt = _decomposed(update)
    missing = update.rank - len(sigma)
    return np.pad(sigma, (0, missing)), np.pad(vt, ((0, missing), (0, 0)))


def _decomposed(update: LowRank) -> tuple[Array, Array, Array]:
    """U (out, k), σ (k,) and Vᵀ (k, in) of ΔW, by QR of both factors and a small SVD."""
    left, core_up = np.linalg.qr(wide(update.up) * update.scale)
    right, core_down = np.linalg.qr(wide(update.down).T)
    u, sigma, vt = svd(core_up @ core_down.T, full_matrices=False)
    return left @ u, sigma, vt @ right.T
