"""Weights and ranks that differ between modules: ramps over depth, and rules by name."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from loramerge.adapters.patterns.search import Search
from loramerge.adapters.target import Target
from loramerge.algorithms import Method, name_of, not_an_option
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Signature
from loramerge.errors import UsageError, printable
from loramerge.formats.dialects.blocks import called
from loramerge.request.kinds import Unfit, factor
from loramerge.request.rules import Ramp, Rule, Weight

SHOWN = 50  # rules that are told of one by one
LAYER = re.compile(r"(?:^|\.)(\d{1,9})(?=\.|$)")  # the first number in a path counts the layers


def check_weights(weights: Sequence[float] | None, count: int) -> Array:
    """The weights (T,), 1 each if none are given.

    Raises:
        UsageError: another count than sources, or no number that can be squared.
    """
    if weights is None:
        return np.ones(count)
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights for {count} adapters: give one weight for each.")
    return np.array([_fitting(weight) for weight in weights])


def _fitting(weight: Any) -> float:
    try:
        return factor(weight)
    except Unfit as error:
        raise UsageError(f"The weight {printable(weight)} {error}.") from None


class Line(NamedTuple):
    """The weights of all sources, from the first layer to the last: (T,) each."""

    first: Array
    last: Array

    @classmethod
    def of(cls, weights: Sequence[Weight] | None, count: int) -> Line:
        """Raises UsageError: another count than sources, or no number that can be squared."""
        if weights is None:
            return cls(np.ones(count), np.ones(count))
        ends = ([getattr(w, end) if isinstance(w, Ramp) else w for w in weights] for end in ("first", "last"))
        return cls(*(check_weights(end, count) for end in ends))

    def at(self, depth: float) -> Array:
        """(T,) at a depth from 0 to 1; exactly the weight where it is constant."""
        between = (1 - depth) * self.first + depth * self.last
        return np.where(self.first == self.last, self.first, between)


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Schedule:
    """What each module is merged with.

    Args:
        weights: one for each source, as given.   rules: as given.
        lines: of the weights, then of every rule.   search: which rule fits a name first.
        layers: the lowest and the highest number.
        ranks: place of a target -> rank, where no rule gives one.
        names: all names of a module that a rule is held against.
    """

    weights: tuple[Weight, ...]
    rules: tuple[Rule, ...]
    lines: tuple[Line, ...]
    search: Search | None
    layers: tuple[int, int]
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    names: Mapping[Target, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, weights: Sequence[Weight] | None, rules: Sequence[Rule], count: int, targets: Iterable[Target]
    ) -> Schedule:
        """The schedule of `count` sources over these modules.

        Raises:
            UsageError: a count of weights that does not fit, no number, no regular expression.
        """
        line = Line.of(weights, count)
        own = tuple(line if r.weights is None else Line.of(r.weights, count) for r in rules)
        search = Search([rule.match for rule in rules], "match") if rules else None
        whole = list(targets)
        numbers = [n for n in map(_layer, whole) if n is not None]
        layers = (min(numbers, default=0), max(numbers, default=0))
        given = tuple(np.ones(count).tolist()) if weights is None else tuple(weights)
        names = called(whole) if rules else {}
        return cls(given, tuple(rules), (line, *own), search, layers, names=names)

    def check_rules(self, targets: Iterable[Target]) -> None:
        """Raises UsageError: a rule fits no module."""
        whole = list(targets)
        names = [name for target in whole for name in self._names(target)]
        unmet = None if self.search is None else self.search.unmet(names)
        if unmet is not None:
            raise UsageError(
                f"The rule for '{printable(self.rules[unmet].match)}' fits no module; a module here is "
                f"called {printable(min(map(str, whole)))}."
            )

    @property
    def typical(self) -> Array:
        """(T,) the weights in the middle, without rules."""
        return self.lines[0].at(0.5)

    @property
    def silent(self) -> frozenset[int]:
        """The places of the sources that have a weight of 0 in every module."""
        heard = np.any([end != 0 for line in self.lines for end in line], axis=0)
        return frozenset(np.flatnonzero(~heard).tolist())

    @property
    def uniform(self) -> bool:
        """Whether all modules are merged alike."""
        return (
            not self.rules and not self.ranks and not any(isinstance(weight, Ramp) for weight in self.weights)
        )

    def way(self, method: Method, target: Target) -> tuple[Method, Array]:
        """The method of a module and its (T,) weights, as the method uses them."""
        method, at = method.at(str(target)), self._rule(target)
        weights = self.lines[at].at(self._depth(target))
        ruled = self.rules[at - 1].rank if at else None
        rank = self.ranks.get(target.place) if ruled is None else ruled
        return sized(method, rank), method.weights(weights)

    # the first rule that fits wins, as in PEFT's rank_pattern; --only does not shift a ramp
    def groups(self, signatures: Mapping[Target, Signature], method: Method) -> list[dict[Target, Signature]]:
        """The modules, split so that those of a group are merged alike."""
        groups: dict[Any, dict[Target, Signature]] = defaultdict(dict)
        for target, signature in signatures.items():
            at = self._rule(target)
            weights = tuple(self.lines[at].at(self._depth(target)))
            groups[at, weights, self.ranks.get(target.place), method.at(str(target))][target] = signature
        return list(groups.values())

    def notes(self, names: Sequence[str], targets: Sequence[Target]) -> list[str]:
        """Sentences about what is not the same in all modules."""
        ramps = [(n, w) for n, w in zip(names, self.weights, strict=True) if isinstance(w, Ramp)]
        follow = Counter(map(self._rule, targets)) if self.rules else Counter[int]()
        return [
            *(
                f"the weight of {printable(name)} goes from {ramp.first:g} in layer {self.layers[0]} to "
                f"{ramp.last:g} in layer {self.layers[1]}; the table shows the middle"
                for name, ramp in ramps
            ),
            *(
                f"{_modules(follow[i])} the rule for '{printable(rule.match)}'"
                for i, rule in enumerate(self.rules[:SHOWN], 1)
            ),
            *(
                [f"{_modules(sum(n for i, n in follow.items() if i > SHOWN))} the {more} other rules"]
                if (more := len(self.rules) - SHOWN) > 0
                else []
            ),
        ]

    def _rule(self, target: Target) -> int:
        """1 for the first rule …, 0 if none fits."""
        if self.search is None:
            return 0
        fitting = (self.search.first(name) for name in self._names(target))
        return min((first + 1 for first in fitting if first is not None), default=0)

    def _names(self, target: Target) -> tuple[str, ...]:
        return (str(target), *self.names.get(target, ())[1:])

    def _depth(self, target: Target) -> float:
        number, (low, high) = _layer(target), self.layers
        if number is None:
            return 0.5
        return (number - low) / (high - low) if high > low else 0.0


def _layer(target: Target) -> int | None:
    found = LAYER.search(target.path)
    return int(found[1]) if found else None


def sized(method: Method, rank: int | None) -> Method:
    """The method with this rank, in place of whatever else decided it.

    Raises:
        UsageError: it has no rank, or not this one.
    """
    if rank is None:
        return method
    fields = {field.name for field in dataclasses.fields(method)}
    if "rank" not in fields:
        raise UsageError(not_an_option("rank", name_of(method)))
    changes: dict[str, Any] = {"rank": rank, **({"energy": None} if "energy" in fields else {})}
    return dataclasses.replace(method, **changes)


def _modules(count: int) -> str:
    return "1 module follows" if count == 1 else f"{count} modules follow"
