"""Static: the same weights for every token, which is what a merge does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import UsageError
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import ByRequest, numbers, told


@dataclass(frozen=True, kw_only=True)
class Static(ByRequest):
    """The same weights for every token: a weighted sum whose parts stay apart.

        w_e = what you say, 1 if you say nothing
        ΔW  = Σ_e w_e ΔW_e, so that `Bundle.flat` makes one adapter of it, exactly

    Source: task arithmetic, Ilharco et al. 2022, arXiv:2212.04089.

    Fails: it looks at nothing, so adapters of different tasks are in each other's way as in any sum.
    """

    weights: Sequence[float] | None = told(None, "The weight of each expert.")

    def settled(self, experts: int) -> Self:
        given = (1.0,) * experts if self.weights is None else numbers("weights", self.weights)
        if len(given) != experts:
            raise UsageError(f"There are {len(given)} weights for {experts} experts: give one for each.")
        return replace(self, weights=given)

    def row(self, name: str | None) -> tuple[float, ...]:
        super().row(name)
        return tuple(self.weights or ())

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        return np.array(self.weights or ())
