"""What rounding to a short float type adds to a matrix: how much energy, and how strong a direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array

EPSILON = {  # safetensors name -> spacing at 1
    "BF16": 2.0**-7,
    "F16": 2.0**-10,
    "F32": 2.0**-23,
    "F64": 2.0**-52,
    "F8_E4M3": 2.0**-3,
    "F8_E5M2": 2.0**-2,
}
TWICE = 2.0  # both sides of a difference may have been rounded
EXPONENT: dict[np.dtype[Any], np.uint16 | np.uint32] = {
    np.dtype(np.uint16): np.uint16(0x7F80),
    np.dtype(np.uint32): np.uint32(0x7F800000),
}


@dataclass(frozen=True, slots=True)
class Noise:
    """What is expected of the rounding of a matrix.

    Args:
        energy: ‖·‖² of it.   edge: the σ² that its strongest direction hardly exceeds.
    """

    energy: float
    edge: float

    def explains(self, energy: float, strongest: float) -> bool:
        """Whether a difference of this ‖·‖² and largest σ² need be no more than rounding.

        Weak noise has only weak directions: a small difference of low rank was trained.
        """
        share = min(1.0, energy / self.energy) if self.energy else 0.0
        return energy <= TWICE * self.energy and strongest <= TWICE * self.edge * share

    def above(self, squares: Array) -> int:
        """How many of these σ² are stronger than rounding makes them."""
        return int((squares > TWICE * self.edge).sum())


@dataclass
class Tally:
    """The rounding of two matrices that are seen some rows at a time.

    Args:
        columns: how many it has.
    """

    columns: int
    largest: float = 0.0

    def __post_init__(self) -> None:
        self.sums = np.zeros(self.columns)
        self._rooms: dict[np.dtype[Any], Array] = {}

    def _room(self, kind: np.dtype[Any], number: int, count: int) -> Array:
        """(count, columns) to count in, the same memory every time: new pages cost more than to count."""
        held = self._rooms.get(kind)
        if held is None or held.shape[1] < count:
            held = self._rooms[kind] = np.empty((2, count, self.columns), kind)
        return held[number, :count]

    def add(self, rows: Array, others: Array) -> None:
        """Counts in rows (a, b) and those of the other matrix; of each pair of entries the larger one.

        Both are bfloat16, which has the exponents of float32, or else turned into that.
        """
        short = all(map(dtypes.is_bfloat16, (rows, others)))
        both = (each if short else each.astype(np.float32, copy=False) for each in (rows, others))
        bits = np.dtype(np.uint16 if short else np.uint32)
        mask: Any = EXPONENT[bits]  # |w| rounded down to a power of two
        one, other = (
            np.bitwise_and(each.view(bits), mask, out=self._room(bits, number, len(each)))
            for number, each in enumerate(both)
        )
        np.maximum(one, other, out=one)
        squares = self._room(np.dtype(np.float32), 0, len(one))
        np.copyto(squares, one.view(rows.dtype if short else np.float32))
        np.square(squares, out=squares)
        self.sums += np.ones(len(squares), np.float32) @ squares
        sums = squares @ np.ones(squares.shape[1], np.float32)
        self.largest = max(self.largest, float(sums.max(initial=0.0)))

    def noise(self, *dtypes: str) -> Noise:
        """What rounding to the coarsest of these types adds to it."""
        unit = max(EPSILON[dtype] for dtype in dtypes) ** 2 / 12
        edge = (sqrt(self.largest) + sqrt(self.sums.max(initial=0.0))) ** 2
        return Noise(float(self.sums.sum()) * unit, edge * unit)


def rounding(matrix: Array, *dtypes: str) -> Noise:
    """The rounding of a matrix to the coarsest of these types.

    An entry w is off by up to half of its spacing u, evenly spread: u²/12 on average. The largest singular
    value of independent errors is near the norm of the largest row and that of the largest column together.

    >>> rounding(np.ones((3, 4), np.float32), "BF16").energy == 12 * 2.0**-14 / 12
    True
    """
    tally = Tally(matrix.shape[1])
    tally.add(matrix.astype(np.float32), matrix.astype(np.float32))
    return tally.noise(*dtypes)
