"""CtM: compress, then merge. All sources in common subspaces of rank k first, the rule there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from loramerge.algorithms.entries.block import whole
from loramerge.algorithms.entries.choice import ByRule
from loramerge.algorithms.families.span import lengths
from loramerge.algorithms.families.tucker import subspaces
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, host, like, namespace
from loramerge.arrays.basis import Basis, basis
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import singular_values, svd
from loramerge.arrays.remix import Result


@dataclass(frozen=True, kw_only=True)
class Ctm(ByRule):
    """A merge of rank k by construction: what the rule makes is not cut off afterwards.

        X_t = w_t ΔW_t · (β + (1−β) mean_s ‖w_s ΔW_s‖ / ‖w_t ΔW_t‖)
        U, V = the k directions of either side that keep most of Σ_t ‖Uᵀ X_t V‖²
        ΔW = U · rule(Uᵀ ΔW₁ V … Uᵀ ΔW_T V) · Vᵀ

    With β below 1, weak sources have a say in which directions are kept. U and V are Tucker's (HOOI:
    started by SVD, each side in turn), and coordinates are in the order of what they keep. The rule sees
    the sources themselves, and their weights. Without a rank, k is that of the largest source.

    Source: Compress-then-Merge 2026, arXiv:2606.03723; β = 0.25 as in its example, a change of the error by
    1e-6 ends HOOI. Its λ (0.75 there) is `--scale`; it trims at 25 %, and its DARE-TIES trims too: here each
    is the rule by that name. A source that is silent in a module is left out; there it divides by zero.

    Limits: what lies outside of the k directions is lost for every source; the report shows it as lost
    against the weighted sum. Where two directions keep equally much, they are not unique, as in `core`.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 3.0 * unit}), lm.Adapter.of({"q": -1.0 * unit + 2.0 * other})
    >>> lm.combine([a, b], lm.Ctm(density=1.0, rank=1)).adapter[lm.Target("q")].dense().round(6)
    array([[3., 0.],
           [0., 0.]])
    """

    beta: float = option(
        0.25,
        "How much the strength of a source counts in what is kept: 0 all alike, 1 as they are.",
        Interval(low=0, high=1),
    )

    @property
    def whole(self) -> bool:
        return False

    @property
    def traits(self) -> Traits:
        return self.chosen().traits("spectral", diagonal=True, whole=False)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def observe(self, grams: Grams) -> Array:
        """σ² of the weighted sum (M, R)."""
        total = basis(grams, self.rank_tol).weighted_sum(grams)
        sigma: Array = singular_values(total)
        return sigma**2

    def remix(self, grams: Grams) -> Result:
        bases = basis(grams, self.rank_tol)
        return bases.leading(grams, *self._units(grams, bases), self.rank)

    def _units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        """X (M, R, k), σ (M, k), Yᵀ (M, k, R) of the core."""
        assert grams.weights is not None
        xp, weights = namespace(bases.reach_up), host(grams.weights)
        modules, size = grams.live.shape
        k = min(self.rank or size, size)
        norms = host(lengths(grams))
        left, right = xp.zeros((modules, size, k)), xp.zeros((modules, size, k))
        values = xp.zeros((len(grams.weights), modules, k, k))
        for m in range(modules):
            sources = np.flatnonzero(norms[m]).tolist()
            cores = [_core(grams, bases, m, source) for source in sources]
            strengths = norms[m, sources] * np.abs(weights[sources])
            gains = self.beta * strengths + (1 - self.beta) * strengths.mean() if sources else strengths
            shares = (gains / norms[m, sources]).tolist()
            even = [(up * share, down) for share, (up, down) in zip(shares, cores, strict=True)]
            left[m], right[m] = subspaces(even, k)
            for source, (up, down) in zip(sources, cores, strict=True):
                values[source, m] = (left[m].T @ up) @ (down.T @ right[m])
        sizes = np.minimum(host(bases.ranks), k)
        block = whole(values, grams.weights, sizes, grams.sources, grams.labels)
        x, sigma, yt = svd(like(self.chosen().on(block), grams.up))  # (M, k, k)
        return left @ x, sigma, yt @ right.swapaxes(1, 2)


def _core(grams: Grams, bases: Basis, module: int, source: int) -> tuple[Array, Array]:
    """M_t = up @ downᵀ of one module, (R, r) each."""
    mine = grams.of(source)
    return bases.reach_up[module][:, mine], bases.reach_down[module][:, mine]
