"""Units shared over modules: as much energy as a budget buys. Arrays only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, say
from loramerge.request.kinds import in_bytes

SLIP = 512  # bytes by which a header may shrink when a module gets one more unit


@dataclass(frozen=True, slots=True)
class Budget:
    """What a merge may cost: ranks summed over modules, or bytes of the file of weights.

    Args:
        name: the setting.   limit: what it may cost.   asked: the value as the user wrote it.
    """

    name: str
    limit: float
    asked: float | str | None = None

    @classmethod
    def of(cls, total_rank: int | None, size: float | str | None) -> Budget | None:
        """Raises UsageError: both are given."""
        if total_rank is not None and size is not None:
            both = f"{say('total_rank', total_rank)} and {say('size', size)}"
            raise UsageError(f"{both} both set the size: give one of them.")
        if size is not None:
            whole = isinstance(size, float) and size.is_integer()
            return cls("size", in_bytes(size), int(size) if whole else size)
        if total_rank is None:
            return None
        return cls("total_rank", total_rank, total_rank)

    @property
    def in_bytes(self) -> bool:
        return self.name == "size"

    def __str__(self) -> str:
        """As the user wrote it."""
        return say(self.name, self.asked)


class Market(NamedTuple):
    """What units of G groups of modules are worth, and what they cost.

    Args:
        gains: (G,) of (k,) energy of a group's first unit, its second …, never rising, above 0.
        costs: (G,) of one unit.   start: (G,) units that each has in any case.
    """

    gains: Sequence[Array]
    costs: Array
    start: Array

    def lost(self, units: Array) -> float:
        """The energy of the units that are left out."""
        return float(sum(gains[n:].sum() for gains, n in zip(self.gains, units, strict=True)))

    def total(self, units: Array) -> float:
        """What these units cost."""
        return float(units @ self.costs)

    def offers(self, units: Array) -> list[int]:
        """The groups that have another unit to sell, the most energy for its cost first."""
        open_ = [g for g, gains in enumerate(self.gains) if units[g] < len(gains)]
        return sorted(open_, key=lambda g: (-self.gains[g][units[g]] / self.costs[g], g))


def share(market: Market, limit: float) -> Array:
    """(G,) units: the most energy for its cost first, as long as it can be paid.

    The best there is where all units cost the same; else the best is ahead by less than one unit.

    >>> market = Market([np.array([9.0, 4.0]), np.array([5.0, 1.0])], np.ones(2), np.array([1, 1]))
    >>> share(market, 3)
    array([2, 1])
    """
    units = market.start.copy()
    room = limit - market.total(units)
    group = np.concatenate([np.full(max(len(g) - s, 0), i) for i, (g, s) in enumerate(_pairs(market))])
    gain = np.concatenate([gains[start:] for gains, start in _pairs(market)])
    for g in group[np.argsort(-gain / market.costs[group], kind="stable")]:
        if market.costs[g] <= room:
            units[g] += 1
            room -= market.costs[g]
    return units


def _pairs(market: Market) -> list[tuple[Array, int]]:
    return list(zip(market.gains, market.start.tolist(), strict=True))


def share_bytes(market: Market, limit: float, weigh: Callable[[Array], float]) -> Array:
    """(G,) units whose file is not above `limit`; `weigh` gives its bytes: their costs, and a header."""
    room = limit - weigh(market.start) + market.total(market.start)
    while (over := weigh(units := share(market, room)) - limit) > 0:
        room -= over
    while (more := _one_more(market, units, limit, weigh)) is not None:
        units = more
    return units


def _one_more(market: Market, units: Array, limit: float, weigh: Callable[[Array], float]) -> Array | None:
    """The units and another that can still be paid, because headers are no sum of costs."""
    room = limit - weigh(units) + SLIP
    for group in market.offers(units):
        if market.costs[group] <= room:
            more = units.copy()
            more[group] += 1
            if weigh(more) <= limit:
                return more
    return None


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, if all below it do; 1 if none does.

    >>> largest(10, lambda n: n * n < 30)
    5
    """
    low, high = 1, max(most, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
