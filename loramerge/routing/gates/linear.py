"""Linear: a trained matrix scores the experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.routing.bank import Layout, Shapes
from loramerge.routing.gates.choice import at_most, shares
from loramerge.routing.gates.gate import Gate, Seen, temperature, top_k


@dataclass(frozen=True, kw_only=True)
class Linear(Gate):
    """Experts that a trained matrix scores best.

        s = x W_gᵀ
        w = softmax of s / T over the k largest, or over all of them

    Source: MeteoRA (k = 2), arXiv:2405.13053; LoRA-Mixer (k = 3), arXiv:2507.00029; LoRAMoE (all),
    arXiv:2312.09979. The matrix comes with a file, or is trained through `loramerge.routing.torch`.

    Fails: on inputs unlike those that it was trained on, as any classifier.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()

    def settled(self, experts: int) -> Self:
        return replace(self, top_k=at_most(self.top_k, experts, experts))

    def shapes(self, layout: Layout) -> Shapes:
        return {"weight": (layout.experts, layout.shape[1])}

    def scores(self, seen: Seen) -> Any:
        return seen.by("weight")

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        uniform = self.top_k == layout.experts and not tensors["weight"].any()
        if layout.experts == 1 or uniform:
            return np.full(layout.experts, 1 / layout.experts)
        return None
