"""Options of methods as the command line must know them before it may load any method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from loramerge.cli.number import Number
from loramerge.cli.word import Word

if TYPE_CHECKING:
    from loramerge.algorithms import Method


# NamedTuples are made in a sixth of the time: `--help` of a command waits for them.
class Spec(NamedTuple):
    """One option of a method: name, type, default, what it means, and what may be given."""

    name: str
    type: Literal["int", "float", "str"]
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    endless: bool = False

    def option(self) -> click.Option:
        return click.Option(
            [f"--{self.name.replace('_', '-')}", self.name],
            type=self._type(),
            default=self.default,
            show_default=self.default is not None,
            help=self.help,
        )

    def _type(self) -> click.ParamType[Any]:
        if self.choices:
            return Word(self.choices)
        if self.type == "str":
            return click.STRING
        if self.type == "float":
            endless, low_open = self.endless, self.low_open
            return Number(self.low, self.high, low_open=low_open, endless=endless, factor=True)
        low, high = (None if bound is None else int(bound) for bound in (self.low, self.high))
        return click.IntRange(low, high)


class Entry(NamedTuple):
    """A method in the listing."""

    family: str
    weights: str
    summary: str
    options: tuple[Spec, ...]
    former: tuple[tuple[str, str], ...] = ()  # names that options had, each with its name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(option.name for option in self.options)


def specs(method: type[Method]) -> tuple[Spec, ...]:
    """One for each field: type, interval, choices and help come from its declaration."""
    import dataclasses
    import typing

    hints = typing.get_type_hints(method)
    return tuple(
        _spec(field, hints[field.name]) for field in dataclasses.fields(method) if "help" in field.metadata
    )


def _spec(field: Any, hint: Any) -> Spec:
    import typing

    from loramerge.algorithms.method import choices

    kinds = typing.get_args(hint) or (hint,)
    kind: Literal["int", "float", "str"] = "str" if str in kinds else "float" if float in kinds else "int"
    told, within = field.metadata, field.metadata.get("interval")
    bounds = {} if within is None else {n: getattr(within, n) for n in ("low", "high", "low_open", "endless")}
    return Spec(field.name, kind, field.default, told["help"], tuple(choices(field, hint)), **bounds)
