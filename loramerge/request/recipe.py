"""A merge as it was asked for, nothing settled yet: sources, method with its options, and the request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.original import Original
from loramerge.algorithms import Method, make
from loramerge.checkpoints.tuned import Tuned
from loramerge.errors import UsageError, printable
from loramerge.request.default import DEFAULT, Default, default
from loramerge.request.entry import Said, part
from loramerge.request.peft_call import refuse_call
from loramerge.request.request import PLAIN, Request
from loramerge.request.rules import Weight

Source = str | Path | Adapter | Tuned


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One source; `revision` is that to fetch from the Hub, and only recorded of a local file.

    `told`: the files that named it, such as the record of its bundle; these must be of one state with it.
    """

    source: Source
    weight: Weight | None = None
    revision: str | None = None
    told: Mapping[Path, Original] = field(default_factory=dict, compare=False, repr=False)


# no place to write to: a recipe can be passed on, and running it replaces nobody's file. Its paths are those
# of the current folder, so that --print-recipe makes files that work
@dataclass(frozen=True)
class Recipe:
    """Everything that decides a merge, as one value.

    Args:
        sources: as named, collections not expanded yet.
        method: a name, or a method with its options; None if nobody named one: see `default`.
        parameters: options of the method, if it is a name.
        request: the rest. Its weights are those of the sources.
    """

    sources: tuple[Ingredient, ...] = ()
    method: str | Method | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request: Request = PLAIN

    @classmethod
    def of(cls, door: str, sources: Sequence[Source], method: str | Method | None, said: Said) -> Self:
        """What was said at a door.

        Raises:
            UsageError: no list of sources, no such method, or a name that the door does not take.
        """
        named, weights = _named(sources)
        if weights is not None:
            if said.get("weights") is not None:
                raise UsageError("The weights stand in the mapping already: leave out weights=.")
            said = {**said, "weights": weights}
        fields, options = part(door, method, said)
        return cls(tuple(map(Ingredient, named)), method, options, Request(**fields))

    @property
    def chosen(self) -> Method:
        """The method with the options that were given; before it is `named`, the one that knows most options.

        Raises:
            UsageError: it has no such option, or one is out of its range.
        """
        given = {name: value for name, value in self.parameters.items() if value is not None}
        return make(DEFAULT if self.method is None else self.method, given)

    def named(self, count: int | None = None) -> tuple[Self, Default | None]:
        """The recipe with its method, and how it was come by if nobody named it.

        Args:
            count: of the sources; by default they are all here, collections expanded.

        Raises:
            UsageError: an option is not for the method that is taken by default.
        """
        if self.method is not None:
            return self, None
        given = {name for name, value in self.parameters.items() if value is not None}
        asked = self.weighed().request
        found = default(asked, len(self.sources) if count is None else count, given)
        return replace(self, method=found.name), found

    def asking(self, **fields: Any) -> Self:
        """The same recipe with other fields of its request."""
        return replace(self, request=replace(self.request, **fields))

    def weighed(self) -> Self:
        """With the weights of the sources, 1 where none is given, as the weights of the request."""
        if self.request.weights is not None or all(each.weight is None for each in self.sources):
            return self
        weights = [1.0 if each.weight is None else each.weight for each in self.sources]
        return replace(self, request=replace(self.request, weights=weights))


def _named(sources: Any) -> tuple[list[Source], list[Weight] | None]:
    """The sources in their order, and their weights where they come as {source: weight}.

    Raises:
        UsageError: they are no list, or one of them is neither a path, a name nor an adapter.
    """
    if isinstance(sources, str):
        refuse_call(sources)
    if isinstance(sources, Adapter | str | Path) or not isinstance(sources, Iterable):
        raise UsageError("Give a list of adapters to merge, even if it is only one: [source].")
    if isinstance(sources, Set):
        raise UsageError("A set has no order, and weights, heads and the report need one: give a list.")
    named = list(sources)
    if not named:
        raise UsageError("Give a list of adapters to merge.")
    for each in named:
        if not isinstance(each, Source) or (isinstance(each, str) and not each):
            raise UsageError(
                f"{printable(repr(each), 60)} is not a source: give a path, a name on the Hub, an Adapter "
                "or a Tuned."
            )
    return named, list(sources.values()) if isinstance(sources, Mapping) else None
