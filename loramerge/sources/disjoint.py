"""Sources that share no module: either parts of one model that belong side by side, or a mistake in names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.errors import IncompatibleError, printable, say
from loramerge.formats import models
from loramerge.formats.dialects.model import RAW
from loramerge.formats.models.families import having
from loramerge.formats.models.layers import ENCODED, known
from loramerge.formats.models.stems import BESIDE, TOWERS, core, parted, place, unnumbered

UNET = RAW[0]
TEXTS = {("text_model",), ("decoder",)}
ENCODERS = (  # of one kind, by all its names: a model has one
    {"visual", "vision_tower", "vision_model", "vision_encoder", "image_encoder"},
    {"audio_tower", "audio_encoder"},
)
LAYERS = "they adapt other layers of one model"
PARAMETERS = "they adapt other parameters of one module"
FEW = 5  # names in a sentence


@dataclass(frozen=True)
class Group:
    """Sources that share modules with each other: which is the first of them, and all their modules."""

    turn: int
    name: str
    targets: frozenset[Target]

    @cached_property
    def components(self) -> set[str]:
        return {target.component for target in self.targets}

    @cached_property
    def shapes(self) -> set[tuple[str, str]]:
        """Component and name without numbers of every module."""
        return {(target.component, _name(target)) for target in self.targets}

    @cached_property
    def paths(self) -> set[str]:
        return {target.path for target in self.targets}

    @cached_property
    def rests(self) -> set[str]:
        """What its layers hold, whatever stands before them."""
        found = {unnumbered(parted(_path(target))[1]) for target in self.targets}
        return {rest for rest in found if rest not in BESIDE}

    @cached_property
    def stems(self) -> set[str]:
        return {parted(target.path)[0] for target in self.targets}

    @cached_property
    def places(self) -> set[tuple[tuple[str, ...], str]]:
        return {place(target.path) for target in self.targets}

    @property
    def some(self) -> str:
        return printable(min(map(str, self.targets)))


def _path(target: Target) -> str:
    """With the parameter of experts, which a path alone does not name."""
    return f"{target.path}.{target.parameter}" if target.kind == "expert" else target.path


def _name(target: Target) -> str:
    return unnumbered(_path(target))


def told(adapters: Sequence[Adapter], apart: Mapping[int, Iterable[Target]], allowed: bool) -> list[str]:
    """Sentences about groups of sources, each called by its first, that share no module with each other.

    Raises:
        IncompatibleError: and nothing tells that they are parts of one model.
    """
    groups = [Group(turn, adapters[turn].name, frozenset(targets)) for turn, targets in apart.items()]
    if allowed:
        return _notes([(f"{say('allow_disjoint', True)} says so", groups)])
    kinds = _kinds(groups)
    alike = [(LAYERS, kind) for kind in kinds]
    wholes = [
        Group(kind[0].turn, kind[0].name, frozenset().union(*(each.targets for each in kind)))
        for kind in kinds
    ]
    return _notes([*alike, *_apart(wholes)])


def _apart(wholes: Sequence[Group]) -> list[tuple[str, Sequence[Group]]]:
    """For every two of them why both are merged into one; not pair by pair where one reason holds for many.

    Raises:
        IncompatibleError: nothing tells that two are of one model.
    """
    found: list[tuple[str, Sequence[Group]]] = []
    bundles = _bundled(wholes)
    found += [(why, bundle) for why, bundle in bundles]
    for (_, some), (_, others) in combinations(bundles, 2):
        if not some[0].components & others[0].components:  # all of a bundle have the same
            found.append((_reason_together(some[0], others[0]), [*some, *others]))
            continue
        pairs = product(some, others)
        found += [(_reason_together(*sorted(pair, key=_turn)), pair) for pair in pairs]
    return found


def _bundled(wholes: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """All of a bundle are in the same components, and have one name, or else one module, in common."""
    shapes = Counter(shape for whole in wholes for shape in whole.shapes)
    paths = Counter(path for whole in wholes for path in whole.paths)
    found: dict[tuple[frozenset[str], str, object], list[Group]] = defaultdict(list)
    for whole in wholes:
        shape, path = (
            max(whole.shapes, key=lambda s: (shapes[s], s)),
            max(whole.paths, key=lambda p: (paths[p], p)),
        )
        by_name = shapes[shape] > 1 or paths[path] == 1
        key = (LAYERS, shape) if by_name else (PARAMETERS, path)
        found[frozenset(whole.components), *key].append(whole)
    return [(why, bundle) for (_, why, _), bundle in found.items()]


def _turn(group: Group) -> int:
    return group.turn


def _kinds(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups whose modules are called alike but for numbers, which are other layers of one model."""
    found: dict[frozenset[tuple[str, str]], list[Group]] = defaultdict(list)
    for group in groups:
        found[frozenset(group.shapes)].append(group)
    return list(found.values())


def _reason_together(first: Group, other: Group) -> str:
    """Why both are merged into one. Raises IncompatibleError: nothing tells that they are of one model."""
    if why := _one_model(first, other):
        return why
    names = f"{printable(first.name)} and {printable(other.name)}"
    raise IncompatibleError(f"{names} share no module: {_reason(first, other)}")


