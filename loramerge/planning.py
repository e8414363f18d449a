"""Everything that is settled before the first module is merged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from loramerge import dtypes
from loramerge.adapter import Adapter
from loramerge.algorithms import Method, make
from loramerge.backend import Array, workers
from loramerge.budgets import Budget
from loramerge.errors import UsageError, printable
from loramerge.fitting import Fitting, Seen, looking
from loramerge.folding import crowded, folded
from loramerge.formats import portable
from loramerge.formats.extras import settle as settle_extras
from loramerge.formats.output import Outline
from loramerge.formats.profiles import Profile, arranged, check_profile, patterns
from loramerge.gathering import gather
from loramerge.scaling import Scale, check_scale
from loramerge.schedule import Rule, Schedule, Weight
from loramerge.selection import (
    Alphas,
    Source,
    check_together,
    missing_modules,
    open_all,
    renormalised,
    select,
)
from loramerge.target import Target
from loramerge.units import MEMORY, Signature, Units, align, batches

SERVER_RANK = 16  # vLLM's default max_lora_rank


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of the machine a merge may use; the result does not depend on it.

    Args:
        threads: workers; by default one per core, up to 8.   memory: bytes for all of them.
    """

    threads: int | None = None
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads} must be at least 1.")
        if not self.memory > 0:
            raise UsageError(f"memory={self.memory} must be a number of bytes above 0.")

    @property
    def workers(self) -> int:
        return self.threads or min(os.cpu_count() or 1, 8)

    @property
    def share(self) -> float:
        """Bytes for one worker."""
        return self.memory / self.workers

    def holding(self, method: Method, sources: Sources) -> Effort:
        """With no more workers than can each hold what the method needs for the largest module."""
        most = max((method.held(sources.shape(target)) for target in sources.signatures), default=0)
        return replace(self, threads=int(max(1, min(self.workers, self.memory // most)))) if most else self


EFFORT: Effort = Effort()


@dataclass(frozen=True, eq=False)
class Sources:
    """Adapters that were found to belong together.

    Args:
        whole: as they are.   adapters: without the modules left out.
        signatures: every module with the rank of each source in it.
        notes: sentences about them.   settings: what was left out, for provenance.
    """

    whole: tuple[Adapter, ...]
    adapters: tuple[Adapter, ...]
    signatures: Mapping[Target, Signature]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]

    def shape(self, target: Target) -> tuple[int, int]:
        """(out, in) of a module."""
        return next(a.slots[target].shape for a in self.adapters if target in a.slots)

    def folded(self, weights: Callable[[Target], Array]) -> Sources:
        """The same sum from fewer units, where there are more than a module has rows or columns."""
        full = [t for t, signature in self.signatures.items() if crowded(signature, self.shape(t))]
        if not full:
            return self
        adapters = tuple(folded(self.adapters, weights, full))
        return replace(self, adapters=adapters, signatures=align(adapters))

    def outline(self, units: Mapping[Target, int], kind: str, profile: Profile) -> Outline:
        """What a merge of these sources with so many units in each module looks like."""
        rank, own = arranged(profile, units)
        shapes = {target: self.shape(target) for target in self.signatures}
        said = {
            **portable.config(self.whole, shapes, rank),
            **{name: patterns(own) for name in ("rank_pattern", "alpha_pattern")},
        }
        return Outline(shapes, rank, kind, said, ranks=own, profile=profile)

    @property
    def bare(self) -> bool:
        """All of them are files without a config of their own."""
        return all(adapter.bare for adapter in self.adapters)

    def batches(
        self, effort: Effort, schedule: Schedule | None = None, method: Method | None = None
    ) -> list[Units]:
        """The work, in pieces that one worker can hold and, by schedule and method, that are merged alike."""
        groups: list[Mapping[Target, Signature]] = [self.signatures]
        if schedule is not None and method is not None:
            groups = [*schedule.groups(self.signatures, method)]
        return [units for group in groups for units in batches(self.adapters, group, effort.share)]


@dataclass(frozen=True, eq=False)
class Plan:
    """A merge of these sources, settled in everything but the numbers.

    Args:
        schedule: weights and ranks as given, module by module.
        weights: (T,) in the middle layer, as the method uses them; the report shows them.
        work: the sources as they are merged, crowded modules folded (then one more than `sources`).
        method: with every open option settled.   outline: what the output will look like.
        budget: what it may cost.
        scale: the policy of strength.   strengths: what ``cosine`` found, by module.
    """

    sources: Sources
    schedule: Schedule
    weights: Array
    work: Sources
    method: Method
    outline: Outline
    notes: tuple[str, ...]
    budget: Budget | None = None
    scale: Scale = 1.0
    strengths: Mapping[str, float] = field(default_factory=dict)

    def way(self, units: Units) -> tuple[Method, Array]:
        """The method and the weights of a batch, one for each of `work`."""
        method, weights = self.schedule.way(self.method, units.targets[0])
        return method, work_weights(self.work, weights)

    def again(self, method: Method, schedule: Schedule) -> Plan:
        """The same merge with other ranks."""
        units = {
            t: schedule.way(method, t)[0].width(ranks, self.work.shape(t))
            for t, ranks in self.work.signatures.items()
        }
        outline = self.sources.outline(units, self.outline.dtype, self.outline.profile)
        policy = self.sources.settings["extras"]
        kept = settle_extras(self.sources.adapters, self.weights, policy, outline.shapes)
        config = {**outline.config, **kept.config}
        outline = replace(outline, config=config, extras=kept.tensors, apart=kept.apart)
        names = [adapter.name for adapter in self.sources.whole]
        told = (*schedule.notes(names, list(outline.shapes)), *_size_notes(outline))
        notes = (*self.sources.notes, *kept.notes, *told)
        return replace(self, schedule=schedule, method=method, outline=outline, notes=notes)

    @property
    def folds(self) -> bool:
        """Whether the work holds folded sums beside the sources."""
        return len(self.work.adapters) > len(self.sources.adapters)

    def batches(self, effort: Effort) -> list[Units]:
        """The work in pieces that are merged alike and that one worker can hold."""
        return self.work.batches(effort, self.schedule, self.method)


def open_together(
    sources: Sequence[Source],
    *,
    alpha: Alphas = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
) -> Sources:
    """Open the adapters and check that they belong together. Reads headers only."""
    whole = open_all(sources, alpha, allow_pickle, initial)
    oddities = check_together(whole, allow_base_mismatch)
    adapters = select(whole, only, exclude)
    return Sources(
        tuple(whole),
        tuple(adapters),
        align(adapters),
        (*oddities, *missing_modules(adapters, renormalise)),
        {
            "only": only,
            "exclude": exclude,
            "allow_base_mismatch": allow_base_mismatch,
            "extras": extras,
            "renormalise": renormalise,
        },
    )


Observe = Callable[[Method, Sources, Schedule], Sequence[Seen]]


def work_weights(work: Sources, weights: Array) -> Array:
    """The weights of the sources as they are merged: a folded sum has its weights inside already."""
    return np.concatenate([weights, np.ones(len(work.adapters) - len(weights))])


def settle(
    sources: Sources,
    method: str | Method,
    observe: Observe,
    *,
    weights: Sequence[Weight] | None = None,
    rules: Sequence[Rule] = (),
    dtype: str | None = None,
    profile: str = "portable",
    total_rank: int | None = None,
    size: float | str | None = None,
    bare: bool | None = None,
    ranks: Mapping[str, int] | None = None,
    scale: Scale | None = None,
    fold: bool = True,
    **options: Any,
) -> Plan:
    """Fix weights, method and the shape of the output. `observe` looks at all modules, if it must be known
    what is in them."""
    budget, written = Budget.of(total_rank, size), check_profile(profile)
    kinds = (a.dtype for a in sources.adapters if a)
    kind = dtypes.widest(kinds) if dtype is None else dtypes.parse(dtype)
    chosen = make(method, {name: value for name, value in options.items() if value is not None})
    everything = {target for adapter in sources.whole for target in adapter}
    schedule = Schedule.of(weights, rules, len(sources.whole), everything)
    schedule = replace(schedule, ranks=_known(ranks or {}, everything))

    def weights_of(target: Target) -> Array:
        return schedule.way(chosen, target)[1]

    if sources.settings["renormalise"]:
        sources = replace(sources, adapters=tuple(renormalised(sources.adapters, weights_of)))
    work = sources.folded(weights_of) if fold and chosen.traits.sums else sources

    shown, empty = chosen.weights(schedule.typical), Outline({}, 1, kind, {}, profile=written)
    open_ = Plan(sources, schedule, shown, work, chosen, empty, (), budget, check_scale(scale))
    most = max(a.rank for a in sources.adapters)
    if budget is not None:
        looking(chosen, budget)  # says what does not go together, before anything is read
    while chosen.observes:  # some methods look more than once: a bracket first, then what is in it
        observed = observe(chosen, work, schedule)
        chosen = chosen.decide([array for _, array in observed], most)
    if budget is None:
        return open_.again(chosen.decide([], most), schedule)
    seen = observe(looking(chosen, budget), work, schedule)
    as_file = sources.bare if bare is None else bare
    return Fitting(seen, chosen.decide([], most), schedule, open_.again, as_file).within(budget)


def _known(ranks: Mapping[str, int], targets: Iterable[Target]) -> Mapping[str, int]:
    """Raises UsageError: a rank is for a module that is not there."""
    places = {target.place for target in targets}
    for place in ranks:
        if place not in places:
            raise UsageError(f"ranks has {printable(place)}, which is no module here.")
    return ranks


def observer(effort: Effort) -> Observe:
    """Looks at all modules whose rank is open, with this much of the machine."""

    def observe(method: Method, work: Sources, schedule: Schedule) -> list[Seen]:
        own_effort = effort.holding(method, work)

        def look(units: Units) -> list[Seen]:
            own, weights = schedule.way(method, units.targets[0])
            if not own.observes:  # a rule has given these modules a rank of their own
                return []
            _, grams = units.seen(own.frame)
            return [(units.targets, own.observe(own.weigh(grams, work_weights(work, weights))))]

        with workers(own_effort.workers) as run:
            return list(chain.from_iterable(run(look, work.batches(own_effort, schedule, method))))

    return observe


def plan(
    sources: Sequence[Source],
    method: str | Method = "linear",
    *,
    weights: Sequence[Weight] | None = None,
    rules: Sequence[Rule] = (),
    alpha: Alphas = None,
    dtype: str | None = None,
    profile: str = "portable",
    total_rank: int | None = None,
    size: float | str | None = None,
    bare: bool | None = None,
    ranks: Mapping[str, int] | None = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
    scale: Scale | None = None,
    effort: Effort = EFFORT,
    **options: Any,
) -> Plan:
    """What `combine` would do, without merging: the arguments are the same. Reads headers, and factors
    only where the size depends on them (`energy`, `total_rank`, `size`).

    `bare` says whether it will be written as one file, which a `size` must know; by default as the sources.
    `ranks` are those that a record has for each module.

    >>> todo = plan(["fixtures/a.safetensors", "fixtures/b.safetensors"], "svd")
    >>> todo.method, todo.outline.rank, len(todo.outline.shapes)
    (Svd(rank=8, energy=None), 8, 18)
    """
    sources, weights = gather(sources, weights)
    together = open_together(
        sources,
        alpha=alpha,
        only=only,
        exclude=exclude,
        allow_base_mismatch=allow_base_mismatch,
        allow_pickle=allow_pickle,
        extras=extras,
        initial=initial,
        renormalise=renormalise,
    )

    return settle(
        together,
        method,
        observer(effort),
        weights=weights,
        rules=rules,
        dtype=dtype,
        profile=profile,
        total_rank=total_rank,
        size=size,
        bare=bare,
        ranks=ranks,
        scale=scale,
        **options,
    )


def _size_notes(outline: Outline) -> list[str]:
    notes = []
    if outline.largest > SERVER_RANK:
        notes.append(
            f"rank {outline.largest} is above {SERVER_RANK}, vLLM's default --max-lora-rank; "
            f"linear, svd and lego with --rank {SERVER_RANK} stay within it"
        )
    if outline.ranks:
        notes.append(
            "modules have ranks of their own, which PEFT, vLLM and diffusers read; llama.cpp would scale "
            "them wrongly: --profile portable is for it"
        )
    return notes
