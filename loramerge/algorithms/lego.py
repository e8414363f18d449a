"""LoRA-LEGO: cluster the rank-1 units of all adapters; every cluster becomes one merged unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loramerge.algorithms.families.kmeans import cluster
from loramerge.algorithms.families.size import Sized
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, balanced, leading, weigh
from loramerge.arrays.remix import PeakRescaled, Remix, Result
from loramerge.errors import UsageError

PUBLISHED = {  # what the two readings of the paper do where they differ
    "ctm": {"features": "raw", "rescale": "inf", "gain": "sqrt-N/k"},
    "nsc": {"features": "normalised", "rescale": "inf", "gain": "sqrt-r/k"},
}


@dataclass(frozen=True, kw_only=True)
class Lego(Sized):
    """Minimal semantic units, clustered by k-means into k merged units.

        unit uᵢ = bᵢ aᵢᵀ    clusters by ⟨uᵢ, uⱼ⟩ = (aᵢ·aⱼ)(bᵢ·bⱼ)    merged unit = best rank-1 of Σ_{i∈c} uᵢ

    `variant=intrinsic` (default) takes the units of each adapter's own balanced SVD, so only ΔW
    matters: rescaling or rotating the factors changes nothing. A weight multiplies its adapter's units
    before the clustering. With k = all units it is the exact sum; without a rank, k is the largest
    source rank. A cluster gets no more units than a module has live ones.

    `variant=ctm` and `variant=nsc` are two published readings of the paper, bound to the factors as
    stored (scale on up; a weight w puts √|w| on both halves, its sign on up): features [b; a] raw or
    with each half of length 1; the merged unit is the mean of its members, stretched to their mean
    length (largest entry, or L2), then ΔW times √(N/k) or √(r/k), N live units, r per source.

    Source: LoRA-LEGO, Zhao et al. 2024, arXiv:2409.16167; the two readings are those of the
    compress-then-merge (arXiv:2606.03723) and null-space-compression evaluations.

    Limits: `svd` is closer to the sum at the same rank by construction; LEGO keeps units of tasks
    apart instead. k-means is a local optimum: it depends on `seed`, and `restarts` improves it.

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
    restarts: int = option(4, "Runs of k-means; the tightest wins.", Interval(low=1))

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
        kernel = sum(map(_cosines, halves)) if features == "normalised" else sum(halves)
        member = self._member(units, np.asarray(kernel))  # (M, R, k)
        shares = member / np.maximum(member.sum(axis=1, keepdims=True), 1)
        factor = _gain(gain, units, member)
        if rescale == "inf":
            left, right = (side.diagonal(axis1=1, axis2=2) for side in (units.lift.P, units.lift.Q))
            centroids = units.remix(shares, shares.swapaxes(1, 2))
            return PeakRescaled(centroids, shares, left, right, factor)
        stretch = _stretch(units, shares) if rescale == "l2" else np.ones(shares.shape[::2])
        P = shares * (stretch * factor[:, None])[:, None, :]
        return units.remix(P, stretch[:, :, None] * shares.swapaxes(1, 2))

    def _member(self, units: Grams, kernel: Array) -> Array:
        """(M, R, k) 1 where a unit belongs to a cluster."""
        energy = np.where(units.live, units.kernel.diagonal(axis1=1, axis2=2), -1.0)
        order = np.argsort(-energy, axis=1, kind="stable")  # the same units in any order: the same draws
        rows = np.arange(len(order))[:, None]
        sorted_kernel = kernel[rows[:, :, None], order[:, :, None], order[:, None, :]]
        k = self.size(tuple(np.bincount(units.owner)))
        labels = np.empty_like(order)
        labels[rows, order] = cluster(
            sorted_kernel, units.live[rows, order], k, units.labels, self.seed, self.restarts
        )
        return (labels[:, :, None] == np.arange(k)).astype(float)


def _cosines(gram: Array) -> Array:
    length = np.sqrt(np.maximum(gram.diagonal(axis1=1, axis2=2), 0.0))  # (M, R)
    length = np.where(length > 0, length, 1.0)
    return np.asarray(gram / (length[:, :, None] * length[:, None, :]))


def _representatives(units: Grams, member: Array) -> tuple[Array, Array]:
    """(P, Q) of the best rank-1 unit of every cluster's sum, strongest first."""
    P, Q = np.zeros(member.shape), np.zeros(member.swapaxes(1, 2).shape)
    count = member.sum(axis=1).astype(int)  # (M, k)
    for n in np.unique(count[count > 0]):
        m, c = np.nonzero(count == n)  # (B,) clusters of n units
        where = np.nonzero(member.swapaxes(1, 2)[m, c])[1].reshape(-1, n)  # (B, n)
        block = (m[:, None, None], where[:, :, None], where[:, None, :])
        p, q = balanced(leading(units.up[block], units.down[block], 1), 1)
        P[m[:, None], where, c[:, None]], Q[m[:, None], c[:, None], where] = p[:, :, 0], q[:, 0]
    energy = ((units.up @ P) * P).sum(axis=1)  # (M, k) = σ, because a unit is balanced
    order = np.argsort(-energy, axis=1, kind="stable")
    return np.take_along_axis(P, order[:, None, :], 2), np.take_along_axis(Q, order[:, :, None], 1)


def _gain(gain: str, units: Grams, member: Array) -> Array:
    """(M,) factor of ΔW: √(N/k), √(r/k) with r = N / sources, or 1."""
    live = units.live.sum(axis=1)
    k = np.maximum(member.any(axis=1).sum(axis=1), 1)
    if gain == "none":
        return np.ones(len(live))
    present = np.stack([units.live[:, units.of(s)].any(axis=1) for s in np.unique(units.owner)])
    return np.sqrt(live / k / (1 if gain == "sqrt-N/k" else np.maximum(present.sum(axis=0), 1)))


def _stretch(units: Grams, shares: Array) -> Array:
    """(M, k) mean L2 length of the members over the length of the centroid."""
    gram = units.up + units.down
    wanted = np.sqrt(gram.diagonal(axis1=1, axis2=2))[:, None, :] @ shares  # (M, 1, k)
    length = np.sqrt(np.maximum(((gram @ shares) * shares).sum(axis=1), 0.0))  # (M, k)
    return np.divide(wanted[:, 0], length, out=np.zeros_like(length), where=length > 0)
