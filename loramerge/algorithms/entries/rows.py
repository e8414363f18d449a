"""Updates as rows: what each source does to the common output directions.

[ΔW_1 | … | ΔW_T] = U Σ [V_1 | … | V_T]        Σ V_t = Uᵀ ΔW_t  (ρ, in)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.entries.tiles import Tiles, is_single, of_units
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit


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
    x, sigma, yt = np.linalg.svd(up * length)
    kept = sigma > rank_tol * sigma[0]
    lift = length[:, None] * yt[kept].T / sigma[kept]  # U in units
    stored = grams.read(module)
    units = x[:, kept].T @ up, grams.lift.Q[module] @ stored[1]  # Uᵀ up (ρ, R) and down (R, in)
    made = of_units(grams, module, units, is_single(*stored), by_rows)
    return None if made is None else Rows(stored[0], grams.lift.P[module] @ lift, made)


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
    x = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
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
