"""Modules with more units than rows or columns. Some methods need only their sum, which is smaller.

With R = Σ r_t > min(out, in) the weighted sum itself, as ``sum @ 1`` or ``1 @ sum``, has min(out, in) units.
It is accumulated source by source, so that no more is ever held. Exact in float64. `cat` promises every unit
and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from loramerge.adapters.adapter import Adapter, Computed, Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Signature

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
    ranks = [a.slots[target].rank for a in adapters if target in a.slots]
    # the sum so far and one more; all factors, and two in float64, where each source is counted again
    held = 16 * outs * ins + 8 * (sum(ranks) + 2 * max(ranks)) * (outs + ins)
    held += max(side.held for a in adapters if target in a.slots for side in _sides(a.slots[target]))
    return Slot(Computed((outs, units), up, held=held), Computed((units, ins), down, held=held), 1.0)


def _sides(slot: Slot) -> tuple[Tensor, Tensor]:
    return slot.up, slot.down


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
