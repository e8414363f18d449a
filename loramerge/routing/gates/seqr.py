"""SEQR: the expert that changes a token more than it changes others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.routing.bank import Bank, Layout, Shapes
from loramerge.routing.gates.choice import USUAL, at_most, shares
from loramerge.routing.gates.gate import DataFree, Seen, temperature, top_k


@dataclass(frozen=True, kw_only=True)
class Seqr(DataFree):
    """Experts that change a token more than they change an average one.

        s_e = (‖R_e A_e x‖² - μ_e) / δ_e,  B_e = Q_e R_e
        μ_e = ‖R_e A_e‖²_F,  δ_e = √2 ‖(R_e A_e)(R_e A_e)ᵀ‖_F: mean and deviation over x ~ N(0, 1)
        w   = softmax of s / T over the k largest

    Source: SEQR, Fleshman et al. 2025, arXiv:2509.18093. There A is shared by all adapters, so that A x is
    one product, and mean and deviation come from data. Here any adapters do, and both come in closed form.

    Fails: where inputs of a layer are far from alike in all directions. Tokens count by their length too.
    """

    top_k: int | None = top_k(None)
    temperature: float = temperature()

    def settled(self, experts: int) -> Self:
        return replace(self, top_k=at_most(self.top_k, USUAL, experts))

    def shapes(self, layout: Layout) -> Shapes:
        count = (layout.experts,)
        return {"reduced": (layout.units, layout.shape[1]), "mean": count, "deviation": count}

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        rows, mean, deviation = [np.empty((0, bank.layout.shape[1]))], [], []
        for e in range(bank.layout.experts):
            update = bank.expert(e)
            upper: Array = np.linalg.qr(wide(update.up), mode="r")  # type: ignore[assignment]
            reduced = _square(upper, update.rank) @ wide(update.down)
            gram = reduced @ reduced.T
            rows.append(reduced)
            mean.append(np.trace(gram))
            deviation.append(np.sqrt(2) * np.linalg.norm(gram) or 1.0)
        return {"reduced": np.concatenate(rows), "mean": np.array(mean), "deviation": np.array(deviation)}

    def scores(self, seen: Seen) -> Any:
        squares = seen.by("reduced") ** 2 @ seen.members
        return (squares - seen.tensors["mean"]) / seen.tensors["deviation"]

    def weigh(self, seen: Seen) -> Any:
        return shares(self.scores(seen), self.top_k or 1, self.temperature, seen.maths)


def _square(upper: Array, rank: int) -> Array:
    """R of a QR as (r, r): a module with fewer outputs than units has fewer rows."""
    return np.pad(upper, ((0, rank - len(upper)), (0, 0)))
