"""Tables of the documents, and words in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in cells)


def first_line(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")


def listed(words: Iterable[str], nothing: str = "–") -> str:
    return ", ".join(words) or nothing


def code(word: str) -> str:
    return f"`{word}`"


def yes(fact: bool) -> str:
    return "yes" if fact else "no"
