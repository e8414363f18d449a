"""Smile: the expert whose input space holds most of a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Layout, Shapes
from loramerge.routing.gates.choice import TINY, at_most, shares
from loramerge.routing.gates.gate import ONE, DataFree, Seen, temperature, top_k


@dataclass(frozen=True, kw_only=True)
class Smile(DataFree):
    """Experts whose input space holds most of a token.

        P_e = the k_r strongest right singular vectors of ΔW_e
        s_e = ‖P_e x‖
        w   = softmax of s / T over the k largest; with k = 1 the best expert alone

    Source: SMILE, Tang et al. 2024, arXiv:2408.10174; the router of MergeVLA, 2025, arXiv:2511.18810, has
    k_r = 8 and k = 1.

    Fails: experts trained on like inputs have one and the same space. A direction that an expert hardly uses
    counts as much as its strongest.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()
    directions: int = option(8, "Singular vectors of each expert: k_r.", ONE)

    def settled(self, experts: int) -> Self:
        return replace(self, top_k=at_most(self.top_k, 1, experts))

    def shapes(self, layout: Layout) -> Shapes:
        return {"directions": (layout.experts * self.directions, layout.shape[1])}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        found = np.zeros((bank.layout.experts, self.directions, bank.layout.shape[1]))
        for expert, (sigma, vt) in enumerate(bank.spectra()):
            count = min(int((sigma > 1e-7 * sigma.max(initial=0.0)).sum()), self.directions)
            found[expert, :count] = vt[:count]
        return {"directions": found.reshape(-1, bank.layout.shape[1])}

    def scores(self, seen: Seen) -> Any:
        squares = (seen.by("directions") ** 2).reshape(len(seen.x), seen.layout.experts, self.directions)
        return (squares.sum(-1) + TINY) ** 0.5

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)
