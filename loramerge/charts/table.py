"""A table of facts as plain values: what a chart is drawn from, and what stands under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loramerge.charts.facts import as_frame, rows_html, shown

Kind = Literal["text", "number", "numbers"]
MODULE, SOURCE = "module", "source"  # columns by which a reader can single something out


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name is its head, and the field of a chart."""

    name: str
    kind: Kind = "number"


def texts(*names: str) -> tuple[Column, ...]:
    """Columns of words."""
    return tuple(Column(name, "text") for name in names)


def numbers(*names: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(map(Column, names))


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of values: text, a number or None, or a list of numbers, as the column says.

    >>> found = Table((*texts("source"), *numbers("norm")), [("a", 0.123456), ("b", None)])
    >>> found.cells()[1:], found.records()[1]
    ([['b', '–']], {'source': 'b', 'norm': None})
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.names

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """The heads of its columns."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> list[Any]:
        """The values of one column."""
        at = self.names.index(name)
        return [row[at] for row in self.rows]

    def cells(self) -> list[list[str]]:
        """Every value as it is shown, row by row."""
        return [[shown(value) for value in row] for row in self.rows]

    def records(self) -> list[dict[str, Any]]:
        """Rows for a chart: {column: value}. Text is made safe to show, as it is in the table."""
        return [
            {name: _plain(value) for name, value in zip(self.names, row, strict=True)} for row in self.rows
        ]

    def head(self, most: int) -> Table:
        """Its first rows."""
        return Table(self.columns, self.rows[:most])

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each of its rows; pandas must be installed."""
        return as_frame(self.records())

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.names)[:60]}>"

    def _repr_html_(self) -> str:
        return rows_html(self.names, self.cells())


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
