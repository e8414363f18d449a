"""WUDI: the update that interferes least with the inputs that the sources react to, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.algorithms.families.span import RANK_TOL, Span, lengths
from loramerge.algorithms.method import Interval, Traits, option, recorded
from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.basis import Basis
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import eigh, solve, svd
from loramerge.errors import UsageError

RIDGE = 1.0  # 0.1 is worse for adapters that share A, and everywhere at a rank limit: docs/quality.md


def _then(given: Mapping[str, Any]) -> dict[str, Any]:
    """Records named the ridge with filter=top, too, where it does nothing."""
    top = given.get("filter") == "top"
    return {name: value for name, value in given.items() if not (top and name == "ridge")}


@recorded(_then)
@dataclass(frozen=True, kw_only=True)
class Wudi(Span):
    """On the inputs that the rows of a source span, the merge acts as that source does, as nearly as it can.

        ΔW minimises  Σ_t ‖(ΔW − τ_t) τ_tᵀ‖² / ‖τ_t‖² + μ ‖ΔW − τ̄‖²,   τ_t = w_t ΔW_t,  τ̄ their mean
        ΔW = τ̄ + (H − τ̄ G)(G + μ)⁻¹,   G = Σ_t τ_tᵀτ_t/‖τ_t‖²,   H = Σ_t τ_t τ_tᵀτ_t/‖τ_t‖²
        μ = ridge · tr(G)/ρ

    ρ is the number of input directions that the sources span. Everything lies in their row space, so one
    small solve is exact. The ridge pulls towards the mean; so one adapter, or copies of it, come back as
    they are at any ridge.

        in general  ΔW = θ₀ + (H − θ₀ G) E diag(f/λ) Eᵀ,   G = E diag(λ) Eᵀ
        filter   ridge f = λ/(λ + μ) · flow f = 1 − exp(−λ/μ) · top f = 1 for K directions, else 0
        start    mean θ₀ = τ̄ · sum θ₀ = Σ_t τ_t         K = ⌈(Σ√λ)² / Σλ⌉

    The flow is gradient descent of tiny steps for the time 1/μ. The sum as a start leaves what the filter
    passes over as strong as the sum has it.

    Source: WUDI-Merging, Cheng et al. 2025, arXiv:2503.08099. They descend the gradient from the sum, for
    300 steps and without a ridge, which stays near the sum. Here it is the minimum itself, with a ridge of
    our own; filter=flow with start=sum is their descent, stopped at a time that does not depend on steps.
    filter=top is that of SWUDI.

    Limits: adapters trained from one seed nearly share A. Without a ridge the merge answers their small
    differences at full length (ten times the norm, measured). Towards ridge 0 that is what comes out.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.6, 0.8]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.Wudi(ridge=1e-9)).adapter[lm.Target("q")].dense().round(6)
    array([[ 1.  , -0.75],
           [ 0.  ,  1.25]])
    """

    ridge: float = option(
        RIDGE, "Pull towards the mean, as a share of the average input direction.", Interval(low=1e-12)
    )
    filter: Literal["ridge", "flow", "top"] = option(
        "ridge", "Which input directions are answered: all by a ridge, all for a time, or the strongest."
    )
    start: Literal["mean", "sum"] = option("mean", "What the merge is where no direction is answered.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter == "top" and self.ridge != RIDGE:
            raise UsageError("filter=top has no ridge: leave ridge out, or take filter=ridge.")

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="consensus" if self.start == "mean" else "none")

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp = namespace(grams.up)
        norms = lengths(grams)[:, grams.owner]  # (M, R)
        count = (lengths(grams) > 0).sum(axis=1)  # (M,) = tr(G)
        squares = grams.kernel.diagonal(axis1=1, axis2=2) * (norms > 0)  # σ² of every unit
        share = squares / xp.where(norms > 0, norms, 1.0) ** 2  # units of a source are orthogonal
        weight = grams.unit_weights
        down = bases.reach_down.swapaxes(1, 2)
        length = xp.sqrt(squares)[:, None, :]
        gram = (bases.reach_down * (share[:, None, :] / xp.where(length > 0, length, 1.0))) @ down
        wanted = (bases.reach_up * (share * weight)[:, None, :]) @ down
        begin = bases.weighted_sum(grams)
        if self.start == "mean":
            begin = begin / xp.maximum(count, 1)[:, None, None]
        pull = self.ridge * count / xp.maximum(bases.ranks[:, 1], 1)
        pull = xp.where(pull > 0, pull, 1.0)
        return svd(begin + self._answered(wanted - begin @ gram, gram, pull))

    def _answered(self, missing: Array, gram: Array, pull: Array) -> Array:
        """(H − θ₀ G) E diag(f/λ) Eᵀ (M, R, R), for missing = H − θ₀ G and pull = μ (M,)."""
        xp = namespace(gram)
        if self.filter == "ridge":
            ridged = gram + pull[:, None, None] * xp.eye(gram.shape[1])
            return solve(ridged, missing.swapaxes(1, 2)).swapaxes(1, 2)
        values, vectors = eigh(gram)  # (M, R) smallest first
        values = xp.where(values > RANK_TOL**2 * values[:, -1:], values, 0.0)  # λ has squares of directions
        kept = _leading(values) if self.filter == "top" else 1 - xp.exp(-values / pull[:, None])
        return (missing @ vectors * ratio(kept, values, values > 0)[:, None, :]) @ vectors.swapaxes(1, 2)


def _leading(values: Array) -> Array:
    """(M, R) 1 for the K largest of λ (M, R), smallest first, else 0."""
    xp, size = namespace(values), values.shape[1]
    whole = values.sum(axis=1)
    even = ratio(xp.sqrt(values).sum(axis=1) ** 2, whole, whole > 0)
    count = xp.ceil(even * (1 - 1e-9))  # equal λ are all of them, whatever rounding says
    return (xp.arange(size)[None, :] >= size - count[:, None]) * 1.0
