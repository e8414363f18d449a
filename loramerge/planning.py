"""Everything that is settled before the first module is merged."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loramerge import dtypes
from loramerge.adapter import Adapter
from loramerge.algorithms import Method, make
from loramerge.backend import Array, workers
from loramerge.errors import UsageError
from loramerge.formats import portable
from loramerge.formats.extras import settle
from loramerge.formats.keys import common_rank
from loramerge.formats.output import Outline
from loramerge.gram import Grams
from loramerge.selection import (
    Alphas,
    Source,
    check_together,
    check_weights,
    missing_modules,
    open_all,
    renormalised,
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
    given: Array
    weights: Array
    method: Method
    outline: Outline
    notes: tuple[str, ...]
    bare: bool
    settings: Mapping[str, Any] = field(default_factory=dict)


def plan(
    sources: Sequence[Source],
    method: str | Method = "linear",
    *,
    weights: Sequence[float] | None = None,
    alpha: Alphas = None,
    dtype: str | None = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
    threads: int | None = None,
    **options: Any,
) -> Plan:
    """What `combine` would do, without merging: the arguments are the same. Reads headers, and factors
    only where the size depends on them (`energy`)."""
    chosen = make(method, {name: value for name, value in options.items() if value is not None})
    whole = open_all(sources, alpha, allow_pickle, initial)
    given = check_weights(weights, len(whole))
    effective = chosen.weights(given)
    oddities = check_together(whole, allow_base_mismatch)
    adapters = select(whole, only, exclude)
    adapters = renormalised(adapters, effective) if renormalise else adapters
    signatures = align(adapters)
    settled = _decide(chosen, adapters, signatures, effective, threads)
    rank = common_rank({target: settled.size(signature) for target, signature in signatures.items()})
    kind = dtypes.widest(a.dtype for a in adapters if a) if dtype is None else dtypes.parse(dtype)
    kept = settle(adapters, effective, extras, signatures)
    shapes = {target: _shape(target, adapters) for target in signatures}
    return Plan(
        tuple(adapters),
        signatures,
        given,
        effective,
        settled,
        Outline(
            shapes,
            rank,
            kind,
            {**portable.config(whole, signatures, rank), **kept.config},
            extras=kept.tensors,
            apart=kept.apart,
        ),
        (*oddities, *kept.notes, *missing_modules(adapters, renormalise), *_size_notes(rank)),
        all(adapter.bare for adapter in adapters),
        {"only": only, "exclude": exclude, "extras": extras, "renormalise": renormalise},
    )


def _decide(
    method: Method,
    adapters: Sequence[Adapter],
    signatures: dict[Target, Signature],
    weights: Array,
    threads: int | None,
) -> Method:
    """Observe all modules if the method must, then settle what it left open."""
    observed = []
    if method.observes:
        with workers(thread_count(threads)) as run:
            for units in batches(adapters, signatures):
                observed.append(method.observe(see(method, units, weights, run)[1]))
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
