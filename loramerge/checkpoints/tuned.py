"""A tuned model and its base, in the place of an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loramerge.charts.facts import fields_html
from loramerge.errors import UsageError, printable, say

RANK = 32  # if no size is asked for


@dataclass(frozen=True, slots=True)
class Tuned:
    """A tuned model in the place of an adapter: what it adds to its base, at a rank.

    Args:
        tuned, base: as for `extract`.   rank: units in every module.

    Raises:
        UsageError: the rank is no whole number from 1 on.
    """

    tuned: str | Path
    base: str | Path
    rank: int = RANK

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UsageError(f"{say('rank', self.rank)} of a tuned model is not a whole number from 1 on.")

    def _repr_html_(self) -> str:
        return fields_html(self)

    def __str__(self) -> str:
        return printable(Path(self.tuned).name or self.tuned)
