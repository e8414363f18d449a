"""What a file may ask of this machine: patterns that end, and no more work than its user allows."""

from __future__ import annotations

from dataclasses import fields

from loramerge.adapters.patterns.search import Search, searcher
from loramerge.algorithms import Method, name_of
from loramerge.errors import IncompatibleError, printable, say
from loramerge.request.request import Request

MOST_RULES = 100_000
TENFOLD = 10  # of what is done by default


def check_patterns(request: Request, where: str) -> None:
    """Raises UsageError or IncompatibleError, as `Search` does, or because there are too many patterns."""
    if len(request.rules) > MOST_RULES:
        raise IncompatibleError(
            f"{printable(where)} has {len(request.rules)} rules for modules, and {MOST_RULES} is the limit: "
            "put modules that are merged alike into one."
        )
    for option, pattern in (("only", request.only), ("exclude", request.exclude)):
        if pattern is not None:
            searcher(pattern, option)
    if request.rules:
        Search([rule.match for rule in request.rules], "match")


def work_of(method: Method) -> dict[str, tuple[float, float]]:
    """Options that ask for more than ten times the work that is done by default: name -> (asked, default)."""
    found: dict[str, tuple[float, float]] = {}
    for each in fields(method):
        value = getattr(method, each.name)
        if isinstance(value, Method):
            found |= work_of(value)
        elif each.metadata.get("work"):
            usual: float = each.default  # type: ignore[assignment]  # work has a default
            found |= {f"{name_of(method)}.{each.name}": (value, usual)} if value > TENFOLD * usual else {}
    return found


def check_work(method: Method, allowed: bool, where: str) -> tuple[str, ...]:
    """Notes on work that a file asks for beyond ten times the defaults.

    Raises:
        IncompatibleError: there is some, and it is not allowed.
    """
    found = work_of(method)
    notes = tuple(
        f"{where} asks for {name} = {asked:g}, and {usual:g} is the default"
        for name, (asked, usual) in found.items()
    )
    if notes and not allowed:
        raise IncompatibleError(
            f"{printable(notes[0], 500)}: it may take very long. {say('allow_work', True)} does it."
        )
    return notes
