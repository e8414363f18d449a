"""Adapters of a U-Net: for which of the known models they are, and whether two are for one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from loramerge.adapters.adapter import Adapter
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.model import said
from loramerge.formats.models.unets import ALL, Parts, possible

UNET, TEXT, SECOND = "unet", "text_encoder", "text_encoder_2"


def kinds(adapter: Adapter) -> frozenset[str]:
    """The models that an adapter can be for: all where it tells nothing, none where it is for another."""
    parts = _parts(adapter)
    if not parts.unet.keys() <= models.known(UNET).keys():
        return frozenset()
    return possible(parts, said(adapter.metadata, adapter.base.name))


def unet_of(adapter: Adapter) -> str:
    """The model that the U-Net of an adapter belongs to, in words; "" if it has none, or nothing tells."""
    found = kinds(adapter) if _parts(adapter).unet else frozenset()
    return " or ".join(sorted(found)) if len(found) < len(ALL) - 1 else ""


def check_unets(adapters: Sequence[Adapter]) -> None:
    """Raises IncompatibleError: two are for different models. What has other shapes is refused elsewhere."""
    known = [(each, found) for each in adapters if (found := kinds(each)) != ALL and found]
    if not any(_parts(each).unet for each, _ in known):
        return  # text encoders are those of many pipelines
    for (first, ours), (other, theirs) in combinations(known, 2):
        shared = first.slots.keys() & other.slots.keys()
        if not ours & theirs and all(first.slots[t].shape == other.slots[t].shape for t in shared):
            mine, others = (" or ".join(sorted(each)) for each in (ours, theirs))
            raise IncompatibleError(
                f"{printable(first.name)} is for {mine} and {printable(other.name)} for {others}: two "
                f"different models. If you want to merge them anyway, add {say('allow_base_mismatch', True)}."
            )


def _parts(adapter: Adapter) -> Parts:
    found: dict[str, dict[str, tuple[int, int]]] = {UNET: {}, TEXT: {}, SECOND: {}}
    for target, slot in adapter.slots.items():
        if target.component in found:
            found[target.component][target.path] = slot.shape
    second = any(path in models.known(TEXT) for path in found[SECOND])  # that of others is T5
    return Parts(found[UNET], found[TEXT], second)
