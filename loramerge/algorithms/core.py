"""Core space: an elementwise rule on the small matrices that the sources are in common bases."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.algorithms.entries import cores
from loramerge.algorithms.entries.choice import ByRule
from loramerge.algorithms.families.span import Span
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array
from loramerge.arrays.basis import Basis
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd


@dataclass(frozen=True, kw_only=True)
class Core(ByRule, Span):
    """TIES, DARE and other rules on small cores: the merge stays in the span of the adapters.

        ΔW_t = E_up M_t E_down        ΔW = E_up · rule(M₁ … M_T) · E_down

    E_up and E_down are orthonormal bases of all up and all down factors, the strongest directions first. So
    no M_t loses anything, and the merge has at most Σ r_t units. On dense ΔW the same rule leaves full
    rank, and a rank cuts most of it off. When a rule takes a share of the entries (the largest 20 %), it
    counts among as many entries as the bases have directions. `--method ties --space core` is the same,
    with all options of the rule.

    Source: Core Space Merging, Panariello et al. 2025, arXiv:2509.17786. There the bases are of lora_B and
    lora_A as stored, so (7 B, A/7), the same update, turns them (75 % apart with TIES, measured), and alpha
    is not used; here they are of the balanced singular units of every adapter, which only ΔW determines.

    Limits: it is not the dense rule by another way. Which entries are small depends on the bases, and these
    depend on all sources together. With rule=sum nothing depends on them, and the merge is the plain
    weighted sum. Where singular values of the stacked factors coincide, the bases are not unique.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 3.0 * unit}), lm.Adapter.of({"q": -1.0 * unit + 2.0 * other})
    >>> lm.combine([a, b], lm.Core(density=1.0)).adapter[lm.Target("q")].dense().round(6)
    array([[3., 0.],
           [0., 2.]])
    """

    @property
    def traits(self) -> Traits:
        return self.chosen().traits("spectral", diagonal=True)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        merged = cores.merged(self.chosen(), grams, bases)
        return svd(merged)
