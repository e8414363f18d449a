"""What was written is what was decided: rounding within limits, and the file read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from loramerge.adapter import Adapter
from loramerge.backend import Array
from loramerge.errors import VerificationError, printable
from loramerge.report import Report
from loramerge.target import Target


def digest(up: Array, down: Array) -> str:
    """A fingerprint of a module's factors as stored: shapes, dtype and bytes."""
    shapes = f"{up.shape}{down.shape}{up.dtype}".encode()
    mark = hashlib.blake2b(shapes)
    for factor in (up, down):
        mark.update(np.ascontiguousarray(factor).reshape(-1).view("u1").data)
    return mark.hexdigest()


def check_written(adapter: Adapter, digests: Mapping[Target, str]) -> None:
    """Read back: the same modules, scale 1, and every factor as it was when its error was measured.

    Raises:
        VerificationError: anything differs.
    """
    if set(adapter) != set(digests):
        raise VerificationError(
            f"{len(digests)} modules were written, but {len(adapter)} others were read back: the disk or "
            "another process changed the output. Run it again."
        )
    for target, mark in digests.items():
        update = adapter[target]
        if update.scale != 1.0 or digest(update.up, update.down) != mark:
            raise VerificationError(
                f"{printable(target)} was read back with other values or scale {update.scale} than were "
                "written: the disk or another process changed the output. Run it again."
            )


def check_rounding(report: Report, max_error: float | None) -> None:
    """Hold every module against the user's limit.

    Raises:
        VerificationError: one is above it.
    """
    if max_error is None:
        return
    worst = max(report.modules, key=lambda module: module.rounding_error or 0.0)
    if (worst.rounding_error or 0.0) > max_error:
        raise VerificationError(
            f"{printable(worst.name)} is off by {worst.rounding_error:.1e} of its norm after rounding, more "
            f"than --max-error {max_error:g}: use a wider --dtype."
        )
