"""Where one model's projection is several modules in one tool and a single one in another.

Cutting a fused update by its rows is exact, and every part keeps the whole of `down`. Joining parts is
exact too: they stand in the diagonal of `up`, and their ranks add up. Adapters are brought to the grain of
the output before they are merged, so that nothing is joined that was merged apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable
from loramerge.formats import models
from loramerge.formats.blocks import cut, joined
from loramerge.formats.dialects.places import located, unnamed
from loramerge.formats.models import flux

PART = "transformer"  # the part of a pipeline that has fused modules


def split(adapter: Adapter) -> Adapter:
    """The adapter with every fused module cut into diffusers' modules."""
    table = models.fused(PART)
    if not any(t.component == PART and t.path in table for t in adapter.slots):
        return adapter
    slots: dict[Target, Slot] = {}
    for target, slot in adapter.slots.items():
        names = table.get(target.path, ()) if target.component == PART else ()
        if not names:
            slots[target] = slot
            continue
        for name, part in zip(names, cut(slot, flux.rows(target.path, *slot.shape)), strict=True):
            slots[Target(name, component=PART)] = part
    return replace(adapter, slots=slots)


def comparable(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters of several formats under the finest names that they share; those of one format as they are."""
    if len({adapter.dialect for adapter in adapters}) < 2:
        return list(adapters)
    parts = [{target.component for target in adapter.slots} for adapter in adapters]
    several = any("model" not in each for each in parts)
    return [
        split(_tried(a) if several and each == {"model"} else a)
        for a, each in zip(adapters, parts, strict=True)
    ]


def _tried(adapter: Adapter) -> Adapter:
    """The adapter of one model in its part of a pipeline, if its names tell which."""
    try:
        return located(adapter)
    except IncompatibleError:
        return adapter


def placed(adapter: Adapter, words: str, flat: bool = False) -> Adapter:
    """The adapter in the parts of its pipeline, its modules fused as their authors have them.

    Args:
        words: what messages call the format.   flat: it has names for unknown modules without dots.

    Raises:
        IncompatibleError: it is of a transformer whose first names are not known.
    """
    whole = fused(located(adapter))
    odd = [t for t in whole.slots if t.component == PART and ("." in t.path or not flat)]
    if odd and not known_flux(whole):
        raise unnamed(odd[0], words)
    return whole


def fused(adapter: Adapter, strict: bool = True) -> Adapter:
    """The adapter with diffusers' modules joined where the first model has one; as it is, if not `strict` and
    nothing tells that it is Flux's.

    Raises:
        IncompatibleError: nothing tells that these are Flux's modules, which share names with other models.
    """
    owners = models.owner(PART)
    groups: dict[str, dict[str, Slot]] = {}
    slots: dict[Target, Slot] = {}
    for target, slot in adapter.slots.items():
        if target.component == PART and target.path in owners:
            groups.setdefault(owners[target.path], {})[target.path] = slot
        else:
            slots[target] = slot
    if groups and not known_flux(adapter):
        if not strict:
            return adapter
        some = next(target for target in adapter.slots if target.path in owners)
        raise IncompatibleError(
            f"{printable(adapter.name)} has modules such as {printable(some)}, which several models have, "
            "and it is not clear which one it is: this format has no known names for them."
        )
    for first, parts in groups.items():
        slots[Target(first, component=PART)] = _joined(first, parts)
    return replace(adapter, slots=dict(sorted(slots.items()))) if groups else adapter


def known_flux(adapter: Adapter) -> bool:
    """Whether its transformer is Flux: by a name that no other model has, or by what its header says."""
    sizes = {t.path: slot.shape for t, slot in adapter.slots.items() if t.component == PART}
    said = " ".join(
        adapter.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")
    )
    own = (
        any(path.startswith(("single_", "double_")) for path in sizes)
        or "flux" in f"{said} {adapter.base.name}".lower()
    )
    return own and models.is_flux(sizes)


def _joined(first: str, parts: dict[str, Slot]) -> Slot:
    """The update of a fused module from those of its parts; an absent part is zero."""
    wide, ins = next(iter(parts.values())).shape
    outs = {"linear1": 7 * ins, "qkv": 3 * ins}.get(first.rpartition(".")[2], wide)
    spans = dict(zip(models.fused(PART)[first], flux.rows(first, outs, ins), strict=True))
    return joined([(spans[name], slot) for name, slot in parts.items()], outs)
