"""Everything that is settled before the first module is merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramerge.adapters.target import Target
from loramerge.algorithms import Method, make, name_of
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, host, workers
from loramerge.errors import UsageError, printable
from loramerge.formats import writer
from loramerge.formats.dialects import PEFT
from loramerge.formats.dialects.dialect import check_place, check_ranks
from loramerge.formats.extras import settle as settle_extras
from loramerge.formats.masks import MaskPlan, planned
from loramerge.formats.output import Outline, is_bare
from loramerge.formats.peft.profiles import check_profile
from loramerge.merge.fit import Fitting, Seen, looking
from loramerge.request.budgets import Budget
from loramerge.request.effort import EFFORT, Effort
from loramerge.request.scale import Scale, check_scale
from loramerge.request.schedule import Rule, Schedule, Weight
from loramerge.sources.choice import SILENT, Wording, told, unchosen, weighed
from loramerge.sources.descriptions import Descriptions
from loramerge.sources.expand import gather
from loramerge.sources.open import Alphas, Source, renormalised
from loramerge.sources.sources import Sources, open_together, work_weights
from loramerge.sources.units import Units

if TYPE_CHECKING:
    from loramerge.merge.tailor import Tailor

SERVER_RANK = 16  # vLLM's default max_lora_rank


@dataclass(frozen=True, eq=False)
class Plan:
    """A merge of these sources, settled in everything but the numbers.

    Args:
        schedule: weights and ranks as given, module by module.
        weights: (T,) in the middle layer, as the method uses them; the report shows them.
        work: the sources as they are merged, crowded modules folded (then one more than `sources`).
        method: with every open option settled.   outline: what the output will look like.
        budget: what it may cost.   tailor: the consumer that it is made for.
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
    tailor: Tailor | None = None

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
        writer.check_beside(self.sources.adapters, self.sources.dialect, list(kept.tensors))
        config = {**outline.config, **kept.config}
        outline = replace(
            outline, config=config, extras=kept.tensors, apart=kept.apart, masks=self._masks(method, outline)
        )
        names = [adapter.name for adapter in self.sources.whole]
        sizes = (*schedule.notes(names, list(outline.shapes)), *([] if self.tailor else _size_notes(outline)))
        notes = (*self.sources.notes, *told(self.sources.left_out), *kept.notes, *sizes, *method.notes)
        return replace(self, schedule=schedule, method=method, outline=outline, notes=notes)

    def _masks(self, method: Method, outline: Outline) -> MaskPlan | None:
        """The masks that come with it, if the method makes any."""
        if not method.masks:
            return None
        if self.sources.dialect.weights is None:
            raise UsageError(
                f"{name_of(method)} makes masks of tasks, and the format {self.sources.dialect.name} has no "
                "place for them: give --format peft or --format diffusers."
            )
        names = [adapter.name for adapter in self.sources.adapters]
        weighted = [
            any(weights) for weights in zip(*(line.first for line in self.schedule.lines), strict=True)
        ]
        return planned(names, self.sources.signatures, weighted, outline.shapes)

    def default_out(self, name: str) -> Path:
        """Where it is written if nobody says: a file from files, unless the consumer loads folders."""
        bare = (
            self.sources.bare
            and self.outline.masks is None
            and not (self.tailor and self.tailor.consumer.folder)
        )
        return Path(f"{name}.safetensors" if bare else name)

    def check_destination(self, out: Path) -> None:
        """Raises UsageError: format or consumer wants a folder, and this is a file, or the reverse."""
        check_place(self.sources.dialect, is_bare(out), out)
        if self.tailor:
            self.tailor.check_destination(out, is_bare(out))

    @property
    def folds(self) -> bool:
        """Whether the work holds folded sums beside the sources."""
        return len(self.work.adapters) > len(self.sources.adapters)

    def batches(self, effort: Effort) -> list[Units]:
        """The work in pieces that are merged alike and that one worker can hold."""
        return self.work.batches(effort, self.schedule, self.method)


