"""The launcher of widen.cu: numbers as they are stored become float64 on the GPU."""

from __future__ import annotations

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.cuda.load import check_array, kernel

KINDS = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}  # as widen.cu has them
BITS = {0: "float64", 1: "float32", 2: "uint16", 3: "uint16"}  # what CuPy holds of each kind
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


def launch(bits: Array, place: Array, kind: int) -> None:
    """Widen dense rows into a place whose rows may lie apart.

    Args:
        bits: (rows, columns) of the type that `kind` says.   place: (rows, columns) float64.

    Raises:
        ValueError: shapes or types that do not belong together.
    """
    if place.ndim != 2 or place.dtype != "float64":
        raise ValueError(f"widen: place is {place.dtype}{list(place.shape)}, not a float64 matrix.")
    rows, columns = place.shape
    if kind not in BITS:
        raise ValueError(f"widen: there is no kind {kind}.")
    check_array("widen", "bits", bits, (rows, columns), BITS[kind])
    if not bits.size:
        return
    pitch = place.strides[0] // 8 if rows > 1 else columns
    if (
        (columns > 1 and place.strides[1] != 8)
        or (rows > 1 and place.strides[0] != 8 * pitch)
        or pitch < columns
    ):
        raise ValueError(f"widen: the rows of a place with strides {place.strides} are not dense.")
    blocks = min(-(-bits.size // THREADS), BLOCKS)
    numbers = (np.int64(rows), np.int64(columns), np.int64(pitch), np.int32(kind))
    kernel("widen")((blocks,), (THREADS,), (bits, place, *numbers))
