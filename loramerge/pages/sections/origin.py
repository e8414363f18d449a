"""How sources were merged that are merges themselves, as their records say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loramerge.charts.table import SOURCE, Table, numbers, texts
from loramerge.errors import ChangedError, LoramergeError
from loramerge.formats.records import find_record
from loramerge.hub.escape import quoted, shell
from loramerge.pages.section import How, Section
from loramerge.pages.subject import Subject

COLUMNS = (*texts(SOURCE, "method", "of"), *numbers("weight", "cosine with it", "its strength to its own"))

WORDS = (
    "Some sources are merges: this is what their records say. A record is a file like any other, so "
    "nothing of it is proved here; loramerge replay does that."
)


def origin(subject: Subject) -> Section | None:
    """A row for each source of each source that is a merge; None if none is."""
    rows, notes = list[tuple[object, ...]](), list[str]()
    first = ""
    for name, source in zip(subject.names, subject.named, strict=True):
        try:
            found = list(_rows(name, source))
        except ChangedError:
            raise
        except LoramergeError as error:
            notes.append(f"{name}: {error}")
            continue
        first = first or (str(source) if found else "")
        rows += found
    if not (rows or notes):
        return None
    first = first or str(subject.named[0])
    how = How(f"loramerge replay {shell(first)}", f"import loramerge as lm\n\nlm.replay({quoted(first)})")
    table = Table(COLUMNS, rows) if rows else None
    return Section("origin", "Where merges come from", WORDS, how, table, notes=notes)


def _rows(name: str, source: object) -> Iterator[tuple[object, ...]]:
    """What the record of one source says of its own sources, if it has one."""
    if not isinstance(source, str | Path) or not os.path.exists(source):
        return
    record = find_record(Path(source))
    if record is None:
        return
    method = _table(record.get("method")).get("name")
    kept = {_word(each.get("name")): each for each in _tables(_table(record.get("report")).get("sources"))}
    for each in _tables(record.get("sources")):
        told = kept.get(_word(each.get("name")), {})
        facts = (each.get("weight"), told.get("cosine"), told.get("norm_ratio"))
        yield name, _word(method), _word(each.get("name")), *map(_number, facts)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _tables(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _word(value: Any) -> str:
    return value if isinstance(value, str) else "not said"


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if fits else None
