"""Everything that is settled before the first module is merged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramerge import dtypes
from loramerge.adapter import Adapter
from loramerge.algorithms import Method, make
from loramerge.backend import Array, workers
from loramerge.errors import UsageError
from loramerge.formats import portable
from loramerge.formats.output import Outline
from loramerge.gathering import gather
from loramerge.gram import Grams
from loramerge.schedule import Rule, Schedule, Weight
from loramerge.selection import (
    Alphas,
    Source,
    check_together,
    missing_modules,
    open_all,
    select,
)
from loramerge.target import Target
from loramerge.units import Map, Signature, Units, align, batches

SERVER_RANK = 16  # vLLM's default max_lora_rank


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is settled before the first module is merged."""

    adapters: tuple[Adapter, ...]
    signatures: dict[Target, Signature]
    weights: Array
    method: Method
    outline: Outline
    notes: tuple[str, ...]
    bare: bool
    schedule: Schedule
    settings: Mapping[str, Any] = field(default_factory=dict)

    def way(self, units: Units) -> tuple[Method, Array]:
        """The method and the (T,) weights of a batch."""
        return self.schedule.way(self.method, units.targets[0])

    @property
    def groups(self) -> list[dict[Target, Signature]]:
        """All modules, split so that those of a group are merged alike."""
        return self.schedule.groups(self.signatures)


def plan(
    sources: Sequence[Source],
    method: str | Method = "linear",
    *,
    weights: Sequence[Weight] | None = None,
    rules: Sequence[Rule] = (),
    alpha: Alphas = None,
    dtype: str | None = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    threads: int | None = None,
    **options: Any,
) -> Plan:
    """What `combine` would do, without merging: the arguments are the same. Reads headers, and factors
    only where the size depends on them (`energy`)."""
    chosen = make(method, {name: value for name, value in options.items() if value is not None})
    sources, weights = gather(sources, weights)
    whole = open_all(sources, alpha)
    schedule = Schedule.of(weights, rules, len(whole), {t for adapter in whole for t in adapter})
    oddities = check_together(whole, allow_base_mismatch)
    adapters = select(whole, only, exclude)
    signatures = align(adapters)
    settled = _decide(chosen, adapters, signatures, schedule, threads)
    rank = max(1, *(schedule.way(settled, target)[0].size(ranks) for target, ranks in signatures.items()))
    kind = dtypes.widest(a.dtype for a in adapters if a) if dtype is None else dtypes.parse(dtype)
    shapes = {target: _shape(target, adapters) for target in signatures}
    return Plan(
        tuple(adapters),
        signatures,
        chosen.weights(schedule.typical),
        settled,
        Outline(shapes, rank, kind, portable.config(whole, signatures, rank)),
        (
            *oddities,
            *missing_modules(adapters),
            *schedule.notes([a.name for a in adapters], list(signatures)),
            *_size_notes(rank),
        ),
        all(adapter.bare for adapter in adapters),
        schedule,
        {
            "only": only,
            "exclude": exclude,
            "dtype": dtypes.word(kind),
            "allow_base_mismatch": allow_base_mismatch,
            "modules": [rule.to_plain() for rule in rules],
        },
    )


def _decide(
    method: Method,
    adapters: Sequence[Adapter],
    signatures: dict[Target, Signature],
    schedule: Schedule,
    threads: int | None,
) -> Method:
    """Observe all modules if the method must, then settle what it left open."""
    observed = []
    if method.observes:
        with workers(thread_count(threads)) as run:
            for group in schedule.groups(signatures):
                own, weights = schedule.way(method, next(iter(group)))
                for units in batches(adapters, group) if own.observes else ():
                    observed.append(own.observe(see(own, units, weights, run)[1]))
    return method.decide(observed, max(a.rank for a in adapters))


def see(method: Method, units: Units, weights: Array, run: Map) -> tuple[Grams, Grams]:
    """The Grams of a batch, plain and as the method sees them."""
    grams = units.grams(run, balance=method.traits.gauge == "invariant")
    return grams, method.weigh(grams, weights)


def thread_count(threads: int | None) -> int:
    """Workers to use: as asked, or one per core up to 8."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads} must be at least 1.")
    return threads or min(os.cpu_count() or 1, 8)


def _shape(target: Target, adapters: Sequence[Adapter]) -> tuple[int, int]:
    return next(a.slots[target].shape for a in adapters if target in a.slots)


def _size_notes(rank: int) -> list[str]:
    if rank <= SERVER_RANK:
        return []
    return [
        f"rank {rank} is above {SERVER_RANK}, vLLM's default --max-lora-rank; "
        f"linear, svd and lego with --rank {SERVER_RANK} stay within it"
    ]
