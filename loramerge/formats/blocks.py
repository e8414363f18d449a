"""One update as rows of another: cut out exactly, or put together exactly. Numbers are read when asked for.

Cutting a fused update by its rows leaves every part the whole of `down`. Parts that are joined stand in the
diagonal of `up`, and their ranks add up; cuts of one module share their `down` again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramerge.adapters.adapter import Slot, Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.formats.files.views import Shared, View, some_rows, transposed

Spans = Sequence[slice]  # rows of a matrix, in this order


def cut(slot: Slot, parts: Sequence[Spans]) -> list[Slot]:
    """The update of each part, which has these rows."""
    down = Shared(slot.down)
    return [Slot(some_rows(slot.up, spans), down, slot.scale) for spans in parts]


def joined(given: Sequence[tuple[Spans, Slot]], outs: int) -> Slot:
    """The update of a module of so many rows from those of its parts; rows of no part are zero."""
    places: dict[int, int] = {}  # where the units of each `down` begin; cuts of one module share theirs
    downs: list[Tensor] = []
    for _, slot in given:
        if id(slot.down) not in places:
            places[id(slot.down)] = sum(tensor.shape[0] for tensor in downs)
            downs.append(slot.down)
    rank, alike = sum(tensor.shape[0] for tensor in downs), len({slot.scale for _, slot in given}) == 1
    kind = dtypes.widest([t.dtype for _, slot in given for t in (slot.up, slot.down)])
    kind = kind if alike else dtypes.widest([kind, "F32"])
    scale = given[0][1].scale if alike else 1.0

    def up(*arrays: Array) -> Array:
        whole = np.zeros((outs, rank), dtypes.FLOATS[kind])
        for array, (spans, slot) in zip(arrays, given, strict=True):
            at = places[id(slot.down)]
            scaled = array if alike else dtypes.wide(array) * slot.scale
            whole[np.r_[tuple(_full(span, outs) for span in spans)], at : at + slot.rank] = scaled
        return whole

    def down(*arrays: Array) -> Array:
        return np.concatenate([array.astype(dtypes.FLOATS[kind]) for array in arrays])

    ups, ins = tuple(slot.up for _, slot in given), downs[0].shape[1]
    left, right = View(ups, (outs, rank), kind, up), View(tuple(downs), (rank, ins), kind, down)
    return Slot(left, right, scale)


def _full(span: slice, outs: int) -> slice:
    """With its ends, which NumPy's `r_` wants."""
    return slice(*span.indices(outs))


def turned(slot: Slot) -> Slot:
    """The update with rows and columns exchanged."""
    return Slot(transposed(slot.down), transposed(slot.up), slot.scale)
