"""The number in an alpha tensor, of whatever type it is stored in."""

from __future__ import annotations

from math import prod

from loramerge.adapters.adapter import Tensor
from loramerge.errors import SourceError
from loramerge.formats.peft.config import plausible

NONE = ("BOOL", "C64")  # types that hold no number to multiply by


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
