"""Reading regular expressions from files that we do not trust, into terms that cannot hang.

What people write in module patterns is read: literals, `.`, classes, groups (with names, and with flags),
alternation, quantifiers (lazy ones too), look-around, `^`, `$`, `\\A`, `\\Z`, `\\b` and `\\B`, and
`\\d \\w \\s \\D \\W \\S`, all as Python has them. What is not regular, as `(a)\\1` and `(?>a)`, is not read.
Texts must have no newline; then `.` is any character, and `$` is the end alone.
"""

import re
import string
from functools import reduce

from loramerge.adapters.late import late
from loramerge.adapters.patterns.terms import NOTHING, Term, Terms, belonging, flat

MAX_DEPTH = 50
SPREAD = 16
READING = 2  # steps for a character
ANCHORS = ("^", "$", r"\b", r"\B", r"\A", r"\Z")

# A brace that does not read as a quantifier is a literal brace; so Python has it.
_QUANTIFIER = late(r"[*+?]|\{(?:([0-9]+)|([0-9]*),([0-9]*))\}")
_CLASS = late(r"\[\^?+(?:\]|[^\]\\]|\\.)(?:[^\]\\]|\\.)*\]", re.DOTALL)
_PLAIN = late(r"(?:[^\\|*+?()\[\]{}]|\\[^A-Za-z0-9])*", re.DOTALL)
_UNIT = late(r"\\.|.", re.DOTALL)
_OPENING = late(r"(?:\?(?:(?P<look><?[=!])|P<(?P<name>[^>]*)>|(?P<flags>[A-Za-z-]*):))?")
_GLOBAL = late(r"\(\?([A-Za-z]+)\)")
_SET_OPERATION = late(r"\[|--|&&|~~|\|\|")  # Python warns that it may come to read these


class Unread(ValueError):
    """The pattern uses something outside the subset; the message is its name."""


class Invalid(ValueError):
    """The text is no regular expression at all; the message says why."""


def parse(pattern: str, terms: Terms, whole: bool = True) -> list[tuple[Term, ...]]:
    """What a pattern wants: any of these, each one term after the other.

    Args:
        whole: it will stand alone; flags for all of it are at the start of such a one only.

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
    if whole:
        parser.settings()
    sequences = parser.choice(depth=0)
    if parser.at < len(pattern):
        raise Invalid("an unbalanced parenthesis")
    return [row for sequence in sequences for row in _spread(sequence)]


def _spread(sequence: tuple[Term, ...]) -> list[tuple[Term, ...]]:
    """A sequence of a few choices as what may be chosen: so `(a|x)b` and `(a|y)b` begin alike."""
    rows: list[tuple[Term, ...]] = [()]
    for term in sequence:
        parts = term.parts if term.kind == "choice" and len(term.parts) * len(rows) <= SPREAD else (term,)
        rows = [(*row, *flat(part)) for row in rows for part in parts]
    return rows


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
        self.either_case = False
        self.names: set[str] = set()

    def settings(self) -> None:
        """Flags for the whole pattern."""
        while found := _GLOBAL.match(self.pattern, self.at):
            self._set(found[1])
            self.at = found.end()

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
            anchor = self.pattern.startswith(ANCHORS, self.at)
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
        return self._letter(character)

    def _letter(self, character: str) -> Term:
        if self.either_case and character.isalpha():
            return self.terms.one_of(f"(?i:{character})")
        return self.terms.letter(character)

    def _group(self, depth: int) -> Term:
        opening = self._opening()
        outside = self.either_case
        if opening["flags"]:
            self._set(opening["flags"])
        sequences = self.choice(depth + 1)
        if not self._take(")"):
            raise Invalid("an unbalanced parenthesis")
        self.either_case = outside
        found = self.terms.choice([self._whole(each) for each in sequences])
        return self._look(opening["look"], found) if opening["look"] else found

    def _opening(self) -> re.Match[str]:
        """What follows the parenthesis of a group."""
        found = _OPENING.match(self.pattern, self.at)
        assert found is not None, "it may be empty"
        if not found[0] and self.pattern.startswith("?", self.at):
            if _GLOBAL.match(self.pattern, self.at - 1):
                raise Invalid("flags for all of it that do not stand at its start")
            raise Unread(f"(?{self.pattern[self.at + 1 : self.at + 2]}…)")
        if (name := found["name"]) is not None:
            if not name.isidentifier() or name in self.names:
                raise Invalid("a group whose name is none, or is given twice")
            self.names.add(name)
        self.at = found.end()
        return found

    def _set(self, flags: str) -> None:
        """Texts are Unicode and have no newlines: of the flags only `i` changes what is found."""
        try:
            re.compile(f"(?{flags}:)")
        except re.error as error:
            raise Invalid(f"the flags {flags} ({error.msg})") from None
        if set(flags) & set("ax"):
            raise Unread(f"the flags {flags}")
        on, _, off = flags.partition("-")
        self.either_case = "i" in on or (self.either_case and "i" not in off)

    def _look(self, which: str, body: Term) -> Term:
        where = "behind" if which[0] == "<" else "ahead"
        if where == "behind" and width(body) is None:
            raise Invalid("a look-behind that has no one length")
        look = self.terms.look(where, body)
        return self.terms.unless(look) if which[-1] == "!" else look

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
        return self.terms.one_of(f"(?i:{source})" if self.either_case else source)

    def _escape(self) -> Term:
        character = self._next() if self.at < len(self.pattern) else ""
        if not character:
            raise Invalid("a lone backslash at its end")
        if character in "bB":
            return self.terms.anchor("\\" + character)
        if character in "AZ":
            return self.terms.anchor("^" if character == "A" else "$")
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


def width(term: Term) -> int | None:
    """How many characters a term takes; None: not always as many."""
    widths = [_width(part) for part in flat(term)]
    return None if None in widths else sum(filter(None, widths))


def _width(term: Term) -> int | None:
    match term.kind:
        case "character" | "class":
            return 1
        case "pair":
            return width(term)
        case "choice":
            (one, *others) = {width(part) for part in term.parts}
            return None if others else one
        case "repeat":
            one = width(term.parts[0])
            return 0 if one == 0 else one * term.low if one and term.low == term.high else None
    return 0


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
