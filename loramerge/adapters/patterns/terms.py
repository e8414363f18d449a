"""What a regular expression still wants: terms, and what is left of one after a character.

The sets of terms that are left (Antimirov 1996, partial derivatives) are the states of an automaton
that never backtracks. Equal terms are one object, so that sets of them stay small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from loramerge.adapters.patterns.steps import Budget

KIND = {True: "word", False: "other"}


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Term:
    """What is wanted next. A term is made by `Terms`, and equal to itself alone.

    Args:
        kind: nothing, character, class, anchor, look, not, pair, choice or repeat.
        source: the character, the class as `re` writes it, the anchor, or where is looked: ahead or behind.
        parts: of a pair the first and the rest, of a choice all, of a repeat and a look the body.
        low, high: how often the body is wanted; without `high` as often as there is.
        empty: whether it takes nothing, too; None: that depends on the place.
        blank: whether it takes no character ever.
    """

    kind: str
    source: str = ""
    parts: tuple[Term, ...] = ()
    low: int = 0
    high: int | None = None
    empty: bool | None = False
    blank: bool = False


NOTHING = Term("nothing", empty=True, blank=True)
NONE: frozenset[Term] = frozenset()
# What stands before ("start", "word" or "other"), what after ("end" …), and the looks that find something.
Place = tuple[str, str, frozenset[Term]]


class Terms:
    """All terms of some expressions, and what is left of each after a character.

    What is remembered can be forgotten: it is only found again.

    >>> terms = Terms(Budget(100))
    >>> a = terms.letter("a")
    >>> terms.after(terms.repeat(a, 2, 2), "a", "start") == (a,)
    True
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.units: dict[str, Term] = {}  # letters as they are written: a pattern of them alone is soon read
        self.forget()

    def forget(self) -> None:
        self._terms: dict[object, Term] = {}
        self._after: dict[tuple[Term, str, str, frozenset[Term]], tuple[Term, ...]] = {}
        self._empty: dict[tuple[Term, Place], bool] = {}

    def letter(self, character: str) -> Term:
        """This character."""
        return self._one(("character", character), lambda: Term("character", character))

    def one_of(self, source: str) -> Term:
        """One character of a class, given as Python's `re` writes it: `.`, `\\d`, `[a-z]`."""
        return self._one(("class", source), lambda: Term("class", source))

    def anchor(self, source: str) -> Term:
        """A place: `^`, `$`, `\\b` or `\\B`; texts have no newlines."""
        return self._one(("anchor", source), lambda: Term("anchor", source, empty=None, blank=True))

    def look(self, where: str, body: Term) -> Term:
        """A place at which the body begins (`ahead`) or ends (`behind`); who asks knows the places."""
        key = ("look", where, body)
        return self._one(key, lambda: Term("look", where, (body,), empty=None, blank=True))

    def unless(self, look: Term) -> Term:
        """A place at which a look finds nothing."""
        return self._one(("not", look), lambda: Term("not", parts=(look,), empty=None, blank=True))

    def pair(self, first: Term, rest: Term) -> Term:
        """One after the other."""
        if first is NOTHING or rest is NOTHING:
            return rest if first is NOTHING else first
        both = (first, rest)

        def make() -> Term:
            empty = False if False in (first.empty, rest.empty) else first.empty and rest.empty
            return Term("pair", parts=both, empty=empty, blank=first.blank and rest.blank)

        return self._one(("pair", both), make)

    def choice(self, terms: list[Term]) -> Term:
        """Any of them."""
        parts = tuple(dict.fromkeys(terms))

        def make() -> Term:
            all_of = {part.empty for part in parts}
            empty = True if True in all_of else None if None in all_of else False
            return Term("choice", parts=parts, empty=empty, blank=all(part.blank for part in parts))

        return parts[0] if len(parts) == 1 else self._one(("choice", parts), make)

    def repeat(self, body: Term, low: int, high: int | None) -> Term:
        """At least `low` times and at most `high`, or any number of times."""
        if body.empty:
            low = 0
        if high == 0 or body is NOTHING or (body.blank and not low):
            return NOTHING
        if body.kind == "repeat" and not body.low and not low:  # (a{0,2}){0,3} is a{0,6}
            high = None if high is None or body.high is None else high * body.high
            body = body.parts[0]
        if (low, high) == (1, 1) or body.blank:
            return body

        def make() -> Term:
            return Term("repeat", "", (body,), low, high, body.empty if low else True)

        return self._one(("repeat", body, low, high), make)

    def after(
        self, term: Term, character: str, before: str, looks: frozenset[Term] = NONE
    ) -> tuple[Term, ...]:
        """What may be left of a term after a character, which stands behind one of kind `before`."""
        key = (term, character, before, looks)
        if key not in self._after:
            found = tuple(self._left(term, character, before, looks))
            self.budget.spend(3 + len(found))
            self._after[key] = found
        return self._after[key]

    def _left(self, term: Term, character: str, before: str, looks: frozenset[Term]) -> dict[Term, None]:
        left: dict[Term, None] = {}
        place = before, kind(character), looks
        while True:
            match term.kind:
                case "character" if term.source == character:
                    left[NOTHING] = None
                case "class" if belonging(term.source)(character):
                    left[NOTHING] = None
                case "choice":
                    for part in term.parts:
                        left.update(dict.fromkeys(self.after(part, character, before, looks)))
                case "repeat":
                    more = self._more(term, place)
                    for each in self.after(term.parts[0], character, before, looks):
                        left[self.pair(each, more)] = None
                case "pair":
                    first, rest = term.parts
                    for each in self.after(first, character, before, looks):
                        left[self.pair(each, rest)] = None
                    if self.empty(first, place):
                        term = rest
                        continue
            return left

    def _more(self, term: Term, place: Place) -> Term:
        """A repeat whose body has been taken once; where it takes nothing, no more of it is needed."""
        body = term.parts[0]
        low = 0 if self.empty(body, place) else max(term.low - 1, 0)
        return self.repeat(body, low, None if term.high is None else term.high - 1)

    def empty(self, term: Term, place: Place) -> bool:
        """Whether nothing more is wanted at this place."""
        if term.empty is not None:
            return term.empty
        key = (term, place)
        if key not in self._empty:
            self.budget.spend(1)
            self._empty[key] = self._holds(term, place)
        return self._empty[key]

    def _holds(self, term: Term, place: Place) -> bool:
        while term.kind == "pair":
            first, term = term.parts
            if not self.empty(first, place):
                return False
        match term.kind:
            case "anchor":
                return anchored(term.source, place)
            case "look":
                return term in place[2]
            case "not":
                return not self.empty(term.parts[0], place)
        return any(self.empty(part, place) for part in term.parts) if term.empty is None else term.empty

    def _one(self, key: object, make: Callable[[], Term]) -> Term:
        known = self._terms.get(key)
        if known is None:
            known = self._terms[key] = make()
        return known


def flat(term: Term) -> Iterator[Term]:
    """What stands one after the other."""
    while term.kind == "pair":
        first, term = term.parts
        yield first
    yield term


def kind(character: str) -> str:
    """What stands at a place; no character is the end."""
    return "end" if not character else KIND[belonging(r"\w")(character) is not None]


def anchored(source: str, place: Place) -> bool:
    """Whether an anchor holds at a place."""
    before, after, _ = place
    match source:
        case "^":
            return before == "start"
        case "$":
            return after == "end"
        case r"\B" if (before, after) == ("start", "end"):
            return False  # of no characters at all, as Python had it until 3.14
    return ((before == "word") != (after == "word")) == (source == r"\b")


@lru_cache(maxsize=4096)
def belonging(source: str) -> Callable[[str], object]:
    """Whether a character belongs to a class. Raises re.error for a malformed class."""
    return re.compile(source).fullmatch  # on one character at a time, so it cannot hang
