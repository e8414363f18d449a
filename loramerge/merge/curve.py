"""How much a merge would lose at other sizes: the curve of error against size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loramerge.algorithms.families.size import Ranked
from loramerge.merge.fit import Fitting
from loramerge.merge.plan import Plan
from loramerge.merge.planner import observer
from loramerge.request.budgets import Budget


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a merge: its ranks together and the largest, bytes of the file, share of ‖ΔW‖² lost."""

    total_rank: int
    rank: int
    bytes: int
    energy_lost: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "total_rank": self.total_rank,
            "rank": self.rank,
            "bytes": self.bytes,
            "energy_lost": self.energy_lost,
        }


def curve(plan: Plan, bare: bool) -> list[Point]:
    """What the best merge of each size would lose, from one unit a module to as many as there are.

    This reads all factors. It covers the modules to which no rule gives a rank, and shows the best merge of
    each size; LEGO, for example, loses more. A method without a rank has no curve.
    """
    if not isinstance(plan.method, Ranked) or not plan.method.foreseen:
        return []
    schedule = replace(plan.schedule, ranks={})
    seen = observer(plan.request)(replace(plan.method, rank=None, energy=1.0), plan.work, schedule)
    fitting = Fitting(seen, plan.method, schedule, plan.again, bare)
    if not seen:  # rules have given every module its rank
        return []
    at = _shared(fitting) if plan.outline.profile == "compact" else fitting.at
    return [_point(fitting, at(rank)) for rank in _steps(fitting.most)]


def _shared(fitting: Fitting) -> Callable[[int], Plan]:
    """The plan with as many units in all as this common rank gives, shared among the modules."""

    def at(rank: int) -> Plan:
        total = Budget("total_rank", 0)
        return fitting.shared(replace(total, limit=fitting.cost(fitting.at(rank), total)))

    return at


def _steps(most: int) -> list[int]:
    """1, 2, 4 … and the last."""
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]


def _point(fitting: Fitting, plan: Plan) -> Point:
    whole = lost = 0.0
    for targets, batch in fitting.seen:
        for target, row in zip(targets, batch, strict=True):
            whole += float(row.sum())
            lost += float(row[plan.outline.width(target) :].sum())
    total = Budget("total_rank", 0)
    cost, size = fitting.cost(plan, total), fitting.cost(plan, Budget("size", 0))
    return Point(int(cost), plan.outline.largest, int(size), lost / whole if whole else 0.0)
