"""A rule: how the entries of T sources at one place become one. It is a plain value, made of small parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

import numpy as np

from loramerge.algorithms.entries.block import Block
from loramerge.algorithms.entries.limits import Limits
from loramerge.algorithms.entries.sparsity import Drop, Trim
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array, namespace

Blocks = Callable[[], Iterable[Block]]  # the parts of whole matrices, again and again


@dataclass(frozen=True, eq=False, slots=True)
class Facts:
    """What a rule must know of whole matrices before it merges a part of them.

    Args:
        limits: the sizes between which entries are kept.
        lengths: (2, T, M) Σ|x| before and after entries are dropped.
        sums: (F, M) what the rule has measured.
    """

    limits: Limits | None = None
    lengths: Array | None = None
    sums: Array | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Entries are trimmed by size, then dropped by chance, then measured, then merged.

    Args:
        merge: the merged entries (M, a, b) of a block in which the others are zero.
        copies: what `merge` makes of N copies of one source: ``additive``: N times as much; ``consensus``:
            the same as of one.
        common: what a factor of all weights does to what `merge` makes, as in `Traits`.
        linear: `merge` is the weighted sum.
        trim, drop: which entries are kept; None: all.
        measure: (F, M) sums over whole matrices that `merge` needs; they add up over tiles.
        vanishes: all entries may become 0 although sources are not.
    """

    merge: Callable[[Block], Array]
    copies: Literal["additive", "consensus"]
    common: Literal["times", "same"] = "times"
    linear: bool = False
    trim: Trim | None = None
    drop: Drop | None = None
    measure: Callable[[Block], Array] | None = None
    vanishes: bool = False

    @property
    def trims(self) -> bool:
        return self.trim is not None and not self.trim.idle

    @property
    def drops(self) -> bool:
        return self.drop is not None and not self.drop.idle

    @property
    def by_rows(self) -> bool:
        """Whether whole rows must be seen."""
        return self.drop is not None and self.drop.spread > 0

    @property
    def together(self) -> bool:
        """Whether there is one ranking for all sources."""
        return self.trim is not None and self.trim.together

    @property
    def trims_alone(self) -> bool:
        """Whether each source has a ranking of its own, and nothing else is done with its entries."""
        return self.trims and not self.together and not self.drops and self.measure is None

    def traits(self, family: str, *, diagonal: bool = False, whole: bool = True) -> Traits:
        """The traits of a method that applies this rule somewhere.

        Args:
            diagonal: a single source is a diagonal matrix there, so half of the entries hold all of it.
            whole: nothing is cut off afterwards.
        """
        plain = not self.trims and not self.drops
        alone = 1.0 if self.trim is None else self.trim.alone
        return Traits(
            family,
            weights="none" if self.drops else self.copies,
            common=self.common,
            identity=not self.drops and alone >= (0.5 if diagonal else 1.0),
            exact=whole and plain and self.linear,
            vanishes=self.vanishes,
        )

    def on(self, block: Block, limits: Limits | None = None) -> Array:
        """The merged entries (M, a, b) of whole matrices.

        Args:
            limits: of the sources in the block, if they are known; by default those of each matrix.
        """
        if not len(block.values):
            return namespace(block.values).zeros(block.values.shape[1:])
        facts = self.facts(self.limits(block) if limits is None else limits, lambda: [block])
        return self.merge(self.kept(block, facts))

    def facts(self, limits: Limits | None, blocks: Blocks) -> Facts:
        """The facts of whole matrices, gathered part by part."""
        known = Facts(limits)
        if self.drop is not None and self.drop.evens:
            lengths = (self.drop.lengths(self._trimmed(block, known)) for block in blocks())
            known = replace(known, lengths=reduce(add, lengths))
        if self.measure is not None:
            sums = (self.measure(self.kept(block, known)) for block in blocks())
            known = replace(known, sums=reduce(add, sums))
        return known

    def kept(self, block: Block, facts: Facts) -> Block:
        """The entries of a block that `merge` sees."""
        block = self._trimmed(block, facts)
        values = block.values if self.drop is None else self.drop.kept(block, facts.lengths)
        return replace(block, values=values, sums=facts.sums)

    def _trimmed(self, block: Block, facts: Facts) -> Block:
        if self.trim is None or facts.limits is None:
            return block
        return replace(block, values=self.trim.kept(block.values, facts.limits))

    def limits(self, block: Block) -> Limits | None:
        """The exact sizes between which entries are kept, for each whole matrix by itself."""
        if self.trim is None or self.trim.idle:
            return None
        sizes = self.trim.ranking(block.values)  # (S, M, a, b)
        flat = sizes.reshape(*sizes.shape[:2], -1)
        low, high = np.full(flat.shape[:2], np.inf), np.full(flat.shape[:2], np.inf)
        for m, (rows, columns) in enumerate(block.sizes.tolist()):
            skipped, kept = self.trim.counts(rows * columns)
            if skipped + kept:
                low[:, m] = _largest(flat[:, m], skipped + kept)
            if skipped:
                high[:, m] = _largest(flat[:, m], skipped)
        return Limits(low, high)


def _largest(values: Array, rank: int) -> list[float]:
    """(S,) the `rank`-th largest of each row."""
    place = values.shape[1] - rank
    found: list[float] = namespace(values).partition(values, place, axis=1)[:, place].tolist()
    return found
