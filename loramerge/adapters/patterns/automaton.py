"""Many regular expressions held against a text in one pass, however many they are.

What expressions begin with alike is one path of a tree. The places in the tree that a text may have
reached are a state of one automaton for all of them. States are made as texts reach them, so a text
costs its length, and only what no text before it did costs more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from loramerge.adapters.patterns.terms import NOTHING, Term, Terms, kind

KEPT = 500_000  # places and nodes that are kept, of some 200 bytes each: then they are made anew
Row = tuple[int, tuple[Term, ...]]  # the number of an expression, and what it wants


@dataclass(eq=False, slots=True)
class Node:
    """A place in the tree: rows that begin alike up to `depth` terms. Its children are made when needed."""

    rows: Sequence[Row]
    depth: int = 0
    ends: tuple[int, ...] | None = None  # the expressions that are whole here
    letters: dict[str, Node] = field(default_factory=dict)
    others: list[tuple[Term, Node]] = field(default_factory=list)


Where = tuple[Term, Node]  # what is wanted before a node is reached
_Nodes = frozenset[Node]


@dataclass(eq=False, slots=True)
class State:
    """All places that a text may have reached, and where each next character leads."""

    places: frozenset[Where]
    before: str
    moves: dict[str, tuple[State, _Nodes]] = field(default_factory=dict)
    last: _Nodes | None = None


class Automaton:
    """Expressions that begin where a text begins; each row has the number of its expression.

    >>> from loramerge.adapters.patterns.steps import Budget
    >>> terms = Terms(Budget(1000))
    >>> rows = [(0, (terms.letter("a"), terms.letter("b"))), (1, (terms.one_of("."),))]
    >>> [Automaton(rows, terms).first(text) for text in ("ab", "b", "")]
    [0, 1, None]
    """

    def __init__(self, rows: Iterable[Row], terms: Terms) -> None:
        self._rows, self._terms, self._budget = list(rows), terms, terms.budget
        self._nodes, self._root = 0, Node(self._rows)
        self._forget()

    def first(self, text: str) -> int | None:
        """The lowest number of an expression that a beginning of the text fits. Raises Exhausted."""
        return min((node.ends[0] for node in self._ended(text) if node.ends), default=None)

    def fitting(self, texts: Iterable[str]) -> set[int]:
        """The numbers of all expressions that any of the texts fits. Raises Exhausted."""
        ended = {node for text in texts for node in self._ended(text)}
        return {number for node in ended for number in node.ends or ()}

    def _ended(self, text: str) -> set[Node]:
        """The nodes reached in a text at which an expression ends."""
        self._budget.spend(1 + len(text) // 8)
        state, ended = self._start, set[Node]()
        for character in text:
            state, met = state.moves.get(character) or self._move(state, character)
            if met:
                self._budget.spend(len(met))
                ended |= met
        if state.last is None:
            state.last = self._reached(state, None)[1]
        return ended | state.last

    def _forget(self) -> None:
        """What has been made is dropped, so that memory does not grow with the texts."""
        self._made = 0
        self._known: dict[tuple[Where, str, str | None], tuple[frozenset[Where], _Nodes]] = {}
        self._states: dict[tuple[frozenset[Where], str], State] = {}
        self._terms.forget()
        if self._nodes > KEPT:  # rows that begin alike are parted once, as a rule
            self._nodes, self._root = 0, Node(self._rows)
        self._start = State(frozenset({(NOTHING, self._root)}), "start")

    def _move(self, state: State, character: str) -> tuple[State, _Nodes]:
        if max(self._made, self._nodes) > KEPT:
            self._forget()
        places, met = self._reached(state, character)
        key = places, kind(character)
        if key not in self._states:
            self._states[key] = State(*key)
        found = state.moves[character] = self._states[key], met
        return found

    def _reached(self, state: State, character: str | None) -> tuple[frozenset[Where], _Nodes]:
        """The places behind a character, or behind none at the end, and the nodes that end before it."""
        places, met, before, steps = set[Where](), set[Node](), state.before, 8
        for place in state.places:
            key = place, before, character
            if key not in self._known:
                self._known[key] = self._walk(place, before, character)
            more, ended = self._known[key]
            places |= more
            met |= ended
            steps += 3 + len(more)
        self._spend(steps + len(places))
        return frozenset(places), frozenset(met)

    def _walk(self, where: Where, before: str, character: str | None) -> tuple[frozenset[Where], _Nodes]:
        """All that a place leads to, over what wants nothing."""
        place = before, "end" if character is None else kind(character)
        places, met = set[Where](), set[Node]()
        stack, seen = [where], {where}
        while stack:
            term, node = stack.pop()
            if term is NOTHING:
                self._part(node)
                met |= {node} if node.ends else set()
                if character in node.letters:
                    places.add((NOTHING, node.letters[character]))
                further = node.others
            else:
                if character is not None:
                    places |= {(left, node) for left in self._terms.after(term, character, before)}
                further = [(NOTHING, node)] if self._terms.empty(term, place) else []
            self._spend(5 + len(further))
            stack += [each for each in further if each not in seen]
            seen.update(further)
        self._spend(3 * len(places))
        return frozenset(places), frozenset(met)

    def _part(self, node: Node) -> None:
        """Make the children of a node: rows that go on alike stay together."""
        if node.ends is not None:
            return
        depth, ends = node.depth, []
        going: dict[Term, list[Row]] = defaultdict(list)
        for row in node.rows:
            if len(row[1]) == depth:
                ends.append(row[0])
            else:
                going[row[1][depth]].append(row)
        node.ends = tuple(sorted(ends))
        for term, rows in going.items():
            child = Node(rows if len(going) > 1 or ends else node.rows, depth + 1)
            if term.kind == "character":
                node.letters[term.source] = child
            else:
                node.others.append((term, child))
        self._nodes += len(going)
        self._budget.spend(len(node.rows) // 4 + 4 * len(going))

    def _spend(self, steps: int) -> None:
        self._made += steps
        self._budget.spend(steps)
