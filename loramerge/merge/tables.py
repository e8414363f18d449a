"""Tables of results: as lines for a terminal, as HTML for a notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from loramerge.errors import printable

ENDLESS = 10**6  # columns of a file, a pipe or a notebook
LEAST = 20


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table, first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]


def columns() -> int:
    """The width of the terminal; without end where the output goes elsewhere."""
    import shutil  # it loads compressors, and a quiet merge shows no table

    return shutil.get_terminal_size((ENDLESS, 24)).columns


def fitted(rows: list[list[str]]) -> list[str]:
    """Lines of a table; where they are too long for the terminal, a line or more for each row."""
    lines, width = aligned(rows), columns()
    if max(map(len, lines), default=0) <= width:
        return lines
    (_, *heads), *body = rows
    return [line for first, *rest in body for line in _stacked(first, heads, rest, width)]


def _stacked(first: str, heads: list[str], cells: list[str], width: int) -> Iterator[str]:
    """A row on its own: its name, and below it each cell after its head."""
    yield from wrapped([first.strip()])
    told = ", ".join(f"{head} {cell}" for head, cell in zip(heads, cells, strict=True) if cell)
    yield from textwrap.wrap(told, max(width, LEAST), initial_indent="  ", subsequent_indent="  ")


def wrapped(lines: Iterable[str]) -> list[str]:
    """Sentences in lines that fit the terminal; names are not broken."""
    width = max(columns(), LEAST)
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def as_html(rows: list[list[str]], lines: Iterable[str]) -> str:
    """A table, the header first, and lines below it."""
    import html  # for notebooks

    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    shown = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body)
    below = "<br>".join(map(html.escape, lines))
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{shown}</table><p>{below}</p>"


def headed(head: list[str], rows: Sequence[Sequence[str]], most: int = 20) -> list[list[str]]:
    """Rows under their head; of many the first, and how many there are.

    >>> headed(["a", "b"], [["1", "2"]] * 4, most=2)
    [['a', 'b'], ['1', '2'], ['1', '2'], ['… 2 more', '']]
    """
    found = [head, *([printable(cell, 80) for cell in row] for row in rows[:most])]
    return found if len(rows) <= most else [*found, [f"… {len(rows) - most} more", *[""] * (len(head) - 1)]]


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "module"), counted(2, "module")
    ('1 module', '2 modules')
    """
    return f"{count} {noun}{'s' if count != 1 else ''}"
