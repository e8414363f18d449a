"""Iso-CTS: the strongest directions of the sum, and of what each source adds to them, all made equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loramerge.algorithms.families.span import RANK_TOL, Span, heard, lengths, tolerance
from loramerge.algorithms.method import Interval, Traits, option
from loramerge.arrays.backend import Array, host, like
from loramerge.arrays.basis import Basis, directions
from loramerge.arrays.gram import Grams
from loramerge.arrays.linalg import svd
from loramerge.arrays.polar import nearest, singular

Side = tuple[Array, Array, float]  # one source: up (R, r) and down (R, r) of its core, and its norm
Parts = tuple[Array, Array, Array]  # columns (R, k), σ (k,), columns (R, k)


@dataclass(frozen=True, kw_only=True)
class IsoCTS(Span):
    """The isotropic merge in common and task-specific subspaces: weak skills of single sources have a place.

        Σ_t w_t ΔW_t = U Σ Vᵀ; its first c units are kept, U_c Σ_c V_cᵀ
        w_t ΔW_t − U_c U_cᵀ w_t ΔW_t = U_t Σ_t V_tᵀ; the first s of every source are kept
        ΔW = σ̄ U⊥ V⊥ᵀ    of U = [U_c U₁ … U_T], V likewise;  ⊥ the polar factor, σ̄ the mean of all kept σ

    s = round((n − ⌊common · n⌋)/T) and c = n − T s, with n directions and T sources, silent ones left out.

    Source: Iso-CTS, Marczak et al. 2025, arXiv:2502.04959, as in their code. There n = min(out, in), far more
    than the directions of LoRA, most of them made up; here n is what the adapters span, on the side where
    that is less. A source that has fewer than s directions of its own, above rank_tol, gives those.
    Directions nearer than rank_tol are one, as for Iso-C.

    Limits: one adapter does not come back as itself, because its spectrum is flattened, as by Iso-C. For
    few or small sources s is often 0, and the merge is Iso-C. A rank keeps directions by the σ they had
    before they were made equal, and cuts much: give it room.

    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))
    >>> other = lm.LowRank(np.array([[0.0], [1.0]]), np.array([[0.0, 1.0]]))
    >>> a, b = lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * other})
    >>> lm.combine([a, b], lm.IsoCTS()).adapter[lm.Target("q")].dense().round(6)
    array([[2., 0.],
           [0., 2.]])
    """

    common: float = option(
        0.8, "Share of the directions that are taken from the sum.", Interval(low=0, high=1)
    )

    rank_tol: float = tolerance(2.0**-8)

    @property
    def traits(self) -> Traits:
        return Traits("spectral", weights="none", identity=False)

    def bases(self, grams: Grams) -> Basis:
        return directions(grams, heard(grams, self.rank_tol) != 0, self.rank_tol)

    def units(self, grams: Grams, bases: Basis) -> tuple[Array, Array, Array]:
        assert grams.weights is not None
        # On the host: spectra say how many directions a module keeps, so its factorisations have sizes of
        # their own and no batch.
        weighted = heard(grams, self.rank_tol)[:, None, :]
        ups, downs, ranks = map(host, (bases.reach_up * weighted, bases.reach_down, bases.ranks))
        norms = host(lengths(grams)) * np.abs(grams.weights)
        x, y = np.zeros_like(ups), np.zeros_like(ups)
        sigma = np.zeros(ups.shape[:2])
        for m, (up, down) in enumerate(zip(ups, downs, strict=True)):
            sides = [
                (up[:, grams.of(s)], down[:, grams.of(s)], float(norms[m, s]))
                for s in np.flatnonzero(norms[m]).tolist()
            ]
            left, strength, right = self._kept(sides, int(ranks[m].min()))
            order = np.argsort(-strength, kind="stable")
            k = len(order)
            x[m, :, :k], y[m, :, :k] = (
                nearest(left, self.rank_tol)[:, order],
                nearest(right, self.rank_tol)[:, order],
            )
            sigma[m, :k] = strength.mean() if k else 0.0
        return singular(*(like(each, bases.reach_up) for each in (x, sigma, y)))

    def _kept(self, sides: list[Side], room: int) -> Parts:
        """Common and own directions of one module, from every source."""
        if not sides:
            return np.zeros((1, 0)), np.zeros(0), np.zeros((1, 0))
        own = min(round((room - int(room * self.common)) / len(sides)), room // len(sides))
        up, down = (np.concatenate([side[n] for side in sides], axis=1) for n in (0, 1))
        u, sigma, vt = svd(up @ down.T)
        noise = min(self.rank_tol, RANK_TOL)  # a weak skill of the sum counts
        count = min(room - own * len(sides), int((sigma > noise * sigma[0]).sum()))
        shared = u[:, :count], sigma[:count], vt[:count].T
        kept = [shared, *self._own(sides, shared[0], own)]
        left, strength, right = zip(*kept, strict=True)
        return np.concatenate(left, axis=1), np.concatenate(strength), np.concatenate(right, axis=1)

    def _own(self, sides: list[Side], shared: Array, count: int) -> Iterator[Parts]:
        """The strongest directions of what each source adds to the shared ones."""
        for up, down, norm in sides if count else ():
            (q_up, r_up), (q_down, r_down) = np.linalg.qr(up - shared @ (shared.T @ up)), np.linalg.qr(down)
            u, sigma, vt = svd(r_up @ r_down.T)
            k = min(count, int((sigma > self.rank_tol * norm).sum()))
            yield q_up @ u[:, :k], sigma[:k], q_down @ vt[:k].T
