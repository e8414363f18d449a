"""One task's part of a merge, by its mask; see `loramerge restore`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from loramerge.algorithms.entries.masks import masked, strip, weighted_sources
from loramerge.algorithms.families.refit import fitting, refit, squares
from loramerge.algorithms.families.size import Ranked
from loramerge.algorithms.memory import factors, stored
from loramerge.algorithms.method import Traits
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted, Result


class Masked(Protocol):
    """The masks of one task; see `loramerge.formats.masks`."""

    @property
    def task(self) -> str: ...
    @property
    def rank(self) -> int: ...
    def read(self, module: str, shape: tuple[int, int]) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Restored(Ranked):
    """S ∘ ΔW of one merged adapter, fitted to a rank. No method of the table: it needs a file of masks."""

    masks_of: Masked = field(repr=False, metadata={"found": True})

    @property
    def traits(self) -> Traits:
        return Traits("masks", weights="additive", identity=False)

    def options(self) -> dict[str, Any]:
        return {**super().options(), "task": self.masks_of.task}

    @property
    def whole(self) -> bool:
        return False

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return min(self.rank or sum(signature), *shape)

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        width, entries = self.width(signature, shape), shape[0] * shape[1]
        made = factors(signature, shape, width, 2.0) + 9 * entries
        fit = max(strip(shape[1]), 2 * fitting(shape, width, width))  # in float64
        return max(made + fit, stored(shape, width))

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def observe(self, grams: Grams) -> Array:
        found = [squares(self._matrix(grams, m)[0]) for m in range(len(grams.labels))]
        return np.stack([np.pad(each, (0, max(map(len, found)) - len(each))) for each in found])

    def remix(self, grams: Grams) -> Result:
        return Fitted(partial(self._fit, grams))

    def _matrix(self, grams: Grams, module: int) -> tuple[Array, Array]:
        """S ∘ ΔW (out, in) of one module, and rows (r, in) that it is made of."""
        assert grams.read is not None
        up, down = grams.read(module)
        shape = len(up), down.shape[1]
        merge = weighted_sources(grams, module).get(0)
        if merge is None:
            return np.zeros(shape), down[:0]
        return masked(merge, self.masks_of.read(grams.labels[module], shape)), merge[1]

    def _fit(self, grams: Grams, module: int) -> Fit:
        matrix, start = self._matrix(grams, module)
        return refit(matrix, min(self.rank or 1, *matrix.shape), start)
