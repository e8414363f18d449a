"""What a merge would lose at other sizes."""

from __future__ import annotations

from loramerge.charts.losses import losses as chart
from loramerge.charts.table import Table, numbers
from loramerge.errors import ChangedError, LoramergeError
from loramerge.pages.commands import forgone
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject

WORDS = (
    "The share of ‖Σ wₜ ΔWₜ‖² that the best merge of each size loses. Where the curve bends, a larger "
    "file buys little."
)


def losses(subject: Subject) -> Section:
    """A row for each size."""
    how, title = forgone(subject), "Loss against size"
    if isinstance(subject.together, str):
        return Section("losses", title, WORDS, how, notes=[f"They cannot be merged: {subject.together}"])
    if subject.crowd:
        return Section("losses", title, WORDS, how, notes=[subject.crowd])
    try:
        points = subject.losses
    except ChangedError:
        raise
    except LoramergeError as error:
        return Section("losses", title, WORDS, how, notes=[str(error)])
    if not points:
        return Section("losses", title, WORDS, how, notes=["This merge has no rank that could be another."])
    table = Table(
        numbers("rank", "total rank", "bytes", "energy lost"),
        [(p.rank, p.total_rank, p.bytes, p.energy_lost) for p in points],
    )
    return Section("losses", title, WORDS, how, table, chart)
