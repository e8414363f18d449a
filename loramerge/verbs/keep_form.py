"""A merge that keeps the form of its sources, where their ΔW is linear in what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge import formats
from loramerge.adapters.adapter import Tensor
from loramerge.algorithms.average import Average
from loramerge.algorithms.linear import Linear
from loramerge.arrays import dtypes
from loramerge.errors import IncompatibleError, UsageError, VerificationError, printable, say
from loramerge.formats import coefficients
from loramerge.formats.dialects import named
from loramerge.formats.output import Outline, is_bare
from loramerge.merge.plan import Plan
from loramerge.merge.record import hashing, record
from loramerge.merge.run import Merge, run
from loramerge.request.doors import LIMITS
from loramerge.sources.aid import aid
from loramerge.verbs.diff import diff

TAKEN = ("out", "overwrite", "bare", "keep_form", *LIMITS)
WHOLE = (  # settings that choose or change modules, which the files of the sources know nothing of
    "rules", "only", "exclude", "blocks", "rename", "grain", "heads_as_lora", "renormalise", "initial",
    "names", "project_out", "drop_below",
)  # fmt: skip
FORMED = ("dtype", "profile", "format")  # settings that the form of the sources decides
BESIDE = {"modules_to_save": None, "trainable_token_indices": None, "bias": "none"}  # settings of extras
MOST = 1e-5  # that the form may be off the sum, where coefficients are float32


def kept(plan: Plan) -> Merge:
    """Carry out a plan in the form of its sources.

    Raises:
        UsageError, IncompatibleError: as for `formed`.
        VerificationError: what was read back is not the sum.
    """
    shaped = formed(plan)
    out, request = shaped.request.out, plan.request
    assert out is not None  # or it was refused
    exact = run(replace(plan, request=replace(request, out=None)))
    said = _record(plan, exact)
    here = aid(request.base, None, kept=True)

    def check(where: Path) -> None:
        worst = diff(exact.adapter, formats.load(where, aid=here)).largest
        if not worst <= MOST:
            raise VerificationError(f"{printable(out)} would be {worst:.1e} off the sum of its sources.")

    coefficients.write(shaped.outline, out, request.overwrite, said, check, plan.sources.confirm)
    return Merge(formats.load(out, aid=here), exact.report, shaped, out)


def formed(plan: Plan) -> Plan:
    """The plan with the outline of what will be written; the coefficients of the sources are read.

    Raises:
        UsageError: the method is no sum, or there is no place to write.
        IncompatibleError: the sources differ in more than coefficients in which their ΔW is linear.
    """
    out = plan.request.out
    whole = plan.sources.whole
    single = coefficients.single(whole[0])
    if out is None or is_bare(out) != single:
        place = "one file: name it NAME.safetensors" if single else "a PEFT folder: name one"
        raise UsageError(f"{say('keep_form', True)} writes {place} by {say('out')}.")
    check_asked(plan)
    plan.check_destination(out)
    weights = [float(plan.request.scale) * float(weight) for weight in plan.weights]
    tensors = coefficients.summed(whole, weights)
    rank = max(slot.rank for slot in whole[0].slots.values())
    kind = dtypes.widest(tensor.dtype for tensor in tensors.values() if tensor.dtype in dtypes.FLOATS)
    outline = Outline({}, rank, kind, _config(plan), extras=tensors | _extras(plan))
    return replace(plan, outline=outline, sources=replace(plan.sources, dialect=named(whole[0].dialect)))


def check_asked(plan: Plan) -> None:
    """A sum of whole sources, with no setting that the form decides.

    Raises:
        UsageError: something else was asked for.
    """
    method, request = plan.method, plan.request
    if not isinstance(method, Linear | Average) or getattr(method, "rank", None) is not None:
        raise UsageError(f"{say('keep_form', True)} is for the methods linear and average, without a rank.")
    if not plan.schedule.uniform or isinstance(request.scale, str):
        raise UsageError(f"{say('keep_form', True)} needs one weight for each source and a number as scale.")
    for field, _ in request.given():
        if field.name in WHOLE or (field.part in ("size", "output") and field.name not in TAKEN):
            why = "it takes sources whole" if field.name in WHOLE else "the form stays as it is"
            raise UsageError(f"{say(field.name)} is not for {say('keep_form', True)}: {why}.")


def _extras(plan: Plan) -> dict[str, Tensor]:
    """Heads and the like, as the policy of extras settled them.

    Raises:
        IncompatibleError: they cannot be made one.
    """
    if plan.outline.apart:
        raise IncompatibleError(
            f"The heads of these sources cannot be averaged: {say('keep_form', True)} takes "
            f"{say('extras', 'first')} or {say('extras', 'drop')}."
        )
    held = {key for adapter in plan.sources.whole for key in adapter.extras}
    return {key: tensor for key, tensor in plan.outline.extras.items() if key in held}


def _config(plan: Plan) -> dict[str, Any]:
    """That of the sources, with the settings that load what is left of their extras."""
    config = dict(plan.sources.whole[0].config)
    if any(adapter.extras for adapter in plan.sources.whole):
        config |= {name: plan.outline.config.get(name, none) for name, none in BESIDE.items()}
    return config


def _record(plan: Plan, exact: Merge) -> dict[str, Any]:
    """The record without what the form decides, and the report."""
    with hashing(plan.sources.whole, plan.request.tell) as digests:
        said = record(plan, digests())
    settings = {name: value for name, value in said["settings"].items() if name not in FORMED}
    return {**said, "settings": settings, "report": exact.report.to_dict()}
