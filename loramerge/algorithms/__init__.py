"""Merge methods: one file each, one line in this table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from loramerge.algorithms.average import Average
from loramerge.algorithms.cat import Cat
from loramerge.algorithms.iso_c import IsoC
from loramerge.algorithms.lego import Lego
from loramerge.algorithms.linear import Linear
from loramerge.algorithms.method import Method, Traits
from loramerge.algorithms.sg import Sg
from loramerge.algorithms.svd import Svd
from loramerge.errors import UsageError

METHODS: dict[str, type[Method]] = {
    "linear": Linear,
    "average": Average,
    "cat": Cat,
    "svd": Svd,
    "lego": Lego,
    "iso_c": IsoC,
    "sg": Sg,
}

__all__ = [
    "METHODS",
    "Average",
    "Cat",
    "IsoC",
    "Lego",
    "Linear",
    "Method",
    "Sg",
    "Svd",
    "Traits",
    "make",
    "name_of",
]


def make(method: str | Method, options: Mapping[str, Any]) -> Method:
    """A method from its name and options, or the one given.

    Raises:
        UsageError: no such method, or it has no such option.

    >>> make("svd", {"rank": 8})
    Svd(rank=8, energy=None)
    """
    if isinstance(method, Method):
        if options:
            raise UsageError(f"Give {', '.join(options)} to {method!r} itself.")
        return method
    cls = find(method)
    for name in options:
        if name not in cls.__dataclass_fields__:
            raise UsageError(not_an_option(name, method))
    return cls(**options)


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"There is no method {name!r}.{hint} There are: {', '.join(METHODS)}.")


def not_an_option(name: str, method: str) -> str:
    """Why `name` cannot be given to `method`: it is another method's option, or nobody's."""
    owners = [other for other, cls in METHODS.items() if name in cls.__dataclass_fields__]
    if owners:
        return f"{name} is an option of {', '.join(owners)}, not of {method}."
    return f"{method} has no option {name}."


def name_of(method: Method) -> str:
    """The name of a method in the table."""
    return next((n for n, cls in METHODS.items() if cls is type(method)), type(method).__name__)
