"""KnOTS: the updates in one common basis of outputs, and a rule on the rows that they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from loramerge.algorithms.entries.choice import chosen
from loramerge.algorithms.entries.dense import looked, merged
from loramerge.algorithms.entries.options import SHARE
from loramerge.algorithms.entries.rows import Rows, energies, fitted, rows, shares_merged
from loramerge.algorithms.entries.rule import Rule
from loramerge.algorithms.families.size import Ranked, squares, truncate
from loramerge.algorithms.families.span import RANK_TOL, tolerance
from loramerge.algorithms.memory import factors, stored
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.algorithms.table import RULES
from loramerge.arrays.backend import Array
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams, weigh
from loramerge.arrays.remix import Fit, Fitted, Result
from loramerge.errors import UsageError

TURNED = 2.0  # copies of the factors: as they are, and as rows
DENSITIES: Mapping[str, float] = {"ties": 0.2, "dare_ties": 0.9}  # as published


@dataclass(frozen=True, kw_only=True)
class Knots(Ranked):
    """TIES where the updates are aligned: on coordinates in the singular vectors that all have in common.

        [ΔW_1 | … | ΔW_T] = U Σ [V_1 | … | V_T]        ΔW = U · rule(Σ V_1, …, Σ V_T)

    Σ V_t = Uᵀ ΔW_t has a row for each direction of the outputs, the strongest first, so that entries of
    different adapters mean the same there. The rule is any elementwise method, with weights as it takes
    them. U comes from the small factors; no dense update is put beside another. Directions weaker than
    rank_tol times the strongest are left out; the published limit is a σ of 1e-5, however weak adapters are.

    With rule=linear it is the plain sum, whatever the basis, and the same as `linear`.

    With ranking=shares entries are trimmed as in DRM: every row of every Σ V_t is brought to unit length,
    the largest entries are kept, and the rows get their lengths back before the rule goes on. So weak
    directions keep as many entries as strong ones.

    Source: KnOTS, Stoica et al. 2024, arXiv:2410.19735, with ties and dare_ties. Its densities are the
    defaults: ties keeps 20 %, dare_ties drops 10 %; other rules have their own. Its λ of 0.6 and 0.7 is a
    scale of 0.6 and 0.7. It trims over all modules together or over each; here it is each. DRM, Chaichana et
    al. 2025, arXiv:2505.23117, side by side (DRM-H): it keeps 20 %, ranks the entries of all adapters
    together, divides by their number, and leaves out directions below 1 % of the strongest: --ranking shares
    --rank-tol 0.01. Here each adapter has a ranking of its own, and weights divide.

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

    rank_tol: float = tolerance()
    rule: str = option(
        "ties",
        "What is done with the rows: they are merged by the method of that name.",
        choices=(*RULES, "linear"),
    )
    density: float | None = option(
        None,
        "The share of entries that the rule keeps [default: 0.2; dare_ties: 0.9; other rules: their own].",
        SHARE,
    )
    seed: int = option(0, "Of rules that keep entries by chance.", Interval(low=0))
    ranking: Literal["sizes", "shares"] = option(
        "sizes", "What the rule trims by: the sizes of entries, or their shares of their rows (DRM)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.chosen()
        if self.ranking == "shares" and not rule.trims_alone:
            raise UsageError(
                f"ranking=shares has nothing to do with rule={self.rule}: it is for rules that trim each "
                "source, such as ties."
            )
        if self.rule == "linear" and self.rank_tol != RANK_TOL:
            raise UsageError("rank_tol has nothing to do with rule=linear: leave it out.")

    def chosen(self) -> Rule:
        """The rule with its options.

        Raises:
            UsageError: it does not have them.
        """
        return chosen(self.rule, self.density or DENSITIES.get(self.rule), self.seed)

    @property
    def traits(self) -> Traits:
        return self.chosen().traits("linear" if self.rule == "linear" else "elementwise")

    @property
    def whole(self) -> bool:
        return True

    @property
    def batched(self) -> bool:
        return self.rule == "linear"  # else rows of the input's size, from factors on the host

    @property
    def frame(self) -> Frame:
        return "spectral"

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    @property
    def notes(self) -> tuple[str, ...]:
        linear = "knots with a linear rule is the plain sum in any basis: it is what linear gives"
        return (linear,) if self.rule == "linear" else ()

    # Uᵀ up stands in place of up, so tiles, exact limits and chance are those of `ties` and `dare_ties`.
    def merged(self, grams: Grams, module: int) -> tuple[Rows, Array] | None:
        """The basis of one module and the merged rows (ρ, in) in it; None where no source changes it."""
        rule = self.chosen()
        found = rows(grams, module, self.rank_tol, rule.by_rows)
        if found is None:
            return None
        by_shares = self.ranking == "shares"
        return found, (shares_merged if by_shares else merged)(rule, found.entries)

    def observe(self, grams: Grams) -> Array:
        """σ² of the merge (M, R), largest first."""
        if self.rule == "linear":
            return squares(_summed(grams))
        found = np.zeros(grams.live.shape)
        for module, row in enumerate(found):
            if made := self.merged(grams, module):
                own = energies(made[1])
                row[: len(own)] = own
        return found

    def remix(self, grams: Grams) -> Result:
        if self.rule == "linear":
            return truncate(_summed(grams), self.rank)
        return Fitted(partial(self._fit, grams))

    def needs(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        width, units, (high, wide) = self.width(signature, shape), sum(signature), shape
        least = max(factors(signature, shape, width, TURNED), stored(shape, width))
        if self.rule == "linear":
            return least
        rows = min(units, high)
        held = 8 * units * high + 4 * (units + rows) * wide
        made = held + looked(self.chosen(), signature, (rows, wide))
        return max(least, made, held + 8 * rows * wide + 16 * width * sum(shape))

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
