"""Facts as a notebook shows them: tables of HTML and frames, from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from loramerge.errors import UsageError, printable

NOTHING = "–"


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
    return rows_html(("what", "value"), rows)


def fields_html(value: Any) -> str:
    """A dataclass for a notebook: those of its fields that are not as usual, or all.

    >>> from loramerge.charts.table import Column
    >>> fields_html(Column("norm"))
    '<table><tr><th>what</th><th>value</th></tr><tr><td>name</td><td>norm</td></tr></table>'
    """
    found = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.repr}
    usual = {each.name: each.default for each in dataclasses.fields(value)}
    told = {name: said for name, said in found.items() if said not in (usual[name], {})}
    return facts_html(told or found)


def rows_html(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under their names, as a table that nbconvert keeps."""
    import html  # notebooks only

    def cells(kind: str, texts: Sequence[str]) -> str:
        safe = (html.escape(printable(text, 2000)) for text in texts)
        return "".join(f"<{kind}>{text}</{kind}>" for text in safe)

    head = cells("th", names)
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


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