Observe = Callable[[Method, Sources, Schedule], Sequence[Seen]]


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
    consumer: str | None = None,
    max_rank: int | None = None,
    scale: Scale | None = None,
    fold: bool = True,
    wording: Wording = SILENT,
    **options: Any,
) -> Plan:
    """Fix weights, method and the shape of the output. `observe` looks at all modules, if it must be known
    what is in them. Without `fold` all units stay as they are, those of no use too."""
    budget, written = Budget.of(total_rank, size), check_profile(profile)
    check_ranks(sources.dialect, profile)
    tailor = None if consumer is None and max_rank is None else _tailor(consumer, max_rank)
    widest = dtypes.widest(a.dtype for a in sources.adapters if a)
    if tailor is not None:
        if not sources.dialect.keeps_alpha:  # whose files hold the rank of each module anyway
            tailor.check_profile(written)
        widest = tailor.dtype(widest)
    kind = widest if dtype is None else dtypes.parse(dtype)
    chosen = make(method, {name: value for name, value in options.items() if value is not None})
    weights = weighed(chosen, sources.whole, weights, rules, wording)
    if chosen.query is not None:
        sources = replace(sources, settings={**sources.settings, **wording.record})
    sources = replace(sources, left_out=wording.left_out or {})
    if fold and (left := unchosen(chosen, sources.whole, weights, rules)):
        weights = [weight for i, weight in enumerate(weights or ()) if i not in left]
        sources = sources.without(left)
    everything = {target for adapter in sources.whole for target in adapter}
    schedule = Schedule.of(weights, rules, len(sources.whole), everything)
    schedule = replace(schedule, ranks=_known(ranks or {}, everything))

    def weights_of(target: Target) -> Array:
        return schedule.way(chosen, target)[1]

    if sources.settings["renormalise"]:
        sources = replace(sources, adapters=tuple(renormalised(sources.adapters, weights_of)))
    work = sources.folded(weights_of) if fold and chosen.traits.sums else sources

    shown, empty = chosen.weights(schedule.typical), Outline({}, 1, kind, {}, profile=written)
    open_ = Plan(sources, schedule, shown, work, chosen, empty, (), budget, check_scale(scale), tailor=tailor)
    most = max(a.rank for a in sources.adapters)
    if chosen.masks and open_.scale != 1.0:
        raise UsageError(
            f"scale={open_.scale} would give the merge of {name_of(chosen)} another strength than its masks "
            "are for: give the sources weights instead."
        )
    if budget is not None:
        looking(chosen, budget)  # says what does not go together, before anything is read

    def known(method: Method) -> Method:
        while method.observes:  # some methods look more than once: a bracket first, then what is in it
            method = method.decide([array for _, array in observe(method, work, schedule)], most)
        return method

    def found(method: Method) -> Plan:
        return open_.again(known(method).decide([], most), schedule)

    if budget is None:
        settled = found(chosen)
    else:
        chosen = known(chosen)
        seen = observe(looking(chosen, budget), work, schedule)
        as_file = is_bare(open_.default_out("merged")) if bare is None else bare
        settled = Fitting(seen, chosen.decide([], most), schedule, open_.again, as_file).within(budget)
    if tailor is None:
        return settled
    from loramerge.merge.tailor import sized_by, tailored

    fit, notes = tailored(tailor, settled, chosen, sized_by(chosen, schedule, budget), found)
    return replace(fit, notes=(*fit.notes, *notes))


def _tailor(consumer: str | None, max_rank: int | None) -> Tailor | None:
    from loramerge.merge.tailor import Tailor  # consumers are for merges that are made for one

    return Tailor.of(consumer, max_rank)


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
        own_effort = effort.holding(work.held(method))

        def look(units: Units) -> list[Seen]:
            own, weights = schedule.way(method, units.targets[0])
            if not own.observes:  # a rule has given these modules a rank of their own
                return []
            _, grams = units.seen(own.frame)
            facts = own.observe(own.weigh(grams, work_weights(work, weights)))
            return [(units.targets, host(facts))]  # few numbers, kept of all batches until Python decides

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
    consumer: str | None = None,
    max_rank: int | None = None,
    only: str | None = None,
    exclude: str | None = None,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
    format: str | None = None,
    scale: Scale | None = None,
    descriptions: Descriptions = None,
    embedding: str | Path | None = None,
    left_out: Mapping[str, float] | None = None,
    effort: Effort = EFFORT,
    **options: Any,
) -> Plan:
    """What `combine` would do, without merging: the arguments are the same. Reads headers, and factors
    only where the size depends on them (`energy`, `total_rank`, `size`).

    `bare` says whether it will be written as one file, which a `size` must know; by default as the sources.
    `ranks` are those that a record has for each module. `left_out` are the sources
    that it says were not chosen: its weights are then similarities, and nothing is compared again.

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
        format=format,
        consumer=consumer,
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
        consumer=consumer,
        max_rank=max_rank,
        scale=scale,
        wording=Wording(descriptions, embedding, left_out),
        **options,
    )


def _size_notes(outline: Outline) -> list[str]:
    notes = []
    if outline.dialect is PEFT and outline.largest > SERVER_RANK:
        notes.append(
            f"rank {outline.largest} is above {SERVER_RANK}, vLLM's default --max-lora-rank; "
            f"with --rank {SERVER_RANK}, which most methods take, or by loramerge resize it stays within it"
        )
    if outline.ranks and not outline.dialect.keeps_alpha:
        notes.append(
            "modules have ranks of their own, which PEFT, vLLM and diffusers read; llama.cpp would scale "
            "them wrongly, and SGLang refuse them: --profile portable is for these"
        )
    return notes
