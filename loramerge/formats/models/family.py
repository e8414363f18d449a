"""A family of image or video models: how its modules are called, how they are built, how it is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from loramerge.adapters.late import late
from loramerge.formats.models.rules import Naming, Numbers, Place, Rule, filled, rules

_CAMEL = late(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])")  # where a word begins inside a name
_OWN = late(r"\.\d+\.(attn1?|attention)\.")  # attention of a block to itself
OURS, FIRST = "diffusers", "first"
WIDE = 1024  # inputs of the attention of models that are no toys
FEW = 10  # blocks that a user would choose
BESIDE = ("text_conditioner",)  # parts of diffusers' pipelines with modules that others keep in the model
Sizes = Mapping[str, tuple[int, int]]  # name of a module -> (outs, ins)
Variants = Mapping[str, tuple[tuple[str, str], ...]]  # kind -> (value, pattern)


@dataclass(frozen=True, eq=False, repr=False)
class Family:
    """One family.

    Args:
        name: how tables and metadata call it.   title: how sentences call it.
        names: rules from diffusers' names to those under which the model was published.
        others: name of a further way to call its modules -> its rules.
        said: what metadata, or the name of the base, calls it: a regular expression.
        blocks: list of layers, in diffusers' names -> how many the largest model has.
        widths: the inputs that its attention has in published models.
        depths: published model, as `widths` calls it -> the same of it, where it has fewer blocks.
        seldom: a file of other widths that could as well be of another family is taken for that one's.
        tells: modules of which one must be there, where other kinds of models share the rest.
        variants: what tells its models apart: kind -> (value, what the name or the metadata says). The
            kind `name` is the title of one of them.
        shows: likewise, but told by modules: a pattern for `module outs×ins outs/ins`. These do not lie.
        untold: how sentences call a model of it that nothing tells from the others; "" if by its title.
        converter: the function of diffusers that renames a checkpoint, against which the names are held.
        model: the class of diffusers that has these modules.
        beside: another part of its pipelines that has some of them, which `BESIDE` has -> its class.
    """

    name: str
    title: str
    names: str
    said: str
    others: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[int, str] = field(default_factory=dict)
    depths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    seldom: bool = False
    tells: str = ""
    variants: Variants = field(default_factory=dict)
    shows: Variants = field(default_factory=dict)
    untold: str = ""
    converter: str = ""
    model: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def namings(self) -> Mapping[str, Naming]:
        """The ways to call its modules, by name; diffusers' first."""
        first = tuple(rules(self.names))
        others = {name: tuple(rules(lines)) for name, lines in self.others.items()}
        parts = [rule for own in (first, *others.values()) for rule in own]
        single = {part: _single(rule, i) for rule in parts for i, part in enumerate(rule.ours)}
        named = {OURS: Naming(single.values()), FIRST: Naming(first)}
        return named | {name: Naming(own) for name, own in others.items()}

    def find(self, path: str, naming: str = "") -> str | None:
        """Our name of a module: diffusers', or the published one of what diffusers has in parts.

        >>> from loramerge.formats.models.wan import WAN
        >>> WAN.find("blocks_3_self_attn_o"), WAN.find("blocks.3.norm9")
        ('blocks.3.attn1.to_out.0', None)
        """
        place = self._place(path, naming)
        return None if place is None else self._named(place)

    def place(self, path: str) -> Place | None:
        """Where in its rules a name is that we use: a whole module, or one part of one that others fuse."""
        return self._ours(path) or self._first(path)

    def spelled(self, path: str, naming: str) -> str | None:
        """How a module of our name is called in a naming; None where that has no module of the same rows."""
        place = self.place(path)
        if place is None:
            return None
        whole = place.part < 0 and place.rule.fused
        rule = self.namings[naming].of(place.rule.ours if place.part < 0 else (self._part(place),))
        return None if rule is None or rule.fused is not whole else filled(rule.theirs, place.numbers)

    def owner(self, path: str, naming: str) -> tuple[str, int, Rule] | None:
        """(our name of the whole, the part, its rule) of a module that a naming has fused."""
        place = self.place(path)
        if place is None or place.part < 0:
            return None
        rule = self.namings[naming].of(place.rule.ours)
        return None if rule is None else (filled(place.rule.theirs, place.numbers), place.part, place.rule)

    def parts(self, path: str) -> tuple[Rule, list[str]] | None:
        """(rule, diffusers' names) of a module of our name that diffusers has in parts."""
        place = self._first(path)
        if place is None or not place.rule.fused:
            return None
        return place.rule, [filled(part, place.numbers) for part in place.rule.ours]

    def fits(self, path: str, outs: int, ins: int, naming: str = "") -> bool:
        """Whether it has a module of this name, and of this size."""
        found = self.find(path, naming)
        place = None if found is None else self.place(found)
        return place is not None and self._counted(place) and place.rule.fits(outs, ins, place.part)

    def _counted(self, place: Place) -> bool:
        """Whether there are as many blocks as the number of this one says."""
        stem = place.rule.ours[0].partition(".*")[0]
        return not place.numbers or int(place.numbers[0]) < self.blocks.get(stem, 1 << 20)

    def _place(self, path: str, naming: str) -> Place | None:
        for name in (naming,) if naming else self.namings:
            if (found := self.namings[name].find(path)) is not None:
                return found
        return None

    def _named(self, place: Place) -> str:
        if not place.rule.fused:
            return filled(place.rule.ours[0], place.numbers)
        first = self.namings[FIRST].of(place.rule.ours) or place.rule
        return filled(first.theirs, place.numbers)

    @cached_property
    def _wholes(self) -> Mapping[str, tuple[Rule, int]]:
        """diffusers' template of a part -> the rule of what holds it, and which part it is."""
        fused = (rule for rule in self.namings[FIRST].rules if rule.fused)
        return {part: (rule, i) for rule in fused for i, part in enumerate(rule.ours)}

    def _ours(self, path: str) -> Place | None:
        found = self.namings[OURS].find(path)
        if found is None:
            return None
        rule, part = self._wholes.get(found.rule.theirs, (self._whole(found), -1))
        return Place(rule, part, found.numbers)

    def _whole(self, place: Place) -> Rule:
        return self.namings[FIRST].of(place.rule.ours) or place.rule

    def _first(self, path: str) -> Place | None:
        found = self.namings[FIRST].find(path)
        return found if found is not None and found.rule.fused else None

    def _part(self, place: Place) -> str:
        return place.rule.ours[place.part]

    def told(self, names: Iterable[str]) -> bool:
        """Whether a module is there that other kinds of models do not have."""
        return not self.tells or any(re.search(self.tells, name) for name in names)

    def means(self, text: str) -> bool:
        """Whether what is said of a model says this family."""
        return re.search(self.said, text, re.IGNORECASE) is not None

    def named(self, text: str) -> bool:
        """Whether the name of a file, or a title, says this family in words of their own.

        >>> from loramerge.formats.models.flux import FLUX
        >>> [FLUX.named(name) for name in ("InkFlux_v2", "flux1-dev", "influx")]
        [True, True, False]
        """
        return re.search(word(self.said), words(text), re.IGNORECASE) is not None

    def variant(self, names: Sizes, text: str) -> dict[str, str]:
        """What tells its models apart: kind -> value, as far as modules, widths, names and metadata say.

        The names of its models are words of every day, as "edit" and "turbo" are. So a line counts for them
        only if it names the family, too.

        >>> from loramerge.formats.models.wan import WAN
        >>> WAN.variant({"blocks.0.self_attn.q": (5120, 5120)}, "wan2.2_t2v_low_noise")
        {'version': '2.2', 'noise': 'low noise', 'task': 'T2V', 'size': '14B'}
        """
        own = "\n".join(line for line in text.splitlines() if self.named(line))
        found = {k: _only(v, words(own if k == "model" else text)) for k, v in self.variants.items()}
        shown = {kind: _only(_inline(values), _shapes(names)) for kind, values in self.shows.items()}
        found |= {kind: value for kind, value in shown.items() if value}
        size = self.sizes(names)
        if len(size) == 1 and found.get("size") not in size[0].split(" or "):
            found["size"] = size[0]
        return {kind: value for kind, value in found.items() if value}

    def sizes(self, names: Sizes) -> list[str]:
        """The published models that have modules of this width, and so many blocks."""
        inputs = {ins for outs, ins in names.values()}
        found = [model for width, model in self.widths.items() if width in inputs]
        if self.depths.keys().isdisjoint(found):
            return found
        own = self._numbers(names)
        return [m for m in found if all(max(own[stem]) < count for stem, count in self.counts(m, own))]

    def unusual(self, names: Sizes) -> bool:
        """Whether its own attention is wide, and as in no published model. What is beside it may differ."""
        first = next(iter(self.blocks))
        squares = (name for name, (outs, ins) in names.items() if outs == ins >= WIDE)
        own = any(name.startswith(f"{first}.") and _OWN.search(name) for name in squares)
        return own and not self.sizes(names)

    def counts(self, model: str, lists: Iterable[str]) -> list[tuple[str, int]]:
        """How many blocks a published model has in these lists.

        >>> from loramerge.formats.models.wan import WAN
        >>> WAN.counts("1.3B", ["blocks"]), WAN.counts("14B", ["blocks"])
        ([('blocks', 30)], [('blocks', 40)])
        """
        return [(s, self.depths.get(model, {}).get(s, self.blocks[s])) for s in lists if s in self.blocks]

    def whole(self, names: Sizes) -> bool:
        """Whether all blocks of every list that is there are there, and no others.

        A few are no sign: they can as well be chosen out of the many of another model.
        """
        own = self._numbers(names)
        models = self.sizes(names) or [""]
        return max(map(len, own.values()), default=0) > FEW and any(
            all(len(own[stem]) == count for stem, count in self.counts(model, own)) for model in models
        )

    def _numbers(self, names: Iterable[str]) -> dict[str, set[int]]:
        """List of blocks -> the numbers of those that are there."""
        found: dict[str, set[int]] = {}
        for name in names:
            place = self.place(self.find(name) or "")
            if place is not None and place.numbers:
                found.setdefault(place.rule.ours[0].partition(".*")[0], set()).add(int(place.numbers[0]))
        return found


