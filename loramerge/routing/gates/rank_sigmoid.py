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

        g   = sigmoid(x W_rᵀ), each row for a part of so many units
        w_i = k g_i / Σ g over the k units with the largest g + d; d only chooses

    Source: SMoRA, 2025, arXiv:2501.15103. With a uniform gate over all units it is plain LoRA.

    Fails: it is bound to the units that it was trained with; no other factors of ΔW will do.
    """

    by: ClassVar[By] = "unit"
    top_k: int | None = top_k(8, "units")
    part: int = option(1, "Units that share one row of the matrix.", ONE)

    def shapes(self, layout: Layout) -> Shapes:
        return {"weight": (layout.units // self.part, layout.shape[1]), "bias": (layout.units // self.part,)}

    def weigh(self, seen: Seen) -> Any:
        score = sigmoid(seen.by("weight"), seen.maths)
        parts = max(1, (self.top_k or 1) // self.part)
        chosen = seen.maths.top(score + seen.tensors["bias"], min(parts, score.shape[-1]))
        score = seen.maths.where(chosen, score, 0.0)
        share = score / seen.maths.total(score)
        wide = share[..., None] * (seen.units[..., : self.part] * 0 + 1)[:, None, :]  # (n, r / part, part)
        return parts * wide.reshape(len(share), -1)

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        uniform = (self.top_k or 1) >= layout.units and not tensors["weight"].any()
        return np.ones(layout.units) if uniform else None
