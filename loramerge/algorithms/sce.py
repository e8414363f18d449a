"""SCE: select where the sources differ, weigh them by energy, erase minority signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries import options
from loramerge.algorithms.entries.block import Block
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Scope, Trim
from loramerge.algorithms.entries.votes import agree, elect, mean, turn, weighted_sum
from loramerge.arrays.backend import Array, namespace


@dataclass(frozen=True, kw_only=True)
class Sce(Elementwise):
    """Entries on which the sources differ most, merged by how much each source has changed the module.

        select       τ_t = ΔW_t where the variance over the sources is among the largest, else 0
        calculate    c_t = Σ τ_t² / Σ_s Σ τ_s²        over the entries of the module
        erase        ΔW = Σ_t w_t c_t τ_t / Σ_t |w_t| c_t
                     over the t with sign(w_t τ_t) = sign(Σ_t w_t τ_t), entry by entry

    Source: SCE, Wan et al. 2024 (FuseChat), arXiv:2408.07990. It and mergekit have no weights: with equal
    ones this is their merge. mergekit counts the density among the entries whose variance is not 0, and keeps
    nothing of one adapter alone; here it is among all, and all of equal variance go together, so that one
    adapter comes back. Sources that do not change the module are not counted.

    Limits: with two sources of equal sign, the variance selects where they differ, not where both are
    strong. The merge has full rank.

    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[-1.0, 1.0], [5.0, -2.0]]), np.eye(2))})
    >>> lm.combine([a, b], lm.Sce(density=0.5)).adapter[lm.Target("q")].dense().round(6)
    array([[4., 0.],
           [5., 0.]])
    """

    density: float = options.density(1.0, "The share of entries that is selected.")
    scope: Scope = options.scope()

    @property
    def rule(self) -> Rule:
        select = Trim(self.density, self.scope, ranking=variance, together=True)
        return Rule(erased, "consensus", "same", trim=select, measure=energies)


def variance(x: Array) -> Array:
    """(1, M, a, b) over the sources (T, M, a, b) that change the module; 0 where it is rounding."""
    xp = namespace(x)
    some = x.any(axis=(2, 3), keepdims=True)  # (T, M, 1, 1)
    count = xp.maximum(some.sum(axis=0), 1).astype(x.dtype)
    one = np.ones(len(x))
    apart = (x - weighted_sum(x, one) / count) * some
    found = weighted_sum(apart**2, one) / count
    rounding = 32 * np.finfo(x.dtype).eps * abs(x).max(axis=(0, 2, 3))
    return (found * (found > rounding[:, None, None] ** 2))[None]


def energies(selected: Block) -> Array:
    """Σ τ_t² (T, M)."""
    x = selected.values
    return namespace(x).einsum("tmab,tmab->tm", x, x, dtype=float)


def erased(selected: Block) -> Array:
    """The mean of those of the elected sign (M, a, b), weighted by energy."""
    assert selected.sums is not None
    x, weights = selected.values, selected.weights
    xp = namespace(x)
    shares = selected.sums / xp.maximum(selected.sums.sum(axis=0), np.finfo(float).tiny)  # (T, M)
    agreeing = agree(turn(x, weights), elect(x, weights)) * shares[:, :, None, None].astype(x.dtype)
    return mean(x, agreeing, weights, "weight")
