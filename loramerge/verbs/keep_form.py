"""A merge that keeps the form of its sources, where their ΔW is linear in what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loramerge import formats
from loramerge.algorithms.average import Average
from loramerge.algorithms.linear import Linear
from loramerge.errors import UsageError, VerificationError, printable, say
from loramerge.formats import coefficients
from loramerge.formats.output import is_bare
from loramerge.merge.plan import Plan
from loramerge.merge.record import hashing, record
from loramerge.merge.run import Merge, run
from loramerge.request.doors import LIMITS
from loramerge.sources.aid import aid
from loramerge.verbs.diff import diff

TAKEN = ("out", "overwrite", "bare", "keep_form", *LIMITS)
FORMED = ("dtype", "profile", "format")  # settings that the form of the sources decides
MOST = 1e-5  # that the form may be off the sum, where coefficients are float32


def kept(plan: Plan) -> Merge:
    """Carry out a plan in the form of its sources.

    Raises:
        UsageError: the method is no sum, or there is no folder to write.
        IncompatibleError: the sources differ in more than coefficients in which their ΔW is linear.
        VerificationError: what was read back is not the sum.
    """
    out, request, method = plan.request.out, plan.request, plan.method
    if out is None or is_bare(out):
        raise UsageError(f"{say('keep_form', True)} writes a PEFT folder: name one by out.")
    if not isinstance(method, Linear | Average) or getattr(method, "rank", None) is not None:
        raise UsageError(f"{say('keep_form', True)} is for the methods linear and average, without a rank.")
    if not plan.schedule.uniform or isinstance(request.scale, str):
        raise UsageError(f"{say('keep_form', True)} needs one weight for each source and a number as scale.")
    for field, _ in request.given():
        if field.part in ("size", "output") and field.name not in TAKEN:
            raise UsageError(
                f"{say(field.name)} is not for {say('keep_form', True)}: the form stays as it is."
            )
    plan.check_destination(out)
    weights = [float(request.scale) * float(weight) for weight in plan.weights]
    tensors = coefficients.summed(plan.sources.whole, weights)
    exact = run(replace(plan, request=replace(request, out=None)))
    said = _record(plan, exact)
    here = aid(request.base, None, kept=True)

    def check(where: Path) -> None:
        worst = diff(exact.adapter, formats.load(where, aid=here)).largest
        if not worst <= MOST:
            raise VerificationError(f"{printable(out)} would be {worst:.1e} off the sum of its sources.")

    coefficients.write(tensors, plan.sources.whole[0].config, out, request.overwrite, said, check)
    found = formats.load(out, aid=here)
    return Merge(found, exact.report, plan, out)


def _record(plan: Plan, exact: Merge) -> dict[str, Any]:
    """The record without what the form decides, and the report."""
    with hashing(plan.sources.whole, plan.request.tell) as digests:
        said = record(plan, digests())
    settings = {name: value for name, value in said["settings"].items() if name not in FORMED}
    return {**said, "settings": settings, "report": exact.report.to_dict()}
