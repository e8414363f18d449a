"""What torch draws on a CPU from a seed, drawn again: the Mersenne twister, and what torch makes of it.

What a GPU drew comes from another generator, and cannot be drawn here.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod, sqrt

import numpy as np

from loramerge.adapters.adapter import Computed, Tensor
from loramerge.arrays.backend import Array

MOST = 2**32 // 20  # of a permutation: torch draws longer ones otherwise
SEEDS = 2**32


class Draws:
    """The numbers of ``torch.Generator().manual_seed(seed)``, in order."""

    def __init__(self, seed: int) -> None:
        self._raw = np.random.RandomState(seed % SEEDS)  # of which torch too keeps the last 32 bits

    def raw(self, count: int) -> Array:
        """(count,) whole numbers of 32 bits."""
        return self._raw.randint(0, SEEDS, count, dtype=np.uint32)

    def uniform(self, shape: tuple[int, ...], bound: float) -> Array:
        """``torch.empty(shape).uniform_(-bound, bound)``."""
        low, high = np.float32(-bound), np.float32(bound)
        unit = (self.raw(prod(shape)) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)
        made: Array = (unit * (high - low) + low).reshape(shape)
        return made

    def kaiming(self, shape: tuple[int, ...]) -> Array:
        """``torch.nn.init.kaiming_uniform_`` of an empty tensor."""
        return self.uniform(shape, bound(prod(shape[1:])))

    def first(self, count: int, length: int) -> Array:
        """``torch.randperm(length)[:count]``: of a shuffle from the front, only its first steps."""
        moved: dict[int, int] = {}
        found = np.empty(count, np.int64)
        for i, step in enumerate(self.raw(count).tolist()):
            j = i + step % (length - i) if i < length - 1 else i
            found[i] = moved.get(j, j)
            moved[j] = moved.get(i, i)
        return found


def bound(fan: int, slope: float = 0.0) -> float:
    """The largest number that Kaiming's rule draws, for so many inputs and such a slope."""
    return sqrt(3.0) * (sqrt(2.0 / (1 + slope**2)) / sqrt(fan))


def frame(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors that are drawn one after another, each by Kaiming's rule, when they are read."""

    def of(i: int) -> Tensor:
        return Computed(shapes[i], lambda: _drawn(seed, shapes)[i], "F32")

    return [of(i) for i in range(len(shapes))]


@lru_cache(maxsize=2)
def _drawn(seed: int, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    """All modules of an adapter cut from one frame."""
    draws = Draws(seed)
    return [draws.kaiming(shape) for shape in shapes]
