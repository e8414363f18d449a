"""One name for one module in all sources: decided from the names and shapes of all of them together.

This happens between reading and merging. First come the names that the user changes. Then come those that
transformers has changed, prefixes before the layers, and modules that are one in some sources and several in
others. A rule is used only where two sources differ by it, so sources that agree keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from loramerge.adapters.adapter import Adapter, Scaled, Slot
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.dialects.together import together
from loramerge.formats.models.renames import EXPERTS, FAMILIES, is_new, old
from loramerge.formats.models.stems import NUMBER, best, parted, place
from loramerge.formats.models.templates import Beginnings, Template
from loramerge.formats.peft.names import PREFIX
from loramerge.request.request import Request
from loramerge.sources import experts, projections
from loramerge.sources.tokens import padded

MODEL = "model"  # the component of adapters that are for one model
HEAD = Template("language_model.lm_head", "lm_head", first=True)


def identified(adapters: Sequence[Adapter], request: Request) -> list[Adapter]:
    """The sources under one naming.

    Raises:
        UsageError: a renaming that meets no module.
        IncompatibleError: two modules of a source would be one, or one is two that cannot be told apart.
    """
    names = request.rename if isinstance(request.rename, Mapping) else {}  # a file is a table by now
    found = together(renamed(adapters, names), request.allow_base_mismatch)
    return padded(united(found, request.grain or "")) if len(found) > 1 or request.grain else found


def united(adapters: Sequence[Adapter], grain: str = "") -> list[Adapter]:
    """The sources under the names that they share, as far as these are known.

    Args:
        grain: what is to be fused or split, whatever they have: one of `GRAINS`.
    """
    how, _, what = grain.partition("-")
    ours = {"fused": True, "split": False}.get(how)
    single = ours if what != "projections" else None  # whether experts become one module
    loose = experts.loosened(adapters, always=single is not None)
    changed = loose is not adapters
    found = _stemmed(_renewed(loose, always=changed and single is True))
    one = changed if single is None else single

    def wanted(parent: str) -> bool | None:
        if parent.endswith(projections.EXPERT):
            return one if changed else None
        return ours if what != "experts" else None

    found = projections.fitted(found, wanted)
    if not changed:
        return list(found)
    return experts.tightened(found, adapters) if one else experts.told_apart(found, adapters)


def renamed(adapters: Sequence[Adapter], names: Mapping[str, str]) -> list[Adapter]:
    """The sources as the user calls their modules: beginnings of names, the longest first.

    Raises:
        UsageError: no module begins so.   IncompatibleError: two would have one name.
    """
    rules = [Template(_bare(o), _bare(n), first=True) for o, n in names.items()]
    rules.sort(key=lambda rule: -len(rule.old))
    beginnings = Beginnings(rules)

    def rename(path: str) -> str:
        made = next((rules[number].rewrite(path) for number in sorted(beginnings.of(path))), None)
        return path if made is None else made

    found = [moved(adapter, rename, f"as {say('rename')} says") for adapter in adapters]
    paths = [target.path for adapter in adapters for target in adapter]
    used = {number for path in paths for number in beginnings.of(path)}
    for number, rule in enumerate(rules):
        if number not in used:
            some = next(iter(paths), "none")
            asked = say("rename", {rule.old: rule.new})
            raise UsageError(
                f"{asked} matches no module: no name begins with it; one here is called {printable(some)}."
            )
    return found


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX).strip(".")


def moved(adapter: Adapter, rename: Callable[[str], str], why: str) -> Adapter:
    """The adapter with other paths in its model, its other tensors too; as it is, if none is another.

    Raises:
        IncompatibleError: two modules would have one name.
    """
    slots: dict[Target, Slot] = {}
    example: tuple[str, str] | None = None
    for target, slot in adapter.slots.items():
        there = replace(target, path=rename(target.path)) if target.component == MODEL else target
        example = example or ((target.path, there.path) if there.path != target.path else None)
        if there in slots:
            raise IncompatibleError(
                f"Two modules of {printable(adapter.name)} would be called {printable(there)}: one weight "
                f"has two names in it. Give one of them a name of its own with {say('rename')}, and leave it "
                f"out with {say('exclude')}."
            )
        slots[there] = slot
    extras = {_key(key, rename): tensor for key, tensor in adapter.extras.items()}
    if example is None and extras.keys() == adapter.extras.keys():
        return adapter
    return replace(
        adapter,
        slots=slots,
        extras=extras,
        biases=_biases(adapter.biases, rename),
        oddities=(*adapter.oddities, *_told(example, why)),
        renamed=True,
    )


def _key(key: str, rename: Callable[[str], str]) -> str:
    if not key.startswith(PREFIX):
        return key
    path, dot, last = key.removeprefix(PREFIX).rpartition(".")
    return f"{PREFIX}{rename(path)}{dot}{last}"


def _biases(biases: Mapping[Target, Scaled], rename: Callable[[str], str]) -> dict[Target, Scaled]:
    return {replace(target, path=rename(target.path)): bias for target, bias in biases.items()}


def _told(example: tuple[str, str] | None, why: str) -> list[str]:
    return [f"its {printable(example[0])} is called {printable(example[1])} here, {why}"] if example else []


def _paths(adapter: Adapter) -> set[str]:
    """The paths of its model, of layers and experts the first of each: others are called alike."""
    return {NUMBER.sub("0", target.path) for target in adapter.slots if target.component == MODEL}


def _renewed(adapters: Sequence[Adapter], always: bool = False) -> list[Adapter]:
    """Old names as new ones, where another source has new ones; those of experts `always`."""
    found = list(adapters)
    paths = [_paths(adapter) for adapter in found]
    for name, family in FAMILIES.items():
        named = zip(found, paths, strict=True)
        fresh = next((a.name for a, own in named if any(is_new(family, path) for path in own)), None)
        if fresh is None and always and name in EXPERTS:
            fresh = "transformers 5"
        if fresh is None or all(old(family, path) is None for own in paths for path in own):
            continue

        def rename(path: str, family: tuple[Template, ...] = family) -> str:
            return old(family, path) or path

        found = [moved(adapter, rename, f"as in {printable(fresh)}") for adapter in found]
        paths = [_paths(adapter) for adapter in found]
    return found


def _stemmed(adapters: Sequence[Adapter]) -> list[Adapter]:
    """One stem for each list of layers, where sources differ by wrappers of the model alone."""
    stems: dict[object, dict[int, set[str]]] = {}  # place -> source -> its stems
    for number, adapter in enumerate(adapters):
        for path in _paths(adapter):
            stems.setdefault(place(path), {}).setdefault(number, set()).add(parted(path)[0])
    changes: dict[str, str] = {}
    for where, each in stems.items():
        every = set().union(*each.values())
        if where != ((), "") and len(every) > 1 and all(len(own) < 2 for own in each.values()):
            changes |= {stem: best(every) for stem in every if stem != best(every)}
    if not changes:
        return list(adapters)
    return [moved(adapter, lambda path: _restemmed(path, changes), "as in others") for adapter in adapters]


def _restemmed(path: str, changes: Mapping[str, str]) -> str:
    stem, rest = parted(path)
    if stem == "" and rest == path and place(path)[1] == "":  # a head, or something of its own
        return (HEAD.rewrite(path) or path) if "language_model.model" in changes else path
    new = changes.get(stem, stem)
    return f"{new}.{rest}" if new else rest