def words(text: str) -> str:
    """A text, and the same with a space where a word begins inside a name.

    >>> words("InkHigh")
    'InkHigh\\nInk High'
    """
    return f"{text}\n{_CAMEL.sub(' ', text)}"


def part_of(path: str) -> str:
    """The part of diffusers' pipelines that has a module of diffusers' name; "" for the model itself.

    >>> part_of("text_conditioner.blocks.0.mlp.0"), part_of("transformer_blocks.0.attn1.to_q")
    ('text_conditioner', '')
    """
    part, dot, _ = path.partition(".")
    return part if dot and part in BESIDE else ""


def word(*options: str) -> str:
    """A pattern for these where they stand as words: beside no other letter.

    >>> [bool(re.search(word("t2v"), name)) for name in ("wan2.1_t2v14b", "art2van")]
    [True, False]
    """
    return rf"(?<![a-zA-Z])({'|'.join(options)})(?![a-zA-Z])"


def _only(values: Iterable[tuple[str, str]], text: str) -> str:
    """The value that a text says; "" if it says none, or two that exclude each other."""
    said = [value for value, words in values if re.search(words, text, re.IGNORECASE)]
    return said[0] if len(said) == 1 else ""


def _inline(values: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The same patterns, for which every line is a text of its own."""
    return ((value, f"(?m){pattern}") for value, pattern in values)


def _shapes(names: Sizes) -> str:
    """What patterns of `shows` are looked for in: a line for every module.

    >>> _shapes({"norm1.linear": (27, 3)})
    'norm1.linear 27x3 9:1'
    """
    return "\n".join(f"{name} {outs}x{ins} {outs / ins:g}:1" for name, (outs, ins) in names.items())


def _single(rule: Rule, part: int) -> Rule:
    """The module of diffusers that is one part of a rule."""
    name = rule.ours[part]
    return Rule((name,), name, "equal", () if rule.fused else rule.ratios)


__all__ = ["BESIDE", "FIRST", "OURS", "Family", "Numbers", "Sizes", "part_of", "word"]
