"""Sources kept out of the way of a safety adapter: ΔW → (1 − P) ΔW, where P projects on its outputs.

What is left cannot undo what that adapter does to a module's outputs. (After AlignGuard, arXiv:2508.02079)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from loramerge.adapters.adapter import Adapter, Slot
from loramerge.adapters.target import Target
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.arrays.linalg import svd
from loramerge.errors import IncompatibleError, printable
from loramerge.formats.files.views import View

LEAST = 1e-6  # of its largest, that a singular value of the safety adapter counts for


def projected(adapters: Sequence[Adapter], safety: Adapter) -> list[Adapter]:
    """The sources, projected in every module that the safety adapter has.

    Raises:
        IncompatibleError: a module has other sizes there; or none is shared.
    """
    shared = [target for target in safety if any(target in adapter for adapter in adapters)]
    if not shared:
        raise IncompatibleError(f"{printable(safety.name)} shares no module with any source.")
    return [
        replace(
            adapter,
            slots={t: _projected(t, s, safety) if t in safety else s for t, s in adapter.slots.items()},
            oddities=(*adapter.oddities, f"projected out of {printable(safety.name)}, exactly"),
        )
        for adapter in adapters
    ]


def _projected(target: Target, slot: Slot, safety: Adapter) -> Slot:
    guard = safety.slots[target]
    if guard.shape != slot.shape:
        raise IncompatibleError(
            f"{printable(target)} is {list(guard.shape)} in {printable(safety.name)} and {list(slot.shape)} "
            "in a source: they are of different base models."
        )

    def up(array: Array, over: Array, under: Array) -> Array:
        basis = span(wide(over), wide(under))
        left = wide(array)
        return left - basis @ (basis.T @ left)

    numbers = 3 * (prod(guard.up.shape) + prod(guard.down.shape)) + 3 * prod(slot.up.shape)
    kind = (
        "F64" if slot.up.dtype == "F64" else "F32"
    )  # what is written without a word is no wider than before
    return replace(slot, up=View((slot.up, guard.up, guard.down), slot.up.shape, kind, up, 8 * numbers))


def span(up: Array, down: Array) -> Array:
    """(out, k) an orthonormal basis of the columns of up @ down.

    >>> span(np.array([[2.0], [0.0]]), np.ones((1, 3))).shape
    (2, 1)
    """
    core = up @ np.asarray(np.linalg.qr(down.T, mode="r")).T
    left, sigma, _ = svd(core, full_matrices=False)
    found: Array = left[:, sigma > LEAST * sigma[:1].max(initial=0.0)]
    return found
