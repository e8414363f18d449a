"""Modules that are one in some sources and several in others: brought to one form exactly, or refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.blocks import cut, joined
from loramerge.formats.models import heads
from loramerge.formats.models.projections import PROJECTIONS, Projection, alternates, native
from loramerge.formats.models.stems import unnumbered

EXPERT = ".experts.*"  # the parent of what one expert has, without numbers


Index = dict[str, dict[str, dict[int, Slot]]]
Wanted = Callable[[str], bool | None]  # of a parent: fused, split, or as the sources are


@dataclass(eq=False)
class Place:
    """Where sources disagree: a parent without its numbers, and who has the whole or parts there."""

    wholes: dict[int, Slot] = field(default_factory=dict)  # source -> one such module
    parts: dict[int, dict[str, int]] = field(default_factory=dict)  # source -> part -> its rows
    hint: dict[str, int] = field(default_factory=dict)  # the queries are as wide as what o_proj reads

    @property
    def known(self) -> dict[str, int]:
        """Part -> its rows, of all sources."""
        return self.hint | {part: rows for own in self.parts.values() for part, rows in own.items()}


def fitted(adapters: Sequence[Adapter], wanted: Wanted) -> list[Adapter]:
    """The sources with every such module either whole or in parts in all of them.

    Raises:
        IncompatibleError: which rows are which part is not known.
    """
    found = list(adapters)
    turns = any(alternates(base) for adapter in adapters for base in bases(adapter))
    index = _index(found)
    for projection in PROJECTIONS:
        for parent, place in _places(index, projection).items():
            want = wanted(parent)
            if not (place.wholes and place.parts):
                if want is None or (place.parts if want is False else place.wholes):
                    continue
                if projection.rows == "unknown":
                    continue
            here = replace(projection, rows="turns") if turns and parent.endswith(EXPERT) else projection
            spans = _spans(here, parent, place, found)
            change = _join if (_whole(here, found) if want is None else want) else _cut
            found = [change(adapter, here, parent, spans) for adapter in found]
            index = _index(found)
    return found


def _index(adapters: Sequence[Adapter]) -> Index:
    """Last part of a name -> parent without numbers -> source -> the first such module."""
    found: Index = defaultdict(lambda: defaultdict(dict))
    parents: dict[str, str] = {}  # thousands of experts have one
    for number, adapter in enumerate(adapters):
        for target, slot in adapter.slots.items():
            if target.kind == "linear" and target.component == "model":
                parent, _, last = target.path.rpartition(".")
                if parent not in parents:
                    parents[parent] = unnumbered(parent)
                found[last][parents[parent]].setdefault(number, slot)
    return found


def _places(index: Index, projection: Projection) -> dict[str, Place]:
    places: dict[str, Place] = defaultdict(Place)
    for parent, slots in index.get(projection.whole, {}).items():
        places[parent].wholes |= slots
    for part in projection.parts:
        for parent, slots in index.get(part, {}).items():
            for number, slot in slots.items():
                places[parent].parts.setdefault(number, {})[part] = slot.shape[0]
    if projection.rows == "query":
        for parent, slots in index.get("o_proj", {}).items():
            places[parent].hint[projection.parts[0]] = next(iter(slots.values())).shape[1]
    return places


def _spans(projection: Projection, parent: str, place: Place, adapters: Sequence[Adapter]) -> heads.Spans:
    """Which rows of the whole each part has. Raises IncompatibleError: that is not known."""
    if projection.rows == "unknown":
        outs = next(iter(place.wholes.values())).shape[0]
        for model in (adapter.model for adapter in adapters if adapter.model):
            found = heads.spans(projection.whole, model, outs)
            heights = [sum(span.stop - span.start for span in each) for each in found or ()]
            sizes = dict(zip(projection.parts, heights, strict=False))
            if found and all(sizes.get(part) == rows for part, rows in place.known.items()):
                return found
        said = (heads.rows(projection.whole, base) for adapter in adapters for base in bases(adapter))
        projection = replace(projection, rows=next(filter(None, said), "unknown"))
    return projection.spans(_sizes(projection, parent, place, adapters))


def _sizes(projection: Projection, parent: str, place: Place, adapters: Sequence[Adapter]) -> list[int]:
    """The rows of each part. Raises IncompatibleError: they are not known."""
    known, whole = place.known, next(iter(place.wholes.values()), None)
    outs = projection.height(known) if whole is None else whole.shape[0]
    sizes = None if outs is None else projection.sizes(outs, known)
    if sizes is not None:
        return sizes
    name, parts = f"{printable(parent)}.{projection.whole}", " and ".join(known or projection.parts)
    first = adapters[next(iter(place.wholes or place.parts))].name
    if not (place.wholes and place.parts):
        raise IncompatibleError(
            f"{printable(first)} alone does not tell which rows of {name} are {parts}. Name a source beside "
            f"it that does, or ask {say('grain')} for experts alone."
        )
    other = adapters[next(iter(place.parts))].name
    raise IncompatibleError(
        f"{printable(first)} has {name} where {printable(other)} has {parts}: these are the same weights "
        "under two names, and which rows are which is not known here. Put the config.json of the model "
        "beside one of them, which may tell it, or save one in the names of the other."
    )


def _whole(projection: Projection, adapters: Sequence[Adapter]) -> bool:
    """Whether to write the fused module: as the model has it, if that is known; else fused.

    A fused module that PEFT trained is the model's own; parts of one are what exporters make.
    """
    said = [native(projection, base) for adapter in adapters for base in bases(adapter)]
    return next((each for each in said if each is not None), True)


def bases(adapter: Adapter) -> Iterator[str]:
    """What the files say of the model: its class, and its name."""
    mapping = adapter.config.get("auto_mapping")
    said = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    yield from (each for each in (said, adapter.base.name) if isinstance(each, str))


def _cut(adapter: Adapter, projection: Projection, parent: str, spans: list[list[slice]]) -> Adapter:
    slots: dict[Target, Slot] = {}
    for target, slot in adapter.slots.items():
        above = _above(target, parent)
        there = [replace(target, path=f"{above}.{part}") for part in projection.parts]
        own = above is not None and target.path == f"{above}.{projection.whole}"
        if own and not any(part in adapter.slots for part in there):  # else `check` refuses
            slots |= dict(zip(there, cut(slot, spans), strict=True))
        else:
            slots[target] = slot
    parts = ", ".join(projection.parts)
    return _changed(adapter, slots, f"its {projection.whole} is cut into {parts} here, exactly")


def _join(adapter: Adapter, projection: Projection, parent: str, spans: list[list[slice]]) -> Adapter:
    slots: dict[Target, Slot] = {}
    groups: dict[Target, list[tuple[list[slice], Slot]]] = {}
    rows = dict(zip(projection.parts, spans, strict=True))
    for target, slot in adapter.slots.items():
        above, last = _above(target, parent), target.path.rpartition(".")[2]
        whole = replace(target, path=f"{above}.{projection.whole}")
        if above is not None and last in rows and whole not in adapter.slots:  # else `check` refuses
            groups.setdefault(whole, []).append((rows[last], slot))
        else:
            slots[target] = slot
    outs = max(span.indices(2**62)[1] for each in spans for span in each)
    slots |= {whole: joined(given, outs) for whole, given in groups.items()}
    parts = ", ".join(projection.parts)
    return _changed(adapter, slots, f"its {parts} are rows of {projection.whole} here, exactly")


def _above(target: Target, parent: str) -> str | None:
    above = target.path.rpartition(".")[0]
    fits = target.component == "model" and target.kind == "linear" and unnumbered(above) == parent
    return above if fits else None


def _changed(adapter: Adapter, slots: dict[Target, Slot], note: str) -> Adapter:
    if slots.keys() == adapter.slots.keys():
        return adapter
    gone = {target.path for target in adapter.slots.keys() - slots.keys()}
    if odd := [target for target in adapter.biases if target.path in gone]:
        raise IncompatibleError(
            f"{printable(adapter.name)} trains a bias of {printable(odd[0].path)}, which is another module "
            f"in the other sources: leave it out with {say('exclude')}."
        )
    oddities = dict.fromkeys((*adapter.oddities, note))
    return replace(adapter, slots=slots, oddities=tuple(oddities), renamed=True)


def check(adapters: Sequence[Adapter]) -> None:
    """Raises IncompatibleError: a source has a module both whole and in parts."""
    for adapter in adapters:
        paths = {target.path: target for target in adapter.slots if target.component == "model"}
        for projection in PROJECTIONS:
            for path, target in paths.items():
                above, _, last = path.rpartition(".")
                if last == projection.whole and any(f"{above}.{part}" in paths for part in projection.parts):
                    raise _twice(adapter, target, projection)


def _twice(adapter: Adapter, target: Target, projection: Projection) -> IncompatibleError:
    return IncompatibleError(
        f"{printable(adapter.name)} has {printable(target)} and also parts of it "
        f"({', '.join(projection.parts)}): one weight under two names, of which a program loads only one. "
        f"Take one of them out by `loramerge convert` with {say('exclude')}."
    )
