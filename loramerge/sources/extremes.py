"""Units whose squares leave float64: sums of them would be infinite, or zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loramerge.adapters.limits import FAINT, SIDE, UNIT
from loramerge.adapters.lowrank import LowRank
from loramerge.arrays.backend import Array, positions
from loramerge.arrays.dtypes import wide
from loramerge.errors import SourceError, printable

Suspect = tuple[str, int, int, Sequence[int]]  # how it is odd, source, module, some units of it there


def suspects(left: Array, right: Array, scale: Array, owner: Array) -> Iterator[Suspect]:
    """What is refused if one of its units holds numbers in both halves.

    Args:
        left, right: (M, R) norms of the halves as they are stored, by their squares.
        scale: (M, R) their scales.   owner: (R,) the source of each.
    """
    factor = abs(scale)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # of ∞ · 0 the ∞ is told
        size = factor * left * right
        most = factor * np.maximum(left, FAINT) * np.maximum(right, FAINT)  # of what squares do not show
        uneven = (factor * left > SIDE) | (right > SIDE)
    uneven |= (np.minimum(left, right) < FAINT) & (most > 1 / UNIT)
    for how, found in (("strong", size > UNIT), ("uneven", uneven)):
        for module, unit in np.argwhere(found).tolist():
            yield how, int(owner[unit]), module, [unit]
    for source in sorted(set(owner.tolist())):
        mine = np.flatnonzero(owner == source)
        for module in positions(size[:, mine].max(axis=1) < 1 / UNIT):
            yield "weak", source, module, mine.tolist()


def check_sizes(name: str, module: str, update: LowRank) -> None:
    """Refuse an update that is looked at by itself, as one of a merge is.

    Raises:
        SourceError: squares of a unit of it leave float64.
    """
    up, down = wide(update.up), wide(update.down)
    if not (np.isfinite(up).all() and np.isfinite(down).all()):
        return  # another sentence tells of it
    with np.errstate(over="ignore", under="ignore"):
        left, right = np.linalg.norm(up, axis=0)[None], np.linalg.norm(down, axis=1)[None]
    alive = np.logical_and(up.any(axis=0), down.any(axis=1))
    for how, _, _, units in suspects(left, right, np.full_like(left, update.scale), np.zeros(left.size, int)):
        if alive[list(units)].any() and update.scale:
            raise refusal(how, name, module)


def refusal(how: str, name: str, module: str) -> SourceError:
    """The sentence for a unit that is not zero."""
    name, module = printable(name), printable(module)
    if how == "uneven":
        return SourceError(
            f"{name} is stored too unevenly in {module}: half of a unit of it is not between {FAINT:g} and "
            f"{SIDE:g}, where float64 holds its square; multiply its lora_A by a number, and divide its "
            "lora_B by the same."
        )
    remedy = {
        "strong": "its training diverged, or its alpha is wrong.",
        "weak": "it is as good as untrained there: leave the module out.",
    }
    return SourceError(
        f"{name} is too {how} in {module}: a unit of it is not between {1 / UNIT:g} and {UNIT:g}, where "
        f"float64 holds its squares; {remedy[how]}"
    )
