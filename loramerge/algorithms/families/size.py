"""Methods whose merged modules have a chosen number of units, and what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from loramerge.algorithms.method import Interval, Method, option
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, balanced, leading, spectrum
from loramerge.arrays.remix import Remix
from loramerge.errors import UsageError, say


@dataclass(frozen=True, kw_only=True)
class Ranked(Method):
    """A method with `rank` or `energy`; without either, a truncating method takes the largest source rank."""

    rank: int | None = option(
        None,
        "Units in every merged module [default: the largest source rank; all in linear, average, sg and "
        "methods in the span].",
        Interval(low=1),
    )
    # every module: one rank is written anyway, so a larger one costs the other modules nothing
    energy: float | None = option(
        None,
        "Instead of a rank: the smallest at which the best merge keeps this share of ‖ΔW‖² in every module.",
        Interval(low=0, high=1, low_open=True),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.energy is not None:
            both = f"{say('rank', self.rank)} and {say('energy', self.energy)}"
            raise UsageError(f"{both} both set the size: give one of them.")

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether nothing is cut off without a rank."""

    @property
    def foreseen(self) -> bool:
        """Whether the spectra of the merge can be known before it is made."""
        return True

    @property
    def searches(self) -> bool:
        """Whether the method must search for something in the whole adapter before its size is decided."""
        return False

    def look(self, grams: Grams) -> Array:
        """What is searched for, of one batch. Only called while it `searches`."""
        return grams.live

    def after(self, observed: Sequence[Array]) -> Self:
        """The method after one step of its search. Only called while it `searches`."""
        return self

    @property
    def observes(self) -> bool:
        return self.searches or self.energy is not None

    def decide(self, observed: Sequence[Array], largest: int) -> Self:
        if self.searches and observed:
            return self.after(observed)
        if self.energy is not None:
            return replace(self, rank=common_rank(observed, self.energy), energy=None)
        return self if self.rank or self.whole else replace(self, rank=largest)

    def size(self, signature: tuple[int, ...]) -> int:
        return min(self.rank or sum(signature), sum(signature))


@dataclass(frozen=True, kw_only=True)
class Sized(Ranked):
    """A method whose size is that of the weighted sum."""

    @property
    def whole(self) -> bool:
        return self.traits.exact

    @property
    def frame(self) -> Frame:
        exact = self.traits.exact and self.rank is None and self.energy is None
        return "balanced" if exact else "halved"

    def observe(self, grams: Grams) -> Array:
        return squares(grams)


def squares(grams: Grams) -> Array:
    """σ² of the sum of all units (M, R), largest first."""
    return spectrum(grams.up, grams.down, grams.halves).sigma ** 2


def common_rank(observed: Sequence[Array], energy: float) -> int:
    """The smallest rank at which every module keeps the share `energy` of its σ² (at least 1).

    >>> import numpy as np
    >>> common_rank([np.array([[9.0, 0.9, 0.1], [5.0, 0.0, 0.0]])], 0.95)
    2
    """
    return max([1, *(_needed(squares, energy) for squares in observed)])


def _needed(squares: Array, energy: float) -> int:
    kept = squares.cumsum(axis=1)  # (M, R)
    enough = kept >= energy * kept[:, -1:] * (1 - 1e-12)  # rounding of the sum must not cost a unit
    return int(enough.argmax(axis=1).max()) + 1 if len(enough) else 0


def truncate(grams: Grams, rank: int | None) -> Remix:
    """The best approximation of the sum of all units with `rank` of them (Eckart-Young); None: the sum."""
    if rank is None:
        return keep(grams)
    return grams.remix(*balanced(leading(grams.up, grams.down, rank, grams.halves), rank))


def keep(grams: Grams) -> Remix:
    """All units side by side: the sum itself."""
    xp = namespace(grams.up)
    eye = xp.broadcast_to(xp.eye(len(grams.owner)), grams.up.shape)
    return grams.remix(eye, eye)
