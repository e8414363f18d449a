"""Which programs load the sources as they are meant."""

from __future__ import annotations

from collections.abc import Iterator

from loramerge.charts.answers import answers
from loramerge.charts.table import SOURCE, Table, texts
from loramerge.consumers import CONSUMERS
from loramerge.consumers.finding import loads
from loramerge.errors import LoramergeError
from loramerge.pages.commands import checked
from loramerge.pages.section import Section
from loramerge.pages.subject import Subject

WORDS = (
    "Which program loads which source as it is meant. A cross: it refuses it, scales it wrongly, or "
    "ignores a part; the table says why. A question mark: nobody can tell from these files."
)
ANSWERS = {True: "loads", False: "does not", None: "cannot be told"}


def programs(subject: Subject) -> Section:
    """A row for each source and program."""
    table = Table(texts(SOURCE, "program", "answer", "why"), list(_rows(subject)))
    return Section("programs", "Programs", WORDS, checked(subject), table, answers, SOURCE)


def _rows(subject: Subject) -> Iterator[tuple[str, ...]]:
    for name, facts in zip(subject.names, subject.facts, strict=True):
        if isinstance(facts, LoramergeError):
            yield from ((name, consumer.title, ANSWERS[None], str(facts)) for consumer in CONSUMERS.values())
            continue
        for consumer in CONSUMERS.values():
            found = consumer.findings(facts)
            yield name, consumer.title, ANSWERS[loads(found)], " ".join(each.sentence for each in found)
