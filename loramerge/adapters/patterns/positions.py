"""Matching by sets of positions: what a regular expression is when nothing backtracks.

A `Step` maps the set of positions in a text where it may begin to the set where it then ends.
A set is one int, bit i for position i, so that a step costs a few machine words. Every step is
paid from a Budget, because nested repetition may still take many.
"""

import re
from collections.abc import Callable
from functools import lru_cache, reduce
from operator import or_

Positions = int


class Exhausted(Exception):
    """Matching took more steps than its budget holds."""


class Budget:
    """How many more steps may be taken; shared by all matches that should end together."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Exhausted


class Text:
    """A text to match against, with what is worth knowing of it once."""

    def __init__(self, text: str, budget: Budget) -> None:
        self.text, self.budget = text, budget
        self.end: Positions = 1 << len(text)
        self._found: dict[str, Positions] = {}
        self._class: dict[str, Positions] = {}

    def where(self, word: str) -> Positions:
        """The positions where `word` begins."""
        if word not in self._found:
            self._found[word] = self._find(word)
        return self._found[word]

    def where_class(self, source: str) -> Positions:
        """The positions of the characters that belong to a class, such as `[a-z]`."""
        if source not in self._class:
            self._class[source] = self._find_class(source)
        return self._class[source]

    def _find(self, word: str) -> Positions:
        self.budget.spend(1 + len(self.text) // 64)
        found, at = 0, self.text.find(word)
        while at >= 0:
            self.budget.spend(1)
            found |= 1 << at
            at = self.text.find(word, at + 1)
        return found

    def _find_class(self, source: str) -> Positions:
        characters = set(self.text)
        self.budget.spend(1 + len(characters))
        members = filter(belonging(source), characters)
        return reduce(or_, map(self.where, members), 0)


Step = Callable[[Text, Positions], Positions]


def literal(word: str) -> Step:
    """Exactly these characters."""

    def step(text: Text, starts: Positions) -> Positions:
        text.budget.spend(1)
        return (starts & text.where(word)) << len(word)

    return step


def one_of(source: str) -> Step:
    """One character of a class, given as Python's `re` writes it: `.`, `\\d`, `[a-z]`."""

    def step(text: Text, starts: Positions) -> Positions:
        text.budget.spend(1)
        return (starts & text.where_class(source)) << 1

    return step


def at_start(text: Text, starts: Positions) -> Positions:
    """The anchor `^`."""
    text.budget.spend(1)
    return starts & 1


def at_end(text: Text, starts: Positions) -> Positions:
    """The anchor `$`, for texts without newlines."""
    text.budget.spend(1)
    return starts & text.end


def at_boundary(text: Text, starts: Positions) -> Positions:
    """The anchor `\\b`: between a character of a word and another, or an end."""
    text.budget.spend(1)
    words = text.where_class("\\w")
    return starts & (words ^ (words << 1))


def sequence(steps: list[Step]) -> Step:
    """One after the other."""

    def step(text: Text, starts: Positions) -> Positions:
        text.budget.spend(1)
        for each in steps:
            if not starts:
                break
            starts = each(text, starts)
        return starts

    return steps[0] if len(steps) == 1 else step


def choice(steps: list[Step]) -> Step:
    """Any of them."""

    def step(text: Text, starts: Positions) -> Positions:
        text.budget.spend(len(steps))
        ends = 0
        for each in steps:
            ends |= each(text, starts)
        return ends

    return steps[0] if len(steps) == 1 else step


def repeat(body: Step, low: int, high: int | None) -> Step:
    """At least `low` times and at most `high`, or any number of times."""

    def step(text: Text, starts: Positions) -> Positions:
        text.budget.spend(1)
        for _ in range(low):
            text.budget.spend(1)
            before, starts = starts, body(text, starts)
            if starts in (before, 0):  # it will not change any more
                break
        return more(text, starts)

    def more(text: Text, reached: Positions) -> Positions:
        new, rounds = reached, 0
        while new and (high is None or rounds < high - low):
            text.budget.spend(1)
            new = body(text, new) & ~reached
            reached, rounds = reached | new, rounds + 1
        return reached

    return step


@lru_cache(maxsize=4096)
def belonging(source: str) -> Callable[[str], object]:
    """Whether a character belongs to a class. Raises re.error for a malformed class."""
    return re.compile(source).fullmatch  # on one character at a time, so it cannot hang
