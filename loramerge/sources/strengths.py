"""Sources whose blocks are stronger or weaker: what strengths mean for the blocks of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.errors import UsageError, printable, say
from loramerge.formats.dialects.blocks import BESIDE, TEXT, blocks_of, lists
from loramerge.formats.dialects.model import families_of, own_sizes
from loramerge.formats.dialects.places import is_t5
from loramerge.request.blocks import Named, Strengths, strengths

_XL = "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"
_SD = "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
UNET: Mapping[int, tuple[str, ...]] = {  # count -> the blocks of a U-Net that so many strengths are for
    12: tuple(_XL.split()),
    17: tuple(_SD.split()),
    20: (TEXT, *(f"IN{n:02}" for n in range(9)), "M00", *(f"OUT{n:02}" for n in range(9))),
    26: (TEXT, *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))),
}
AROUND = ("CLIP", "T5", "IN", "OUT")  # sd-webui-lora-block-weight counts them too: 61 strengths in Flux.1
FLUX = (19, 38)
Strength = Callable[[str], float]  # of a block, by its name


def strengthened(adapters: Sequence[Adapter], asked: str | Mapping[str, str]) -> list[Adapter]:
    """The sources with another strength in their blocks; modules of strength 0 are left out.

    Raises:
        UsageError: a name of no source or block, a count that is not of this model, or nothing is left.
    """
    if isinstance(asked, str):
        return [_strengthened(adapter, asked) for adapter in adapters]
    found: dict[str, list[Adapter]] = {name: [] for name in asked}
    for adapter in adapters:
        for name in _names(adapter) & found.keys():
            found[name].append(adapter)
    if strange := next((name for name, own in found.items() if not own), None):
        raise UsageError(f"{say('blocks')} names {printable(strange)}, which is not one of the sources.")
    texts = {id(adapter): asked[name] for name, own in found.items() for adapter in own}
    return [_strengthened(a, texts[id(a)]) if id(a) in texts else a for a in adapters]


def _names(adapter: Adapter) -> set[str]:
    """What a user may call it: its name, its file, either without its end."""
    paths = [adapter.name, *map(str, adapter.provenance.files[:1])]
    return {name for path in paths for name in (path, Path(path).name, Path(path).stem)}


def _strengthened(adapter: Adapter, text: str) -> Adapter:
    said, where = strengths(text), blocks_of(adapter)
    if len(said.values) == sum(FLUX) + len(AROUND):
        where = {target: _around(target, name) for target, name in where.items()}
    strength = _by_name(adapter, said) if said.named else _by_count(adapter, said, set(where.values()))
    by = {target: said.whole * strength(name) for target, name in where.items()}
    slots = {t: Slot(slot.up, slot.down, slot.scale * by[t]) for t, slot in adapter.slots.items() if by[t]}
    if not slots:
        raise UsageError(f"{say('blocks', text)} leaves nothing of {printable(adapter.name)}.")
    biases = {target: bias for target, bias in adapter.biases.items() if target in slots}
    changed, every = ({name for t, name in where.items() if all or by[t] != 1} for all in (False, True))
    gone = f", and {len(where) - len(slots)} modules have none" if len(slots) < len(where) else ""
    note = f"{len(changed)} of {len(every)} blocks have another strength{gone}"
    return replace(adapter, slots=slots, biases=biases, oddities=(*adapter.oddities, note))


def _around(target: Target, name: str) -> str:
    """What is around the blocks of Flux, more finely."""
    if name == TEXT:
        return "T5" if is_t5(target.path) else "CLIP"
    out = target.path.startswith(("norm_out", "proj_out", "final_layer"))
    return name if name != BESIDE else "OUT" if out else "IN"


def _by_count(adapter: Adapter, said: Strengths, own: set[str]) -> Strength:
    """Strengths in the order of the blocks. What no block is of stays as it is, but for a text encoder's."""
    count = len(said.values)
    orders = [order for order in _orders(adapter, own) if len(order) == count]
    if not orders:
        counts = sorted({len(order) for order in _orders(adapter, own)})
        fit = f"{' or '.join(map(str, counts))} are one for each block"
        known = fit if counts else "its model is not known"
        raise UsageError(
            f"{say('blocks')} has {count} strengths for {printable(adapter.name)}: {known}. Blocks can also "
            f"be named: {_some(own)}."
        )
    table = dict(zip(orders[0], said.values, strict=True))
    counted = {_apart(name)[0] for name in table} - {TEXT}
    if odd := sorted(name for name in own - table.keys() if _apart(name)[0] in counted):
        raise UsageError(
            f"{say('blocks')} has {count} strengths, and none of them is for {odd[0]}, which "
            f"{printable(adapter.name)} has. Blocks can also be named: {_some(own)}."
        )
    return lambda name: table.get(name, 1.0)


