"""Where in a text look-arounds find something, told beforehand in two passes, so that matching stays linear.

A look-behind holds where its body ends: the automaton of `.*body` tells all such places in one pass. A
look-ahead holds where its body begins: that is the same in the mirrored text, of the mirrored body
(Mamouras and Chattopadhyay 2024, Barrière and Pit-Claudel 2024). Bodies may hold looks themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from loramerge.adapters.patterns.automaton import Automaton, Row
from loramerge.adapters.patterns.terms import NOTHING, Term, Terms, flat

MIRROR = {"^": "$", "$": "^", "ahead": "behind", "behind": "ahead"}


def automaton(rows: Iterable[Row], terms: Terms, tails: bool = True) -> Automaton:
    """The automaton of expressions that may look around.

    >>> from loramerge.adapters.patterns.regex import parse
    >>> from loramerge.adapters.patterns.steps import Budget
    >>> terms = Terms(Budget(1000))
    >>> rows = [(0, wanted) for wanted in parse("a(?!b)", terms)]
    >>> [automaton(rows, terms).first(text) for text in ("ac", "ab")]
    [0, None]
    """
    rows = list(rows)
    looks = _looks(term for _, wanted in rows for term in wanted)
    return Automaton(rows, terms, Looks(looks, terms).found if looks else None, tails)


def _looks(terms: Iterable[Term]) -> list[Term]:
    """Those in some terms, but not in the bodies of looks."""
    stack, seen = [*terms], dict[Term, None]()
    while stack:
        term = stack.pop()
        if term not in seen:
            seen[term] = None
            stack += term.parts if term.kind != "look" else ()
    return [term for term in seen if term.kind == "look"]


class Looks:
    """Look-arounds whose places in a text are to be found."""

    def __init__(self, looks: list[Term], terms: Terms) -> None:
        self._looks, self._budget = looks, terms.budget
        anything = terms.repeat(terms.one_of(r"[\s\S]"), 0, None)
        rows: dict[str, list[Row]] = {"ahead": [], "behind": []}
        for number, look in enumerate(looks):
            (body,) = look.parts
            body = mirrored(body, terms) if look.source == "ahead" else body
            rows[look.source].append((number, (anything, *flat(body))))
        self._automata = {where: automaton(some, terms, tails=False) for where, some in rows.items() if some}

    def found(self, text: str) -> list[frozenset[Term]]:
        """At each place of a text, before its first character to behind its last, the looks that hold.

        Raises Exhausted.
        """
        self._budget.spend(4 + 2 * len(text) * len(self._automata))
        places: list[set[Term]] = [set() for _ in range(len(text) + 1)]
        for where, automaton in self._automata.items():
            order = places if where == "behind" else places[::-1]
            for at, numbers in automaton.ends(text if where == "behind" else text[::-1]):
                order[at].update(self._looks[number] for number in numbers)
        return [frozenset(place) for place in places]


def mirrored(term: Term, terms: Terms) -> Term:
    """What fits a mirrored text where the term fits the text."""
    parts = [_mirrored(part, terms) for part in flat(term)]
    terms.budget.spend(len(parts))
    return reduce(lambda rest, part: terms.pair(part, rest), parts, NOTHING)


def _mirrored(term: Term, terms: Terms) -> Term:
    match term.kind:
        case "anchor":
            return terms.anchor(MIRROR.get(term.source, term.source))
        case "look":
            return terms.look(MIRROR[term.source], mirrored(term.parts[0], terms))
        case "not":
            return terms.unless(_mirrored(term.parts[0], terms))
        case "choice":
            return terms.choice([mirrored(part, terms) for part in term.parts])
        case "repeat":
            return terms.repeat(mirrored(term.parts[0], terms), term.low, term.high)
        case "pair":
            return mirrored(term, terms)
    return term
