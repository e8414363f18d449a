"""Adapters opened once and merged many times: a new weighting costs R×R work only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge.adapter import Slot
from loramerge.algorithms import Method
from loramerge.backend import Array, workers
from loramerge.driver import Merge, decided, merged, report
from loramerge.gram import Grams
from loramerge.planning import Effort, Sources, gather, settle
from loramerge.report import Module, measure
from loramerge.results import Remix
from loramerge.selection import Alphas, Source
from loramerge.target import Target
from loramerge.units import MEMORY, Units


@dataclass(frozen=True, eq=False, slots=True)
class Promise:
    """A tensor that is computed when read."""

    shape: tuple[int, ...]
    compute: Callable[[], Array]
    dtype: str = "F64"

    def read(self) -> Array:
        return self.compute()


@dataclass(frozen=True, eq=False)
class Opened:
    """Adapters held open with their Grams, for notebooks and for a search over weights.

    The Grams (two R×R matrices a module) are computed at the first merge and kept. Later merges do not
    read the files: the merged factors are computed when `merge.adapter[target]` asks for them, in float64,
    and `merge.save(out)` writes them with proof. A report of such a merge has no rounding error yet.
    """

    sources: Sources
    effort: Effort
    _grams: dict[bool, list[tuple[Units, Grams]]] = field(default_factory=dict, repr=False)

    def combine(
        self,
        method: str | Method = "linear",
        *,
        weights: Sequence[float] | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> Merge:
        """Merge with these weights. Arguments as for `loramerge.combine`.

        Raises:
            UsageError: no such method, option or weights.
            SourceError: a factor holds NaN or infinity, or a file has changed.
        """
        plan = settle(self.sources, method, self._observe, weights=weights, dtype=dtype, **options)
        modules: list[Module] = []
        slots: dict[Target, Slot] = {}
        for units, grams in self._batches(plan.method.balanced):
            remix = decided(plan, units, grams)
            modules += measure(grams, remix, plan.weights, units.signature, [None] * len(units.targets))
            slots |= {t: _promised(units, m, remix) for m, t in enumerate(units.targets)}
        return Merge(merged(plan, slots), report(plan, modules), plan)

    def _observe(self, method: Method, weights: Array) -> list[Array]:
        seen = (method.weigh(grams, weights) for _, grams in self._batches(method.balanced))
        return [method.observe(grams) for grams in seen]

    def _batches(self, balance: bool) -> list[tuple[Units, Grams]]:
        if balance not in self._grams:
            with workers(self.effort.workers) as run:
                todo = self.sources.batches(self.effort)
                self._grams[balance] = list(run(lambda units: (units, units.grams(balance)), todo))
        return self._grams[balance]


def _promised(units: Units, module: int, remix: Remix) -> Slot:
    (outs, ins), k = units.shape(module), remix.P.shape[-1]
    up = Promise((outs, k), lambda: units.up(module) @ remix.P[module])
    down = Promise((k, ins), lambda: remix.Q[module] @ units.down(module))
    return Slot(up, down, 1.0)


def open(  # the verb of the library, as in lm.open
    sources: Sequence[Source],
    *,
    alpha: Alphas = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    threads: int | None = None,
    memory: float = MEMORY,
) -> Opened:
    """Open adapters that will be merged more than once. Arguments and errors as for `combine`.

    >>> import numpy as np
    >>> import loramerge as lm
    >>> unit = lm.LowRank(np.ones((2, 1)), np.ones((1, 2)))
    >>> pair = lm.open([lm.Adapter.of({"q": unit}), lm.Adapter.of({"q": 3.0 * unit})])
    >>> [pair.combine(weights=[w, 1 - w]).adapter[lm.Target("q")].norm() for w in (0.0, 0.5, 1.0)]
    [6.0, 4.0, 2.0]
    """
    together = gather(
        sources, alpha=alpha, only=only, exclude=exclude, allow_base_mismatch=allow_base_mismatch
    )
    return Opened(together, Effort(threads, memory))
