"""Model Stock: the mean of the updates, shortened by how little they agree."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.families.mixture import Mixture, directions
from loramerge.algorithms.families.shares import positive_shares
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array, like, namespace, ratio


@dataclass(frozen=True, kw_only=True)
class ModelStock(Mixture):
    """Between the base and the mean, at the point that the angle between the updates suggests.

        ΔW = t · Σ_t p_t ΔW_t        p = w / Σ w
        t = N c / (1 + (N − 1) c)    c = mean cosine of two updates, of N trained in the module

    Fine-tuned models lie on a shell around a centre. The smaller the angle between them, the nearer their
    mean is to that centre, and the nearer t is to 1. For updates at right angles t is 0. t stays within 0 …
    1. For opposing updates the published formula would turn the mean around, or explode near c = −1/(N −
    1).

    Source: Model Stock, Jang et al. 2024, arXiv:2403.19522, with one t for each module as in mergekit;
    there weights are equal and t has no bounds.

    Limits: it is made for models of one task. Adapters of different tasks are nearly at right angles, and
    little of them is left: see the norms in the report, or give the merge its strength back with
    scale=norm. Where the mean cosine is not above zero, the module stays at the base. One adapter alone is
    itself.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 4.0 * unit}), lm.Adapter.of({"q": 4.0 * unit + 3.0 * other})
    >>> lm.combine([a, b], lm.ModelStock()).adapter[lm.Target("q")].dense().round(6)
    array([[3.555556, 0.      ],
           [0.      , 1.333333]])
    """

    @property
    def traits(self) -> Traits:
        return Traits(
            "coefficients", weights="consensus", common="same", shares=True, vanishes=True, negative=False
        )

    def weights(self, weights: Array) -> Array:
        return positive_shares(weights, "model_stock")

    def coefficients(self, inners: Array, weights: Array) -> Array:
        xp, weights = namespace(inners), like(weights, inners)
        cosines, norms = directions(inners)
        counted = ((norms > 0) & (weights > 0)).astype(float)  # (M, T)
        count = counted.sum(axis=1)
        pairs = count * (count - 1)
        own = (cosines.diagonal(axis1=1, axis2=2) * counted).sum(axis=1)
        both = ((cosines @ counted[:, :, None])[:, :, 0] * counted).sum(axis=1)
        cosine = xp.where(pairs > 0, ratio(both - own, pairs, pairs > 0), 1.0)
        return weights * stride(cosine, count)[:, None]


def stride(cosine: Array, count: Array) -> Array:
    """t = N c / (1 + (N − 1) c), within 0 … 1.

    >>> import numpy as np
    >>> stride(np.array([1.0, 0.5, 0.0, -0.5, -0.9]), np.array([2, 2, 2, 3, 2]))
    array([1.        , 0.66666667, 0.        , 0.        , 0.        ])
    """
    xp = namespace(cosine)
    agreeing = xp.maximum(cosine, 0.0)
    return xp.minimum(count * agreeing / (1 + xp.maximum(count - 1, 0) * agreeing), 1.0)
