"""The proof of a merge: its rounding is within limits, and the file that is read back is what was decided."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.target import Target
from loramerge.algorithms import Method
from loramerge.arrays import dtypes
from loramerge.arrays.backend import Array
from loramerge.arrays.rounding import bound
from loramerge.arrays.workers import workers
from loramerge.errors import VerificationError, printable, say
from loramerge.merge.report import Report
from loramerge.request.progress import Stage, Tell
from loramerge.request.request import Request

LARGER = {  # a field that says how large a merge is -> what more of it is called
    "total_rank": "a larger total rank",
    "size": "a larger size",
    "energy_per_module": "more energy per module",
}


def fingerprint(up: Array, down: Array) -> str:
    """A fingerprint of a module's factors as stored: shapes, dtype and bytes.

    CRC-32: it guards against a faulty disk or writer, not against an enemy, and costs a tenth of a hash.
    """
    sums = (zlib.crc32(np.ascontiguousarray(factor).reshape(-1).view("u1").data) for factor in (up, down))
    return f"{up.shape}{down.shape}{up.dtype}" + "".join(f" {value:08x}" for value in sums)


def check_written(
    adapter: Adapter,
    marks: Mapping[Target, str],
    scales: Mapping[Target, float],
    threads: int = 1,
    tell: Tell | None = None,
) -> None:
    """Read back: the same modules and scales, and every factor as it was when its error was measured.

    So the error of the file is known at half the cost of a second pass over the sources.

    Raises:
        VerificationError: anything differs.
    """
    if set(adapter) != set(marks):
        raise VerificationError(
            f"{len(marks)} modules were written, but {len(adapter)} others were read back: the disk or "
            "another process changed the output. Run it again."
        )

    def check(target: Target) -> None:
        update = adapter[target]
        if update.scale != scales.get(target, 1.0) or fingerprint(update.up, update.down) != marks[target]:
            raise VerificationError(
                f"{printable(target)} was read back with other values or scale {update.scale} than were "
                "written: the disk or another process changed the output. Run it again."
            )

    with Stage(tell, "proving", len(marks)) as stage, workers(threads, stage.tick) as run:
        for _ in stage.over(run(check, marks)):
            pass


def check_honest(target: Target, error: float, stored: tuple[Array, Array], dtype: str) -> None:
    """The rounding error² of a module must be one that rounding can cause.

    Raises:
        VerificationError: it is larger.
    """
    if error > bound(*stored, dtype):
        raise VerificationError(
            f"{printable(target)} loses {error**0.5:.1e} in {dtypes.word(dtype)}, more than rounding "
            f"explains: its values are too small for the type. Use {say('dtype', 'float32')}."
        )


def check_limits(report: Report, request: Request, method: Method) -> None:
    """Check a merge against the limits that the user gave.

    Raises:
        VerificationError: it is beyond one.
    """
    check_rounding(report, request.max_error)
    lost, most = report.energy_lost, request.max_lost
    alone = len(report.sources) == 1  # no weight helps there, and the commands for it take no method
    room = larger(request, method)
    if most is not None and lost is not None and lost > most:
        raise VerificationError(
            f"The merge misses {lost:.3g} of the energy of the weighted sum, more than "
            f"{say('max_lost', most)}: give it {either([*room, *([] if alone else ['another method'])])}."
        )
    least = request.min_cosine
    remedy = either(room if alone else ["more weight", *room, "another method"])
    for name, weight, cosine in zip(report.sources, report.weights, report.cosines, strict=True):
        if least is not None and weight > 0 and cosine is not None and cosine < least:
            raise VerificationError(
                f"The cosine of the merge with {printable(name)} is {cosine:.3f}, below "
                f"{say('min_cosine', least)}: give it {remedy}."
            )


def larger(request: Request, method: Method) -> list[str]:
    """What makes this merge larger, as its user says how large it is."""
    said = [words for name, words in LARGER.items() if getattr(request, name) is not None]
    return said or (["a larger rank"] if takes(method, "rank") else [])


def takes(method: Method, option: str) -> bool:
    """Whether it has this option, or a method inside it has."""
    inside = (getattr(method, name) for name in method.names())
    return option in method.names() or any(takes(each, option) for each in inside if isinstance(each, Method))


def either(ways: Sequence[str]) -> str:
    """The ways as part of a sentence.

    >>> either(["more weight", "a larger rank", "another method"]), either([])
    ('more weight, a larger rank or another method', 'another limit')
    """
    *first, last = ways or ["another limit"]
    return f"{', '.join(first)} or {last}" if first else last


def check_something(report: Report, method: Method) -> None:
    """Refuse a merge that holds nothing although the weighted sum of its sources does.

    Raises:
        VerificationError: it is zero everywhere.
    """
    if not any(module.merged for module in report.modules) and any(m.wanted for m in report.modules):
        more = ["a larger density, which keeps more entries"] if takes(method, "density") else []
        raise VerificationError(
            "The merge is zero in every module, and its sources are not: the method leaves nothing of them. "
            f"Give it {either([*more, 'other weights'])}, or take another method."
        )


def check_rounding(report: Report, max_error: float | None) -> None:
    """Check every module against the limit that the user gave.

    Raises:
        VerificationError: one is above it.
    """
    if max_error is None:
        return
    # Of rounding alone: what a method with a rank gives up is reported as energy lost.
    worst = max(report.modules, key=lambda module: module.rounding_error or 0.0)
    if (worst.rounding_error or 0.0) > max_error:
        raise VerificationError(
            f"{printable(worst.name)} is off by {worst.rounding_error:.1e} of its norm after rounding, more "
            f"than {say('max_error', max_error)}: a wider dtype rounds less."  # replay has no --dtype
        )
