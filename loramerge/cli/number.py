"""An option that takes a number with a fraction."""

from __future__ import annotations

import math
from typing import Any

import click

from loramerge.adapters.limits import sized


class Number(click.FloatRange):
    """A number of an interval. nan is none: every comparison with it is false, so nothing would be checked.

    Args:
        low, high, low_open: the interval.   endless: inf may be given too.   factor: methods multiply by it,
            so that it is 0 or of a size whose squares float64 holds.
    """

    def __init__(
        self,
        low: float | None = None,
        high: float | None = None,
        *,
        low_open: bool = False,
        endless: bool = False,
        factor: bool = False,
    ) -> None:
        super().__init__(low, high, min_open=low_open)
        self.endless, self.factor = endless, factor

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail("nan is not a number.", param, ctx)
        if math.isinf(found):
            if not self.endless:
                self.fail(f"{value} is not a finite number.", param, ctx)
        elif self.factor and (wrong := sized(found, self.min, self.min_open)):
            self.fail(f"{value} {wrong}.", param, ctx)
        return found
