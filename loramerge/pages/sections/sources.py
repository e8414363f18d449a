"""What the sources are, and how strong."""

from __future__ import annotations

from loramerge.arrays import dtypes
from loramerge.charts.strengths import strengths
from loramerge.charts.table import SOURCE, Table, numbers, texts
from loramerge.consumers.facts import Facts
from loramerge.consumers.models import title
from loramerge.errors import LoramergeError
from loramerge.formats.models import known
from loramerge.pages.commands import inspected
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject
from loramerge.pages.triggers import triggers
from loramerge.verbs.contents import Contents
from loramerge.verbs.inspect import Inspection

COLUMNS = (
    *texts(SOURCE, "format", "family", "base"),
    *numbers("modules"),
    *texts("ranks", "type"),
    *numbers("‖ΔW‖"),
    *texts("trigger words", "odd"),
)
WORDS = (
    "What each adapter is, and how strong: ‖ΔW‖ is the norm of its update over all modules. Much stronger"
    " sources drown the others in a merge."
)

IMAGE = {"unet": "Stable Diffusion", "transformer": "Flux"}  # component -> the models whose names are known


def sources(subject: Subject) -> Section:
    """A row for each source."""
    each = zip(subject.names, subject.looked, subject.facts, strict=True)
    rows = [
        _row(name, found, facts) if isinstance(found, Inspection) else _unread(name, found)
        for name, found, facts in each
    ]
    how, table = inspected(subject), Table(COLUMNS, rows)
    if not subject.measured:  # there is no strength to draw
        return Section("sources", "Sources", WORDS, how, table)
    return Section("sources", "Sources", WORDS, how, table, strengths, SOURCE)


def _row(name: str, found: Inspection, facts: Facts | LoramergeError) -> tuple[object, ...]:
    adapter = found.adapter
    ranks = sorted({module.rank for module in found.modules})
    return (
        name,
        found.kind,
        _family(found, facts),
        adapter.base.name or "not named",
        len(found.modules),
        str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        dtypes.word(adapter.dtype),
        found.norm,
        ", ".join(triggers(adapter)) or None,
        "; ".join(found.oddities) or None,
    )


def _family(found: Inspection, facts: Facts | LoramergeError) -> str | None:
    """The family of its model, as far as its files and the names of its modules tell."""
    paths = {component: {t.path for t in found.adapter if t.component == component} for component in IMAGE}
    for component, words in IMAGE.items():
        if paths[component] and paths[component] <= set(known(component).values()):
            return words
    if isinstance(facts, LoramergeError):  # of what is only in memory and has no names of a format
        return None
    return " or ".join(map(title, facts.classes)) or None


def _unread(name: str, found: Contents) -> tuple[object, ...]:
    base = found.settings.get("base_model_name_or_path")
    return (name, found.kind, None, None if base is None else str(base), None, None, None, None, None,
            f"cannot be merged: {found.refusal}")  # fmt: skip
