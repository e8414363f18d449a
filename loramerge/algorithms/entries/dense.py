"""A rule on the entries of ΔW, computed tile by tile. The merge is then fitted to a rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from loramerge.algorithms.entries.limits import Limits, Ranked
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.space import Space
from loramerge.algorithms.entries.sparsity import Trim
from loramerge.algorithms.entries.thresholds import COLLECT, largest
from loramerge.algorithms.entries.tiles import TILE, Tiles, sampled, tiles
from loramerge.algorithms.families.refit import fitting, refit, squares
from loramerge.algorithms.memory import factors, stored
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted

TILED = 96  # bytes of an entry of a source in a tile: as it is, its size, its chance, its rank in a row
RANKED = 24  # bytes of a size among those from which a limit is chosen


def merged(rule: Rule, entries: Tiles, known: Limits | None = None) -> Array:
    """The merged matrix (out, in), in the type of the entries: limits first, then sums, then the matrix.

    Args:
        known: limits of the whole adapter, in place of those of the module.
    """
    facts = rule.facts(known or limits(rule, entries), entries.blocks)
    made = namespace(entries.ups[0]).empty(entries.shape, entries.dtype)
    for tile in entries.places():
        made[tile] = rule.merge(rule.kept(entries.block(tile), facts))[0]
    return made


def limits(rule: Rule, entries: Tiles) -> Limits | None:
    """The exact limits within the module; None if nothing is trimmed."""
    if rule.trim is None or rule.trim.idle:
        return None
    skipped, kept = rule.trim.counts(entries.count)
    ranks = [skipped + kept, *([skipped] if skipped else [])]
    ranked = rankings(rule.trim, entries)
    found = [largest(ranks, each.count, each.sample(), each.pieces) for each in ranked]
    low_high = np.array([[each[0], each[1] if skipped else np.inf] for each in found])  # (S, 2)
    return Limits(*low_high.T[:, :, None])


def rankings(trim: Trim, entries: Tiles) -> Iterator[Ranked]:
    """The sizes by which each source, or all together, are trimmed, tile by tile."""
    for s in range(1 if trim.together else len(entries.ups)):
        only = None if trim.together else s

        def sample(only: int | None = only) -> Array:
            return trim.ranking(entries.sample(only))[0, 0, 0]

        def pieces(only: int | None = only) -> Iterator[Array]:
            for tile in entries.places():
                yield trim.ranking(entries.values(tile, only))[0, 0]

        yield Ranked(0 if trim.together else entries.present[s], entries.count, sample, pieces)


def looked(rule: Rule, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
    """Bytes while a rule goes through the tiles of entries of float32, or ranks them."""
    entries, sources = shape[0] * shape[1], sum(rank > 0 for rank in signature)
    tile = min(max(TILE[0] * TILE[1], shape[1] if rule.by_rows else 0), entries)
    passes = TILED * sources * tile
    if rule.trim is None or rule.trim.idle:
        return passes
    some = 8 * sampled(entries) * (max(signature) + 2 * sources)
    each = RANKED * (2 if rule.trim.outliers else 1)
    return max(passes, some) + each * min(entries * (sources if rule.together else 1), COLLECT)


@final
@dataclass(frozen=True, slots=True)
class Dense(Space):
    """The rule sees every entry of ΔW.

    Args:
        energy: the share of ‖·‖² that a rank is looked for, if it is.
    """

    energy: float | None

    @property
    def frame(self) -> Frame:
        return "balanced"

    @property
    def diagonal(self) -> bool:
        return False

    @property
    def whole(self) -> bool:
        return False

    def rankings(self, trim: Trim, grams: Grams) -> Iterator[Ranked]:
        for m in range(len(grams.labels)):
            if (entries := tiles(grams, m, self.rule.by_rows)) is not None:
                yield from rankings(trim, entries)

    def squares(self, grams: Grams) -> Array:
        share = 1.0 if self.energy is None else self.energy
        pairs = (self._matrix(grams, m) for m in range(len(grams.labels)))
        found = [squares(matrix, share, start) for matrix, start in pairs]
        return np.stack([np.pad(each, (0, max(map(len, found)) - len(each))) for each in found])

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return min(self.rank or max(signature), *shape)

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """While the factors are read and measured, while the matrix is made, fitted, or stored."""
        width, units, matrix = self.width(signature, shape), sum(signature), 4 * shape[0] * shape[1]
        start = 4 * units * (sum(shape) + shape[1])  # an allocator keeps what the tiles were made of
        made = start + matrix + looked(self.rule, signature, shape)
        fit = start + matrix + fitting(shape, width, units)
        if self.energy is not None:  # all σ² are looked for
            fit = max(fit, start + matrix + fitting(shape, min(shape) // 8, units) + 24 * min(shape) ** 2)
        return max(factors(signature, shape, width), made, fit, stored(shape, width))

    def alive(self, sources: int) -> int:
        return 16

    def merge(self, grams: Grams) -> Fitted:
        return Fitted(partial(self._fit, grams), lambda module: self._matrix(grams, module)[0])

    def _matrix(self, grams: Grams, module: int) -> tuple[Array, Array]:
        """The merge of one module (out, in), and rows (s, in) that span what it is made of."""
        entries = tiles(grams, module, self.rule.by_rows)
        if entries is None:
            assert grams.read is not None
            up, down = grams.read(module)
            return np.zeros((len(up), down.shape[1])), down[:0]
        rows = namespace(entries.downs[0]).concatenate(entries.downs)
        return merged(self.rule, entries, self.known(entries.present, 1)), rows

    def _fit(self, grams: Grams, module: int) -> Fit:
        matrix, start = self._matrix(grams, module)
        return refit(matrix, min(self.rank or len(grams.owner), *matrix.shape), start)
