"""The one driver: read → units → Grams → (P, Q) → remix → write → read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from loramerge.adapters.adapter import Adapter, BaseModel, Held, Provenance, Slot
from loramerge.adapters.target import Target
from loramerge.algorithms import Method
from loramerge.arrays import rounding
from loramerge.arrays.backend import Array, host, workers
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fit, Fitted, Remix
from loramerge.errors import UsageError, printable
from loramerge.formats import load, output
from loramerge.formats.masks import mark_of
from loramerge.formats.peft.beside import parted
from loramerge.merge.fit import file_size
from loramerge.merge.measure import measure, measure_fit, unfolded
from loramerge.merge.plan import Plan, plan
from loramerge.merge.prove import check_honest, check_rounding, check_written, fingerprint
from loramerge.merge.report import Module, Report
from loramerge.merge.spread import write_spread
from loramerge.merge.strength import best_smallest_cosine, rescaled, strength
from loramerge.request.effort import EFFORT, MEMORY, Effort
from loramerge.request.record import hashing, record, unhashed
from loramerge.request.scale import Scale
from loramerge.request.schedule import Rule, Weight
from loramerge.sources.descriptions import Descriptions
from loramerge.sources.open import Alphas, Source
from loramerge.sources.units import Units

Put = Callable[[Target, Array, Array], None]
Keep = Callable[[Target, Mapping[str, Array]], None]
Factors = Callable[[], tuple[Array, Array]]  # up (out, k) and down (k, in), computed when asked for
Progress = Callable[[Iterable[list[Module]], int], Iterable[list[Module]]]


@dataclass(frozen=True, eq=False)
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

    def save(self, out: str | Path, *, overwrite: bool = False, max_error: float | None = None) -> Merge:
        """Write it with provenance and proof, as `combine(..., out=out)` does; reads the sources again.

        Raises:
            OutputError, VerificationError: as `combine`.
        """
        return run(self.plan, Path(out), overwrite=overwrite, max_error=max_error)

    def save_spread(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write how far the sources of a mixture are apart, entry by entry of ΔW: σ² = Σ_t α_t (ΔW_t − ΔW)²,
        by module name, in a dense .safetensors. The report has the sum of each. Reads the sources again.

        Raises:
            UsageError: the weights are no shares, as those of `Sg` and `Average` are.
            OutputError: as `combine`.
        """
        write_spread(self.plan, Path(out), overwrite)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def execute(
    plan: Plan, put: Put, effort: Effort, progress: Progress | None = None, keep: Keep | None = None
) -> Report:
    """Merge every module and hand its stored factors to `put`, its masks to `keep`.

    A worker takes a batch all the way from reading to `put`, so that one reads while another computes
    or writes, and memory follows the largest batches in flight.
    """
    effort = effort.holding(plan.work.held(plan.method))
    todo = plan.batches(effort)
    modules: list[Module] = []
    with workers(effort.workers) as run:
        done = run(lambda units: _merge(plan, units, put, keep), todo)
        for facts in progress(done, len(plan.sources.signatures)) if progress else done:
            modules += facts
    return report(plan, modules)


def report(plan: Plan, modules: list[Module]) -> Report:
    """The report of a plan from the facts of its modules, in any order."""
    names = tuple(adapter.name for adapter in plan.sources.adapters)
    ordered = sorted(modules, key=lambda module: module.name)
    similar = plan.schedule.typical if plan.method.traits.given == "similarity" else ()
    if len(similar) and not plan.sources.settings["renormalise"]:  # which scales the sources themselves
        shares = {str(t): plan.schedule.way(plan.method, t)[1] for t in plan.sources.signatures}
        ordered = [replace(module, spread=_spread(module, shares[module.name])) for module in ordered]
    weights, similarities = (tuple(map(float, each)) for each in (plan.weights, similar))
    left_out = plan.sources.left_out
    return Report(names, weights, tuple(ordered), plan.notes, similarities, left_out)


def _spread(module: Module, shares: Array) -> float:
    """Σ α_t ‖ΔW_t‖² − ‖Σ α_t ΔW_t‖²."""
    return max(float(shares @ module.inners.diagonal()) - module.wanted, 0.0)


