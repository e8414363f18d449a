"""What was said at a door, parted into what the merge is asked for and the options of the method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from loramerge.errors import UsageError, alike, printable
from loramerge.request.default import DEFAULT
from loramerge.request.doors import MERGING, why_not
from loramerge.request.field import Field
from loramerge.request.request import FIELDS

if TYPE_CHECKING:
    from loramerge.algorithms import Method

Said = Mapping[str, Any]


def taken(door: str) -> dict[str, Field]:
    """The fields that a door takes, by name."""
    return {name: each for name, each in FIELDS.items() if why_not(door, name, each.part) is None}


def part(door: str, method: str | Method | None, said: Said) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of the request, options of the method).

    Raises:
        UsageError: a name that the door does not take, with the reason; or one that nobody knows, with
            those that are near.
    """
    if method is not None:
        check_method(method)
    elif door in MERGING:
        method = DEFAULT  # whose options may be given without its name
    here, options = taken(door), _options(method)
    said = _current(method, here, said)
    fields = {name: value for name, value in said.items() if name in here}
    rest = {name: value for name, value in said.items() if name not in fields}
    for name in rest:
        if name not in options:
            raise UsageError(_unknown(name, door, method, options))
    return fields, rest


def _current(method: str | Method | None, here: Mapping[str, Field], said: Said) -> Said:
    """What was said under today's names. A former name of an option may be a field now: its value tells."""
    if not isinstance(method, str):
        return said
    from loramerge.algorithms import find

    cls = find(method)
    former = {name: value for name, value in said.items() if name not in here or cls.meant(name, value)}
    return {**{name: value for name, value in said.items() if name not in former}, **cls.current(former)}


def _options(method: str | Method | None) -> list[str]:
    if method is None:
        return []
    from loramerge.algorithms import find  # methods are arrays: help and doors need none

    return (find(method) if isinstance(method, str) else type(method)).names()


def check_method(method: object) -> None:
    """Raises UsageError: it is neither a name nor a method."""
    from loramerge.algorithms import METHODS, Method

    if isinstance(method, type) and issubclass(method, Method):
        name = METHODS.name_of(method)
        how = f"{method.__name__}() or {name!r}" if name else f"{method.__name__}()"
        raise UsageError(f"method={method.__name__} is the class of a method: give {how}.")
    if not isinstance(method, str | Method):
        shown = printable(repr(method), 60)
        raise UsageError(f"method={shown} is neither the name of a method nor a method such as lm.Svd().")


def _unknown(name: str, door: str, method: str | Method | None, options: Iterable[str]) -> str:
    if name in FIELDS:
        return f"{name} is not for {door}: {why_not(door, name, FIELDS[name].part)}."
    from loramerge.algorithms import METHODS, not_an_option
    from loramerge.algorithms.names import foreign

    if (told := foreign(name)) is not None:
        return told
    called = method if method is None or isinstance(method, str) else type(method).__name__
    if called is not None and any(name in cls.names() for cls in METHODS.values()):
        return not_an_option(name, called)
    near = alike(name, [*taken(door), *options], 2, 0.7)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if called is None:
        return f"{name} is not a setting of {door}.{hint}"
    return f"{name} is neither a setting of {door} nor an option of {called}.{hint}"
