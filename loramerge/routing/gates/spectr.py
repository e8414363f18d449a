"""SpectR: the expert that changes a token most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Layout, Shapes
from loramerge.routing.gates.choice import TINY, USUAL, at_most, shares
from loramerge.routing.gates.gate import DataFree, Seen, temperature, top_k


@dataclass(frozen=True, kw_only=True)
class Spectr(DataFree):
    """Experts that change a token most.

        s_e = ‖ΔW_e x‖ = ‖Σ_e V_eᵀ x‖, from the SVD of ΔW_e
        w   = softmax of s / T over the k largest

    Source: SpectR, Fleshman et al. 2025, arXiv:2504.03454.

    Fails: a stronger adapter wins tokens that are not its own. `seqr` takes strength out.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()

    def settled(self, experts: int) -> Self:
        return replace(self, top_k=at_most(self.top_k, USUAL, experts))

    def shapes(self, layout: Layout) -> Shapes:
        return {"spectral": (layout.units, layout.shape[1])}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {"spectral": spectral(bank)}

    def scores(self, seen: Seen) -> Any:
        return norms(seen)

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)


def spectral(bank: Bank) -> Array:
    """(R, in) Σ_e V_eᵀ of all experts: what it does to a token has the length of ΔW_e x."""
    rows = [sigma[:, None] * vt for sigma, vt in bank.spectra()]
    return np.concatenate([np.empty((0, bank.layout.shape[1])), *rows])


def norms(seen: Seen) -> Any:
    """(n, E) ‖ΔW_e x‖."""
    return (seen.by("spectral") ** 2 @ seen.members + TINY) ** 0.5
