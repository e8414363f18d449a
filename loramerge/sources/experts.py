"""Experts, stored each as a module or all as one parameter, are brought to one layout, exactly.

transformers 4 keeps the layers of every expert apart. transformers 5 keeps one parameter for all experts, and
some models store it with rows and columns exchanged. Where sources differ, the merge has the newer layout,
because PEFT can make it of both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.late import late
from loramerge.adapters.target import Layout, Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.blocks import turned
from loramerge.formats.models.projections import crossed
from loramerge.formats.peft.experts import ORDER
from loramerge.sources.projections import bases

APART = late(
    r"(?P<home>.*\bexperts)\.(?P<index>\d+)\.(?P<name>gate_up_proj|gate_proj|up_proj|down_proj|w1|w2|w3)",
    re.DOTALL,
)
LISTED = late(r".*\bexperts\.(gate_up|gate|up|down)_projs\.\d+", re.DOTALL)
READS = late(r".*\.(q|k|v|qkv|gate|up|gate_up)_proj|.*\.(w1|w3)", re.DOTALL)  # take the hidden state in
WRITES = late(r".*\.(o|down)_proj|.*\.w2", re.DOTALL)  # give it back
SWITCH = late(r"(?P<home>.*)\.switch_(?:mlp|glu)\.(?P<name>[^.]+)", re.DOTALL)  # of mlx-lm
Shape = tuple[int, int]


def loosened(adapters: Sequence[Adapter], always: bool = False) -> Sequence[Adapter]:
    """Every expert's layers as modules of their own, if the sources differ in it; else all as they are.

    Args:
        always: also if they do not.
    """
    fused = [any(map(_is_fused, adapter.slots)) for adapter in adapters]
    switched = [any(map(_switch, adapter.slots)) for adapter in adapters]
    turns = [has and _is_turned(adapter, adapters) for adapter, has in zip(adapters, fused, strict=True)]
    apart = any(_is_apart(target) for adapter in adapters for target in adapter.slots)
    mixed = len({turn for turn, has in zip(turns, fused, strict=True) if has}) > 1
    ways = any(fused) + apart + any(switched)
    if ways < 2 and not mixed and not (always and ways):
        return adapters
    return [_loose(adapter, turn) for adapter, turn in zip(adapters, turns, strict=True)]


def _is_fused(target: Target) -> bool:
    return target.kind == "expert" and target.parameter in ORDER


def _switch(target: Target) -> str | None:
    """The name of mlx-lm's expert as a module of its own; None if it is not an expert."""
    found = SWITCH.fullmatch(target.path) if target.kind == "expert" else None
    return f"{found['home']}.experts.{target.index}.{found['name']}" if found else None


def _is_apart(target: Target) -> bool:
    if "experts" not in target.path:
        return False
    return bool(APART.fullmatch(target.path) or LISTED.fullmatch(target.path))


def _loose(adapter: Adapter, turn: bool) -> Adapter:
    slots: dict[Target, Slot] = {}
    for target, slot in adapter.slots.items():
        if _is_fused(target):
            there = Target(f"{target.path}.{target.index}.{target.parameter}", component=target.component)
            slots[there] = turned(slot) if turn else slot
        elif (path := _switch(target)) is not None:
            slots[Target(path, component=target.component)] = slot
        else:
            slots[target] = slot
    return replace(adapter, slots=slots)


def tightened(adapters: Sequence[Adapter], before: Sequence[Adapter]) -> list[Adapter]:
    """The layers of all experts as parameters of the module that holds them, as in the sources that were so.

    Raises:
        IncompatibleError: the sources do not have the same experts.
    """
    counts = {t.layout.blocks: a.name for a in before for t in a.slots if _is_fused(t) or _switch(t)}
    if len(counts) > 1:
        (some, one), (more, other), *_ = counts.items()
        raise IncompatibleError(
            f"{printable(one)} has {some} experts and {printable(other)} {more}: they were trained on "
            "different base models and cannot be merged."
        )
    count = next(iter(counts), 0) or _highest(adapters)
    turns = [_is_turned(a, before) for a in before if any(map(_is_fused, a.slots))]
    turn = all(turns) if turns else any(crossed(base) for a in adapters for base in bases(a))
    made = [_tight(adapter, count, turn) for adapter in adapters]
    note = f"its experts are parameters of one module of {count} here, as in transformers 5, exactly"
    odd = [any(_is_apart(t) or _switch(t) for t in adapter.slots) for adapter in before]
    return [_noted(adapter, note, each) for adapter, each in zip(made, odd, strict=True)]


def told_apart(adapters: Sequence[Adapter], before: Sequence[Adapter]) -> list[Adapter]:
    """Loose experts as they stay, with a sentence where they were fused."""
    note = "its experts are modules of their own here, as in transformers 4, exactly"
    return [_noted(new, note, any(map(_is_fused, a.slots))) for new, a in zip(adapters, before, strict=True)]


def _noted(adapter: Adapter, note: str, new: bool) -> Adapter:
    return replace(adapter, oddities=(*adapter.oddities, note), renamed=True) if new else adapter


def _highest(adapters: Sequence[Adapter]) -> int:
    """How many experts there are, if the last of them has a pair."""
    found = (APART.fullmatch(target.path) for adapter in adapters for target in adapter.slots)
    return max((int(match["index"]) + 1 for match in found if match), default=0)


def _tight(adapter: Adapter, count: int, turn: bool) -> Adapter:
    slots: dict[Target, Slot] = {}
    for target, slot in adapter.slots.items():
        found = APART.fullmatch(target.path)
        if found is None or target.component != "model" or found["name"] not in ORDER:
            slots[target] = slot
            continue
        index = int(found["index"])
        if index >= count:
            raise IncompatibleError(
                f"{printable(adapter.name)} has {printable(target)}, and another source has only {count} "
                "experts: they were trained on different base models and cannot be merged."
            )
        there = Target(found["home"], found["name"], index=index, kind="expert", layout=Layout(blocks=count))
        slots[there] = turned(slot) if turn else slot
    return replace(adapter, slots=slots)


def _is_turned(adapter: Adapter, others: Sequence[Adapter]) -> bool:
    """Whether rows and columns of its fused experts are exchanged: by the width of the hidden state."""
    sizes: dict[str, Shape] = {}
    for target, slot in adapter.slots.items():
        if _is_fused(target):
            sizes.setdefault(target.parameter, slot.shape)
    first, last = sizes.get("gate_up_proj"), sizes.get("down_proj")
    if first and last:
        straight = first[1] == last[0] and first[0] == 2 * last[1]
        across = first[0] == last[1] and first[1] == 2 * last[0]
        if straight != across:
            return across
    width = next(_hidden([adapter, *others]), None)
    straight = width in (first[1] if first else None, last[0] if last else None)
    across = width in (first[0] if first else None, last[1] if last else None)
    return width is not None and across and not straight


def _hidden(adapters: Sequence[Adapter]) -> Iterator[int]:
    """The width of the hidden state, from layers whose direction is known."""
    for adapter in adapters:
        for target, slot in adapter.slots.items():
            if target.kind == "linear" and target.component == "model":
                if READS.fullmatch(target.path):
                    yield slot.shape[1]
                elif WRITES.fullmatch(target.path):
                    yield slot.shape[0]
