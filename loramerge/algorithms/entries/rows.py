"""Updates as rows: what each source does to the common output directions.

[ΔW_1 | … | ΔW_T] = U Σ [V_1 | … | V_T]        Σ V_t = Uᵀ ΔW_t  (ρ, in)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from loramerge.algorithms.entries.dense import limits
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.tiles import Tiles, is_single, of_units
from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import eigh, svd
from loramerge.arrays.remix import Fit

NOTHING = 1e-12  # of the square of the longest row
NEAR = 64  # roundings between two shares that are one


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The rows of T sources in one module.

    Args:
        up: (out, R) as stored.
        lift: (R, ρ) U = up @ lift, with orthonormal columns, the strongest direction first.
        entries: Uᵀ ΔW_t (ρ, in) of each source, tile by tile.
    """

    up: Array
    lift: Array
    entries: Tiles


def rows(grams: Grams, module: int, rank_tol: float, by_rows: bool = False) -> Rows | None:
    """The rows of one module of a batch in the ``spectral`` frame; None where no source changes it.

    In that frame the down units of a source are orthogonal, so only their lengths are needed:
    [up_1 L_1 | … | up_T L_T], L the lengths, has the left singular vectors and values of the updates.

    Args:
        by_rows: tiles of whole rows.
    """
    assert grams.halves is not None
    assert grams.read is not None
    assert grams.weights is not None
    used = grams.live[module] & (grams.weights[grams.owner] != 0)
    if not used.any():
        return None
    up, down = (half[module] * used for half in grams.halves)  # (R, R) each
    xp = namespace(up)
    length = xp.linalg.norm(down, axis=0)
    x, sigma, yt = svd(up * length)
    kept = sigma > rank_tol * sigma[0]
    lift = length[:, None] * yt[kept].T / sigma[kept]  # U in units
    stored, wide = grams.read(module)
    single = is_single(stored, wide)
    high, wide = x[:, kept].T @ up, grams.lift.Q[module] @ wide  # Uᵀ up (ρ, R) and down (R, in)

    def units(mine: Array) -> tuple[Array, Array]:
        return high[:, mine], wide[mine]

    made = of_units(grams, module, (units, (len(high), wide.shape[1])), single, by_rows)
    return None if made is None else Rows(stored, grams.lift.P[module] @ lift, made)


def shares_merged(rule: Rule, entries: Tiles) -> Array:
    """Merged rows (ρ, in): entries are trimmed while all rows have unit length, and then get it back."""
    long = [_lengths(*sides)[:, None] for sides in zip(entries.ups, entries.downs, strict=True)]  # T × (ρ, 1)
    ups = tuple(ratio(up, each, each > 0) for up, each in zip(entries.ups, long, strict=True))
    unit, lengths = replace(entries, ups=ups), namespace(ups[0]).stack(long)[:, None]  # (T, 1, ρ, 1)
    known = limits(rule, unit)
    if known is not None:  # a source of rank 1 has one row at many lengths, so many shares are equal
        known = replace(known, low=known.low * (1 - NEAR * np.finfo(unit.dtype).eps))
    facts = rule.facts(known, unit.blocks)
    made = namespace(ups[0]).empty(entries.shape, entries.dtype)
    for tile in unit.places():
        block = rule.kept(unit.block(tile), facts)
        made[tile] = rule.merge(replace(block, values=block.values * lengths[:, :, tile[0]]))[0]
    return made


def _lengths(up: Array, down: Array) -> Array:
    """(ρ,) of the rows of up @ down; a row that is only rounding beside the longest does not count."""
    xp = namespace(up)
    square = xp.einsum("ij,ij->i", up @ (down @ down.T), up)
    return xp.sqrt(xp.where(square > NOTHING * square.max(), square, 0.0))


def energies(merged: Array) -> Array:
    """σ² (ρ,) of merged rows (ρ, in), largest first."""
    xp = namespace(merged)
    return xp.maximum(np.linalg.eigvalsh(_gram(merged))[::-1], 0.0)


def fitted(found: Rows, merged: Array, rank: int | None) -> Fit:
    """The best factors of U @ merged at that rank; with None, all of it.

    Args:
        merged: (ρ, in).
    """
    gram, xp = _gram(merged), namespace(merged)
    x = eigh(gram)[1][:, ::-1][:, :rank]
    low = x.T @ merged  # (k, in), its rows at right angles
    square = xp.einsum("ij,ij->i", low, low)
    root = square**0.25  # the strength is split evenly
    inverse = xp.where(root > 0, 1.0 / xp.where(root > 0, root, 1.0), 0.0)
    whole = float(gram.trace())
    cut = max(whole - float(square.sum()), 0.0) if len(square) < len(gram) else 0.0
    return Fit(found.up @ (found.lift @ (x * root)), inverse[:, None] * low, whole, cut)


def _gram(merged: Array) -> Array:
    """(ρ, ρ), added up in float64."""
    wide = merged.astype(np.float64, copy=False)
    return wide @ wide.T
