"""The table of gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.errors import UsageError, alike, printable, say
from loramerge.routing.gates.arrow import Arrow
from loramerge.routing.gates.gate import DataFree, Gate
from loramerge.routing.gates.lag import Lag
from loramerge.routing.gates.linear import Linear
from loramerge.routing.gates.outchan import Outchan
from loramerge.routing.gates.rank_absproj import RankAbsproj
from loramerge.routing.gates.rank_self import RankSelf
from loramerge.routing.gates.rank_sigmoid import RankSigmoid
from loramerge.routing.gates.seqr import Seqr
from loramerge.routing.gates.smile import Smile
from loramerge.routing.gates.spectr import Spectr
from loramerge.routing.gates.static import Static
from loramerge.routing.gates.table import Table
from loramerge.routing.gates.task import Task

GATES: Mapping[str, type[Gate]] = {
    "arrow": Arrow,
    "spectr": Spectr,
    "seqr": Seqr,
    "lag": Lag,
    "smile": Smile,
    "rank-self": RankSelf,
    "rank-absproj": RankAbsproj,
    "static": Static,
    "table": Table,
    "task": Task,
    "linear": Linear,
    "rank-sigmoid": RankSigmoid,
    "outchan": Outchan,
}


def name_of(gate: Gate) -> str:
    """The name of a gate in the table."""
    return next(name for name, cls in GATES.items() if type(gate) is cls)


def free() -> tuple[str, ...]:
    """Names of the gates that need nothing but adapters."""
    return tuple(name for name, cls in GATES.items() if issubclass(cls, DataFree))


def make(gate: str | Gate, options: Mapping[str, Any]) -> Gate:
    """A gate by its name, with options.

    Raises:
        UsageError: there is no such gate, or it has no such option.
    """
    if isinstance(gate, Gate):
        if options:
            raise UsageError(f"{next(iter(options))} is given beside a gate that has its options already.")
        return gate
    if gate not in GATES:
        near = alike(str(gate), GATES)
        hint = f" Did you mean {near[0]}?" if near else ""
        said = say("gate", gate) if isinstance(gate, str) else f"gate={gate!r}"
        raise UsageError(f"{printable(said, 60)} is not one of {', '.join(GATES)}.{hint}")
    cls = GATES[gate]
    for name in options:
        if name not in cls.names():
            owners = ", ".join(other for other, each in GATES.items() if name in each.names())
            raise UsageError(f"{say(name)} is not an option of {gate}; it is one of {owners or 'no gate'}.")
    return cls(**options)
