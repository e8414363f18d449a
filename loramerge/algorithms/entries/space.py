"""Where a rule is applied: to all entries of ΔW, or to those of the cores of the sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loramerge.algorithms.entries.limits import Limits, Ranked, Search
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.sparsity import Trim
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Result


@dataclass(frozen=True, slots=True)
class Space(ABC):
    """A rule and the space it works in. Its answers mean what they mean in `Method`.

    Args:
        rule: on entries.
        rank: of the merge, if one was asked for.
        search: what is known of the limits of the whole adapter, if the rule needs them.
    """

    rule: Rule
    rank: int | None
    search: Search | None

    @property
    @abstractmethod
    def frame(self) -> Frame:
        """The units that entries are made from."""

    @property
    @abstractmethod
    def diagonal(self) -> bool:
        """Whether one source alone is a diagonal matrix there."""

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether nothing is cut off without a rank."""

    @abstractmethod
    def rankings(self, trim: Trim, grams: Grams) -> Iterator[Ranked]:
        """The sizes that the entries of a batch are trimmed by."""

    @abstractmethod
    def squares(self, grams: Grams) -> Array:
        """σ² of the merge (M, k), largest first."""

    @abstractmethod
    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """The most units a merged module (out, in) has."""

    @abstractmethod
    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        """The most bytes that a worker holds for one module (out, in) at once."""

    @abstractmethod
    def alive(self, sources: int) -> int:
        """(R, R) arrays of float64 alive at once while a module of so many sources is merged."""

    @abstractmethod
    def merge(self, grams: Grams) -> Result:
        """The merged units of one batch."""

    def known(self, present: Sequence[int], modules: int) -> Limits | None:
        """The limits of the whole adapter for these sources, once they are found."""
        if self.search is None:
            return None
        return self.search.limits([0] if self.rule.together else present, modules)
