"""Rules for the names of modules: diffusers' name, another name, and which rows of it diffusers keeps apart.

    transformer_blocks.*.attn.to_{q,k,v} = double_blocks.*.img_attn.qkv 3:1
    transformer_blocks.*.ff.net.2 = double_blocks.*.img_mlp.2 1:4
    img_in

A `*` is a number. Several names for one are its rows, in this order. `3:1` says that a module has three times
as many outputs as inputs. A line of one name is called so by both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from loramerge.adapters.late import late
from loramerge.formats.models.templates import spread

if TYPE_CHECKING:  # names alone need no sizes
    from fractions import Fraction

Rows = Literal["equal", "query", "square", "turned", "last"]
NUMBER = late(r"\d+|\*")
RATIO = late(r"\d+:\d+(\|\d+:\d+)*")
Numbers = tuple[str, ...]


@dataclass(frozen=True, repr=False)  # compared: two namings with equal rules are one
class Rule:
    """One kind of module: diffusers' names of its rows, its name elsewhere, how the rows lie, outs / ins.

    `equal` parts; `query`: the first has as many rows as inputs, the others share the rest; `square`: all but
    the last have as many; `turned`: one part, whose halves are exchanged.

    >>> Rule(("a.q", "a.k", "a.v"), "a.qkv", "query").spans(5, 3)
    [[slice(0, 3, None)], [slice(3, 4, None)], [slice(4, 5, None)]]
    """

    ours: tuple[str, ...]
    theirs: str
    rows: Rows = "equal"
    ratios: tuple[Fraction, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether diffusers has several modules in its place, or one with other rows."""
        return len(self.ours) > 1 or self.rows in ("turned", "last")

    def sizes(self, outs: int, ins: int) -> list[int]:
        """The rows of each part of a module of this size."""
        count = len(self.ours)
        if self.rows == "query":
            return [ins, *[(outs - ins) // (count - 1)] * (count - 1)]
        if self.rows == "square":
            return [*[ins] * (count - 1), outs - (count - 1) * ins]
        return [outs // count] * count

    def spans(self, outs: int, ins: int) -> list[list[slice]]:
        """Which rows of a module of this size each part has."""
        if self.rows == "turned" or (self.rows == "last" and outs == 2 * ins):
            return [[slice(outs // 2, outs), slice(0, outs // 2)]]
        return [[slice(*ends)] for ends in pairwise(accumulate(self.sizes(outs, ins), initial=0))]

    def height(self, part: int, outs: int, ins: int) -> int:
        """The rows of the whole, from the size of one part."""
        equal = self.rows in ("equal", "last") or not self.ratios
        return outs * len(self.ours) if equal else int(ins * self.ratios[0])

    def fits(self, outs: int, ins: int, part: int = -1) -> bool:
        """Whether the module, or one of its parts, can have this size."""
        from fractions import Fraction

        return not self.ratios or any(self._fits(Fraction(outs, ins), part, ratio) for ratio in self.ratios)

    def _fits(self, own: Fraction, part: int, ratio: Fraction) -> bool:
        if part < 0:
            return own == ratio
        from fractions import Fraction

        width = ratio.denominator * len(self.ours)  # a size at which all parts are whole numbers
        return own == Fraction(self.sizes(int(width * ratio), width)[part], width)


class Place(NamedTuple):
    """A module of a family: its rule, which part of it, or -1 for all, and the numbers for its stars."""

    rule: Rule
    part: int
    numbers: Numbers


class Naming:
    """How one group of tools calls the modules of a family."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    def find(self, path: str) -> Place | None:
        """What a name means, dotted or with `_` for every dot."""
        return _found(self, path)

    def candidates(self, path: str) -> Sequence[tuple[Rule, Numbers]]:
        """The rules for names like this one but for their numbers, with the numbers of each, or stars."""
        return (self._dotted if "." in path else self._flat).get(skeleton(path), ())

    def of(self, ours: tuple[str, ...]) -> Rule | None:
        """The rule for these modules of diffusers."""
        return self._by_ours.get(ours)

    @cached_property
    def _by_ours(self) -> Mapping[tuple[str, ...], Rule]:
        return {rule.ours: rule for rule in self.rules}

    @cached_property
    def _dotted(self) -> Mapping[str, list[tuple[Rule, Numbers]]]:
        return _table(self.rules, lambda name: name)

    @cached_property
    def _flat(self) -> Mapping[str, list[tuple[Rule, Numbers]]]:
        return _table(self.rules, lambda name: name.replace(".", "_"))


@lru_cache(maxsize=1 << 15)
def _found(naming: Naming, path: str) -> Place | None:
    """What a name means. Reading, comparing and writing ask it again and again."""
    found = _runs(path)
    for rule, runs in naming.candidates(path):
        if all(run in ("*", own) for run, own in zip(runs, found, strict=True)):
            return Place(rule, -1, tuple(own for run, own in zip(runs, found, strict=True) if run == "*"))
    return None


def skeleton(path: str) -> str:
    """A name without its numbers.

    >>> skeleton("blocks.11.ffn.2")
    'blocks.#.ffn.#'
    """
    return NUMBER.sub("#", path)


def _runs(path: str) -> Numbers:
    return tuple(NUMBER.findall(path))


def _table(rules: Sequence[Rule], spell: Callable[[str], str]) -> dict[str, list[tuple[Rule, Numbers]]]:
    found: dict[str, list[tuple[Rule, Numbers]]] = {}
    for rule in rules:
        name = spell(rule.theirs)
        found.setdefault(skeleton(name), []).append((rule, _runs(name)))
    return found


def filled(template: str, numbers: Numbers) -> str:
    """A template with numbers for its stars.

    >>> filled("blocks.*.attn.to_out.0", ("3",))
    'blocks.3.attn.to_out.0'
    """
    own = iter(numbers)
    return "".join(next(own) if part == "*" else part for part in re.split(r"(\*)", template))


def rules(lines: str) -> Iterator[Rule]:
    """The rules in a table."""
    for line in lines.strip().splitlines():
        words = line.split()
        options = [word for word in words if word in get_args(Rows) or RATIO.fullmatch(word)]
        ours, _, theirs = " ".join(word for word in words if word not in options).partition("=")
        yield from _spread(_names(ours), _names(theirs or ours), options)


def _spread(ours: list[str], theirs: list[str], options: Sequence[str]) -> Iterator[Rule]:
    kind: Rows = next((known for known in get_args(Rows) if known in options), "equal")
    said = next((word for word in options if ":" in word), "")
    from fractions import Fraction

    ratio = tuple(Fraction(*map(int, each.split(":"))) for each in said.split("|") if each)
    if len(theirs) == 1:
        yield Rule(tuple(ours), theirs[0], kind, ratio)
    else:
        yield from (Rule((o,), t, kind, ratio) for o, t in zip(ours, theirs, strict=True))


def _names(text: str) -> list[str]:
    return [name for word in text.split() for name in spread(word)]
