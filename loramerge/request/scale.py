"""The strength of a merge as it is asked for: a number, or a policy; `merge.strength` carries it out."""

from __future__ import annotations

import math

from loramerge.errors import UsageError

POLICIES = ("norm", "cosine")
Scale = float | str


def check_scale(scale: Scale | None) -> Scale:
    """The policy: a finite number, ``"norm"`` or ``"cosine"``; 1 if none is given.

    >>> check_scale("0.5"), check_scale("norm")
    (0.5, 'norm')
    """
    if scale is None:
        return 1.0
    if isinstance(scale, str) and scale in POLICIES:
        return scale
    try:
        number = math.nan if isinstance(scale, bool) else float(scale)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"scale={scale!r} is neither a finite number nor one of {', '.join(POLICIES)}.")
    return number
