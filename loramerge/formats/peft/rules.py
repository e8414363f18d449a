"""How types other than LoRA decide the rank and the scale of a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Unscaled:
    """A type without an alpha: the formula of its form has every number in it."""

    r: int

    def rank(self, path: str) -> int:
        """The r of the config; 1 where it has none."""
        return self.r

    def scale(self, path: str) -> float:
        return 1.0


@dataclass(frozen=True, eq=False)
class Adaptive:
    """AdaLoRA: alpha over the rank that training began with, which PEFT keeps when it prunes."""

    r: int
    alpha: float
    ranks: Mapping[str, int]

    def rank(self, path: str) -> int:
        """What is left of the rank in a module."""
        return self.ranks.get(path, self.r)

    def scale(self, path: str) -> float:
        """alpha / (r + 1e-5), as PEFT has it."""
        return self.alpha / (self.r + 1e-5)
