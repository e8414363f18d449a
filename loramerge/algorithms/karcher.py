"""The Karcher mean: the direction nearest to all updates, along the sphere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.families.mixture import Mixture, directions
from loramerge.algorithms.families.shares import positive_shares
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, host, like
from loramerge.arrays.gram import halves
from loramerge.arrays.workers import go_on

FLAT = 1e-8  # a sine or a sum of directions below this is none


@dataclass(frozen=True, kw_only=True)
class Karcher(Mixture):
    """SLERP for any number of sources: the mean of their directions, at the mean of their norms.

        ΔW = (Σ_t p_t ‖ΔW_t‖) · m        m = argmin_{‖m‖=1} Σ_t p_t ∠(m, ΔW_t)²,  p = w / Σ w
        step: v = Σ_t p_t log_m(ΔW_t / ‖ΔW_t‖), then m moves by ‖v‖ along v, until ‖v‖ ≤ tolerance

    Everything happens in coefficients of the updates, from their inner products, so a step costs T²
    numbers. For two adapters of one norm it is `slerp`.

    Source: Karcher 1977 (Comm. Pure Appl. Math. 30); as a merge, mergekit's `karcher` (arXiv:2603.04972),
    which has equal weights and stops after 10 steps or at 1e-5 (give these to have its numbers).

    Limits: weights below zero are refused. The mean is unique if the directions lie within a half sphere.
    Where they cancel there is no mean of directions, and the module takes the plain weighted mean. After
    `iterations` steps a module keeps what it has reached. A module that a source lacks or has not trained
    counts in the norm, not in the direction.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 1.0 * unit}), lm.Adapter.of({"q": 3.0 * other})
    >>> merge = lm.combine([a, b], lm.Karcher())
    >>> merge.adapter[lm.Target("q")].dense().round(6)
    array([[1.414214, 0.      ],
           [0.      , 1.414214]])
    """

    iterations: int = option(1000, "The most steps of a module.", Interval(low=1), work=True)
    # So small, because a step in coefficients costs nothing, and the mean then forgets where it began.
    tolerance: float = option(
        1e-10, "A step shorter than this, in radians, is the last.", Interval(low=0, high=1)
    )

    @property
    def traits(self) -> Traits:
        return Traits("coefficients", weights="consensus", common="same", shares=True, negative=False)

    def weights(self, weights: Array) -> Array:
        return positive_shares(weights, "karcher")

    def coefficients(self, inners: Array, weights: Array) -> Array:
        cosines, norms = directions(host(inners))  # T² numbers a module, and each stops at a step of its own
        each = zip(cosines, norms, strict=True)
        return like(np.stack([self._of_module(cosine, norm, weights) for cosine, norm in each]), inners)

    def _of_module(self, cosines: Array, norms: Array, weights: Array) -> Array:
        """c (T,) of one module, from the cosines (T, T) and norms (T,) of the updates."""
        alpha = np.where(norms > 0, weights, 0.0)
        units = halves(cosines)  # its columns have the angles of the updates
        length = np.linalg.norm(units @ alpha)
        if length < FLAT * alpha.sum() or length == 0.0:  # nothing is trained, or the directions cancel
            return weights
        mean = self._mean(alpha / length, alpha / alpha.sum(), units)
        return np.where(norms > 0, mean * (weights @ norms) / np.where(norms > 0, norms, 1.0), 0.0)

    def _mean(self, mean: Array, alpha: Array, units: Array) -> Array:
        """m (T,) as a sum of the units, starting from `mean`."""
        for _ in range(self.iterations):
            go_on()
            step = _tangent(mean, alpha, units)
            length = np.linalg.norm(units @ step)
            if length <= self.tolerance:
                break
            mean = np.cos(length) * mean + np.sin(length) / length * step
            mean = mean / np.linalg.norm(units @ mean)
        return mean


def _tangent(mean: Array, alpha: Array, units: Array) -> Array:
    """v = Σ α_t log_m(u_t) (T,) as a sum of the units."""
    dots = np.clip((units @ mean) @ units, -1.0, 1.0)
    sines = np.sqrt(1.0 - dots**2)
    arcs = np.divide(np.arccos(dots), sines, out=(dots > 0).astype(float), where=sines > FLAT)
    pull = alpha * arcs
    return pull - (pull @ dots) * mean
