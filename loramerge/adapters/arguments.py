"""The types of what a caller gives, looked at where it comes in: a wrong one is a sentence, no traceback."""

from __future__ import annotations

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from loramerge.errors import UsageError, printable, say

Function = TypeVar("Function", bound=Callable[..., Any])
WORDS: dict[Any, str] = {
    str: "text",
    Path: "a path",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Callable: "a function",
    Mapping: "a mapping",
    Sequence: "a list",
}


def checked(*names: str) -> Callable[[Function], Function]:
    """Hold these arguments of a function against their annotations, before it is called.

    Raises:
        UsageError: when it is called with a value of another type.

    >>> @checked("count")
    ... def repeat(word, count: int): return word * count
    >>> repeat("ab", "2")
    Traceback (most recent call last):
        ...
    loramerge.errors.UsageError: count='2' must be a whole number.
    """

    def check(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checking(*given: Any, **named: Any) -> Any:
            said = signature.bind(*given, **named).arguments
            for name in names:
                if name in said:
                    check_type(name, said[name], _hints(function)[name])
            return function(*given, **named)

        return checking  # type: ignore[return-value]

    return check


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(inspect.unwrap(function))


def check_type(name: str, value: object, hint: Any) -> None:
    """Raises UsageError: the value is not of this type."""
    if not _fits(value, hint):
        shown = f"{name}={printable(repr(value), 60)}"
        shown = shown if say("x") == "x=" else f"{say(name)} {printable(value, 60)}"
        raise UsageError(f"{shown} must be {' or '.join(_words(hint))}.")


def _fits(value: object, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str | bytes)):
        return False
    if isinstance(value, Mapping):
        return not inner or all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return kind is not Sequence or not inner or all(_fits(each, inner[0]) for each in value)


def _words(hint: Any) -> list[str]:
    """What may be given; that nothing may be, goes without saying."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return [word for each in inner if each is not type(None) for word in _words(each)]
    word = WORDS.get(kind) or f"a{'n' if kind.__name__[0] in 'AEIOU' else ''} {kind.__name__}"
    if kind in (Mapping, Sequence) and inner and inner[-1] is not Any:
        return [f"{word} of {' or '.join(_words(inner[-1])).replace('a path', 'paths')}"]
    return [word]
