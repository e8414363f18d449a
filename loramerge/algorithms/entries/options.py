"""Options that several rules share: each is described here once."""

from __future__ import annotations

from loramerge.algorithms.entries.sparsity import Rescale, Scope
from loramerge.algorithms.entries.votes import Divisor, Election
from loramerge.algorithms.method import Interval, option

SHARE = Interval(low=0, high=1, low_open=True)


def density(default: float = 0.2, help: str = "The share of entries of a source that is kept.") -> float:
    """For a rule that keeps entries by size."""
    return option(default, help, SHARE)


def scope() -> Scope:
    """For a rule that keeps entries by size."""
    words = "Whether entries are compared within a module or over the whole adapter."
    return option("module", words)


def chance() -> float:
    """The density of a rule that keeps entries by chance."""
    return option(0.5, "The share of entries that is kept by chance.", SHARE)


def rescale() -> Rescale:
    """For a rule that keeps entries by chance."""
    return option(
        "density",
        "How kept entries make up for dropped ones: divided by their probability, or scaled so that the sum "
        "of sizes is as before.",
    )


def seed() -> int:
    """For a rule that keeps entries by chance."""
    return option(0, "Another seed keeps other entries.", Interval(low=0))


ELECTION = (
    "What is added up to elect a sign: weighted entries, raw ones, one vote of each source; none: no "
    "election."
)
DIVISOR = "What the sum of those that agree is divided by: their weights, their number, or nothing."


def election(default: Election = "weighted", help: str = ELECTION) -> Election:
    """For a rule in which the sources vote."""
    return option(default, help)


def divisor(default: Divisor = "weight", help: str = DIVISOR) -> Divisor:
    """For a rule in which the sources vote."""
    return option(default, help)
