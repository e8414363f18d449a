"""From how many units on a module is worth its way to a GPU: measured there, once, when `auto` first asks.

Both sides do what a module costs: its factors to float64, the Gram, the eigenproblem. The GPU's side has the
transfer in it and takes a batch at once, as a merge does. The first size that the GPU wins, and all above it,
go there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from loramerge.arrays.backend import Array, cupy
from loramerge.arrays.linalg import eigh
from loramerge.errors import UsageError

OVERRIDE = "LORAMERGE_GPU_UNITS"  # a number of units, instead of the measurement
SIZES = (8, 16, 32, 64, 128)  # units
MODULES, WIDTH = 8, 2048  # of the probe: a batch of small modules
NEVER = 1 << 30


def least_units(number: int) -> int:
    """Units of a module from which `auto` sends it to this GPU.

    Raises:
        UsageError: the variable LORAMERGE_GPU_UNITS is set to what is no number of units.
    """
    said = os.environ.get(OVERRIDE, "")
    if not said:
        return measured(number)
    if not said.isdecimal():
        raise UsageError(f"{OVERRIDE}={said!r} is no number of units, such as 32.")
    return int(said)


@cache
def measured(number: int) -> int:
    """By the clock; once in a process for each GPU."""
    known = cupy()
    with known.cuda.Device(number):

        def there(factors: Array) -> None:
            _work(known.asarray(factors))
            known.cuda.get_current_stream().synchronize()

        wins = [_seconds(there, size) < _seconds(_work, size) for size in SIZES]
    return crossing(wins)


def crossing(wins: list[bool]) -> int:
    """The size from which on the GPU wins every time.

    >>> crossing([False, False, True, True, True]), crossing([True, False, True, False, False])
    (32, 1073741824)
    """
    least = NEVER
    for size, won in zip(reversed(SIZES), reversed(wins), strict=True):
        if not won:
            break
        least = size
    return least


def _work(factors: Array) -> None:
    """What modules cost from factors (M, in, R) to a first eigenproblem."""
    wide = factors.astype(np.float64)
    eigh(wide.swapaxes(1, 2) @ wide)


def _seconds(work: Callable[[Array], None], size: int) -> float:
    """The better of two runs after one that warms up."""
    factors = np.random.default_rng(size).standard_normal((MODULES, WIDTH, size)).astype(np.float32)
    walls = []
    for _ in range(3):
        start = time.perf_counter()
        work(factors)
        walls.append(time.perf_counter() - start)
    return min(walls[1:])
