"""What a small file may ask for: units of a module (Grams are (R, R)), letters of a name, strength."""

from __future__ import annotations

from collections.abc import Sequence

from loramerge.errors import IncompatibleError, printable

MOST = 16384  # units in one module: each of the Grams then has 2 GiB
STRONG = 1.5  # times the mean norm of its sources: a merge beyond it is told to be strong
SMALL = 1024  # units that need no look at the shape
FACTOR = 1e30  # a weight or strength is 0 or between its inverse and this
UNIT = 1e40  # likewise for ‖b‖‖a‖ of a unit: methods square squares of both, and float64 ends at 1e±308
SIDE = 1e75  # the largest half, scale and all, of a unit as it is stored
WHOLE = 10**300  # the largest whole number of an option: a larger one may fit no float and no text
FAINT = 1e-140  # the smallest half, without its scale: the square of a smaller one loses digits
NAME = 500  # letters in the name of a tensor: patterns over names may take the square of that


def check_units(name: str, shape: tuple[int, int], ranks: Sequence[int]) -> None:
    """Refuse a module whose Grams would dwarf its factors: more units than any training gives.

    Raises:
        IncompatibleError: over 16384 units, or over 1024 and 16 times out + in.

    >>> check_units("q", (1, 1), [1000000])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    loramerge.errors.IncompatibleError: q has 1000000 units for 1×1 weights, and 1024 is the limit there: ...
    """
    units, limit = sum(ranks), min(MOST, max(SMALL, 16 * sum(shape)))
    if units > limit:
        raise IncompatibleError(
            f"{printable(name)} has {units} units for {shape[0]}×{shape[1]} weights, and {limit} is the "
            "limit there: merge fewer adapters at once, or lower their ranks first."
        )


def too_long(name: str) -> str:
    """What is wrong with a name that is longer than any model's, as the end of a sentence.

    >>> too_long("qkv_proj." * 60)
    'the name of its tensor qkv_proj.qkv_proj.qkv_proj.qkv_proj.qkv… has 540 letters, and 500 is the limit'
    """
    return f"the name of its tensor {printable(name, 40)} has {len(name)} letters, and {NAME} is the limit"


def sized(value: float, low: float | None = None, low_open: bool = False) -> str:
    """What is wrong with the size of a factor that begins at `low`, as the end of a sentence; or ``""``.

    >>> sized(1e160), sized(1e-160, 0, low_open=True), sized(0.5)
    ('must be 0, or from 1e-30 to 1e+30 in size', 'must be from 1e-30 to 1e+30 in size', '')
    """
    if not beyond(value):
        return ""
    none = low is None or low < 0 or (low == 0 and not low_open)
    return f"must be {'0, or ' if none else ''}from {1 / FACTOR:g} to {FACTOR:g} in size"


def beyond(value: float, limit: float = FACTOR) -> bool:
    """Whether a number is too large or too small for squares of its squares.

    >>> beyond(0.0), beyond(-2.0), beyond(1e160), beyond(1e-160), beyond(float("nan"))
    (False, False, True, True, True)
    """
    return value != 0 and not 1 / limit <= abs(value) <= limit
