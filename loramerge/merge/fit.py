"""A merge made to fit a budget: one rank for all modules, or each module its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from loramerge.adapters.target import Target
from loramerge.algorithms import METHODS, Method, name_of
from loramerge.algorithms.families.size import Ranked
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import FLOATS
from loramerge.errors import UsageError, say
from loramerge.formats import output
from loramerge.formats.output import Outline
from loramerge.merge.plan import Plan
from loramerge.merge.record import record, unhashed
from loramerge.request.budgets import Budget, Market, largest, share, share_bytes
from loramerge.request.schedule import Schedule, sized

Seen = tuple[tuple[Target, ...], Array]  # modules of a batch, and what a method has observed in them


def looking(method: Method, budget: Budget) -> Method:
    """The method as it observes the spectra of all modules whose rank is open.

    Raises:
        UsageError: it has no rank, or one is given.
    """
    # A budget is no option of a method: it decides ranks by module, which the schedule knows already.
    if not isinstance(method, Ranked):
        able = [name for name, cls in METHODS.items() if issubclass(cls, Ranked)]
        some = f"{', '.join(able[:4])} and others"
        raise UsageError(f"{budget} is for methods with a rank ({some}), not for {name_of(method)}.")
    for name in ("rank", "energy"):
        if (value := getattr(method, name)) is not None:
            raise UsageError(f"{budget} and {say(name, value)} both set the size: give one of them.")
    return replace(method, energy=1.0)


def file_size(plan: Plan, bare: bool) -> int:
    """Bytes of the weights file of a merge: one with its record in the header, or that of a folder."""
    if not bare:
        return output.file_size(plan.outline, bare)
    recipe = record(plan, unhashed(plan.sources.whole))
    return output.file_size(replace(plan.outline, recipe=recipe), bare)


@dataclass(frozen=True, eq=False, repr=False)
class Fitting:
    """The ways in which a merge can be given its ranks.

    Args:
        seen: σ² of every module whose rank is open.
        method, schedule: before ranks are decided.   make: the plan that they come to.
        bare: whether it will be one file.
    """

    seen: Sequence[Seen]
    method: Method
    schedule: Schedule
    make: Callable[[Method, Schedule], Plan]
    bare: bool

    def within(self, budget: Budget) -> Plan:
        """The merge within a budget that loses the least.

        Raises:
            UsageError: not even rank 1 in every module fits.
        """
        smallest = self.at(1)
        if (least := self.cost(smallest, budget)) > budget.limit:
            raise UsageError(
                f"{budget} is too little: with rank 1 in every module it would be "
                f"{least:.0f}. Give it that much, or leave modules out"
                + (f", or take a smaller {say('dtype')}." if budget.in_bytes else ".")
            )
        if smallest.outline.profile == "portable":
            return self.at(largest(self.most, lambda k: self.cost(self.at(k), budget) <= budget.limit))
        return self.shared(budget)

    def at(self, rank: int) -> Plan:
        """With one rank for all modules."""
        return self.make(sized(self.method, rank), self.schedule)

    def shared(self, budget: Budget) -> Plan:
        """With a rank for each module."""
        groups, market = self.market(budget.in_bytes)

        def given(units: Array) -> Plan:
            ranks = dict(zip(groups, units.tolist(), strict=True))
            return self.make(self.method, replace(self.schedule, ranks=ranks))

        if not budget.in_bytes:
            return given(share(market, budget.limit))
        return given(share_bytes(market, budget.limit, lambda units: self.cost(given(units), budget)))

    def cost(self, plan: Plan, budget: Budget) -> float:
        """What a merge takes of this budget."""
        if budget.in_bytes:
            return file_size(plan, self.bare)
        return sum(map(plan.outline.width, plan.outline.shapes))

    @property
    def most(self) -> int:
        """The largest number of units with any energy in a module."""
        return max((int((squares > 0).sum(axis=1).max()) for _, squares in self.seen), default=1)

    def market(self, in_bytes: bool) -> tuple[list[str], Market]:
        """Places with the energy of their units; targets that are stored together form one group."""
        outline = self.at(1).outline
        squares: dict[str, list[Array]] = defaultdict(list)
        for targets, batch in self.seen:
            for target, row in zip(targets, batch, strict=True):
                squares[target.place].append(row)
        start: dict[str, int] = defaultdict(int)
        members: dict[str, int] = defaultdict(int)
        for target in outline.shapes:
            start[target.place] = max(start[target.place], outline.width(target))
            members[target.place] += 1
        costs = unit_bytes(outline) if in_bytes else members
        gains = [_together(squares.get(path, [])) for path in start]
        count = np.array(list(start.values()))
        return list(start), Market(gains, np.array([costs[path] for path in start], float), count)


def _together(squares: Sequence[Array]) -> Array:
    """The energy of the first units of all these spectra together, then of the second units, and so on."""
    total = np.zeros(max((len(row) for row in squares), default=0))
    for row in squares:
        total[: len(row)] += row
    return total[: np.count_nonzero(total)]


def unit_bytes(outline: Outline) -> Mapping[str, int]:
    """Place -> bytes that one more unit adds to everything stored there."""
    names, sizes = outline.dialect.keys(outline.shapes), dict[tuple[str, str], int]()
    for target, size in outline.shapes.items():
        for name, shape in zip(names(target), outline.dialect.shapes(target, size, 1), strict=True):
            sizes[target.place, name] = prod(shape) * FLOATS[outline.dtype].itemsize
    totals: dict[str, int] = defaultdict(int)
    for (path, _), count in sizes.items():
        totals[path] += count
    return totals
