"""Masks: one bit for each entry of a merge says whether a source wants that entry. Made and read in tiles.

S_t = 1[ |τ_t| > λ |τ - τ_t| ]        τ the merge, τ_t = w_t ΔW_t, entry by entry
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams

ROWS = 1 << 17  # entries of one source held at once
HELD = 64  # bytes of one of them: the merge, the source, what they differ by, in float64

Pair = tuple[Array, Array]  # up (out, r), down (r, in)


@dataclass(frozen=True, eq=False, slots=True)
class Masks:
    """The masks of one module.

    Args:
        packed: (T, out, ⌈in/8⌉) uint8, eight entries of a row in a byte, the first in its highest bit.
        shares: (T,) of entries that each mask keeps.
        counts: (T + 1,) share of entries that no source keeps, that one keeps, that two keep …
        errors: (T,) ‖S_t ∘ τ - τ_t‖² / ‖τ_t‖².
    """

    packed: Array
    shares: Array
    counts: Array
    errors: Array


def weighted_sources(grams: Grams, module: int) -> dict[int, Pair]:
    """Source -> factors of w_t ΔW_t, for each source that has a weight and changes the module."""
    assert grams.read is not None
    up, down = grams.read(module)
    P, Q = grams.lift.P[module], grams.lift.Q[module]
    weights = np.ones(len(grams.sources)) if grams.weights is None else grams.weights
    found: dict[int, Pair] = {}
    for source, weight in enumerate(weights):
        mine = grams.of(source)[grams.live[module, grams.of(source)]]
        own = grams.of(source)
        if weight and len(mine):
            block = np.ix_(own, mine)
            high = up[:, own] @ P[block]
            high *= weight
            found[source] = high, Q[np.ix_(mine, own)] @ down[own]
    return found


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows a few at a time."""
    step = max(ROWS // columns, 1)
    for top in range(0, rows, step):
        yield slice(top, min(top + step, rows))


def strip(columns: int) -> int:
    """Bytes while a few rows are looked at; a row is not cut."""
    return HELD * max(ROWS, columns)


def masks(merged: Pair, sources: list[Pair], strictness: float, within: Array | None = None) -> Masks:
    """The masks (T, …) of these sources over the merge.

    Args:
        within: (T, out, ⌈in/8⌉) masks to use instead of those by λ.
    """
    rows, columns = len(merged[0]), merged[1].shape[1]
    packed = np.zeros((len(sources), rows, -(-columns // 8)), np.uint8)
    counts = np.zeros(len(sources) + 1)
    errors, norms, kept = np.zeros((3, len(sources)))
    for part in blocks(rows, columns):
        tau = merged[0][part] @ merged[1]  # (rows, in)
        wanted = np.zeros(tau.shape, np.int64)
        for t, (up, down) in enumerate(sources):
            own = up[part] @ down
            if within is None:
                mask = np.abs(own) > strictness * np.abs(tau - own)
            else:
                mask = np.unpackbits(within[t, part], axis=1, count=columns).astype(bool)
            packed[t, part] = np.packbits(mask, axis=1)
            wanted += mask
            kept[t] += np.count_nonzero(mask)
            norms[t] += np.vdot(own, own)
            errors[t] += np.square(tau * mask - own).sum()
        counts += np.bincount(wanted.reshape(-1), minlength=len(counts))
    entries = rows * columns
    lost = np.divide(errors, norms, out=np.zeros_like(errors), where=norms > 0)
    return Masks(packed, kept / entries, counts / entries, lost)


def wanted_by(packed: Array, least: int, columns: int) -> Array:
    """(out, in) True where at least that many masks keep an entry."""
    count = np.zeros((packed.shape[1], columns), np.int16)
    for one in packed:
        count += np.unpackbits(one, axis=1, count=columns)
    return count >= least


def masked(merged: Pair, packed: Array) -> Array:
    """S ∘ τ (out, in) for one mask (out, ⌈in/8⌉)."""
    rows, columns = len(merged[0]), merged[1].shape[1]
    made = np.empty((rows, columns))
    for part in blocks(rows, columns):
        mask = np.unpackbits(packed[part], axis=1, count=columns)
        np.multiply(merged[0][part] @ merged[1], mask, out=made[part])
    return made
