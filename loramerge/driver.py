"""The one driver: read → units → Grams → (P, Q) → remix → write → read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loramerge import dtypes, rounding
from loramerge.adapter import Adapter, BaseModel, Held, Provenance, Slot
from loramerge.algorithms import Method
from loramerge.backend import Array, workers
from loramerge.errors import VerificationError, printable
from loramerge.formats import load, output
from loramerge.formats.beside import parted
from loramerge.planning import Plan, plan, see, thread_count
from loramerge.proof import check_rounding, check_written, digest
from loramerge.recipe import record
from loramerge.report import Module, Report, measure
from loramerge.selection import Alphas, Source
from loramerge.target import Target
from loramerge.units import Map, Units, batches

Put = Callable[[Target, Array, Array], None]
Progress = Callable[[Iterable[Units], int], Iterable[Units]]


@dataclass(frozen=True, eq=False)
class Merge:
    """What `combine` returns: the merged adapter and the report of what it kept.

    Args:
        adapter: the merge; scale 1, one rank.
        report: what was kept and lost.
        method: the method with every open option settled.
        out: where it was written, if it was.
    """

    adapter: Adapter
    report: Report
    method: Method
    out: Path | None = None

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def execute(plan: Plan, put: Put, threads: int | None = None, progress: Progress | None = None) -> Report:
    """Merge batch by batch, handing every stored module to `put`; memory follows the largest batch."""
    modules: list[Module] = []
    stream: Iterable[Units] = batches(plan.adapters, plan.signatures)
    with workers(thread_count(threads)) as run:
        for units in progress(stream, len(plan.signatures)) if progress else stream:
            modules += _merge(plan, units, put, run)
    modules.sort(key=lambda module: module.name)
    names = tuple(adapter.name for adapter in plan.adapters)
    return Report(names, tuple(map(float, plan.weights)), tuple(modules), plan.notes)


def _merge(plan: Plan, units: Units, put: Put, run: Map) -> list[Module]:
    grams, weighed = see(plan.method, units, plan.weights, run)
    remix = units.settle(plan.method.remix(weighed), run)

    def emit(module: int) -> float:
        target, outline = units.targets[module], plan.outline
        up, down = units.remix(module, remix)
        stored = rounding.store(up, down, outline.dtype, outline.width(target), str(target))
        put(target, *stored)
        error = rounding.error(up, down, *stored)
        if error > rounding.bound(*stored, outline.dtype):
            raise VerificationError(
                f"{printable(target)} loses {error**0.5:.1e} in {dtypes.word(outline.dtype)}, more than "
                "rounding explains: its values are too small for the type. Use --dtype float32."
            )
        return error

    errors = list(run(emit, range(len(units.targets))))
    return measure(grams, remix, plan.weights, plan.signatures[units.targets[0]], errors)


def combine(
    sources: Sequence[Source],
    method: str | Method = "linear",
    *,
    weights: Sequence[float] | None = None,
    out: str | Path | None = None,
    alpha: Alphas = None,
    dtype: str | None = None,
    only: str | None = None,
    exclude: str | None = None,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    allow_pickle: bool = False,
    extras: str = "refuse",
    initial: Mapping[str, str | Path] | None = None,
    renormalise: bool = False,
    max_error: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Merge:
    """Merge adapters into one adapter.

    Args:
        sources: paths (a PEFT folder or a bare .safetensors) or `Adapter` values.
        method: a name of ``loramerge.METHODS`` with its `options`, or a method such as ``Lego(rank=16)``.
        weights: one number per source, 1 each by default; they may be negative.
        out: write there: one file if it ends in .safetensors, else a PEFT folder. None: keep in memory.
        alpha: for bare files that do not say theirs: a number, ``"rank"``, or {source: either}.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``; by default the widest of the sources.
        only, exclude: regular expressions searched in module names.
        allow_pickle: read .bin and .pt files too. Nothing in them is run.
        extras: tensors that are no low-rank pair (heads, biases): ``"refuse"``, ``"first"`` (of the first
            source that has them), ``"average"`` or ``"drop"``.
        initial: {source: folder of the adapter that its PiSSA, OLoRA, CorDA or LoRA-GA training began with}.
        renormalise: where a source lacks a module, divide by the weights of the others, not count it as zero.
        max_error: largest ‖merge − written‖/‖merge‖ allowed in a module.
        threads: workers; the result does not depend on it.

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
    chosen = {"dtype": dtype, "only": only, "exclude": exclude, **options}
    todo = plan(
        sources,
        method,
        weights=weights,
        alpha=alpha,
        allow_base_mismatch=allow_base_mismatch,
        allow_pickle=allow_pickle,
        extras=extras,
        initial=initial,
        renormalise=renormalise,
        threads=threads,
        **chosen,
    )
    where = None if out is None else Path(out)
    return run(todo, where, overwrite=overwrite, max_error=max_error, threads=threads, progress=progress)


def run(
    todo: Plan,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    max_error: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Merge:
    """Carry out a plan, into memory or to `out`. Arguments and errors as for `combine`."""
    if out is None:
        return _in_memory(todo, max_error, threads, progress)
    return _to_disk(todo, out, overwrite, max_error, threads, progress)


def _in_memory(plan: Plan, max_error: float | None, threads: int | None, progress: Progress | None) -> Merge:
    slots: dict[Target, Slot] = {}

    def put(target: Target, up: Array, down: Array) -> None:
        slots[target] = Slot(Held(up), Held(down), 1.0)

    report = execute(plan, put, threads, progress)
    check_rounding(report, max_error)
    config = plan.outline.config
    base = BaseModel(config["base_model_name_or_path"], config["revision"])
    ordered = {target: slots[target] for target in plan.signatures}
    merged = Adapter(
        "merged",
        ordered,
        base,
        config=config,
        provenance=Provenance("merged"),
        bare=plan.bare,
        **parted(plan.outline.extras),
    )
    return Merge(merged, report, plan.method)


def _to_disk(
    plan: Plan,
    out: Path,
    overwrite: bool,
    max_error: float | None,
    threads: int | None,
    progress: Progress | None,
) -> Merge:
    bare = output.is_bare(out)
    made = record(plan.adapters, plan.given, plan.method, plan.settings)
    digests: dict[Target, str] = {}
    with output.create(out, bare, replace(plan.outline, recipe=made), overwrite) as draft:

        def put(target: Target, up: Array, down: Array) -> None:
            digests[target] = digest(up, down)
            draft.put(target, up, down)

        report = execute(plan, put, threads, progress)
        check_rounding(report, max_error)
        draft.close()
        draft.note({**made, "report": report.to_dict()})
        check_written(draft.reread(), digests)
    return Merge(load(out), report, plan.method, out)