def decided(plan: Plan, units: Units, grams: Grams) -> Remix | Fitted:
    """What the plan's method makes of one batch, seen in its frame."""
    method, weights = plan.way(units)
    return units.settle(method.remix(method.weigh(grams, weights)))


def _merge(plan: Plan, units: Units, put: Put, keep: Keep | None) -> list[Module]:
    facts = []
    for target, (fact, factors, masks) in zip(units.targets, _made(plan, units), strict=True):
        facts.append(_emit(plan, target, fact, factors, put))
        if keep is not None:
            keep(target, masks)
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
    put(target, *map(host, stored))
    error = rounding.error(up, down, *stored)
    check_honest(target, error, stored, plan.outline.dtype)
    return replace(rescaled(fact, factor), rounding=error * scale**2)


def strengths(plan: Plan, facts: Sequence[Module]) -> dict[str, float]:
    """The factor of every module."""
    found = best_smallest_cosine(facts) if plan.scale == "cosine" else {}
    return {fact.name: strength(plan.scale, fact, found) for fact in facts}


def strengthened(plan: Plan, effort: Effort) -> Plan:
    """The plan with the strengths of its modules, where all must be seen before one can be scaled."""
    if plan.scale != "cosine":
        return plan

    effort = effort.holding(plan.work.held(plan.method))

    def look(units: Units) -> list[Module]:
        return [fact for fact, *_ in _made(plan, units)]

    with workers(effort.workers) as run:
        facts = [fact for batch in run(look, plan.batches(effort)) for fact in batch]
    return replace(plan, strengths=best_smallest_cosine(facts))


def combine(
    sources: Sequence[Source],
    method: str | Method = "linear",
    *,
    weights: Sequence[Weight] | None = None,
    rules: Sequence[Rule] = (),
    out: str | Path | None = None,
    alpha: Alphas = None,
    dtype: str | None = None,
    profile: str = "portable",
    total_rank: int | None = None,
    size: float | str | None = None,
    consumer: str | None = None,
    max_rank: int | None = None,
    only: str | None = None,
    exclude: str | None = None,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
    format: str | None = None,
    scale: Scale | None = None,
    descriptions: Descriptions = None,
    embedding: str | Path | None = None,
    max_error: float | None = None,
    threads: int | None = None,
    memory: float = MEMORY,
    progress: Progress | None = None,
    **options: Any,
) -> Merge:
    """Merge adapters into one adapter.

    Args:
        sources: paths (a PEFT folder or a bare .safetensors), names on the Hub, or `Adapter` values.
        method: a name of ``loramerge.METHODS`` with its `options`, or a method such as ``Lego(rank=16)``.
        weights: one number per source, 1 each by default; they may be negative. Or a `Ramp` over depth.
        rules: other weights or ranks for modules by name; see `Rule`.
        out: write there: one file if it ends in .safetensors, else a PEFT folder. None: keep in memory.
        alpha: for bare files that do not say theirs: a number, ``"rank"``, or {source: either}.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; by default the widest of the sources.
        profile: ``portable``, one rank for all modules, or ``compact``, each at its own.
        total_rank, size: instead of a rank: the ranks of all modules together, or the bytes of the file of
            weights (a number or ``"20MB"``), shared so that the least energy is lost.
        consumer: who shall load it, as for `check`: the merge keeps to what it loads, or is refused.
        max_rank: the largest rank that the consumer was told to load; 16 for vLLM.
        only, exclude: regular expressions searched in module names.
        allow_pickle: read .bin and .pt files too. Nothing in them is run.
        extras: tensors that are no low-rank pair (heads, biases): ``"refuse"``, ``"first"`` (of the first
            source that has them), ``"average"`` or ``"drop"``.
        initial: {source: folder of the adapter that its PiSSA, OLoRA, CorDA or LoRA-GA training began with}.
        renormalise: where a source lacks a module, divide by the weights of the others, not count it as zero.
        format: how it is written: ``peft``, ``kohya``, …; by default as the sources, if these are of one.
        scale: strength of the merge: a number, or ``"norm"`` (every module as strong as its sources are on
            average), or ``"cosine"`` (modules weighed for the largest smallest cosine with a source).
        descriptions: for a method with a query (``Sg(describe=…)``): {source: text}, or a JSON file of that;
            else descriptions.json beside a source, or its model card.
        embedding: how they are compared: ``"tfidf"``, a file of vectors, or a sentence-transformers model.
        max_error: largest ‖merge − written‖/‖merge‖ allowed in a module.
        threads: workers.   memory: bytes for all of them. The result depends on neither.

    Returns:
        Merge: the adapter (read from `out` if given), the report, the settled method.

    Raises:
        UsageError, SourceError, IncompatibleError, OutputError: a sentence each.
        VerificationError: what was read back is not what was decided; `out` is left as it was.

    >>> import numpy as np
    >>> from loramerge import from_state_dict
    >>> unit = {"base_model.model.q.lora_A.weight": np.ones((1, 2)),
    ...         "base_model.model.q.lora_B.weight": np.ones((2, 1))}
    >>> merge = combine([from_state_dict(unit, alpha=1), from_state_dict(unit, alpha=3)], "svd", rank=1)
    >>> merge.adapter[Target("q")].dense().round(12)
    array([[4., 4.],
           [4., 4.]])
    """
    effort = Effort(threads, memory)
    todo = plan(
        sources,
        method,
        weights=weights,
        rules=rules,
        alpha=alpha,
        dtype=dtype,
        profile=profile,
        total_rank=total_rank,
        size=size,
        bare=out is None or output.is_bare(Path(out)),
        consumer=consumer,
        max_rank=max_rank,
        only=only,
        exclude=exclude,
        allow_base_mismatch=allow_base_mismatch,
        allow_pickle=allow_pickle,
        extras=extras,
        initial=initial,
        renormalise=renormalise,
        format=format,
        scale=scale,
        descriptions=descriptions,
        embedding=embedding,
        effort=effort,
        **options,
    )
    where = None if out is None else Path(out)
    return run(todo, where, overwrite=overwrite, max_error=max_error, effort=effort, progress=progress)


