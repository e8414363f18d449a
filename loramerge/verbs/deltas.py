"""A merge written as dense deltas: one full matrix per parameter, to be added to the base weights."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from loramerge.adapters.arguments import checked
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.gram import Grams
from loramerge.arrays.remix import Fitted
from loramerge.arrays.workers import go_on, workers
from loramerge.errors import IncompatibleError, UsageError, VerificationError, printable, say
from loramerge.formats.files.atomic import new_file
from loramerge.formats.files.safetensors import Writer, open_file
from loramerge.formats.output import is_bare
from loramerge.formats.peft.alpha import OURS
from loramerge.merge.measure import measure_dense
from loramerge.merge.plan import Plan
from loramerge.merge.record import hashing, record, unhashed
from loramerge.merge.report import Module, Report
from loramerge.merge.run import decided, report
from loramerge.merge.strength import COSINES, rescaled, strength
from loramerge.request.effort import EFFORT, Effort
from loramerge.request.progress import Stage, Tell
from loramerge.request.request import Request
from loramerge.sources.units import Units

FACTOR = re.compile(r"\.lora_(down|A)\.weight$")

Put = Callable[[Target, Array], None]


@checked("todo", "out", "overwrite", "effort")
def write_deltas(
    todo: Plan,
    out: str | Path,
    *,
    overwrite: bool = False,
    effort: Effort = EFFORT,
    progress: Tell | bool | None = None,
) -> Report:
    """Write ΔW of every module as a full matrix, to be added to the base parameter.

    Nothing is fitted to a rank; a method that has factors is multiplied out. Each module is one tensor, with
    the name and the shape of the base parameter. In the formats kohya and comfy its name is `<module>.diff`,
    which ComfyUI and LyCORIS load. What is read back must be what was written.

    Args:
        todo: from `loramerge.plan`.   out: a name that ends in .safetensors.
        effort, progress: as for `combine`.

    Returns:
        Report: with ‖ΔW − written‖ as rounding error.

    Raises:
        UsageError: another name, a budget, or a scale that needs a second look.
        IncompatibleError: experts, groups of convolutions, or tensors that are no low-rank pair.
        OutputError, VerificationError: as `combine`.
    """
    where, tell = Path(out), Request(progress=progress).tell
    if todo.method.masks:
        raise UsageError("Dense deltas cannot hold masks: merge into an adapter.")
    _check(todo, where)
    todo.check_apart(where)
    names = _names(todo)
    layout = {name: (todo.outline.dtype, _shape(t, todo.sources.shape(t))) for t, name in names.items()}
    effort = effort.holding(todo.work.held(todo.method))
    marks: dict[str, int] = {}
    modules: list[Module] = []
    with new_file(where, overwrite, todo.sources.confirm) as file:
        with hashing(todo.sources.whole, tell) as digests:
            with Writer(file, layout, _header(todo, unhashed(todo.sources.whole)), name=str(out)) as writer:

                def put(target: Target, stored: Array) -> None:
                    marks[names[target]] = zlib.crc32(stored.reshape(-1).view("u1").data)
                    writer.write(names[target], stored)

                with (
                    Stage(tell, "merging", len(names)) as stage,
                    workers(effort.workers, stage.tick) as run,
                ):
                    for facts in run(partial(_merge, todo, put, stage), todo.batches(effort)):
                        modules += facts
                writer.amend(_header(todo, digests()))
                writer.close()
        _check_written(file, marks)
    return report(todo, modules)


def _check(todo: Plan, out: Path) -> None:
    if not is_bare(out):
        raise UsageError(f"Dense deltas are one file: {printable(out)} must end in .safetensors.")
    if todo.budget is not None:
        raise UsageError(f"{todo.budget} shares ranks, and dense deltas have none: leave it out.")
    if todo.scale in COSINES:
        raise UsageError(f"{say('scale', 'cosine')} is not for dense deltas: give a number, norm or fade.")
    for target in todo.sources.signatures:
        if target.layout.blocks > 1 or target.index >= 0:
            raise IncompatibleError(
                f"{printable(target)} is one of many updates of one parameter (experts, or groups of a "
                f"convolution), which dense deltas do not hold: leave it out with {say('exclude')}."
            )
    if todo.outline.extras or todo.outline.apart:
        raise IncompatibleError(
            f"Dense deltas cannot hold heads, biases or other tensors: add {say('extras', 'drop')}."
        )


def _header(todo: Plan, digests: list[dict[str, str]]) -> dict[str, str]:
    said = record(todo, digests)
    told = {**said, "settings": {**said["settings"], "dense_delta": True}}
    return {**todo.outline.kept, OURS: json.dumps(told, sort_keys=True, separators=(",", ":"))}


def _names(todo: Plan) -> dict[Target, str]:
    """What the tensor of each module is called in the format of the merge."""
    # `.diff` is the one form of a full ΔW that a tool for images loads. Elsewhere nobody loads such a file,
    # so its tensors have the names of the parameters that they are added to.
    targets, dialect = list(todo.sources.signatures), todo.sources.dialect
    if not dialect.differences:
        return {target: _parameter(target) for target in targets}
    named = dialect.keys(targets)
    return {target: f"{FACTOR.sub('', named(target)[0])}.diff" for target in targets}


def _parameter(target: Target) -> str:
    return f"{'' if target.component == 'model' else f'{target.component}.'}{target.path}.{target.parameter}"


def _turned(target: Target) -> bool:
    """Whether the base keeps the parameter as (in, out)."""
    return target.kind == "embedding" or target.layout.fan_in_fan_out


def _shape(target: Target, size: tuple[int, int]) -> tuple[int, ...]:
    (outs, ins), kernel = size, target.layout.kernel
    if kernel:
        return outs, ins // int(np.prod(kernel)), *kernel
    return (ins, outs) if _turned(target) else (outs, ins)


def _merge(todo: Plan, put: Put, stage: Stage, units: Units) -> list[Module]:
    method, weights = todo.way(units)
    plain, seen = units.seen(method.frame)
    modules = []
    for m, (target, matrix) in enumerate(zip(units.targets, _matrices(todo, units, seen), strict=True)):
        fact = measure_dense(plain, m, matrix, weights, units.signature)
        modules.append(_emit(todo, target, fact, matrix, put))
        stage.step()
    return modules


def _matrices(todo: Plan, units: Units, seen: Grams) -> Iterator[Array]:
    """ΔW (out, in) of each module of a batch, one at a time."""
    made = decided(todo, units, seen)
    for m in range(len(units.targets)):
        if isinstance(made, Fitted) and made.dense is not None:
            yield made.dense(m)
        elif isinstance(made, Fitted):
            fit = made.make(m)
            yield fit.up @ fit.down
        else:
            up, down = units.remix(m, made)
            yield up @ down


def _emit(todo: Plan, target: Target, fact: Module, matrix: Array, put: Put) -> Module:
    factor = strength(todo.scale, fact, {})
    matrix = matrix if factor == 1.0 else matrix * factor
    with np.errstate(over="ignore", under="ignore"):
        stored = matrix.astype(dtypes.FLOATS[todo.outline.dtype])
    off, finite = 0.0, True
    for row, kept in zip(matrix, stored, strict=True):  # row by row: no third matrix
        wide = dtypes.wide(kept)
        finite = finite and bool(np.isfinite(wide).all())
        off += float(np.square(row - wide).sum()) if finite else 0.0
    if not finite:
        raise IncompatibleError(
            f"The merge of {printable(target)} does not fit {dtypes.word(todo.outline.dtype)}: "
            f"use {say('dtype')} "
            "bfloat16 or float32."
        )
    whole = stored.T if _turned(target) else stored
    go_on()
    put(target, np.ascontiguousarray(whole).reshape(_shape(target, matrix.shape)))
    return replace(rescaled(fact, factor), rounding=off)


def _check_written(file: Path, marks: dict[str, int]) -> None:
    """Every tensor as it was handed over.

    Raises:
        VerificationError: one is not.
    """
    tensors = open_file(file).tensors
    for name, mark in marks.items():
        if zlib.crc32(np.ascontiguousarray(tensors[name].read()).reshape(-1).view("u1").data) != mark:
            raise VerificationError(f"{printable(name)} was read back with other values. Run it again.")
