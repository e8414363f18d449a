"""Reading regular expressions from files that we do not trust, into matchers that cannot hang.

What people write in module patterns is read: literals, `.`, classes, groups, alternation,
quantifiers (lazy ones too), `^`, `$` and `\\b`, and `\\d \\w \\s \\D \\W \\S`, all as Python has them.
Texts must have no newline; then `.` is any character, and `$` is the end alone.
"""

import re
import string
from functools import lru_cache

from loramerge.adapters.late import late
from loramerge.adapters.patterns.positions import (
    Step,
    at_boundary,
    at_end,
    at_start,
    belonging,
    choice,
    literal,
    one_of,
    repeat,
    sequence,
)

MAX_DEPTH = 50

# A brace that does not read as a quantifier is a literal brace; so Python has it.
_QUANTIFIER = late(r"[*+?]|\{(?:([0-9]+)|([0-9]*),([0-9]*))\}")
_CLASS = late(r"\[\^?+(?:\]|[^\]\\]|\\.)(?:[^\]\\]|\\.)*\]", re.DOTALL)
_SET_OPERATION = late(r"\[|--|&&|~~|\|\|")  # Python warns that it may come to read these


class Unread(ValueError):
    """The pattern uses something outside the subset; the message is its name."""


class Invalid(ValueError):
    """The text is no regular expression at all; the message says why."""


@lru_cache(maxsize=4096)
def parse(pattern: str) -> Step:
    """The step that a pattern takes.

    Raises:
        Unread: it uses something outside the subset.
        Invalid: it is no regular expression.

    >>> from loramerge.adapters.patterns.positions import Budget, Text
    >>> text = Text("ab.ab", Budget(100))
    >>> bin(parse("(a|b)+")(text, 0b1))
    '0b110'
    """
    parser = _Parser(pattern)
    step = parser.choice(depth=0)
    if parser.at < len(pattern):
        raise Invalid("an unbalanced parenthesis")
    return step


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def choice(self, depth: int) -> Step:
        if depth > MAX_DEPTH:
            raise Unread(f"groups nested more than {MAX_DEPTH} deep")
        steps = [self._sequence(depth)]
        while self._take("|"):
            steps.append(self._sequence(depth))
        return choice(steps)

    def _sequence(self, depth: int) -> Step:
        steps: list[Step] = []
        word = ""  # literal characters that no quantifier follows, matched as one
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            anchor = self.pattern[self.at] in "^$" or self.pattern.startswith("\\b", self.at)
            atom = self._atom(depth)
            bounds = self._quantifier()
            if anchor and bounds:
                raise Invalid("a quantifier with nothing to repeat")
            if isinstance(atom, str) and bounds is None:
                word += atom
                continue
            if word:
                steps.append(literal(word))
                word = ""
            steps.append(_quantified(atom, bounds))
        return sequence([*steps, literal(word)] if word else steps)

    def _atom(self, depth: int) -> Step | str:
        """The next atom: a character is itself, anything else a step."""
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
                return one_of(".")
            case "^":
                return at_start
            case "$":
                return at_end
        return character

    def _group(self, depth: int) -> Step:
        if self._take("?") and not self._take(":"):
            raise Unread(f"(?{self.pattern[self.at : self.at + 1]}…)")
        step = self.choice(depth + 1)
        if not self._take(")"):
            raise Invalid("an unbalanced parenthesis")
        return step

    def _class(self) -> Step:
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
        return one_of(source)

    def _escape(self) -> Step | str:
        character = self._next() if self.at < len(self.pattern) else ""
        if not character:
            raise Invalid("a lone backslash at its end")
        if character == "b":
            return at_boundary
        if character in "dDsSwW":
            return one_of("\\" + character)
        if character in string.ascii_letters + string.digits:
            raise Unread("\\" + character)
        return character

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


def _quantified(atom: Step | str, bounds: tuple[int, int | None] | None) -> Step:
    step = literal(atom) if isinstance(atom, str) else atom
    return repeat(step, *bounds) if bounds else step
