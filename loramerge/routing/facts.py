"""What a bundle is found to be while it is written: what others do without it must not read every number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from loramerge.routing.bank import Bank
from loramerge.routing.gates.arrow import FAR, Arrow, strays
from loramerge.routing.gates.gate import Gate


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one module.

    Args:
        weights: (E,) of the experts where the gate gives every token the same; else None.
        directions: how many prototypes there are.   astray: how many of them PEFT's iteration misses.
    """

    weights: tuple[float, ...] | None
    directions: int = 0
    astray: int = 0

    @classmethod
    def of(cls, gate: Gate, bank: Bank) -> Self:
        weights = _steady(gate, bank)
        if not isinstance(gate, Arrow):
            return cls(weights)
        here = sum(rank > 0 for rank in bank.layout.ranks)
        return cls(weights, here, int((strays(bank) > FAR).sum()))


def together(modules: Sequence[Facts]) -> dict[str, Any]:
    """What the record says of all modules; None where there is nothing to say."""
    weights = {each.weights for each in modules}
    common = list(found) if len(weights) == 1 and (found := next(iter(weights))) is not None else None
    count = sum(each.directions for each in modules)
    said = {"count": count, "astray": sum(each.astray for each in modules)} if count else None
    return {"weights": common, "prototypes": said}


def _steady(gate: Gate, bank: Bank) -> tuple[float, ...] | None:
    """The weight of each expert, where it is the same for every token and every unit of it."""
    found = gate.constant(bank.layout, bank.tensors)
    if found is None or gate.by == "output":
        return None
    if gate.by == "expert":
        return tuple(map(float, found))
    units = [found[bank.layout.of(e)] for e in range(bank.layout.experts)]
    if any(np.ptp(each) > 0 for each in units if len(each)):
        return None
    return tuple(float(each[0]) if len(each) else 0.0 for each in units)
