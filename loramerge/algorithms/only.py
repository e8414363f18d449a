"""A method for some modules and another for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from loramerge.adapters.arguments import checked
from loramerge.adapters.patterns.search import Matcher, searcher
from loramerge.algorithms.method import Method, Traits
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Result
from loramerge.errors import UsageError


def _sum() -> Method:
    """The weighted sum."""
    from loramerge.algorithms.linear import Linear

    return Linear()


@dataclass(frozen=True, kw_only=True)
class Only(Method):
    """`method` in the modules whose name holds a match, `otherwise` in the rest.

    Made by `only`. Its declarations are those that hold for both.
    """

    method: Method
    match: str
    otherwise: Method = field(default_factory=_sum)

    def __post_init__(self) -> None:
        searcher(self.match, "only")
        if self.otherwise.observes:
            sized = getattr(self.otherwise, "energy", None) is not None
            raise UsageError(
                "only: the method for the rest is not asked to look at all modules first: give it "
                f"{'a rank in place of its energy' if sized else 'the scope module'}."
            )

    @property
    def traits(self) -> Traits:
        a, b = self.method.traits, self.otherwise.traits
        both = {
            name: getattr(a, name) and getattr(b, name)
            for name in ("identity", "homogeneous", "exact", "sums", "negative")
        }
        either = {name: getattr(a, name) or getattr(b, name) for name in ("shares", "vanishes")}
        weights = a.weights if a.weights == b.weights else "none"
        common = a.common if a.common == b.common else "neither"
        gauge = a.gauge if a.gauge == b.gauge else "raw"
        return Traits(a.family, weights=weights, common=common, gauge=gauge, **both, **either)

    @cached_property
    def _found(self) -> Matcher:
        return searcher(self.match, "only")

    def at(self, module: str) -> Method:
        # the driver splits batches by it, as by rules
        return self.method if self._found(module) else self.otherwise

    @classmethod
    def names(cls) -> list[str]:
        return ["method", "match", "otherwise"]

    @property
    def observes(self) -> bool:
        return self.method.observes

    def weights(self, weights: Array) -> Array:
        return self.method.weights(weights)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.method.notes, *self.otherwise.notes)

    def decide(self, observed: Sequence[Array], largest: int) -> Self:
        rest = self.otherwise.decide([], largest)
        return replace(self, method=self.method.decide(observed, largest), otherwise=rest)

    @property
    def batched(self) -> bool:
        return self.method.batched or self.otherwise.batched  # each batch asks its own

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return max(self.method.needs(signature, shape), self.otherwise.needs(signature, shape))

    def squares(self, sources: int) -> int:
        return max(self.method.squares(sources), self.otherwise.squares(sources))

    def size(self, signature: tuple[int, ...]) -> int:
        raise AssertionError("asked of the method of a module, by `at`")

    def remix(self, grams: Grams) -> Result:
        raise AssertionError("asked of the method of a module, by `at`")


@checked("match")
def only(method: Method, match: str, otherwise: Method | None = None) -> Only:
    """Use a method in some modules. The others get `otherwise`, by default the weighted sum.

    Args:
        match: a regular expression, searched in module names.

    Raises:
        UsageError: no regular expression, or `otherwise` must see all modules first (``energy``).

    >>> import loramerge as lm
    >>> pair = ["fixtures/a.safetensors", "fixtures/b.safetensors"]
    >>> method = lm.only(lm.Lego(rank=4), "q_proj", otherwise=lm.Svd(rank=8))
    >>> merge = lm.combine(pair, method, profile="compact")
    >>> sorted(set(merge.plan.outline.ranks.values()) | {merge.plan.outline.rank})
    [4, 8]
    """
    for given in (method, otherwise):
        if not isinstance(given, Method) and given is not None:
            raise UsageError(f"only takes methods such as loramerge.Svd(rank=8), not {given!r}.")
        if isinstance(given, Only) or (given is not None and given.masks):
            raise UsageError(
                "only takes no other `only` and no method with masks: merge these modules alone."
            )
    return Only(method=method, match=match, otherwise=_sum() if otherwise is None else otherwise)
