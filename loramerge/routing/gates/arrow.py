"""Arrow: the expert whose strongest input direction a token points along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Layout, Shapes
from loramerge.routing.gates.choice import USUAL, at_most, shares
from loramerge.routing.gates.gate import DataFree, Seen, temperature, top_k

STEPS = 15  # of PEFT's power iteration
FAR = 0.01  # a sine: what is farther off sends more than a few tokens to other adapters


@dataclass(frozen=True, kw_only=True)
class Arrow(DataFree):
    """Experts whose strongest input direction a token points along.

        v_e = the top right singular vector of ΔW_e, exactly
        s_e = |v_eᵀ x|
        w   = softmax of s / T over the k largest

    Source: Ostapenko et al. 2024, arXiv:2405.11157; PEFT's `create_arrow_model` runs it, with prototypes of
    15 power iterations in place of exact ones.

    Fails: where the spectrum of an expert is flat, one direction says little of it. An expert with ΔW = 0 in
    a module still takes part there, with score 0.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()

    def settled(self, experts: int) -> Self:
        return replace(self, top_k=at_most(self.top_k, USUAL, experts))

    def shapes(self, layout: Layout) -> Shapes:
        return {"prototypes": (layout.experts, layout.shape[1])}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {"prototypes": prototypes(bank)}

    def scores(self, seen: Seen) -> Any:
        return abs(seen.by("prototypes"))

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)


def prototypes(bank: Bank) -> Array:
    """(E, in) the strongest input direction of each expert; zero where it changes nothing."""
    found = np.zeros((bank.layout.experts, bank.layout.shape[1]))
    for expert, (sigma, vt) in enumerate(bank.spectra()):
        if len(sigma) and sigma[0] > 0:
            found[expert] = vt[0] * (1.0 if vt[0][np.abs(vt[0]).argmax()] > 0 else -1.0)
    return found


def strays(bank: Bank) -> Array:
    """(E,) sine of the angle by which PEFT's power iteration misses the strongest direction of each expert.

    It starts at chance; here from a vector that holds all directions alike. A step multiplies the share of a
    direction by its σ². So much is left of the others where σ₂ is near σ₁.
    """
    found = np.zeros(bank.layout.experts)
    for expert, (sigma, _) in enumerate(bank.spectra()):
        if len(sigma) and sigma[0] > 0:
            rest = float(((sigma[1:] / sigma[0]) ** (4 * STEPS)).sum())
            found[expert] = np.sqrt(rest / (1 + rest))
    return found
