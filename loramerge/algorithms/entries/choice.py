"""Elementwise rules as parts of other methods: which one, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.families.span import Span
from loramerge.algorithms.method import Interval, option
from loramerge.algorithms.table import METHODS
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Ruled(Span):
    """A method that leaves it to an elementwise rule how entries of small matrices are merged."""

    rule: Literal["sum", "ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs", "sce", "emr"] = (
        option("ties", "How entries are merged: added up, or by the method of that name.")
    )
    density: float | None = option(
        None,
        "The share of entries that the rule keeps [default: the rule's own].",
        Interval(0, 1, low_open=True),
    )
    seed: int = option(0, "Of rules that keep entries by chance.", Interval(low=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen()

    def chosen(self) -> Elementwise:
        """The rule with its options.

        Raises:
            UsageError: it does not have them.
        """
        given: dict[str, Any] = {"density": self.density, "seed": self.seed or None}
        given = {name: value for name, value in given.items() if value is not None}
        plain = self.rule == "sum"
        cls = cast(type[Elementwise], METHODS["magnitude" if plain else self.rule])
        if missing := [name for name in given if plain or name not in cls.names()]:
            raise UsageError(f"rule={self.rule} has no {' and no '.join(missing)}: leave it out.")
        return cls(space="core", **({"density": 1.0} if plain else given))
