"""One section of a page: numbers, the chart of them, and how both are made."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramerge.charts.draw import Draw
from loramerge.charts.table import Table

ROWS = 20  # of a table in a notebook


@dataclass(frozen=True, slots=True)
class How:
    """How a reader makes it again: a command, Python, and the recipe of a merge if it is about one."""

    command: str
    python: str
    recipe: str = ""

    def items(self) -> list[tuple[str, str]]:
        """(title, code) of each way that exists."""
        named = (("Command", self.command), ("Recipe", self.recipe), ("Python", self.python))
        return [(title, code) for title, code in named if code]


@dataclass(frozen=True, eq=False, slots=True)
class Section:
    """What a page shows under one heading.

    Args:
        name: in Python and in links.   title: the heading.   words: how to read it.
        how: it is made.   table: the numbers; None if there are none, and then `notes` say why.
        chart: what draws them, if that helps.   pick: the column by which one thing can be singled out.
        notes: sentences that a reader should know.
    """

    name: str
    title: str
    words: str
    how: How
    table: Table | None = None
    chart: Draw | None = None
    pick: str | None = None
    notes: Sequence[str] = field(default=())

    def __repr__(self) -> str:
        return f"<Section {self.name}: {'no rows' if self.table is None else self.table!r}>"

    def _repr_html_(self) -> str:
        """Title, table and notes, which a notebook keeps when it is converted."""
        table, said = "", list(self.notes)
        if self.table is not None:
            table = self.table.head(ROWS)._repr_html_()
            if (more := len(self.table) - ROWS) > 0:
                said.append(f"… {more} more rows: page[{self.name!r}].table has all")
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in said)
        return f"<h3>{html.escape(self.title)}</h3>{table}{notes}"
