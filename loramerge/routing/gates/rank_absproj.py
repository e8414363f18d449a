"""Rank-absproj: the units on which a token has the longest projection, all of them in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array
from loramerge.routing.bank import Bank, Basis, Layout, Shapes
from loramerge.routing.gates.gate import By, DataFree, Seen, top_k


@dataclass(frozen=True, kw_only=True)
class RankAbsproj(DataFree):
    """The units on which a token has the longest projection, each in full.

        s_i = |a_i x + d_i|, d = 0 unless it was trained
        w_i = 1 for the k largest, else 0

    Source: FlyLoRA, 2025, arXiv:2510.08396. Its code for PEFT ranks a_i x + d_i with its sign: `signed`.

    Fails: it goes by inputs alone, never by what a unit does with them. Of adapters that were trained with
    all their units it drops most.
    """

    by: ClassVar[By] = "unit"
    top_k: int | None = top_k(8, "units")
    signed: bool = option(False, "Rank with the sign, as its code for PEFT does.")

    @property
    def basis(self) -> Basis:
        return "stored" if self.signed else "canonical"

    def shapes(self, layout: Layout) -> Shapes:
        return {"bias": (layout.units,)}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {"bias": np.zeros(bank.layout.units)}

    def scores(self, seen: Seen) -> Any:
        found = seen.units + seen.tensors["bias"]
        return found if self.signed else abs(found)

    def weigh(self, seen: Seen) -> Any:
        chosen = seen.maths.top(self.scores(seen), min(self.top_k or 1, seen.layout.units))
        return seen.maths.where(chosen, seen.units * 0 + 1, 0.0)

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        return np.ones(layout.units) if (self.top_k or 1) >= layout.units else None
