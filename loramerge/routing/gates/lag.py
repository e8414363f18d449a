"""LAG: Arrow chooses who may take part, SpectR decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Layout, Shapes
from loramerge.routing.gates.arrow import prototypes
from loramerge.routing.gates.choice import FAR, at_most, shares
from loramerge.routing.gates.gate import ONE, DataFree, Seen, temperature, top_k
from loramerge.routing.gates.spectr import norms, spectral


@dataclass(frozen=True, kw_only=True)
class Lag(DataFree):
    """Experts that change a token most, of those along whose strongest direction it points.

        C   = the m experts with the largest |v_eᵀ x|, as Arrow finds them
        s_e = ‖ΔW_e x‖ in C, as SpectR has it
        w   = softmax of s / T over the k largest in C; with k = 1 the best expert alone

    Source: LAG, Fleshman et al. 2025, arXiv:2507.05346.

    Fails: where Arrow leaves the right expert out. It saves work only with very many experts.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()
    candidates: int = option(20, "How many experts Arrow lets through: m.", ONE)

    def settled(self, experts: int) -> Self:
        candidates = min(self.candidates, experts)
        return replace(self, candidates=candidates, top_k=at_most(self.top_k, 1, candidates))

    def shapes(self, layout: Layout) -> Shapes:
        ins = layout.shape[1]
        return {"prototypes": (layout.experts, ins), "spectral": (layout.units, ins)}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {"prototypes": prototypes(bank), "spectral": spectral(bank)}

    def scores(self, seen: Seen) -> Any:
        among = seen.maths.top(abs(seen.by("prototypes")), self.candidates)
        return seen.maths.where(among, norms(seen), FAR)

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)
