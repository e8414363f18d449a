"""Finding modules by a regular expression, as `re.search` would, without the power to hang."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from loramerge.errors import IncompatibleError, UsageError, printable
from loramerge.formats.patterns import regex
from loramerge.formats.patterns.positions import Budget, Exhausted, Step, Text

Found = Callable[[str], bool]
BUDGET = 30_000_000  # steps for all names: some 100 for an honest one, a few seconds at worst


def searcher(pattern: str, option: str, trusted: bool = True) -> Found:
    """Whether the pattern occurs in a module name.

    Nearly all patterns go through a matcher that does not backtrack. Look-around and other rare things
    need Python's own, which may take years: they are read from the user, not from a file.

    Args:
        option: what messages call it, such as ``--only``.   trusted: the user wrote it just now.

    Raises:
        UsageError: no regular expression.
        IncompatibleError: one that is not read from a file, or that takes too long.

    >>> [searcher("v$|mlp", "--only")(name) for name in ("layers.0.v", "layers.0.mlp.up", "v.0")]
    [True, True, False]
    """
    try:
        return _counted(regex.parse(pattern), pattern, option)
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


def _counted(step: Step, pattern: str, option: str) -> Found:
    budget = Budget(BUDGET)

    @cache  # adapters share their names
    def found(name: str) -> bool:
        text = Text(name, budget)
        try:
            return step(text, (text.end << 1) - 1) != 0
        except Exhausted:
            raise IncompatibleError(
                f"{option} {printable(repr(pattern))} takes too long to match: write it more simply."
            ) from None

    return found