def run(
    todo: Plan,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    max_error: float | None = None,
    effort: Effort = EFFORT,
    progress: Progress | None = None,
) -> Merge:
    """Carry out a plan, into memory or to `out`. Arguments and errors as for `combine`."""
    todo = strengthened(todo, effort)
    if out is None:
        return _in_memory(todo, max_error, effort, progress)
    return _to_disk(todo, out, overwrite, max_error, effort, progress)


def _in_memory(plan: Plan, max_error: float | None, effort: Effort, progress: Progress | None) -> Merge:
    slots: dict[Target, Slot] = {}

    def put(target: Target, up: Array, down: Array) -> None:
        slots[target] = Slot(Held(up), Held(down), plan.outline.scale(target))

    masks: dict[str, dict[Target, Array]] = {}

    def keep(target: Target, found: Mapping[str, Array]) -> None:
        for task, packed in found.items():
            masks.setdefault(task, {})[target] = packed

    made = execute(plan, put, effort, progress, keep)
    check_rounding(made, max_error)
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


def _to_disk(
    plan: Plan,
    out: Path,
    overwrite: bool,
    max_error: float | None,
    effort: Effort,
    progress: Progress | None,
) -> Merge:
    marks: dict[Target, str] = {}
    _check_size(plan, out)
    plan.check_destination(out)
    outline = replace(plan.outline, recipe=record(plan, unhashed(plan.sources.whole)))
    with output.create(out, output.is_bare(out), outline, overwrite) as draft:

        def put(target: Target, up: Array, down: Array) -> None:
            marks[target] = fingerprint(up, down)
            draft.put(target, up, down)

        with hashing(plan.sources.whole) as digests:
            made = execute(plan, put, effort, progress, draft.keep)
            check_rounding(made, max_error)
            draft.close_masks(mark_of(marks))
            draft.close(record(plan, digests()), made.to_dict())
        check_written(draft.reread(), marks, outline.scales, effort.workers)
    return Merge(load(out), made, plan, out)


def _check_size(plan: Plan, out: Path) -> None:
    """A plan for a folder may be too large as one file, whose header tells how it was made."""
    if plan.budget is None or not plan.budget.in_bytes:
        return
    if (found := file_size(plan, output.is_bare(out))) > plan.budget.limit:
        raise UsageError(
            f"{printable(out)} would have {found} bytes, and size is {plan.budget.limit:.0f}: the merge was "
            "planned as a folder. Give `out` to combine, or bare=True to plan."
        )
