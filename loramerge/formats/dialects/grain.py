"""Modules that are several in one tool and a single one in another, by the rules of their family.

Cutting a fused update by its rows is exact, and every part keeps the whole of `down`. Joining parts is
exact too: they stand in the diagonal of `up`, and their ranks add up. Adapters are brought to the grain of
the output before they are merged, so that nothing is joined that was merged apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.blocks import cut, joined
from loramerge.formats.dialects.model import Model, model_of
from loramerge.formats.dialects.places import located
from loramerge.formats.models.family import OURS


def split(adapter: Adapter) -> Adapter:
    """The adapter with every fused module cut into diffusers' modules."""
    return regrained(adapter, model_of([adapter]), OURS)


def regrained(adapter: Adapter, model: Model, naming: str) -> Adapter:
    """The adapter with its modules cut and joined as a naming has them; others as they are.

    Raises:
        IncompatibleError: it has a module both whole and in parts.
    """
    _check_once(adapter, model)
    slots: dict[Target, Slot] = {}
    groups: dict[Target, dict[str, Slot]] = {}
    for target, slot in adapter.slots.items():
        if not model.holds(target) or model.name(target, naming) is not None:
            slots[target] = slot
        elif (whole := model.owner(target, naming)) is not None:
            groups.setdefault(replace(target, path=whole), {})[target.path] = slot
        else:
            slots |= _cut(target, slot, model)
    for target, parts in groups.items():
        slots[target] = _joined(target, parts, model)
    return replace(adapter, slots=dict(sorted(slots.items()))) if groups else replace(adapter, slots=slots)


def check_once(adapter: Adapter) -> None:
    """Raises IncompatibleError: it has a module both whole and in parts."""
    whole = placed(adapter)
    _check_once(whole, model_of([whole]))


def twice(adapter: Adapter, model: Model | None = None) -> tuple[Target, Target] | None:
    """(a module, a part of it) that an adapter has both; None if it has every weight once."""
    known = model or model_of([adapter])
    for target in adapter.slots if known.families else ():
        parts = known.first.parts(target.path) if known.holds(target) else None
        for name in parts[1] if parts else ():
            if (part := replace(target, path=name)) != target and part in adapter.slots:
                return target, part
    return None


def _check_once(adapter: Adapter, model: Model) -> None:
    if found := twice(adapter, model):
        raise IncompatibleError(
            f"{printable(adapter.name)} has {printable(found[0])} and also a part of it "
            f"({printable(found[1].path)}): one weight under two names, of which a program loads "
            f"only one. Take one of them out by `loramerge convert` with {say('exclude')}."
        )


def _cut(target: Target, slot: Slot, model: Model) -> dict[Target, Slot]:
    """The parts of a module that diffusers has in parts; itself, where it has not."""
    found = model.first.parts(target.path)
    if found is None:
        return {target: slot}
    rule, names = found
    parts = cut(slot, rule.spans(*slot.shape))
    return {replace(target, path=name): part for name, part in zip(names, parts, strict=True)}


def _joined(target: Target, parts: Mapping[str, Slot], model: Model) -> Slot:
    """The update of a fused module from those of its parts; an absent part is zero."""
    found = model.first.parts(target.path)
    assert found is not None  # it is the owner of a part
    rule, names = found
    name, some = next(iter(parts.items()))
    outs = rule.height(names.index(name), *some.shape)
    spans = dict(zip(names, rule.spans(outs, some.shape[1]), strict=True))
    return joined([(spans[name], slot) for name, slot in parts.items()], outs)


def comparable(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters of several formats under the finest names that they share; those of one as they are."""
    if len({(adapter.dialect, _naming(adapter)) for adapter in adapters}) < 2:
        return list(adapters)
    parts = [{target.component for target in adapter.slots} for adapter in adapters]
    several = any("model" not in each for each in parts)
    return [
        split(placed(a) if several and each == {"model"} else a)
        for a, each in zip(adapters, parts, strict=True)
    ]


def _naming(adapter: Adapter) -> str:
    return adapter.spelling.naming if adapter.spelling else ""


def placed(adapter: Adapter) -> Adapter:
    """The adapter of one model in its part of a pipeline, if its names tell which."""
    try:
        return located(adapter)
    except IncompatibleError:
        return adapter
