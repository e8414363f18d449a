"""Files of pairs that only their training script explains: shapes checked, the alpha from the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loramerge.adapters.adapter import Slot, Tensor
from loramerge.adapters.target import Target
from loramerge.errors import SourceError, printable
from loramerge.formats.dialects.dialect import Header
from loramerge.formats.files.views import widened
from loramerge.formats.forms.checks import check_float, check_full, missing, unlike
from loramerge.formats.peft.alpha import unknown
from loramerge.formats.peft.number import scale

Sides = Mapping[str, Tensor]  # "up" and "down" of a module, as matrices
Rate = Callable[[Target, Slot], float]


def slots(header: Header, modules: Mapping[str, Sides], rate: Rate | None = None) -> dict[Target, Slot]:
    """The updates of these modules, at the scale that `rate` says, or alpha over rank.

    Raises:
        SourceError: a factor is missing, empty, or does not fit the other.
        IncompatibleError: factors are no floats, or nobody has said their alpha.
    """
    found = {}
    for path, sides in sorted(modules.items()):
        target, where = Target(path), f"{printable(path)} in {printable(header.name)}"
        for side in ("down", "up"):
            if side not in sides:
                raise missing(f"The {side} factor", where)
            check_float(sides[side], f"The {side} factor of {where}")
        up, down = widened(sides["up"]), widened(sides["down"])
        if len(up.shape) != 2 or len(down.shape) != 2 or up.shape[1] != down.shape[0]:
            raise unlike(where, up, down)
        check_full(where, up, down)
        found[target] = Slot(up, down, 1.0)
    rate = rate or (lambda _, slot: alpha_scale(header, slot.rank))
    return {target: Slot(slot.up, slot.down, rate(target, slot)) for target, slot in found.items()}


def alpha_scale(header: Header, rank: int) -> float:
    """The user's alpha over a rank.

    Raises:
        IncompatibleError: there is none.
    """
    if header.alpha is None:
        raise unknown(header.file)
    return scale(header.alpha, rank)


def once(modules: dict[str, dict[str, Tensor]], path: str, side: str, tensor: Tensor, name: str) -> None:
    """Keep a factor.

    Raises:
        SourceError: it is there already, under another spelling.
    """
    sides = modules.setdefault(path, {})
    if side in sides:
        raise SourceError(f"{printable(name)} holds two {side} factors of {printable(path)}.")
    sides[side] = tensor
