"""Alphas: the number in a tensor, of whatever type, and what a user may give instead."""

from __future__ import annotations

from math import isfinite, prod, sqrt
from typing import Any

from loramerge.adapters.adapter import Tensor
from loramerge.adapters.limits import FACTOR
from loramerge.errors import SourceError
from loramerge.formats.peft.config import plausible

RSLORA = "rslora:"  # before an alpha that is divided by the root of the rank
NONE = ("BOOL", "C64")  # types that hold no number to multiply by
NO_ALPHA = f"is neither a number from {1 / FACTOR:g} to {FACTOR:g} nor 'rank' or 'rslora:A'"


def number(tensor: Tensor, where: str) -> float:
    """The alpha of the module that messages call `where`.

    Raises:
        SourceError: it is not one number, or none that a scale can have.
    """
    if prod(tensor.shape) != 1 or tensor.dtype in NONE:
        raise SourceError(f"The alpha of {where} is not one number.")
    value = float(tensor.read().reshape(()))
    if not plausible(value):
        raise SourceError(f"The alpha of {where} is {value}.")
    return value


def fitting(alpha: Any) -> float | str | None:
    """An alpha that a user may give, as it is kept: a number, ``"rank"`` or ``"rslora:16"``; else None."""
    if isinstance(alpha, str) and alpha == "rank":
        return "rank"
    if isinstance(alpha, str) and alpha.startswith(RSLORA):
        value = _above_0(alpha.removeprefix(RSLORA))
        return None if value is None else f"{RSLORA}{value:.17g}"
    return None if isinstance(alpha, str) else _above_0(alpha)


def scale(alpha: float | str, rank: int) -> float:
    """The scale that a fitting alpha gives a module of this rank.

    >>> scale(16, 4), scale("rslora:16", 4), scale("rank", 4)
    (4.0, 8.0, 1.0)
    """
    if isinstance(alpha, str) and alpha == "rank":
        return 1.0
    if isinstance(alpha, str):
        return float(alpha.removeprefix(RSLORA)) / sqrt(rank)
    return float(alpha) / rank


def _above_0(value: Any) -> float | None:
    if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__float__")):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError, TypeError):
        return None
    return found if isfinite(found) and found > 0 and plausible(found) else None
