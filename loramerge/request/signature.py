"""The signature and the arguments of a public function, from the fields that its door takes."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from loramerge.adapters.reading import reading
from loramerge.request.entry import taken
from loramerge.request.field import Field

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "{asked}"  # in a docstring, where the arguments are told


def spelled(door: str, options: bool = False) -> Callable[[Function], Function]:
    """Let editors and `help` see a function of ``**asked`` as if every field stood in its signature.

    While it runs, it is known what was read for it: see `reading`.

    Args:
        options: it also takes those of a method.
    """

    def spell(function: Function) -> Function:
        own = inspect.signature(function)
        *first, last = own.parameters.values()
        fields = [each for name, each in taken(door).items() if name not in own.parameters]
        added = [_parameter(each) for each in fields]
        rest = [last.replace(name="options")] if options else []
        doc = function.__doc__ or ""
        before = doc.partition(MARK)[0]
        indent = " " * (len(before) - len(before.rstrip(" ")))

        @functools.wraps(function)
        def asked(*given: Any, **named: Any) -> Any:
            with reading():
                return function(*given, **named)

        asked.__signature__ = own.replace(parameters=[*first, *added, *rest])  # type: ignore[attr-defined]
        asked.__doc__ = doc.replace(MARK, "\n".join(_told(each, indent) for each in fields).lstrip())
        return asked  # type: ignore[return-value]

    return spell


def _parameter(each: Field) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(each.name, kind, default=each.default, annotation=each.type)


def _told(each: Field, indent: str) -> str:
    shown = f" By default {each.shown}." if each.shown else ""
    said = f"{each.name}: {each.help[0].lower()}{each.help[1:]}{shown}"
    more = indent + " " * 4
    return textwrap.fill(said, 108, initial_indent=indent, subsequent_indent=more, break_on_hyphens=False)
