"""A finding: one thing that a program does wrong with an adapter, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loramerge.charts.facts import fields_html
from loramerge.errors import printable

Effect = Literal["rejects", "scales", "ignores", "unknown"]
CLOSE = 1e-3  # an alpha may be stored in bfloat16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a consumer does wrong with an adapter.

    Args:
        consumer: its name in `CONSUMERS`.
        effect: ``rejects`` it, ``scales`` it wrongly, or ``ignores`` a part of it. The latter two it does
            without saying so. ``unknown``: nobody can tell from these files what it does.
        sentence: what happens, and why.   mend: what helps, in words.
        command: what to paste. It mends this finding and all others; it converts names that the consumer does
            not read. Empty if no single command does.
    """

    consumer: str
    effect: Effect
    sentence: str
    mend: str = ""
    command: str = ""

    def to_dict(self) -> dict[str, str]:
        said = {"effect": self.effect, "sentence": self.sentence}
        return said | {"mend": self.mend, "command": self.command}

    def _repr_html_(self) -> str:
        return fields_html(self)


def loads(found: Sequence[Finding]) -> bool | None:
    """Whether a program loads an adapter as it is meant, by what it finds; None if that cannot be told."""
    if any(each.effect != "unknown" for each in found):
        return False
    return None if found else True


def strength(factors: Mapping[str, float]) -> str:
    """Words for factors that are not 1.

    >>> strength({"q": 0.5, "v": 0.5}), strength({"q": 4.0, "v": 0.5})
    ('2 times too weak', 'from 2 times too weak (v) to 4 times too strong (q)')
    """
    ordered = sorted(factors, key=lambda place: factors[place])
    least, most = ordered[0], ordered[-1]
    if math.isclose(factors[least], factors[most], rel_tol=CLOSE):
        return _times(factors[least])
    ends = (f"{_times(factors[place])} ({printable(place, 80)})" for place in (least, most))
    return "from {} to {}".format(*ends)


def _times(factor: float) -> str:
    if factor <= 0:
        return "not at all" if factor == 0 else f"{-factor:.3g} times as strong, with the wrong sign"
    return f"{1 / factor:.3g} times too weak" if factor < 1 else f"{factor:.3g} times too strong"
