"""Elementwise rules as parts of other methods: which one, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from loramerge.algorithms.elementwise import Elementwise
from loramerge.algorithms.method import Interval, option
from loramerge.algorithms.span import Span
from loramerge.algorithms.table import METHODS
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Ruled(Span):
    """A method that leaves it to an elementwise rule how entries of small matrices are merged."""

    rule: Literal["ties", "dare", "dare_ties", "magnitude", "della", "breadcrumbs", "sce", "emr"] = option(
        "ties", "How entries are merged."
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
        cls = cast(type[Elementwise], METHODS[self.rule])
        options: dict[str, Any] = {"space": "core"}
        if self.density is not None:
            options["density"] = self.density
        if self.seed:
            options["seed"] = self.seed
        if missing := [name for name in options if name not in cls.names()]:
            raise UsageError(f"{' and '.join(missing)} is nothing that rule={self.rule} has: leave it out.")
        return cls(**options)
