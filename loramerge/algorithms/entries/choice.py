"""The rule by which another method merges entries: one of the table with its options, or the plain sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loramerge.algorithms.entries import cores
from loramerge.algorithms.entries.options import SHARE
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.votes import total
from loramerge.algorithms.families.span import Spectral
from loramerge.algorithms.method import Interval, option
from loramerge.algorithms.table import RULES
from loramerge.errors import UsageError

SUM = Rule(total, "additive", linear=True)
NAMES = ("sum", *RULES)


@dataclass(frozen=True, kw_only=True)
class ByRule(Spectral):
    """A method that merges the entries of small matrices by a rule of your choice."""

    rule: str = option(
        "ties", "How entries are merged: added up, or by the method of that name.", choices=NAMES
    )
    density: float | None = option(
        None, "The share of entries that the rule keeps [default: the rule's own].", SHARE
    )
    seed: int = option(0, "Of rules that keep entries by chance.", Interval(low=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen()

    def squares(self, sources: int) -> int:
        return cores.held(sources)

    def chosen(self) -> Rule:
        """The rule with its options.

        Raises:
            UsageError: the rule has no such option.
        """
        return chosen(self.rule, self.density, self.seed)


def chosen(name: str, density: float | None, seed: int) -> Rule:
    """The rule of that name; a density or seed that is not given is the default of the rule.

    Raises:
        UsageError: the rule has no such option.

    >>> chosen("ties", 0.3, 0).trim.density
    0.3
    """
    options: dict[str, Any] = {"density": density, "seed": seed or None}
    options = {option: value for option, value in options.items() if value is not None}
    has = RULES[name].names() if name in RULES else []
    if missing := [option for option in options if option not in has]:
        raise UsageError(f"rule={name} has no {' and no '.join(missing)}: leave it out.")
    return RULES[name](**options).rule if name in RULES else SUM
