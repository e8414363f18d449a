"""Tensors seen otherwise than they are stored: reshaped, cut, widened. Numbers are still read when asked.

What is cut from a tensor reads no more of it than it must, and keeps nothing else of it alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from threading import Lock

import numpy as np

from loramerge.adapters.adapter import Held, Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.formats.files.safetensors.dtypes import BITS
from loramerge.formats.files.safetensors.read import TensorRef

SMALL_FLOATS = ("F8_E4M3", "F8_E5M2")  # bfloat16 holds every value of both
PIECE = 1 << 18  # entries that are read at a time where a tensor is gone through

Part = Callable[[int, tuple[int, ...]], Array]  # (first entry, shape) -> so many entries, in their order


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class View:
    """A tensor of this shape and dtype, which `make` takes from arrays of the tensors behind it.

    Args:
        work: bytes that `make` takes beside them and what it gives; if nobody says, as for two copies of that
            in float64.
        alike: every entry is made of the entries at its place in tensors of the same shape, and of no others.
    """

    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]
    dtype: str
    make: Callable[..., Array]
    work: int | None = None
    alike: bool = False

    @property
    def held(self) -> int:
        work = 2 * 8 * prod(self.shape) if self.work is None else self.work
        return sum(map(nbytes, self.parts)) + max([work, *(part.held for part in self.parts)])

    def read(self) -> Array:
        return self.make(*(part.read() for part in self.parts))


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Reshaped:
    """The same entries in another shape."""

    tensor: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def held(self) -> int:
        return self.tensor.held

    def read(self) -> Array:
        return self.tensor.read().reshape(self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Shared:
    """A tensor that several slots have: read once as long as the array is alive."""

    tensor: Tensor
    _lock: Lock = field(default_factory=Lock)
    _last: list[weakref.ref[Array]] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def held(self) -> int:
        return self.tensor.held

    def read(self) -> Array:
        with self._lock:
            kept = self._last[0]() if self._last else None
            if kept is None:
                kept = np.asarray(self.tensor.read())
                self._last[:] = [weakref.ref(kept)]
            return kept


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Rows:
    """Some rows of a matrix (n, m), in the order of the spans."""

    tensor: Tensor
    spans: tuple[range, ...]

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(map(len, self.spans)), self.tensor.shape[1]

    @property
    def held(self) -> int:
        if part_of(self.tensor) is None:
            return nbytes(self.tensor) + self.tensor.held
        return nbytes(self) if len(self.spans) > 1 else 0

    def read(self) -> Array:
        part, width = part_of(self.tensor), self.tensor.shape[1]
        if part is None:
            whole = self.tensor.read()
            found = [whole[span.start : span.stop] for span in self.spans]
            return np.concatenate(found)  # a copy, which does not keep the whole
        found = [part(span.start * width, (len(span), width)) for span in self.spans]
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Columns:
    """The columns first, first + step, first + 2 step … of a matrix (n, m)."""

    tensor: Tensor
    first: int
    step: int

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[0], len(range(self.first, self.tensor.shape[1], self.step))

    @property
    def held(self) -> int:
        if part_of(self.tensor) is None:
            return nbytes(self.tensor) + self.tensor.held
        return 2 * self._height * self.tensor.shape[1] * BITS[self.dtype] // 8

    @property
    def _height(self) -> int:
        """Rows of the matrix that are read at a time."""
        return max(1, PIECE // self.tensor.shape[1])

    def read(self) -> Array:
        part, (rows, width) = part_of(self.tensor), self.tensor.shape
        if part is None:
            return self.tensor.read()[:, self.first :: self.step].copy()
        found: Array | None = None
        for top in range(0, rows, self._height):
            some = part(top * width, (min(self._height, rows - top), width))[:, self.first :: self.step]
            found = np.empty(self.shape, some.dtype) if found is None else found
            found[top : top + len(some)] = some
        return np.empty(self.shape) if found is None else found


def part_of(tensor: Tensor) -> Part | None:
    """What reads some entries of a tensor and no others; None where all of it must be read for them."""
    match tensor:
        case TensorRef():
            return tensor.part
        case Held():
            return partial(_cut, np.asarray(tensor.array).reshape(-1))
        case Reshaped() | Shared():
            return part_of(tensor.tensor)
        case View(alike=True):
            found = [each for each in map(part_of, tensor.parts) if each is not None]
            whole = len(found) == len(tensor.parts)
            return (lambda at, shape: tensor.make(*(each(at, shape) for each in found))) if whole else None
    return None


def _cut(flat: Array, at: int, shape: tuple[int, ...]) -> Array:
    return flat[at : at + prod(shape)].reshape(shape)


def pieces(tensor: Tensor) -> Iterator[Array]:
    """The entries (n,) of a tensor in their order, few at a time where it can be read so."""
    count = prod(tensor.shape)
    part = part_of(tensor) or partial(_cut, np.asarray(tensor.read()).reshape(-1))
    for at in range(0, count, PIECE):
        yield part(at, (min(PIECE, count - at),))


def in_pieces(tensor: Tensor) -> int:
    """Bytes that `pieces` holds at a time."""
    if part_of(tensor) is None:
        return nbytes(tensor) + tensor.held
    return min(PIECE, prod(tensor.shape)) * 8 * (3 + len(getattr(tensor, "parts", ())))


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor that was read."""
    return prod(tensor.shape) * BITS[tensor.dtype] // 8


def widened(tensor: Tensor) -> Tensor:
    """8-bit floats as bfloat16; any other tensor as it is.

    >>> widened(Held(np.ones(2, np.float32))).dtype
    'F32'
    """
    if tensor.dtype not in SMALL_FLOATS:
        return tensor
    return View(
        (tensor,), tensor.shape, "BF16", lambda array: array.astype(dtypes.FLOATS["BF16"]), 0, alike=True
    )


def matrix(tensor: Tensor) -> Tensor:
    """A convolution's factor (n, m, *kernel) as (n, m · Π kernel)."""
    if len(tensor.shape) == 2:
        return tensor
    return Reshaped(tensor, (tensor.shape[0], prod(tensor.shape[1:])))


def transposed(tensor: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged."""
    return View((tensor,), tensor.shape[::-1], tensor.dtype, lambda array: np.ascontiguousarray(array.T), 0)


def rows(tensor: Tensor, block: int, blocks: int) -> Tensor:
    """Block number `block` of a matrix whose rows fall into `blocks` equal ones."""
    height = tensor.shape[0] // blocks
    return Rows(tensor, (range(block * height, (block + 1) * height),))


def some_rows(tensor: Tensor, spans: Sequence[slice]) -> Tensor:
    """The rows of a matrix in these spans, without steps, in this order."""
    return Rows(tensor, tuple(range(*span.indices(tensor.shape[0])) for span in spans))


def every(tensor: Tensor, first: int, step: int) -> Tensor:
    """The columns first, first + step, first + 2 step … of a matrix."""
    return Columns(tensor, first, step)


def joined(left: Tensor, right: Tensor, axis: int, sign: float = 1.0) -> Tensor:
    """Two matrices joined along an axis, the second times `sign`."""
    kind = dtypes.widest([left.dtype, right.dtype])
    shape = list(left.shape)
    shape[axis] += right.shape[axis]

    def join(first: Array, second: Array) -> Array:
        pair = [first.astype(dtypes.FLOATS[kind]), sign * second.astype(dtypes.FLOATS[kind])]
        return np.concatenate(pair, axis=axis).astype(dtypes.FLOATS[kind])

    entries = prod(left.shape) + prod(right.shape)
    return View((left, right), tuple(shape), kind, join, 2 * entries * BITS[kind] // 8)
