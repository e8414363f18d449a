"""DC-Merge: sources of even spectra, elected in a basis where the units of each have a block of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from loramerge.algorithms.families.span import Cored, strengths, tolerance
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd
from loramerge.arrays.polar import rows_as_directions

TIE = 1e-12  # share of all votes, below which a majority is rounding
NEAR = 1e-9  # of an entry: what is so near to the smallest kept one is kept too
STEEPEST = 5.0  # how much stronger than its last unit the first of a source stays, as published


@dataclass(frozen=True, kw_only=True)
class DcMerge(Cored):
    """Every source gets an even spectrum; then entries are elected in a basis that covers all sources.

        ΔW_t = U_t Σ_t V_tᵀ,  ΔW̃_t = U_t Σ̃_t V_tᵀ        Σ̃: every σ the mean of them, or on a line
        U* and V*: polar factors of [U₁ … U_T] and [V₁ … V_T];  M_t = U*ᵀ w_t ΔW̃_t V*, its largest entries
        ΔW = U* (mask ⊙ elected mean of M_t) V*ᵀ    mask: where row and column are units of one source

    Weak units then count as much as strong ones, and what one source would write into the units of another
    is left out. By default a source keeps as many entries of M_t as it has units.

    Source: DC-Merge 2026, arXiv:2603.06242, as in its code. There 0.1 % of the entries are kept, which for
    its 8 sources of rank 16 is as many as a source has units. The line goes from ρ to 1, ρ = min(5, σ₁/σ_r),
    and has the sum of the σ. Its α, 0.1 to 3 and tuned, is `--scale`.

    Limits: one adapter does not come back as itself, because its spectrum is evened out. Units of one
    strength within a source have no direction of their own, and entries depend on them. With smooth=mean
    the units of a source are all equal, so a rank that cuts them has no reason to keep this one or that.
    Directions nearer than rank_tol, the spacing of bfloat16, are one, as for `tsv`: near copies come out as
    copies do.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.diag([3.0, 1.0, 0.0])[:, :2], np.eye(3)[:2])})
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.eye(3)[:, 2:], np.eye(3)[2:])})
    >>> lm.combine([a, b], lm.DcMerge(smooth="mean")).adapter[lm.Target("q")].dense().round(6)
    array([[2., 0., 0.],
           [0., 2., 0.],
           [0., 0., 1.]])
    """

    rank_tol: float = tolerance(2.0**-8)
    smooth: Literal["line", "mean"] = option(
        "line", "How the spectrum of a source is evened out: falling along a line, or all their mean."
    )
    density: float | None = option(
        None,
        "The share of entries that a source keeps [default: as many as it has units].",
        Interval(low=0, high=1, low_open=True),
    )

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="none", identity=False)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, self._even(grams) > 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp = namespace(grams.up)
        up, down = (rows_as_directions(side) for side in (bases.reach_up, bases.reach_down))  # U*, V*
        votes, total = xp.zeros_like(up), xp.zeros_like(up)
        for entries in self._kept(grams, bases):
            votes += entries
            total += xp.abs(entries)
        sign = xp.where(xp.abs(votes) > TIE * total, xp.sign(votes), 0.0)
        merged, count = xp.zeros_like(up), xp.zeros_like(up)
        for entries in self._kept(grams, bases):
            agree = (xp.sign(entries) == sign) & (sign != 0)
            merged += entries * agree
            count += agree
        owner = like(grams.owner, up)
        mask = owner[:, None] == owner[None, :]
        return svd(up @ (mask * ratio(merged, count, count > 0)) @ down.swapaxes(1, 2))

    def _kept(self, grams: Grams, bases: Basis) -> Iterator[Array]:
        """The largest entries of M_t (M, R, R) of each source."""
        up, down = (rows_as_directions(side) for side in (bases.reach_up, bases.reach_down))
        even = self._even(grams) * grams.unit_weights
        for source in grams.owners:
            mine = grams.of(source)
            left = up.swapaxes(1, 2) @ (bases.reach_up[:, :, mine] * even[:, None, mine])
            core = left @ (bases.reach_down[:, :, mine].swapaxes(1, 2) @ down)
            units = (even[:, mine] != 0).sum(axis=1)
            yield largest(core, self._count(units, bases.ranks))

    def _count(self, units: Array, ranks: Array) -> Array:
        """(M,) how many entries a source keeps."""
        if self.density is None:
            return units
        xp = namespace(units)
        return xp.maximum((self.density * ranks[:, 0] * ranks[:, 1]).astype(int), units > 0)

    def _even(self, grams: Grams) -> Array:
        """(M, R) σ̃ of every unit that takes part, else 0."""
        sigma = strengths(grams, self.rank_tol)
        for source in grams.owners:
            mine = grams.of(source)  # strongest first
            sigma[:, mine] = evened(sigma[:, mine], self.smooth)
        return sigma


def evened(sigma: Array, smooth: str) -> Array:
    """σ̃ (M, r) of spectra (M, r) that fall, with the same sum; zeros stay zero.

    >>> import numpy as np
    >>> evened(np.array([[9.0, 3.0, 0.0]]), "line").tolist()
    [[9.0, 3.0, 0.0]]
    """
    xp, live = namespace(sigma), sigma > 0
    count = live.sum(axis=1, keepdims=True)
    if smooth == "mean":
        wanted = live * 1.0
    else:
        last = xp.where(live, sigma, sigma[:, :1]).min(axis=1, keepdims=True)
        steep = xp.minimum(ratio(sigma[:, :1], last, count > 0), STEEPEST)
        place = xp.arange(sigma.shape[1])[None, :] / xp.maximum(count - 1, 1)
        wanted = xp.where(live, steep + (1 - steep) * place, 0.0)
    whole = wanted.sum(axis=1, keepdims=True)
    return wanted * ratio(sigma.sum(axis=1, keepdims=True), whole, whole > 0)


def largest(entries: Array, count: Array) -> Array:
    """The `count` (M,) largest entries of (M, R, R), and those of the same size; others become 0."""
    xp, (modules, *_) = namespace(entries), entries.shape
    size = xp.abs(entries).reshape(modules, -1)
    order = xp.sort(size, axis=1)
    place = xp.clip(order.shape[1] - count, 0, order.shape[1] - 1)
    least = xp.take_along_axis(order, place[:, None], 1) * (1 - NEAR)
    kept = (size >= least) & (size > 0) & (count > 0)[:, None]
    return entries * kept.reshape(entries.shape)
