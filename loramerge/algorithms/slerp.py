"""SLERP: from one update to the other along the arc between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.families.mixture import Mixture, directions
from loramerge.algorithms.families.shares import shares
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, like, namespace
from loramerge.errors import UsageError, say


@dataclass(frozen=True, kw_only=True)
class Slerp(Mixture):
    """Spherical interpolation between two updates, module by module.

        ΔW = sin((1−t)θ)/sin θ · ΔW_1 + sin(tθ)/sin θ · ΔW_2        t = w_2 / (w_1 + w_2)
        θ = angle between ΔW_1 and ΔW_2, from ⟨ΔW_1, ΔW_2⟩_F

    The mean of two updates at an angle is shorter than either. On the arc, two updates of one norm keep
    that norm. If their norms differ, the norm goes from one to the other, but not in a straight line: the
    coefficients apply to the updates as they are, as in mergekit's `nuslerp`. The interpolation is of ΔW,
    not of whole weights.

    Between updates that are nearly parallel or opposite (|cos θ| > dot_threshold) there is no arc; they are
    interpolated in a straight line. So is a module that one source lacks or has not trained.

    Source: Shoemake 1985 (SIGGRAPH); for weights, mergekit (Goddard et al. 2024, arXiv:2403.13257).

    Limits: it takes two adapters; for more there is `karcher`. One adapter alone is itself. A negative
    weight puts t outside of 0 … 1; the merge then follows the circle further, and may be near neither
    update. At dot_threshold the coefficients jump a little.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 2.0 * unit}), lm.Adapter.of({"q": 2.0 * other})
    >>> merge = lm.combine([a, b], lm.Slerp())
    >>> merge.adapter[lm.Target("q")].dense().round(6)
    array([[1.414214, 0.      ],
           [0.      , 1.414214]])
    """

    dot_threshold: float = option(
        0.9995,
        "Updates whose cosine is beyond this, with either sign, are interpolated in a straight line.",
        Interval(low=0, high=1),
    )

    @property
    def traits(self) -> Traits:
        return Traits("coefficients", weights="consensus", common="same", shares=True, most=2)

    def weights(self, weights: Array) -> Array:
        if (count := np.count_nonzero(weights)) > 2:
            raise UsageError(
                f"slerp goes from one adapter to another, and {count} have a weight: use "
                f"{say('method', 'karcher')}, "
                "its like for any number."
            )
        return shares(weights)

    def coefficients(self, inners: Array, weights: Array) -> Array:
        xp, pair = namespace(inners), np.flatnonzero(weights)
        weights = like(weights, inners)
        c = xp.broadcast_to(weights, inners.shape[:2]).copy()
        if len(pair) < 2:
            return c
        cosines, norms = directions(inners)
        cosine = cosines[:, pair[0], pair[1]]
        arc = (xp.abs(cosine) <= self.dot_threshold) & (norms[:, pair] > 0).all(axis=1)
        theta = xp.arccos(xp.where(arc, cosine, 0.0))[:, None]
        spherical = xp.sin(weights[pair] * theta) / xp.sin(theta)
        c[:, pair] = xp.where(arc[:, None], spherical, weights[pair])
        return c
