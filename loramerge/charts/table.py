"""A table of facts as plain values: what a chart is drawn from, and what stands under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from loramerge.errors import UsageError, printable

Kind = Literal["text", "number", "numbers"]
MODULE, SOURCE = "module", "source"  # columns by which a reader can single something out
NOTHING = "–"


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

    def _repr_html_(self) -> str:
        import html  # notebooks only

        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in self.cells()
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def as_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A `pandas.DataFrame` with a row for each of them.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError("A frame needs pandas: pip install pandas.") from None
    return pandas.DataFrame(list(rows))


def facts_html(facts: Mapping[str, Any]) -> str:
    """What is known of one thing, for a notebook: a table of two columns."""
    rows = [(name, said if isinstance(said, str) else printable(said, 300)) for name, said in facts.items()]
    return Table(texts("what", "value"), rows)._repr_html_()


def fields_html(value: Any) -> str:
    """A dataclass for a notebook: those of its fields that are not as usual, or all.

    >>> fields_html(Column("norm"))
    '<table><tr><th>what</th><th>value</th></tr><tr><td>name</td><td>norm</td></tr></table>'
    """
    found = {each.name: getattr(value, each.name) for each in fields(value) if each.repr}
    usual = {each.name: each.default for each in fields(value)}
    told = {name: said for name, said in found.items() if said not in (usual[name], {})}
    return facts_html(told or found)


def shown(value: Any) -> str:
    """A value as a table shows it: numbers to five digits.

    >>> shown(0.123456), shown(3), shown([1.5, 2]), shown(None), shown("a\\x1b")
    ('0.12346', '3', '1.5 2', '–', 'a\\\\x1b')
    """
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return printable(value, 300)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(shown, value))


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
