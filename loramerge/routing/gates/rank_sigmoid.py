"""Rank-sigmoid: a trained matrix scores single units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array
from loramerge.routing.bank import Layout, Shapes
from loramerge.routing.gates.choice import sigmoid
from loramerge.routing.gates.gate import ONE, By, Gate, Seen, top_k


@dataclass(frozen=True, kw_only=True)
class RankSigmoid(Gate):
    """Units that a trained matrix scores best.

        g   = sigmoid(x W_rᵀ) + d, each row of W_r for a part of so many units
        w_i = k g_i / Σ g over the k units with the largest g, else 0

    Source: SMoRA, 2025, arXiv:2501.15103, as its code has it: d counts in the weights too. With a uniform
    gate over all units it is plain LoRA.

    Fails: it is bound to the units that it was trained with; no other factors of ΔW will do.
    """

    by: ClassVar[By] = "unit"
    top_k: int | None = top_k(8, "units")
    part: int = option(1, "Units that share one row of the matrix.", ONE)

    def shapes(self, layout: Layout) -> Shapes:
        return {"weight": (layout.units // self.part, layout.shape[1]), "bias": (layout.units,)}

    def scores(self, seen: Seen) -> Any:
        rows = sigmoid(seen.by("weight"), seen.maths)  # (n, R / part)
        return rows[..., seen.maths.repeated(seen.owner, self.part)] + seen.tensors["bias"]

    def weigh(self, seen: Seen) -> Any:
        score = self.scores(seen)
        count = min(self.top_k or 1, seen.layout.units)
        score = seen.maths.where(seen.maths.top(score, count), score, 0.0)
        return count * score / seen.maths.total(score)

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        even = not tensors["weight"].any() and np.ptp(tensors["bias"]) == 0
        uniform = even and (self.top_k or 1) >= layout.units
        return np.ones(layout.units) if uniform else None
