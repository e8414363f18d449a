"""Rules on the entries of ΔW, or of cores: what they share. Each rule is a composition of small parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np

from loramerge.algorithms.entries import tiled
from loramerge.algorithms.entries.search import Ranked, Search
from loramerge.algorithms.entries.stack import Limits, Stack, stack
from loramerge.algorithms.entries.tiles import Dense, dense
from loramerge.algorithms.families.refit import refit, squares
from loramerge.algorithms.families.span import RANK_TOL, Span
from loramerge.algorithms.method import option
from loramerge.arrays.backend import Array
from loramerge.arrays.basis import Basis, basis
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted, Result
from loramerge.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Elementwise(Span):
    """A rule that looks at each entry of all sources."""

    space: Literal["dense", "core"] = option(
        "dense",
        "What entries are: those of ΔW, or those of the small cores that sources have in common bases.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space == "dense" and self.rank_tol != RANK_TOL:
            raise UsageError(f"rank_tol={self.rank_tol} has nothing to do in dense space: leave it out.")

    @property
    def whole(self) -> bool:
        return self.space == "core"

    @property
    def frame(self) -> Frame:
        return "spectral" if self.space == "core" else "balanced"

    search: Search | None = field(default=None, repr=False, metadata={"found": True})  # no option

    together: ClassVar[bool] = False  # whether all sources are trimmed by one ranking
    by_rows: ClassVar[bool] = False  # whether whole rows must be seen

    @abstractmethod
    def merge(self, entries: Stack) -> Array:
        """The merged entries (M, a, b)."""

    def ranking(self, values: Array) -> Array:
        """(S, …) the sizes by which entries are trimmed: those of each source, or one for all together."""
        return np.abs(values)

    def keeps(self, count: int) -> tuple[int, int] | None:
        """Of `count` entries: how many of the largest are left out, and how many of the next are kept.

        None: nothing is trimmed.
        """
        return None

    def measure(self, entries: Stack) -> Array | None:
        """(F, M) sums over all entries that `merge` needs; None: there are none."""
        return None

    def on(
        self,
        values: Array,
        weights: Array,
        sizes: Array,
        sources: tuple[str, ...],
        labels: tuple[str, ...],
        limits: Limits | None = None,
    ) -> Array:
        """The rule applied to whole matrices: entries (T, M, a, b) of T sources become (M, a, b).

        Args:
            weights: (T,); a source of weight 0 is left out.
            sizes: (M, 2) real rows and columns; beyond them all is zero, and nothing is counted.
            sources: (T,) and labels: (M,) names, for rules with chance in them.
            limits: of the sources whose weight is not 0, if they are known; by default those of each matrix.
        """
        if not np.any(weights):
            return np.zeros(values.shape[1:])
        entries = stack(values, weights, sizes, sources, labels, getattr(self, "seed", 0))
        entries = replace(entries, limits=self.limits(entries) if limits is None else limits)
        return self.merge(replace(entries, facts=self.measure(entries)))

    def limits(self, entries: Stack) -> Limits | None:
        """The exact sizes between which entries are kept, each matrix by itself."""
        if self.keeps(1) is None:
            return None
        sizes = self.ranking(entries.values)  # (S, M, a, b)
        flat = sizes.reshape(*sizes.shape[:2], -1)
        low, high = np.full(flat.shape[:2], np.inf), np.full(flat.shape[:2], np.inf)
        for m, (rows, columns) in enumerate(entries.sizes.tolist()):
            skipped, kept = self.keeps(rows * columns) or (0, 0)
            if skipped + kept:
                low[:, m] = _largest(flat[:, m], skipped + kept)
            if skipped:
                high[:, m] = _largest(flat[:, m], skipped)
        return Limits(low, high)

    # --- in the core

    def core(self, grams: Grams, bases: Basis) -> Array:
        values, weights = _cores(grams, bases), _weights(grams)
        known = self._known([0] if self.together else np.flatnonzero(weights).tolist(), len(grams.labels))
        return self.on(values, weights, bases.ranks, grams.sources, grams.labels, known)

    def _core_rankings(self, grams: Grams) -> Iterator[Ranked]:
        bases = basis(grams, self.rank_tol)
        values = _cores(grams, bases)  # (T, M, R, R)
        sizes = self.ranking(values).reshape(1 if self.together else len(values), len(grams.labels), -1)
        some = (values != 0).any(axis=(2, 3))  # (T, M)
        for s, m in np.argwhere(np.any(some, axis=0)[None] if self.together else some).tolist():
            one, count = sizes[s, m], int(bases.ranks[m].prod())
            picked = np.random.default_rng(0).permutation(np.flatnonzero(one))
            yield Ranked(s, count, partial(one.__getitem__, picked), partial(list, [one]))

    # --- on dense tiles

    def _dense(self, grams: Grams, module: int) -> Dense | None:
        return dense(grams, module, self.by_rows, getattr(self, "seed", 0))

    def _dense_rankings(self, grams: Grams) -> Iterator[Ranked]:
        for m in range(len(grams.labels)):
            if (entries := self._dense(grams, m)) is not None:
                yield from tiled.rankings(self, entries)

    def matrix(self, grams: Grams, module: int) -> tuple[Array, Array]:
        """The merge of one module (out, in), and rows (s, in) that span what it is made of."""
        entries = self._dense(grams, module)
        if entries is None:
            assert grams.read is not None
            up, down = grams.read(module)
            return np.zeros((len(up), down.shape[1])), down[:0]
        known = self._known([0] if self.together else list(entries.present), 1) or tiled.limits(self, entries)
        return tiled.merged(self, entries, known), np.concatenate(entries.downs)

    def _fit(self, grams: Grams, module: int) -> Fit:
        matrix, start = self.matrix(grams, module)
        return refit(matrix, min(self.rank or len(grams.owner), *matrix.shape), start)

    # --- either

    def _known(self, which: list[int], modules: int) -> Limits | None:
        """The limits of the whole adapter (S, M), once they are found."""
        if self.search is None:
            return None
        return Limits(*np.repeat(self.search.limits(which)[:, :, None], modules, axis=2))

    @property
    def _searching(self) -> bool:
        over_adapter = getattr(self, "scope", "module") == "adapter" and self.keeps(1) is not None
        return over_adapter and (self.search is None or not self.search.done)

    @property
    def observes(self) -> bool:
        return self._searching or super().observes

    def observe(self, grams: Grams) -> Array:
        """What the search for limits asks; then σ² of the merge (M, k), as a rank keeps them."""
        if self._searching:
            rankings = self._core_rankings(grams) if self.space == "core" else self._dense_rankings(grams)
            return (self.search or Search()).observe(rankings)
        if self.space == "core":
            return super().observe(grams)
        share = 1.0 if self.energy is None else self.energy
        pairs = (self.matrix(grams, m) for m in range(len(grams.labels)))
        found = [squares(matrix, share, start) for matrix, start in pairs]
        return np.stack([np.pad(each, (0, max(map(len, found)) - len(each))) for each in found])

    def decide(self, observed: Sequence[Array], largest: int) -> Self:
        if self._searching and observed:
            return replace(self, search=(self.search or Search()).next(observed, self.keeps))
        return super().decide(observed, largest)

    def width(self, signature: tuple[int, ...], shape: tuple[int, int]) -> int:
        return self.size(signature) if self.space == "core" else min(self.rank or max(signature), *shape)

    def held(self, shape: tuple[int, int]) -> int:
        """The merged matrix in float32, and 64 MB for tiles, limits and the refit; all its σ² take more."""
        if self.space == "core":
            return 0
        gram = 0 if self.energy is None else 3 * 8 * min(shape) ** 2
        return 4 * shape[0] * shape[1] + gram + (64 << 20)

    def remix(self, grams: Grams) -> Result:
        return super().remix(grams) if self.space == "core" else Fitted(partial(self._fit, grams))


def _largest(values: Array, rank: int) -> Array:
    """(S,) the `rank`-th largest of each row."""
    place = values.shape[1] - rank
    return np.asarray(np.partition(values, place, axis=1)[:, place])


def _weights(grams: Grams) -> Array:
    return np.ones(len(grams.sources)) if grams.weights is None else grams.weights


def _cores(grams: Grams, bases: Basis) -> Array:
    """(T, M, R, R) of all sources."""
    return np.stack([bases.core(grams, t) for t in range(len(grams.sources))])
