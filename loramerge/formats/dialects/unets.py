"""Adapters of a U-Net: for which of the known models they are, and which two are for different ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from loramerge.adapters.adapter import Adapter
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
    untold = ", the tensors do not tell" if len(found) > 1 else ""
    return f"{' or '.join(sorted(found))}{untold}" if len(found) < len(ALL) - 1 else ""


def apart(adapters: Sequence[Adapter]) -> Iterator[tuple[Adapter, str, Adapter, str]]:
    """Two adapters that are for different models, each with what its own is called."""
    known = [(found, each) for each in adapters if (found := kinds(each)) != ALL and found]
    if not any(_parts(each).unet for _, each in known):
        return  # text encoders are those of many pipelines
    firsts = dict(reversed(known))  # of each kind: all pairs of thousands would take hours
    for (ours, first), (theirs, other) in combinations(reversed(firsts.items()), 2):
        if not ours & theirs:
            yield first, " or ".join(sorted(ours)), other, " or ".join(sorted(theirs))


def _parts(adapter: Adapter) -> Parts:
    found: dict[str, dict[str, tuple[int, int]]] = {UNET: {}, TEXT: {}, SECOND: {}}
    for target, slot in adapter.slots.items():
        named = target.component == "model" and target.path in models.known(UNET)  # as PEFT has them
        if (part := UNET if named else target.component) in found:
            found[part][target.path] = slot.shape
    second = any(path in models.known(TEXT) for path in found[SECOND])  # that of others is T5
    return Parts(found[UNET], found[TEXT], second)
