"""The difference of two matrices, made some rows at a time, with all that can be learned on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from loramerge.algorithms.families.krylov import Sketch
from loramerge.arrays.backend import Array
from loramerge.arrays.noise import Tally

ENTRIES = 1 << 17  # that are subtracted at a time, in cache

Rows = Callable[[int, int], Array]  # (first, past the last) -> these rows


class Room(threading.local):
    """The memory of each thread for one difference after another: new pages cost more than to subtract."""

    def __init__(self) -> None:
        self._held: Array = np.empty(0, np.float32)

    def of(self, shape: tuple[int, int], kind: np.dtype[Any]) -> Array:
        """A matrix of this shape; the one before is gone."""
        count = prod(shape)
        if self._held.dtype != kind or len(self._held) < count:
            self._held = np.empty(0, kind)  # before more is taken
            self._held = np.empty(count, kind)
        return self._held[:count].reshape(shape)


@dataclass(frozen=True, eq=False, slots=True)
class Apart:
    """How two matrices differ.

    Args:
        matrix: the difference, until the next one is made in the same room.
        energy: ‖·‖² of it.   sketch: of it.
        tally: the rounding of what it was taken from.
    """

    matrix: Array
    energy: float
    sketch: Sketch
    tally: Tally


def subtracted(after: Rows, before: Rows, shape: tuple[int, int], room: Room) -> Apart:
    """after − before, of two matrices of this shape."""
    count, wide = shape
    kinds = {each(0, 1).dtype for each in (after, before)}
    kind = np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)
    step = min(max(1, ENTRIES // wide), count)
    found, tally = room.of(shape, kind), Tally(wide)
    sketch, spare = Sketch(shape, step, found), np.empty((step, wide), kind)
    with np.errstate(invalid="ignore", over="ignore"):
        for top in range(0, count, step):
            rows = found[top : top + step]
            stored = [each(top, top + len(rows)) for each in (after, before)]
            other = spare[: len(rows)]
            np.copyto(rows, stored[0])  # twice as fast as a cast, whose memory is new every time
            np.copyto(other, stored[1])
            del stored  # the next ones come to the same memory, which is in cache
            tally.add(rows)
            np.subtract(rows, other, out=rows)
            sketch.add(rows, top)
    return Apart(found, sketch.energy, sketch, tally)
