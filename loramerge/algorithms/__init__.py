"""Merge methods: one file each, one line in this table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from loramerge.algorithms.average import Average
from loramerge.algorithms.breadcrumbs import Breadcrumbs
from loramerge.algorithms.cat import Cat
from loramerge.algorithms.core import Core
from loramerge.algorithms.ctm import Ctm
from loramerge.algorithms.dare import Dare
from loramerge.algorithms.dare_ties import DareTies
from loramerge.algorithms.della import Della
from loramerge.algorithms.emr import Emr
from loramerge.algorithms.iso_c import IsoC
from loramerge.algorithms.iso_cts import IsoCTS
from loramerge.algorithms.lego import Lego
from loramerge.algorithms.linear import Linear
from loramerge.algorithms.magnitude import Magnitude
from loramerge.algorithms.method import Method, Traits
from loramerge.algorithms.pico import Pico
from loramerge.algorithms.sce import Sce
from loramerge.algorithms.svd import Svd
from loramerge.algorithms.ties import Ties
from loramerge.algorithms.tsv import Tsv
from loramerge.algorithms.wudi import Wudi
from loramerge.errors import UsageError

METHODS: dict[str, type[Method]] = {
    "linear": Linear,
    "average": Average,
    "cat": Cat,
    "svd": Svd,
    "lego": Lego,
    "iso_c": IsoC,
    "iso_cts": IsoCTS,
    "tsv": Tsv,
    "pico": Pico,
    "wudi": Wudi,
    "core": Core,
    "ctm": Ctm,
    "ties": Ties,
    "dare": Dare,
    "dare_ties": DareTies,
    "magnitude": Magnitude,
    "della": Della,
    "breadcrumbs": Breadcrumbs,
    "sce": Sce,
    "emr": Emr,
}

__all__ = [
    "METHODS",
    "Average",
    "Breadcrumbs",
    "Cat",
    "Core",
    "Ctm",
    "Dare",
    "DareTies",
    "Della",
    "Emr",
    "IsoC",
    "IsoCTS",
    "Lego",
    "Linear",
    "Magnitude",
    "Method",
    "Pico",
    "Sce",
    "Svd",
    "Ties",
    "Traits",
    "Tsv",
    "Wudi",
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
        if name not in cls.names():
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
    owners = [other for other, cls in METHODS.items() if name in cls.names()]
    if owners:
        return f"{name} is an option of {', '.join(owners)}, not of {method}."
    return f"{method} has no option {name}."


def name_of(method: Method) -> str:
    """The name of a method in the table."""
    return next((n for n, cls in METHODS.items() if cls is type(method)), type(method).__name__)
