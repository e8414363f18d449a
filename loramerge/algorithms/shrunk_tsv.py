"""Shrunk TSV: units are made orthogonal in part, spectra are flattened, and the strength is a source's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from loramerge.algorithms.families.span import Cored, lengths, strengths, tolerance
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, namespace, ratio
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd

NOTHING = 1e-12  # of the sources' strength: less is rounding of what cancels


def shrinkage() -> float:
    """The option `shrink`."""
    return option(
        0.3, "How much of the whitening is left out: 0 none of it, 1 all of it.", Interval(low=0, high=1)
    )


def flattening() -> float:
    """The option `power`."""
    return option(
        0.75,
        "The power that σ is raised to before the merge: 1 leaves spectra as they are, 0.5 flattens them.",
        Interval(low=0.1, high=1),
    )


@dataclass(frozen=True, kw_only=True)
class ShrunkTsv(Cored):
    """Units of different sources are pushed apart, but only in part, and weak units are raised.

        ΔW_t = U_t Σ_t V_tᵀ,  U = [U₁ … U_T],  G_U = (1−s) UᵀU + s I        (V, G_V likewise)
        ΔW = γ U G_U^−½ diag(± |w_t σ_ti|^p) G_V^−½ Vᵀ,   γ: as strong as the sources are on average

    At s = 0 the whitening is that of `tsv`, and at s = 1 there is none. In between, directions that sources
    nearly share are not pushed apart at full strength. A power p below 1 keeps more of the weak units when a
    rank cuts the merge. γ = mean_t ‖w_t ΔW_t‖ / ‖the rest‖ in each module, so T sources are as loud as one.

    Source: ours, a ridge in the whitening of TSV-Merge (Gargiulo et al. 2025, arXiv:2412.00081), with the
    strength of Pico (arXiv:2604.16826). s = 0.3 and p = ¾ come from one testbed of small models.

    Limits: with a power other than 1, one adapter does not come back as itself, because its spectrum is
    flatter. A rank cuts after γ, so a small rank leaves less than the strength of a source. If sources
    cancel, γ raises what is left to full strength.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.6], [0.8]]), np.array([[0.6, 0.8]]))
    >>> a, b = lm.Adapter.of({"q": 3.0 * unit}), lm.Adapter.of({"q": other})
    >>> lm.combine([a, b], lm.ShrunkTsv(shrink=1, power=1)).adapter[lm.Target("q")].dense().round(4)
    array([[1.9271, 0.2753],
           [0.2753, 0.3671]])
    """

    rank_tol: float = tolerance(2.0**-8)
    shrink: float = shrinkage()
    power: float = flattening()

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="consensus", identity=self.power == 1)

    def weigh(self, grams: Grams, weights: Array) -> Grams:
        return replace(grams, weights=weights)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, self._strength(grams) > 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        xp = namespace(grams.up)
        strength = self._strength(grams)
        up, down = (shrunk(side, self.shrink) for side in (bases.reach_up, bases.reach_down))
        raised = xp.sign(grams.unit_weights) * strength**self.power
        x, sigma, yt = svd((up * raised[:, None, :]) @ down.swapaxes(1, 2))
        return x, sigma * self._gain(grams, sigma, raised)[:, None], yt

    def _strength(self, grams: Grams) -> Array:
        """(M, R) |w σ| of every unit."""
        return strengths(grams, self.rank_tol) * namespace(grams.up).abs(grams.unit_weights)

    def _gain(self, grams: Grams, sigma: Array, raised: Array) -> Array:
        """γ (M,)."""
        assert grams.weights is not None
        xp = namespace(sigma)
        each = lengths(grams) * xp.abs(xp.asarray(grams.weights))  # (M, T)
        wanted = each.sum(axis=1) / xp.maximum((each > 0).sum(axis=1), 1)
        length, most = xp.linalg.norm(sigma, axis=1), xp.linalg.norm(raised, axis=1)
        return ratio(wanted, length, length > NOTHING * most)


def shrunk(reach: Array, share: float) -> Array:
    """U G^−½ for G = (1−s) UᵀU + s I, from coordinates U = S Wᵀ (M, R, R) whose rows are that long.

    >>> import numpy as np
    >>> shrunk(np.array([[[3.0, 0.0], [0.0, 0.5]]]), 0.0).round(6).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    square = (reach**2).sum(axis=2, keepdims=True)  # (M, R, 1) = S²
    xp = namespace(reach)
    scale = xp.sqrt((1 - share) * square + share)
    return ratio(reach, scale, square > 0)
