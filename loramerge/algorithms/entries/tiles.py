"""ΔW_t of all sources of one module, computed tile by tile. No source is ever held as a whole matrix.

The shape of the module alone fixes the grid. So each entry comes from the same product, and the same random
numbers, in every pass, whatever else is merged at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries.block import Block
from loramerge.algorithms.entries.chance import own_names, uniform
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.gram import Grams
from loramerge.arrays.workers import go_on

TILE = 64, 512  # entries of one source stay in cache
SAMPLE = 1 << 15
PART = 1 << 16  # numbers of a factor that are looked at together
SAFE = 1e-15, 1e15  # sizes of entries whose squares too neither overflow nor lose digits in float32

Tile = tuple[slice, slice]
Units = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True, eq=False, slots=True)
class Tiles:
    """The entries of T sources in one module.

    Args:
        ups: (out, r_t) and downs: (r_t, in) of each source, scale folded in; all float32 or all float64.
        present: (T,) their positions among all sources; the others change nothing here.
        weights: (T,).   sources: (T,) names for chance.   label: of the module.   shape: (out, in).
        grid: rows and columns of a tile.
    """

    ups: tuple[Array, ...]
    downs: tuple[Array, ...]
    present: tuple[int, ...]
    weights: Array
    sources: tuple[str, ...]
    label: str
    shape: tuple[int, int]
    grid: tuple[int, int]

    @property
    def dtype(self) -> np.dtype:
        return self.ups[0].dtype

    @property
    def count(self) -> int:
        """How many entries a source has."""
        return self.shape[0] * self.shape[1]

    def places(self) -> Iterator[Tile]:
        (rows, columns), (height, width) = self.shape, self.grid
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                go_on()
                yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))

    def values(self, tile: Tile, only: int | None = None) -> Array:
        """(T, 1, a, b) entries of all sources, or (1, 1, a, b) of one, in a tile."""
        rows, columns = tile
        which, xp = self._which(only), namespace(self.ups[0])
        made = xp.empty((len(which), 1, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for at, t in enumerate(which):
            xp.matmul(self.ups[t][rows], self.downs[t][:, columns], out=made[at, 0])
        return made

    def block(self, tile: Tile) -> Block:
        """What a rule looks at in a tile."""
        values = self.values(tile)
        place = tile[0].start // self.grid[0], tile[1].start // self.grid[1]

        def chance(seed: int) -> Array:
            drawn = [
                uniform(seed, name, self.label, place, values.shape[2:], self.dtype) for name in self.sources
            ]
            return namespace(values).asarray(np.stack(drawn)[:, None])

        return Block(values, self.weights, np.array([self.shape]), chance)

    def blocks(self) -> Iterator[Block]:
        """The whole module, tile by tile."""
        return map(self.block, self.places())

    def sample(self, only: int | None = None) -> Array:
        """(T, 1, 1, n) some entries, or (1, 1, 1, n) of one source, at the same places in all."""
        rng, xp = np.random.default_rng(0), namespace(self.ups[0])
        some = sampled(self.count)
        i, j = (rng.integers(0, size, some) for size in self.shape)
        made = [xp.einsum("nr,rn->n", self.ups[t][i], self.downs[t][:, j]) for t in self._which(only)]
        return xp.stack(made)[:, None, None]

    def _which(self, only: int | None) -> Sequence[int]:
        return range(len(self.ups)) if only is None else (only,)


def sampled(count: int) -> int:
    """How many of so many entries are a sample: a larger one costs more than it saves."""
    return min(count, SAMPLE, max(1 << 12, count >> 6))


def tiles(grams: Grams, module: int, by_rows: bool = False) -> Tiles | None:
    """The entries of one module of a batch of units that are not mixed; None where no source changes it.

    float32 if all factors are float32 numbers, whatever they were stored in, else float64.

    Args:
        by_rows: tiles of whole rows.
    """
    assert grams.read is not None
    up, down = grams.read(module)  # (out, R), (R, in) float64
    lifts = grams.lift.P[module].diagonal(), grams.lift.Q[module].diagonal()

    def units(mine: Array) -> tuple[Array, Array]:
        left, right = up[:, mine], down[mine]  # copies: no second one of all sources
        left *= lifts[0][mine]
        right *= lifts[1][mine, None]
        return left, right

    return of_units(grams, module, (units, (len(up), down.shape[1])), is_single(up, down), by_rows)


def of_units(
    grams: Grams, module: int, given: tuple[Units, tuple[int, int]], single: bool, by_rows: bool = False
) -> Tiles | None:
    """The same from the units themselves, in whatever basis of the outputs.

    Args:
        given: the halves up (out, r) and down (r, in) of some units, each time as new arrays; (out, in).
    """
    units, shape = given
    weights = np.ones(len(grams.sources)) if grams.weights is None else grams.weights
    mine = {t: grams.of(t)[grams.live[module, grams.of(t)]] for t in np.flatnonzero(weights).tolist()}
    present = tuple(t for t, own in mine.items() if len(own))
    if not present:
        return None
    # one source after the other: all at once would be several copies of what may be far wider than the merge
    peaks = [math.prod(map(_peak, units(mine[t]))) for t in present]
    peaks += [peak * abs(float(weights[t])) for t, peak in zip(present, peaks, strict=True)]
    kind = np.float32 if single and SAFE[0] < min(peaks) and max(peaks) < SAFE[1] else np.float64
    pairs = [tuple(half.astype(kind, copy=False) for half in units(mine[t])) for t in present]
    ups, downs = zip(*pairs, strict=True)
    strengths = [float(grams.kernel[module][np.ix_(mine[t], mine[t])].sum()) for t in present]
    names = tuple(own_names([grams.sources[t] for t in present], strengths))
    grid = (max(TILE[0] * TILE[1] // shape[1], 1), shape[1]) if by_rows else TILE
    return Tiles(ups, downs, present, weights[list(present)], names, grams.labels[module], shape, grid)


def _peak(half: Array) -> float:
    return max(float(half.max()), -float(half.min()))  # without a copy


def is_single(*factors: Array) -> bool:
    """Whether all numbers are those of float32, which a source in float32, bfloat16 or float16 has."""
    with np.errstate(over="ignore"):
        parts = (part for factor in factors for part in _parts(factor))
        return all(bool((part.astype(np.float32) == part).all()) for part in parts)


def _parts(factor: Array) -> Iterator[Array]:
    """Its rows, some at a time."""
    step = max(PART // max(factor.shape[1], 1), 1)
    return (factor[top : top + step] for top in range(0, len(factor), step))
