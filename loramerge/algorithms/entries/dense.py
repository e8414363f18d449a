"""A rule carried out on dense tiles: limits first, then sums, then the merged matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from loramerge.algorithms.entries.search import Ranked
from loramerge.algorithms.entries.stack import Limits, Stack
from loramerge.algorithms.entries.thresholds import largest
from loramerge.algorithms.entries.tiles import Dense
from loramerge.arrays.backend import Array


class Rule(Protocol):
    """What is asked of a rule; see `Elementwise`."""

    @property
    def together(self) -> bool: ...
    def keeps(self, count: int) -> tuple[int, int] | None: ...
    def ranking(self, values: Array) -> Array: ...
    def measure(self, entries: Stack) -> Array | None: ...
    def merge(self, entries: Stack) -> Array: ...


def rankings(rule: Rule, entries: Dense) -> Iterator[Ranked]:
    """The sizes by which each source (or all together) is trimmed, tile by tile."""
    for s in range(1 if rule.together else len(entries.ups)):
        only = None if rule.together else s

        def sample(only: int | None = only) -> Array:
            return rule.ranking(entries.sample(only))[0, 0, 0]

        def pieces(only: int | None = only) -> Iterator[Array]:
            for tile in entries.tiles():
                yield rule.ranking(entries.values(tile, only))[0, 0]

        yield Ranked(0 if rule.together else entries.present[s], entries.count, sample, pieces)


def limits(rule: Rule, entries: Dense) -> Limits | None:
    """The exact limits within the module."""
    keeps = rule.keeps(entries.count)
    if keeps is None:
        return None
    skipped, kept = keeps
    ranks = [skipped + kept, *([skipped] if skipped else [])]
    found = [largest(ranks, each.count, each.sample(), each.pieces) for each in rankings(rule, entries)]
    low_high = np.array([[each[0], each[1] if skipped else np.inf] for each in found])  # (S, 2)
    return Limits(*low_high.T[:, :, None])


def facts(rule: Rule, entries: Dense, known: Limits | None) -> Array | None:
    """The sums over the whole module (F, 1) that the rule needs."""
    total: Array | None = None
    for tile in entries.tiles():
        part = rule.measure(entries.stack(tile, known))
        if part is None:
            return None
        total = part if total is None else total + part
    return total


def merged(rule: Rule, entries: Dense, known: Limits | None) -> Array:
    """The merged matrix (out, in), in the type of the entries."""
    sums = facts(rule, entries, known)
    made = np.empty(entries.shape, entries.dtype)
    for tile in entries.tiles():
        made[tile] = rule.merge(entries.stack(tile, known, sums))[0]
    return made
