"""Who overlaps with whom."""

from __future__ import annotations

from loramerge.charts.overlaps import overlaps as chart
from loramerge.charts.table import SOURCE
from loramerge.merge import columns
from loramerge.pages.commands import compared
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject, paired

WORDS = (
    "The cosine of each source with each other, over all modules. Near 0 they do not touch each other, "
    "and their sum keeps both. Near 1 they say the same, near -1 the opposite."
)


def overlaps(subject: Subject) -> Section:
    """A row and a column for each source."""
    how, title = compared(subject), "Overlaps"
    if why := list(paired(subject)):
        return Section("overlaps", title, WORDS, how, notes=why)
    table = columns.overlaps(subject.plain)
    return Section("overlaps", title, WORDS, how, table, chart, SOURCE)
