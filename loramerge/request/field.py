"""One field of a request: what it means, what fits, and under which names it is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from loramerge.errors import UsageError, printable, say, spoken
from loramerge.request.kinds import Kind, Unfit

Part = Literal["sources", "strength", "size", "output", "effort"]  # of the house, that reads it
Default = TypeVar("Default")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Field:
    """What is known of one field.

    Args:
        name: in Python.   help: for help and tables.   part: of the house that reads it.
        kind: which values fit.   default: as kept.   shown: the default in words, where it is no value.
        option: on the command line.   key: in a recipe.   setting: in a record.
        always: a record holds it even if nobody gave it.   type: for the stub.
    """

    name: str
    help: str
    part: Part
    kind: Kind
    default: Any
    shown: str | None
    option: str
    key: str
    setting: str
    always: bool
    type: str

    def fit(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            UsageError: it does not fit.
        """
        if value is None or value is self.default:
            return self.default
        try:
            return self.kind.fit(value)
        except Unfit as error:
            raise UsageError(f"{_said(self.name, value)} {error}.") from None


def _said(name: str, value: Any) -> str:
    """A setting with its value, as the caller wrote it."""
    if spoken() == "python":
        return f"{name}={_shown(value)}"
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return printable(say(name, value))


def _shown(value: Any) -> str:
    try:
        return printable(repr(value))
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def ask(
    default: Default, help: str, part: Part, kind: Kind, *, shown: str | None = None, always: bool = False,
    **names: str,
) -> Default:  # fmt: skip
    """A field of `Request`; `names` are its option, key and setting where these differ from its name."""
    told = {"help": help, "part": part, "kind": kind, "shown": shown, "always": always, **names}
    return dataclasses.field(default=default, metadata=told)


def fields_of(request: type[Any]) -> dict[str, Field]:
    """The fields of a class whose defaults are made by `ask`."""
    found = {}
    for each in dataclasses.fields(request):
        told, name = dict(each.metadata), each.name
        names = {word: told.pop(word, name) for word in ("option", "key", "setting")}
        found[name] = Field(name, default=each.default, type=str(each.type), **told, **names)
    return found
