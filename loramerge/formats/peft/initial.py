"""Adapters whose initialisation changed the base model, made plain by the adapter that training began with.

Training started from W − s·B₀A₀ with the factors B₀, A₀, so the update of W itself is s·(BA − B₀A₀): exactly
``up = [B, −B₀]``, ``down = [A; A₀]`` at the same scale. No base model is needed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.files.views import joined


def made_plain(adapter: Adapter, start: Adapter) -> Adapter:
    """The adapter relative to the original base, by the one that training began with.

    Raises:
        IncompatibleError: the two are not of one training: other modules, shapes or scales.
    """
    if set(adapter) != set(start):
        odd = printable(min(set(adapter) ^ set(start)))
        raise _unrelated(adapter, start, f"only one of them has {odd}")
    slots = {}
    for target, slot in adapter.slots.items():
        first = start.slots[target]
        if (slot.up.shape, slot.down.shape) != (first.up.shape, first.down.shape):
            raise _unrelated(adapter, start, f"{printable(target)} has another shape")
        if not math.isclose(slot.scale, first.scale, rel_tol=1e-6):
            raise _unrelated(adapter, start, f"{printable(target)} has another scale")
        slots[target] = Slot(joined(slot.up, first.up, 1, -1.0), joined(slot.down, first.down, 0), slot.scale)
    files = start.provenance.files
    provenance = replace(
        adapter.provenance,
        files=(*adapter.provenance.files, *files),
        initial=start.provenance.name,
        starting=len(files),
    )
    plain = {**adapter.config, "init_lora_weights": True}
    return replace(adapter, slots=slots, config=plain, provenance=provenance)


def _unrelated(adapter: Adapter, start: Adapter, why: str) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(start.name)} is not the adapter that {printable(adapter.name)} began with: {why}. Name "
        "the one that was saved before the first step of the same training."
    )
