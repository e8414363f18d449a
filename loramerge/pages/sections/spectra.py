"""Singular values of every module."""

from __future__ import annotations

from loramerge.charts.spectra import spectra as chart
from loramerge.charts.table import MODULE
from loramerge.merge import columns
from loramerge.pages.commands import measured
from loramerge.pages.section import Section
from loramerge.pages.subject import UNREAD, Subject

WORDS = (
    "The singular values of ΔW in every module, the largest first. A line that falls steeply needs few "
    "units; a flat one loses much if its rank is cut."
)


def spectra(subject: Subject) -> Section:
    """A row for each module of each source."""
    table = columns.spectra(subject.measured)
    every = sum(map(len, subject.measured.values()))
    notes = [f"These are the {len(table)} strongest of {every} modules."] if len(table) < every else []
    how = measured(subject)
    if not every:
        return Section("spectra", "Spectra", WORDS, how, notes=[UNREAD])
    return Section("spectra", "Spectra", WORDS, how, table, chart, MODULE, notes)
