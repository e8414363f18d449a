"""Tables of results: as lines for a terminal, as HTML for a notebook, as a frame of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loramerge.errors import UsageError


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table, first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]


def as_html(rows: list[list[str]], lines: Iterable[str]) -> str:
    """A table, the header first, and lines below it."""
    import html  # for notebooks

    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    shown = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
    below = "<br>".join(map(html.escape, lines))
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{shown}</table><p>{below}</p>"


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


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "module"), counted(2, "module")
    ('1 module', '2 modules')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"
