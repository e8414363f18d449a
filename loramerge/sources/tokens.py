"""Vocabularies of several sizes: updates of embeddings and heads with zeros for the tokens they lack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import printable
from loramerge.formats import vocabulary


def padded(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters, all with the longest vocabulary among them."""
    sizes: dict[Target, set[int]] = defaultdict(set)
    widths: dict[Target, set[int]] = defaultdict(set)
    for adapter in adapters:
        for target, slot in adapter.slots.items():
            if target.kind in ("embedding", "linear") and vocabulary.named(target.path):
                sizes[target].add(slot.shape[_axis(target)])
                widths[target].add(slot.shape[1 - _axis(target)])
    longest = {
        target: max(found)
        for target, found in sizes.items()
        if len(found) > 1 and len(widths[target]) == 1 and vocabulary.alike(found)
    }
    return [_longer(adapter, longest) for adapter in adapters] if longest else list(adapters)


def _axis(target: Target) -> int:
    """Where the tokens are in (out, in): the update of an embedding is kept as (dim, tokens)."""
    return 1 if target.kind == "embedding" else 0


def _longer(adapter: Adapter, longest: Mapping[Target, int]) -> Adapter:
    changed = {
        target: _padded(target, slot, longest[target])
        for target, slot in adapter.slots.items()
        if target in longest and slot.shape[_axis(target)] < longest[target]
    }
    if not changed:
        return adapter
    target = min(changed)
    own, size = adapter.slots[target].shape[_axis(target)], longest[target]
    note = f"its {printable(target)} has {own} tokens and another source {size}: the others are zero here"
    slots = {**adapter.slots, **changed}
    return replace(adapter, slots=slots, oddities=(*adapter.oddities, note), renamed=True)


def _padded(target: Target, slot: Slot, size: int) -> Slot:
    if _axis(target):
        return replace(slot, down=vocabulary.padded(slot.down, size, 1))
    return replace(slot, up=vocabulary.padded(slot.up, size, 0))
