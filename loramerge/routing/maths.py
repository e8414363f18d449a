"""The few functions that gates need beside operators, so that one formula serves NumPy and torch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Maths(Protocol):
    """Functions of arrays of one library; rows are along the last axis."""

    def exp(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def erf(self, x: Any) -> Any: ...
    def where(self, mask: Any, x: Any, other: float) -> Any: ...
    def largest(self, x: Any) -> Any:
        """The largest of each row, kept as a column."""

    def total(self, x: Any) -> Any:
        """The sum of each row, kept as a column."""

    def repeated(self, owner: Any, part: int) -> Any:
        """(R,) the part of so many units that each unit is of; `owner` (R,) is of the same library."""

    def top(self, x: Any, k: int) -> Any:
        """Where the k largest of each row are; of equal ones the first."""


class Numpy:
    """The reference."""

    def exp(self, x: Any) -> Any:
        return np.exp(x)

    def tanh(self, x: Any) -> Any:
        return np.tanh(x)

    def erf(self, x: Any) -> Any:
        from scipy.special import erf  # for the one gate that has a GELU

        return erf(x)

    def where(self, mask: Any, x: Any, other: float) -> Any:
        return np.where(mask, x, other)

    def largest(self, x: Any) -> Any:
        return x.max(axis=-1, keepdims=True)

    def total(self, x: Any) -> Any:
        return x.sum(axis=-1, keepdims=True)

    def repeated(self, owner: Any, part: int) -> Any:
        return np.arange(len(owner)) // part

    def top(self, x: Any, k: int) -> Any:
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        mask = np.zeros(x.shape, bool)
        np.put_along_axis(mask, order, True, axis=-1)
        return mask


NUMPY = Numpy()
