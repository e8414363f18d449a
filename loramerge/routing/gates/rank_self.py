"""Rank-self: every unit activates itself, within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loramerge.algorithms.method import Interval, option
from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Basis
from loramerge.routing.gates.choice import TINY, shares
from loramerge.routing.gates.gate import By, DataFree, Seen, temperature, top_k


@dataclass(frozen=True, kw_only=True)
class RankSelf(DataFree):
    """The units of all experts that a token activates most, one by one.

        s_i = |a_i x| / √Σ_j (a_j x)², over the canonical units of all experts
        w   = softmax of s / T over the k largest units; a unit with s_i < δ gets 0

    Source: MoRA (Little by Little), 2025, arXiv:2506.21035. The published score has a sign and stored units:
    `signed`. Both depend on how ΔW is factored, so that equal adapters act differently.

    Fails: weights of k units add up to one, so a merge of many is weak; a larger T does not change that.
    """

    by: ClassVar[By] = "unit"
    top_k: int | None = top_k(8, "units")
    temperature: float = temperature()
    threshold: float = option(0.0, "Units with a score below it get no weight: δ.", Interval(low=0, high=1))
    signed: bool = option(False, "Score stored units with their sign, as published.")

    @property
    def basis(self) -> Basis:
        return "stored" if self.signed else "canonical"

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {}

    def scores(self, seen: Seen) -> Any:
        length = (seen.maths.total(seen.units**2) + TINY) ** 0.5
        return (seen.units if self.signed else abs(seen.units)) / length

    def weigh(self, seen: Seen) -> Any:
        scores = self.scores(seen)
        count = min(self.top_k or 1, seen.layout.units)
        weights = shares(scores, count, self.temperature, seen.maths)
        return seen.maths.where(scores >= self.threshold, weights, 0.0) if self.threshold else weights
