"""Level: every adapter is made equally strong, units are pushed apart in part, and the strength is stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np

from loramerge.algorithms.families.span import Cored, lengths, strengths, tolerance
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.algorithms.shrunk_tsv import NOTHING, flattening, shrinkage, shrunk
from loramerge.arrays.backend import Array, like, namespace, ratio
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd

FAINT = 0.01  # of the strength of the strongest: whoever has less may not have been trained


@dataclass(frozen=True, kw_only=True)
class Level(Cored):
    """Adapters of different strength are made equal, then merged at a rank and strength of your choice.

        ΔW_t = U_t Σ_t V_tᵀ,  U = [U₁ … U_T],  G_U = (1−s) UᵀU + s I        (V, G_V likewise)
        M = U G_U^−½ diag(± (|w_t| σ_ti / n_t)^p) G_V^−½ Vᵀ,  cut to rank k
        ΔW = γ M,   ‖ΔW‖ = T^−f mean_t ‖w_t ΔW_t‖        in each module

    n_t is the strength of adapter t: the root mean square of ‖ΔW_t‖ over its modules, or with scope=module
    ‖ΔW_t‖ in each. Without it the strongest adapter takes most of the rank, and the weakest is lost. Units
    that several adapters nearly share are pushed apart (see `shrunk_tsv`), but only in part. γ is set after
    the cut, so a small rank is as strong as a large one. The more adapters, the more they disturb each
    other: f lowers the strength. T counts the adapters that have a weight and are not zero in the module.

    Where one adapter is alone in a module it comes back as it is.

    Source: ours; see docs/quality.md for how it was found and what it was measured against.

    Limits: two copies of an adapter count twice. An adapter that learned very little is made as strong as
    the others: give it a small weight, or leave it out; a note tells of those below a hundredth of the
    strongest. If sources cancel, γ raises what is left.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": 3.0 * unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.Level(fade=0)).adapter[lm.Target("q")].dense().round(4)
    array([[1.4142, 0.    ],
           [0.    , 1.4142]])
    """

    rank_tol: float = tolerance(2.0**-8)
    shrink: float = shrinkage()
    power: float = flattening()
    scope: Literal["adapter", "module"] = option(
        "adapter", "Whether whole adapters are made equally strong, or all adapters in each module."
    )
    fade: float = option(
        0.3,
        "How the strength falls with the number T of adapters: T^-fade times the mean of theirs.",
        Interval(low=0, high=1),
    )
    norms: tuple[float, ...] | None = field(
        default=None, repr=False, metadata={"found": True}
    )  # no option: n_t of whole adapters

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="none")

    @property
    def notes(self) -> tuple[str, ...]:
        norms = self.norms or ()
        faint = [place for place, norm in enumerate(norms, 1) if 0 < norm < FAINT * max(norms)]
        return tuple(
            f"source {place} has less than a hundredth of the strength of the strongest, and level lets it "
            "count as much: leave it out if it has learned nothing, or give it a small weight"
            for place in faint
        )

    @property
    def searches(self) -> bool:
        return self.scope == "adapter" and self.norms is None

    def look(self, grams: Grams) -> Array:
        """‖ΔW_t‖² (M, T)."""
        return lengths(grams) ** 2

    def after(self, observed: Sequence[Array]) -> Self:
        each = np.array(sorted((m for batch in observed for m in batch), key=lambda m: m.tolist()))  # (M, T)
        present = np.maximum((each > 0).sum(axis=0), 1)
        return replace(self, norms=tuple(np.sqrt(each.sum(axis=0) / present).tolist()))

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, strengths(grams, self.rank_tol) > 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp = namespace(grams.up)
        several = (lengths(grams) > 0).sum(axis=1, keepdims=True) > 1  # (M, 1)
        loud = self._levelled(grams)
        raised = xp.sign(grams.unit_weights) * xp.where(several, loud**self.power, loud)
        up, down = (shrunk(side, self.shrink) for side in (bases.reach_up, bases.reach_down))
        x, sigma, yt = svd((up * raised[:, None, :]) @ down.swapaxes(1, 2))
        kept = xp.where(several, (xp.arange(sigma.shape[1]) < (self.rank or sigma.shape[1])) * sigma, sigma)
        length, most = xp.linalg.norm(kept, axis=1), xp.linalg.norm(raised, axis=1)
        return x, sigma * ratio(self._wanted(grams), length, length > NOTHING * most)[:, None], yt

    def _levelled(self, grams: Grams) -> Array:
        """(M, R) |w σ| / n of every unit."""
        norms = lengths(grams)  # (M, T)
        xp = namespace(norms)
        if self.norms is not None and self.scope == "adapter":
            norms = (norms > 0) * like(np.array(self.norms), norms)
        own = norms[:, grams.owner]
        return ratio(strengths(grams, self.rank_tol) * xp.abs(grams.unit_weights), own, own > 0)

    def _wanted(self, grams: Grams) -> Array:
        """‖ΔW‖ (M,)."""
        assert grams.weights is not None
        norms = lengths(grams)
        xp = namespace(norms)
        count = xp.maximum((norms > 0).sum(axis=1), 1)
        return (norms * xp.abs(like(grams.weights, norms))).sum(axis=1) / count ** (1 + self.fade)
