"""Sources of image and video models under the names of one model, and refused where they are of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.spelling import Spelling
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats.dialects.dialect import Dialect
from loramerge.formats.dialects.grain import placed
from loramerge.formats.dialects.model import PARTS, RAW, Model, called, families_of, model_of, own_sizes, said
from loramerge.formats.dialects.peft import Peft
from loramerge.formats.models.families import likely, naming, ours
from loramerge.formats.models.family import Family, Sizes

UNET = {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out", "encoder_hid_proj"}
EMBEDS = ("time_embed", "time_proj", "add_embed", "class_embed")  # beginnings of more of its modules
IMAGE = {"time", "text", "context", "patch", "img", "txt", "x", "t", "cap"}  # with more words, before a dot
APART = ("name", "noise", "task", "size")  # variants that are different weights


def together(adapters: Sequence[Adapter], allowed: bool = False) -> list[Adapter]:
    """The sources under our names, where one of them tells of which family all are.

    Raises:
        IncompatibleError: two are of different families or variants, and that is not allowed.
    """
    known = [seen for adapter in adapters if families_of(seen := _seen(adapter))]
    for first, other in combinations(known, 2):
        if not allowed:
            _check(first, other)
    if not allowed and any(map(_of_pipeline, adapters)):
        from loramerge.formats.dialects.unets import apart  # language models have none

        for differing in apart(adapters):
            _refuse(*differing)
    model = model_of(adapter for adapter in adapters if families_of(adapter))
    named = [_renewed(adapter, model) for adapter in adapters] if model.families else list(adapters)
    return [_told(adapter, adapters) for adapter in named] if len(known) > 1 else named


def _of_unet(path: str) -> bool:
    """Whether a name is a U-Net's.

    >>> _of_unet("down_blocks.0.attentions.0.proj_in"), _of_unet("time_embedding.linear_1"), _of_unet("q")
    (True, True, False)
    """
    first = path.partition(".")[0]
    return first in UNET or first.startswith(EMBEDS)


def _of_image(path: str) -> bool:
    """Whether a name may be an image model's, which none of a language model's begins like.

    >>> _of_image("transformer_blocks.0.attn.to_q"), _of_image("img_in.0"), _of_image("model.layers.0.q_proj")
    (True, True, False)
    """
    first, dot, _ = path.partition(".")
    word, more, _ = first.partition("_")
    return bool(dot) and (first.endswith("blocks") or first == "layers" or (bool(more) and word in IMAGE))


def _of_pipeline(adapter: Adapter) -> bool:
    """Whether it has names of a pipeline's parts, or PEFT's names of a U-Net."""
    return any(target.component != "model" or _of_unet(target.path) for target in adapter.slots)


def _seen(adapter: Adapter) -> Adapter:
    """An adapter of PEFT's names in its place: they can be any model's, so base or name must say which."""
    some = next(iter(adapter.slots), None)
    if some is None or some.component != "model" or not _of_image(some.path):
        return adapter
    whole, words = placed(adapter), f"{said(adapter.metadata, adapter.base.name)} {called(adapter)}"
    named = tuple(each.name for each in families_of(whole) if each.means(words))
    return replace(whole, families=named) if named else adapter


def _check(first: Adapter, other: Adapter) -> None:
    mine, theirs = families_of(first), families_of(other)
    shared = [family for family in mine if family in theirs]
    if not shared:
        _refuse(first, mine[0].title, other, theirs[0].title)
    _check_fits(first, other)
    _check_widths(first, other, shared)
    one, two = variant(first), variant(other)
    for kind in APART:
        if kind in one and kind in two and not _alike(one[kind], two[kind]):
            _refuse(first, _headed(shared[0], one, kind), other, _headed(shared[0], two, kind))


def _alike(one: str, other: str) -> bool:
    """Whether two words for a model can mean one: `19B or 22B` and `22B`."""
    return not set(one.split(" or ")).isdisjoint(other.split(" or "))


def _headed(family: Family, variant: Mapping[str, str], kind: str) -> str:
    """A model, and what tells it from another."""
    return variant[kind] if kind == "name" else f"{variant.get('name', family.title)}, {variant[kind]}"


def _check_fits(first: Adapter, other: Adapter) -> None:
    """Raises IncompatibleError: the published models with the widths of both are of different families."""
    mine, theirs = _wide(first), _wide(other)
    if not set(mine) & set(theirs):
        _refuse(first, mine[0].title, other, theirs[0].title)


def _wide(adapter: Adapter) -> Sequence[Family]:
    """The families that an adapter can be of, if any has models of its width those."""
    found, sizes = families_of(adapter), own_sizes(adapter.slots)
    return [each for each in found if each.sizes(sizes)] or found


def _check_widths(first: Adapter, other: Adapter, shared: Sequence[Family]) -> None:
    """Raises IncompatibleError: no family that both can be of has models with the widths of both."""
    sizes = own_sizes(first.slots), own_sizes(other.slots)
    found = [(f.title, set(f.sizes(sizes[0])), set(f.sizes(sizes[1]))) for f in shared]
    known = [each for each in found if each[1] and each[2]]
    if known and not any(one & two for _, one, two in known):
        title, one, two = known[0]
        _refuse(first, f"{title}, {', '.join(sorted(one))}", other, f"{title}, {', '.join(sorted(two))}")


def _told(adapter: Adapter, others: Sequence[Adapter]) -> Adapter:
    """The adapter with a note on each other model of its family that another source is for."""
    mine = variant(adapter).get("model")
    each = {said for other in others if (said := variant(other).get("model", "")) and mine and said != mine}
    notes = tuple(f"it is for {mine}, and another source for {printable(said)}" for said in sorted(each))
    return replace(adapter, oddities=(*adapter.oddities, *notes)) if notes else adapter


def _refuse(first: Adapter, ours: str, other: Adapter, theirs: str) -> None:
    told = f"{printable(first.name)} is for {ours} and {printable(other.name)} for {theirs}: two different"
    sizes = ((t, slot.shape, other.slots[t].shape) for t, slot in first.slots.items() if t in other.slots)
    if odd := next((target for target, mine, its in sizes if mine != its), None):
        raise IncompatibleError(f"{told} models, in which {printable(odd)} has two sizes.")
    raise IncompatibleError(
        f"{told} models. If you want to merge them anyway, add {say('allow_base_mismatch', True)}."
    )


def family(adapter: Adapter) -> Family | None:
    """The family that an adapter is of; None if none is known, or nothing tells which of several."""
    found = likely(families_of(adapter), own_sizes(adapter.slots))
    return found[0] if len(found) == 1 else None


def named_family(adapter: Adapter) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the families that an adapter can be of, the namings that have all names of its files)."""
    alone = {target.component for target in adapter.slots} == {"model"}
    whole = placed(adapter) if alone else adapter
    found = likely(families_of(whole), own_sizes(whole.slots))
    if not found:
        return (), ()
    first, paths = found[0], [target.path for target in adapter.slots]
    if not alone:
        own = adapter.spelling.of(first.name) if adapter.spelling else ""
        paths = [name for path in own_sizes(whole.slots) if own and (name := first.spelled(path, own))]
    namings = [each for each in first.namings if paths and all(first.find(p, each) for p in paths)]
    return tuple(each.name for each in found), tuple(namings)


