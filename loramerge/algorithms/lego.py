"""LoRA-LEGO: cluster the rank-1 units of all adapters; every cluster becomes one merged unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loramerge.algorithms.families.kmeans import cluster
from loramerge.algorithms.families.size import Ranked, squares
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, host, namespace, ratio
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, balanced, leading, weigh
from loramerge.arrays.remix import PeakRescaled, Remix, Result
from loramerge.errors import UsageError

PUBLISHED = {  # what the two readings of the paper do where they differ
    "ctm": {"features": "raw", "rescale": "inf", "gain": "sqrt-N/k"},
    "nsc": {"features": "normalised", "rescale": "inf", "gain": "sqrt-r/k"},
}


@dataclass(frozen=True, kw_only=True)
class Lego(Ranked):
    """Minimal semantic units, clustered by k-means into k merged units.

        unit uᵢ = bᵢ aᵢᵀ    clusters by ⟨uᵢ, uⱼ⟩ = (aᵢ·aⱼ)(bᵢ·bⱼ)    merged unit = best rank-1 of Σ_{i∈c} uᵢ

    `variant=intrinsic` (the default) takes the units of each adapter's own balanced SVD. So only ΔW
    matters: rescaling or rotating the factors changes nothing. A weight multiplies the units of its adapter
    before they are clustered. With k = all units the merge is the exact sum. Without a rank, k is the
    largest source rank. A module with fewer live units than k has that many clusters.

    `variant=ctm` and `variant=nsc` are two published readings of the paper. They look at the factors as
    stored, with scale on up; a weight w puts √|w| on both halves and its sign on up. The features are [b;
    a], raw or with each half of length 1. The merged unit is the mean of its members, stretched to their
    mean length (largest entry, or L2). Then ΔW is multiplied by √(N/k) or √(r/k), with N live units and r
    per source.

    Source: LoRA-LEGO, Zhao et al. 2024, arXiv:2409.16167; the two readings are those of the
    compress-then-merge (arXiv:2606.03723) and null-space-compression evaluations.

    Limits: at the same rank `svd` is always closer to the sum; LEGO keeps the units of tasks apart instead.
    k-means finds a local optimum, which depends on `seed`; more `restarts` improve it.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": unit + 5.0 * other})
    >>> lm.combine([a, b], lm.Lego(rank=2)).adapter[lm.Target("q")].dense().round(6)
    array([[2., 0.],
           [0., 5.]])
    """

    variant: Literal["intrinsic", "ctm", "nsc"] = option("intrinsic", "Which reading of LEGO.")
    features: Literal["raw", "normalised"] | None = option(
        None, "Units compared as they are, or by direction only [default: raw; nsc: normalised]."
    )
    rescale: Literal["inf", "l2", "none"] | None = option(
        None, "Length to which ctm and nsc stretch a centroid [default: inf]."
    )
    gain: Literal["sqrt-N/k", "sqrt-r/k", "none"] | None = option(
        None, "Factor of ΔW in ctm and nsc [default: sqrt-N/k and sqrt-r/k]."
    )
    seed: int = option(0, "Seed of k-means++.", Interval(low=0))
    restarts: int = option(4, "Runs of k-means; the tightest wins.", Interval(low=1), work=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "intrinsic" and (self.rescale or self.gain):
            raise UsageError("rescale and gain belong to variant=ctm and variant=nsc.")

    @property
    def traits(self) -> Traits:
        if self.variant == "intrinsic":
            return Traits("clustering", weights="additive")
        features, rescale, gain = self._reading()
        return Traits(
            "clustering",
            weights="none" if gain == "sqrt-N/k" else "consensus",
            gauge="raw",
            homogeneous=features == "normalised" and rescale == "none",
        )

    def _reading(self) -> tuple[str, str, str]:
        """features, rescale and gain: as given, else as the variant has them."""
        features, rescale, gain = (
            getattr(self, name) or default for name, default in PUBLISHED[self.variant].items()
        )
        return features, rescale, gain

    @property
    def frame(self) -> Frame:
        return "canonical" if self.variant == "intrinsic" else "stored"

    @property
    def whole(self) -> bool:
        return False

    def observe(self, grams: Grams) -> Array:
        return squares(grams)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return weigh(grams, weights, even=True)

    def remix(self, grams: Grams) -> Result:
        return self._intrinsic(grams) if self.variant == "intrinsic" else self._published(grams)

    def _intrinsic(self, units: Grams) -> Remix:
        kernel = _cosines(units.kernel) if self.features == "normalised" else units.kernel
        return units.remix(*_representatives(units, self._member(units, kernel)))

    def _published(self, units: Grams) -> Result:
        features, rescale, gain = self._reading()
        halves = (units.up, units.down)
        up, down = map(_cosines, halves) if features == "normalised" else halves
        xp, member = namespace(units.up), self._member(units, up + down)  # (M, R, k)
        shares = member / xp.maximum(member.sum(axis=1, keepdims=True), 1)
        factor = _gain(gain, units, member)
        if rescale == "inf":
            left, right = (side.diagonal(axis1=1, axis2=2) for side in (units.lift.P, units.lift.Q))
            centroids = units.remix(shares, shares.swapaxes(1, 2))
            return PeakRescaled(centroids, shares, left, right, factor)
        stretch = _stretch(units, shares) if rescale == "l2" else xp.ones(shares.shape[::2])
        P = shares * (stretch * factor[:, None])[:, None, :]
        return units.remix(P, stretch[:, :, None] * shares.swapaxes(1, 2))

    def _member(self, units: Grams, kernel: Array) -> Array:
        """(M, R, k) 1 where a unit belongs to a cluster."""
        xp = namespace(kernel)
        energy = xp.where(units.live, units.kernel.diagonal(axis1=1, axis2=2), -1.0)
        order = xp.argsort(-energy, axis=1, kind="stable")  # the same units in any order: the same draws
        rows = xp.arange(len(order))[:, None]
        sorted_kernel = kernel[rows[:, :, None], order[:, :, None], order[:, None, :]]
        k = self.size(tuple(np.bincount(units.owner)))
        labels = xp.empty_like(order)
        labels[rows, order] = cluster(
            sorted_kernel, units.live[rows, order], k, units.labels, self.seed, self.restarts
        )
        return (labels[:, :, None] == xp.arange(k)).astype(float)


def _cosines(gram: Array) -> Array:
    xp = namespace(gram)
    length = xp.sqrt(xp.maximum(gram.diagonal(axis1=1, axis2=2), 0.0))  # (M, R)
    length = xp.where(length > 0, length, 1.0)
    return gram / (length[:, :, None] * length[:, None, :])


def _representatives(units: Grams, member: Array) -> tuple[Array, Array]:
    """(P, Q) of the best rank-1 unit of every cluster's sum, strongest first."""
    xp = namespace(member)
    P, Q = xp.zeros(member.shape), xp.zeros(member.swapaxes(1, 2).shape)
    count = member.sum(axis=1).astype(int)  # (M, k)
    for n in sorted(set(host(count).ravel().tolist()) - {0}):  # Python goes through the sizes
        m, c = xp.nonzero(count == n)  # (B,) clusters of n units
        where = xp.nonzero(member.swapaxes(1, 2)[m, c])[1].reshape(-1, n)  # (B, n)
        block = (m[:, None, None], where[:, :, None], where[:, None, :])
        p, q = balanced(leading(units.up[block], units.down[block], 1), 1)
        P[m[:, None], where, c[:, None]], Q[m[:, None], c[:, None], where] = p[:, :, 0], q[:, 0]
    energy = ((units.up @ P) * P).sum(axis=1)  # (M, k) = σ, because a unit is balanced
    order = xp.argsort(-energy, axis=1, kind="stable")
    return xp.take_along_axis(P, order[:, None, :], 2), xp.take_along_axis(Q, order[:, :, None], 1)


def _gain(gain: str, units: Grams, member: Array) -> Array:
    """(M,) factor of ΔW: √(N/k), √(r/k) with r = N / sources, or 1."""
    xp, live = namespace(member), units.live.sum(axis=1)
    k = xp.maximum(member.any(axis=1).sum(axis=1), 1)
    if gain == "none":
        return xp.ones(len(live))
    present = xp.stack([units.live[:, units.of(s)].any(axis=1) for s in units.owners])
    return xp.sqrt(live / k / (1 if gain == "sqrt-N/k" else xp.maximum(present.sum(axis=0), 1)))


def _stretch(units: Grams, shares: Array) -> Array:
    """(M, k) mean L2 length of the members over the length of the centroid."""
    xp, gram = namespace(shares), units.up + units.down
    wanted = xp.sqrt(gram.diagonal(axis1=1, axis2=2))[:, None, :] @ shares  # (M, 1, k)
    length = xp.sqrt(xp.maximum(((gram @ shares) * shares).sum(axis=1), 0.0))  # (M, k)
    return ratio(wanted[:, 0], length, length > 0)
