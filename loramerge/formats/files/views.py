"""Tensors seen otherwise than they are stored: reshaped, cut, widened. Numbers are still read when asked."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from threading import Lock

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array

SMALL_FLOATS = ("F8_E4M3", "F8_E5M2")  # bfloat16 holds every value of both


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class View:
    """A tensor of this shape and dtype, which `make` takes from arrays of the tensors behind it."""

    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]
    dtype: str
    make: Callable[..., Array]

    def read(self) -> Array:
        return self.make(*(part.read() for part in self.parts))


@dataclass(frozen=True, eq=False, repr=False)
class Shared:
    """A tensor that many views cut from: read once as long as any cut of it is alive."""

    tensor: Tensor
    _lock: Lock = field(default_factory=Lock)
    _last: list[weakref.ref[Array]] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def read(self) -> Array:
        with self._lock:
            kept = self._last[0]() if self._last else None
            if kept is None:
                kept = np.asarray(self.tensor.read())
                self._last[:] = [weakref.ref(kept)]
            return kept


def widened(tensor: Tensor) -> Tensor:
    """8-bit floats as bfloat16; any other tensor as it is.

    >>> from loramerge.adapters.adapter import Held
    >>> widened(Held(np.ones(2, np.float32))).dtype
    'F32'
    """
    if tensor.dtype not in SMALL_FLOATS:
        return tensor
    return View((tensor,), tensor.shape, "BF16", lambda array: array.astype(dtypes.FLOATS["BF16"]))


def matrix(tensor: Tensor) -> Tensor:
    """A convolution's factor (n, m, *kernel) as (n, m · Π kernel)."""
    if len(tensor.shape) == 2:
        return tensor
    shape = (tensor.shape[0], prod(tensor.shape[1:]))
    return View((tensor,), shape, tensor.dtype, lambda array: array.reshape(shape))


def transposed(tensor: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged."""
    return View((tensor,), tensor.shape[::-1], tensor.dtype, lambda array: np.ascontiguousarray(array.T))


def rows(tensor: Tensor, block: int, blocks: int) -> Tensor:
    """Block number `block` of a matrix whose rows fall into `blocks` equal ones."""
    height, width = tensor.shape[0] // blocks, tensor.shape[1]
    cut = slice(block * height, (block + 1) * height)
    return View((tensor,), (height, width), tensor.dtype, lambda array: array[cut])


def every(tensor: Tensor, first: int, step: int) -> Tensor:
    """The columns first, first + step, first + 2 step … of a matrix."""
    height, width = tensor.shape
    return View((tensor,), (height, width // step), tensor.dtype, lambda array: array[:, first::step])


def joined(left: Tensor, right: Tensor, axis: int, sign: float = 1.0) -> Tensor:
    """Two matrices joined along an axis, the second times `sign`."""
    kind = dtypes.widest([left.dtype, right.dtype])
    shape = list(left.shape)
    shape[axis] += right.shape[axis]

    def join(first: Array, second: Array) -> Array:
        pair = [first.astype(dtypes.FLOATS[kind]), sign * second.astype(dtypes.FLOATS[kind])]
        return np.concatenate(pair, axis=axis).astype(dtypes.FLOATS[kind])

    return View((left, right), tuple(shape), kind, join)
