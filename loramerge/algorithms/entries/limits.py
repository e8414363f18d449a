"""The sizes between which entries are kept, and the search for those of a whole adapter.

The search looks at all modules a few times. First, a sample of every module brackets the limits. Then each
look counts more finely inside the brackets, until one value is left. The reports of modules are added up,
so no module waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loramerge.algorithms.entries.thresholds import Bracket, Seen, guessed, look, narrowed
from loramerge.arrays.backend import Array

SAMPLE = 1 << 11  # of each source in each module

Counts = Callable[[int], tuple[int, int]]


@dataclass(frozen=True, eq=False, slots=True)
class Limits:
    """Entries are kept where low <= size < high: (S, M) each, S = T or 1 for all together."""

    low: Array
    high: Array


@dataclass(frozen=True, eq=False, slots=True)
class Ranked:
    """The values of one ranking in one module or batch.

    Args:
        which: the source, or 0 for all together.   count: how many values there are.
        sample: (n,) some of them.   pieces: all of them, again and again.
    """

    which: int
    count: int
    sample: Callable[[], Array]
    pieces: Callable[[], Iterable[Array]]


@dataclass(frozen=True, slots=True)
class Search:
    """What is known of the limits: for each ranking, the least size that is kept, and the first that is not.

    Args:
        found: (which, low, high) with brackets where a limit is not settled; None before the sample.
    """

    found: tuple[tuple[int, Bracket | float, Bracket | float], ...] | None = None

    @property
    def done(self) -> bool:
        return self.found is not None and not self._open

    @property
    def _open(self) -> list[tuple[int, Bracket]]:
        rows = self.found or ()
        return [(which, each) for which, *pair in rows for each in pair if isinstance(each, Bracket)]

    def observe(self, rankings: Iterable[Ranked]) -> Array:
        """One row for each ranking or open bracket, NaN at the end."""
        rows: list[Array] = []
        for ranked in rankings:
            if self.found is None:
                rows.append(np.concatenate([[ranked.which, ranked.count], ranked.sample()[:SAMPLE]]))
                continue
            own = [(at, each) for at, (which, each) in enumerate(self._open) if which == ranked.which]
            found = look([each for _, each in own], ranked.pieces(), collect=0) if own else []
            for (at, _), seen in zip(own, found, strict=True):
                rows.append(np.concatenate([[at, seen.above, seen.least, seen.most], seen.bins]))
        table = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        return table

    def next(self, observed: Sequence[Array], counts: Counts) -> Search:
        """The search after a look at all modules.

        Args:
            counts: of so many values, how many of the largest are left out and how many of the next kept.
        """
        rows = [row[~np.isnan(row)] for table in observed for row in table]
        if self.found is None:
            return Search(
                tuple(_bracketed(rows, which, counts) for which in sorted({int(r[0]) for r in rows}))
            )
        answers = iter([_answered(each, at, rows) for at, (_, each) in enumerate(self._open)])
        settled = [
            (which, *(next(answers) if isinstance(each, Bracket) else each for each in pair))
            for which, *pair in self.found
        ]
        return replace(self, found=tuple(settled))  # type: ignore[arg-type]

    def limits(self, which: Sequence[int], modules: int) -> Limits:
        """The limits (S, M) of these rankings; those never seen keep everything."""
        known = {each: pair for each, *pair in self.found or ()}
        pairs = np.array([known.get(each, (0.0, np.inf)) for each in which], float).reshape(-1, 2)
        return Limits(*np.repeat(pairs.T[:, :, None], modules, axis=2))


def _bracketed(rows: list[Array], which: int, counts: Counts) -> tuple[int, Bracket | float, Bracket | float]:
    own = [row for row in rows if int(row[0]) == which]
    total = sum(int(row[1]) for row in own)
    sample = np.concatenate([row[2:] for row in own])
    shares = np.concatenate([np.full(len(row) - 2, row[1] / max(len(row) - 2, 1)) for row in own])
    skipped, kept = counts(total)
    high = guessed(skipped, total, sample, shares) if skipped else np.inf
    return which, guessed(skipped + kept, total, sample, shares), high


def _answered(bracket: Bracket, at: int, rows: list[Array]) -> Bracket | float:
    own = [row for row in rows if int(row[0]) == at]
    above, least, most = (int(sum(r[1] for r in own)), min(r[2] for r in own), max(r[3] for r in own))
    bins = np.sum([row[4:] for row in own], axis=0).astype(np.int64)
    return narrowed(bracket, Seen(above, bins, None, least, most))
