"""MergeVLA: one merge, and masks that give every task its own part of it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from loramerge.algorithms.entries.masks import Masks, Pair, masked, masks, strip, wanted_by, weighted_sources
from loramerge.algorithms.families.refit import fitting, refit
from loramerge.algorithms.families.size import Ranked
from loramerge.algorithms.memory import factors, stored
from loramerge.algorithms.method import Interval, Traits, formerly, option, recorded
from loramerge.algorithms.table import METHODS, RULES
from loramerge.algorithms.ties import Ties
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted, Remix, Result
from loramerge.errors import UsageError

WEIGHED = 2.0  # copies of the factors: as they are, and times their weights
SHARED = ("linear", *RULES, "tsv", "wudi")


def _then(given: Mapping[str, Any]) -> dict[str, Any]:
    """Records had no ridge while that of `wudi` was 0.1."""
    old = "wudi" in (given.get("rule"), given.get("base")) and "ridge" not in given
    return {**given, "ridge": 0.1} if old else dict(given)


@recorded(_then)
@formerly(base="rule")
@dataclass(frozen=True, kw_only=True)
class MergeVla(Ranked):
    """A merge that many tasks share, and a mask of single bits for each task.

        ΔW  = τ = rule(w_1 ΔW_1 … w_T ΔW_T)
        S_t = 1[ |w_t ΔW_t| > λ |τ - w_t ΔW_t| ]        entry by entry
        S_t ∘ τ        is what `loramerge restore MERGED --task t` brings back

    Written to a folder, it comes with a router, the input spaces of the sources: `restore --inputs x.npz`
    asks it which task some inputs are of.

    An entry is called selfish if one mask keeps it, consensus if several do, and catastrophic if none does;
    the report shows their shares. With `consensus` k > 0, merge and masks lose the entries that fewer than
    k tasks want (Consensus TA with k = 2). No restored task has them. What the merge's rank brings back of
    them counts as cut by the rank.

    `rule=ties` is the one of MergeVLA: nothing is trimmed, and the entries of the elected sign are added.
    Its KnOTS with a sum is `linear`, exactly. Every other rule is the method of that name without options;
    only the ridge of `wudi` can be given.

    Source: MergeVLA, 2025 (λ = 0.6, best from 0.6 to 0.9); masks: TALL, Wang et al. 2024, arXiv:2405.07813.

    Limits: masks are on ΔW, not on A and B. So a restored task has no low rank and is fitted again, with an
    error. Each mask takes a bit for every entry of a module, out·in/8 bytes. Where a rank is given, and with
    an elementwise rule always, the merge is first cut to a rank, and the masks are made for what is left.

    >>> import loramerge as lm
    >>> a = lm.Adapter.of({"q": lm.LowRank(np.array([[4.0, 1.0], [0.0, 2.0]]), np.eye(2))}, "a")
    >>> b = lm.Adapter.of({"q": lm.LowRank(np.array([[2.0, 1.0], [5.0, -6.0]]), np.eye(2))}, "b")
    >>> merge = lm.combine([a, b], lm.MergeVla())
    >>> merge.adapter[lm.Target("q")].dense().round(6)
    array([[ 6.,  2.],
           [ 5., -4.]])
    >>> merge.report.modules[0].facts["selfish"]
    0.75
    """

    rule: str = option("linear", "The method of the merge that tasks share.", choices=SHARED)
    mask_lambda: float = option(0.6, "λ: the larger, the fewer entries a mask keeps.", Interval(low=0))
    ridge: float | None = option(None, "The ridge of rule=wudi [default: 1].", Interval(low=1e-12))
    consensus: int = option(0, "Keep only entries that so many tasks want; 0 keeps all.", Interval(low=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ridge is not None and self.rule != "wudi":
            raise UsageError("ridge belongs to rule=wudi.")
        if self.consensus and self.energy is not None:
            raise UsageError("With consensus entries are chosen after the rank: give a rank, no other size.")

    def weights(self, weights: Array) -> Array:
        present = int(np.count_nonzero(weights))
        if self.consensus > present:
            raise UsageError(f"consensus={self.consensus} is more than the {present} sources with a weight.")
        return weights

    @property
    def foreseen(self) -> bool:
        return self.consensus == 0

    @property
    def shared(self) -> Ranked:
        """The method of the merge that tasks share, with its size."""
        if self.rule == "ties":
            return Ties(density=1, divisor="none", rank=self.rank, energy=self.energy)
        cls = cast(type[Ranked], METHODS[self.rule])
        more: dict[str, Any] = {} if self.ridge is None else {"ridge": self.ridge}
        return cls(rank=self.rank, energy=self.energy, **more)

    @property
    def traits(self) -> Traits:
        shared = self.shared.traits
        return Traits(
            "masks",
            weights="none" if self.consensus else shared.weights,
            common=shared.common,
            identity=shared.identity and self.consensus <= 1,
            exact=shared.exact and self.consensus == 0,
            vanishes=shared.vanishes or self.consensus > 0,
        )

    @property
    def masks(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return self.shared.whole and self.consensus == 0

    @property
    def frame(self) -> Frame:
        return "halved" if self.rule == "linear" else self.shared.frame

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def _weighed(self, grams: Grams) -> Grams:
        assert grams.weights is not None
        return self.shared.weigh(grams, grams.weights)

    def observe(self, grams: Grams) -> Array:
        return self.shared.observe(self._weighed(grams))

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return self.shared.width(signature, shape)

    @property
    def batched(self) -> bool:
        return False  # masks are made of entries, from factors on the host

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """The shared merge; a bit for each task in every entry; and what a consensus leaves of the merge."""
        width, entries = self.width(signature, shape), shape[0] * shape[1]
        bits = sum(rank > 0 for rank in signature) * shape[0] * -(-shape[1] // 8)
        made = factors(signature, shape, width, WEIGHED) + 2 * bits
        agreed = 20 * entries + 2 * fitting(shape, width, width) if self.consensus else 0
        masked = made + max(strip(shape[1]), agreed)
        return max(self.shared.needs(signature, shape), masked, stored(shape, width) + 2 * bits)

    def squares(self, sources: int) -> int:
        return self.shared.squares(sources)

    def remix(self, grams: Grams) -> Result:
        weighed = self._weighed(grams)
        return Fitted(partial(self._fit, grams, weighed, self.shared.remix(weighed)))

    def _fit(self, grams: Grams, weighed: Grams, made: Result, module: int) -> Fit:
        fit = made.make(module) if isinstance(made, Fitted) else _held(weighed, made, module)
        sources = weighted_sources(grams, module)
        # Of the merge cut to its rank, not yet rounded: with one task every entry that is not zero is kept.
        found = masks((fit.up, fit.down), list(sources.values()), self.mask_lambda)
        if self.consensus and sources:
            fit, found = self._agreed(fit, found, list(sources.values()), len(grams.owner))
        names = [grams.sources[t] for t in sources]
        return replace(fit, facts=_facts(found), masks=dict(zip(names, found.packed, strict=True)))

    def _agreed(self, fit: Fit, found: Masks, sources: list[Pair], units: int) -> tuple[Fit, Masks]:
        """Without the entries that too few want, in the merge and in all masks."""
        rows, columns = len(fit.up), fit.down.shape[1]
        kept = wanted_by(found.packed, self.consensus, columns)
        rank = min(self.rank or units, rows, columns)
        fit = refit((fit.up @ fit.down) * kept, rank, fit.down)
        packed = found.packed & np.packbits(kept, axis=1)
        return fit, masks((fit.up, fit.down), sources, self.mask_lambda, packed)


def _held(grams: Grams, made: Result, module: int) -> Fit:
    """A remix as factors; where it does not say what its rank cuts off, it is meant for the weighted sum."""
    assert grams.read is not None
    assert isinstance(made, Remix)
    up, down = grams.read(module)
    up, down = up @ made.P[module], made.Q[module] @ down
    kept = float(((up.T @ up) * (down @ down.T)).sum())
    if made.whole is not None and made.cut is not None:
        return Fit(up, down, float(made.whole[module]), float(made.cut[module]))
    whole = max(float(grams.kernel[module].sum()), kept)
    return Fit(up, down, whole, whole - kept)


def _facts(found: Masks) -> dict[str, float]:
    none, one = found.counts[0], found.counts[1] if len(found.counts) > 1 else 0.0
    return {
        "selfish": float(one),
        "consensus": float(max(1.0 - none - one, 0.0)),
        "catastrophic": float(none),
        "restore error": float(found.errors.max(initial=0.0)),
    }


def restored(merged: tuple[Array, Array], packed: Array, rank: int) -> Fit:
    """One task's part of a merge, by its mask, as factors."""
    return refit(masked(merged, packed), rank, merged[1])
