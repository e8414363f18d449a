"""Finding modules by regular expressions, as `re.search` would, without the power to hang."""

from __future__ import annotations

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

    They go through an automaton that does not backtrack, whoever wrote them. So what is not regular, such
    as a back-reference, is not read.

    Args:
        option: what messages call a pattern, such as ``--only``.

    Raises:
        UsageError: no regular expression.
        IncompatibleError: one that is not read, that is too long, or takes too long.

    >>> search = Search(["q$", "v$|mlp", "up"], "match")
    >>> [search.first(name) for name in ("layers.0.q", "layers.0.mlp.up", "v.0")]
    [0, 1, None]
    >>> search.unmet(["layers.0.q", "layers.0.mlp"])
    2
    """

    def __init__(self, patterns: Sequence[str], option: str) -> None:
        from loramerge.adapters.patterns import regex  # most merges name no modules
        from loramerge.adapters.patterns.looks import automaton
        from loramerge.adapters.patterns.steps import Budget, Exhausted
        from loramerge.adapters.patterns.terms import Terms

        self._patterns, self._option = patterns, option
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
            except regex.Unread as used:
                raise IncompatibleError(
                    f"{self._which(pattern)} uses {printable(used)}, which is not read: write it more simply."
                ) from None
            except regex.Invalid as fault:
                raise UsageError(
                    f"{self._which(pattern)} is not a regular expression: it has {printable(fault)}."
                ) from None
        self._automaton = automaton(rows, terms)

    def first(self, name: str) -> int | None:
        """The number of the first pattern that occurs in a name. Raises IncompatibleError: takes too long."""
        if name not in self._first:
            self._first[name] = self._in_time(partial(self._automaton.first, _checked(name)))
        return self._first[name]

    def unmet(self, names: Sequence[str]) -> int | None:
        """The number of the first pattern that occurs in none of the names."""
        found = self._in_time(partial(self._automaton.fitting, map(_checked, names)))
        return next((i for i in range(len(self._patterns)) if i not in found), None)

    def _in_time(self, act: Callable[[], Found]) -> Found:
        try:
            return act()
        except self._exhausted:
            raise self._too_slow() from None

    def _too_slow(self) -> IncompatibleError:
        if len(self._patterns) == 1:
            which = self._which(self._patterns[0])
            return IncompatibleError(f"{which} takes too long to match: write it more simply.")
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

    def _which(self, pattern: str) -> str:
        return f"{self._option} {printable(repr(pattern))}"


def searcher(pattern: str, option: str) -> Matcher:
    """Whether a pattern occurs in a module name; see `Search`.

    >>> [searcher("v$|mlp", "--only")(name) for name in ("layers.0.v", "layers.0.mlp.up", "v.0")]
    [True, True, False]
    """
    search = Search([pattern], option)
    return lambda name: search.first(name) is not None


def _checked(name: str) -> str:
    if len(name) > MAX_NAME:  # a long name costs more
        raise IncompatibleError(f"The module {printable(name)} has a name of {len(name)} characters.")
    return name
