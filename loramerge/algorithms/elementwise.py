"""Rules on the entries of ΔW, or of cores: what they share. Each rule is a composition of small parts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from loramerge.algorithms.method import option
from loramerge.algorithms.parts import agree, elect, mean, weighted_sum
from loramerge.algorithms.span import Span
from loramerge.algorithms.stack import Limits, Stack, stack
from loramerge.backend import Array
from loramerge.basis import Basis
from loramerge.frames import Frame
from loramerge.gram import Grams


@dataclass(frozen=True, kw_only=True)
class Elementwise(Span):
    """A rule that looks at each entry of all sources."""

    space: Literal["dense", "core"] = option(
        "dense",
        "What entries are: those of ΔW, or those of the small cores that sources have in common bases.",
    )

    @property
    def whole(self) -> bool:
        return self.space == "core"

    @property
    def frame(self) -> Frame:
        return "spectral" if self.space == "core" else "balanced"

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
        flat = -np.sort(-sizes.reshape(*sizes.shape[:2], -1), axis=-1)
        found = np.zeros((2, *flat.shape[:2]))
        for m, (rows, columns) in enumerate(entries.sizes.tolist()):
            skipped, kept = self.keeps(rows * columns) or (0, 0)
            found[0, :, m] = flat[:, m, skipped + kept - 1] if skipped + kept else np.inf
            found[1, :, m] = flat[:, m, skipped - 1] if skipped else np.inf
        return Limits(*found)

    def core(self, grams: Grams, bases: Basis) -> Array:
        values = np.stack([bases.core(grams, t) for t in range(len(grams.sources))])  # (T, M, R, R)
        weights = np.ones(len(values)) if grams.weights is None else grams.weights
        return self.on(values, weights, bases.ranks, grams.sources, grams.labels)
