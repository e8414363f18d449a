"""What a system with a gate of its own is: how its file names the parts of a module, and what they mean."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.limits import beyond
from loramerge.arrays.backend import Array
from loramerge.arrays.dtypes import wide
from loramerge.errors import IncompatibleError, SourceError, printable, say
from loramerge.routing.bank import Layout
from loramerge.routing.gates.gate import Gate

Parts = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Given:
    """What is known beside a module's tensors.

    Args:
        config: adapter_config.json, or nothing.   alpha: what the user gave, where a file does not say it.
        shared: tensors of the file that are of no module.   where: its name for messages.
    """

    config: Mapping[str, Any]
    alpha: float | None
    shared: Parts
    where: str

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of the config."""
        found = self.config.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise SourceError(f"The config of {self.where} has {name} {printable(found)}, no whole number.")
        return found

    def positive(self, name: str, default: float) -> float:
        """A number of the config above 0."""
        found = self.config.get(name, default)
        if not _is_positive(found):
            raise SourceError(
                f"The config of {self.where} has {name} {printable(found, 60)}, no number above 0."
            )
        return float(found)

    def scale(self, rank: int) -> float:
        """alpha / r, or alpha / √r for rsLoRA."""
        found = self.config.get("lora_alpha", self.alpha)
        if not _is_positive(found):
            raise IncompatibleError(f"{self.where} does not say its alpha: give it with {say('alpha')}.")
        return float(found) / (math.sqrt(rank) if self.config.get("use_rslora") is True else rank)

    def part(self, parts: Parts, name: str) -> Tensor:
        """A part of the module. Raises SourceError: it is missing."""
        if name not in parts:
            raise SourceError(f"{self.where} lacks {name}: it was badly saved.")
        return parts[name]

    def rows(self, parts: Parts, name: str) -> int:
        """The rows of a matrix of the module."""
        return matrix(self.part(parts, name), self.where)[0]


@dataclass(frozen=True, slots=True)
class Stored:
    """A module as numbers: up (out, R) with its scales, down (R, in), and the tensors of the gate."""

    up: Array
    down: Array
    tensors: Mapping[str, Array]


class System(ABC):
    """A system; `pattern` has the groups path and part, `must` names the parts of every module."""

    name: ClassVar[str]
    pattern: ClassVar[re.Pattern[str]]
    must: ClassVar[tuple[str, ...]]

    @abstractmethod
    def gate(self, parts: Parts, given: Given) -> Gate:
        """The gate of all modules, from one of them."""

    @abstractmethod
    def layout(self, parts: Parts, given: Given) -> Layout:
        """Whose the units of a module are; from headers."""

    @abstractmethod
    def stored(self, parts: Parts, given: Given) -> Stored:
        """The numbers of a module."""

    def experts(self, parts: Parts, given: Given) -> tuple[str, ...]:
        """The names of the experts."""
        return tuple(f"expert{e}" for e in range(self.layout(parts, given).experts))

    def uniform(self, parts: Parts, given: Given) -> float:
        """The weight of each expert where its gate is put away."""
        return 1.0

    def carries(self, key: str) -> bool:
        """Whether a tensor beside the modules belongs to the bundle, such as a head."""
        return False

    def shares(self, key: str) -> bool:
        """Whether a tensor beside the modules is of the gate of all of them."""
        return False


def read(tensor: Tensor) -> Array:
    """A tensor in float64."""
    return wide(np.asarray(tensor.read()))


def _is_positive(value: object) -> bool:
    """Whether it is a number above 0 whose squares fit into float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > 0 and not beyond(value)


def matrix(tensor: Tensor, where: str) -> tuple[int, int]:
    """The shape of a matrix. Raises SourceError: it is not a matrix, or has no numbers."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise SourceError(f"{where} has a factor of shape {tensor.shape}, no matrix.")
    return tensor.shape[0], tensor.shape[1]


def paired(up: Tensor, down: Tensor, ranks: tuple[int, ...], where: str) -> Layout:
    """The layout of two stacks (out, R) and (R, in).

    Raises:
        SourceError: they do not fit each other, or the ranks.
    """
    (outs, most), (units, ins) = matrix(up, where), matrix(down, where)
    if most != units or sum(ranks) != units:
        raise SourceError(f"{where} has {most} and {units} units for ranks {ranks}: they do not fit.")
    return Layout((outs, ins), ranks)


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]], where: str) -> Layout:
    """The layout of one pair (r, in) and (out, r) for each expert.

    Raises:
        SourceError: they do not fit each other.
    """
    shapes = [(matrix(down, where), matrix(up, where)) for down, up in pairs]
    (_, ins), (outs, _) = shapes[0]
    for down, up in shapes:
        if up != (outs, down[0]) or down[1] != ins:
            raise SourceError(
                f"{where} has an expert of {down[0]}×{down[1]} and {up[0]}×{up[1]}, which does not fit the "
                f"first, of {outs}×{ins} weights."
            )
    return Layout((outs, ins), tuple(rank for (rank, _), _ in shapes))
