"""SCE: select where the sources differ, weigh them by energy, erase minority signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from loramerge.algorithms.entries.parts import agree, elect, mean, turn, weighted_sum
from loramerge.algorithms.entries.stack import Stack
from loramerge.algorithms.entries.voting import SHARE, Trimming
from loramerge.algorithms.method import Traits, option
from loramerge.arrays.backend import Array


@dataclass(frozen=True, kw_only=True)
class Sce(Trimming):
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

    together: ClassVar[bool] = True

    density: float = option(1.0, "The share of entries that is selected.", SHARE)

    @property
    def traits(self) -> Traits:
        return Traits("elementwise", weights="consensus")

    def ranking(self, values: Array) -> Array:
        """(1, M, a, b) the variance over the sources that change the module; 0 where it is rounding."""
        some = values.any(axis=(2, 3), keepdims=True)  # (T, M, 1, 1)
        count = np.maximum(some.sum(axis=0), 1).astype(values.dtype)
        one = np.ones(len(values))
        apart = (values - weighted_sum(values, one) / count) * some
        variance = weighted_sum(apart**2, one) / count
        rounding = 32 * np.finfo(values.dtype).eps * np.abs(values).max(axis=(0, 2, 3))
        return np.asarray(variance * (variance > rounding[:, None, None] ** 2))[None]

    def measure(self, entries: Stack) -> Array:
        """(T, M) energies of what is selected."""
        return np.einsum("tmab,tmab->tm", *[self.trimmed(entries)] * 2, dtype=float)

    def merge(self, entries: Stack) -> Array:
        assert entries.facts is not None
        x, weights = self.trimmed(entries), entries.weights
        shares = entries.facts / np.maximum(entries.facts.sum(axis=0), np.finfo(float).tiny)  # (T, M)
        agreeing = agree(turn(x, weights), elect(x, weights)) * shares[:, :, None, None].astype(x.dtype)
        return mean(x, agreeing, weights, "weight")
