"""Finding modules by regular expressions, as `re.search` would, without the power to hang."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from loramerge.errors import IncompatibleError, UsageError, printable

Found = TypeVar("Found")
Matcher = Callable[[str], bool]
MAX_PATTERN = 10_000
MAX_NAME = 4096
BUDGET = 10_000_000  # steps for all patterns and names: some ten for an honest name, ten seconds at worst


class Search:
    """Patterns that are looked for in names, all at once: a thousand take little longer than one.

    Nearly all patterns go through an automaton that does not backtrack. Look-around and other rare things
    need Python's own matcher, which may take years: they are read from the user, not from a file.

    Args:
        option: what messages call a pattern, such as ``--only``.   trusted: the user wrote them just now.

    Raises:
        UsageError: no regular expression.
        IncompatibleError: one that is not read from a file, that is too long, or takes too long.

    >>> search = Search(["q$", "v$|mlp", "up"], "match")
    >>> [search.first(name) for name in ("layers.0.q", "layers.0.mlp.up", "v.0")]
    [0, 1, None]
    >>> search.unmet(["layers.0.q", "layers.0.mlp"])
    2
    """

    def __init__(self, patterns: Sequence[str], option: str, trusted: bool = True) -> None:
        from loramerge.adapters.patterns import regex  # most merges name no modules
        from loramerge.adapters.patterns.automaton import Automaton
        from loramerge.adapters.patterns.steps import Budget, Exhausted
        from loramerge.adapters.patterns.terms import Terms

        self._patterns, self._option = patterns, option
        self._rare: dict[int, re.Pattern[str]] = {}
        self._first: dict[str, int | None] = {}  # adapters share their names
        self._exhausted = Exhausted
        terms, rows = Terms(Budget(BUDGET)), []
        anything = terms.repeat(terms.one_of(r"[\s\S]"), 0, None)
        for number, pattern in enumerate(patterns):
            self._check_length(pattern)
            try:
                rows += [(number, (anything, *wanted)) for wanted in regex.parse(pattern, terms)]
            except Exhausted:
                raise self._too_slow() from None
            except (regex.Unread, regex.Invalid) as unread:
                self._rare[number] = self._compiled(pattern, unread, trusted)
        self._automaton = Automaton(rows, terms)

    def first(self, name: str) -> int | None:
        """The number of the first pattern that occurs in a name. Raises IncompatibleError: takes too long."""
        if name not in self._first:
            found = self._in_time(partial(self._automaton.first, _checked(name)))
            rare = (i for i, each in self._rare.items() if (found is None or i < found) and each.search(name))
            self._first[name] = next(rare, found)
        return self._first[name]

    def unmet(self, names: Sequence[str]) -> int | None:
        """The number of the first pattern that occurs in none of the names."""
        found = self._in_time(partial(self._automaton.fitting, map(_checked, names)))
        found |= {i for i, each in self._rare.items() if any(map(each.search, names))}
        return next((i for i in range(len(self._patterns)) if i not in found), None)

    def _in_time(self, act: Callable[[], Found]) -> Found:
        try:
            return act()
        except self._exhausted:
            raise self._too_slow() from None

    def _too_slow(self) -> IncompatibleError:
        if len(self._patterns) == 1:
            which = f"{self._option} {printable(repr(self._patterns[0]))} takes"
            return IncompatibleError(f"{which} too long to match: write it more simply.")
        return IncompatibleError(
            f"{self._option}: {len(self._patterns)} patterns together take too long to match: write them "
            "more simply."
        )

    def _check_length(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise IncompatibleError(
                f"{self._option} has {len(pattern)} characters, and {MAX_PATTERN} is the limit: name modules "
                "by what they have in common."
            )

    def _compiled(self, pattern: str, unread: ValueError, trusted: bool) -> re.Pattern[str]:
        """By Python's own matcher."""
        which = f"{self._option} {printable(repr(pattern))}"
        if not trusted:
            raise IncompatibleError(
                f"{which} uses or has {printable(unread)}, which is not read from a file: run the merge "
                "again with this option on the command line."
            ) from None
        try:
            return re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(f"{which} is not a regular expression: {printable(error)}.") from error


def searcher(pattern: str, option: str, trusted: bool = True) -> Matcher:
    """Whether a pattern occurs in a module name; see `Search`.

    >>> [searcher("v$|mlp", "--only")(name) for name in ("layers.0.v", "layers.0.mlp.up", "v.0")]
    [True, True, False]
    """
    search = Search([pattern], option, trusted)
    return lambda name: search.first(name) is not None


def _checked(name: str) -> str:
    if len(name) > MAX_NAME:  # a long name costs more
        raise IncompatibleError(f"The module {printable(name)} has a name of {len(name)} characters.")
    return name
