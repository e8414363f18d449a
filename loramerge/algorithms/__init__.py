"""Merge methods: one file each, one line in the table of `table.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loramerge.algorithms import names, plugins
from loramerge.algorithms.method import Method, Traits
from loramerge.algorithms.only import Only, only
from loramerge.algorithms.table import METHODS
from loramerge.errors import UsageError

__all__ = [
    "METHODS",
    "Method",
    "Traits",
    "find",
    "from_record",
    "make",
    "name_of",
    "name_of_class",
    "not_an_option",
    "only",
    "options_of",
    "packages_of",
]


def make(method: str | Method, options: Mapping[str, Any]) -> Method:
    """A method from its name and options, or the one given.

    Raises:
        UsageError: no such method, or it has no such option.

    >>> make("svd", {"rank": 8})
    Svd(rank=8, energy=None, power=1.0, boost=None)
    """
    if isinstance(method, Method):
        if options:
            raise UsageError(f"Give {', '.join(options)} to {method!r} itself.")
        return method
    if method == "only":
        return _wrapped(options)
    cls = find(method)
    options = cls.current(options)
    for name in options:
        if name not in cls.names():
            raise UsageError(not_an_option(name, method))
    return cls(**options)


def from_record(method: str, options: Mapping[str, Any]) -> Method:
    """The method of a record, as it was when the record was written. Errors as for `make`."""
    return make(method, _then(method, options))


def _then(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: {**value, "options": _then(value["name"], value["options"])}
        for name, value in options.items()
        if isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("options"), dict)
    }
    given = {**options, **inner}
    return given if method == "only" else dict(find(method).then(given))


def options_of(method: Method) -> dict[str, Any]:
    """Plain values from which `make` makes the same method."""
    return {
        name: {"name": name_of(value), "options": options_of(value)} if isinstance(value, Method) else value
        for name, value in method.options().items()
    }


def packages_of(method: Method) -> dict[str, str]:
    """The packages that bring a method, and those inside it, with their versions; none for our own."""
    inner = [value for value in method.options().values() if isinstance(value, Method)]
    points = [plugins.entry_of(type(each)) for each in (method, *inner) if not _ours(each)]
    dists = [point.dist for point in points if point is not None and point.dist is not None]
    return {dist.name: dist.version for dist in dists}


def _ours(method: Method) -> bool:
    return isinstance(method, Only) or METHODS.name_of(type(method)) is not None


def _wrapped(options: Mapping[str, Any]) -> Method:
    """`only`, from the plain values of its options."""
    if options.keys() != {"method", "match", "otherwise"} or not isinstance(options["match"], str):
        raise UsageError("`only` is made in Python, with loramerge.only(method, match).")
    inner = [options["method"], options["otherwise"]]
    if not all(isinstance(v, Mapping) and isinstance(v.get("options"), Mapping) for v in inner):
        raise UsageError("only holds two methods, each with a name and options.")
    first, rest = (make(str(value.get("name")), value["options"]) for value in inner)
    return only(first, options["match"], rest)


def find(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name in METHODS:
        return METHODS[name]
    if (other := plugins.loaded(name)) is not None:
        return other
    if name == "only":
        raise UsageError("only is made in Python, by loramerge.only(method, match).")
    if name == "restored":
        raise UsageError("`loramerge restore` wrote this: run it again, on the merge with its masks.")
    if (other_name := names.known(name, METHODS)) is not None:
        return METHODS[other_name]
    raise UsageError(names.unknown(name, list(dict.fromkeys([*METHODS, *plugins.installed()]))))


def not_an_option(name: str, method: str) -> str:
    """Why `name` cannot be given to `method`: it is another method's option, or nobody's."""
    owners = [other for other, cls in METHODS.items() if name in cls.names()]
    if owners:
        more = f" and {len(owners) - 4} others" if len(owners) > 5 else ""
        some = owners[:4] if more else owners
        return f"{name} is an option of {', '.join(some)}{more}, not of {method}."
    return f"{method} has no option {name}."


def name_of(method: Method) -> str:
    """The name of a method in the table, or by which its package brings it."""
    return "only" if isinstance(method, Only) else name_of_class(type(method))


def name_of_class(method: type[Method]) -> str:
    """The same of its class."""
    own = METHODS.name_of(method)
    if own is None and (point := plugins.entry_of(method)) is not None:
        return point.name
    return own or method.__name__.lower()
