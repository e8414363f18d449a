"""What rounding to a short float type adds to a matrix: how much energy, and how strong a direction."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

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
EXPONENT = np.uint32(0x7F800000)  # of a float32: without the rest, |w| rounded down to a power of two
SHARE = 4  # a part in so many of ‖W‖², at least, is looked at entry by entry


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
    """The rounding of a matrix that is seen some rows at a time.

    The length of a row tells its rounding, up to a factor between 1/4 and 1. That factor, and the share of
    each column, are taken from rows with a quarter of the energy.

    Args:
        columns: how many it has.   energy: ‖·‖² of the rows so far.   largest: that of the longest.
    """

    columns: int
    energy: float = 0.0
    largest: float = 0.0

    def __post_init__(self) -> None:
        self.sums, self._seen = np.zeros(self.columns), 0.0
        self._room = np.empty((0, self.columns), np.float32)

    def add(self, rows: Array) -> None:
        """Counts in rows, as float32 or float64."""
        squares = np.vecdot(rows, rows)
        energy = float(squares.sum(dtype=np.float64))
        self.energy += energy
        self.largest = max(self.largest, float(squares.max(initial=0.0)))
        if SHARE * self._seen >= self.energy:
            return
        self._seen += energy
        if len(self._room) < len(rows):  # the same memory every time: new pages cost more than to count
            self._room = np.empty(rows.shape, np.float32)
        bits, powers = rows.astype(np.float32, copy=False).view(np.uint32), self._room[: len(rows)]
        np.bitwise_and(bits, EXPONENT, out=powers.view(np.uint32))
        np.square(powers, out=powers)
        self.sums += np.ones(len(rows), np.float32) @ powers

    def noise(self, *dtypes: str) -> Noise:
        """What rounding to the coarsest of these types adds to it."""
        unit = max(EPSILON[dtype] for dtype in dtypes) ** 2 / 12
        if not self._seen:
            return Noise(0.0, 0.0)
        factor, rest = float(self.sums.sum()) / self._seen, self.energy / self._seen
        edge = (sqrt(factor * self.largest) + sqrt(rest * float(self.sums.max(initial=0.0)))) ** 2
        return Noise(factor * self.energy * unit, edge * unit)


def rounding(matrix: Array, *dtypes: str) -> Noise:
    """The rounding of a matrix to the coarsest of these types.

    An entry w is off by up to half of its spacing u, evenly spread: u²/12 on average. The largest singular
    value of independent errors is near the norm of the largest row and that of the largest column together.

    >>> rounding(np.ones((3, 4), np.float32), "BF16").energy == 12 * 2.0**-14 / 12
    True
    """
    tally = Tally(matrix.shape[1])
    tally.add(matrix.astype(np.float32))
    return tally.noise(*dtypes)
