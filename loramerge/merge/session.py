"""Adapters that are opened once and merged many times: new weights cost only work on R×R matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from loramerge.adapters.adapter import Computed, Held, Slot
from loramerge.adapters.target import Target
from loramerge.algorithms import Method, make
from loramerge.algorithms.only import Only
from loramerge.arrays.backend import Array, host
from loramerge.arrays.frames import Frame
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fitted, Remix
from loramerge.errors import UsageError
from loramerge.merge.fit import Seen
from loramerge.merge.full import check_low
from loramerge.merge.measure import measure, measure_fit
from loramerge.merge.planner import settle
from loramerge.merge.report import Module
from loramerge.merge.run import Merge, decided, merged, report, strengths
from loramerge.merge.strength import rescaled
from loramerge.merge.tables import as_html, headed
from loramerge.request.default import default
from loramerge.request.effort import Effort
from loramerge.request.entry import part
from loramerge.request.progress import Stage
from loramerge.request.schedule import Schedule
from loramerge.request.signature import spelled
from loramerge.sources.sources import Sources
from loramerge.sources.units import Units

Batch = tuple[Units, Grams, Grams]


@dataclass(frozen=True, eq=False)
class Session:
    """Adapters held open with their Grams, for notebooks and for a search over weights.

    The Grams (two R×R matrices a module) are computed at the first merge and kept. Later merges do not
    read the files: the merged factors are computed when `merge.adapter[target]` asks for them, in float64,
    and `merge.save(out)` writes them with proof. A report of such a merge has no rounding error yet.
    """

    sources: Sources
    _kept: dict[Frame, list[Batch]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.sources, Sources):
            raise UsageError("A session is made by loramerge.open([source, …]).")

    def __repr__(self) -> str:
        return f"<Session of {self.sources.what}>"

    def _repr_html_(self) -> str:
        rows = [[each.name, str(len(each)), str(each.rank)] for each in self.sources.adapters]
        return as_html(headed(["source", "modules", "rank"], rows), [self.sources.what])

    @spelled("session", options=True)
    def combine(
        self,
        method: str | Method | None = None,
        *,
        weights: Sequence[float] | None = None,
        **asked: Any,
    ) -> Merge:
        """Merge with these weights. Sources that a method does not choose stay in the report, with weight 0,
        and their units are kept.

        Args:
            method, weights: as for `loramerge.combine`.
            {asked}
            options: options of the method, if it is given by name.

        Raises:
            UsageError: no such method, option or weights.
            SourceError: a factor holds NaN or infinity, or a file has changed.
        """
        if isinstance(method, Only):
            raise UsageError("A method for some modules only needs loramerge.combine: here all are alike.")
        fields, options = part("session", method, {"weights": weights, **asked})
        request = replace(self.sources.request, **fields)
        chosen = None
        if method is None:
            chosen = default(request, len(self.sources.whole), options)
            method = chosen.name
        made = make(method, options)
        plan = settle(self.sources, made, request, self._observe, fold=False).by(chosen)
        check_low(plan)
        if not plan.schedule.uniform:
            raise UsageError(
                "Weights or ranks that differ between modules need loramerge.combine: here they are the same "
                "for all."
            )

        effort = plan.effort  # worked out from all modules, so it is asked for once

        def merge(batch: Batch) -> tuple[list[Module], list[Slot]]:
            units, grams, seen = batch
            made = decided(plan, units, seen)
            if isinstance(made, Fitted):
                fits = [made.make(m) for m in range(len(units.targets))]
                facts = [measure_fit(grams, m, f, plan.weights, units.signature) for m, f in enumerate(fits)]
                return facts, [Slot(Held(fit.up), Held(fit.down), 1.0) for fit in fits]
            facts = measure(grams, made, plan.weights, units.signature)
            return facts, [_promised(effort, units, m, made) for m in range(len(units.targets))]

        modules: list[Module] = []
        slots: dict[Target, Slot] = {}
        batches = self._batches(plan.method.frame)
        with self._stage("merging") as stage, effort.crew(stage.tick) as run:
            for (units, _, _), (facts, promised) in zip(batches, run(merge, batches), strict=True):
                modules += facts
                slots |= zip(units.targets, promised, strict=True)
                for _ in facts:
                    stage.step()
        factors = strengths(plan, modules)
        modules = [rescaled(fact, factors[fact.name]) for fact in modules]
        slots = {t: replace(slot, scale=factors[str(t)]) for t, slot in slots.items()}
        return Merge(merged(plan, slots), report(plan, modules), plan)

    def _stage(self, name: str) -> Stage:
        return Stage(self.sources.request.tell, name, len(self.sources.signatures))

    def _observe(self, method: Method, _: Sources, schedule: Schedule) -> list[Seen]:
        weights = method.weights(schedule.typical)
        return [
            (units.targets, host(method.observe(method.weigh(seen, weights))))
            for units, _, seen in self._batches(method.frame)
        ]

    def _batches(self, frame: Frame) -> list[Batch]:
        """Every batch with its Grams, plain and in that frame; computed when first needed, then kept."""
        if frame not in self._kept:
            effort = self.sources.request.effort.on_gpu()

            def look(units: Units) -> Batch:
                seen = units.seen(frame)
                for _ in units.targets:
                    stage.step()
                return units.kept(), *seen

            with (
                self._stage("looking") as stage,
                effort.crew(stage.tick) as run,
            ):
                self._kept[frame] = list(run(look, self.sources.batches(effort)))
        return self._kept[frame]


def _promised(effort: Effort, units: Units, module: int, remix: Remix) -> Slot:
    (outs, ins), k = units.shape(module), remix.P.shape[-1]

    def made(side: Callable[[], Array]) -> Callable[[], Array]:
        def compute() -> Array:
            with nullcontext() if units.gpu is None else effort.at_work():
                return host(side())

        return compute

    up = Computed((outs, k), made(lambda: units.up(module) @ remix.P[module]))
    down = Computed((k, ins), made(lambda: remix.Q[module] @ units.down(module)))
    return Slot(up, down, 1.0)


Opened = Session  # its name until sessions had one
