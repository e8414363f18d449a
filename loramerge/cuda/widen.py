"""Factors sent to the GPU as they are stored and made float64 there: half the bytes on the bus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramerge.arrays.backend import Array, cupy
from loramerge.arrays.dtypes import wide
from loramerge.cuda.load import kernel

KINDS = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}  # as widen.cu has them
THREADS, BLOCKS = 256, 4096


def sendable(part: Array) -> tuple[Array, int]:
    """The bytes to send, dense, as numbers that CuPy knows, and their kind in widen.cu.

    Other types, such as those of 8 bits, are widened on the host first.
    """
    kind = KINDS.get(part.dtype.name)
    if kind is None:
        part, kind = np.asarray(wide(part), np.float64), KINDS["float64"]
    part = np.ascontiguousarray(part)
    return (part.view(np.uint16) if part.dtype.itemsize == 2 else part), kind


def widened(parts: Sequence[Array], axis: int) -> Array:
    """Matrices (m, n) side by side (axis 1) or on top of each other (axis 0), float64, on the current GPU.

    CuPy sends each by way of a pinned buffer on the stream of the calling thread.
    """
    known = cupy()
    size = sum(part.shape[axis] for part in parts)
    shape = (parts[0].shape[0], size) if axis else (size, parts[0].shape[1])
    out = known.empty(shape, np.float64)
    start = 0
    for part in parts:
        bits, kind = sendable(part)
        stop = start + part.shape[axis]
        place = out[:, start:stop] if axis else out[start:stop]
        launch(known.asarray(bits), place, shape[1], kind)
        start = stop
    return out


def launch(bits: Array, place: Array, pitch: int, kind: int) -> None:
    """Widen a dense matrix into a place whose rows are `pitch` numbers apart."""
    rows, columns = place.shape
    if bits.shape != (rows, columns) or place.strides[1] != 8 or place.strides[0] != 8 * pitch:
        raise ValueError(f"widen: {bits.shape} does not fit {place.shape} with strides {place.strides}.")
    if not bits.size:
        return
    blocks = min(-(-bits.size // THREADS), BLOCKS)
    numbers = (np.int64(rows), np.int64(columns), np.int64(pitch), np.int32(kind))
    kernel("widen")((blocks,), (THREADS,), (bits, place, *numbers))