def written_family(dialect: Dialect, targets: Iterable[Target]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same of what a dialect writes, which knows its model."""
    from loramerge.formats.dialects.spelling import Spelled  # of merges for a program

    if not isinstance(dialect, Spelled | Peft) or dialect.model is None or not dialect.model.families:
        return (), ()
    first, own = dialect.model.first, dialect.naming
    paths = [target.path for target in targets if first.place(target.path) is not None]
    alike = [n for n in first.namings if all(first.spelled(p, n) == first.spelled(p, own) for p in paths)]
    return tuple(family.name for family in dialect.model.families), tuple(alike)


def side_by_side(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters for one model of a pipeline each, under one name of it: only diffusers' names tell which."""
    parts = [{target.component for target in adapter.slots} for adapter in adapters]
    if {frozenset(each) for each in parts} != {frozenset({part}) for part in PARTS}:
        return list(adapters)
    first = ({replace(t, component=PARTS[0]): slot for t, slot in each.slots.items()} for each in adapters)
    return [replace(each, slots=slots) for each, slots in zip(adapters, first, strict=True)]


def stranger(adapter: Adapter) -> str:
    """A module where image models have theirs, of an adapter without a family, that no U-Net has either."""
    paths = (target.path for target in adapter.slots if target.component in RAW)
    return next((path for path in paths if not _of_unet(path)), "")


def described(adapter: Adapter) -> str:
    """The model that an adapter is for, in words; "" if it is not known.

    `Wan 2.2, low noise, T2V 14B`.
    """
    adapter = _seen(adapter)
    found = likely(families_of(adapter), own_sizes(adapter.slots))
    if not found:
        from loramerge.formats.dialects.unets import unet_of  # most files are of no U-Net

        return unet_of(adapter) if _of_pipeline(adapter) else ""
    if len(found) > 1:
        return _several(found, own_sizes(adapter.slots))
    known = variant(adapter)
    title = known.pop("name", found[0].untold or found[0].title)
    first, last = known.pop("version", ""), known.pop("size", "")
    task = f"{known.pop('task', '')} {last}".strip()
    odd = "unlike the published models" if found[0].unusual(own_sizes(adapter.slots)) else ""
    return ", ".join(filter(None, [f"{title} {first}".strip(), *known.values(), task, odd]))


def _several(found: Sequence[Family], sizes: Sizes) -> str:
    """Families of which nothing tells one from the others."""
    each = [" ".join([f.title, *(f.sizes(sizes) if len(f.sizes(sizes)) == 1 else [])]) for f in found]
    return f"{' or '.join(each)}, the tensors do not tell"


def variant(adapter: Adapter) -> dict[str, str]:
    """What tells its model from others of its family: kind -> value."""
    adapter = _seen(adapter)
    one = family(adapter)
    if one is None:
        return {}
    sizes = own_sizes(adapter.slots)
    found = one.variant(sizes, "\n".join([called(adapter), said(adapter.metadata, adapter.base.name)]))
    if one.name == "wan" and {target.component for target in adapter.slots} == {PARTS[1]}:
        found["noise"] = "low noise"  # as diffusers keeps the two models of Wan 2.2
    return found


def _renewed(adapter: Adapter, model: Model) -> Adapter:
    """An adapter whose family its own file does not tell, under the names of the model that others tell."""
    loose = [target for target in adapter.slots if target.component in ("model", *RAW)]
    if not loose or families_of(adapter) or all(map(model.holds, loose)):
        return adapter
    table = ours(model.families, [target.path for target in loose])
    if table is None:
        _check_strangers(adapter, loose, model)
    if table is None or not _fit(adapter, loose, model):
        return adapter
    there = {t: replace(t, path=table[t.path], component=_part(t)) for t in loose}
    slots = {there.get(target, target): slot for target, slot in adapter.slots.items()}
    known = tuple(each.name for each in model.families)
    own = adapter.spelling or Spelling()
    prefixes = {part if part in PARTS else PARTS[0]: prefix for part, prefix in own.prefixes.items()}
    spelling = replace(own, naming=naming(model.first, [t.path for t in loose]), prefixes=prefixes)
    return replace(adapter, slots=slots, families=known, spelling=spelling, renamed=True)


def _check_strangers(adapter: Adapter, loose: Sequence[Target], model: Model) -> None:
    """Raises IncompatibleError: some of its modules have names of the others' model, beside unknown ones."""
    here = [target for target in loose if target.component in RAW]
    alike = next((t for t in here if model.first.find(t.path)), None)
    odd = next((t for t in here if not model.first.find(t.path)), None)
    if alike and odd:
        raise IncompatibleError(
            f"{printable(adapter.name)} has modules such as {printable(odd.path)} that no model known here "
            f"has, so its {printable(alike.path)} may or may not be that of {model.first.title} in the other "
            f"sources. If it is, take these modules out by `loramerge convert` with "
            f"{say('exclude', 'PATTERN')}, and merge what is left."
        )


def _fit(adapter: Adapter, loose: Sequence[Target], model: Model) -> bool:
    return all(each.fits(t.path, *adapter.slots[t].shape) for each in model.families for t in loose)


def _part(target: Target) -> str:
    return target.component if target.component in PARTS else PARTS[0]
