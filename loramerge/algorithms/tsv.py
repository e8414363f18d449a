"""TSV-M: singular units of all sources side by side, made orthogonal to each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loramerge.algorithms.families.span import RANK_TOL, Cored, tolerance
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, namespace
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.polar import rows_as_directions, singular


@dataclass(frozen=True, kw_only=True)
class Tsv(Cored):
    """Task singular vectors: the interference between sources is whitened away; no unit loses strength.

        ΔW_t = U_t Σ_t V_tᵀ,  U = [U₁ … U_T], V = [V₁ … V_T]        ΔW = U⊥ diag(w_t σ_ti) V⊥ᵀ

    U⊥ is the polar factor of U, the matrix with orthonormal columns nearest to it (V⊥ likewise), so every
    unit of every source keeps its σ, and its direction as well as it can beside the others. A weight
    multiplies σ and turns no direction.

    Source: TSV-Merge, Gargiulo et al. 2025, arXiv:2412.00081. Their k is ⌊min(out, in)/T⌋ units of every
    source; an adapter of rank r has only r, and the others would be directions that a library made up
    (measured: half of the result). Here all that an adapter has take part, or `per_source` of them.

    Limits: adapters that share directions, or units that outnumber the rows or columns, cannot all be
    orthogonal. Then U⊥ is the nearest partial isometry: they share what there is, and n copies of an
    adapter come to one of them. Directions that are nearly shared are pushed apart at full strength, down
    to rank_tol. Its default is 2⁻⁸, the spacing of bfloat16: two directions nearer than the numbers that
    adapters are trained and used in are one. So near copies come to one of them, as copies do; with 1e-5
    five copies 0.1 % apart came out 190 % off.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.6], [0.8]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.Tsv()).adapter[lm.Target("q")].dense().round(3)
    array([[ 0.949,  0.316],
           [-0.316,  0.949]])
    """

    rank_tol: float = tolerance(2.0**-8)
    per_source: int | None = option(
        None, "Leading singular units of every source that take part [default: all].", Interval(low=1)
    )

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="consensus", identity=self.per_source is None)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, self._strength(grams) > 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp, weight = namespace(grams.up), grams.unit_weights
        up, down = rows_as_directions(bases.reach_up), rows_as_directions(bases.reach_down)
        return singular(up * xp.sign(weight), self._strength(grams) * xp.abs(weight), down)

    def _strength(self, grams: Grams) -> Array:
        """(M, R) σ of every unit that takes part, else 0."""
        assert grams.weights is not None
        xp = namespace(grams.up)
        sigma = xp.sqrt(xp.maximum(grams.kernel.diagonal(axis1=1, axis2=2), 0.0)) * grams.live
        for source in grams.owners:
            mine = grams.of(source)  # strongest first
            own = sigma[:, mine] * float(grams.weights[source] != 0)
            own[:, self.per_source or len(mine) :] = 0.0
            noise = min(self.rank_tol, RANK_TOL)  # a weak unit is no error; only its direction may be one
            sigma[:, mine] = own * (own > noise * own.max(axis=1, keepdims=True))
        return sigma
