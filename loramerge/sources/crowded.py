"""Modules with more units than rows or columns: only their sum matters to some methods, and it is smaller.

With R = Σ r_t > min(out, in) the weighted sum itself, as ``sum @ 1`` or ``1 @ sum``, has min(out, in) units.
It is accumulated source by source, so that no more is ever held. Exact in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Slot
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.remix import Remix
from loramerge.merge.report import Module
from loramerge.sources.units import Signature, Units

Weights = Callable[[Target], Array]  # (T,) of a module


def crowded(signature: Signature, shape: tuple[int, int]) -> bool:
    """Whether the sources together have more units than the module has rows or columns."""
    return sum(signature) > min(shape)


def folded(adapters: Sequence[Adapter], weights: Weights, targets: Sequence[Target]) -> list[Adapter]:
    """The adapters without these modules, and one more that holds their weighted sums."""
    slots = {target: _sum_slot(adapters, weights(target), target) for target in targets}
    rest = [replace(a, slots={t: s for t, s in a.slots.items() if t not in slots}) for a in adapters]
    return [*rest, Adapter("sum of the sources", slots)]


def _sum_slot(adapters: Sequence[Adapter], weights: Array, target: Target) -> Slot:
    outs, ins = next(a.slots[target].shape for a in adapters if target in a.slots)
    units = min(outs, ins)
    total, one = partial(weighted_sum, adapters, weights, target), partial(np.eye, units)
    up, down = (one, total) if outs < ins else (total, one)
    return Slot(Computed((outs, units), up), Computed((units, ins), down), 1.0)


def weighted_sum(adapters: Sequence[Adapter], weights: Array, target: Target) -> Array:
    """Σ w_t ΔW_t (out, in) of one module, float64, one source at a time."""
    total: Array | None = None
    for adapter, weight in zip(adapters, weights, strict=True):
        if target in adapter.slots and weight:
            dense = (adapter[target] * weight).dense()
            total = dense if total is None else np.add(total, dense, out=total)
    if total is None:
        total = np.zeros(next(a.slots[target].shape for a in adapters if target in a.slots))
    return total


def recount(
    module: Module, adapters: Sequence[Adapter], target: Target, merged: tuple[Array, Array]
) -> Module:
    """The facts of a folded module with each source counted by itself again.

    Args:
        merged: up' (out, k) and down' (k, in) of the merge.
    """
    present = [(t, a[target]) for t, a in enumerate(adapters) if target in a.slots]
    overlaps, inners = np.zeros(len(adapters)), np.zeros((len(adapters), len(adapters)))
    for t, update in present:
        cross = (merged[0].T @ update.up) * (merged[1] @ np.asarray(update.down, np.float64).T)
        overlaps[t] = update.scale * float(cross.sum())
        for u, other in present:
            if u >= t:
                inners[t, u] = inners[u, t] = update.inner(other)
    ranks = tuple(a.slots[target].rank if target in a.slots else 0 for a in adapters)
    return replace(module, ranks=ranks, overlaps=overlaps, inners=inners)


def unfolded(facts: list[Module], units: Units, adapters: Sequence[Adapter], remix: Remix) -> list[Module]:
    """The facts of a batch of folded sources, in terms of the original ones."""
    if not units.signature[-1]:  # nothing is folded in these modules
        return [
            replace(f, ranks=f.ranks[:-1], overlaps=f.overlaps[:-1], inners=f.inners[:-1, :-1]) for f in facts
        ]
    pairs = enumerate(zip(facts, units.targets, strict=True))
    return [recount(fact, adapters, target, units.remix(m, remix)) for m, (fact, target) in pairs]
