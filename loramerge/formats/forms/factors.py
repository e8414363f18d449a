"""Factors that are computed: in float64, when they are asked for, and never larger than the form needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.formats.files.views import View

Pair = tuple[Array, Array]
WIDE, TIMES = 2, 6  # copies in float64 that are alive at once of all tensors, and of what is made of them


@dataclass(frozen=True, eq=False, slots=True)
class Product:
    """A matrix that is a product of stored tensors.

    Args:
        tensors: what it is computed from.
        size: (out, in · Π kernel).   units: the rank that it has at most.
        pair: its factors (out, units) and (units, in · Π kernel), from the arrays of the tensors.
        whole: itself, from the same.
        numbers: that are made on the way to the pair, where they are more than it has.
    """

    tensors: Sequence[Tensor]
    size: tuple[int, int]
    units: int
    pair: Callable[..., Pair]
    whole: Callable[..., Array]
    numbers: int = 0

    @classmethod
    def full(cls, tensors: Sequence[Tensor], size: tuple[int, int], whole: Callable[..., Array]) -> Product:
        """One that has no smaller form than itself."""
        return cls(tensors, size, min(size), lambda *arrays: split(whole(*arrays)), whole)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Its factors; or itself beside an identity, where that has no more units."""
        (outs, ins), units = self.size, self.units
        if units < min(outs, ins):
            numbers = max(self.numbers, units * (outs + ins))  # both sides are made for each of them
            up = made(self.tensors, (outs, units), lambda *arrays: self.pair(*arrays)[0], numbers)
            return up, made(self.tensors, (units, ins), lambda *arrays: self.pair(*arrays)[1], numbers)
        matrix = made(self.tensors, self.size, self.whole)
        return (matrix, identity(ins)) if ins <= outs else (identity(outs), matrix)


def made(
    tensors: Sequence[Tensor], shape: tuple[int, ...], make: Callable[..., Array], numbers: int = 0
) -> Tensor:
    """A factor that is computed in float64 and handed over as float32, or wider as its tensors are.

    Args:
        numbers: that are made on the way to it, where they are more than it has.
    """
    floats = [tensor.dtype for tensor in tensors if tensor.dtype in dtypes.FLOATS]
    kind = dtypes.widest([*floats, "F32"])

    def computed(*arrays: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # blamed on its source where it is used
            return make(*(dtypes.wide(array) for array in arrays)).astype(dtypes.FLOATS[kind])

    given = sum(prod(tensor.shape) for tensor in tensors)
    work = 8 * (WIDE * given + TIMES * max(numbers, prod(shape)))
    return View(tuple(tensors), shape, kind, computed, work)


def identity(size: int) -> Tensor:
    """The identity matrix, made when it is read."""
    return View((), (size, size), "F32", lambda: np.eye(size, dtype=np.float32), 0)


def split(matrix: Array) -> Pair:
    """A matrix as a pair: itself, and the identity of its shorter side."""
    outs, ins = matrix.shape
    return (matrix, np.eye(ins)) if ins <= outs else (np.eye(outs), matrix)


def half(a: Array, b: Array, *core: Array) -> Pair:
    """(out, r) and (r, in · Π kernel), whose product is ``a @ b``.

    With the core of a Tucker convolution `a` lies on its side: W[p, q, …] = Σ core[i, j, …] a[i, p] b[j, q].
    """
    if not core:
        return a, b.reshape(len(b), -1)
    return a.T, np.einsum("ij...,jn->in...", core[0], b).reshape(len(a), -1)
