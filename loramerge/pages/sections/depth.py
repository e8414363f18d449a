"""Effective rank over the depth of the model."""

from __future__ import annotations

from loramerge.charts.depth import depth as chart
from loramerge.charts.table import MODULE
from loramerge.merge import columns
from loramerge.pages.commands import looked
from loramerge.pages.section import Section
from loramerge.pages.subject import UNREAD, Subject

WORDS = (
    "How many units share the energy of a module: exp of the entropy of σ²/Σσ². The line is the mean over"
    " the modules of a layer."
)


def depth(subject: Subject) -> Section:
    """A row for each module of each source."""
    table = columns.depths(subject.measured)
    apart = sum(layer is None for layer in table.column("layer"))
    notes = [f"{apart} modules are in no layer; the table has them."] if apart else []
    how, title = looked(subject, "depth"), "Effective rank over depth"
    if not table.rows:
        return Section("depth", title, WORDS, how, notes=[UNREAD])
    return Section("depth", title, WORDS, how, table, chart, MODULE, notes)
