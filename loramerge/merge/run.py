"""The one driver: read → units → Grams → (P, Q) → remix → write → read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loramerge.adapters.adapter import Adapter, BaseModel, Held, Provenance, Slot
from loramerge.adapters.arguments import checked
from loramerge.adapters.target import Target
from loramerge.algorithms import Method
from loramerge.arrays import rounding
from loramerge.arrays.backend import Array, host
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted, Remix
from loramerge.arrays.workers import go_on
from loramerge.errors import LoramergeError, UsageError, printable, say
from loramerge.formats import load, output
from loramerge.formats.peft.beside import parted
from loramerge.merge.measure import measure, measure_fit, unfolded
from loramerge.merge.plan import Plan
from loramerge.merge.prove import check_honest, check_limits, check_something, check_written, fingerprint
from loramerge.merge.record import hashing, record, unhashed
from loramerge.merge.remedy import remedy
from loramerge.merge.report import Module, Report
from loramerge.merge.strength import COSINES, best_smallest_cosine, rescaled, strength
from loramerge.request.progress import Stage
from loramerge.sources.units import Units

if TYPE_CHECKING:
    from loramerge.merge.plot import Plots

Put = Callable[[Target, Array, Array], None]
Keep = Callable[[Target, Mapping[str, Array]], None]
Factors = Callable[[], tuple[Array, Array]]  # up (out, k) and down (k, in), computed when asked for


@dataclass(frozen=True, eq=False, repr=False)
class Merge:
    """What `combine` returns: the merged adapter and the report of what it kept.

    Args:
        adapter: the merge; scale 1.
        report: what was kept and lost.
        plan: sources, weights and the settled method.
        out: where it was written, if it was.
        masks: source -> module -> packed mask, where the method makes some and it was not written.
    """

    adapter: Adapter
    report: Report
    plan: Plan
    out: Path | None = None
    masks: Mapping[str, Mapping[Target, Array]] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The method with every open option settled."""
        return self.plan.method

    @checked("overwrite", "max_error")
    def save(self, out: str | Path, *, overwrite: bool = False, max_error: float | None = None) -> Merge:
        """Write it with provenance and proof, as `combine(..., out=out)` does; reads the sources again.

        Raises:
            OutputError, VerificationError: as `combine`.
            UsageError: it has the form of its sources.
        """
        if self.plan.request.keep_form:
            raise UsageError(f"{say('keep_form', True)} is written by {say('out')}: combine again, with it.")
        return run(self.plan.asking(out=out, overwrite=overwrite, max_error=max_error))

    def save_spread(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write how far the sources of a mixture are apart, entry by entry of ΔW: σ² = Σ_t α_t (ΔW_t − ΔW)²,
        by module name, in a dense .safetensors. The report has the sum of each. Reads the sources again.

        Raises:
            UsageError: the weights are no shares, as those of `Sg` and `Average` are.
            OutputError: as `combine`.
        """
        from loramerge.merge.spread import write_spread  # few merges have one

        write_spread(self.plan, Path(out), overwrite)

    def __repr__(self) -> str:
        where = "in memory" if self.out is None else f"in {printable(self.out)}"
        return f"<Merge of {self.plan.what}, {where}>"

    def __str__(self) -> str:
        return str(self.report)

    @property
    def plot(self) -> Plots:
        """Its charts, such as `merge.plot.spectra()`; they need the extra `plot`."""
        from loramerge.merge.plot import Plots  # for those who look

        return Plots(self.report, self.plan.sources.adapters, self.adapter)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def execute(plan: Plan, put: Put, keep: Keep) -> Report:
    """Merge every module and hand its stored factors to `put`, its masks to `keep`.

    A worker takes a batch all the way from reading to `put`, so that one reads while another computes
    or writes, and memory follows the largest batches in flight.
    """
    effort = plan.effort
    modules: list[Module] = []
    with (
        Stage(plan.request.tell, "merging", len(plan.sources.signatures)) as stage,
        effort.crew(stage.tick) as run,
    ):
        for facts in run(partial(_merge, plan, put, keep, stage), plan.batches(effort)):
            modules += facts
    found = report(plan, modules)
    if not plan.method.traits.vanishes and plan.request.scale != 0:
        check_something(found, plan.method)
    return found


def report(plan: Plan, modules: list[Module]) -> Report:
    """The report of a plan from the facts of its modules, in any order."""
    names = tuple(adapter.name for adapter in plan.sources.adapters)
    ordered = sorted(modules, key=lambda module: module.name)
    similar = plan.schedule.typical if plan.method.traits.given == "similarity" else ()
    if len(similar) and not plan.request.renormalise:  # which scales the sources themselves
        shares = {str(t): plan.schedule.way(plan.method, t)[1] for t in plan.sources.signatures}
        ordered = [replace(module, spread=_spread(module, shares[module.name])) for module in ordered]
    weights, similarities = (tuple(map(float, each)) for each in (plan.weights, similar))
    left_out = plan.sources.left_out
    chosen = "" if plan.default is None or len(plan.sources.whole) < 2 else str(plan.default)
    silent = plan.schedule.silent
    found = Report(names, weights, tuple(ordered), plan.notes, similarities, left_out, chosen, silent)
    return replace(found, remedy=remedy(plan, found))


def _spread(module: Module, shares: Array) -> float:
    """Σ α_t ‖ΔW_t‖² − ‖Σ α_t ΔW_t‖²."""
    return max(float(shares @ module.squares) - module.wanted, 0.0)


def decided(plan: Plan, units: Units, grams: Grams) -> Remix | Fitted:
    """What the plan's method makes of one batch, seen in its frame."""
    method, weights = plan.way(units)
    return units.settle(method.remix(method.weigh(grams, weights)))


def _merge(plan: Plan, put: Put, keep: Keep, stage: Stage, units: Units) -> list[Module]:
    facts = []
    targets = iter(units.targets)  # zip would hold one module while the next is made
    for fact, factors, masks in _made(plan, units):
        target = next(targets)
        facts.append(_emit(plan, target, fact, factors, put))
        keep(target, masks)
        stage.step()
        del factors, masks
    return facts


def _made(plan: Plan, units: Units) -> Iterator[tuple[Module, Factors, Mapping[str, Array]]]:
    """What the method makes of each module of a batch: its facts, how to come by its factors, its masks."""
    method, weights = plan.way(units)
    plain, seen = units.seen(method.frame)
    made = decided(plan, units, seen)
    if isinstance(made, Fitted):
        for m in range(len(units.targets)):
            fit = made.make(m)
            yield measure_fit(plain, m, fit, weights, units.signature), partial(_held, fit), fit.masks
            del fit
    else:
        facts = measure(plain, made, weights, units.signature)
        facts = unfolded(facts, units, plan.sources.adapters, made) if plan.folds else facts
        for m, fact in enumerate(facts):
            yield fact, partial(units.remix, m, made), {}


def _held(fit: Fit) -> tuple[Array, Array]:
    return fit.up, fit.down


def _emit(plan: Plan, target: Target, fact: Module, factors: Factors, put: Put) -> Module:
    """Store one module; its facts as it was stored."""
    factor = strength(plan.scale, fact, plan.strengths)
    up, down = factors()
    scale = plan.outline.scale(target)
    up = up if factor == scale else up * (factor / scale)
    stored = rounding.store(up, down, plan.outline.dtype, plan.outline.width(target), str(target))
    go_on()
    put(target, *map(host, stored))
    error = rounding.error(up, down, *stored)
    own = stored[0][:, : up.shape[1]], stored[1][: up.shape[1]]  # what fills them up is zero
    check_honest(target, error, own, plan.outline.dtype)
    return replace(rescaled(fact, factor), rounding=error * scale**2)


def strengths(plan: Plan, facts: Sequence[Module]) -> dict[str, float]:
    """The factor of every module."""
    found = best_smallest_cosine(facts, plan.scale) if plan.scale in COSINES else {}
    return {fact.name: strength(plan.scale, fact, found) for fact in facts}


def strengthened(plan: Plan) -> Plan:
    """The plan with the strengths of its modules, where all must be seen before one can be scaled."""
    if plan.scale not in COSINES:
        return plan

    def look(units: Units) -> list[Module]:
        facts = []
        for fact, *_ in _made(plan, units):
            facts.append(fact)
            stage.step()
        return facts

    with (
        Stage(plan.request.tell, "looking", len(plan.sources.signatures)) as stage,
        plan.effort.crew(stage.tick) as run,
    ):
        facts = [fact for batch in run(look, plan.batches(plan.effort)) for fact in batch]
    return replace(plan, strengths=best_smallest_cosine(facts, plan.scale))


def run(plan: Plan) -> Merge:
    """Carry out a plan, into memory or to the `out` of its request.

    Raises:
        OutputError: `out` exists or cannot be written.
        ChangedError: a source changed meanwhile.
        VerificationError: what was read back is not what was decided; `out` is left as it was.
    """
    try:
        plan = strengthened(plan)
        return _in_memory(plan) if plan.request.out is None else _to_disk(plan, plan.request.out)
    except LoramergeError:
        plan.sources.confirm()  # a limit that was missed by a mixture of two states says nothing
        raise


def _in_memory(plan: Plan) -> Merge:
    slots: dict[Target, Slot] = {}

    def put(target: Target, up: Array, down: Array) -> None:
        slots[target] = Slot(Held(up), Held(down), plan.outline.scale(target))

    masks: dict[str, dict[Target, Array]] = {}

    def keep(target: Target, found: Mapping[str, Array]) -> None:
        for task, packed in found.items():
            masks.setdefault(task, {})[target] = packed

    made = execute(plan, put, keep)
    plan.sources.confirm()
    check_limits(made, plan.request, plan.method)
    return Merge(merged(plan, slots), made, plan, masks=masks)


def merged(plan: Plan, slots: dict[Target, Slot]) -> Adapter:
    """The adapter that a plan makes, from its slots in any order."""
    config = plan.outline.config
    base = BaseModel(config["base_model_name_or_path"], config["revision"])
    ordered = {target: slots[target] for target in plan.sources.signatures}
    return Adapter(
        "merged",
        ordered,
        base,
        config=config,
        provenance=Provenance("merged"),
        bare=plan.sources.bare,
        dialect=plan.sources.dialect.name,
        metadata=plan.outline.kept,
        **parted(plan.outline.extras),
    )


def _to_disk(plan: Plan, out: Path) -> Merge:
    marks: dict[Target, str] = {}
    _check_size(plan, out)
    plan.check_destination(out)
    outline = replace(plan.outline, recipe=record(plan, unhashed(plan.sources.whole)))
    overwrite, confirm = plan.request.overwrite, plan.sources.confirm
    with output.create(out, output.is_bare(out), outline, overwrite, confirm) as draft:

        def put(target: Target, up: Array, down: Array) -> None:
            marks[target] = fingerprint(up, down)
            draft.put(target, up, down)

        with hashing(plan.sources.whole, plan.request.tell) as digests:
            made = execute(plan, put, draft.keep)
            check_limits(made, plan.request, plan.method)
            if plan.outline.masks is not None:
                from loramerge.formats.masks import mark_of  # few merges have tasks to choose from
                from loramerge.routing.router import write_router

                draft.close_masks(mark_of(marks))
                write_router(plan.sources.adapters, list(plan.outline.masks.tasks), draft.where)
            draft.close(record(plan, digests()), made.to_dict())
        check_written(draft.reread(), marks, outline.scales, plan.effort.workers, plan.request.tell)
    return Merge(load(out), made, plan, out)


def _check_size(plan: Plan, out: Path) -> None:
    """A plan for a folder may be too large as one file, whose header tells how it was made."""
    if plan.budget is None or not plan.budget.in_bytes:
        return
    from loramerge.merge.fit import file_size  # few merges have a budget

    if (found := file_size(plan, output.is_bare(out))) > plan.budget.limit:
        raise UsageError(
            f"{printable(out)} would have {found} bytes, and size is {plan.budget.limit:.0f}: the merge was "
            "planned as a folder. Give `out` to combine, or bare=True to plan."
        )
