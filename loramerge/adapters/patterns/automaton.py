"""Many regular expressions held against a text in one pass, however many they are.

What expressions begin with alike is one path of a tree. The places in the tree that a text may have
reached are a state of one automaton for all of them. States are made as texts reach them, so a text
costs its length, and only what no text before it did costs more. Where one expression is left, and wants
characters alone, they are compared at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from loramerge.adapters.patterns.terms import NONE, NOTHING, Term, Terms, kind

KEPT = 500_000  # places and nodes that are kept, of some 200 bytes each: then they are made anew
MANY = 16  # expressions, from which on their ends are compared at once
Row = tuple[int, tuple[Term, ...]]  # the number of an expression, and what it wants
_Rows = Sequence[tuple[tuple[int, ...], tuple[Term, ...]]]  # the numbers of all that want the same


@dataclass(eq=False, slots=True)
class Node:
    """A place in the tree: rows that begin alike up to `depth` terms. Its children are made when needed."""

    rows: _Rows
    depth: int = 0
    tail: Tail | None = None  # what the only row still wants, if it is characters alone
    ends: tuple[int, ...] | None = None  # the expressions that are whole here
    letters: dict[str, Node] = field(default_factory=dict)
    others: list[tuple[Term, Node]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Tail:
    """Characters that are left: words and their places, and where any character does."""

    words: list[tuple[int, str]]
    anywhere: list[int]
    length: int
    last: bool  # nothing follows them

    @classmethod
    def of(cls, terms: Sequence[Term]) -> Tail | None:
        """None: they want something else, too."""
        last = bool(terms) and terms[-1].source == "$" and terms[-1].kind == "anchor"
        body = terms[:-1] if last else terms
        if not all(term.kind == "character" or (term.kind, term.source) == ("class", ".") for term in body):
            return None
        anywhere = [at for at, term in enumerate(body) if term.kind == "class"]
        bounds = zip([-1, *anywhere], [*anywhere, len(body)], strict=True)
        words = [(a + 1, "".join(term.source for term in body[a + 1 : b])) for a, b in bounds]
        return cls(words, anywhere, len(body), last)

    def fits(self, text: str, at: int) -> bool:
        end = at + self.length
        return (
            (end == len(text) if self.last else end <= len(text))
            and all(text.startswith(word, at + place) for place, word in self.words)
            and all(text[at + place] != "\n" for place in self.anywhere)
        )


Where = tuple[Term, Node]  # what is wanted before a node is reached
Next = str | tuple[str, frozenset[Term]]  # a character, "" at the end, and the looks that find something
Around = Callable[[str], Sequence[frozenset[Term]]]
_Nodes = frozenset[Node]


@dataclass(eq=False, slots=True)
class State:
    """All places that a text may have reached, and where each next character leads."""

    places: frozenset[Where]
    before: str
    moves: dict[Next, tuple[State, _Nodes]] = field(default_factory=dict)


class Automaton:
    """Expressions that begin where a text begins; each row has the number of its expression.

    Args:
        looks: which look-arounds find something at each place of a text, if there are any in the rows.
        tails: an end of characters alone is compared at once; where expressions end is not told.

    >>> from loramerge.adapters.patterns.steps import Budget
    >>> terms = Terms(Budget(1000))
    >>> rows = [(0, (terms.letter("a"), terms.letter("b"))), (1, (terms.one_of("."),))]
    >>> [Automaton(rows, terms).first(text) for text in ("ab", "b", "")]
    [0, 1, None]
    """

    def __init__(
        self, rows: Iterable[Row], terms: Terms, looks: Around | None = None, tails: bool = True
    ) -> None:
        alike: dict[tuple[Term, ...], list[int]] = defaultdict(list)
        for number, wanted in rows:
            alike[wanted].append(number)
        self._rows: _Rows = [(tuple(numbers), wanted) for wanted, numbers in alike.items()]
        self._terms, self._budget = terms, terms.budget
        self._looks = looks
        self._tails = tails and len(self._rows) > MANY
        self._nodes, self._root = 0, Node(self._rows)
        self._forget()

    def first(self, text: str) -> int | None:
        """The lowest number of an expression that a beginning of the text fits. Raises Exhausted."""
        return min((node.ends[0] for node in self._ended(text) if node.ends), default=None)

    def fitting(self, texts: Iterable[str]) -> set[int]:
        """The numbers of all expressions that any of the texts fits. Raises Exhausted."""
        ended = {node for text in texts for node in self._ended(text)}
        return {number for node in ended for number in node.ends or ()}

    def ends(self, text: str) -> Iterator[tuple[int, set[int]]]:
        """Each place of the text at which expressions end, and their numbers; made without `tails`."""
        for at, met in self._steps(text):
            self._budget.spend(len(met))
            yield at, {number for node in met for number in node.ends or ()}

    def _ended(self, text: str) -> set[Node]:
        """The nodes reached in a text at which an expression ends."""
        return {node for at, met in self._steps(text) for node in self._fitting(met, text, at)}

    def _steps(self, text: str) -> Iterator[tuple[int, _Nodes]]:
        self._budget.spend(1 + len(text) // 8)
        state, coming = self._start, (*text, "")
        keys: Iterable[Next] = coming if self._looks is None else zip(coming, self._looks(text), strict=True)
        for at, key in enumerate(keys):
            state, met = state.moves.get(key) or self._move(state, key)
            if met:
                yield at, met

    def _fitting(self, met: _Nodes, text: str, at: int) -> set[Node]:
        self._budget.spend(len(met))
        return {node for node in met if node.tail is None or node.tail.fits(text, at)}

    def _forget(self) -> None:
        """What has been made is dropped, so that memory does not grow with the texts."""
        self._made = 0
        self._known: dict[tuple[Where, str, str, frozenset[Term]], tuple[frozenset[Where], _Nodes]] = {}
        self._states: dict[tuple[frozenset[Where], str], State] = {}
        self._terms.forget()
        if self._nodes > KEPT:  # rows that begin alike are parted once, as a rule
            self._nodes, self._root = 0, Node(self._rows)
        self._start = State(frozenset({(NOTHING, self._root)}), "start")

    def _move(self, state: State, key: Next) -> tuple[State, _Nodes]:
        if max(self._made, self._nodes) > KEPT:
            self._forget()
        character, looks = (key, NONE) if isinstance(key, str) else key
        places, met = self._reached(state, character, looks)
        after = places, kind(character)
        if after not in self._states:
            self._states[after] = State(*after)
        found = state.moves[key] = self._states[after], met
        return found

    def _reached(
        self, state: State, character: str, looks: frozenset[Term]
    ) -> tuple[frozenset[Where], _Nodes]:
        """The places behind a character, or behind none at the end, and the nodes that end before it."""
        places, met, before, steps = set[Where](), set[Node](), state.before, 8 + len(looks)
        for place in state.places:
            key = place, before, character, looks
            if key not in self._known:
                self._known[key] = self._walk(*key)
            more, ended = self._known[key]
            places |= more
            met |= ended
            steps += 3 + len(more)
        self._spend(steps + len(places))
        return frozenset(places), frozenset(met)

    def _walk(
        self, where: Where, before: str, character: str, looks: frozenset[Term]
    ) -> tuple[frozenset[Where], _Nodes]:
        """All that a place leads to, over what wants nothing."""
        place = before, kind(character), looks
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
                if character:
                    places |= {(left, node) for left in self._terms.after(term, character, before, looks)}
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
        depth, ends = node.depth, list[int]()
        if len(node.rows) == 1 and self._tails:
            (numbers, wanted) = node.rows[0]
            node.tail = Tail.of(wanted[depth:])
            if node.tail is not None:
                node.ends = numbers
                return
        going: dict[Term, list[tuple[tuple[int, ...], tuple[Term, ...]]]] = defaultdict(list)
        for row in node.rows:
            if len(row[1]) == depth:
                ends += row[0]
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
