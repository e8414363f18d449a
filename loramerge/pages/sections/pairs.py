"""Where two sources overlap most."""

from __future__ import annotations

from loramerge.charts.layers import layers
from loramerge.charts.table import MODULE
from loramerge.merge import columns
from loramerge.pages.commands import looked
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject, paired

WORDS = (
    "In each module, the two sources whose updates have the largest cosine, with or against each other. "
    "Dark squares are where a sum doubles something or takes it away."
)


def pairs(subject: Subject) -> Section:
    """A row for each module that two sources have."""
    how, title = looked(subject, "pairs"), "The worst pair by layer and kind"
    if why := list(paired(subject)):
        return Section("pairs", title, WORDS, how, notes=why)
    table = columns.layers(subject.plain)
    if not table.rows:
        return Section("pairs", title, WORDS, how, notes=["No two of the sources have a module together."])
    return Section("pairs", title, WORDS, how, table, layers, MODULE)
