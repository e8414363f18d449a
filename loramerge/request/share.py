"""How much of every module is kept, as a share of its energy or as kohya's resize says it.

0.95 = share of ‖ΔW‖²        sv_fro=0.97: of ‖ΔW‖        sv_ratio=20: all σ > σ₁/20
sv_cumulative=0.9: of Σσ
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loramerge.errors import printable
from loramerge.request.kinds import Kind, Unfit

if TYPE_CHECKING:
    from loramerge.arrays.backend import Array  # arrays: whoever only asks for help needs none

RULES = ("sv_fro", "sv_ratio", "sv_cumulative")
SLACK = 1e-12  # rounding of a sum must not cost a unit


class Share(Kind):
    """A share above 0 and at most 1, or `sv_fro=S`, `sv_ratio=Q`, `sv_cumulative=S`."""

    def fit(self, value: Any) -> float | str:
        rule, number = parsed(value)
        short = f"{number:g}" if float(f"{number:g}") == number else repr(number)
        return f"{rule}={short}" if rule else number


def parsed(value: Any) -> tuple[str, float]:
    """(the rule, "" for a share of the energy, its number). Raises Unfit.

    >>> parsed("sv_ratio=20"), parsed(0.95)
    (('sv_ratio', 20.0), ('', 0.95))
    """
    rule, equals, text = str(value).strip().replace(":", "=", 1).rpartition("=")
    try:
        number: float | None = float(text)
    except ValueError:
        number = None
    if isinstance(value, bool) or number is None or (equals and rule not in RULES):
        raise Unfit(f"is not a share such as 0.95, nor one of {', '.join(f'{name}=…' for name in RULES)}")
    least, most = (1.0, 1e12) if rule == "sv_ratio" else (0.0, 1.0)
    if not least < number <= most:
        raise Unfit(f"has {printable(text, 40)}, not a number above {least:g} and at most {most:g}")
    return rule, number


def units(squares: Array, value: float | str) -> Array:
    """(M,) how many units each module keeps, by its σ² (M, R), largest first; at least one.

    >>> import numpy as np
    >>> s = np.array([[9.0, 4.0, 1.0]])
    >>> [int(units(s, each)[0]) for each in (0.9, "sv_fro=0.9", "sv_ratio=2", "sv_cumulative=0.9")]
    [2, 2, 2, 3]
    """
    rule, number = parsed(value)
    if rule == "sv_ratio":
        return (squares * number**2 > squares[:, :1]).sum(axis=1).clip(1)
    sizes = squares**0.5 if rule == "sv_cumulative" else squares
    share = number**2 if rule == "sv_fro" else number
    kept = sizes.cumsum(axis=1)
    return (kept >= share * kept[:, -1:] * (1 - SLACK)).argmax(axis=1) + 1
