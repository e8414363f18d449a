"""The difference of two matrices, made some rows at a time, with all that can be told of it on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.families.krylov import Sketch
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.noise import Tally

ENTRIES = 1 << 16  # that are subtracted at a time, in cache

Rows = Callable[[int, int], Array]  # (first, past the last) -> these rows


@dataclass(frozen=True, eq=False, slots=True)
class Apart:
    """How two matrices differ.

    Args:
        matrix: the difference.   energy: ‖·‖² of it.   sketch: of it.
        tally: the rounding of the larger of both.
    """

    matrix: Array
    energy: float
    sketch: Array
    tally: Tally


def subtracted(after: Rows, before: Rows, shape: tuple[int, int]) -> Apart:
    """after − before, of two matrices of this shape."""
    count, wide = shape
    kinds = {each(0, 1).dtype for each in (after, before)}
    kind = np.float64 if np.dtype(np.float64) in kinds else np.float32
    step = min(max(1, ENTRIES // wide), count)
    found, tally, whole = np.empty(shape, kind), Tally(wide), 0.0
    sketch, rooms = Sketch(shape, step, found), np.empty((2, step, wide), kind)
    for top in range(0, count, step):
        rows = found[top : top + step]
        stored = [each(top, top + len(rows)) for each in (after, before)]
        one, other = rooms[:, : len(rows)]
        with np.errstate(invalid="ignore", over="ignore"):
            np.copyto(one, stored[0])  # twice as fast as a cast, whose memory is new every time
            np.copyto(other, stored[1])
            np.subtract(one, other, out=rows)
            whole += float(np.vdot(rows, rows))
            tally.add(*(stored if all(map(dtypes.is_bfloat16, stored)) else (one, other)))
        sketch.add(rows, top)
    return Apart(found, whole, sketch.matrix, tally)