def _notes(found: Sequence[tuple[str, Sequence[Group]]]) -> list[str]:
    """A sentence for each reason, that names a few of those whom it holds for."""
    names: dict[str, dict[int, str]] = defaultdict(dict)
    for why, groups in found:
        if len(groups) > 1:
            names[why] |= {group.turn: group.name for group in groups}
    return [
        f"{_some([each[turn] for turn in sorted(each)])} share no module; {why}"
        for why, each in names.items()
    ]


def _some(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names]
    if len(shown) > FEW:
        shown = [*shown[: FEW - 1], f"{len(shown) - FEW + 1} more"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _one_model(first: Group, other: Group) -> str:
    """Why both may be parts of one model; empty if nothing says so."""
    if _two_models(first, other):
        return ""
    if not first.components & other.components:
        return "they are parts of one pipeline"
    if first.shapes & other.shapes:
        return LAYERS
    if first.paths & other.paths:
        return PARAMETERS
    if _in_pipeline(first, other):
        return "they adapt other modules of one model"
    if not (first.rests and other.rests):
        return "one adapts what lies beside the layers" if known(first.rests | other.rests) else ""
    together, towers = known(first.rests | other.rests), first.places != other.places
    if together and first.stems == other.stems:
        titles = _titles(together, first.stems | other.stems)
        return f"they adapt other modules of one model{titles and f', such as {titles}'}"
    if towers and known(first.rests) and known(other.rests) and _towers(first, other):
        return "they adapt other parts of one model"
    return ""


def _titles(found: Sequence[str], stems: Collection[str]) -> str:
    """Models that have some names, if they are few; what stands before the layers tells encoders from others.

    >>> _titles(["Phi", "CLIP"], {"text_model.encoder"}), _titles(["Phi", "CLIP"], {"model"})
    ('CLIP', 'Phi')
    >>> _titles(["Llama", "GLM", "OPT"], {"model"})
    ''
    """
    encoded = any("encoder" in core(stem) for stem in stems)
    likely = [name for name in found if (name in ENCODED) is encoded] or found
    return " or ".join(likely) if len(likely) < 3 else ""


def _towers(first: Group, other: Group) -> bool:
    """Whether what stands before their layers names two parts of one model."""
    sides = [{core(stem) for stem in group.stems} for group in (first, other)]
    # no model has a language model, whose core is empty, and another stack of text without an encoder
    if any(() in one and other & TEXTS for one, other in (sides, sides[::-1])):
        return False
    parts = [{part for each in one for part in each} for one in sides]
    if any(kind & parts[0] and kind & parts[1] for kind in ENCODERS):
        return False
    return not sides[0] & sides[1] and all(part in TOWERS for each in sides for one in each for part in one)


def _two_models(first: Group, other: Group) -> bool:
    """Whether one has a U-Net, or what may be one, and the other a transformer: no pipeline has both."""
    sides = [group.components & {*RAW} for group in (first, other)]
    return all(sides) and UNET in sides[0] | sides[1] and sides[0] != sides[1]


def _in_pipeline(first: Group, other: Group) -> bool:
    """Whether all of them are modules of an image model that is known."""
    both = first.targets | other.targets
    return all(_tabled(target) for target in both) or bool(having({target.path for target in both}))


def _all_tabled(group: Group) -> bool:
    return all(map(_tabled, group.targets))


def _nameless(group: Group) -> str:
    return (
        f"{group.some} of {printable(group.name)} is a name of no model that is known here, so the same "
        f"weights may be called otherwise in the other. {_anyway()}"
    )


def _tabled(target: Target) -> bool:
    parts = [target.component] if target.component in models.PARTS else models.PARTS
    return any(target.path in models.ours(part) for part in parts)


def _reason(first: Group, other: Group) -> str:
    """The likely reason, and what helps."""
    if _two_models(first, other):
        odd = next((g for g in (first, other) if UNET in g.components and not _all_tabled(g)), None)
        if odd is not None:
            return _nameless(odd)
        return (
            f"one has {first.some}, the other {other.some}, and no pipeline has both a U-Net and a "
            f"transformer. {_anyway()}"
        )
    if first.rests & other.rests:
        new, old = sorted((max(first.stems), max(other.stems)), key=lambda stem: len(core(stem)))
        return (
            f"one calls a module {first.some}, the other {other.some}. If these are the same layers, add "
            f"{say('rename', {old: new})}. {_anyway()}"
        )
    ours, theirs = known(first.rests), known(other.rests)
    if ours and theirs:
        each = [(_titles(ours, first.stems), first.some), (_titles(theirs, other.stems), other.some)]
        one, two = (f"the names of {title}" if title else f"modules such as {some}" for title, some in each)
        return f"the first has {one}, the second {two}, so they are for two models. {_anyway()}"
    odd = other if ours else first
    return (
        f"{odd.some} of {printable(odd.name)} is a name of no model that is known here, so the same weights "
        f"may be called otherwise in the other. Say so with {say('rename', {'OLD': 'NEW'})}. {_anyway()}"
    )


def _anyway() -> str:
    return f"If that is meant, add {say('allow_disjoint', True)}."
