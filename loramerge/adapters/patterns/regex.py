"""Reading regular expressions from files that we do not trust, into terms that cannot hang.

What people write in module patterns is read: literals, `.`, classes, groups, alternation,
quantifiers (lazy ones too), `^`, `$` and `\\b`, and `\\d \\w \\s \\D \\W \\S`, all as Python has them.
Texts must have no newline; then `.` is any character, and `$` is the end alone.
"""

import re
import string
from collections.abc import Iterator
from functools import reduce

from loramerge.adapters.late import late
from loramerge.adapters.patterns.terms import NOTHING, Term, Terms, belonging

MAX_DEPTH = 50
SPREAD = 16
READING = 2  # steps for a character

# A brace that does not read as a quantifier is a literal brace; so Python has it.
_QUANTIFIER = late(r"[*+?]|\{(?:([0-9]+)|([0-9]*),([0-9]*))\}")
_CLASS = late(r"\[\^?+(?:\]|[^\]\\]|\\.)(?:[^\]\\]|\\.)*\]", re.DOTALL)
_PLAIN = late(r"(?:[^\\|*+?()\[\]{}]|\\[^A-Za-z0-9])*", re.DOTALL)
_UNIT = late(r"\\.|.", re.DOTALL)
_SET_OPERATION = late(r"\[|--|&&|~~|\|\|")  # Python warns that it may come to read these


class Unread(ValueError):
    """The pattern uses something outside the subset; the message is its name."""


class Invalid(ValueError):
    """The text is no regular expression at all; the message says why."""


def parse(pattern: str, terms: Terms) -> list[tuple[Term, ...]]:
    """What a pattern wants: any of these, each one term after the other.

    Raises:
        Unread: it uses something outside the subset.
        Invalid: it is no regular expression.
        Exhausted: there are more characters than the budget holds.

    >>> from loramerge.adapters.patterns.steps import Budget
    >>> [[term.source for term in each] for each in parse(r"ab|.\\d", Terms(Budget(100)))]
    [['a', 'b'], ['.', '\\\\d']]
    """
    if _PLAIN.fullmatch(pattern):  # as nearly all are: many of them are read in little time
        terms.budget.spend(len(pattern) // 4)
        units = _UNIT.findall(pattern)
        return [tuple([terms.units.get(unit) or _plain(unit, terms) for unit in units])]
    terms.budget.spend(READING * len(pattern))
    parser = _Parser(pattern, terms)
    sequences = parser.choice(depth=0)
    if parser.at < len(pattern):
        raise Invalid("an unbalanced parenthesis")
    return [row for sequence in sequences for row in _spread(sequence)]


def _spread(sequence: tuple[Term, ...]) -> list[tuple[Term, ...]]:
    """A sequence of a few choices as what may be chosen: so `(a|x)b` and `(a|y)b` begin alike."""
    rows: list[tuple[Term, ...]] = [()]
    for term in sequence:
        parts = term.parts if term.kind == "choice" and len(term.parts) * len(rows) <= SPREAD else (term,)
        rows = [(*row, *_flat(part)) for row in rows for part in parts]
    return rows


def _flat(term: Term) -> Iterator[Term]:
    while term.kind == "pair":
        first, term = term.parts
        yield first
    yield term


def _plain(unit: str, terms: Terms) -> Term:
    if unit in "^$":
        found = terms.anchor(unit)
    else:
        found = terms.one_of(".") if unit == "." else terms.letter(unit[-1])
    terms.units[unit] = found
    return found


class _Parser:
    def __init__(self, pattern: str, terms: Terms) -> None:
        self.pattern, self.terms, self.at = pattern, terms, 0

    def choice(self, depth: int) -> list[tuple[Term, ...]]:
        if depth > MAX_DEPTH:
            raise Unread(f"groups nested more than {MAX_DEPTH} deep")
        sequences = [self._sequence(depth)]
        while self._take("|"):
            sequences.append(self._sequence(depth))
        return sequences

    def _sequence(self, depth: int) -> tuple[Term, ...]:
        found: list[Term] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            anchor = self.pattern[self.at] in "^$" or self.pattern.startswith("\\b", self.at)
            atom = self._atom(depth)
            bounds = self._quantifier()
            if anchor and bounds:
                raise Invalid("a quantifier with nothing to repeat")
            found.append(self.terms.repeat(atom, *bounds) if bounds else atom)
        return tuple(found)

    def _atom(self, depth: int) -> Term:
        if self._quantifier_here():
            raise Invalid("a quantifier with nothing to repeat")
        character = self._next()
        match character:
            case "(":
                return self._group(depth)
            case "[":
                return self._class()
            case "\\":
                return self._escape()
            case ".":
                return self.terms.one_of(".")
            case "^" | "$":
                return self.terms.anchor(character)
        return self.terms.letter(character)

    def _group(self, depth: int) -> Term:
        if self._take("?") and not self._take(":"):
            raise Unread(f"(?{self.pattern[self.at : self.at + 1]}…)")
        sequences = self.choice(depth + 1)
        if not self._take(")"):
            raise Invalid("an unbalanced parenthesis")
        return self.terms.choice([self._whole(each) for each in sequences])

    def _whole(self, sequence: tuple[Term, ...]) -> Term:
        return reduce(lambda rest, term: self.terms.pair(term, rest), reversed(sequence), NOTHING)

    def _class(self) -> Term:
        found = _CLASS.match(self.pattern, self.at - 1)
        if found is None:
            raise Invalid("an unterminated [")
        self.at, source = found.end(), found[0]
        if _SET_OPERATION.search(re.sub(r"\\.", "", source[1:])):
            raise Unread(f"the class {source}")
        try:
            belonging(source)
        except re.error as error:
            raise Invalid(f"the class {source} ({error.msg})") from None
        return self.terms.one_of(source)

    def _escape(self) -> Term:
        character = self._next() if self.at < len(self.pattern) else ""
        if not character:
            raise Invalid("a lone backslash at its end")
        if character == "b":
            return self.terms.anchor("\\b")
        if character in "dDsSwW":
            return self.terms.one_of("\\" + character)
        if character in string.ascii_letters + string.digits:
            raise Unread("\\" + character)
        return self.terms.letter(character)

    def _quantifier(self) -> tuple[int, int | None] | None:
        found = self._quantifier_here()
        if found is None:
            return None
        self.at = found.end()
        self._take("?")  # lazy: another order of trying, the same set of matches
        if self._take("+"):
            raise Unread("a possessive quantifier")
        if self._quantifier_here():
            raise Invalid("a quantifier on a quantifier")
        return _bounds(found)

    def _quantifier_here(self) -> re.Match[str] | None:
        return _QUANTIFIER.match(self.pattern, self.at)

    def _next(self) -> str:
        self.at += 1
        return self.pattern[self.at - 1]

    def _take(self, character: str) -> bool:
        taken = self.pattern.startswith(character, self.at)
        self.at += taken
        return taken


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    short = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0])
    if short:
        return short
    if any(len(digits or "") > 9 for digits in found.groups()):
        raise Invalid("a repetition count that is too large")
    if found[1]:
        return int(found[1]), int(found[1])
    low, high = int(found[2] or 0), int(found[3]) if found[3] else None
    if high is not None and high < low:
        raise Invalid(f"the empty range {found[0]}")
    return low, high
