"""Blocks of modules: how strong the factors of a block are, and sources without their weak blocks.

    norm of a block = √(Σ ‖A‖² + ‖B‖²) over its modules        (GS-LoRA, arXiv:2403.11530)

A block is what lies below one number in a name: `layers.3`, or the first two parts where there is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.arrays.dtypes import wide
from loramerge.errors import UsageError, printable, say


def block(target: Target) -> str:
    """The block that a module is in.

    >>> block(Target("model.layers.3.mlp.up_proj")), block(Target("lm_head"))
    ('model.layers.3', 'lm_head')
    """
    names = str(replace(target, index=-1)).split(".")
    last = next((i for i, name in enumerate(names) if name.isdigit()), min(1, len(names) - 1))
    return ".".join(names[: last + 1])


def norms(adapter: Adapter) -> Mapping[str, float]:
    """Block -> norm of its factors, without scales. Reads every factor."""
    squares: dict[str, list[float]] = {}
    for target, slot in adapter.slots.items():
        found = squares.setdefault(block(target), [])
        found += [float((wide(tensor.read()) ** 2).sum()) for tensor in (slot.up, slot.down)]
    return {name: math.sqrt(math.fsum(each)) for name, each in squares.items()}


def stronger(adapters: Sequence[Adapter], least: float) -> list[Adapter]:
    """The sources without the blocks whose norm is below the limit.

    Raises:
        UsageError: nothing is left of one.
    """
    return [_stronger(adapter, least) for adapter in adapters]


def _stronger(adapter: Adapter, least: float) -> Adapter:
    kept = {name for name, norm in norms(adapter).items() if norm >= least and norm > 0}
    slots = {target: slot for target, slot in adapter.slots.items() if block(target) in kept}
    if not slots:
        raise UsageError(f"{say('drop_below', least)} leaves no block of {printable(adapter.name)}.")
    gone = len({block(target) for target in adapter.slots}) - len(kept)
    note = (f"{gone} blocks below {least:g} are left out",) if gone else ()
    biases = {target: bias for target, bias in adapter.biases.items() if block(target) in kept}
    return replace(adapter, slots=slots, biases=biases, oddities=(*adapter.oddities, *note))
