"""Finding modules by a regular expression, as `re.search` would, without the power to hang."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from loramerge.adapters.patterns.positions import Budget, Exhausted, Step, Text
from loramerge.errors import IncompatibleError, UsageError, printable

Found = Callable[[str], bool]
MAX_PATTERN = 10_000
MAX_NAME = 4096
BUDGET = 30_000_000  # steps for all names: some 100 for an honest one, a few seconds at worst
ALL = 8 * BUDGET  # for all rules together: a thousand of them, three thousand modules


def searchers(patterns: Iterable[str], option: str) -> tuple[Found, ...]:
    """The same for many patterns, which share their steps: a thousand may not take a thousand times as long.

    >>> [found("layers.0.v") for found in searchers(["q$", "v$"], "match")]
    [False, True]
    """
    budget = Budget(ALL)
    return tuple(searcher(pattern, option, budget=budget) for pattern in patterns)


def searcher(pattern: str, option: str, trusted: bool = True, budget: Budget | None = None) -> Found:
    """Whether the pattern occurs in a module name.

    Nearly all patterns go through a matcher that does not backtrack. Look-around and other rare things
    need Python's own, which may take years: they are read from the user, not from a file.

    Args:
        option: what messages call it, such as ``--only``.   trusted: the user wrote it just now.
        budget: of the steps that it may take; its own, if it is not given.

    Raises:
        UsageError: no regular expression.
        IncompatibleError: one that is not read from a file, that is too long, or takes too long.

    >>> [searcher("v$|mlp", "--only")(name) for name in ("layers.0.v", "layers.0.mlp.up", "v.0")]
    [True, True, False]
    """
    from loramerge.adapters.patterns import regex  # most merges name no modules

    if len(pattern) > MAX_PATTERN:
        raise IncompatibleError(
            f"{option} has {len(pattern)} characters, and {MAX_PATTERN} is the limit: name modules by what "
            "they have in common."
        )
    try:
        return _counted(regex.parse(pattern), pattern, option, budget or Budget(BUDGET))
    except (regex.Unread, regex.Invalid) as unread:
        if not trusted:
            raise IncompatibleError(
                f"{option} {printable(repr(pattern))} uses or has {printable(unread)}, which is not read "
                "from a file: run the merge again with this option on the command line."
            ) from None
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"{option} {printable(repr(pattern))} is not a regular expression: {printable(error)}."
        ) from error
    return lambda name: compiled.search(name) is not None


def _counted(step: Step, pattern: str, option: str, budget: Budget) -> Found:
    @cache  # adapters share their names
    def found(name: str) -> bool:
        if len(name) > MAX_NAME:  # a step costs the more, the longer the name
            raise IncompatibleError(f"The module {printable(name)} has a name of {len(name)} characters.")
        text = Text(name, budget)
        try:
            return step(text, (text.end << 1) - 1) != 0
        except Exhausted:
            raise IncompatibleError(
                f"{option} {printable(repr(pattern))} takes too long to match: write it more simply."
            ) from None

    return found
