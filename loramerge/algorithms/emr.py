"""EMR: the unified update of elect, mask and rescale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries.block import Block
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.votes import elect, strongest
from loramerge.arrays.backend import Array, namespace


@dataclass(frozen=True, kw_only=True)
class Emr(Elementwise):
    """The strongest entry of the elected sign: one update from which each source can be masked out again.

        γ  = sign(Σ_t w_t ΔW_t)
        ΔW = γ max_t |w_t ΔW_t|        over the t with sign(w_t ΔW_t) = γ, entry by entry

    The published method also keeps a mask M_t = (ΔW_t ΔW > 0) and a scale Σ|ΔW_t| / Σ|M_t ΔW| for every
    source, and must know the task when the model is used. An adapter cannot hold these. This is the unified
    part alone, which papers use as a baseline. Where the votes cancel, the entry is 0.

    Source: EMR-Merging, Huang et al. 2024, arXiv:2405.17461.

    Limits: without masks and scales the update is too strong, and the more so the more sources there are.
    Try a smaller scale (--scale norm). The merge has full rank.

    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [-3.0, 2.0]]), np.eye(2))})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[2.0, 1.0], [5.0, -6.0]]), np.eye(2))})
    >>> lm.combine([a, b], lm.Emr()).adapter[lm.Target("q")].dense().round(6)
    array([[ 4.,  1.],
           [ 5., -6.]])
    """

    @property
    def rule(self) -> Rule:
        return Rule(unified, "consensus")


def unified(block: Block) -> Array:
    """The strongest weighted entries of the elected signs (M, a, b)."""
    xp, x = namespace(block.values), block.values
    x = x * xp.asarray(block.weights, x.dtype)[:, None, None, None]
    return strongest(x, elect(x, np.ones(len(x))))
