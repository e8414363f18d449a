"""From a recipe to a plan: everything that is settled before the first module is merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from loramerge.adapters.target import Target
from loramerge.algorithms import Method, name_of
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array, host
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats.dialects.dialect import check_ranks
from loramerge.formats.output import Outline, is_bare
from loramerge.formats.peft.profiles import Profile, check_profile
from loramerge.merge.full import sized_by
from loramerge.merge.plan import Plan
from loramerge.request.budgets import Budget
from loramerge.request.progress import Stage
from loramerge.request.recipe import Recipe
from loramerge.request.request import Request
from loramerge.request.schedule import Schedule
from loramerge.request.share import parsed, units
from loramerge.sources.choice import unchosen, weighed
from loramerge.sources.expand import expanded
from loramerge.sources.open import renormalised
from loramerge.sources.sources import Sources, open_together, work_weights
from loramerge.sources.units import Units

if TYPE_CHECKING:
    from loramerge.merge.fit import Seen
    from loramerge.merge.tailor import Tailor

Observe = Callable[[Method, Sources, Schedule], "Sequence[Seen]"]


class Known(NamedTuple):
    """What a record has settled already.

    Args:
        ranks: place of a module -> rank.
        left_out: name -> similarity of sources that were not chosen: the weights are then similarities of the
            others, and no text is compared again. None: nothing is known of it.
    """

    ranks: Mapping[str, int] = MappingProxyType({})
    left_out: Mapping[str, float] | None = None


NOTHING = Known()


def planned(recipe: Recipe, known: Known = NOTHING) -> Plan:
    """The plan of a recipe. Reads headers, and factors only where the size depends on them.

    Raises:
        UsageError, SourceError, IncompatibleError: a sentence each.
    """
    _ = recipe.chosen  # what is wrong with it is said before anything is fetched
    whole = expanded(recipe).weighed()
    sources = open_together(whole, again=known is not NOTHING)
    named, default = whole.named(len(sources.whole))
    settled = settle(sources, named.chosen, whole.request, observer(whole.request), known)
    return replace(settled.by(default), asked=named)


def settle(
    sources: Sources,
    method: Method,
    request: Request,
    observe: Observe,
    known: Known = NOTHING,
    fold: bool = True,
) -> Plan:
    """Fix weights, method and the shape of the output.

    Args:
        observe: looks at all modules, if it must be known what is in them.
        fold: whether units that are of no use are left out.
    """
    budget, profile = Budget.of(request.total_rank, request.size), _profile(request, sources)
    if budget is not None and request.energy_per_module is not None:
        both = f"{budget} and {say('energy_per_module', request.energy_per_module)}"
        raise UsageError(f"{both} both set the size: give one of them.")
    tailor, kind = _tailored(request, sources, profile)
    sources, schedule = _chosen(sources, method, request, known, fold)

    def weights_of(target: Target) -> Array:
        return schedule.way(method, target)[1]

    if request.renormalise:
        sources = replace(sources, adapters=tuple(renormalised(sources.adapters, weights_of)))
    work = sources.folded(weights_of) if fold and method.traits.sums else sources
    _check_units(work, method)
    shown, empty = method.weights(schedule.typical), Outline({}, 1, kind, {}, profile=profile)
    open_ = Plan(request, sources, schedule, shown, work, method, empty, (), budget, tailor=tailor)
    open_ = replace(open_, sized=bool(known.ranks or sized_by(method, schedule, budget)))
    _check_strength(open_)
    return _Sizes(open_, observe).settled()


def _profile(request: Request, sources: Sources) -> Profile:
    # ranks of their own were asked for, and one rank for all would fill them up with zeros
    own = request.energy_per_module is not None and not sources.dialect.one_rank
    profile = check_profile(request.profile or ("compact" if own else "portable"))
    check_ranks(sources.dialect, profile)
    return profile


def _tailored(request: Request, sources: Sources, profile: Profile) -> tuple[Tailor | None, str]:
    """The consumer that the merge is for, if it is for one, and the type of the output."""
    widest = dtypes.widest(a.dtype for a in sources.adapters if a)
    tailor = None
    if request.consumer is not None or request.max_rank is not None:
        from loramerge.merge.tailor import Tailor  # consumers are for merges that are made for one

        tailor = Tailor.of(request.consumer, request.max_rank, request.allow_unknown)
    if tailor is not None:
        if not sources.dialect.keeps_alpha:  # whose files hold the rank of each module anyway
            tailor.check_profile(profile)
        widest = tailor.dtype(widest)
    return tailor, widest if request.dtype is None else dtypes.parse(request.dtype)


def _chosen(
    sources: Sources, method: Method, request: Request, known: Known, fold: bool
) -> tuple[Sources, Schedule]:
    """The sources that take part, and the weights and ranks of every module."""
    weights, rules = weighed(method, sources.whole, request, known.left_out), request.rules
    sources = replace(sources, left_out=known.left_out or {})
    if fold and (left := unchosen(method, sources.whole, weights, rules)):
        weights = [weight for i, weight in enumerate(weights or ()) if i not in left]
        sources = sources.without(left)
    everything = {target for adapter in sources.whole for target in adapter}
    schedule = Schedule.of(weights, rules, len(sources.whole), everything)
    if known is NOTHING:  # a record was carried out like that
        schedule.check_rules(everything)
    return sources, replace(schedule, ranks=_there(known.ranks, everything))


def _there(ranks: Mapping[str, int], targets: Iterable[Target]) -> Mapping[str, int]:
    """Raises UsageError: a rank is for a module that is not there."""
    places = {target.place for target in targets}
    for place in ranks:
        if place not in places:
            raise UsageError(f"ranks has {printable(place)}, which is not a module here.")
    return ranks


def _check_units(work: Sources, method: Method) -> None:
    """Raises IncompatibleError: the sources are too many for the method, with those that take any number."""
    try:
        work.check_units()
    except IncompatibleError as error:
        if method.traits.sums:
            raise
        sums = f"{say('method', 'average')}, or {say('method', 'linear')} with {say('scale', 'norm')}"
        raise IncompatibleError(f"{error} Sums take any number: {sums}.") from None


def _check_strength(plan: Plan) -> None:
    """Raises UsageError: a strength is given, although the method writes masks for the merge as it is."""
    if plan.method.masks and plan.scale != 1.0:
        raise UsageError(
            f"{say('scale', plan.scale)} would give a merge by {name_of(plan.method)} another strength than "
            "its masks are for: give the sources weights instead."
        )


@dataclass(frozen=True, eq=False, repr=False)
class _Sizes:
    """A plan whose ranks are open, and how to look at the modules that decide them."""

    plan: Plan
    observe: Observe

    def settled(self) -> Plan:
        """The plan with its ranks: those of the method, of a budget, or of a consumer."""
        plan = self.plan
        if (share := plan.request.energy_per_module) is not None:
            settled = self.each(share)
        else:
            settled = self.found(plan.method) if plan.budget is None else self.within(plan.budget)
        return settled if plan.tailor is None else self.tailored(settled, plan.tailor)

    def tailored(self, settled: Plan, tailor: Tailor) -> Plan:
        """The plan as the consumer loads it, with sentences about it."""
        said = sized_by(self.plan.method, self.plan.schedule, self.plan.budget)
        said = say("energy_per_module") if self.plan.request.energy_per_module is not None else said
        other = tailor.narrower(self.plan.method, settled.outline.largest, said)
        fit = settled if other is None else self.found(other)
        notes = tailor.checked(fit.outline, narrowed=other is not None)
        return replace(fit, notes=(*fit.notes, *notes))

    def found(self, method: Method) -> Plan:
        """The plan of a method that may still have to look at all modules."""
        return self.plan.again(self.known(method).decide([], self.most), self.plan.schedule)

    def known(self, method: Method) -> Method:
        """The method with what it had to find out. Some methods look more than once, first for a bracket."""
        while method.observes:
            seen = self.observe(method, self.plan.work, self.plan.schedule)
            method = method.decide([array for _, array in seen], self.most)
        return method

    def within(self, budget: Budget) -> Plan:
        from loramerge.merge.fit import Fitting, looking  # few merges have a budget

        looking(self.plan.method, budget)  # says what does not go together, before anything is read
        plan, method = self.plan, self.known(self.plan.method)
        seen = self.observe(looking(method, budget), plan.work, plan.schedule)
        bare = is_bare(plan.default_out("merged")) if plan.request.bare is None else plan.request.bare
        return Fitting(seen, method.decide([], self.most), plan.schedule, plan.again, bare).within(budget)

    def each(self, share: float | str) -> Plan:
        """The plan with as many units in every module as it needs; a rank of the method is the most."""
        from loramerge.merge.fit import looking  # few merges size every module

        plan, asked = self.plan, Budget("energy_per_module", parsed(share)[1], share)
        most = getattr(plan.method, "rank", None)
        free = replace(plan.method, **{"rank": None}) if most else plan.method
        looking(free, asked)  # says what does not go together, before anything is read
        method, looks = self.known(plan.method), looking(self.known(free), asked)
        seen = self.observe(looks, plan.work, plan.schedule)
        ranks: dict[str, int] = {}
        for targets, squares in seen:
            for target, count in zip(targets, units(squares, share).tolist(), strict=True):
                ranks[target.place] = max(ranks.get(target.place, 1), min(count, most or count))
        return plan.again(method.decide([], self.most), replace(plan.schedule, ranks=ranks))

    @property
    def most(self) -> int:
        """The largest rank of a source."""
        return max(adapter.rank for adapter in self.plan.sources.adapters)


def observer(request: Request) -> Observe:
    """Looks at all modules whose rank is open, with as much of the machine as was asked for."""
    effort = request.effort

    def observe(method: Method, work: Sources, schedule: Schedule) -> list[Seen]:
        own_effort = (effort.on_gpu() if method.batched else effort).holding(work.held(method))

        def look(units: Units) -> list[Seen]:
            own, weights = schedule.way(method, units.targets[0])
            if not own.observes:  # a rule has given these modules a rank of their own
                return []
            _, grams = units.seen(own.frame)
            facts = own.observe(own.weigh(grams, work_weights(work, weights)))
            for _ in units.targets:
                stage.step()
            return [(units.targets, host(facts))]

        with (
            Stage(request.tell, "looking", len(work.signatures)) as stage,
            own_effort.crew(stage.tick) as run,
        ):
            return list(chain.from_iterable(run(look, work.batches(own_effort, schedule, method))))

    return observe
