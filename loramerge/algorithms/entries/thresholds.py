"""The exact k-th largest of more values than fit in memory, in a few passes.

A sample brackets it. A pass counts the values above the bracket and collects those inside. If these are too
many, it counts them in bins, and the right bin is the next bracket. Every pass computes the values again with
the same arithmetic, so the answer is one of them, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loramerge.arrays.backend import Array

BINS = 4096
COLLECT = 1 << 21  # values: 16 MB of float64


@dataclass(frozen=True, slots=True)
class Bracket:
    """A search for the `rank`-th largest value (1: the largest), believed to be in low <= it < high."""

    rank: int
    low: float = 0.0
    high: float = np.inf

    @property
    def edges(self) -> Array:
        """(BINS + 1,) of bins that are even in the order of floats; float32 as long as these differ."""
        low, high = (int(np.float64(bound).view(np.int64)) for bound in (self.low, self.high))
        steps = low + (np.arange(BINS + 1) * ((high - low) / BINS)).astype(np.int64)
        steps = np.minimum(steps, high)
        coarse = steps & ~np.int64((1 << 29) - 1)  # float32 has 29 bits less
        steps = coarse if (np.diff(coarse) > 0).all() else steps
        steps[0], steps[-1] = low, high
        return np.maximum.accumulate(steps).view(np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """What one pass has found.

    Args:
        above: how many values are at or above the bracket.   bins: (BINS,) how many are in each of its bins.
        values: all inside, if they were few.   least, most: of those inside, (inf, -1) if there are none.
    """

    above: int
    bins: Array
    values: Array | None
    least: float
    most: float


def look(brackets: Sequence[Bracket], pieces: Iterable[Array], collect: int = COLLECT) -> list[Seen]:
    """One pass over values >= 0 that come in pieces."""
    counts = [_Count(bracket, collect) for bracket in brackets]
    for piece in pieces:
        for count in counts:
            count.add(piece)
    return [count.seen for count in counts]


class _Count:
    """What has been seen of one bracket so far."""

    def __init__(self, bracket: Bracket, collect: int) -> None:
        self.bracket, self.edges, self.collect = bracket, bracket.edges, collect
        self.above, self.bins = 0, np.zeros(BINS, np.int64)
        self.least, self.most = np.inf, -1.0
        self.kept: list[Array] | None = []
        self.inside = 0

    def add(self, piece: Array) -> None:
        inside = piece >= _like(piece, self.bracket.low)
        if self.bracket.high < np.inf:
            over = piece >= _like(piece, self.bracket.high)
            self.above += int(np.count_nonzero(over))
            inside ^= over
        found = piece[inside]
        self.inside += len(found)
        if self.kept is not None and self.inside <= self.collect:
            self.kept.append(found)
            return
        for values in (*(self.kept or ()), found):
            self._bin(values)
        self.kept = None

    def _bin(self, values: Array) -> None:
        at = np.searchsorted(self.edges, values, side="right") - 1
        self.bins += np.bincount(np.minimum(at, BINS - 1), minlength=BINS)
        if len(values):
            self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    @property
    def seen(self) -> Seen:
        values = None if self.kept is None else np.concatenate([np.zeros(0), *self.kept])
        return Seen(self.above, self.bins, values, self.least, self.most)


def _like(piece: Array, bound: float) -> np.floating:
    """The bound in the type of the values where it fits, so that nothing is converted."""
    with np.errstate(over="ignore"):  # a bound of a module in float64
        own = piece.dtype.type(bound)
    return own if float(own) == bound else np.float64(bound)


def narrowed(bracket: Bracket, seen: Seen) -> Bracket | float:
    """The answer, or a narrower bracket."""
    if bracket.rank <= seen.above:
        return replace(bracket, low=bracket.high, high=np.inf)
    rank = bracket.rank - seen.above
    if seen.values is not None:
        if rank > len(seen.values):
            return replace(bracket, low=0.0, high=bracket.low)
        return float(np.partition(seen.values, len(seen.values) - rank)[len(seen.values) - rank])
    if seen.least == seen.most and rank <= seen.bins.sum():
        return seen.least
    down = np.cumsum(seen.bins[::-1])
    if rank > down[-1]:
        return replace(bracket, low=0.0, high=bracket.low)
    at = BINS - 1 - int(np.searchsorted(down, rank))
    edges = bracket.edges
    low, high = float(edges[at]), float(edges[at + 1])
    return low if np.nextafter(low, np.inf) >= high else replace(bracket, low=low, high=high)


def guessed(rank: int, total: float, sample: Array, shares: Array) -> Bracket:
    """A bracket for the `rank`-th largest of `total` values, from some of them.

    Args:
        sample: (n,) values.   shares: (n,) how many values each stands for.
    """
    order = np.argsort(-sample, kind="stable")
    places = np.cumsum(shares[order])  # of `total`
    part = min(rank / total, 1.0)
    effective = shares.sum() ** 2 / max((shares**2).sum(), 1.0)
    margin = total * (5 * np.sqrt(part * (1 - part) / effective) + 4 / effective)
    first = int(np.searchsorted(places, rank - margin)) - 1
    last = int(np.searchsorted(places, rank + margin))
    with np.errstate(over="ignore"):
        ordered = sample[order].astype(np.float32).astype(float)
    high = float(ordered[first]) if first >= 0 else np.inf
    low = float(ordered[last]) if last < len(ordered) else 0.0
    return Bracket(rank, low, high) if low < high else Bracket(rank, low, np.inf)


def largest(
    ranks: Sequence[int], total: int, sample: Array, pieces: Callable[[], Iterable[Array]]
) -> list[float]:
    """The `ranks`-th largest of `total` values >= 0, exactly.

    >>> values = np.random.default_rng(0).random(1000)
    >>> largest([1, 200], 1000, values[:64], lambda: [values]) == np.sort(values)[[-1, -200]].tolist()
    True
    """
    shares = np.full(len(sample), total / max(len(sample), 1))
    open_: list[Bracket | float] = [guessed(rank, total, sample, shares) for rank in ranks]
    while any(isinstance(each, Bracket) for each in open_):
        wanted = [each for each in open_ if isinstance(each, Bracket)]
        answers = iter([narrowed(*pair) for pair in zip(wanted, look(wanted, pieces()), strict=True)])
        open_ = [next(answers) if isinstance(each, Bracket) else each for each in open_]
    return [float(each) for each in open_ if not isinstance(each, Bracket)]
