"""KnOTS: the updates in one common basis of outputs, and a rule on the rows that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from loramerge.algorithms.dare_ties import DareTies
from loramerge.algorithms.entries import tiled
from loramerge.algorithms.entries.elementwise import Elementwise
from loramerge.algorithms.entries.rows import Rows, energies, fitted, rows
from loramerge.algorithms.families.size import Sized, truncate
from loramerge.algorithms.families.span import Span
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.algorithms.ties import Ties
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams, weigh
from loramerge.arrays.remix import Fit, Fitted, Result
from loramerge.errors import UsageError

DENSITIES: Mapping[str, float] = {"ties": 0.2, "dare_ties": 0.9}  # as published
IDLE = {"ties": ("seed",), "linear": ("density", "seed", "rank_tol")}  # options that a rule has no use for


@dataclass(frozen=True, kw_only=True)
class Knots(Span):
    """TIES where the updates are aligned: on coordinates in the singular vectors that all have in common.

        [ΔW_1 | … | ΔW_T] = U Σ [V_1 | … | V_T]        ΔW = U · rule(Σ V_1, …, Σ V_T)

    Σ V_t = Uᵀ ΔW_t has a row for each direction of the outputs, the strongest first, so that entries of
    different adapters mean the same there. The rule is `ties` or `dare_ties`, with weights as these take
    them. U comes from the small factors; no dense update is put beside another. Directions weaker than
    rank_tol times the strongest are left out; the published limit is a σ of 1e-5, however weak adapters are.

    With rule=linear it is the plain sum, whatever the basis, and the same as `linear`.

    Source: KnOTS, Stoica et al. 2024, arXiv:2410.19735. Its densities are the defaults: ties keeps 20 %,
    dare_ties drops 10 %; its λ of 0.6 and 0.7 is a scale of 0.6 and 0.7. It trims over all modules
    together or over each; here it is each.

    Limits: the outputs stay in the span of the adapters and the inputs do not, so a module has as many units
    as all sources together, and a rank cuts some of it: see what is lost. Two directions of one strength
    have no order, and the rule depends on it.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[4.0, 1.0]]))
    >>> other = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[-2.0, 3.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.Knots(density=1.0)).adapter[lm.Target("q")].dense().round(6)
    array([[4., 2.],
           [0., 0.]])
    """

    rule: Literal["ties", "dare_ties", "linear"] = option("ties", "What is done with the rows.")
    density: float | None = option(
        None,
        "The share of entries that the rule keeps [default: 0.2; dare_ties: 0.9].",
        Interval(low=0, high=1, low_open=True),
    )
    seed: int = option(0, "Seed of dare_ties.", Interval(low=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in IDLE.get(self.rule, ()):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UsageError(f"{name} has nothing to do with rule={self.rule}: leave it out.")

    @property
    def traits(self) -> Traits:
        if self.rule == "linear":
            return Traits("linear", weights="additive", exact=True)
        return self.inner.traits

    @property
    def notes(self) -> tuple[str, ...]:
        linear = "knots with a linear rule is the plain sum in any basis: it is what linear gives"
        return (linear,) if self.rule == "linear" else ()

    @property
    def inner(self) -> Elementwise:
        """The rule as a method of its own."""
        density = self.density or DENSITIES[self.rule]
        return Ties(density=density) if self.rule == "ties" else DareTies(density=density, seed=self.seed)

    def merged(self, grams: Grams, module: int) -> tuple[Rows, Array] | None:
        """The basis of one module and the merged rows (ρ, in) in it; None where no source changes it."""
        found = rows(grams, module, self.rank_tol, self.seed)
        if found is None:
            return None
        known = tiled.limits(self.inner, found.entries)
        return found, tiled.merged(self.inner, found.entries, known)

    def observe(self, grams: Grams) -> Array:
        """σ² of the merge (M, R), largest first."""
        if self.rule == "linear":
            return Sized.observe(self, _summed(grams))
        found = np.zeros(grams.live.shape)
        for module, squares in enumerate(found):
            if made := self.merged(grams, module):
                own = energies(made[1])
                squares[: len(own)] = own
        return found

    def remix(self, grams: Grams) -> Result:
        if self.rule == "linear":
            return truncate(_summed(grams), self.rank)
        return Fitted(partial(self._fit, grams))

    def _fit(self, grams: Grams, module: int) -> Fit:
        made = self.merged(grams, module)
        if made is not None:
            return fitted(*made, self.rank)
        assert grams.read is not None
        up, down = grams.read(module)
        return Fit(np.zeros((len(up), 1)), np.zeros((1, down.shape[1])), 0.0, 0.0)


def _summed(grams: Grams) -> Grams:
    """The units with their weights."""
    assert grams.weights is not None
    return weigh(grams, grams.weights)
