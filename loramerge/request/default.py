"""The method where nobody names one: decided here, once, from what is asked and of how many adapters.

Several adapters are merged by `DEFAULT`, the best rule that needs no data: docs/quality.md has the evidence.
Numbers beside adapters have always been those of a sum, and one adapter comes back exactly, so both mean
`SUM`. So do the settings that are about a sum alone. Whoever names a method gets it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from loramerge.errors import UsageError, say
from loramerge.request.request import Request

DEFAULT = "level"
SUM = "linear"
SUMMING = ("weights", "blocks", "renormalise", "keep_form", "max_lost")  # fields that are about a sum
WEIGHTS = {"weights": "weights", "rules": "weights by module"}  # by whatever way they came
SHOWN = f"{DEFAULT}; {SUM} of one source, or with weights"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Default:
    """A method that nobody named.

    Args:
        name: the method.   told: what is said behind its name.   remedy: how to get the sum instead.
    """

    name: str
    told: str = "the default"
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({'; '.join(filter(None, (self.told, self.remedy)))})"


def default(request: Request, count: int, options: Collection[str] = ()) -> Default:
    """The method of so many adapters.

    Args:
        options: of a method, as they were given.

    Raises:
        UsageError: one of them is not for the method that it comes to.
    """
    found = _default(request, count)
    if found.name != DEFAULT:
        _check(found, options)
    return found


def _default(request: Request, count: int) -> Default:
    if count < 2:
        return Default(SUM, "the default of one source")
    setting = next((name for name in SUMMING if _asks(request, name)), None)
    if setting is None and any(rule.weights is not None for rule in request.rules):
        setting = "rules"
    if setting is not None:
        return Default(SUM, f"the default with {WEIGHTS.get(setting) or say(setting).removesuffix('=')}")
    return Default(DEFAULT, remedy=f"{say('method', SUM)} sums")


def _asks(request: Request, name: str) -> bool:
    value = getattr(request, name)
    return value is not None and value is not False


def _check(found: Default, options: Collection[str]) -> None:
    from loramerge.algorithms import find  # methods are arrays: help needs none

    known = find(found.name).names()
    for name in options:
        if name not in known:
            raise UsageError(
                f"{say(name).removesuffix('=')} is an option of {DEFAULT}, and without a method this is "
                f"{found}: say {say('method', DEFAULT)}."
            )
