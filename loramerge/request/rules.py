"""Weights that change with depth, and rules for modules by name, as they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loramerge.charts.facts import fields_html
from loramerge.errors import printable
from loramerge.request.kinds import Unfit, factor


@dataclass(frozen=True, slots=True)
class Ramp:
    """A weight that changes evenly with depth: `first` in the first layer, `last` in the last.

    A module without a layer number, such as a head, takes the middle.
    """

    first: float
    last: float

    def _repr_html_(self) -> str:
        return fields_html(self)

    def to_plain(self) -> dict[str, float]:
        return {"from": float(self.first), "to": float(self.last)}


Weight = float | Ramp
Scale = float | str  # a number, or the name of a policy
UNBOUNDED = "unbounded cosine"  # what `cosine` was at first; only records have it


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules whose name holds a `match` take these weights, this rank, or both; the first rule that fits."""

    match: str
    weights: tuple[Weight, ...] | None = None
    rank: int | None = None

    def _repr_html_(self) -> str:
        return fields_html(self)

    def to_plain(self) -> dict[str, Any]:
        weights = None if self.weights is None else [plain(weight) for weight in self.weights]
        values = {"match": self.match, "weights": weights, "rank": self.rank}
        return {name: value for name, value in values.items() if value is not None}


def plain(weight: Weight) -> float | dict[str, float]:
    """A weight as JSON and YAML hold it."""
    return weight.to_plain() if isinstance(weight, Ramp) else float(weight)


def weight(value: Any) -> Weight:
    """A number or a ramp. Raises Unfit."""
    if isinstance(value, Ramp):
        return Ramp(weight(value.first), weight(value.last))  # type: ignore[arg-type]
    try:
        return factor(value)
    except Unfit as error:
        raise Unfit(f"has the weight {printable(value, 60)}, which {error}") from None


def rule(value: Any) -> Rule:
    """A rule. Raises Unfit."""
    if not isinstance(value, Rule):
        raise Unfit(f"has {printable(repr(value), 60)}, which is not a Rule: give Rule(match, weights, rank)")
    return value
