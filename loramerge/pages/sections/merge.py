"""The report of the merge that a page is about."""

from __future__ import annotations

from pathlib import Path

from loramerge.algorithms import name_of
from loramerge.charts.layers import losses_by_layer
from loramerge.charts.table import MODULE
from loramerge.errors import printable
from loramerge.merge import columns
from loramerge.pages.commands import merged as made
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject

WORDS = "What each module lost of the weighted sum, and how far the merge points the same way as each source."


def merged(subject: Subject) -> Section | None:
    """What it kept of each source, by module."""
    if subject.merge is None:
        return None
    merge, name = subject.merge, name_of(subject.merge.method)
    report, out = merge.report, printable(Path(subject.out).name if subject.out else "in memory")
    rows = zip(
        columns.numbered(report.sources), report.weights, report.cosines, report.norm_ratios, strict=True
    )
    kept = [
        f"{source}: weight {weight:g}, cosine {_number(cosine)}, ‖merge‖/‖source‖ {_number(ratio)}"
        for source, weight, cosine, ratio in rows
    ]
    notes, title = [*kept, *report.summary(), *report.notes], f"The merge by {name}: {out}"
    return Section(
        "merge", title, WORDS, made(subject), columns.losses(report), losses_by_layer, MODULE, notes
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