def _orders(adapter: Adapter, own: set[str]) -> list[tuple[str, ...]]:
    """The blocks of its model in order, by themselves and behind `BASE`, in every size that it can have."""
    if any(target.component == "unet" for target in adapter.slots):
        return list(UNET.values())
    found = []
    for family in families_of(adapter):
        names = list(lists(family))
        here = {name: _count(own, name) for name in names}
        models = family.sizes(own_sizes(adapter.slots)) or ["", *family.depths]
        sizes = [
            {n: c for n, (_, c) in zip(names, family.counts(m, family.blocks), strict=True)} for m in models
        ]
        sizes += [here] * all(here.values())
        found += [tuple(f"{name}.{n:02}" for name in names for n in range(size[name])) for size in sizes]
    *front, end = AROUND
    whole = [(*front, *each, end) for each in found if len(each) == sum(FLUX)]
    return [order for each in found for order in (each, (TEXT, *each))] + whole


def _count(own: set[str], name: str) -> int:
    numbers = (int(block.rpartition(".")[2]) for block in own if block.rpartition(".")[0] == name)
    return max(numbers, default=-1) + 1


def _by_name(adapter: Adapter, said: Strengths) -> Strength:
    """Strengths of blocks by their names: the last that fits counts."""
    own = sorted(set(blocks_of(adapter).values()))
    known = {"M": {"MID"}}
    known |= {name: words for family in families_of(adapter) for name, words in lists(family).items()}
    here: dict[str, list[tuple[int | None, str]]] = {}  # list -> its blocks, with their numbers
    for name in own:
        first, number = _apart(name)
        here.setdefault(first, []).append((number, name))
    words = {first: {word.lower() for word in (first, *known.get(first, ()))} for first in here}
    found: dict[str, float] = {}
    for each in said.named:
        meant = [name for first in _lists(each, words) for n, name in here[first] if _inside(each, n)]
        if not meant:
            raise UsageError(
                f"{say('blocks')} names {printable(_shown(each), 60)}, and {printable(adapter.name)} has "
                f"other blocks: {_some(set(own))}."
            )
        found |= dict.fromkeys(meant, 1.0 if each.value is None else each.value)
    rest = 0.0 if said.chosen else 1.0
    return lambda name: found.get(name, rest)


def _lists(each: Named, words: Mapping[str, set[str]]) -> list[str]:
    """The lists that are named: by their whole name, else by its beginning; without a name all."""
    named = each.list.lower()
    exact = [first for first, own in words.items() if named in own]
    return exact or [first for first, own in words.items() if any(word.startswith(named) for word in own)]


def _inside(each: Named, number: int | None) -> bool:
    """Whether the block of this number in a list is one of those that are named."""
    if each.low is None:
        return bool(each.list)
    return number is not None and each.low <= number <= (each.high or each.low)


def _apart(name: str) -> tuple[str, int | None]:
    """`IN04` as IN and 4, `blocks.07` as blocks and 7, `IN` as it is."""
    if name in (TEXT, BESIDE, *AROUND):
        return name.split()[0], None
    first = name.rstrip("0123456789")
    return first.rstrip("."), int(name[len(first) :])


def _shown(each: Named) -> str:
    span = "" if each.low is None else f" {each.low}" if each.low == each.high else f" {each.low}-{each.high}"
    return f"{each.list}{span}".strip()


def _some(own: set[str]) -> str:
    """The lists of blocks, and which blocks of each are there."""
    numbers: dict[str, list[int]] = {}
    for first, number in map(_apart, sorted(own)):
        numbers.setdefault(first, []).extend([] if number is None else [number])
    words = [f"{name} {' '.join(_runs(sorted(n)))}".strip() for name, n in sorted(numbers.items())]
    return printable(", ".join(words), 200)


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    """
    >>> list(_runs([0, 1, 2, 7]))
    ['0-2', '7']
    """
    for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0]):
        own = [number for _, number in run]
        yield f"{own[0]}-{own[-1]}" if len(own) > 1 else f"{own[0]}"
