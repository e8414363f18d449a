"""Fields taken out of JSON or YAML that people or strangers wrote: of the right type, or a sentence."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from loramerge.errors import LoramergeError, printable
from loramerge.request.field import Field
from loramerge.request.kinds import Unfit
from loramerge.request.rules import Ramp, Rule, Weight

WORDS = {"str": "text", "list": "a list", "dict": "a table", "bool": "true or false", "int": "a whole number"}
RAMP, RULE = ("from", "to"), ("match", "weights", "rank")


@dataclass(frozen=True, slots=True)
class Reader:
    """Takes fields out of tables.

    Args:
        wrong: how its sentences begin, such as ``recipe.yaml is not a recipe``.   error: what it raises.
    """

    wrong: str
    error: type[LoramergeError]

    def fail(self, how: str) -> NoReturn:
        raise self.error(f"{printable(self.wrong, 1000)}: {how}.")

    def keys(self, values: Mapping[Any, Any], known: Collection[str], where: str) -> None:
        """Refuse, by name, what is not known."""
        for key in values:
            if key not in known:
                self.fail(f"{where} has the key {_shown(key)}; there are {', '.join(known)}")

    def typed(self, values: Mapping[str, Any], field: str, kind: type) -> Any:
        value = values.get(field)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(f"{field} is {_shown(value)}, not {WORDS[kind.__name__]}")
        return value

    def table(self, values: Mapping[str, Any], field: str) -> dict[str, Any]:
        found: dict[str, Any] = self.typed(values, field, dict)
        return found

    def number(self, value: Any, field: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            self.fail(f"{field} is {_shown(value)}, not a number")
        if not math.isfinite(value):
            self.fail(f"{field} is {value}, not a finite number")
        return float(value)

    def many(self, values: Mapping[str, Any], field: str) -> list[Any]:
        found: list[Any] = self.typed(values, field, list) if field in values else []
        return found

    def field(self, field: Field, value: Any, key: str) -> Any:
        """A field of a request, under the key that it has here."""
        try:
            rules = field.name == "rules"
            return tuple(map(self.rule, self.many({key: value}, key))) if rules else field.kind.fit(value)
        except Unfit as error:
            self.fail(f"{key} is {_shown(value)}, which {error}")

    def weight(self, value: Any, field: str = "weight") -> Weight:
        """A number, or a ramp ``{from: 0.2, to: 0.8}`` over depth."""
        if not isinstance(value, dict):
            return self.number(value, field)
        self.keys(value, RAMP, f"the ramp of {field}")
        return Ramp(*(self.number(value.get(end), f"{end} of {field}") for end in RAMP))

    def rule(self, value: Any) -> Rule:
        """``{match: mlp, weights: [1, 0], rank: 8}``"""
        if not isinstance(value, dict):
            self.fail(f"a rule in modules is {_shown(value)}, not a table")
        self.keys(value, RULE, "a rule in modules")
        weights = None if value.get("weights") is None else self.typed(value, "weights", list)
        rank = None if value.get("rank") is None else self.typed(value, "rank", int)
        given = None if weights is None else tuple(self.weight(weight, "weights") for weight in weights)
        return Rule(self.typed(value, "match", str), given, rank)


def _shown(value: Any) -> str:
    """A value as the user wrote it, if it is short: the text of a nest of lists may be endless."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = len(parts) > 9 or any(isinstance(part, dict | list) for part in parts)
    return f"a {type(value).__name__} of {len(parts)}" if nested else printable(repr(value), 60)
