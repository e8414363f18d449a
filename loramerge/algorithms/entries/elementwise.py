"""Methods that apply a rule to entries: those of ΔW, or those of cores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from loramerge.algorithms.entries.cores import Cores
from loramerge.algorithms.entries.dense import Dense
from loramerge.algorithms.entries.limits import Search
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.entries.space import Space
from loramerge.algorithms.entries.sparsity import Trim
from loramerge.algorithms.families.size import Ranked
from loramerge.algorithms.families.span import RANK_TOL, tolerance
from loramerge.algorithms.method import Traits, option
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Result
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Elementwise(Ranked):
    """A method that looks at each entry of all sources. It names its `rule`; its space does the rest."""

    rank_tol: float = tolerance()
    space: Literal["dense", "core"] = option(
        "dense",
        "What entries are: those of ΔW, or those of the small cores that sources have in common bases.",
    )
    search: Search | None = field(default=None, repr=False, metadata={"found": True})  # no option

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space == "dense" and self.rank_tol != RANK_TOL:
            raise UsageError(f"rank_tol={self.rank_tol} has nothing to do in dense space: leave it out.")

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What the method, with its options, makes of entries."""

    @property
    def traits(self) -> Traits:
        return self.rule.traits("elementwise", diagonal=self.place.diagonal, whole=self.place.whole)

    @property
    def place(self) -> Space:
        """The space, with the rule in it."""
        if self.space == "core":
            return Cores(self.rule, self.rank, self.search, self.rank_tol)
        return Dense(self.rule, self.rank, self.search, self.energy)

    @property
    def whole(self) -> bool:
        return self.place.whole

    @property
    def batched(self) -> bool:
        return self.space == "core"  # dense entries are looked at tile by tile, from factors on the host

    @property
    def frame(self) -> Frame:
        return self.place.frame

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    @property
    def _looking(self) -> tuple[Trim, Search] | None:
        """The search for limits over the whole adapter, while it goes on, and what they are for."""
        trim, search = self.rule.trim, self.search or Search()
        if trim is None or trim.idle or trim.scope == "module" or search.done:
            return None
        return trim, search

    @property
    def searches(self) -> bool:
        return self._looking is not None

    def observe(self, grams: Grams) -> Array:
        """What the search for limits asks; then σ² of the merge (M, k), as a rank keeps them."""
        if self._looking is None:
            return self.place.squares(grams)
        trim, search = self._looking
        return search.observe(self.place.rankings(trim, grams))

    def after(self, observed: Sequence[Array]) -> Self:
        assert self._looking is not None
        trim, search = self._looking
        return replace(self, search=search.next(observed, trim.counts))

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return self.place.width(signature, shape)

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return self.place.needs(signature, shape)

    def squares(self, sources: int) -> int:
        return self.place.alive(sources)

    def remix(self, grams: Grams) -> Result:
        return self.place.merge(grams)
