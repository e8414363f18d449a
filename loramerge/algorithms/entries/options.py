"""What rules share that trim by size, drop by chance, or let the sources vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.parts import agree, drop, elect, mean, trim, turn
from loramerge.algorithms.entries.stack import Stack
from loramerge.algorithms.method import Interval, option
from loramerge.arrays.backend import Array

SHARE = Interval(low=0, high=1, low_open=True)


@dataclass(frozen=True, kw_only=True)
class Trimming(Elementwise):
    """A rule that keeps entries by size."""

    density: float = option(0.2, "The share of entries of a source that is kept.", SHARE)
    scope: Literal["module", "adapter"] = option(
        "module", "Whether entries are compared within a module or over the whole adapter."
    )

    def keeps(self, count: int) -> tuple[int, int] | None:
        return None if self.density == 1 else (0, share_of(count, self.density))

    @property
    def keeps_one(self) -> bool:
        """Whether one adapter alone keeps all that it is: its core is diagonal, so half of that is enough."""
        return self.density == 1 or (self.space == "core" and self.scope == "module" and self.density >= 0.5)

    def trimmed(self, entries: Stack) -> Array:
        """(T, M, a, b) with zeros where entries are not kept."""
        if entries.limits is None:
            return entries.values
        low, high = (each[:, :, None, None] for each in (entries.limits.low, entries.limits.high))
        return trim(entries.values, self.ranking(entries.values), low, high)


def share_of(count: int, density: float) -> int:
    """How many of `count` a density means: rounded down, but one at least."""
    return max(int(density * count), min(count, 1))


@dataclass(frozen=True, kw_only=True)
class Dropping(Elementwise):
    """A rule that keeps entries by chance."""

    density: float = option(0.5, "The share of entries that is kept by chance.", SHARE)
    rescale: Literal["density", "l1", "none"] = option(
        "density",
        "How kept entries make up for dropped ones: divided by their probability, or scaled so that the sum "
        "of sizes is as before.",
    )
    seed: int = option(0, "Another seed keeps other entries.", Interval(low=0))

    def density_of(self, entries: Stack) -> float | Array:
        """The probability of every entry."""
        return self.density

    def dropped(self, entries: Stack) -> Array:
        """(T, M, a, b) with zeros where chance did not keep an entry."""
        if self.density == 1:
            return entries.values
        kept = drop(
            entries.values, entries.chance(), self.density_of(entries), rescale=self.rescale == "density"
        )
        if entries.facts is not None:
            before, after = np.split(entries.facts, 2)  # (T, M) each
            gain = np.divide(before, after, out=np.zeros_like(before), where=after > 0)
            kept *= gain[:, :, None, None].astype(kept.dtype)
        return kept

    def measure(self, entries: Stack) -> Array | None:
        """Σ|x| of every source before and after (2T, M), if they are to be made equal."""
        if self.rescale != "l1" or self.density == 1:
            return None
        pair = entries.values, self.dropped(entries)
        return np.concatenate([np.abs(each).sum(axis=(2, 3), dtype=float) for each in pair])


@dataclass(frozen=True, kw_only=True)
class Voting(Elementwise):
    """A rule in which the sources elect a sign for every entry."""

    election: Literal["weighted", "raw", "count", "none"] = option(
        "weighted",
        "What is added up to elect a sign: weighted entries, raw ones, one vote of each source; none: no "
        "election.",
    )
    divisor: Literal["weight", "count", "none"] = option(
        "weight", "What the sum of those that agree is divided by: their weights, their number, or nothing."
    )

    def fused(self, x: Array, weights: Array) -> Array:
        """The merged entries (…): those that agree with the elected sign."""
        if self.election == "none":
            return mean(x, (x != 0).astype(x.dtype), weights, self.divisor)
        if self.election == "weighted":
            return mean(x, agree(turn(x, weights), elect(x, weights)), weights, self.divisor)
        votes = np.sign(x) if self.election == "count" else x
        return mean(x, agree(x, elect(votes, np.ones(len(x)))), weights, self.divisor)

    @property
    def vote_weights(self) -> Literal["additive", "consensus"]:
        """What copies of one adapter come to."""
        return "additive" if self.divisor == "none" else "consensus"
