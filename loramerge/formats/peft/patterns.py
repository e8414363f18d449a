"""PEFT's rule for `rank_pattern` and `alpha_pattern`, for keys from files that we do not trust.

A key is a regular expression, and the first key in the order of the file that matches wins:

    re.match(rf"(.*\\.)?({key})$", module_path)

so that "q_proj" means every module of that name, and "a.b" also means "aXb". Python's matcher
may take years on a hostile key. Here, keys that are plain names, which nearly all are, are found
in a table, whatever their number; the others go through the automaton of `adapters/patterns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from loramerge.adapters.late import late
from loramerge.adapters.patterns.steps import Budget, Exhausted
from loramerge.errors import IncompatibleError, SourceError, printable

if TYPE_CHECKING:
    from loramerge.adapters.patterns.automaton import Automaton
    from loramerge.adapters.patterns.terms import Term, Terms

MAX_KEYS = 100_000  # a large mixture of experts has 50 000 modules, each with a key if we wrote it
MAX_KEY = 1000
MAX_TEXT = 4 * 2**20  # characters of all keys together
MAX_PATH = 4096
BUDGET = 5_000_000  # steps for all keys and paths of one adapter: a few seconds at worst

_PLAIN = late(r"(\^?)((?:[A-Za-z0-9_.-]|\\[^A-Za-z0-9])*)(\$?)", re.DOTALL)
_UNIT = late(r"\\?(.)", re.DOTALL)

_Shape = tuple[bool, tuple[int, ...]]  # anchored by ^, places of wildcard dots


class Patterns:
    """The keys of one `rank_pattern` or `alpha_pattern` (`field`) of one adapter (`source`).

    The budget for matching is shared by all paths, so keep one instance per adapter.

    Raises:
        SourceError: a key is no regular expression.
        IncompatibleError: a key uses what loramerge does not read (back-references, possessive
            quantifiers …), or there are too many or too long keys.

    >>> ranks = Patterns("rank_pattern", ["^layers.0.q_proj", "q_proj"], source="adapter")
    >>> ranks.first_match("layers.0.q_proj"), ranks.first_match("model.layers.0.q_proj")
    ('^layers.0.q_proj', 'q_proj')
    """

    def __init__(self, field: str, keys: Iterable[str], source: str) -> None:
        self._keys = list(keys)
        self._of = f"of {printable(source, limit=1000)}"
        self._field = field
        self._check_sizes()
        self._budget = Budget(BUDGET)
        self._known: dict[str, str | None] = {}
        self._plain = _PlainKeys()
        others = [(i, key) for i, key in enumerate(self._keys) if not self._plain.add(i, key)]
        self._others = self._automaton(others) if others else None

    def first_match(self, path: str) -> str | None:
        """The key that governs a module path (without `base_model.model.`), or None.

        Raises:
            SourceError: no module can have this path.
            IncompatibleError: the keys of this adapter have taken too many steps.
        """
        if path not in self._known:
            self._known[path] = self._decide(path)
        return self._known[path]

    def _decide(self, path: str) -> str | None:
        if not self._keys:
            return None
        if len(path) > MAX_PATH or "\n" in path:
            raise SourceError(
                f"The module name '{printable(path)}' {self._of} has a newline, or more than"
                f" {MAX_PATH} characters. Export the adapter again."
            )
        try:
            index = self._first(path)
        except Exhausted:
            raise self._too_slow() from None
        return None if index is None else self._keys[index]

    def _first(self, path: str) -> int | None:
        plain = self._plain.first(path, self._budget)
        other = None if self._others is None else self._others.first(path)
        return min((found for found in (plain, other) if found is not None), default=None)

    def _automaton(self, keys: Sequence[tuple[int, str]]) -> Automaton:
        from loramerge.adapters.patterns.looks import automaton  # most keys are plain names
        from loramerge.adapters.patterns.terms import Terms

        terms, rows = Terms(self._budget), []
        stem = terms.pair(terms.repeat(terms.one_of("."), 0, None), terms.letter("."))
        for index, key in keys:
            rows += [
                (index, (terms.repeat(stem, 0, 1), *wanted, terms.anchor("$")))
                for wanted in self._parse(key, terms)
            ]
        return automaton(rows, terms)

    def _parse(self, key: str, terms: Terms) -> list[tuple[Term, ...]]:
        from loramerge.adapters.patterns import regex

        try:
            return regex.parse(key, terms, whole=False)
        except Exhausted:
            raise self._too_slow() from None
        except regex.Unread as used:
            raise IncompatibleError(
                f"{self._name(key)} uses {printable(used)}, which loramerge does not read."
                " Write it as plain module names."
            ) from None
        except regex.Invalid as fault:
            raise SourceError(
                f"{self._name(key)} is not a regular expression: it has {printable(fault)}."
                " Write it as plain module names."
            ) from None

    def _check_sizes(self) -> None:
        if len(self._keys) > MAX_KEYS:
            raise IncompatibleError(
                f"The {self._field} {self._of} has {len(self._keys)} keys, and {MAX_KEYS} is the"
                " limit. Name fewer modules in it."
            )
        if sum(map(len, self._keys)) > MAX_TEXT:
            raise IncompatibleError(
                f"The {self._field} keys {self._of} have more than {MAX_TEXT} characters together. Name "
                "fewer modules in them."
            )
        for key in self._keys:
            if len(key) > MAX_KEY:
                raise IncompatibleError(
                    f"{self._name(key)} has {len(key)} characters, and {MAX_KEY} is the limit."
                    " Split it into shorter keys."
                )

    def _too_slow(self) -> IncompatibleError:
        return IncompatibleError(
            f"The {self._field} keys {self._of} take too long to match. Write them as plain module names."
        )

    def _name(self, key: str) -> str:
        return f"The {self._field} key '{printable(key)}' {self._of}"


class _PlainKeys:
    """Keys without quantifiers, classes or groups, found by table.

    Such a key can match only a suffix of its own length, so keys of one length and shape share a
    table from their remaining characters to their place in the order.
    """

    def __init__(self) -> None:
        self._shapes: dict[int, dict[_Shape, dict[str, int]]] = {}

    def add(self, index: int, key: str) -> bool:
        """Take a key if it is plain."""
        found = _PLAIN.fullmatch(key)
        if found is None:
            return False
        units = list(_UNIT.finditer(found[2]))
        wild = tuple(i for i, unit in enumerate(units) if unit[0] == ".")
        table = self._shapes.setdefault(len(units), {}).setdefault((bool(found[1]), wild), {})
        table.setdefault("".join(unit[1] for unit in units), index)
        return True

    def first(self, path: str, budget: Budget) -> int | None:
        """The lowest index of a key that matches."""
        hits = []
        for start in [0, *(i + 1 for i, c in enumerate(path) if c == ".")]:
            for (anchored, wild), table in self._shapes.get(len(path) - start, {}).items():
                budget.spend(1 + (len(path) - start) // 64)
                masked = _masked(path[start:], wild)
                if masked in table and (start == 0 or not anchored):
                    hits.append(table[masked])
        return min(hits, default=None)


def _masked(text: str, wild: tuple[int, ...]) -> str:
    characters = list(text)
    for i in wild:
        characters[i] = "."
    return "".join(characters)
