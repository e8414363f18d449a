"""What a gate is: a frozen dataclass whose fields are its options, and a weight for every unit."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np

from loramerge.algorithms.method import Interval, check_options, option
from loramerge.arrays.backend import Array
from loramerge.errors import UsageError, printable
from loramerge.routing.bank import Bank, Basis, Layout, Shapes
from loramerge.routing.maths import Maths

By = Literal["expert", "unit", "output"]
ONE = Interval(low=1)
WARM = Interval(low=0, low_open=True)


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """What a gate sees of n tokens in one module, in the arrays of NumPy or torch.

    Args:
        x: (n, in).   units: (n, R) = x downᵀ.   owner: (R,) the expert of each.   members: (R, E), as sums.
        tensors: those of the gate.   maths: for these arrays.
        rows: (n, E) or (1, E) what the request asks for, where a gate goes by it.
        prompt: (p, m) hidden states of the prompt, where a gate goes by these.
    """

    x: Any
    units: Any
    owner: Any
    members: Any
    tensors: Mapping[str, Any]
    layout: Layout
    maths: Maths
    rows: Any = None
    prompt: Any = None

    def by(self, name: str) -> Any:
        """(n, rows) the products of the tokens with the rows of a tensor."""
        return self.x @ self.tensors[name].T


@dataclass(frozen=True, kw_only=True)
class Gate(ABC):
    """A gate. Its tensors are those of one module; weighing is a pure function of what is seen there."""

    by: ClassVar[By] = "expert"  # what it weighs: n tokens get (n, E), (n, R), or (n, out)
    asks: ClassVar[Literal["", "row", "prompt"]] = ""  # what it must be told with each request

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def basis(self) -> Basis:
        """The units that it weighs: as the experts store them, or those of the SVD of each ΔW."""
        return "stored"

    def settled(self, experts: int) -> Self:
        """The gate with its open options fixed for so many experts.

        Raises:
            UsageError: it is not for so many.
        """
        return self

    def shapes(self, layout: Layout) -> Shapes:
        """Name -> shape of its tensors in a module."""
        return {}

    @abstractmethod
    def scores(self, seen: Seen) -> Any:
        """What it goes by before it chooses: of the same shape as the weights."""

    @abstractmethod
    def weigh(self, seen: Seen) -> Any:
        """The weights of experts (n, E), units (n, R) or outputs (n, out)."""

    def row(self, name: str | None) -> tuple[float, ...] | None:
        """The weights (E,) that a request of this name asks for; None where the input decides.

        Raises:
            UsageError: there is no such row, or one must be named.
        """
        if name is not None:
            raise UsageError(f"This gate goes by its input, so that it has no row {printable(name)}.")
        return None

    def constant(self, layout: Layout, tensors: Mapping[str, Array]) -> Array | None:
        """The weights (E,), (R,) or (out,) of every token, where they depend on none; else None.

        One expert alone has all the weight, whatever its score.
        """
        return np.ones(1) if layout.experts == 1 and self.by == "expert" and not self.asks else None

    def options(self) -> dict[str, Any]:
        """Field values, for the record."""
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def names(cls) -> list[str]:
        """Names of the options."""
        return [f.name for f in fields(cls)]

    @classmethod
    def description(cls) -> str:
        """The docstring without its example."""
        return (inspect.getdoc(cls) or "").partition(">>>")[0].rstrip()


@dataclass(frozen=True, kw_only=True)
class DataFree(Gate):
    """A gate that is made of the adapters alone."""

    @abstractmethod
    def keys(self, bank: Bank) -> Mapping[str, Array]:
        """Its tensors in a module, in float64."""


def stored_as(gate: Gate, dtype: str) -> str:
    """The type in which units are kept for a gate (safetensors names).

    In float16 a unit is balanced between its halves, which its ΔW does not see, but a gate of units does.
    """
    return "F32" if gate.by == "unit" and dtype == "F16" else dtype


@dataclass(frozen=True, kw_only=True)
class ByRequest(DataFree):
    """A gate that goes by what the request says: it has no tensors, and its weights are those of a row."""

    def keys(self, bank: Bank) -> Mapping[str, Array]:
        return {}

    def scores(self, seen: Seen) -> Any:
        return seen.rows

    def weigh(self, seen: Seen) -> Any:
        return seen.rows


def told(default: Any, help: str) -> Any:
    """An option that holds many values, which the gate checks itself."""
    return field(default=default, metadata={"told": help, "found": False})


def numbers(name: str, values: Any) -> tuple[float, ...]:
    """Weights that the user gives.

    Raises:
        UsageError: they are no finite numbers.
    """
    try:
        found = () if isinstance(values, str) else tuple(map(float, values))
    except (TypeError, ValueError, OverflowError):
        found = ()
    if not found or not all(map(math.isfinite, found)):
        shown = printable(repr(values), 60)
        raise UsageError(f"{printable(name, 60)}: {shown} is no list of finite weights, one for each expert.")
    return found


def top_k(default: int | None, of: str = "experts") -> Any:
    """The option of how many are chosen for each token."""
    return option(default, f"How many {of} each token gets.", ONE)


def temperature(default: float = 1.0) -> Any:
    """The option of how even the weights are."""
    return option(default, "The higher, the more even the weights of those chosen.", WARM)
